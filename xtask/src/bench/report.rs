//! The tables, and the folder that keeps them with every figure and what the machine was.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Options;
use super::classes::{BOOT, CLASSES, Class, FIRST_LINE, OVERHEAD, PARALLEL, PARALLEL_GOAL, programs};
use super::figures::{Contender, Run, Value, find, geomean, median};
use crate::Outcome;

/// Prints the tables and writes `table.md`, `rounds.tsv` and `machine.txt`. `kernel` is the guests'.
pub fn write(
    folder: &Path,
    rounds: &[Vec<Run>],
    speeds: &[(String, Outcome<f64>)],
    options: &Options,
    kernel: &str,
) -> Outcome {
    let report = Report { rounds, engines: &options.engine };
    let mut text = format!(
        "{}, {} rounds, scale {}; medians; ratios within a round\n\n",
        cpu_name(),
        rounds.len(),
        options.scale
    );
    report.classes(&mut text);
    report.rows(&mut text);
    report.machines(&mut text, speeds);
    println!("{text}");
    fs::create_dir_all(folder)?;
    fs::write(folder.join("table.md"), &text)?;
    fs::write(folder.join("rounds.tsv"), tsv(rounds))?;
    fs::write(folder.join("machine.txt"), machine(kernel))?;
    println!("kept in {}", folder.display());
    Ok(())
}

struct Report<'a> {
    rounds: &'a [Vec<Run>],
    engines: &'a [String],
}

