//! Files through the Docker Engine API and through `strata cp`: what is copied, told, exported and made an image.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::docker::{RUNTIMES, Server, refused};
use crate::support::feed;

/// Starts a workload that waits.
fn start(server: &Server, runtime: &str, name: &str) {
    server.docker(&["run", "-d", "--name", name, "--runtime", runtime, "debian", "sleep", "1000"]);
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The names in the archive that a command writes.
fn listed(command: Command) -> String {
    let (archive, status) = feed(command, Vec::new());
    assert!(status.success());
    let mut tar = Command::new("tar");
    tar.arg("-t");
    let (names, status) = feed(tar, archive);
    assert!(status.success());
    String::from_utf8(names).unwrap()
}

#[test]
fn files_go_into_workloads_that_run_and_come_out() {
    let Some(server) = Server::with_client() else { return };
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir_all(path("tree/sub")).unwrap();
    std::fs::write(path("tree/sub/a"), "text").unwrap();
    std::fs::write(path("tree/large"), vec![7; 5 << 20]).unwrap();
    std::fs::set_permissions(path("tree/sub/a"), std::fs::Permissions::from_mode(0o751)).unwrap();
    symlink("sub/a", path("tree/link")).unwrap();
    for runtime in RUNTIMES {
        start(&server, runtime, "web");
        let sh = |script: &str| server.docker(&["exec", "web", "sh", "-c", script]);
        server.docker(&["cp", &path("tree"), "web:/opt"]);
        assert_eq!(sh("cd /opt/tree; cat sub/a; stat -c ' %a' sub/a; readlink link"), "text 751\nsub/a\n");
        // What is not there gets the name, what is there gets the copy in it.
        server.docker(&["cp", &path("tree/."), "web:/opt/new"]);
        server.docker(&["cp", &path("tree/sub/a"), "web:/opt/new/b"]);
        assert_eq!(sh("ls /opt/new; wc -c < /opt/new/large"), "b\nlarge\nlink\nsub\n5242880\n", "{runtime}");

        let out = tempfile::tempdir().unwrap();
        let to = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
        server.docker(&["cp", "web:/opt/tree", &to("")]);
        assert_eq!(read(to("tree/sub/a")), "text");
        assert_eq!(std::fs::metadata(to("tree/sub/a")).unwrap().mode() & 0o777, 0o751);
        assert!(std::fs::read(to("tree/large")).unwrap() == vec![7; 5 << 20], "{runtime}");
        assert!(std::fs::symlink_metadata(to("tree/link")).unwrap().is_symlink());
        server.docker(&["cp", "-L", "web:/opt/tree/link", &to("followed")]);
        assert_eq!(read(to("followed")), "text");
        server.docker(&["cp", "web:/opt/tree/link", &to("link")]);
        assert!(std::fs::symlink_metadata(to("link")).unwrap().is_symlink());
        let listed = listed(server.command(&["cp", "web:/opt/new/.", "-"]));
        assert!(listed.starts_with("./\n") && listed.contains("./sub/a\n"), "{listed}");
        let archive = Command::new("tar").args(["-C", &path("tree"), "-c", "sub"]).output().unwrap().stdout;
        let (_, status) = feed(server.command(&["cp", "-", "web:/srv"]), archive);
        assert!(status.success() && sh("cat /srv/sub/a") == "text", "{runtime}");
        // Modes of users: the archive's, or with -a the workload's own user's.
        std::os::unix::fs::chown(path("tree/sub/a"), Some(33), Some(34)).unwrap();
        server.docker(&["cp", &path("tree/sub/a"), "web:/opt/owned"]);
        assert_eq!(sh("stat -c %u:%g /opt/owned"), "33:34\n");

        refused(
            &server.try_to(&["cp", "web:/none", &to("")]),
            1,
            "Could not find the file /none in container",
        );
        refused(&server.try_to(&["cp", &path("tree/sub/a"), "web:/none/"]), 1, "no such directory");
        refused(&server.try_to(&["cp", &path("tree"), "web:/etc/passwd"]), 1, "cannot copy directory");
        let bad = server.ask("PUT", "/containers/web/archive?path=/etc/passwd", "");
        assert_eq!(bad.0, 400, "{bad:?}");
        assert_eq!(server.ask("PUT", "/containers/web/archive?path=/", "no archive").0, 400);
        assert_eq!(server.ask("GET", "/containers/web/archive", "").0, 400);
        assert_eq!(server.ask("HEAD", "/containers/none/archive?path=/", "").0, 404);
        server.docker(&["rm", "-f", "web"]);
    }
}

#[test]
fn links_inside_a_workload_lead_nowhere_else() {
    let Some(server) = Server::with_client() else { return };
    let here = tempfile::tempdir().unwrap();
    let secret = here.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::write(here.path().join("f"), "new").unwrap();
    let secret = secret.to_str().unwrap();
    let folder = here.path().to_str().unwrap();
    for runtime in RUNTIMES {
        start(&server, runtime, "evil");
        let script = format!(
            "ln -s {secret} /secret; ln -s /proc/1/root/..{folder} /folder; ln -s {folder} /out; \
             ln -s ../../../../../../..{folder} /up; mkfifo /pipe"
        );
        server.docker(&["exec", "evil", "sh", "-c", &script]);
        let out = tempfile::tempdir().unwrap();
        let to = out.path().to_str().unwrap();
        for link in ["/secret", "/out/secret", "/up/secret", "/folder/secret"] {
            let ended = server.try_to(&["cp", "-L", &format!("evil:{link}"), to]);
            assert_ne!(ended.code(), 0, "{runtime} {link}: {ended:?}");
        }
        assert_eq!(std::fs::read_dir(to).unwrap().count(), 0, "{runtime}");
        for link in ["/out", "/up", "/folder"] {
            server.try_to(&["cp", &format!("{folder}/f"), &format!("evil:{link}/planted")]);
        }
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2, "{runtime}");
        assert_eq!(read(secret), "secret");
        // Nobody waits for the other end of a pipe.
        server.docker(&["cp", "evil:/pipe", &format!("{to}/pipe")]);
        server.docker(&["rm", "-f", "evil"]);
    }
}

