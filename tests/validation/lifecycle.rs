//! `runtime.md`: states, operations, and what errors leave behind.

use serde_json::{Value, json};

use crate::support::bundle::Bundle;

const FOREVER: &str = "while :; do sleep 0.05; done";

#[test]
fn operations_need_the_id_of_a_container_that_exists() {
    let Some(bundle) = Bundle::new("true") else { return };
    bundle.write();
    for verb in ["create", "state", "start", "kill", "delete", "pause", "resume", "update", "exec", "ps"] {
        assert_ne!(bundle.act(&[verb]).code(), 0, "{verb}");
        if verb != "create" {
            bundle.act(&[verb, "nobody"]).expect_failure(1, &["nobody", "does not exist"]);
        }
    }
    for bad in ["..", ".", "a/b", "../x", "a b", "", "ä"] {
        for verb in ["create", "state", "start", "kill", "delete"] {
            let ended = bundle.act(&[verb, bad]);
            assert_ne!(ended.code(), 0, "{verb} {bad:?}: {ended:?}");
        }
    }
    assert_eq!(bundle.path("states").read_dir().map_or(0, Iterator::count), 0);
}

#[test]
fn state_tells_what_the_specification_asks_for() {
    let Some(mut bundle) = Bundle::new(FOREVER) else { return };
    bundle.config["annotations"] = json!({ "org.example.one": "1", "two": "" });
    let container = bundle.create(&["--pid-file", "pid"]);
    let created = container.state();
    let pid = created["pid"].as_i64().unwrap();
    assert_eq!(std::fs::read_to_string(bundle.path("pid")).unwrap(), pid.to_string());
    assert!(created["ociVersion"].as_str().unwrap().starts_with("1."), "{created}");
    assert_eq!(created["id"], container.id);
    assert_eq!(created["status"], "created");
    assert_eq!(created["bundle"], bundle.folder.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(created["annotations"], json!({ "org.example.one": "1", "two": "" }));
    // The process waits, and has executed nothing of the bundle's.
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(!program.ends_with("busybox"), "{program:?}");
    container.start();
    let running = container.state();
    assert_eq!((&running["status"], &running["pid"]), (&json!("running"), &created["pid"]));
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(program.ends_with("busybox"), "{program:?}");
    bundle.good(&["kill", &container.id, "KILL"]);
    container.wait_for("stopped");
}

#[test]
fn what_is_created_runs_when_it_is_started_and_as_it_was_when_created() {
    let Some(mut bundle) = Bundle::new("echo one > /ran") else { return };
    bundle.config["root"]["readonly"] = json!(false);
    let container = bundle.create(&[]);
    let ran = bundle.rootfs().join("ran");
    assert!(!ran.exists());
    let mut other = bundle.config.clone();
    other["process"]["args"] = json!(["/bin/sh", "-c", "echo two > /ran"]);
    other["root"]["readonly"] = json!(true);
    std::fs::write(bundle.path("config.json"), other.to_string()).unwrap();
    assert!(!ran.exists());
    container.start();
    container.wait_for("stopped");
    assert_eq!(std::fs::read_to_string(ran).unwrap(), "one\n");
}

#[test]
fn an_operation_in_the_wrong_state_is_an_error_without_effect() {
    let Some(bundle) = Bundle::new(FOREVER) else { return };
    let container = bundle.create(&[]);
    let id = container.id.as_str();
    let wrong = |verb: &str, status: &str| {
        bundle.act(&[verb, id]).expect_failure(1, &[id]);
        assert_eq!(container.status(), status, "after {verb}");
    };
    bundle.act(&["create", id]).expect_failure(1, &[id, "exists"]);
    wrong("resume", "created");
    container.start();
    for verb in ["start", "delete", "resume"] {
        wrong(verb, "running");
    }
    bundle.act(&["create", id]).expect_failure(1, &[id, "exists"]);
    bundle.good(&["pause", id]);
    for verb in ["start", "delete", "pause"] {
        wrong(verb, "paused");
    }
    bundle.act(&["exec", id, "true"]).expect_failure(1, &[id, "paused"]);
    bundle.good(&["resume", id]);
    bundle.good(&["kill", id, "9"]);
    container.wait_for("stopped");
    for verb in ["start", "kill", "pause", "resume"] {
        wrong(verb, "stopped");
    }
    bundle.act(&["exec", id, "true"]).expect_failure(1, &[id, "stopped"]);
    bundle.good(&["delete", id]);
    bundle.act(&["delete", id]).expect_failure(1, &[id, "does not exist"]);
    bundle.good(&["delete", "--force", id]);
}

#[test]
fn a_container_that_was_never_started_can_be_killed_or_deleted() {
    let Some(bundle) = Bundle::new(FOREVER) else { return };
    let container = bundle.create(&[]);
    bundle.good(&["kill", &container.id, "KILL"]);
    container.wait_for("stopped");
    bundle.good(&["delete", &container.id]);
    // The specification would have `delete` refuse this one; runc deletes it, and its callers count on that.
    let again = bundle.create(&[]);
    let pid = again.state()["pid"].as_i64().unwrap();
    bundle.good(&["delete", &again.id]);
    assert!(!std::path::Path::new(&format!("/proc/{pid}/root/bin/busybox")).exists());
}

#[test]
fn signals_reach_the_process() {
    let script = "trap 'echo hup > /said' HUP; trap 'echo term > /said; exit 3' TERM; \
                  echo ready > /said; while :; do sleep 0.05; done";
    let Some(mut bundle) = Bundle::new(script) else { return };
    bundle.config["root"]["readonly"] = json!(false);
    let container = bundle.create(&[]);
    container.start();
    let said = |word: &str| {
        let file = bundle.rootfs().join("said");
        let text = || std::fs::read_to_string(&file).unwrap_or_default();
        container.wait_until(word, || text() == format!("{word}\n"));
    };
    said("ready");
    for (signal, word) in [("HUP", "hup"), ("SIGTERM", "term")] {
        bundle.good(&["kill", &container.id, signal]);
        said(word);
    }
    container.wait_for("stopped");
    bundle.act(&["kill", &container.id, "NONSENSE"]).expect_failure(1, &["NONSENSE"]);
}

#[test]
fn deletion_takes_what_creation_made_and_nothing_else() {
    let Some(mut bundle) = Bundle::new(FOREVER) else { return };
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id()));
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let name = bundle.folder.path().to_str().unwrap().to_owned();
    let container = bundle.create(&[]);
    container.start();
    let groups = || {
        let all = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let own = all.map(|entry| entry.path().join(bundle.id())).filter(|path| path.exists());
        own.chain(
            [std::path::Path::new("/sys/fs/cgroup").join(bundle.id())].into_iter().filter(|p| p.exists()),
        )
        .count()
    };
    assert_ne!(groups(), 0);
    bundle.good(&["delete", "--force", &container.id]);
    assert_eq!(groups(), 0);
    assert!(!mounts().contains(&name));
    assert!(bundle.rootfs().join("bin/busybox").exists());
    // Its name is free again.
    let again = bundle.create(&[]);
    assert_eq!(again.status(), "created");
}

