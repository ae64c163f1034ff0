//! Workloads in the background: what they write and how they end is never lost, whatever dies.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Ended, PATIENCE, assets, finish, strata};

/// A store of its own for workloads, with the kernel and the image of the assets.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Option<Place> {
        let from = assets()?.join("store");
        let dir = tempfile::tempdir().unwrap();
        let copied = Command::new("cp").arg("-a").arg(from).arg(dir.path().join("store")).status();
        assert!(copied.unwrap().success());
        Some(Place { dir })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = strata();
        command.env("STRATA_ROOT", self.dir.path().join("store")).args(arguments);
        command
    }

    fn try_to(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments))
    }

    fn strata(&self, arguments: &[&str]) -> String {
        let ended = self.try_to(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    fn start(&self, flags: &[&str], command: &str) -> String {
        let all = [&["run", "-d"], flags, &["debian", "--", "sh", "-c", command]].concat();
        self.strata(&all).trim().to_owned()
    }

    fn state(&self, name: &str) -> Value {
        serde_json::from_str::<Value>(&self.strata(&["inspect", name])).unwrap()["state"].clone()
    }

    fn wait_for(&self, what: &str, mut is: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "{what} never came");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Place {
    /// Nothing is left running when a test fails.
    fn drop(&mut self) {
        let names = finish(self.command(&["ps", "-aq"])).stdout;
        for name in names.lines() {
            finish(self.command(&["rm", "-f", name]));
        }
    }
}

fn exists(pid: &Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // One that nobody has waited for yet is dead all the same.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn a_workload_outlives_who_started_it_and_tells_how_it_ended() {
    let Some(place) = Place::new() else { return };
    let id = place.start(&["--name", "one"], "echo out; echo err >&2; read x < /dev/null; sleep 1; exit 7");
    assert_eq!(id.len(), 64);
    assert!(place.strata(&["ps"]).contains("one"));
    let again = place.try_to(&["run", "-d", "--name", "one", "debian", "true"]);
    again.expect_failure(125, &["another workload has it"]);
    assert_eq!(place.strata(&["wait", &id[..12]]), "7\n");
    assert_eq!(place.strata(&["wait", "one"]), "7\n");
    let logs = place.try_to(&["logs", "one"]);
    assert_eq!(logs.stdout, "out\n");
    assert!(logs.stderr.ends_with("err\n"), "{logs:?}");
    assert!(!place.strata(&["ps"]).contains("one") && place.strata(&["ps", "-a"]).contains("exited (7)"));
    place.strata(&["rm", "one"]);
    place.try_to(&["inspect", "one"]).expect_failure(125, &["no workload \"one\""]);
    assert!(is_empty(&place.dir.path().join("store/workloads")));
}

/// But for the lock.
fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().all(|entry| entry.unwrap().file_name() == "lock")
}

#[test]
fn asked_to_end_killed_paused_and_followed() {
    let Some(place) = Place::new() else { return };
    place.start(&["--name", "a"], "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done");
    place.wait_for("the first line", || place.strata(&["logs", "a"]) == "up\n");
    place.strata(&["pause", "a"]);
    assert_eq!(place.state("a")["status"], "paused");
    place.strata(&["unpause", "a"]);
    place.try_to(&["rm", "a"]).expect_failure(125, &["a is running"]);
    place.strata(&["stop", "-t", "300", "a"]);
    let state = place.state("a");
    assert_eq!((state["status"].as_str(), state["exit_code"].as_u64()), (Some("exited"), Some(3)));
    assert_eq!(place.strata(&["logs", "-f", "a"]), "up\nasked\n");
    assert_eq!(place.strata(&["logs", "-n", "1", "a"]), "asked\n");
    // One that does not listen, and is removed by itself.
    place.start(&["--name", "b", "--rm"], "trap '' TERM; while :; do sleep 0.1; done");
    place.strata(&["kill", "b"]);
    place.wait_for("the removal", || !place.strata(&["ps", "-a"]).contains(" b "));
    place.try_to(&["kill", "a"]).expect_failure(125, &["a is not running"]);
}

#[test]
fn what_is_typed_reaches_the_command() {
    let Some(place) = Place::new() else { return };
    place.start(&["-i", "--name", "cat"], "read line; echo \"got $line\"; exit 4");
    let file = place.dir.path().join("input");
    std::fs::write(&file, "hello\n").unwrap();
    let mut attach = place.command(&["attach", "cat"]);
    attach.stdin(std::fs::File::open(&file).unwrap());
    let ended = finish(attach);
    assert_eq!((ended.code(), ended.stdout.as_str()), (4, "got hello\n"), "{ended:?}");
    assert_eq!(place.strata(&["logs", "cat"]), "got hello\n");
}

#[test]
fn a_killed_monitor_leaves_the_truth() {
    let Some(place) = Place::new() else { return };
    place.start(&["--name", "lost"], "echo before; sleep 1000");
    place.wait_for("the first line", || place.strata(&["logs", "lost"]) == "before\n");
    let state = place.state("lost");
    let monitor = i32::try_from(state["monitor_pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(monitor).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    place.wait_for("the end of the machine", || !exists(&state["worker_pid"]));
    assert_eq!(place.state("lost")["status"], "lost");
    place.try_to(&["wait", "lost"]).expect_failure(125, &["it is lost"]);
    assert_eq!(place.strata(&["logs", "lost"]), "before\n");
    place.strata(&["rm", "lost"]);
}

#[test]
fn it_is_started_again_as_often_as_the_policy_says() {
    let Some(place) = Place::new() else { return };
    place.start(&["--name", "again", "--restart", "on-failure:1"], "echo run; exit 5");
    assert_eq!(place.strata(&["wait", "again"]), "5\n");
    assert_eq!(
        (place.state("again")["restarts"].as_u64(), place.strata(&["logs", "again"])),
        (Some(1), "run\nrun\n".into())
    );
    let failed = place.try_to(&["run", "-d", "--name", "none", "debian", "--", "no-such-command"]);
    failed.expect_failure(125, &["no-such-command", "not found in PATH"]);
    assert_eq!(place.state("none")["exit_code"], 127);
}
