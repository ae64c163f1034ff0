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

/// Requests of the disk and of the streams are under way whenever it is saved.
#[test]
fn a_guest_that_reads_its_disk_all_the_time_goes_on_from_any_moment() {
    const ROUNDS: usize = 8;
    let script = format!(
        "i=0; while [ $i -lt {ROUNDS} ]; do echo 3 > /proc/sys/vm/drop_caches; \
         echo $i $(cat /usr/bin/[a-d]* | cksum); i=$((i+1)); done; exit 7"
    );
    let name = format!("reader-{}", std::process::id());
    let Some(command) = run(&["--engine", "jit", "--name", &name, "debian", "--", "sh", "-c", &script])
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("snap");
    let mut current = start(command);
    current.wait_for("0 ");
    let (mut said, mut random) = (String::new(), 7u64);
    for _ in 0..6 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(std::time::Duration::from_millis(random >> 33 & 0x1ff));
        if snapshot(&name, &at, &["--stop"]).code() != 0 {
            // It is being restored still, or has ended on a fast host.
            continue;
        }
        let ended = current.finish();
        assert_eq!(ended.code(), 0, "{ended:?}");
        said += &ended.stdout;
        let mut command = with_assets().expect("there were assets a moment ago");
        command.args(["restore", "--engine", "jit", "--name", &name]).arg(&at);
        current = start(command);
    }
    let ended = current.finish();
    said += &ended.stdout;
    assert_eq!(ended.code(), 7, "{ended:?}");
    let sums: Vec<(&str, &str)> = said.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let rounds: Vec<String> = (0..ROUNDS).map(|round| round.to_string()).collect();
    assert_eq!(sums.iter().map(|(round, _)| *round).collect::<Vec<_>>(), rounds, "{said}");
    assert!(sums.iter().all(|(_, sum)| *sum == sums[0].1), "{said}");
}

/// A store of its own, because its disk is touched.
#[test]
fn a_snapshot_whose_disk_was_changed_or_is_gone_says_so_and_memory_that_is_cut_short_is_an_end_with_a_reason()
{
    let Some(place) = crate::detached::Place::new() else { return };
    let script = "n=3; echo up; trap 'exit $n' TERM; while :; do date +%s; sleep 0.1; done";
    place.start(&["--name", "web"], script);
    place.wait_for("the first line", || place.strata(&["logs", "web"]).starts_with("up\n"));
    let at = place.dir.path().join("snap");
    let folder = at.to_str().unwrap();
    place.strata(&["snapshot", "--stop", "web", folder]);

    let mut copy = start(place.command(&["restore", "--engine", "jit", folder]));
    copy.wait_for("\n");
    let ram = fs::File::options().write(true).open(at.join("ram")).unwrap();
    let len = ram.metadata().unwrap().len();
    ram.set_len(0).unwrap();
    copy.finish().expect_failure(125, &["guest memory", "cut short"]);
    place.try_to(&["restore", folder]).expect_failure(125, &["restore", "its memory file has 0x0 bytes"]);
    ram.set_len(len).unwrap();
    place.try_to(&["restore", folder]).expect_failure(125, &["restore", "its memory file is damaged at"]);

    place.start(&["--name", "again"], script);
    place.wait_for("the first line", || place.strata(&["logs", "again"]).starts_with("up\n"));
    place.strata(&["snapshot", "--stop", "again", folder]);
    let roots = place.dir.path().join("store/roots");
    for disk in fs::read_dir(&roots).unwrap() {
        let file = fs::File::options().append(true).open(disk.unwrap().path()).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified + std::time::Duration::from_secs(1)).unwrap();
    }
    place.try_to(&["restore", folder]).expect_failure(125, &["restore", "its disk", "was changed since"]);
    let mut forced = start(place.command(&["restore", "--force", "--name", "forced", folder]));
    forced.wait_for("\n");
    place.strata(&["kill", "-s", "TERM", "forced"]);
    assert_eq!(forced.finish().code(), 3);
    place.strata(&["restore", "--force", "--detach", "--name", "behind", folder]);
    place.strata(&["kill", "-s", "TERM", "behind"]);
    place.wait_for("its end", || place.state("behind")["exit_code"] == 3);
    fs::rename(&roots, roots.with_extension("away")).unwrap();
    place.try_to(&["restore", folder]).expect_failure(125, &["restore", "open its disk", "No such file"]);
}
