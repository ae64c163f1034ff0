//! `cargo xtask bench`.
use std::path::Path;

use crate::Outcome;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// How often each measurement is made
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

/// Runs the benchmarks.
pub fn run(_top: &Path, _options: &Options) -> Outcome {
    Err("later".into())
}
