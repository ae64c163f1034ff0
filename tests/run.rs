//! `strata run`: what the command gets, and what its end means.

use rustix::process::Signal;

use crate::support::{finish, run, run_itself, start};

#[test]
fn the_command_gets_what_was_asked_for_and_its_exit_code_comes_back() {
    let script =
        "echo out; echo err >&2; echo $A-$HOME; pwd; id -u; id -g; nproc; uname -s; hostname; cat; exit 42";
    let arguments = ["-e", "A=b c", "-w", "/var/tmp", "-u", "1:3", "debian", "--", "sh", "-c", script];
    let Some(command) = run(&arguments) else { return };
    let ended = finish(command);
    assert_eq!(ended.code(), 42, "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines, ["out", "b c-/usr/sbin", "/var/tmp", "1", "3", "1", "Linux", "debian"], "{ended:?}");
    assert_eq!(ended.stderr, "err\n", "{ended:?}");
}

#[test]
fn a_command_that_a_signal_ends_is_128_and_the_signal() {
    let Some(command) = run(&["debian", "sh", "-c", "kill -TERM $$"]) else { return };
    assert_eq!(finish(command).code(), 128 + 15);
}

#[test]
fn a_missing_command_is_127_and_one_that_cannot_be_executed_126() {
    let Some(command) = run_itself(&["debian", "--", "no-such-command", "x"]) else { return };
    finish(command).expect_failure(127, &["no-such-command"]);
    let Some(command) = run_itself(&["debian", "--", "/etc/passwd"]) else { return };
    finish(command).expect_failure(126, &["/etc/passwd", "ermission denied"]);
}

#[test]
fn a_signal_reaches_the_command() {
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let Some(command) = run(&["debian", "--", "sh", "-c", script]) else { return };
    let mut running = start(command);
    running.wait_for("ready");
    running.signal(Signal::INT);
    let ended = running.finish();
    assert_eq!((ended.code(), ended.stdout.as_str()), (7, "ready\ncaught\n"), "{ended:?}");
}

#[test]
fn three_interrupts_end_a_command_that_ignores_them() {
    let Some(command) = run_itself(&["debian", "--", "sh", "-c", "trap '' INT; echo ready; sleep 10000"])
    else {
        return;
    };
    let mut running = start(command);
    running.wait_for("ready");
    for _ in 0..3 {
        running.signal(Signal::INT);
        // Signals of one number that come together are one.
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    running.finish().expect_failure(128 + 2, &["ended by a signal"]);
}

#[test]
fn the_time_ends_a_command_that_runs_too_long() {
    let Some(command) = run(&["--timeout", "2s", "debian", "--", "sleep", "10000"]) else { return };
    // The name is another's if the command was held back to be saved.
    finish(command).expect_failure(124, &["run \"s", "killed after 2 s"]);
}

#[test]
fn four_processors_work_at_once() {
    let script =
        "nproc; for i in 1 2 3 4; do (sha256sum /usr/bin/* | sha256sum) & done | sort -u | wc -l; wait";
    let Some(command) = run(&["--cpus", "4", "debian", "--", "sh", "-c", script]) else { return };
    let ended = finish(command);
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "4\n1\n"), "{ended:?}");
}

#[test]
fn each_engine_runs_the_same_command() {
    for engine in ["interp", "jit"] {
        let script = "nproc; seq 1000 | sort -rn | head -2; exit 5";
        let Some(command) = run(&["--engine", engine, "--cpus", "2", "debian", "--", "sh", "-c", script])
        else {
            return;
        };
        let ended = finish(command);
        assert_eq!((ended.code(), ended.stdout.as_str()), (5, "2\n1000\n999\n"), "{engine}: {ended:?}");
    }
}

/// Nothing speculates here, so whatever a kernel does about it is time lost.
#[test]
fn no_kernel_pays_for_what_the_processor_does_not_do() {
    for model in ["x86-64-v2", "host-like"] {
        let script = "grep . /sys/devices/system/cpu/vulnerabilities/*";
        let Some(command) = run(&["--cpu", model, "debian", "--", "sh", "-c", script]) else { return };
        let ended = finish(command);
        assert!(ended.stdout.contains("meltdown:Not affected"), "{ended:?}");
        assert!(ended.stdout.contains("Enhanced / Automatic IBRS"), "{ended:?}");
        for costly in ["Vulnerable", "etpoline", "SW loop", "PTI", "Clear"] {
            assert!(!ended.stdout.contains(costly), "{costly}: {ended:?}");
        }
    }
}

#[test]
fn two_machines_of_one_image_do_not_see_each_others_files() {
    let script = "ls /marked 2>/dev/null; touch /marked && echo written; echo ready; sleep 1";
    let Some(first) = run(&["debian", "--", "sh", "-c", script]) else { return };
    let Some(second) = run(&["debian", "--", "sh", "-c", script]) else { return };
    let mut first = start(first);
    first.wait_for("ready");
    let second = finish(second);
    let first = first.finish();
    for ended in [first, second] {
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, "written\nready\n"), "{ended:?}");
    }
}

#[test]
fn a_machine_that_is_killed_leaves_nothing_behind() {
    let Some(command) = run_itself(&["debian", "--", "sh", "-c", "echo ready; sleep 10000"]) else { return };
    let mut running = start(command);
    running.wait_for("ready");
    let pid = running.child.id();
    running.signal(Signal::KILL);
    assert!(running.finish().status.code().is_none());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        assert!(!status.contains(&format!("\nPPid:\t{pid}\n")), "a child is left: {status}");
    }
    let Some(command) = run(&["debian", "--", "true"]) else { return };
    assert_eq!(finish(command).code(), 0);
    let tmp = crate::support::assets().unwrap().join("store/tmp");
    assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0);
}

#[test]
fn verbose_says_which_engine_ran_and_how_much() {
    let Some(command) = run(&["-v", "debian", "--", "true"]) else { return };
    let ended = finish(command);
    assert_eq!(ended.code(), 0);
    assert!(ended.stderr.contains("engine ") && ended.stderr.contains("guest instructions"), "{ended:?}");
}

#[test]
fn every_kernel_of_the_store_boots() {
    let Some(mut list) = crate::support::with_assets() else { return };
    list.args(["kernel", "ls", "--quiet"]);
    let kernels = finish(list).stdout;
    assert!(!kernels.is_empty());
    for id in kernels.lines() {
        let Some(command) = run(&["--kernel", id, "debian", "--", "uname", "-r"]) else { return };
        let ended = finish(command);
        assert_eq!((ended.code(), ended.stdout.trim()), (0, id), "{ended:?}");
    }
}
