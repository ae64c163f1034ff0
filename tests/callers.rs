//! Those who call a runtime: the distribution's podman and containerd, on `strata-oci` in place of crun and runc.
//!
//! Their image is busybox in a folder. Where they are not installed, or this is not root, a line says so.

mod tasks;
mod verbs;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::docker_registry::has;
use crate::support::{Ended, PATIENCE, finish, strata};

/// A folder with the runtime under its own name and an image of busybox.
struct Caller {
    folder: tempfile::TempDir,
}

impl Caller {
    fn new(program: &str, package: &str) -> Option<Self> {
        let busybox = Path::new("/bin/busybox");
        if !rustix::process::geteuid().is_root() || !busybox.exists() {
            println!("skipped: {program} is tested as root, with busybox-static");
            return None;
        }
        if !has(program, package) {
            return None;
        }
        let caller = Self { folder: tempfile::tempdir().unwrap() };
        let bin = caller.path("root/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy(busybox, bin.join("busybox")).unwrap();
        for tool in ["sh", "cat", "echo", "id", "sleep", "true", "test", "ps", "tty"] {
            std::os::unix::fs::symlink("busybox", bin.join(tool)).unwrap();
        }
        std::fs::create_dir(caller.path("root/etc")).unwrap();
        std::fs::write(caller.path("root/etc/passwd"), "root:x:0:0::/:/bin/sh\nme:x:1000:7::/:/bin/sh\n")
            .unwrap();
        std::os::unix::fs::symlink(strata().get_program(), caller.runtime()).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(caller.path("root")).arg("-cf").arg(caller.path("root.tar")).arg(".");
        assert!(tar.status().unwrap().success());
        Some(caller)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn runtime(&self) -> PathBuf {
        self.path("strata-oci")
    }
}

struct Podman(Caller);

impl Podman {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.0.path("containers.conf"));
        command.arg("--root").arg(self.0.path("storage")).arg("--runroot").arg(self.0.path("run"));
        command.arg("--tmpdir").arg(self.0.path("tmp")).arg("--runtime").arg(self.0.runtime());
        command.args(["--cgroup-manager", "cgroupfs", "--storage-driver", "vfs"]).args(arguments);
        command
    }

    fn try_to(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments))
    }

    fn good(&self, arguments: &[&str]) -> String {
        let ended = self.try_to(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    fn status(&self, name: &str) -> String {
        self.good(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name]).trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.try_to(&["pod", "rm", "--all", "--force", "-t", "0"]);
        self.try_to(&["rm", "--all", "--force", "-t", "0"]);
        self.try_to(&["volume", "rm", "--all", "--force"]);
    }
}