impl Report<'_> {
    fn contenders(&self) -> impl Iterator<Item = Contender> {
        self.engines.iter().cloned().map(Contender::Strata)
    }

    fn ratio(&self, row: &str, of: &Contender, to: &Contender) -> Option<f64> {
        median(self.rounds, |runs| Some(find(runs, of)?.figure(row)? / find(runs, to)?.figure(row)?))
    }

    fn figure(&self, row: &str, of: &Contender) -> Option<f64> {
        median(self.rounds, |runs| find(runs, of)?.figure(row))
    }

    /// A ratio, or why there is none: what the machine says of the row.
    fn cell(&self, row: &str, of: &Contender, to: &Contender) -> String {
        if let Some(ratio) = self.ratio(row, of, to) {
            return format!("{ratio:.2}");
        }
        let values = [of, to].map(|who| {
            self.rounds.iter().find_map(|runs| match find(runs, who)?.value(row)? {
                Value::Is(_) => None,
                Value::Timeout => Some("timeout"),
                Value::Failed => Some("failed"),
                Value::Wrong => Some("wrong result"),
            })
        });
        values.into_iter().flatten().next().unwrap_or("-").to_owned()
    }

    /// Each class with its goals.
    fn classes(&self, text: &mut String) {
        for engine in self.contenders() {
            let _ = writeln!(
                text,
                "| {}, geometric means | × QEMU | goal | × native | goal | |\n|---|---|---|---|---|---|",
                engine.name()
            );
            for class in &CLASSES {
                self.class(text, class, &engine);
            }
            self.parallel(text, &engine);
            text.push('\n');
        }
    }

    fn class(&self, text: &mut String, class: &Class, engine: &Contender) {
        let mean = |to: &Contender| {
            let ratios: Vec<f64> = class.rows.iter().filter_map(|row| self.ratio(row, engine, to)).collect();
            // A class is what its rows are together: one that is missing is not forgotten.
            if ratios.len() == class.rows.len() { geomean(&ratios) } else { None }
        };
        let (qemu, native) = (mean(&Contender::Qemu), mean(&Contender::Native));
        let verdicts =
            [qemu.map(|mean| mean <= class.to_qemu), class.to_native.and_then(|goal| Some(native? <= goal))];
        let expected = if class.to_native.is_some() { 2 } else { 1 };
        let verdict = match verdicts.iter().flatten().collect::<Vec<_>>().as_slice() {
            all if all.contains(&&false) => "missed",
            all if all.len() == expected => "met",
            _ => "not known",
        };
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {} | {} | {verdict} |",
            class.name,
            show(qemu),
            class.to_qemu,
            show(native),
            class.to_native.map_or(String::new(), |goal| format!("{goal:.1}")),
        );
    }

    fn parallel(&self, text: &mut String, engine: &Contender) {
        let gain = |who| self.gain(who).map_or("-".to_owned(), |gain| format!("{gain:.2}"));
        let verdict = match (self.gain(engine), self.gain(&Contender::Native)) {
            (Some(gain), _) if gain >= PARALLEL_GOAL => "met",
            // Nobody gets from a host what it does not have to give.
            (Some(_), Some(host)) if host < PARALLEL_GOAL => "not known: the host is busy",
            (Some(_), _) => "missed",
            (None, _) => "not known",
        };
        let _ = writeln!(
            text,
            "| throughput of 2 vCPUs over 1 (host {}, QEMU {}) | {} | ≥ {PARALLEL_GOAL} | | | {verdict} |",
            gain(&Contender::Native),
            gain(&Contender::Qemu),
            gain(engine),
        );
    }

    /// How much faster two processes are than one.
    fn gain(&self, who: &Contender) -> Option<f64> {
        median(self.rounds, |runs| {
            let run = find(runs, who)?;
            Some(run.figure(PARALLEL[0])? / run.figure(PARALLEL[1])?)
        })
    }

    /// Each row with its ratios.
    fn rows(&self, text: &mut String) {
        text.push_str("| row | native s | QEMU × native |");
        let engines: Vec<Contender> = self.contenders().collect();
        for engine in &engines {
            let _ = write!(text, " {0} × native | {0} × QEMU |", engine.name());
        }
        text.push_str("\n|---|---|---|");
        text.push_str(&"---|---|".repeat(engines.len()));
        text.push('\n');
        for row in programs().into_iter().chain(PARALLEL) {
            let native = self.figure(row, &Contender::Native);
            let native = native.map_or("-".to_owned(), |value| format!("{value:.4}"));
            let qemu = self.cell(row, &Contender::Qemu, &Contender::Native);
            let _ = write!(text, "| {row} | {native} | {qemu} |");
            for engine in &engines {
                let to_native = self.cell(row, engine, &Contender::Native);
                let to_qemu = self.cell(row, engine, &Contender::Qemu);
                let _ = write!(text, " {to_native} | {to_qemu} |");
            }
            text.push('\n');
        }
        for engine in &engines {
            let lost =
                |row: &&str| self.ratio(row, engine, &Contender::Qemu).is_some_and(|ratio| ratio > 1.0);
            let losing: Vec<&str> = programs().into_iter().filter(lost).collect();
            let losing = if losing.is_empty() { "none".to_owned() } else { losing.join(", ") };
            let _ = writeln!(text, "\n{}: rows slower than QEMU: {losing}", engine.name());
        }
        text.push('\n');
    }

    /// What is not a program in the guest.
    fn machines(&self, text: &mut String, speeds: &[(String, Outcome<f64>)]) {
        let all: Vec<Contender> = std::iter::once(Contender::Qemu).chain(self.contenders()).collect();
        text.push_str("| |");
        all.iter().for_each(|who| {
            let _ = write!(text, " {} |", who.name());
        });
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(all.len()));
        text.push('\n');
        let mut line = |name: &str, of: &dyn Fn(&Contender) -> Option<f64>, digits: usize| {
            let _ = write!(text, "| {name} |");
            for who in &all {
                let _ = match of(who) {
                    Some(value) => write!(text, " {value:.digits$} |"),
                    None => write!(text, " - |"),
                };
            }
            text.push('\n');
        };
        line(
            "`strata run` to the command's first output; QEMU to PID 1, s",
            &|who| self.figure(BOOT, who),
            2,
        );
        line("boot of the same guest to the first line of PID 1, s", &|who| self.figure(FIRST_LINE, who), 2);
        let mib = |row: &'static str| move |who: &Contender| Some(self.figure(row, who)? / 1024.0);
        line("memory beyond guest RAM then, MiB", &mib(OVERHEAD[0]), 1);
        line("memory beyond guest RAM after all rows, MiB", &mib(OVERHEAD[1]), 1);
        let speed = |who: &Contender| {
            let Contender::Strata(engine) = who else { return None };
            let (_, speed) = speeds.iter().find(|(name, _)| name == engine)?;
            speed.as_ref().ok().map(|speed| speed / 1e6)
        };
        line("million guest instructions a second, integer loop", &speed, 0);
    }
}

