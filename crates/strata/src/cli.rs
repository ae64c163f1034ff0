//! The whole command line, declared once: parser, help, manual pages and completions come from here and from
//! the `Options` of each file under `commands/`.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::commands::{
    boot, check, completions, debug, fork, image, kernel, login, man, oci, registry, restore, run, serve,
    snapshot, start, templates, usage, workloads,
};
use crate::exit;

/// Run any workload at the layer of isolation you choose
///
/// `strata run debian -- uname -a` boots a microVM from the image `debian`, runs the command in it and returns
/// its exit code. No KVM, daemon or network is needed.
#[derive(Parser)]
#[command(name = "strata", version, after_long_help = exit::TABLE, propagate_version = false, max_term_width = 100)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Folder that holds images and kernels [default: /var/lib/strata for root, else ~/.local/share/strata]
    #[arg(long, global = true, env = "STRATA_ROOT", value_name = "DIR", hide_env_values = true)]
    pub root: Option<PathBuf>,
    /// Say what is done on standard error; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The verbs.
#[derive(Subcommand)]
pub enum Command {
    // Text here would hide the longer one that stands with the options.
    Run(Box<run::Options>),
    Create(Box<start::CreateOptions>),
    Start(start::StartOptions),
    Restart(start::RestartOptions),
    Exec(run::exec::Options),
    Ps(workloads::PsOptions),
    Logs(workloads::LogsOptions),
    Attach(workloads::AttachOptions),
    Stop(workloads::StopOptions),
    Kill(workloads::KillOptions),
    Wait(workloads::WaitOptions),
    Pause(workloads::PauseOptions),
    Unpause(workloads::PauseOptions),
    Rm(workloads::RmOptions),
    Rename(workloads::RenameOptions),
    Inspect(workloads::InspectOptions),
    Stats(usage::StatsOptions),
    Top(usage::TopOptions),
    Snapshot(snapshot::Options),
    Fork(fork::Options),
    Restore(restore::Options),
    Boot(boot::Options),
    Check(check::Options),
    /// Look into a machine: for developers of engines and kernels
    #[command(subcommand)]
    Debug(debug::Command),
    /// Kernels that microVMs boot
    #[command(subcommand)]
    Kernel(kernel::Command),
    /// Images that workloads are made from
    #[command(subcommand)]
    Image(image::Command),
    /// Saved machines that `strata run` starts from
    #[command(subcommand)]
    Templates(templates::Command),
    Pull(registry::PullOptions),
    Push(registry::PushOptions),
    Login(login::LoginOptions),
    Logout(login::LogoutOptions),
    Oci(oci::Options),
    Serve(serve::Options),
    /// Watch a workload in the background
    #[command(hide = true)]
    Monitor(run::InnerOptions),
    /// Run a workload in the background
    #[command(hide = true)]
    Worker(run::InnerOptions),
    /// Serve folders to a machine
    #[command(hide = true)]
    ServeFolders(run::volumes::ServeOptions),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::Options),
    /// Write a completion script for a shell
    #[command(hide = true)]
    Completions(completions::Options),
}
