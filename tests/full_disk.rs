//! A store whose disk is full in the middle of something: one clear error, a store that is as it was, and one that works again
//! as soon as there is room.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::fake_registry::{Contents, FakeRegistry};
use crate::support::{Ended, finish, noise, strata};

/// A small file system for a store, and a folder for everything else.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Nothing where none can be mounted, or there is no busybox to run.
    fn new(size_mib: u32) -> Option<SmallDisk> {
        let disk = SmallDisk { dir: tempfile::tempdir().unwrap() };
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| fs::exists(path).unwrap());
        fs::create_dir(disk.path("disk")).unwrap();
        fs::create_dir(disk.path("context")).unwrap();
        let (Some(busybox), true) = (busybox, disk.mount(&format!("size={size_mib}m"))) else {
            println!("skipped: this needs busybox (package busybox-static) and the right to mount");
            return None;
        };
        fs::copy(busybox, disk.path("context/sh")).unwrap();
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self, options: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(self.path("disk"));
        mount.output().is_ok_and(|output| output.status.success())
    }

    /// Makes room.
    fn grow(&self, size_mib: u32) {
        assert!(self.mount(&format!("remount,size={size_mib}m")));
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut file = fs::File::create(self.path("disk/filler")).unwrap();
        let _ = std::io::copy(&mut std::io::repeat(1), &mut file);
    }

    fn empty(&self) {
        fs::remove_file(self.path("disk/filler")).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = strata();
        command.env("STRATA_ROOT", self.path("disk/store")).args(arguments).current_dir(self.path("context"));
        finish(command)
    }

    fn good(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    fn build(&self, text: &str) -> Ended {
        fs::write(self.path("context/Containerfile"), text).unwrap();
        self.run(&["image", "build", "-t", "built", "."])
    }

    /// An image called `box` that has a shell.
    fn add_box(&self) {
        fs::write(self.path("context/Containerfile"), "FROM scratch\nCOPY sh /bin/sh\n").unwrap();
        self.good(&["image", "build", "-t", "box", "."]);
    }

    /// Everything there is, is whole, and nothing unfinished is left.
    fn assert_whole(&self) {
        let checked = self.run(&["check", "--store", "--dry-run"]);
        assert_eq!(checked.code(), 0, "{checked:?}");
        let left: Vec<_> =
            fs::read_dir(self.path("disk/store/tmp")).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path("disk")).output();
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: containers are tested as root");
    }
    root
}

#[test]
fn a_build_whose_files_do_not_fit_leaves_the_store_as_it_was() {
    let Some(disk) = SmallDisk::new(8) else { return };
    fs::write(disk.path("context/small"), "x").unwrap();
    fs::write(disk.path("context/large"), noise(9 << 20)).unwrap();
    let text = "FROM scratch\nCOPY small /\nCOPY large /\n";
    let ended = disk.build(text);
    ended.expect_failure(125, &["Containerfile:3", "COPY large /", "No space left on device"]);
    assert!(ended.stderr.contains("next: "), "{ended:?}");
    disk.assert_whole();
    assert_eq!(disk.good(&["image", "ls", "--quiet"]), "");
    // Sources that come from a stage, and archives that unpack to more than there is room for.
    let tar =
        Command::new("tar").args(["-cf", "large.tar", "large"]).current_dir(disk.path("context")).status();
    assert!(tar.unwrap().success());
    let ended = disk.build("FROM scratch\nADD large.tar /\n");
    ended.expect_failure(125, &["Containerfile:2", "No space left on device"]);
    disk.assert_whole();
    disk.grow(64);
    assert_eq!(disk.build(text).code(), 0);
    disk.assert_whole();
}

/// A command that writes so many MiB which do not compress.
fn write(file: &str, mib: u32) -> String {
    format!("dd if=/dev/urandom of={file} bs=1M count={mib}")
}

#[test]
fn a_command_of_a_build_that_fills_the_disk_leaves_the_store_as_it_was() {
    let Some(disk) = SmallDisk::new(32).filter(|_| is_root()) else { return };
    disk.add_box();
    let build =
        |mib| disk.build(&format!("FROM box\nRUN echo first > /first\nRUN {}\n", write("/large", mib)));
    // The command itself sees it.
    let ended = build(64);
    ended.expect_failure(125, &["Containerfile:3: RUN dd", "exit code 1"]);
    assert!(ended.stderr.contains("No space left on device"), "{ended:?}");
    disk.assert_whole();
    // What it writes fits; the layer that is made of it does not.
    let ended = build(18);
    ended.expect_failure(125, &["Containerfile:3: RUN dd", "No space left on device"]);
    disk.assert_whole();
    assert_eq!(disk.good(&["image", "ls", "--quiet"]), "box:latest\n");
    disk.grow(256);
    assert_eq!(build(18).code(), 0);
    assert_eq!(disk.good(&["image", "diff", "built", "box"]), "A /first\nA /large\n");
    disk.assert_whole();
}

