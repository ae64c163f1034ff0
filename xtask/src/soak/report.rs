//! What is said at the end, and what is kept.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::heard::Results;
use super::{Options, Run, watch};
use crate::Outcome;

/// Everything that must not have happened.
pub fn faults(run: &Run, expected: Option<&Results>) -> Vec<String> {
    let heard = &run.heard;
    let mut faults = heard.faults.clone();
    if !heard.done || !run.ended_well {
        faults.push(format!("the guest did not come to its end: {}", run.end));
    }
    let first = heard.first();
    if first.is_empty() {
        faults.push("no round ended".into());
    }
    faults.extend(heard.differences(expected.unwrap_or(&first)));
    faults.extend(watch::leaks(&run.samples).unwrap_or_default());
    faults
}

/// Writes `soak.md` and `samples.tsv` to `folder`, and prints the former.
pub fn write(
    folder: &Path,
    options: &Options,
    run: &Run,
    expected: Option<&Results>,
    faults: &[String],
) -> Outcome {
    let mut table = String::from("s\tKiB beyond guest RAM\tthreads\tfiles\n");
    for sample in &run.samples {
        writeln!(table, "{}\t{}\t{}\t{}", sample.at.as_secs(), sample.kib, sample.threads, sample.files)?;
    }
    fs::write(folder.join("samples.tsv"), table)?;
    let text = text(options, run, expected, faults)?;
    fs::write(folder.join("soak.md"), &text)?;
    print!("{text}");
    Ok(())
}

fn text(options: &Options, run: &Run, expected: Option<&Results>, faults: &[String]) -> Outcome<String> {
    let mut text = String::new();
    let (minutes, cpus, engine) = (run.elapsed.as_secs() / 60, options.cpus, &options.engine);
    writeln!(text, "Soak: {minutes} minutes on {cpus} vCPUs, engine {engine}, {} MiB\n", options.memory_mib)?;
    let right = if expected.is_some() { "that of the host" } else { "that of the first round" };
    writeln!(text, "| load | rounds | seconds each | checksum, {right} |\n|---|---|---|---|")?;
    for (name, rounds) in &run.heard.rounds {
        let count = rounds.len();
        let each = rounds.last().map_or(0.0, |(at, _)| at.as_secs_f64()) / count as f64;
        let sum = expected.and_then(|sums| sums.get(name)).map_or(&rounds[0].1, |sum| sum);
        writeln!(text, "| {name} | {count} | {each:.1} | {sum} |")?;
    }
    let mib = |kib: Option<u64>| kib.unwrap_or_default() >> 10;
    let middle = run.samples.get(run.samples.len() / 2).map(|sample| sample.kib);
    let most = run.samples.iter().map(|sample| sample.kib).max();
    let last = run.samples.last().map(|sample| sample.kib);
    let (middle, most, last) = (mib(middle), mib(most), mib(last));
    writeln!(
        text,
        "\nMemory beyond guest RAM, MiB: {middle} at half time, {last} at the end, at most {most}."
    )?;
    if watch::leaks(&run.samples).is_none() {
        writeln!(text, "Too short to tell whether something leaks.")?;
    }
    let available = &run.heard.available_kib;
    let (most, least) = (mib(available.iter().max().copied()), mib(available.iter().min().copied()));
    writeln!(text, "Memory available in the guest after rounds, MiB: {least} to {most}.")?;
    writeln!(text, "{}", run.end.trim())?;
    match faults {
        [] => writeln!(text, "No difference.")?,
        _ => writeln!(text, "{} faults:\n- {}", faults.len(), faults.join("\n- "))?,
    }
    Ok(text)
}
