//! `cargo xtask bench`: the same guest on Strata and on QEMU TCG, and the same programs natively, interleaved.
//!
//! A round is one run of each. Ratios are taken within a round and their medians reported, because absolute times
//! on a shared machine mean little. Reading order: [`prepare`], [`contenders`], [`report`].

mod contenders;
mod prepare;
mod report;

use std::path::{Path, PathBuf};

use crate::Outcome;
use contenders::{Contender, Run};

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// How often each contender runs
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Amount of work, the same for every contender; 1 is what takes a native machine about ten seconds
    #[arg(long, default_value_t = 0.1)]
    scale: f64,
    /// Megabytes of text for gzip, sha256sum and awk
    #[arg(long, default_value_t = 4.0)]
    text: f64,
    /// Store with the kernel to boot
    #[arg(long)]
    store: PathBuf,
    /// The program to measure
    #[arg(long)]
    strata: PathBuf,
    /// Engine of the program
    #[arg(long, default_value = "auto")]
    engine: String,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    /// Folder for the results [default: bench/runs/DATE-MACHINE]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the benchmarks, prints the table and keeps every figure.
pub fn run(top: &Path, options: &Options) -> Outcome {
    let guest = prepare::guest(top, &options.store)?;
    let mut contenders = vec![Contender::Native, Contender::Strata];
    if !options.no_qemu {
        contenders.push(Contender::Qemu);
    }
    let mut rounds: Vec<Vec<Run>> = Vec::new();
    for round in 0..options.rounds.max(1) {
        let mut runs = Vec::new();
        // Each goes first in turn, so that whoever warms the machine up is not always the same.
        let order = (0..contenders.len()).map(|i| contenders[(i + round) % contenders.len()]);
        for contender in order {
            eprintln!("bench: round {} of {}: {contender:?}", round + 1, options.rounds);
            runs.push(contenders::run(contender, &guest, options, "all")?);
        }
        rounds.push(runs);
    }
    check_sums(&rounds)?;
    let speed = contenders::instructions_per_second(&guest, options)?;
    let folder = options.out.clone().map_or_else(|| report::folder(top), Ok)?;
    report::write(&folder, &rounds, speed, options)
}

/// A figure counts only if the work was the same: every contender must come to the same result.
fn check_sums(rounds: &[Vec<Run>]) -> Outcome {
    let first = &rounds[0][0];
    for run in rounds.iter().flatten() {
        for row in &run.rows {
            let expected = first.rows.iter().find(|other| other.name == row.name);
            if expected.is_none_or(|expected| expected.checksum != row.checksum) {
                return Err(format!(
                    "{:?}: {} computed {}, not the same as the others",
                    run.contender, row.name, row.checksum
                )
                .into());
            }
        }
        if run.rows.len() != first.rows.len() {
            return Err(format!(
                "{:?}: {} of {} workloads answered",
                run.contender,
                run.rows.len(),
                first.rows.len()
            )
            .into());
        }
    }
    Ok(())
}
