//! The same programs on the host itself.

use std::fs;
use std::process::{Command, Stdio};

use super::Options;
use super::classes::{PARALLEL, programs};
use super::figures::Row;
use super::prepare::Guest;
use crate::Outcome;

/// What `bench/init.sh` has for awk.
const WORDS: &str = "{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) s++; print s > \"/dev/null\" }";

/// Every row, one after the other.
pub fn run(guest: &Guest, options: &Options) -> Outcome<Vec<Row>> {
    let text = guest.folder.join("text");
    fs::write(&text, output(guest, &["gen", &options.text.to_string()])?)?;
    let (scale, busybox) = (options.scale.to_string(), guest.busybox.display().to_string());
    let (file, packed) = (text.display().to_string(), guest.folder.join("text.gz").display().to_string());
    let script = |name: &str| match name {
        "gzip" => Some(format!("{busybox} gzip -9 <{file} >{packed}")),
        "gunzip" => Some(format!("{busybox} gunzip <{packed} >/dev/null")),
        "sha256sum" => Some(format!("{busybox} sha256sum {file} >/dev/null")),
        _ => None,
    };
    let mut rows = Vec::new();
    for name in programs().into_iter().chain(PARALLEL) {
        let said = match (name, script(name)) {
            ("awk", _) => output(guest, &["time", "awk", &busybox, "awk", WORDS, &file])?,
            (_, Some(script)) => output(guest, &["time", name, &busybox, "sh", "-c", &script])?,
            (_, None) => output(guest, &[name, &scale])?,
        };
        rows.extend(String::from_utf8_lossy(&said).lines().filter_map(Row::parse));
    }
    Ok(rows)
}

fn output(guest: &Guest, arguments: &[&str]) -> Outcome<Vec<u8>> {
    let mut command = Command::new(&guest.workloads);
    command.args(arguments).env("BENCH_TRUE", &guest.nothing).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("run {command:?}: {error}"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("{command:?}: {}", output.status).into())
    }
}
