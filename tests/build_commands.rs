//! RUN of `strata image build`: what commands change, and what is left of a build that was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::build::buildah;
use crate::support::{Ended, PATIENCE, assets, copy_kernel_and_image, finish, strata};

/// Each of these is a layer. What is made in one is changed in later ones, in every way that a layer has words for.
const CONTAINERFILE: &str = "\
FROM scratch AS base
COPY busybox /bin/busybox
COPY busybox /bin/sh
COPY given /given
ENV PATH=/bin
RUN busybox mkdir -p /proc /sys /dev /etc /run /tmp /var && busybox --install /bin
RUN mkdir -p /a/b/c /d /e/f && echo 1 > /a/one && echo 2 > /a/b/two && echo 3 > /d/three && echo 4 > /e/f/four && chmod 1777 /tmp
RUN ln /a/one /a/same && ln -s ../a/one /d/link && mkfifo -m 640 /d/pipe
RUN rm /a/b/two && rm -r /e && rmdir /a/b/c
RUN mv /d /moved && mv /a/b /a/renamed
RUN rm -r /a && mkdir /a && echo new > /a/new
RUN chmod 4755 /moved/three && chown 5:6 /moved /moved/three && chown -h 7 /moved/link
RUN rm /moved/three && mkdir /moved/three && echo in > /moved/three/file
RUN rm -r /moved/three && echo file > /moved/three
RUN rm -r /moved && ln -s /a /moved && echo through > /moved/link
FROM base AS mixed
WORKDIR /given/sub
COPY given/plain /a/new
RUN rm /given/gone && cat /a/new > /a/copy && chmod 600 /given/plain && touch here
COPY given /a
RUN rm -r /a/deep && mkdir -p /a/deep/other && mv /a/plain /a/deep
USER 11:12
RUN touch /tmp/mine && id -u > /tmp/who && test ! -w /bin
ENV WHO=me
RUN [\"sh\", \"-c\", \"echo $WHO $0 > /tmp/me\", \"zero\"]
USER 0
RUN find / -xdev -name busybox -o -xdev -type d | sort > /tmp/all
FROM scratch AS few
COPY --from=mixed /tmp /given /x/
";

fn context(folder: &Path) -> bool {
    let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| fs::exists(path).unwrap())
    else {
        println!("skipped: no busybox (Debian package busybox-static)");
        return false;
    };
    fs::create_dir_all(folder.join("given/deep/er")).unwrap();
    fs::copy(busybox, folder.join("busybox")).unwrap();
    for (name, text) in [("plain", "plain"), ("gone", "gone"), ("deep/er/x", "x"), ("deep/y", "y")] {
        fs::write(folder.join("given").join(name), text).unwrap();
    }
    // Where the file system has attributes, what is copied up for its mode alone keeps them.
    let plain = folder.join("given/plain");
    let _ = rustix::fs::setxattr(plain, "user.note", b"kept", rustix::fs::XattrFlags::empty());
    fs::write(folder.join("Containerfile"), CONTAINERFILE).unwrap();
    true
}

/// A store of its own, and a context with busybox.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// Nothing where commands cannot be run.
    fn new() -> Option<Bench> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: RUN needs root");
            return None;
        }
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        context(&bench.context()).then_some(bench)
    }

    fn context(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = strata();
        command.env("STRATA_ROOT", self.store()).args(arguments).current_dir(self.context());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments))
    }

    fn good(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }
}

