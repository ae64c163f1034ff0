//! Medians, ratios, the table, and the folder that keeps them.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Options;
use super::contenders::{Contender, Run};
use crate::Outcome;

/// `bench/runs/DATE-MACHINE`
pub fn folder(top: &Path) -> Outcome<PathBuf> {
    let date = String::from_utf8(Command::new("date").arg("+%F").output()?.stdout)?;
    let cpu = cpu_name();
    let mut slug = String::new();
    for c in cpu.to_lowercase().chars() {
        match c {
            c if c.is_ascii_alphanumeric() => slug.push(c),
            _ if slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(top.join(format!("bench/runs/{}-{}-{cpus}cpu", date.trim(), slug.trim_matches('-'))))
}

fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':'))
        .map_or("unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Prints the table and writes `table.md`, `rounds.tsv` and `machine.txt`.
pub fn write(folder: &Path, rounds: &[Vec<Run>], instructions_per_second: f64, options: &Options) -> Outcome {
    let table = table(rounds, instructions_per_second, options);
    println!("{table}");
    fs::create_dir_all(folder)?;
    fs::write(folder.join("table.md"), &table)?;
    fs::write(folder.join("rounds.tsv"), tsv(rounds))?;
    fs::write(folder.join("machine.txt"), machine())?;
    println!("kept in {}", folder.display());
    Ok(())
}

fn find(runs: &[Run], contender: Contender) -> Option<&Run> {
    runs.iter().find(|run| run.contender == contender)
}

fn seconds(run: &Run, name: &str) -> Option<f64> {
    run.rows.iter().find(|row| row.name == name).map(|row| row.seconds)
}

/// The median over the rounds of something that every round has.
fn median(rounds: &[Vec<Run>], of: impl Fn(&[Run]) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = rounds.iter().filter_map(|runs| of(runs)).filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn ratio(rounds: &[Vec<Run>], name: &str, of: Contender, to: Contender) -> Option<f64> {
    median(rounds, |runs| Some(seconds(find(runs, of)?, name)? / seconds(find(runs, to)?, name)?))
}

fn table(rounds: &[Vec<Run>], instructions_per_second: f64, options: &Options) -> String {
    use Contender::{Native, Qemu, Strata};
    let mut text = format!(
        "{}, {} rounds, scale {}; medians; ratios within a round\n\n",
        cpu_name(),
        rounds.len(),
        options.scale
    );
    text.push_str(
        "| workload | native s | Strata × native | QEMU × native | Strata × QEMU |\n|---|---|---|---|---|\n",
    );
    let cell = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let names: Vec<&str> = rounds[0][0].rows.iter().map(|row| row.name.as_str()).collect();
    let mut against_qemu = Vec::new();
    for name in names {
        let native = median(rounds, |runs| seconds(find(runs, Native)?, name));
        let native = native.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let peer = ratio(rounds, name, Strata, Qemu);
        against_qemu.extend(peer);
        let ours = cell(ratio(rounds, name, Strata, Native));
        let theirs = cell(ratio(rounds, name, Qemu, Native));
        let _ = writeln!(text, "| {name} | {native} | {ours} | {theirs} | {} |", cell(peer));
    }
    if !against_qemu.is_empty() {
        let logs: f64 = against_qemu.iter().map(|ratio| ratio.ln()).sum();
        let _ = writeln!(text, "| **geomean** | | | | **{:.2}** |", (logs / against_qemu.len() as f64).exp());
    }
    let boot = |of| median(rounds, |runs| Some(find(runs, of)?.first_line?.as_secs_f64()));
    let memory = |of| median(rounds, |runs| Some(find(runs, of)?.overhead_kib? as f64 / 1024.0));
    let boot_ratio = median(rounds, |runs| {
        Some(find(runs, Strata)?.first_line?.as_secs_f64() / find(runs, Qemu)?.first_line?.as_secs_f64())
    });
    text.push_str("\n| | Strata | QEMU | ratio |\n|---|---|---|---|\n");
    let _ = writeln!(
        text,
        "| process start to first line of PID 1, s | {} | {} | {} |",
        cell(boot(Strata)),
        cell(boot(Qemu)),
        cell(boot_ratio)
    );
    let _ = writeln!(
        text,
        "| memory beyond guest RAM then, MiB | {} | {} | |",
        cell(memory(Strata)),
        cell(memory(Qemu))
    );
    let _ = writeln!(
        text,
        "| million guest instructions a second, intloop | {:.0} | | |",
        instructions_per_second / 1e6
    );
    text
}

/// Every figure of every round.
fn tsv(rounds: &[Vec<Run>]) -> String {
    let mut text = String::from("round\tcontender\tworkload\tseconds\n");
    for (number, runs) in (1..).zip(rounds) {
        for run in runs {
            for row in &run.rows {
                let _ = writeln!(text, "{number}\t{:?}\t{}\t{}", run.contender, row.name, row.seconds);
            }
            if let Some(first_line) = run.first_line {
                let _ = writeln!(
                    text,
                    "{number}\t{:?}\tfirst-line\t{:.4}",
                    run.contender,
                    first_line.as_secs_f64()
                );
            }
            if let Some(kib) = run.overhead_kib {
                let _ = writeln!(text, "{number}\t{:?}\toverhead-kib\t{kib}", run.contender);
            }
        }
    }
    text
}

fn machine() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("not there").to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    format!(
        "{} ({cpus} CPUs)\n{}\nLinux {}\n{}\n{}\n",
        cpu_name(),
        memory.lines().next().unwrap_or_default(),
        said("uname", "-r"),
        said("qemu-system-x86_64", "--version"),
        said("rustc", "--version"),
    )
}