#[test]
fn what_a_container_wrote_outlives_its_end() {
    let Some(server) = Server::with_client() else { return };
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("in"), "before").unwrap();
    // One that was never started has its image's files.
    server.docker(&["create", "--name", "web", "debian", "sh", "-c", "cat /in; echo after > /out; rm /in"]);
    server.docker(&["cp", &path("in"), "web:/"]);
    server.docker(&["cp", "web:/etc/debian_version", &path("version")]);
    assert!(!read(path("version")).is_empty());
    assert_eq!(server.docker(&["start", "-a", "web"]), "before");
    server.docker(&["cp", "web:/out", &path("out")]);
    assert_eq!(read(path("out")), "after\n");
    refused(&server.try_to(&["cp", "web:/in", &path("")]), 1, "Could not find the file /in");
    // A second start goes on from there, whoever asks.
    server.docker(&["cp", &path("out"), "web:/in"]);
    assert_eq!(server.docker(&["start", "-a", "web"]), "after\n");
    server.docker(&["rm", "web"]);
    let read_only = ["create", "--name", "fixed", "--read-only", "debian", "true"];
    server.docker(&read_only);
    refused(&server.try_to(&["cp", &path("in"), "fixed:/"]), 1, "marked read-only");
}

#[test]
fn strata_copies_as_docker_does() {
    let Some(server) = Server::with_client() else { return };
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("tree")).unwrap();
    std::fs::write(path("tree/a"), "text").unwrap();
    std::os::unix::fs::chown(path("tree/a"), Some(33), Some(34)).unwrap();
    let place = &server.place;
    for runtime in RUNTIMES {
        start(&server, runtime, "web");
        place.strata(&["cp", &path("tree"), "web:/opt"]);
        place.strata(&["cp", "-a", &path("tree"), "web:/srv/new"]);
        let owners = ["exec", "web", "stat", "-c", "%u:%g", "/opt/tree/a", "/srv/new/a"];
        assert_eq!(place.strata(&owners), "0:0\n33:34\n", "{runtime}");
        place.strata(&["cp", "web:/srv/new/.", &path("back")]);
        assert_eq!(read(path("back/a")), "text");
        place.strata(&["cp", "web:/opt/tree/a", &path("b")]);
        assert_eq!(read(path("b")), "text");
        place
            .try_to(&["cp", "web:/none", &path("")])
            .expect_failure(125, &["/none", "there is no such file"]);
        place.try_to(&["cp", &path("none"), "web:/"]).expect_failure(125, &["none"]);
        place.try_to(&["cp", &path("tree"), "web:/etc/passwd"]).expect_failure(125, &["no folder"]);
        place.try_to(&["cp", "web:/a", "web:/b"]).expect_failure(2, &["from one workload to another"]);
        place.try_to(&["cp", "a", "b"]).expect_failure(2, &["NAME:PATH"]);
        server.docker(&["rm", "-f", "web"]);
        std::fs::remove_dir_all(path("back")).unwrap();
    }
}

