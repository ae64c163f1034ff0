//! `strata snapshot` and `strata restore`: a command goes on from where it was saved.

use std::fs;
use std::path::Path;

use crate::support::{Ended, run, start, with_assets};

fn snapshot(name: &str, folder: &Path, more: &[&str]) -> Ended {
    let mut command = with_assets().expect("there were assets a moment ago");
    command.arg("snapshot").args(more).arg(name).arg(folder);
    start(command).finish()
}

fn restore(folder: &Path, engine: &str) -> Ended {
    let mut command = with_assets().expect("there were assets a moment ago");
    command.arg("restore").args(["--engine", engine]).arg(folder);
    start(command).finish()
}

#[test]
fn a_command_goes_on_from_its_snapshot_under_either_engine() {
    let script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 7";
    let name = format!("snapshot-{}", std::process::id());
    let Some(command) = run(&["--engine", "jit", "--name", &name, "debian", "--", "sh", "-c", script]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("snap");
    let mut original = start(command);
    original.wait_for("line 3\n");
    let saved = snapshot(&name, &at, &["--stop"]);
    assert_eq!(saved.code(), 0, "{saved:?}");
    let original = original.finish();
    assert_eq!(original.code(), 0, "{original:?}");
    snapshot(&name, &folder.path().join("more"), &[]).expect_failure(125, &[&name, "no workload"]);
    assert!(!folder.path().join("more").exists());

    let whole: String = (0..40).map(|i| format!("line {i}\n")).collect();
    for engine in ["jit", "interp"] {
        let copy = restore(&at, engine);
        assert_eq!(copy.code(), 7, "{copy:?}");
        assert_eq!(format!("{}{}", original.stdout, copy.stdout), whole, "{engine}");
    }
    let mut state = fs::read(at.join("state")).unwrap();
    let middle = state.len() / 2;
    state[middle] ^= 1;
    fs::write(at.join("state"), state).unwrap();
    restore(&at, "jit").expect_failure(125, &["restore", "state"]);
}