#[test]
fn what_cannot_be_made_is_an_error_that_leaves_nothing() {
    let Some(bundle) = Bundle::new("true") else { return };
    let nothing = |what: &str, ended: &crate::support::Ended, words: &[&str]| {
        ended.expect_failure(1, words);
        assert_eq!(bundle.path("states").read_dir().map_or(0, Iterator::count), 0, "{what}");
    };
    nothing("no bundle", &bundle.act(&["create", "--bundle", "/gone", "x"]), &["/gone"]);
    std::fs::remove_file(bundle.path("config.json")).unwrap();
    nothing("no config", &bundle.act(&["create", "x"]), &["config.json", "No such file"]);
    for text in ["", "{", "[]", "null", "{\"process\": 3}", "\u{0}"] {
        std::fs::write(bundle.path("config.json"), text).unwrap();
        nothing(text, &bundle.act(&["create", "x"]), &["config"]);
    }
    let changes: [(&str, Value, &str); 12] = [
        ("/ociVersion", json!("2.0.0"), "2.0.0"),
        ("/ociVersion", json!("nonsense"), "nonsense"),
        ("/root/path", json!("gone"), "gone"),
        ("/root/path", json!("config.json"), "folder"),
        ("/root", Value::Null, "root"),
        ("/process/args", json!([]), "args"),
        ("/process/args", json!(["a\u{0}b"]), "NUL"),
        ("/process/cwd", json!("relative"), "cwd"),
        ("/process/cwd", json!(""), "cwd"),
        ("/mounts/0/destination", json!(""), "destination"),
        ("/linux/namespaces/0/type", json!("imaginary"), "imaginary"),
        ("/linux/rootfsPropagation", json!("sideways"), "sideways"),
    ];
    for (place, value, word) in changes {
        let mut config = bundle.config.clone();
        config["linux"]["rootfsPropagation"] = json!("");
        *config.pointer_mut(place).unwrap_or_else(|| panic!("the template has no {place}")) = value;
        std::fs::write(bundle.path("config.json"), config.to_string()).unwrap();
        nothing(place, &bundle.act(&["create", "x"]), &[word]);
    }
}

#[test]
fn unknown_properties_are_passed_over() {
    let Some(mut bundle) = Bundle::new("echo here") else { return };
    bundle.config["org.example"] = json!({ "a": [1] });
    bundle.config["linux"]["fromTheFuture"] = json!(true);
    bundle.config["process"]["fromTheFuture"] = json!("x");
    assert_eq!(bundle.output(), "here\n");
}

#[test]
fn a_command_that_is_not_there_is_no_container() {
    let Some(mut bundle) = Bundle::new("") else { return };
    for (command, code) in [("no-such", 127), ("/bin/no-such", 127), ("/etc", 127), ("/bin", 126)] {
        bundle.config["process"]["args"] = json!([command]);
        let ended = bundle.run();
        ended.expect_failure(code, &[command]);
        assert_eq!(bundle.path("states").read_dir().unwrap().count(), 0);
    }
}

#[test]
fn what_this_runtime_does_not_do_is_said() {
    let Some(bundle) = Bundle::new("true") else { return };
    for arguments in [&["checkpoint", "x"][..], &["restore", "x"], &["checkpoint", "--help"]] {
        bundle.act(arguments).expect_failure(1, &["checkpoint or restore", "does not"]);
    }
}
