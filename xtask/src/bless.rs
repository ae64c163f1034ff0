//! `cargo xtask bless`: makes what the code does now what is agreed on.
//!
//! Golden files are text; `git diff` shows what a change does to them, and is where it is reviewed.

use std::path::Path;
use std::process::Command;

use crate::Outcome;

/// Folder of the golden files, below the workspace's.
const FOLDER: &str = "crates/engine_soft/tests/golden";

/// Writes the golden files anew, and says which differ from those committed.
pub fn run(top: &Path) -> Outcome {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--release", "--quiet", "--package", "engine_soft", "--test", "golden"])
        .env("STRATA_BLESS", "1")
        .current_dir(top)
        .status()
        .map_err(|error| format!("run cargo: {error}"))?;
    if !status.success() {
        return Err("some golden files cannot be made: see above".into());
    }
    let status = Command::new("git")
        .args(["--no-pager", "diff", "--stat", "--", FOLDER])
        .current_dir(top)
        .status()
        .map_err(|error| format!("run git: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("git diff: {status}").into()) }
}
