//! Who runs the guest, and what one run says.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Options;
use super::prepare::Guest;
use crate::Outcome;

/// Bytes of memory the guests get.
const MEMORY_MIB: u64 = 512;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Native,
    Strata,
    Qemu,
}

/// One workload of one run.
pub struct Row {
    pub name: String,
    pub seconds: f64,
    pub checksum: String,
}

/// One run.
pub struct Run {
    pub contender: Contender,
    pub rows: Vec<Row>,
    /// From the start of the process to the first line of PID 1.
    pub first_line: Option<Duration>,
    /// Memory of the process beyond guest RAM at that line.
    pub overhead_kib: Option<u64>,
}

/// Runs workload `only` (or `all`, or `none`) once.
pub fn run(contender: Contender, guest: &Guest, options: &Options, only: &str) -> Outcome<Run> {
    match contender {
        Contender::Native => native(guest, options),
        Contender::Strata => booted(contender, strata(guest, options, only)),
        Contender::Qemu => booted(contender, qemu(guest, options, only)),
    }
}

fn append(options: &Options, only: &str) -> String {
    let (scale, text) = (options.scale, options.text);
    format!("console=ttyS0 panic=-1 reboot=k quiet bench.only={only} bench.scale={scale} bench.text={text}")
}

fn strata(guest: &Guest, options: &Options, only: &str) -> Command {
    let mut command = Command::new(&options.strata);
    command.args([
        "boot",
        "-v",
        "--engine",
        &options.engine,
        "--memory",
        &format!("{MEMORY_MIB}M"),
        "--kernel",
    ]);
    command.arg(&guest.kernel).arg("--initrd").arg(&guest.initrd).arg("--append").arg(append(options, only));
    command
}

fn qemu(guest: &Guest, options: &Options, only: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-accel",
        "tcg,thread=multi,tb-size=256",
        "-cpu",
        "max",
        "-m",
        &MEMORY_MIB.to_string(),
        "-smp",
        "1",
    ]);
    command.args([
        "-nodefaults",
        "-nic",
        "none",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
        "-M",
        "microvm",
    ]);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.arg("-append").arg(append(options, only));
    command
}

/// Runs a machine until the guest says it is done.
fn booted(contender: Contender, mut command: Command) -> Outcome<Run> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("run {contender:?}: {error}"))?;
    let output = BufReader::new(child.stdout.take().ok_or("no output")?);
    let mut run = Run { contender, rows: Vec::new(), first_line: None, overhead_kib: None };
    let mut done = false;
    for line in output.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim().to_owned();
        match line.as_str() {
            "BENCH-UP" => {
                run.first_line = Some(started.elapsed());
                run.overhead_kib = overhead_kib(&child);
            }
            "BENCH-DONE" => done = true,
            line => run.rows.extend(row(line)),
        }
    }
    child.wait()?;
    if done { Ok(run) } else { Err(format!("{contender:?}: the guest ended before it was done").into()) }
}

fn native(guest: &Guest, options: &Options) -> Outcome<Run> {
    let text = guest.folder.join("text");
    let packed = guest.folder.join("text.gz");
    let workloads = |arguments: &[&str]| {
        let mut command = Command::new(&guest.workloads);
        command.args(arguments).env("BENCH_TRUE", &guest.nothing);
        command
    };
    let mut said = output(workloads(&["all", &options.scale.to_string()]))?;
    fs::write(&text, output(workloads(&["gen", &options.text.to_string()]))?)?;
    let shell = format!("{} ", guest.busybox.display());
    let (text, packed) = (text.display(), packed.display());
    for (label, script) in [
        ("gzip", format!("{shell} gzip -9 <{text} >{packed}")),
        ("gunzip", format!("{shell} gunzip <{packed} >/dev/null")),
        ("sha256sum", format!("{shell} sha256sum {text} >/dev/null")),
    ] {
        let busybox = guest.busybox.display().to_string();
        said.extend(output(workloads(&["time", label, &busybox, "sh", "-c", &script]))?);
    }
    let awk = "{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) s++; print s > \"/dev/null\" }";
    let busybox = guest.busybox.display().to_string();
    said.extend(output(workloads(&["time", "awk", &busybox, "awk", awk, &text.to_string()]))?);
    let rows = String::from_utf8_lossy(&said).lines().filter_map(row).collect();
    Ok(Run { contender: Contender::Native, rows, first_line: None, overhead_kib: None })
}

fn output(mut command: Command) -> Outcome<Vec<u8>> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("run {command:?}: {error}"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("{command:?}: {}", output.status).into())
    }
}

/// `BENCH name seconds checksum`
fn row(line: &str) -> Option<Row> {
    let mut words = line.strip_prefix("BENCH ")?.split_whitespace();
    let (name, seconds, checksum) = (words.next()?, words.next()?, words.next()?);
    Some(Row { name: name.to_owned(), seconds: seconds.parse().ok()?, checksum: checksum.to_owned() })
}

/// Resident memory of the process but for the mapping of guest RAM: the one that is as large as it.
fn overhead_kib(child: &Child) -> Option<u64> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).ok()?;
    let (mut size, mut total) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Rss:"), Some(kib)) if size < MEMORY_MIB * 1024 / 2 => total += kib,
            _ => {}
        }
    }
    Some(total)
}

/// Guest instructions a second in the integer loop: what the loop adds to an empty boot, by the program's own count.
pub fn instructions_per_second(guest: &Guest, options: &Options) -> Outcome<f64> {
    eprintln!("bench: instructions of the integer loop");
    let (empty, _) = counted(guest, options, "none")?;
    let (with, seconds) = counted(guest, options, "intloop")?;
    Ok((with.saturating_sub(empty)) as f64 / seconds)
}

fn counted(guest: &Guest, options: &Options, only: &str) -> Outcome<(u64, f64)> {
    let mut command = strata(guest, options, only);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // What the program says of itself is a line or two: it cannot fill a pipe and stop.
    let said = std::io::read_to_string(child.stdout.take().ok_or("no output")?)?;
    let mut account = String::new();
    child.stderr.take().ok_or("no account")?.read_to_string(&mut account)?;
    child.wait()?;
    let before = account.split(" guest instructions").next().unwrap_or_default();
    let count = before.split_whitespace().next_back().and_then(|word| word.parse().ok());
    let count = count.ok_or_else(|| format!("no count of instructions in {account:?}"))?;
    let seconds = said.lines().filter_map(|line| row(line.trim())).map(|row| row.seconds).sum();
    Ok((count, seconds))
}
