//! Bundles for `strata oci`, made of the distribution's `busybox-static`. All that runs them needs root.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Ended, PATIENCE, finish, strata};

/// What a container's scripts use of busybox.
const TOOLS: &str = "sh cat echo id ls mount hostname sleep true false stat readlink pwd grep kill mknod ulimit touch \
                     dd env head cut sort tr wc test seq mkdir rm ln chmod chown umount unshare nproc sync df find \
                     awk sed chrt ionice setsid tty stty uname printf cp dirname";

/// A bundle and a folder for states.
pub struct Bundle {
    /// Removed with what is in it.
    pub folder: tempfile::TempDir,
    /// What `config.json` will say.
    pub config: Value,
    /// The runtime.
    pub program: PathBuf,
}

impl Bundle {
    /// A bundle whose command is `script`, or a line that says why there is none.
    pub fn new(script: &str) -> Option<Self> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        if !rustix::process::geteuid().is_root() || busybox.is_none() {
            println!("skipped: containers are tested as root, with busybox-static");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy(busybox?, bin.join("busybox")).unwrap();
        for tool in TOOLS.split_whitespace() {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        let mut command = strata();
        let ended = finish({
            command.args(["oci", "spec", "--bundle"]).arg(folder.path());
            command
        });
        assert_eq!(ended.code(), 0, "{ended:?}");
        let text = std::fs::read(folder.path().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        Some(Self { folder, config, program: strata().get_program().into() })
    }

    /// A path in the bundle's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its root.
    pub fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    /// `strata oci ARGUMENTS` in the bundle's folder, with states of its own.
    pub fn oci(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_remove("STRATA_ROOT").stdin(Stdio::null());
        command.args(["oci", "--root"]).arg(self.path("states")).args(arguments);
        command.current_dir(self.folder.path());
        command
    }

    /// Runs `strata oci ARGUMENTS` to its end.
    pub fn act(&self, arguments: &[&str]) -> Ended {
        finish(self.oci(arguments))
    }

    /// The same, which must succeed; returns what it wrote.
    pub fn good(&self, arguments: &[&str]) -> String {
        let ended = self.act(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// A name that no other test's container has.
    pub fn id(&self) -> String {
        let name = self.folder.path().file_name().unwrap().to_string_lossy().replace('.', "");
        format!("test-{name}")
    }

    /// Runs it to its end.
    pub fn run(&self) -> Ended {
        self.write();
        finish(self.oci(&["run", &self.id()]))
    }

    /// What it writes to standard output; it must end with 0.
    pub fn output(&self) -> String {
        let ended = self.run();
        assert_eq!(ended.code(), 0, "{ended:?}");
        ended.stdout
    }

    /// Runs it; it must be refused before it runs, with one line that has these words, and leave nothing.
    pub fn refused(&self, words: &[&str]) {
        self.run().expect_failure(1, words);
        let left = self.path("states").read_dir().map_or(0, Iterator::count);
        assert_eq!(left, 0, "states are left of a container that was refused for {words:?}");
    }

    /// Writes `config.json`.
    pub fn write(&self) {
        std::fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    /// Makes the container [`Self::id`], which keeps no stream of the test's.
    pub fn create(&self, flags: &[&str]) -> Container<'_> {
        self.write();
        let id = self.id();
        let mut command = self.oci(&[&["create"], flags, &[&id]].concat());
        let log = std::fs::File::create(self.path("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let status = command.stdin(Stdio::null()).status().unwrap();
        let container = Container { bundle: self, id };
        assert!(status.success(), "{}", container.log());
        container
    }

    /// Adds a mount.
    pub fn add_mount(&mut self, destination: &str, kind: &str, source: &str, options: &[&str]) {
        let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// Removes the namespace of a kind; what would need it goes too.
    pub fn without_namespace(&mut self, kind: &str) {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
        if kind == "uts" {
            self.config.as_object_mut().unwrap().remove("hostname");
        }
    }
}

/// A container that was made; deleted with force when the test is over.
pub struct Container<'a> {
    bundle: &'a Bundle,
    /// Its name.
    pub id: String,
}

impl Container<'_> {
    /// What `state` tells.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.bundle.good(&["state", &self.id])).unwrap()
    }

    /// Its status.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Starts it.
    pub fn start(&self) {
        self.bundle.good(&["start", &self.id]);
    }

    /// Waits until `state` tells this status.
    pub fn wait_for(&self, status: &str) {
        self.wait_until(status, || self.status() == status);
    }

    /// Waits until something holds.
    pub fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "never {what}: {}; {}", self.state(), self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it and the runtime wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.bundle.path("log")).unwrap_or_default()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // By the real program: a test may have broken its own.
        let mut command = strata();
        command.args(["oci", "--root"]).arg(self.bundle.path("states"));
        command.args(["delete", "--force", &self.id]);
        finish(command);
    }
}
