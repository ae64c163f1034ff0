//! `strata restore -d`: a saved workload goes on in the background.

use std::fs::File;
use std::path::Path;

use machine::snapshot::folder::{RAM, STATE};
use workload::monitor::Saved;
use workload::{Wanted, Workloads};

use crate::cli::Global;
use crate::commands::run::detach;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output;

/// The files of the snapshot in `folder`.
///
/// # Errors
/// They are not there.
pub fn files(folder: &Path) -> Outcome<(File, File)> {
    let open = |name: &str| {
        let path = folder.join(name);
        File::open(&path).while_trying(|| format!("restore {}: open {name}", folder.display()))
    };
    Ok((open(STATE)?, open(RAM)?))
}

/// As [`files`], for a worker.
///
/// # Errors
/// As [`files`].
pub fn saved(folder: &Path) -> Outcome<Saved> {
    let (state, ram) = files(folder)?;
    Ok(Saved { state: state.into(), ram: ram.into(), base: None })
}

/// Makes the workload and starts it; its id goes to standard output.
///
/// # Errors
/// The name is taken, or the machine does not go on: nothing is left then.
pub fn run(global: &Global, root: &Path, folder: &Path, name: Option<String>, wanted: Wanted) -> Outcome {
    let act = || format!("restore {}", folder.display());
    let (state, ram) = files(folder)?;
    let workloads = Workloads::open(root).while_trying(act)?;
    let made = workloads.create(name, wanted).while_trying(act)?;
    let started = detach::start(global, &made, Some(&[&state, &ram]));
    let reason = match started {
        Ok(Ok(())) => {
            output::write(&format!("{}\n", made.description().id))?;
            return Ok(Exit::Success);
        }
        Ok(Err(reason)) => reason,
        Err(failure) => failure.to_string(),
    };
    // Nothing ever ran in it.
    let _ = workloads.remove(&made, workload::Running::Stays);
    Err(Failure::new(format!("{}: {reason}", act())))
}