/// What was changed in `web` becomes an image for both runtimes.
fn makes_an_image(server: &Server, runtime: &str) {
    let commit = [
        "commit",
        "-a",
        "somebody",
        "-m",
        "what it is",
        "-c",
        "CMD [\"cat\", \"/opt/new\"]",
        "-c",
        "ENV X=1",
        "web",
        "made:1",
    ];
    let id = server.docker(&commit).trim().to_owned();
    assert!(id.starts_with("sha256:"), "{id}");
    let shape = "{{.Id}} {{.Author}} {{.Config.Cmd}} {{index .Config.Labels \"team\"}}";
    let wanted = format!("{id} somebody [cat /opt/new] a\n");
    assert_eq!(server.docker(&["image", "inspect", "-f", shape, "made:1"]), wanted);
    assert!(server.docker(&["history", "made:1"]).contains("what it is"));
    for other in RUNTIMES {
        assert_eq!(server.docker(&["run", "--rm", "--runtime", other, "made:1"]), "new\n");
        let look = [
            "sh",
            "-c",
            "ls /etc/issue 2>/dev/null; ls /usr/share/doc; stat -c %a /etc/debian_version; echo $X",
        ];
        let run = ["run", "--rm", "--runtime", other, "made:1"];
        assert_eq!(server.docker(&[&run[..], &look].concat()), "only\n600\n1\n", "{runtime} as {other}");
    }
    refused(&server.try_to(&["commit", "-c", "RUN true", "web", "made:2"]), 1, "RUN true");
    refused(&server.try_to(&["commit", "none", "made:2"]), 1, "No such container");
    let made = server.place.strata(&["commit", "--message", "by hand", "web", "made:3"]);
    assert!(made.starts_with("sha256:"), "{made}");
    assert!(server.place.strata(&["diff", "web"]).contains("A /opt/new\n"));
}

#[test]
fn what_a_workload_changed_is_told_exported_and_made_an_image() {
    let Some(server) = Server::with_client() else { return };
    for runtime in RUNTIMES {
        let script = "echo new > /opt/new; rm /etc/issue; chmod 600 /etc/debian_version; rm -r /usr/share/doc; \
                      mkdir /usr/share/doc; echo only > /usr/share/doc/only; sleep 1000";
        let run = [
            "run",
            "-d",
            "--name",
            "web",
            "--runtime",
            runtime,
            "-l",
            "team=a",
            "debian",
            "sh",
            "-c",
            script,
        ];
        server.docker(&run);
        let there = || server.try_to(&["exec", "web", "test", "-e", "/usr/share/doc/only"]).code() == 0;
        server.place.wait_for("its files", there);
        let told = server.docker(&["diff", "web"]);
        let lines: Vec<&str> = told.lines().collect();
        for line in
            ["A /opt/new", "D /etc/issue", "C /etc/debian_version", "A /usr/share/doc/only", "C /usr/share"]
        {
            assert!(lines.contains(&line), "{runtime}: no {line:?} in {told}");
        }
        assert!(!told.contains("/etc/hostname") && !told.contains("/proc"), "{runtime}: {told}");

        let exported = listed(server.command(&["export", "web"]));
        let has = |name: &str| exported.lines().any(|line| line.trim_start_matches('/') == name);
        assert!(has("opt/new") && has("usr/share/doc/only") && !has("etc/issue"), "{runtime}");
        assert!(!exported.lines().any(|line| line.starts_with("proc/1")), "{runtime}");

        makes_an_image(&server, runtime);
        server.docker(&["rm", "-f", "web"]);
        for name in ["made:1", "made:3"] {
            server.docker(&["rmi", "-f", name]);
        }
    }
    server.docker(&["create", "--name", "still", "debian", "true"]);
    assert_eq!(server.docker(&["diff", "still"]), "");
    let id = server.docker(&["commit", "still"]);
    assert_eq!(server.docker(&["run", "--rm", id.trim(), "echo", "made"]), "made\n");
}

