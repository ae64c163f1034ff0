//! Saving, restoring and forking that are cut off: by a full disk, by `kill -9`, by a host without memory.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::detached::Place;
use crate::support::finish;

/// Ends with 3 when it is told to.
const LOOP: &str = "trap 'exit 3' TERM; trap 'echo answered' USR1; echo up; while :; do sleep 0.05; done";

fn with_workload() -> Option<Place> {
    let place = Place::new()?;
    place.start(&["--name", "web"], LOOP);
    place.wait_for("the first line", || place.strata(&["logs", "web"]) == "up\n");
    Some(place)
}

/// It runs, and answers.
fn expect_alive(place: &Place, name: &str) {
    assert_eq!(place.state(name)["status"], "running", "{name}");
    let answers = || place.strata(&["logs", name]).matches("answered").count();
    let before = answers();
    place.strata(&["kill", "-s", "USR1", name]);
    place.wait_for("an answer", || answers() > before);
}

/// The snapshot is whole: what is restored from it ends as the command was to end.
fn expect_good(place: &Place, folder: &Path) {
    let folder = folder.to_str().unwrap();
    let restored = crate::support::start(place.command(&["restore", "--name", "restored", folder]));
    place.wait_for("its name", || place.try_to(&["kill", "-s", "TERM", "restored"]).code() == 0);
    assert_eq!(restored.finish().code(), 3);
}

fn disk_kib(folder: &Path) -> u64 {
    let used = Command::new("du").arg("-sk").arg(folder).output().unwrap().stdout;
    String::from_utf8_lossy(&used).split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_disk_that_is_full_while_saving_leaves_the_snapshot_from_before() {
    let Some(place) = with_workload() else { return };
    let first = place.dir.path().join("first");
    place.strata(&["snapshot", "web", first.to_str().unwrap()]);
    let disk = place.dir.path().join("small");
    std::fs::create_dir(&disk).unwrap();
    // One fits, the one beside it does not.
    let size = format!("size={}k", disk_kib(&first) * 3 / 2);
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: no small file system can be mounted here");
        return;
    }
    let at = disk.join("snap");
    let copied = Command::new("cp").args(["-r", "--sparse=always"]).arg(&first).arg(&at).status();
    let ended = place.try_to(&["snapshot", "web", at.to_str().unwrap()]);
    let left: Vec<_> = std::fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    expect_alive(&place, "web");
    expect_good(&place, &at);
    let unmounted = Command::new("umount").arg(&disk).status();
    assert!(copied.unwrap().success() && unmounted.unwrap().success());
    ended.expect_failure(125, &["save \"web\"", "No space left on device"]);
    assert_eq!(left, ["snap"], "something unfinished is left");
}

#[test]
fn killed_while_saving_it_leaves_the_snapshot_from_before_and_the_workload() {
    let Some(place) = with_workload() else { return };
    let at = place.dir.path().join("snap");
    let folder = at.to_str().unwrap();
    place.strata(&["snapshot", "web", folder]);
    let listed = || -> Vec<_> {
        let names = std::fs::read_dir(place.dir.path()).unwrap();
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|n| n.contains("snap")).collect()
    };
    let mut child = place.command(&["snapshot", "web", folder]).stderr(Stdio::null()).spawn().unwrap();
    place.wait_for("the unfinished folder", || listed().len() > 1 || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    expect_alive(&place, "web");
    expect_good(&place, &at);
    // What it left goes when the next one is made.
    place.strata(&["snapshot", "web", folder]);
    assert_eq!(listed(), ["snap"]);
    expect_good(&place, &at);
}

#[test]
fn killed_while_forking_it_leaves_whole_copies_or_none() {
    let Some(place) = with_workload() else { return };
    for after_ms in [20, 60, 120, 200] {
        let mut child = place.command(&["fork", "web", "-c", "3"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    expect_alive(&place, "web");
    let copy = place.strata(&["fork", "web"]);
    expect_alive(&place, copy.trim());
    // Each is one that runs, or one that nobody began; all of them can be named and removed.
    let names = place.strata(&["ps", "-aq"]);
    for name in names.lines() {
        let began = place.state(name)["status"] != "created";
        place.wait_for("its start or its end", || !began || place.state(name)["status"] != "starting");
        place.strata(&["rm", "-f", name]);
    }
    let folders = place.dir.path().join("store/workloads");
    let left = std::fs::read_dir(folders).unwrap().map(|entry| entry.unwrap().file_name());
    // What is told of those that were there stays.
    let left: Vec<_> = left.filter(|name| name != "events.json").collect();
    assert_eq!(left, ["lock"], "{names}");
}

#[test]
fn a_host_without_the_memory_says_so() {
    let Some(place) = with_workload() else { return };
    let at = place.dir.path().join("snap");
    place.strata(&["snapshot", "--stop", "web", at.to_str().unwrap()]);
    // Less than the guest has.
    let mut limited = Command::new("prlimit");
    let restore = place.command(&["restore"]);
    limited.arg("--as=400000000").arg(restore.get_program()).arg("restore").arg(&at);
    limited.env("STRATA_ROOT", place.dir.path().join("store"));
    finish(limited).expect_failure(125, &["restore", "map guest ram"]);
    expect_good(&place, &at);
}
