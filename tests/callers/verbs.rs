//! What else podman has words for, and asks of a runtime with them: terminals, limits that change, checks, pods.

use std::fs;

use super::{Caller, Podman};
use crate::support::pty;

impl Podman {
    /// With the image `box`, and one whose command waits, for the first container of each pod. Nothing where podman is not.
    fn with_images() -> Option<Podman> {
        let caller = Caller::new("podman", "podman")?;
        // Hosts where limits cannot be raised, and whose networks are not podman's to change.
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nnetns = \"none\"\n\
                    [engine]\ninfra_image = \"localhost/pause:1\"\n";
        fs::write(caller.path("containers.conf"), conf).unwrap();
        let tar = caller.path("root.tar").to_str().unwrap().to_owned();
        let podman = Podman(caller);
        podman.good(&["import", &tar, "localhost/box:latest"]);
        podman.good(&["import", "--change", "CMD [\"/bin/sleep\",\"1000\"]", &tar, "localhost/pause:1"]);
        Some(podman)
    }

    /// Waits until the log of a container holds `mark`.
    fn wait_for(&self, name: &str, mark: &str) -> String {
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        loop {
            let log = self.good(&["logs", name]);
            if log.contains(mark) {
                return log;
            }
            assert!(std::time::Instant::now() < deadline, "no {mark:?} in {log:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn start(&self, flags: &[&str], script: &str) {
        self.good(&[&["run", "-d"], flags, &["box", "sh", "-c", script]].concat());
    }
}

#[test]
fn podmans_words_for_one_container() {
    let Some(podman) = Podman::with_images() else { return };
    let script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done";
    let check = ["--health-cmd", "test -e /well", "--health-interval", "disable", "--name", "one"];
    podman.start(&check, script);
    podman.wait_for("one", "hello");
    // A terminal, of the size that the caller's has.
    let mut terminal = pty::start(podman.command(&["exec", "-it", "one", "sh"]), 33, 77);
    terminal.wait_for("# ");
    terminal.types("busybox stty size; tty\n");
    terminal.wait_for("33 77");
    terminal.wait_for("/dev/pts/");
    terminal.types("exit 4\n");
    assert_eq!(terminal.finish().code(), Some(4));
    // Its processes and what they use.
    assert!(podman.good(&["top", "one", "pid", "args"]).contains("1           sh -c trap"));
    let stats = podman.good(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "one"]);
    let pids: u32 = stats.trim().strip_prefix("one ").unwrap().parse().unwrap();
    assert!((1..=3).contains(&pids), "{stats}");
    // Limits that change, seen from the host.
    podman.good(&["update", "--memory", "64m", "--cpus", "0.5", "one"]);
    let id = podman.good(&["inspect", "--format", "{{.Id}}", "one"]).trim().to_owned();
    let limits = group_files(&id, &["memory.limit_in_bytes", "memory.max"]);
    assert!(limits.contains(&"67108864".to_owned()), "{limits:?}");
    // How it is.
    assert_eq!(podman.try_to(&["healthcheck", "run", "one"]).code(), 1);
    podman.good(&["exec", "one", "sh", "-c", "echo > /well"]);
    assert_eq!(podman.try_to(&["healthcheck", "run", "one"]).code(), 0);
    // Its files.
    fs::write(podman.0.path("f"), "x").unwrap();
    podman.good(&["cp", podman.0.path("f").to_str().unwrap(), "one:/copied"]);
    assert_eq!(podman.good(&["exec", "one", "cat", "/copied"]), "x");
    let changed = podman.good(&["diff", "one"]);
    assert!(changed.contains("A /copied") && changed.contains("A /well"), "{changed}");
    podman.good(&["commit", "-q", "one", "kept"]);
    assert_eq!(podman.good(&["run", "--rm", "kept", "cat", "/copied"]), "x");
    // What it answers to a signal, and that it begins again.
    podman.good(&["rename", "one", "uno"]);
    podman.good(&["kill", "--signal", "TERM", "uno"]);
    assert_eq!(podman.good(&["wait", "uno"]), "3\n");
    assert_eq!(podman.good(&["logs", "uno"]), "hello\nbye\n");
    podman.good(&["restart", "-t", "0", "uno"]);
    assert_eq!(podman.status("uno"), "running 0");
    podman.good(&["pause", "uno"]);
    assert_eq!(podman.status("uno"), "paused 0");
    podman.good(&["unpause", "uno"]);
    podman.good(&["rm", "--force", "-t", "0", "uno"]);
    // Made and started in two steps.
    podman.good(&["create", "--name", "two", "box", "sh", "-c", "echo begun; exit 5"]);
    podman.good(&["init", "two"]);
    assert_eq!(podman.status("two"), "initialized 0");
    assert_eq!(podman.try_to(&["start", "--attach", "two"]).code(), 5);
    assert_eq!(podman.good(&["logs", "two"]), "begun\n");
}

/// What files of these names say in the control groups of a container.
pub(super) fn group_files(id: &str, names: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let listed =
        std::process::Command::new("find").args(["/sys/fs/cgroup", "-path", &format!("*{id}*")]).output();
    for path in String::from_utf8_lossy(&listed.unwrap().stdout).lines().map(std::path::Path::new) {
        if path.file_name().is_some_and(|name| names.iter().any(|wanted| name == *wanted)) {
            found.extend(fs::read_to_string(path).map(|text| text.trim().to_owned()));
        }
    }
    found
}

#[test]
fn podmans_pods_share_what_they_say() {
    let Some(podman) = Podman::with_images() else { return };
    podman.good(&["pod", "create", "--name", "shared", "--share", "ipc,uts,pid", "--hostname", "podhost"]);
    podman.start(&["--pod", "shared", "--name", "s1"], "sleep 1234");
    let script = "ps; busybox hostname; test $$ != 1 && echo second";
    let seen = podman.good(&["run", "--rm", "--pod", "shared", "box", "sh", "-c", script]);
    assert!(seen.contains("1 root     /bin/sleep 1000") && seen.contains("sleep 1234"), "{seen}");
    assert!(seen.ends_with("podhost\nsecond\n"), "{seen}");
    podman.good(&["pod", "pause", "shared"]);
    assert_eq!(podman.status("s1"), "paused 0");
    podman.good(&["pod", "unpause", "shared"]);
    podman.good(&["pod", "restart", "shared"]);
    assert_eq!(podman.status("s1").split(' ').next(), Some("running"));
    podman.good(&["pod", "stop", "-t", "0", "shared"]);
    assert_eq!(podman.status("s1"), "exited 137");
    podman.good(&["pod", "rm", "--force", "shared"]);
    assert_eq!(podman.good(&["ps", "--all", "--quiet"]), "");
}

const KUBE: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: kubed
spec:
  hostNetwork: true
  containers:
  - name: web
    image: localhost/box:latest
    imagePullPolicy: Never
    command: [sh, -c, 'echo $GREETING; id -u; echo x > /data/x; echo x > /x || echo refused; echo end; sleep 1000']
    env: [{name: GREETING, value: hello}]
    securityContext: {runAsUser: 1000, readOnlyRootFilesystem: true}
    resources: {limits: {memory: 64Mi}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
";

#[test]
fn podman_plays_what_is_written_for_kubernetes() {
    let Some(podman) = Podman::with_images() else { return };
    let file = podman.0.path("kube.yaml");
    fs::write(&file, KUBE).unwrap();
    let file = file.to_str().unwrap();
    podman.good(&["play", "kube", file]);
    let log = podman.wait_for("kubed-web", "end");
    assert!(log.starts_with("hello\n1000\n") && log.contains("refused\n"), "{log}");
    let id = podman.good(&["inspect", "--format", "{{.Id}}", "kubed-web"]).trim().to_owned();
    assert!(group_files(&id, &["memory.limit_in_bytes", "memory.max"]).contains(&"67108864".to_owned()));
    podman.good(&["play", "kube", "--down", file]);
    assert_eq!(podman.good(&["ps", "--all", "--quiet"]), "");
}
