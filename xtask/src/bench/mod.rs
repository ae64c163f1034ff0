//! `cargo xtask bench`: the same guest on Strata and on QEMU TCG, and the same programs natively, interleaved.
//!
//! A round is one run of each. Ratios are taken within a round and their medians reported, because absolute times
//! on a shared machine mean little. Reading order: [`classes`], what is measured and meant; [`prepare`];
//! [`contenders`]; [`session`], one guest's errand; [`figures`]; [`report`].

mod classes;
pub(crate) mod contenders;
mod figures;
mod native;
pub(crate) mod overhead;
mod prepare;
mod report;
mod session;

use std::path::{Path, PathBuf};

use crate::Outcome;
use classes::{BOOT, FIRST_LINE, PARALLEL};
use contenders::Errand;
use figures::{Contender, Row, Run, Value};
use prepare::Guest;
pub(crate) use report::machine;
use session::Patience;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// How often each contender runs
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Amount of work, the same for every contender; 1 is what takes a native machine about ten seconds
    #[arg(long, default_value_t = 0.1)]
    scale: f64,
    /// Megabytes of text for gzip, sha256sum and awk [default: 20 times the scale]
    #[arg(long, default_value_t = 0.0, hide_default_value = true)]
    text: f64,
    /// Store with the kernel and the image to boot
    #[arg(long)]
    store: PathBuf,
    /// Image for `strata run`
    #[arg(long, default_value = "debian")]
    image: String,
    /// The program to measure
    #[arg(long)]
    strata: PathBuf,
    /// Engine of the program; may be repeated, each is a contender
    #[arg(long, default_value = "auto")]
    engine: Vec<String>,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    /// Seconds that one row may take in a guest
    #[arg(long, default_value_t = 60)]
    row_timeout: u64,
    /// Seconds that a guest may take to its first line
    #[arg(long, default_value_t = 60)]
    boot_timeout: u64,
    /// Folder for the results [default: bench/runs/DATE-MACHINE]
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    fn patience(&self) -> Patience {
        Patience { boot_s: self.boot_timeout, row_s: self.row_timeout }
    }

    fn contenders(&self) -> Vec<Contender> {
        let mut all = vec![Contender::Native];
        if !self.no_qemu {
            all.push(Contender::Qemu);
        }
        all.extend(self.engine.iter().cloned().map(Contender::Strata));
        all
    }
}

/// Runs the benchmarks, prints the tables and keeps every figure.
pub fn run(top: &Path, mut options: Options) -> Outcome {
    if options.text <= 0.0 {
        options.text = options.scale * 20.0;
    }
    let guest = prepare::guest(top, &options.store)?;
    let contenders = options.contenders();
    let mut rounds: Vec<Vec<Run>> = Vec::new();
    for round in 0..options.rounds.max(1) {
        let mut runs = Vec::new();
        // Each goes first in turn, so that whoever warms the machine up is not always the same.
        for index in 0..contenders.len() {
            let contender = &contenders[(index + round) % contenders.len()];
            eprintln!("bench: round {} of {}: {}", round + 1, options.rounds, contender.name());
            let rows = measure(contender, &guest, &options)?;
            runs.push(Run { contender: contender.clone(), rows });
        }
        rounds.push(runs);
    }
    let wrong = figures::check_sums(&mut rounds);
    let mut speeds = Vec::new();
    for engine in &options.engine {
        speeds.push((engine.clone(), instructions_per_second(engine, &guest, &options)));
    }
    let folder = options.out.clone().map_or_else(|| report::folder(top), Ok)?;
    report::write(&folder, &rounds, &speeds, &options, &guest.kernel_id)?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

fn measure(contender: &Contender, guest: &Guest, options: &Options) -> Outcome<Vec<Row>> {
    if *contender == Contender::Native {
        return native::run(guest, options);
    }
    let command = |errand: Errand<'_>| match contender {
        Contender::Strata(engine) => contenders::strata(engine, guest, options, errand),
        _ => contenders::qemu(guest, options, errand),
    };
    let patience = options.patience();
    let mut rows = session::run(&classes::programs(), patience, |rows| {
        command(Errand { rows, vcpus: 1, count: false })
    })?;
    let two = session::run(&PARALLEL, patience, |rows| command(Errand { rows, vcpus: 2, count: false }))?;
    rows.extend(two.into_iter().filter(|row| PARALLEL.contains(&row.name.as_str())));
    let boot = match contender {
        Contender::Strata(engine) => session::first_line(contenders::strata_run(engine, options), patience)?,
        _ => rows.iter().find(|row| row.name == FIRST_LINE).map_or(Value::Failed, |row| row.value),
    };
    rows.push(Row::new(BOOT, boot));
    Ok(rows)
}

/// Guest instructions a second in the integer loop: what the loop adds to an empty boot, by the program's own
/// count.
fn instructions_per_second(engine: &str, guest: &Guest, options: &Options) -> Outcome<f64> {
    eprintln!("bench: instructions of the integer loop: Strata {engine}");
    let counted = |rows: &[&str]| {
        let command = contenders::strata(engine, guest, options, Errand { rows, vcpus: 1, count: true });
        session::counted(command, options.patience())
    };
    let (empty, _) = counted(&[])?;
    let (with, rows) = counted(&["intloop"])?;
    match rows.first().map(|row| row.value) {
        Some(Value::Is(seconds)) => Ok(with.saturating_sub(empty) as f64 / seconds),
        _ => Err("the loop did not end".into()),
    }
}