#[test]
fn a_commit_that_does_not_fit_leaves_store_and_workload_as_they_were() {
    let Some(disk) = SmallDisk::new(32).filter(|_| is_root()) else { return };
    disk.add_box();
    let script = format!("{} && echo written && sleep 1000", write("/large", 18));
    disk.good(&[
        "run",
        "-d",
        "--isolation",
        "container",
        "--name",
        "one",
        "box",
        "--",
        "/bin/sh",
        "-c",
        &script,
    ]);
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !disk.good(&["logs", "one"]).contains("written") {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let ended = disk.run(&["commit", "one", "kept"]);
    let listed = disk.good(&["image", "ls", "--quiet"]);
    let lives = disk.good(&["exec", "one", "/bin/sh", "-c", "echo lives"]);
    disk.assert_whole();
    disk.grow(256);
    let again = disk.run(&["commit", "one", "kept"]);
    disk.assert_whole();
    disk.good(&["rm", "--force", "one"]);
    ended.expect_failure(125, &["commit one", "No space left on device"]);
    assert_eq!((listed.as_str(), lives.as_str(), again.code()), ("box:latest\n", "lives\n", 0), "{again:?}");
}

#[test]
fn a_workload_is_not_begun_where_nothing_can_be_noted_of_it() {
    let Some(disk) = SmallDisk::new(16).filter(|_| is_root()) else { return };
    disk.add_box();
    let run = ["run", "--isolation", "container", "box", "--", "/bin/sh", "-c", "echo ran"];
    let detached =
        ["run", "-d", "--isolation", "container", "--name", "one", "box", "--", "/bin/sh", "-c", "echo ran"];
    // First nothing was made for the image yet; then all is there, and only what a workload in the background notes is written.
    for warm in [false, true] {
        disk.fill();
        let (front, back) = (disk.run(&run), disk.run(&detached));
        let listed = disk.good(&["ps", "-a", "-q"]);
        disk.empty();
        if warm {
            assert_eq!(front.stdout, "ran\n", "{front:?}");
        } else {
            front.expect_failure(125, &["box", "No space left on device"]);
        }
        back.expect_failure(125, &["No space left on device"]);
        assert_eq!(listed, "");
        disk.assert_whole();
        assert_eq!(disk.good(&run), "ran\n");
        disk.good(&detached);
        assert_eq!(disk.good(&["wait", "one"]), "0\n");
        disk.good(&["rm", "one"]);
    }
}

#[test]
fn how_a_workload_ended_is_noted_on_a_full_disk_too() {
    let Some(disk) = SmallDisk::new(16).filter(|_| is_root()) else { return };
    disk.add_box();
    let script = "while [ ! -e /end ]; do sleep 0.05; done; exit 5";
    let run =
        ["run", "-d", "--isolation", "container", "--name", "one", "box", "--", "/bin/sh", "-c", script];
    disk.good(&run);
    disk.good(&["exec", "one", "/bin/sh", "-c", ": > /end.not-yet"]);
    disk.fill();
    disk.good(&["exec", "one", "/bin/sh", "-c", "mv /end.not-yet /end"]);
    assert_eq!(disk.good(&["wait", "one"]), "5\n");
    let state = || disk.good(&["inspect", "one"]);
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    // The monitor is gone when it has nothing more to note.
    while !state().contains("\"monitor_pid\": null") && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (full, listed) = (state(), disk.good(&["ps", "-a"]));
    disk.empty();
    assert!(listed.contains("exited (5)"), "{listed}{full}");
    disk.good(&["rm", "one"]);
    disk.assert_whole();
}

#[test]
fn a_pull_that_does_not_fit_works_as_soon_as_there_is_room() {
    let Some(disk) = SmallDisk::new(4) else { return };
    let layers = [noise(3 << 20), noise(3 << 20).into_iter().rev().collect()];
    let registry = FakeRegistry::start(Contents::image(&layers, |_| {}), |_| None);
    let name = format!("{}/big", registry.domain);
    disk.run(&["pull", &name]).expect_failure(125, &["big", "layer ", "No space left on device"]);
    assert_eq!(disk.good(&["image", "ls", "--quiet"]), "");
    disk.assert_whole();
    disk.grow(32);
    disk.good(&["pull", &name]);
    disk.assert_whole();
}
