//! `config.md`, POSIX-platform hooks, and the steps of `runtime.md` that run them.

use serde_json::{Value, json};

use crate::support::bundle::Bundle;

const POINTS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that writes its name, and what `more` does, to the bundle's file `order`.
fn hook(bundle: &Bundle, name: &str, more: &str) -> Value {
    let script = format!("echo {name} >> \"$ORDER\"; {more}");
    // The one that runs inside sees the bundle's root as `/`.
    let inside = name.starts_with("startContainer");
    let order = if inside { "/order".into() } else { bundle.rootfs().join("order") };
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": [format!("ORDER={}", order.display()), "PATH=/bin:/usr/bin"] })
}

fn order(bundle: &Bundle) -> Vec<String> {
    let text = std::fs::read_to_string(bundle.rootfs().join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A bundle with two hooks at each point, whose process writes too.
fn with_hooks(more: impl Fn(&str) -> String) -> Option<Bundle> {
    let mut bundle = Bundle::new("echo process >> /order; exit 0")?;
    bundle.config["root"]["readonly"] = json!(false);
    for point in POINTS {
        let both = ["1", "2"].map(|number| format!("{point}{number}"));
        bundle.config["hooks"][point] = both.iter().map(|name| hook(&bundle, name, &more(name))).collect();
    }
    Some(bundle)
}

fn both(points: &[&str]) -> Vec<String> {
    points.iter().flat_map(|point| [format!("{point}1"), format!("{point}2")]).collect()
}

#[test]
fn hooks_run_at_their_points_in_their_order() {
    let Some(bundle) = with_hooks(|_| String::new()) else { return };
    let container = bundle.create(&[]);
    let created = both(&["prestart", "createRuntime", "createContainer"]);
    assert_eq!(order(&bundle), created);
    container.start();
    container.wait_for("stopped");
    let all = order(&bundle);
    let inside = [created, both(&["startContainer"])].concat();
    assert_eq!(all[..inside.len()], inside);
    // The process runs while poststart does.
    let mut rest = all[inside.len()..].to_vec();
    rest.retain(|word| word != "process");
    assert_eq!(rest, both(&["poststart"]));
    assert!(all.contains(&"process".to_owned()));
    bundle.good(&["delete", &container.id]);
    assert_eq!(order(&bundle)[all.len()..], both(&["poststop"]));
}

#[test]
fn hooks_are_told_the_state() {
    let Some(mut bundle) = with_hooks(|name| format!("cat > \"${{ORDER%order}}state-{name}\"")) else {
        return;
    };
    bundle.config["annotations"] = json!({ "a": "b" });
    let container = bundle.create(&[]);
    let pid = container.state()["pid"].clone();
    container.start();
    container.wait_for("stopped");
    bundle.good(&["delete", &container.id]);
    for (point, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("startContainer", "created"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let text = std::fs::read(bundle.rootfs().join(format!("state-{point}2"))).unwrap();
        let state: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{point}: {e}"));
        assert_eq!(state["id"], json!(container.id), "{point}");
        assert_eq!(state["status"], status, "{point}: {state}");
        assert_eq!(state["pid"], if point == "poststop" { json!(0) } else { pid.clone() }, "{point}");
        assert_eq!(state["bundle"], bundle.folder.path().canonicalize().unwrap().to_str().unwrap());
        assert_eq!(state["annotations"], json!({ "a": "b" }), "{point}");
        assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{point}");
    }
}

#[test]
fn hooks_run_in_the_namespaces_their_point_has() {
    let look = "readlink /proc/self/ns/mnt > \"${ORDER%order}mnt\"-$0; readlink /proc/self/ns/uts > \"${ORDER%order}uts\"-$0";
    let Some(mut bundle) = with_hooks(|_| String::new()) else { return };
    for point in POINTS {
        let mut one = hook(&bundle, &format!("{point}1"), look);
        // The name of the script is the point.
        one["args"] = json!(["sh", "-c", one["args"][2], point]);
        bundle.config["hooks"][point] = json!([one]);
    }
    let container = bundle.create(&[]);
    let pid = container.state()["pid"].as_i64().unwrap();
    let of = |pid: String, kind: &str| {
        format!("{}\n", std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display())
    };
    let (inside, outside) = (of(pid.to_string(), "mnt"), of("self".into(), "mnt"));
    let uts = of(pid.to_string(), "uts");
    container.start();
    container.wait_for("stopped");
    bundle.good(&["delete", &container.id]);
    for point in POINTS {
        let is_inside = matches!(point, "createContainer" | "startContainer");
        let seen =
            |kind: &str| std::fs::read_to_string(bundle.rootfs().join(format!("{kind}-{point}"))).unwrap();
        assert_eq!(seen("mnt"), *if is_inside { &inside } else { &outside }, "{point}");
        assert_eq!(seen("uts") == uts, is_inside, "{point}");
    }
}

#[test]
fn a_hook_has_its_arguments_and_its_environment_only() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    let out = bundle.path("out");
    let script = format!("echo \"$0|$1|$2\" > {0}; env | grep -vE '^(PWD|SHLVL|_)=' >> {0}", out.display());
    let hook = json!({ "path": "/bin/sh", "args": ["other-name", "-c", script, "zero", "a b", ""], "env": ["A=b=c", "PATH=/usr/bin:/bin"] });
    bundle.config["hooks"] = json!({ "createRuntime": [hook] });
    bundle.output();
    let text = std::fs::read_to_string(out).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["zero|a b|", "A=b=c", "PATH=/usr/bin:/bin"]);
}

#[test]
fn a_hook_that_fails_before_the_process_ends_the_container() {
    for point in ["prestart", "createRuntime", "createContainer"] {
        let fail = |name: &str| if name == format!("{point}1") { "exit 7" } else { "" }.to_owned();
        let Some(bundle) = with_hooks(fail) else { return };
        bundle.refused(&["hook", "/bin/sh", "7"]);
        let order = order(&bundle);
        let before = order.iter().position(|word| *word == format!("{point}1")).unwrap();
        // Nothing after it, but what tells of the end.
        assert_eq!(order[before + 1..], both(&["poststop"]), "{point}");
    }
}

#[test]
fn a_hook_that_fails_at_the_start_ends_the_container() {
    for point in ["startContainer", "poststart"] {
        let fail = |name: &str| if name == format!("{point}1") { "exit 7" } else { "" }.to_owned();
        let Some(mut bundle) = with_hooks(fail) else { return };
        if point == "poststart" {
            bundle.config["process"]["args"] = json!(["/bin/sleep", "1000"]);
        }
        let container = bundle.create(&[]);
        bundle.act(&["start", &container.id]).expect_failure(1, &["hook", "/bin/sh", "7"]);
        container.wait_for("stopped");
        let before = order(&bundle);
        assert_eq!(before.last().unwrap(), &format!("{point}1"), "{before:?}");
        bundle.good(&["delete", &container.id]);
        assert_eq!(order(&bundle)[before.len()..], both(&["poststop"]), "{point}");
        std::fs::remove_file(bundle.rootfs().join("order")).unwrap();
        drop(container);
        // The same in one go.
        bundle.refused(&["hook", "/bin/sh", "7"]);
        assert_eq!(order(&bundle)[before.len()..], both(&["poststop"]), "{point}");
    }
}

#[test]
fn a_hook_that_fails_after_the_end_is_a_warning() {
    let fail = |name: &str| if name == "poststop1" { "exit 7" } else { "" }.to_owned();
    let Some(bundle) = with_hooks(fail) else { return };
    let ended = bundle.run();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stderr.contains("hook /bin/sh"), "{ended:?}");
    assert!(order(&bundle).ends_with(&both(&["poststop"])));
    assert_eq!(bundle.path("states").read_dir().unwrap().count(), 0);
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let Some(mut bundle) = Bundle::new("echo ran") else { return };
    let out = bundle.path("pid");
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("echo $$ > {}; exec sleep 1000", out.display())],
                       "env": ["PATH=/bin:/usr/bin"], "timeout": 1 });
    bundle.config["hooks"] = json!({ "createRuntime": [hook] });
    // It does not read its input, which is more than a pipe holds.
    bundle.config["annotations"] = json!({ "long": "x".repeat(300_000) });
    bundle.refused(&["hook /bin/sh", "1 s"]);
    let pid = std::fs::read_to_string(out).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}/cwd", pid.trim())).exists(), "it lives");
}

#[test]
fn hooks_that_make_no_sense_are_refused() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    for (hook, word) in [
        (json!({ "path": "relative" }), "absolute"),
        (json!({ "path": "" }), "absolute"),
        (json!({ "path": "/bin/true", "timeout": 0 }), "timeout"),
        (json!({ "path": "/no/such/program" }), "/no/such/program"),
    ] {
        bundle.config["hooks"] = json!({ "createRuntime": [hook] });
        bundle.refused(&[word]);
    }
}
