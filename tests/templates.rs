//! Runs that start from a template. Each test has a size of machine of its own, and so templates of its own.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{assets, finish, run, start, strata, with_assets};

/// `strata run -v --memory SIZE OPTIONS debian -- sh -c SCRIPT`.
fn sh(memory: &str, options: &[&str], script: &str) -> Option<Command> {
    let mut arguments = vec!["-v", "--memory", memory];
    arguments.extend(options);
    arguments.extend(["debian", "--", "sh", "-c", script]);
    run(&arguments)
}

/// Ids of the templates of machines with so many MiB.
fn templates(mib: u64) -> Vec<String> {
    let mut command = with_assets().unwrap();
    command.args(["templates", "ls", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&finish(command).stdout).unwrap();
    let of_size = |row: &&serde_json::Value| row["memory_bytes"] == mib << 20;
    rows.as_array()
        .unwrap()
        .iter()
        .filter(of_size)
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

fn folder(id: &str) -> PathBuf {
    assets().unwrap().join("store/templates").join(id)
}

#[test]
fn the_first_run_leaves_a_template_and_later_ones_go_on_from_it_as_machines_of_their_own() {
    let script = "head -c 8 /dev/urandom | od -An -tx8; cat /proc/sys/kernel/random/boot_id; date +%s; hostname; \
                  head -c 4096 /dev/zero > /tmp/x && ls /tmp; exit 3";
    let mut seen = BTreeSet::new();
    for round in 0..3 {
        let Some(command) = sh("232M", &[], script) else { return };
        let ended = finish(command);
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert_eq!(ended.stderr.contains("made a template"), round == 0, "{ended:?}");
        let lines: Vec<&str> = ended.stdout.lines().collect();
        let [random, boot, seconds, "debian", "x"] = lines[..] else { panic!("{ended:?}") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        // Until the command is over, the clock may go on for as long as this host is busy.
        assert!((0..300).contains(&(now - seconds.parse::<u64>().unwrap())), "{ended:?} at {now}");
        assert!(seen.insert(random.to_owned()) && seen.insert(boot.to_owned()), "{seen:?} {ended:?}");
    }
    let ids = templates(232);
    let [id] = &ids[..] else { panic!("{ids:?}") };
    let mut command = with_assets().unwrap();
    command.args(["templates", "rm", id]);
    assert_eq!(finish(command).code(), 0);
    assert!(templates(232).is_empty() && !folder(id).exists());
}

#[test]
fn a_cold_start_neither_uses_nor_leaves_a_template() {
    let Some(command) = sh("233M", &["--start", "cold"], "echo booted") else { return };
    let ended = finish(command);
    assert_eq!((ended.code(), &*ended.stdout), (0, "booted\n"), "{ended:?}");
    assert!(templates(233).is_empty());
}

#[test]
fn a_damaged_template_is_made_anew() {
    let Some(command) = sh("234M", &[], "echo one") else { return };
    assert_eq!(finish(command).stdout, "one\n");
    let id = templates(234).remove(0);
    type Damage = fn(PathBuf);
    let damages: [Damage; 5] = [
        |folder| File::options().write(true).open(folder.join("state")).unwrap().set_len(100).unwrap(),
        |folder| {
            let state = File::options().read(true).write(true).open(folder.join("state")).unwrap();
            let mut byte = [0];
            state.read_exact_at(&mut byte, 2000).unwrap();
            state.write_all_at(&[byte[0] ^ 0x10], 2000).unwrap();
        },
        |folder| {
            let ram = File::options().read(true).write(true).open(folder.join("ram")).unwrap();
            let mut byte = [0];
            ram.read_exact_at(&mut byte, 32 << 20).unwrap();
            ram.write_all_at(&[byte[0] ^ 1], 32 << 20).unwrap();
        },
        |folder| std::fs::remove_file(folder.join("ram")).unwrap(),
        |folder| std::fs::remove_file(folder.join("state")).unwrap(),
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        damage(folder(&id));
        let ended = finish(sh("234M", &[], "echo again").unwrap());
        assert_eq!((ended.code(), &*ended.stdout), (0, "again\n"), "{index}: {ended:?}");
        assert!(ended.stderr.contains("made a template"), "{index}: {ended:?}");
    }
    // Touched, and the same all the same: read once and used.
    let ram = File::options().write(true).open(folder(&id).join("ram")).unwrap();
    ram.set_modified(SystemTime::now()).unwrap();
    let ended = finish(sh("234M", &[], "echo whole").unwrap());
    assert_eq!((&*ended.stdout, ended.stderr.contains("made a template")), ("whole\n", false), "{ended:?}");
    std::fs::remove_dir_all(folder(&id)).unwrap();
}

#[test]
fn translations_kept_beside_a_template_are_used_or_not_and_never_trusted_when_damaged() {
    let script = "seq 3000 | sha256sum; perl -e 'print 6 * 7'";
    let here = |index: &dyn std::fmt::Display| {
        // Not counting instructions, which would do without what is kept.
        let command = run(&["--engine", "jit", "--memory", "237M", "debian", "--", "sh", "-c", script])?;
        let ended = finish(command);
        assert_eq!((ended.code(), &*ended.stderr), (0, ""), "{index}: {ended:?}");
        Some(ended.stdout)
    };
    let Some(expected) = here(&"first") else { return };
    let id = templates(237).remove(0);
    let kept = folder(&id).join("translations");
    let whole = std::fs::read(&kept).unwrap();
    assert!(whole.len() > 1 << 20 && kept.metadata().unwrap().mode() & 0o777 == 0o600);
    let flipped = |every: usize| {
        let mut bytes = whole.clone();
        bytes.iter_mut().skip(every / 2).step_by(every).for_each(|byte| *byte ^= 0x41);
        bytes
    };
    let head_whole = [&whole[..20], &flipped(3)[20..]].concat();
    let damaged =
        [flipped(997), flipped(40_009), head_whole, whole[..whole.len() / 2].to_vec(), vec![0; 4096], vec![]];
    for (index, bytes) in damaged.iter().enumerate() {
        std::fs::write(&kept, bytes).unwrap();
        assert_eq!(here(&index), Some(expected.clone()));
    }
    std::fs::write(&kept, &whole).unwrap();
    std::fs::set_permissions(&kept, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(here(&"anybody's"), Some(expected.clone()));
    std::fs::remove_file(&kept).unwrap();
    assert_eq!(here(&"missing"), Some(expected.clone()));
    std::fs::create_dir(&kept).unwrap();
    assert_eq!(here(&"a folder"), Some(expected));
    assert_eq!(templates(237), std::slice::from_ref(&id));
    std::fs::remove_dir_all(folder(&id)).unwrap();
}

#[test]
fn a_template_that_is_removed_while_its_machine_runs_is_missed_by_nobody() {
    let Some(command) = sh("235M", &["-i"], "echo ready; cat >/dev/null; find / -xdev | wc -l; echo end")
    else {
        return;
    };
    let mut command = command;
    command.stdin(std::process::Stdio::piped());
    let mut running = start(command);
    running.wait_for("ready");
    for id in templates(235) {
        std::fs::remove_dir_all(folder(&id)).unwrap();
    }
    drop(running.child.stdin.take());
    let ended = running.finish();
    assert!(ended.code() == 0 && ended.stdout.ends_with("end\n"), "{ended:?}");
}

#[test]
fn several_vcpus_go_on_together() {
    let script = "nproc; for i in 1 2 3 4; do (seq 20000 | sha256sum) & done; wait; echo end";
    for _ in 0..2 {
        let Some(command) = sh("236M", &["--cpus", "2"], script) else { return };
        let ended = finish(command);
        assert!(ended.stdout.starts_with("2\n") && ended.stdout.ends_with("end\n"), "{ended:?}");
    }
    templates(236).iter().for_each(|id| std::fs::remove_dir_all(folder(id)).unwrap());
}

#[test]
fn prune_removes_what_no_run_would_use_and_rm_says_what_is_not_there() {
    let root = tempfile::tempdir().unwrap();
    let on = |arguments: &[&str]| {
        let mut command = strata();
        command.arg("--root").arg(root.path()).args(arguments);
        finish(command)
    };
    assert_eq!(on(&["templates", "ls", "-q"]).stdout, "");
    let templates = root.path().join("templates");
    for name in ["0123456789abcdef", ".0123456789abcdef.2147483646.partial"] {
        std::fs::create_dir_all(templates.join(name)).unwrap();
        std::fs::write(templates.join(name).join("state"), "strata snapshot 1\n").unwrap();
        std::fs::write(templates.join(name).join("ram"), "").unwrap();
    }
    let listed = on(&["templates", "ls"]);
    assert!(listed.stdout.contains("0123456789abcdef") && listed.stdout.contains("truncated"), "{listed:?}");
    assert_eq!(on(&["templates", "prune"]).stdout, "removed 2\n");
    assert_eq!(std::fs::read_dir(templates).unwrap().count(), 0);
    on(&["templates", "rm", "abc"]).expect_failure(125, &["remove template abc: there is none"]);
}