#[test]
fn builds_run_where_their_client_says() {
    let Some(server) = Server::with_client() else { return };
    let context = tempfile::tempdir().unwrap();
    let kernel_and_cards =
        "FROM debian\nRUN ls /sys/class/net > /seen; cat /proc/sys/kernel/osrelease >> /seen\n";
    std::fs::write(context.path().join("Dockerfile"), kernel_and_cards).unwrap();
    let folder = context.path().to_str().unwrap();
    let built = |flags: &[&str]| {
        server.docker(&[&["build", "--no-cache", "-q", "-t", "seen"], flags, &[folder]].concat());
        server.docker(&["run", "--rm", "seen", "cat", "/seen"])
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(built(&["--network", "none"]), format!("lo\n{kernel}"));
    let cards = || -> HashSet<_> {
        let all = std::fs::read_dir("/sys/class/net").unwrap().flatten();
        all.filter_map(|card| card.file_name().into_string().ok()).collect()
    };
    // Tests beside this one make and remove some.
    let (before, seen) = (cards(), built(&[]));
    let seen: HashSet<_> = seen.lines().map(str::to_owned).collect();
    assert!(cards().intersection(&before).all(|card| seen.contains(card)), "{seen:?}");
    let file =
        "FROM debian\nRUN grep -w shelf /etc/hosts > /seen; ulimit -n >> /seen; df -k /dev/shm >> /seen\n";
    std::fs::write(context.path().join("Dockerfile"), file).unwrap();
    let limits = ["--memory", "100m", "--ulimit", "nofile=77:88", "--shm-size", "3m"];
    let seen = built(&[&["--add-host", "shelf:10.9.8.7"], &limits[..]].concat());
    assert!(seen.starts_with("10.9.8.7\tshelf\n77\n") && seen.contains(" 3072 "), "{seen}");
    std::fs::write(context.path().join("Dockerfile"), kernel_and_cards).unwrap();
    let inside = built(&["--isolation", "vm", "--network", "none"]);
    assert!(inside.starts_with("lo\n") && !inside.ends_with(&kernel), "{inside}");
    // What it does not know is said, and what changes nothing is passed over.
    refused(&server.try_to(&["build", "--cpu-quota", "5000", folder]), 1, "build with cpuquota=5000");
    refused(
        &server.try_to(&["build", "--platform", "linux/s390x", folder]),
        1,
        "this host builds for linux/",
    );
    let said = server.docker(&["build", "--cache-from", "seen", folder]);
    assert!(said.contains("cachefrom is passed over") && said.contains("Successfully built"), "{said}");
    // What is here is used, unless it is to be brought anew, from where nobody answers.
    server.place.strata(&["image", "tag", "debian", "localhost:1/debian"]);
    std::fs::write(context.path().join("Dockerfile"), "FROM localhost:1/debian\nENV A=b\n").unwrap();
    server.docker(&["build", folder]);
    refused(&server.try_to(&["build", "--pull", folder]), 1, "localhost:1");
}

/// A folder of the host with a file system of its own.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(propagation: &str) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Mounted(folder);
        mounted.mount("");
        Self::call("mount", &[&format!("--make-{propagation}"), &mounted.path("")]);
        mounted
    }

    fn path(&self, below: &str) -> String {
        self.0.path().join(below).to_str().unwrap().trim_end_matches('/').to_owned()
    }

    fn mount(&self, below: &str) {
        std::fs::create_dir_all(self.path(below)).unwrap();
        Self::call("mount", &["-t", "tmpfs", "none", &self.path(below)]);
    }

    fn call(program: &str, arguments: &[&str]) {
        assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", &self.path("")]).status();
    }
}

#[test]
fn mounts_of_one_side_are_seen_on_the_other_as_far_as_they_are_to_be() {
    let Some(server) = Server::with_client() else { return };
    let shared = Mounted::new("shared");
    let sees = |word: &str| format!("{}:/seen:{word}", shared.path(""));
    for (name, word) in [("private", "rw"), ("slave", "rslave"), ("shared", "rshared")] {
        let run = ["run", "-d", "--privileged", "--name", name, "-v", &sees(word), "debian", "sleep", "1000"];
        server.docker(&run);
    }
    shared.mount("late");
    std::fs::write(shared.path("late/file"), "").unwrap();
    for (name, expected) in [("private", ""), ("slave", "file\n"), ("shared", "file\n")] {
        assert_eq!(server.docker(&["exec", name, "ls", "/seen/late"]), expected, "{name}");
        let script =
            format!("mkdir /seen/{name} && mount -t tmpfs none /seen/{name} && : > /seen/{name}/own");
        server.docker(&["exec", name, "sh", "-c", &script]);
        assert_eq!(Path::new(&shared.path(&format!("{name}/own"))).exists(), name == "shared", "{name}");
    }
    let mounts = server.docker(&["inspect", "-f", "{{range .Mounts}}{{.Propagation}}{{end}}", "slave"]);
    assert_eq!(mounts, "rslave\n");
    // Before what is mounted there goes.
    server.docker(&["rm", "-f", "private", "slave", "shared"]);

    let private = Mounted::new("private");
    let volume = format!("{}:/seen:rshared", private.path(""));
    let run = ["run", "--rm", "-v", &volume, "debian", "true"];
    refused(&server.try_to(&run), 125, "is not on a shared mount");
    let machine = ["run", "--rm", "--runtime", "strata-vm", "-v", &sees("rslave"), "debian", "true"];
    refused(&server.try_to(&machine), 125, "a microVM has mounts of its own");
}
