//! `strata snapshot`: a running workload to a folder.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use machine::snapshot::{self, Frozen};
use serde_json::json;
use workload::Folder;
use workload::control::{self, Answer, Client, Request};

use super::workloads::find;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output;

/// Save a running workload to a folder
///
/// Its machine stands still for a moment at the end, then goes on: -v and --json say how long. The folder appears whole or not at all; a snapshot that was there is
/// replaced.
#[derive(clap::Args)]
pub struct Options {
    /// End the workload when it is saved
    #[arg(long)]
    stop: bool,
    /// Write as JSON how long it stood still
    #[arg(long)]
    json: bool,
    /// Name or id of the workload
    #[arg(value_name = "NAME")]
    workload: String,
    /// Folder to make
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Saves it.
///
/// # Errors
/// It does not run, or there is no space.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let folder = find(global, &options.workload)?;
    let explain = |error| Failure::because(format!("snapshot {:?}", options.workload), error);
    let partial = snapshot::Folder::create(&options.folder).map_err(explain)?;
    let paused_ms = take(&folder, &partial.state, &partial.ram, options.stop)?;
    partial.commit(&options.folder).map_err(explain)?;
    tracing::info!("saved; the machine stood still for {paused_ms} ms");
    if options.json {
        output::json(&json!({ "paused_ms": paused_ms }))?;
    }
    Ok(Exit::Success)
}

/// Has a running workload saved to the empty files `state` and `ram`. How long it stood still, in milliseconds.
///
/// # Errors
/// It does not run, or cannot be saved now.
pub fn take(folder: &Folder, state: &File, ram: &File, stop: bool) -> Outcome<u64> {
    ask(folder, stop, &[state.as_fd(), ram.as_fd()])
}

/// Has a running workload saved to files in memory, which nothing can change then. How long it stood still, in milliseconds.
///
/// # Errors
/// As [`take`].
pub fn freeze(folder: &Folder) -> Outcome<(Frozen, u64)> {
    let act = || format!("save {:?}", folder.description().name);
    let mut frozen = Frozen::create().while_trying(act)?;
    let (ours, theirs) = UnixStream::pair().while_trying(act)?;
    let paused_ms = ask(folder, false, &[frozen.state.as_fd(), frozen.ram.as_fd(), theirs.as_fd()])?;
    drop(theirs);
    // What it had to send is there before the answer, and the end behind it.
    let (_, mut receiver) = control::halves(ours, "the machine").while_trying(act)?;
    let message = receiver.receive::<Answer>().while_trying(act)?;
    frozen.base = message.and_then(|message| message.fds.into_iter().next()).map(File::from);
    frozen.seal().while_trying(act)?;
    Ok((frozen, paused_ms))
}

fn ask(folder: &Folder, stop: bool, files: &[BorrowedFd<'_>]) -> Outcome<u64> {
    let act = || format!("save {:?}", folder.description().name);
    let asked = Client::connect(folder).and_then(|mut client| client.ask(&Request::Snapshot { stop }, files));
    match asked.map_err(|error| Failure::because(act(), error))? {
        Answer::Saved { paused_ms } => Ok(paused_ms),
        other => Err(Failure::new(format!("{}: {other:?} is no answer to that", act()))),
    }
}
