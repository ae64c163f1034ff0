//! The project's own tools: `cargo xtask tidy`, `bless`, `bench`, `containers`, `copies`, `docker`, `folders`, `nets`, `pulls` and `soak`.
//!
//! Reading order: [`tidy`], the rules of the house that no compiler checks; [`bless`], golden files; [`mod@bench`],
//! macro benchmarks beside other virtual machines on the same host; [`mod@containers`], beside other runtimes; [`mod@copies`], copies of a
//! machine; [`mod@folders`] and [`mod@nets`], what machines move; [`mod@docker`], docker's client; [`mod@pulls`], images from a registry; [`mod@soak`], an hour of mixed load.
//!
//! Deliberately absent: anything a user of Strata needs.
#![forbid(unsafe_code)]

mod bench;
mod bless;
mod canned;
mod containers;
mod copies;
mod docker;
mod folders;
mod lines;
mod nets;
mod peers;
mod podman;
mod program;
mod pulls;
mod soak;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own tools.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check what the architecture and the style ask for
    Tidy,
    /// Write the golden files anew, and show how they differ from those committed
    Bless,
    /// Measure Strata beside the host and QEMU, interleaved
    Bench(bench::Options),
    /// Measure containers beside other runtimes, and many of them
    Containers(containers::Options),
    /// Measure copies of a running machine: time, and memory that nobody shares
    Copies(copies::Options),
    /// Measure what docker's client waits for, against `strata serve` and podman
    Docker(docker::Options),
    /// Measure folders and disks of machines, beside QEMU
    Folders(folders::Options),
    /// Measure networks of machines and containers, beside QEMU and podman
    Nets(nets::Options),
    /// Measure pulls from a registry on this host, beside skopeo
    Pulls(pulls::Options),
    /// Run an hour of mixed load in a guest, and compare and watch it
    Soak(soak::Options),
}

fn main() -> ExitCode {
    let top = workspace_top();
    let outcome = match Cli::parse().command {
        Command::Tidy => tidy::run(&top),
        Command::Bless => bless::run(&top),
        Command::Bench(options) => bench::run(&top, options),
        Command::Containers(options) => containers::run(&options),
        Command::Copies(options) => copies::run(&options),
        Command::Docker(options) => docker::run(&top, &options),
        Command::Folders(options) => folders::run(&top, &options),
        Command::Nets(options) => nets::run(&top, &options),
        Command::Pulls(options) => pulls::run(&options),
        Command::Soak(options) => soak::run(&top, options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// What the tasks return; nobody matches on it.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The folder of the workspace's Cargo.toml.
fn workspace_top() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or_else(|| own.clone(), PathBuf::from)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