#[test]
fn what_commands_change_is_what_buildah_finds() {
    let Some(bench) = Bench::new() else { return };
    if Command::new("buildah").arg("--version").output().is_err() {
        return println!("skipped: no buildah (Debian package buildah)");
    }
    for stage in ["base", "mixed", "few"] {
        if !buildah(bench.dir.path(), &bench.context(), stage) {
            return println!("skipped: buildah does not work here");
        }
        let archive = bench.dir.path().join(format!("{stage}.tar"));
        bench.good(&["image", "load", archive.to_str().unwrap()]);
        let built = format!("built-{stage}");
        bench.good(&["image", "build", "-t", &built, "--target", stage, "."]);
        // What buildah mounts its own on stays behind in its layers.
        let own =
            ["/dev", "/etc", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc", "/run", "/sys"];
        let found = bench.good(&["image", "diff", stage, &built]);
        let others: Vec<&str> = found
            .lines()
            .filter(|line| !line.split_once(' ').is_some_and(|(_, path)| own.contains(&path)))
            .collect();
        assert_eq!(others, [""; 0], "{stage}");
    }
    // Of another build with the cache only the last command is new, and it sees what all those before did.
    let again =
        format!("{CONTAINERFILE}FROM mixed AS last\nRUN cat /a/copy /tmp/me > /last && rm /tmp/all\n");
    fs::write(bench.context().join("Containerfile"), again).unwrap();
    let ended = bench.run(&["image", "build", "-t", "last", "."]);
    assert_eq!((ended.code(), ended.stderr.matches(": as before").count()), (0, 25), "{ended:?}");
    assert_eq!(bench.good(&["image", "diff", "last", "built-mixed"]), "A /last\nC /tmp\nD /tmp/all\n");
    bench.good(&["check", "--store"]);
    assert_eq!(fs::read_dir(bench.store().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_layer_says_no_more_than_its_command_did() {
    let Some(bench) = Bench::new() else { return };
    let text = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\nRUN :\nRUN echo 1 > /f && : > /g && busybox mknod /null c 1 3\nRUN : > /etc/x\nRUN : > /dev/shm/x\n";
    fs::write(bench.context().join("Containerfile"), text).unwrap();
    bench.good(&["image", "build", "-t", "built", "."]);
    let history = bench.good(&["image", "history", "--json", "built"]);
    let steps: serde_json::Value = serde_json::from_str(&history).unwrap();
    let layers: Vec<bool> = steps.as_array().unwrap().iter().map(|step| !step["layer"].is_null()).collect();
    assert_eq!(layers, [true, true, false, true, true, false], "{history}");
    // Neither what is mounted for a command, nor the folders that it is mounted on.
    let inspected = bench.good(&["image", "diff", "built"]);
    assert!(
        !inspected.contains("/dev") && !inspected.contains("/proc") && !inspected.contains("resolv"),
        "{inspected}"
    );
}

#[test]
fn commands_find_the_names_and_the_limits_that_are_said() {
    let (Some(assets), Some(bench)) = (assets(), Bench::new()) else { return };
    assert!(copy_kernel_and_image(&assets, &bench.store()));
    let text = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\nENV PATH=/bin\n\
        RUN busybox grep -w shelf /etc/hosts > /hosts; ulimit -n > /files; busybox df -k /dev/shm > /shm\n";
    fs::write(bench.context().join("Containerfile"), text).unwrap();
    let said = ["--add-host", "shelf:10.9.8.7", "--ulimit", "nofile=77:88", "--shm-size", "3M"];
    bench.good(&[&["image", "build", "--memory", "64M", "-t", "around"], &said[..], &["."]].concat());
    let show = [
        "run",
        "--isolation",
        "container",
        "around",
        "--",
        "/bin/busybox",
        "cat",
        "/hosts",
        "/files",
        "/shm",
    ];
    let seen = bench.good(&show);
    assert!(seen.contains("10.9.8.7\tshelf\n77\n") && seen.contains(" 3072 "), "{seen}");
    // One that takes more than it may is killed.
    let hungry = "FROM scratch\nCOPY busybox /bin/sh\nRUN x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done\n";
    fs::write(bench.context().join("Containerfile"), hungry).unwrap();
    bench.run(&["image", "build", "--memory", "16M", "."]).expect_failure(125, &["Containerfile:3"]);
    for (flags, why) in [
        (["--add-host", "x:host-gateway"], "host-gateway"),
        (["--isolation=vm", "--shm-size=1M"], "only with --isolation container"),
    ] {
        bench.run(&[&["image", "build"], &flags[..], &["."]].concat()).expect_failure(2, &[why]);
    }
    let text = "FROM debian\nRUN grep -w shelf /etc/hosts > /names; grep MemTotal /proc/meminfo > /memory\n";
    fs::write(bench.context().join("Containerfile"), text).unwrap();
    let machine =
        ["--isolation", "vm", "--memory", "300M", "--add-host", "shelf:10.9.8.7", "-t", "machine", "."];
    bench.good(&[&["image", "build"], &machine[..]].concat());
    let seen = bench.good(&["run", "--isolation", "container", "machine", "--", "cat", "/names", "/memory"]);
    let kib: u64 = seen.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
    assert!(seen.contains("10.9.8.7\tshelf") && (200 << 10..300 << 10).contains(&kib), "{seen}");
}

#[test]
fn a_machine_changes_what_a_container_changes() {
    let (Some(assets), Some(bench)) = (assets(), Bench::new()) else { return };
    assert!(copy_kernel_and_image(&assets, &bench.store()));
    let text = "FROM debian\nRUN rm /etc/issue && mkdir -p /new/d && echo 1 > /new/f && chown 5:6 /new/f && chmod 4711 /new/f\n\
        COPY given /given\nUSER 7:8\nRUN id -u > /tmp/who; sleep 1000 &\nUSER 0\nRUN mv /new /old && ln /old/f /old/g && rm -r /given/deep\n";
    fs::write(bench.context().join("Containerfile"), text).unwrap();
    for isolation in ["container", "vm"] {
        bench.good(&["image", "build", "--no-cache", "--isolation", isolation, "-t", isolation, "."]);
    }
    assert_eq!(bench.good(&["image", "diff", "vm", "container"]), "");
    fs::write(bench.context().join("Containerfile"), "FROM debian\nRUN exit 3\n").unwrap();
    let failed = bench.run(&["image", "build", "--isolation", "vm", "."]);
    failed.expect_failure(125, &["Containerfile:2: RUN exit 3: the command ended with exit code 3"]);
}

/// Whether a process was started with this word.
fn is_running(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|given| given == word.as_bytes())
    })
}

#[test]
fn a_killed_build_leaves_no_process_and_no_mount_and_what_else_it_leaves_is_swept() {
    let Some(bench) = Bench::new() else { return };
    let nap = format!("9{:08}", std::process::id());
    let text = format!(
        "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/sleep\nRUN echo 1 > /first\nRUN sleep {nap}\n"
    );
    fs::write(bench.context().join("Containerfile"), &text).unwrap();
    let mut child = bench.command(&["image", "build", "."]).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let wait = |what: &str, holds: &mut dyn FnMut() -> bool| {
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("the command runs", &mut || is_running(&nap));
    let maker = format!("-{}-", child.id());
    let states = || {
        let states = fs::read_dir("/run/strata/build").into_iter().flatten().flatten();
        let names = states.filter_map(|state| state.file_name().into_string().ok());
        names.filter(|name| name.starts_with("build-") && name.contains(&maker)).count()
    };
    assert_eq!(states(), 1);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bench.dir.path().to_str().unwrap()), "{mounts}");
    child.kill().unwrap();
    child.wait().unwrap();
    wait("the command is gone", &mut || !is_running(&nap));
    // Whoever comes next sweeps the folders of the store, and the next build what the system was told.
    fs::write(bench.context().join("Containerfile"), text.replace(&nap, "0")).unwrap();
    let ended = bench.run(&["image", "build", "-t", "built", "."]);
    assert_eq!((ended.code(), states()), (0, 0), "{ended:?}");
    assert!(ended.stderr.contains("RUN echo 1 > /first: as before"), "{ended:?}");
    assert_eq!(fs::read_dir(bench.store().join("tmp")).unwrap().count(), 0);
    let name = format!("*build-*{maker}*");
    let groups = Command::new("find").args(["/sys/fs/cgroup", "-name", &name]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&groups.stdout), "");
    bench.good(&["check", "--store"]);
}
