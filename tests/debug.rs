//! `strata debug`: what a developer sees of a machine.

use crate::support::{Ended, run, start, with_assets};

fn jit(arguments: &[&str]) -> Ended {
    let mut command = with_assets().expect("there were assets a moment ago");
    command.args(["debug", "jit"]).args(arguments);
    start(command).finish()
}

/// The guest's instructions in a listing, without their addresses.
fn instructions(listing: &str) -> Vec<&str> {
    let is_guest = |line: &&str| {
        line.len() > 7 && line.starts_with("  ") && !line.starts_with("   ") && !line.starts_with("  (")
    };
    listing.lines().filter(is_guest).map(|line| line[7..].trim()).collect()
}

#[test]
fn the_code_of_a_running_machine_is_shown_by_place_and_by_address_and_it_runs_on() {
    let name = format!("debug-{}", std::process::id());
    let script = "trap 'echo on; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let Some(command) = run(&["--engine", "jit", "--name", &name, "debian", "--", "sh", "-c", script]) else {
        return;
    };
    let mut machine = start(command);
    machine.wait_for("up\n");
    let here = jit(&[&name]);
    assert_eq!(here.code(), 0, "{here:?}");
    let title = here.stdout.lines().next().unwrap_or_default();
    let words: Vec<&str> = title.split([' ', ':']).collect();
    let (linear, gpa) = (words[1], words[3]);
    assert!(title.starts_with("block 0x") && !instructions(&here.stdout).is_empty(), "{here:?}");
    let physical = jit(&[&name, gpa]);
    let by_linear = jit(&["--linear", "--show", "common", &name, linear]);
    for other in [&physical, &by_linear] {
        assert_eq!(instructions(&other.stdout), instructions(&here.stdout), "{other:?}");
    }
    let two = jit(&["--blocks", "2", &name, gpa]);
    assert_eq!(two.stdout.matches("block 0x").count(), 2, "{two:?}");
    jit(&["--linear", &name, "0xdead000"]).expect_failure(125, &["0xdead000", "not mapped"]);
    jit(&["--cpu", "7", &name]).expect_failure(125, &[&name, "no vCPU 7"]);
    jit(&["no-such-machine"]).expect_failure(125, &["no-such-machine"]);
    machine.signal(rustix::process::Signal::TERM);
    let ended = machine.finish();
    assert_eq!((ended.code(), ended.stdout.as_str()), (3, "up\non\n"), "{ended:?}");
}
