//! `strata create`, `start` and `restart`: a workload in the background, made now and started later, or again.

use std::time::Duration;

use clap::Args;
use workload::Folder;

use super::run::{self, detach};
use super::workloads::{self, find, state};
use crate::cli::Global;
use crate::exit::{self, Exit};
use crate::failure::{Failure, Outcome, each};
use crate::output;

/// Make a workload without starting it
///
/// It has the options of `strata run`. Its id is written; strata start starts it.
#[derive(Args)]
pub struct CreateOptions {
    #[command(flatten)]
    run: run::Options,
}

/// Start workloads that were made, or have ended
#[derive(Args)]
#[command(after_long_help = exit::OF_RUN)]
pub struct StartOptions {
    /// Join the terminal to it until it ends; its exit code is ours
    #[arg(short, long)]
    attach: bool,
    /// Names or ids of workloads
    #[arg(required = true)]
    workloads: Vec<String>,
}

/// Ask workloads to end, and start them again
#[derive(Args)]
pub struct RestartOptions {
    /// Seconds until they are ended without asking
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    time: u64,
    /// Names or ids of workloads
    #[arg(required = true)]
    workloads: Vec<String>,
}

/// `strata create`
///
/// # Errors
/// Image, kernel or command are not as they should be.
pub fn create(global: &Global, options: &CreateOptions) -> Outcome {
    options.run.check_flags()?;
    let folder = detach::create(global, &options.run)?;
    output::write(&format!("{}\n", folder.description().id))?;
    Ok(Exit::Success)
}

/// `strata start`
///
/// # Errors
/// There is no such workload, it runs, or its command cannot be run.
pub fn start(global: &Global, options: &StartOptions) -> Outcome {
    if options.attach {
        let [name] = options.workloads.as_slice() else {
            return Err(Failure::new("start --attach: one workload at a time").exit(Exit::Usage));
        };
        return start_attached(global, &find(global, name)?);
    }
    each(&options.workloads, |name| {
        begin(global, &find(global, name)?)?;
        output::write(&format!("{name}\n"))
    })
}

fn begin(global: &Global, folder: &Folder) -> Outcome<()> {
    check_at_rest(folder)?;
    detach::start(global, folder, None)?.map_err(|reason| refused(folder, &reason))
}

fn refused(folder: &Folder, reason: &str) -> Failure {
    Failure::new(format!("start {}: {reason}", folder.description().name))
}

fn check_at_rest(folder: &Folder) -> Outcome<()> {
    let status = state(folder)?.status;
    if status.is_active() { Err(refused(folder, &format!("it is {status}"))) } else { Ok(()) }
}

/// All that it writes is seen: it begins when its output has somewhere to go.
fn start_attached(global: &Global, folder: &Folder) -> Outcome {
    check_at_rest(folder)?;
    if let Err(reason) = detach::start_monitor(global, folder, None)? {
        return Err(refused(folder, &reason));
    }
    workloads::attach_to(folder, true)
}

/// `strata restart`
///
/// # Errors
/// There is no such workload, or its command cannot be run.
pub fn restart(global: &Global, options: &RestartOptions) -> Outcome {
    each(&options.workloads, |name| {
        let folder = find(global, name)?;
        workloads::end(&folder, Duration::from_secs(options.time))?;
        begin(global, &folder)?;
        folder.tell("restart", &[]);
        output::write(&format!("{name}\n"))
    })
}