#[test]
fn podman_runs_its_containers() {
    let Some(caller) = Caller::new("podman", "podman") else { return };
    // Hosts where limits cannot be raised, and whose networks are not podman's to change.
    let conf =
        "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nnetns = \"none\"\n";
    std::fs::write(caller.path("containers.conf"), conf).unwrap();
    let tar = caller.path("root.tar");
    let podman = Podman(caller);
    podman.good(&["import", tar.to_str().unwrap(), "box"]);

    let ended = podman.try_to(&["run", "--rm", "box", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (7, "out\n"), "{ended:?}");
    assert!(ended.stderr.contains("err\n"), "{ended:?}");
    assert_eq!(podman.try_to(&["run", "--rm", "box", "no-such"]).code(), 127);
    assert_eq!(podman.try_to(&["run", "--rm", "box", "/etc/passwd"]).code(), 126);
    let mut cat = podman.command(&["run", "-i", "--rm", "box", "cat"]);
    std::fs::write(podman.0.path("input"), "x".repeat(200_000)).unwrap();
    cat.stdin(std::fs::File::open(podman.0.path("input")).unwrap());
    assert_eq!(finish(cat).stdout.len(), 200_000);

    let script =
        "id -u; cat /proc/self/status /sys/fs/cgroup/pids/pids.max 2>/dev/null; echo x > /x || echo refused";
    let limits =
        ["--user", "me", "--read-only", "--cap-drop", "all", "--pids-limit", "20", "--memory", "64m"];
    let said = podman.good(&[&["run", "--rm"], &limits[..], &["box", "sh", "-c", script]].concat());
    assert!(said.starts_with("1000\n") && said.ends_with("refused\n"), "{said}");
    assert!(said.contains("CapEff:\t0000000000000000\n") && said.contains("Seccomp:\t2\n"), "{said}");

    podman.good(&["run", "-d", "--name", "one", "box", "sleep", "1000"]);
    assert_eq!(podman.status("one"), "running 0");
    let ended = podman.try_to(&[
        "exec",
        "-u",
        "me",
        "-e",
        "A=b",
        "-w",
        "/bin",
        "one",
        "sh",
        "-c",
        "id -u; echo $A; exit 3",
    ]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (3, "1000\nb\n"), "{ended:?}");
    let terminal = podman.good(&["exec", "-t", "one", "sh", "-c", "test -t 1 && echo terminal"]);
    assert_eq!(terminal.trim(), "terminal");
    let terminal = podman.good(&["run", "-t", "--rm", "box", "sh", "-c", "test -t 0 && test -t 2 && tty"]);
    assert_eq!(terminal.trim(), "/dev/pts/0");
    podman.good(&["pause", "one"]);
    assert_eq!(podman.status("one"), "paused 0");
    podman.good(&["unpause", "one"]);
    assert!(podman.good(&["top", "one", "args"]).contains("sleep 1000"));
    podman.good(&["kill", "--signal", "KILL", "one"]);
    let deadline = Instant::now() + PATIENCE;
    while podman.status("one") != "exited 137" {
        assert!(Instant::now() < deadline, "{}", podman.status("one"));
        std::thread::sleep(Duration::from_millis(50));
    }
    podman_has_hooks_run(&podman);
    podman.good(&["start", "one"]);
    podman.good(&["stop", "-t", "0", "one"]);
    podman.good(&["rm", "one"]);
}

/// A hook of podman's own folder is told the state of a container that is being made.
fn podman_has_hooks_run(podman: &Podman) {
    let (hooks, told) = (podman.0.path("hooks"), podman.0.path("told"));
    std::fs::create_dir(&hooks).unwrap();
    let script = format!("cat > {}", told.display());
    let hook = serde_json::json!({
        "version": "1.0.0", "when": { "always": true }, "stages": ["createRuntime"],
        "hook": { "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] },
    });
    std::fs::write(hooks.join("tell.json"), hook.to_string()).unwrap();
    podman.good(&["--hooks-dir", hooks.to_str().unwrap(), "run", "--rm", "--name", "hooked", "box", "true"]);
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap();
    assert_eq!(state["status"], "creating");
    assert!(state["pid"].as_i64().unwrap() > 1, "{state}");
}

/// The distribution's containerd, with everything in one folder.
struct Containerd {
    caller: Caller,
    child: Child,
}

impl Containerd {
    fn start() -> Option<Self> {
        let caller = Caller::new("containerd", "containerd")?;
        let folder = caller.folder.path().display().to_string();
        // Pods and their networks are no business of a runtime.
        let config = format!(
            "version = 2\nroot = '{folder}/lib'\nstate = '{folder}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\n  address = '{folder}/c.sock'\n"
        );
        std::fs::write(caller.path("config.toml"), config).unwrap();
        let log = std::fs::File::create(caller.path("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(caller.path("config.toml"));
        command.stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
        let daemon = Self { child: command.spawn().unwrap(), caller };
        let deadline = Instant::now() + PATIENCE;
        while finish(daemon.ctr(&["version"])).code() != 0 {
            let log = std::fs::read_to_string(daemon.caller.path("log")).unwrap();
            assert!(Instant::now() < deadline, "containerd does not come up: {log}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(daemon)
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.caller.path("c.sock")).args(arguments);
        command
    }

    fn good(&self, arguments: &[&str]) -> String {
        let ended = finish(self.ctr(arguments));
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    fn run(&self, flags: &[&str], name: &str, command: &[&str]) -> Ended {
        let runtime = self.caller.runtime();
        let ours = ["run", "--runc-binary", runtime.to_str().unwrap(), "--rootfs"];
        let root = self.caller.path("root");
        finish(self.ctr(&[&ours, flags, &[root.to_str().unwrap(), name], command].concat()))
    }

    fn status(&self, name: &str) -> String {
        let all = self.good(&["task", "ls"]);
        let line = all.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default();
        line.split_whitespace().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A test that failed leaves no shim behind.
        for name in ["two", "typed", "limited", "forced"] {
            finish(self.ctr(&["task", "rm", "--force", name]));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn containerd_runs_its_tasks() {
    let Some(containerd) = Containerd::start() else { return };
    let ended = containerd.run(&["--rm"], "one", &["/bin/sh", "-c", "echo out; exit 3"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (3, "out\n"), "{ended:?}");
    assert_eq!(containerd.run(&["-d"], "two", &["/bin/sleep", "1000"]).code(), 0);
    assert_eq!(containerd.status("two"), "RUNNING");
    let said =
        containerd.good(&["task", "exec", "--exec-id", "x", "two", "/bin/sh", "-c", "echo hello; id -u"]);
    assert_eq!(said, "hello\n0\n");
    containerd.good(&["task", "pause", "two"]);
    assert_eq!(containerd.status("two"), "PAUSED");
    containerd.good(&["task", "resume", "two"]);
    assert!(containerd.good(&["task", "metrics", "two"]).contains("memory"));
    containerd.good(&["task", "kill", "--signal", "SIGKILL", "two"]);
    let deadline = Instant::now() + PATIENCE;
    while containerd.status("two") != "STOPPED" {
        assert!(Instant::now() < deadline, "{}", containerd.status("two"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let removed = finish(containerd.ctr(&["task", "rm", "two"]));
    assert!(removed.code() == 0 && removed.stderr.contains("exit code 137"), "{removed:?}");
    containerd.good(&["container", "rm", "two"]);
}
