//! `strata snapshot`: a running workload to a folder.

use std::path::PathBuf;

use machine::snapshot::Folder;

use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::{running, store};

/// Save a running workload to a folder
///
/// Its machine stands still meanwhile, then goes on. The folder appears whole or not at all; a snapshot that was there is
/// replaced.
#[derive(clap::Args)]
pub struct Options {
    /// End the workload when it is saved
    #[arg(long)]
    stop: bool,
    /// Name of the workload (strata run --name)
    #[arg(value_parser = running::parse_name)]
    name: String,
    /// Folder to make
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Saves it.
///
/// # Errors
/// It does not run, or there is no space.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let store = store::open(global)?;
    let explain = |error| Failure::because(format!("snapshot {:?}", options.name), error);
    let partial = Folder::create(&options.folder).map_err(explain)?;
    let paused = running::snapshot(store.root(), &options.name, &partial.state, &partial.ram, options.stop)?;
    partial.commit(&options.folder).map_err(explain)?;
    tracing::info!("saved; the machine stood still for {paused} ms");
    Ok(Exit::Success)
}
