//! The program that is measured, on a store.

use std::path::PathBuf;
use std::process::Command;

/// The program and its store.
#[derive(Clone, clap::Args)]
pub struct Program {
    /// Store with the kernel and the image; workloads are added and removed
    #[arg(long)]
    pub store: PathBuf,
    /// The program to measure
    #[arg(long)]
    pub strata: PathBuf,
}

impl Program {
    /// What runs it with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.strata);
        command.arg("--root").arg(&self.store).args(arguments);
        command
    }
}