/// `bench/runs/DATE-MACHINE`. The machine is a kind, not a name.
pub fn folder(top: &Path) -> Outcome<PathBuf> {
    let date = String::from_utf8(Command::new("date").arg("+%F").output()?.stdout)?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kind = if flags.contains(" hypervisor ") { "cloud" } else { "host" };
    Ok(top.join(format!("bench/runs/{}-{cpus}cpu-{kind}", date.trim())))
}

fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':'))
        .map_or("unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Every figure of every round.
fn tsv(rounds: &[Vec<Run>]) -> String {
    let mut text = String::from("round\tcontender\trow\tvalue\n");
    for (number, runs) in (1..).zip(rounds) {
        for run in runs {
            for row in &run.rows {
                let value = match row.value {
                    Value::Is(figure) => figure.to_string(),
                    other => format!("{other:?}").to_lowercase(),
                };
                let _ = writeln!(text, "{number}\t{}\t{}\t{value}", run.contender.name(), row.name);
            }
        }
    }
    text
}

pub(crate) fn machine(kernel: &str) -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("not there").to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{} ({cpus} CPUs)\n{}\nLinux {}\nguests: Linux {kernel}\nload when it ended: {}\n{}\n{}\n",
        cpu_name(),
        memory.lines().next().unwrap_or_default(),
        // What follows the version may name somebody.
        said("uname", "-r").split('-').next().unwrap_or_default(),
        load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
        said("qemu-system-x86_64", "--version"),
        said("rustc", "--version"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::Row;

    fn run(contender: Contender, seconds: f64) -> Run {
        let rows = programs().into_iter().chain([BOOT]);
        Run { contender, rows: rows.map(|name| Row::new(name, Value::Is(seconds))).collect() }
    }

    fn lines(change: impl FnOnce(&mut Run)) -> String {
        let engine = Contender::Strata("jit".to_owned());
        let mut strata = run(engine, 1.5);
        change(&mut strata);
        let rounds = [vec![run(Contender::Native, 1.0), run(Contender::Qemu, 20.0), strata]];
        let mut text = String::new();
        let report = Report { rounds: &rounds, engines: &["jit".to_owned()] };
        report.classes(&mut text);
        report.rows(&mut text);
        report.machines(&mut text, &[]);
        text
    }

    #[test]
    fn a_class_meets_its_goals_or_misses_them() {
        let text = lines(|_| {});
        assert!(text.contains("| floating point and vectors | 0.07 | 0.10 | 1.50 | 1.5 | met |"), "{text}");
        assert!(text.contains("slower than QEMU: none"), "{text}");
        let text = lines(|run| {
            let row = run.rows.iter_mut().find(|row| row.name == "nbody");
            row.expect("a row").value = Value::Is(21.0);
        });
        assert!(text.contains("missed") && text.contains("slower than QEMU: nbody"), "{text}");
    }

    #[test]
    fn a_row_without_a_figure_says_why_and_leaves_its_class_open() {
        let text = lines(|run| {
            let row = run.rows.iter_mut().find(|row| row.name == "vector");
            row.expect("a row").value = Value::Timeout;
        });
        assert!(text.contains("| floating point and vectors | - | 0.10 | - | 1.5 | not known |"), "{text}");
        assert!(text.contains("| vector | 1.0000 | 20.00 | timeout | timeout |"), "{text}");
    }
}
