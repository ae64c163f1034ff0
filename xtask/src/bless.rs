//! `cargo xtask bless`: makes what the code does now what is agreed on.
//!
//! Golden files are text; `git diff` shows what a change does to them, and is where it is reviewed.

use std::path::Path;
use std::process::Command;

use crate::Outcome;

/// Tests with golden files: their package, the program, the part of their names, and where the files are, below the workspace's folder.
const GOLDEN: [(&str, &str, &str, &str); 2] = [
    ("engine_soft", "golden", "", "crates/engine_soft/tests/golden"),
    ("strata", "workload", "docker_recorded::", "tests/recorded"),
];

/// Writes the golden files anew, and says which differ from those committed.
pub fn run(top: &Path) -> Outcome {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for (package, test, names, _) in GOLDEN {
        let status = Command::new(&cargo)
            .args(["test", "--release", "--quiet", "--package", package, "--test", test, names])
            .env("STRATA_BLESS", "1")
            .env("STRATA_TEST_ASSETS", top.join("target/test-assets"))
            .current_dir(top)
            .status()
            .map_err(|error| format!("run cargo: {error}"))?;
        if !status.success() {
            return Err(format!("some golden files of {package} cannot be made: see above").into());
        }
    }
    let status = Command::new("git")
        .args(["--no-pager", "diff", "--stat", "--"])
        .args(GOLDEN.map(|(.., folder)| folder))
        .current_dir(top)
        .status()
        .map_err(|error| format!("run git: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("git diff: {status}").into()) }
}
