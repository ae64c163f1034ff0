//! Volumes that have names: they outlive workloads, and what uses them is found, whatever was killed.

use std::io::Write;

use serde_json::Value;

use crate::detached::Place;
use crate::docker::{RUNTIMES, Server, refused};
use crate::support::{feed, finish, start};

fn listed(place: &Place, more: &[&str]) -> Vec<String> {
    let all = place.strata(&[&["volume", "ls", "-q"], more].concat());
    all.lines().map(str::to_owned).collect()
}

/// An image `with-data` whose `/data` is a volume with an owner, modes, links and an attribute.
fn make_image(place: &Place) {
    let folder = place.dir.path().join("context");
    std::fs::create_dir(&folder).unwrap();
    let text = "FROM debian\n\
        RUN mkdir -p /data/sub && echo first >/data/sub/file && ln /data/sub/file /data/hard && \
        ln -s sub/file /data/soft && chown -R 33:44 /data && chmod 2750 /data && chmod 4711 /data/sub/file\n\
        VOLUME /data\n";
    std::fs::write(folder.join("Containerfile"), text).unwrap();
    place.strata(&["image", "build", "--tag", "with-data", folder.to_str().unwrap()]);
}

#[test]
fn what_is_written_stays_whatever_the_isolation() {
    let Some(place) = Place::new() else { return };
    place.strata(&["volume", "create", "--label", "a=b", "shared"]);
    let kinds: Vec<String> = Place::each().map(|place| place.isolation.to_owned()).collect();
    for kind in &kinds {
        let script = format!("echo {kind} >>/v/log; cat /v/log");
        let run = ["run", "--isolation", kind, "-v", "shared:/v", "debian", "--", "sh", "-ec", &script];
        assert!(place.strata(&run).ends_with(&format!("{kind}\n")));
        let mount = "type=volume,source=shared,target=/v,readonly";
        let run =
            ["run", "--isolation", kind, "--mount", mount, "debian", "--", "sh", "-c", "echo x >/v/log"];
        let ended = place.try_to(&run);
        assert!(ended.code() != 0 && ended.stderr.contains("Read-only file system"), "{ended:?}");
        let tmpfs = "type=tmpfs,target=/m,tmpfs-size=1M,tmpfs-mode=1770";
        let script = "stat -f -c %T /m; stat -c %a /m; df -k /m | awk 'END{print $2}'";
        let run = ["run", "--isolation", kind, "--mount", tmpfs, "debian", "--", "sh", "-ec", script];
        assert_eq!(place.strata(&run), "tmpfs\n1770\n1024\n", "{kind}");
    }
    let seen: Value = serde_json::from_str(&place.strata(&["volume", "inspect", "shared"])).unwrap();
    let mountpoint = seen[0]["mountpoint"].as_str().unwrap();
    let log = std::fs::read_to_string(std::path::Path::new(mountpoint).join("log")).unwrap();
    assert_eq!(log.lines().collect::<Vec<_>>(), kinds);
    assert_eq!(listed(&place, &["--filter", "label=a=b", "--filter", "dangling=true"]), ["shared"]);
    place.try_to(&["volume", "rm", "none"]).expect_failure(125, &["no volume \"none\""]);
    place.strata(&["volume", "rm", "shared"]);
    assert!(listed(&place, &[]).is_empty());
}

#[test]
fn a_new_volume_begins_with_what_the_image_has_there() {
    for place in Place::each() {
        make_image(&place);
        let script = "cd /data; stat -c '%a %u:%g %h %F' . sub sub/file soft; cat soft hard; touch new";
        let expected = "2750 33:44 3 directory\n755 33:44 2 directory\n4711 33:44 2 regular file\n\
                        777 33:44 1 symbolic link\nfirst\nfirst\n";
        let run = [
            "run",
            "--isolation",
            place.isolation,
            "-v",
            "kept:/data",
            "with-data",
            "--",
            "sh",
            "-ec",
            script,
        ];
        assert_eq!(place.strata(&run), expected, "{}", place.isolation);
        let again =
            ["run", "--isolation", place.isolation, "-v", "kept:/data", "with-data", "--", "ls", "/data"];
        assert_eq!(place.strata(&again), "hard\nnew\nsoft\nsub\n");
        let empty = [
            "run",
            "--isolation",
            place.isolation,
            "-v",
            "bare:/data:nocopy",
            "with-data",
            "--",
            "ls",
            "-A",
            "/data",
        ];
        assert_eq!(place.strata(&empty), "");
    }
}

#[test]
fn an_images_volumes_outlive_restarts_and_go_with_the_workload_or_without() {
    for place in Place::each() {
        make_image(&place);
        let run = |flags: &[&str], script: &str| {
            let isolation = ["run", "-d", "--isolation", place.isolation];
            place.strata(&[&isolation, flags, &["with-data", "--", "sh", "-ec", script]].concat());
        };
        run(&["--name", "db"], "ls /data | wc -l; touch /data/$(date +%N)");
        place.strata(&["wait", "db"]);
        place.strata(&["start", "db"]);
        place.strata(&["wait", "db"]);
        assert_eq!(place.strata(&["logs", "db"]), "3\n4\n", "{}", place.isolation);
        let names = listed(&place, &["--filter", "dangling=false"]);
        assert_eq!(names.len(), 1);
        let refusal = place.try_to(&["volume", "rm", &names[0]]);
        refusal.expect_failure(125, &["is used by db"]);
        place.strata(&["rm", "db"]);
        assert_eq!(listed(&place, &["--filter", "dangling=true"]), names);
        assert!(place.strata(&["volume", "prune"]).starts_with(&names[0]));

        run(&["--name", "db", "-v", "/more"], "true");
        place.strata(&["wait", "db"]);
        assert_eq!(listed(&place, &[]).len(), 2);
        place.strata(&["rm", "--volumes", "db"]);
        assert!(listed(&place, &[]).is_empty());

        run(&["--name", "db", "--rm"], "sleep 1000");
        assert_eq!(listed(&place, &[]).len(), 1);
        place.strata(&["kill", "db"]);
        place.wait_for("removal", || listed(&place, &[]).is_empty());
        run(&["--name", "none", "--image-volume", "ignore"], "true");
        assert!(listed(&place, &[]).is_empty());
    }
}

#[test]
fn a_volume_is_free_again_when_whoever_used_it_was_killed() {
    for place in Place::each() {
        let isolation = place.isolation;
        let run = [
            "run",
            "--isolation",
            isolation,
            "-v",
            "v:/v",
            "debian",
            "--",
            "sh",
            "-c",
            "echo up; sleep 1000",
        ];
        let mut running = start(place.command(&run));
        running.wait_for("up");
        let refusal = place.try_to(&["volume", "rm", "v"]);
        refusal.expect_failure(125, &["volume v is used by a command in the foreground"]);
        running.signal(rustix::process::Signal::KILL);
        running.finish();
        place.wait_for("the volume", || place.try_to(&["volume", "rm", "v"]).code() == 0);

        place.start(&["--name", "web", "-v", "v:/v"], "sleep 1000");
        let state = place.state("web");
        let monitor = i32::try_from(state["monitor_pid"].as_i64().unwrap()).unwrap();
        let monitor = rustix::process::Pid::from_raw(monitor).unwrap();
        rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
        place.wait_for("the loss", || place.state("web")["status"] == "lost");
        place.try_to(&["volume", "rm", "v"]).expect_failure(125, &["is used by web"]);
        place.strata(&["rm", "web"]);
        place.wait_for("the volume", || place.try_to(&["volume", "rm", "v"]).code() == 0);
    }
}

#[test]
fn docker_has_volumes_and_mounts_as_it_knows_them() {
    let Some(server) = Server::with_client() else { return };
    // More than a letter: docker's command takes one with a colon for a drive.
    assert_eq!(server.docker(&["volume", "create", "--label", "a=b", "vol"]), "vol\n");
    assert_eq!(server.docker(&["volume", "ls", "-q", "--filter", "label=a"]), "vol\n");
    for runtime in RUNTIMES {
        let run = ["run", "--rm", "--runtime", runtime];
        let script = ["debian", "sh", "-c", "echo $0 >>/x/log; tail -n1 /x/log", runtime];
        assert_eq!(server.docker(&[&run[..], &["-v", "vol:/x"], &script].concat()), format!("{runtime}\n"));
        let mount = "type=volume,src=vol,dst=/x,readonly";
        let ended = server.try_to(&[&run[..], &["--mount", mount], &script].concat());
        assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
        let tmpfs = [&run[..], &["--mount", "type=tmpfs,dst=/x", "debian", "stat", "-f", "-c", "%T", "/x"]];
        assert_eq!(server.docker(&tmpfs.concat()), "tmpfs\n");
        // Made by name, by place, and by docker's old and new words; the nameless ones go with --rm.
        server
            .docker(&[&run[..], &["-v", "fresh:/x", "-v", "/y", "debian", "touch", "/x/a", "/y/b"]].concat());
        server.place.wait_for("the end of the nameless", || {
            server.docker(&["volume", "ls", "-q"]).lines().eq(["fresh", "vol"])
        });
        let name = format!("user-{runtime}");
        server.docker(&[
            "create",
            "--name",
            &name,
            "--runtime",
            runtime,
            "-v",
            "fresh:/x:ro",
            "debian",
            "true",
        ]);
        let format = "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}";
        assert_eq!(server.docker(&["inspect", "-f", format, &name]), "volume fresh /x false\n");
        refused(&server.try_to(&["volume", "rm", "fresh"]), 1, "volume is in use - [");
        server.docker(&["rm", "-v", &name]);
        assert_eq!(server.docker(&["volume", "rm", "fresh"]), "fresh\n");
    }
    let first = server.docker(&["create", "--name", "first", "-v", "/a", "-v", "vol:/b", "debian", "true"]);
    assert!(!first.is_empty());
    let second =
        ["run", "--rm", "--volumes-from", "first:ro", "debian", "sh", "-c", "ls -d /a /b; echo x >/b/log"];
    let ended = server.try_to(&second);
    assert!(ended.stdout == "/a\n/b\n" && ended.stderr.contains("Read-only"), "{ended:?}");
    server.docker(&["rm", "-v", "first"]);
    assert_eq!(server.docker(&["volume", "ls", "-q"]), "vol\n");
    refused(&server.try_to(&["volume", "inspect", "none"]), 1, "no such volume");
    refused(&server.try_to(&["volume", "create", "-d", "nfs", "w"]), 1, "plugin \"nfs\" not found");
    refused(&server.try_to(&["volume", "create", "-o", "type=nfs", "w"]), 1, "only type=none");
    assert!(server.docker(&["system", "df", "-v"]).contains("vol "));
    assert!(server.docker(&["volume", "prune", "-f"]).contains("0B"));
    assert!(server.docker(&["volume", "prune", "-af"]).contains("vol\n"));
}

#[test]
fn what_a_client_should_not_send_is_refused_and_makes_nothing() {
    let Some(server) = Server::start() else { return };
    for (method, path, body, status) in [
        ("POST", "/volumes/create", r#"{"Name":"../x"}"#, 400),
        ("POST", "/volumes/create", r#"{"Name":"a/b"}"#, 400),
        ("POST", "/volumes/create", r#"{"DriverOpts":{"device":"/no/such"}}"#, 400),
        ("POST", "/volumes/create", r#"{"Driver":"x"}"#, 404),
        ("POST", "/volumes/create", "[", 400),
        ("GET", "/volumes/none", "", 404),
        ("GET", "/volumes/..%2Fworkloads", "", 404),
        ("DELETE", "/volumes/none", "", 404),
        ("DELETE", "/volumes/none?force=1", "", 204),
        ("DELETE", "/volumes/..%2Fworkloads?force=1", "", 204),
        ("GET", "/volumes?filters=%7B%22fly%22%3A%5B%22x%22%5D%7D", "", 400),
        ("GET", "/volumes?filters=%7B%22dangling%22%3A%5B%22x%22%5D%7D", "", 400),
    ] {
        let (found, answer) = server.ask(method, path, body);
        assert_eq!(found, status, "{method} {path}: {answer}");
    }
    assert!(server.place.dir.path().join("store/workloads").is_dir());
    assert!(listed(&server.place, &[]).is_empty());
}

#[test]
fn a_full_volume_is_a_full_disk_in_the_guest_and_a_folder_that_goes_is_no_crash() {
    for place in Place::each() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root mounts a small file system");
            return;
        }
        let small = place.dir.path().join("small");
        std::fs::create_dir(&small).unwrap();
        let mut mount = std::process::Command::new("mount");
        assert_eq!(
            finish({
                mount.args(["-t", "tmpfs", "-o", "size=1m", "small"]).arg(&small);
                mount
            })
            .code(),
            0
        );
        let device = format!("device={}", small.display());
        place.strata(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "small"]);
        let script = "head -c 2000000 /dev/zero >/v/file 2>/tmp/e; grep -o 'No space left' /tmp/e; rm /v/file; \
                      mkdir /v/gone; cd /v/gone; echo ready; read line; \
                      cat /v/gone/x 2>&1 | grep -o 'No such file'; touch /v/after && echo goes on";
        let run = [
            "run",
            "-i",
            "--isolation",
            place.isolation,
            "-v",
            "small:/v",
            "debian",
            "--",
            "sh",
            "-c",
            script,
        ];
        let mut command = place.command(&run);
        command.stdin(std::process::Stdio::piped());
        let mut running = start(command);
        running.wait_for("ready");
        std::fs::remove_dir(small.join("gone")).unwrap();
        running.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let ended = running.finish();
        assert_eq!(
            ended.stdout, "No space left\nready\nNo such file\ngoes on\n",
            "{}: {ended:?}",
            place.isolation
        );
        assert!(small.join("after").exists());
        let mut unmount = std::process::Command::new("umount");
        assert_eq!(
            finish({
                unmount.arg(&small);
                unmount
            })
            .code(),
            0
        );
    }
}

#[test]
fn a_machine_whose_server_of_folders_is_killed_goes_on_without_them() {
    let Some(place) = Place::new() else { return };
    let script = "echo up; read line; cat /v/file 2>&1 | tail -n1; echo alive";
    std::fs::write(place.dir.path().join("file"), "x").unwrap();
    let volume = format!("{}:/v", place.dir.path().display());
    let mut command = place.command(&["run", "-i", "-v", &volume, "debian", "--", "sh", "-c", script]);
    command.stdin(std::process::Stdio::piped());
    let mut running = start(command);
    running.wait_for("up");
    let ours = running.child.id().to_string();
    let children = std::fs::read_to_string(format!("/proc/{ours}/task/{ours}/children")).unwrap();
    let server = children.split_whitespace().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("serve-folders")
    });
    let server: i32 = server.unwrap_or_else(|| panic!("no server among {children:?}")).parse().unwrap();
    let server = rustix::process::Pid::from_raw(server).unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    running.child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let ended = running.finish();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stdout.contains("not connected") && ended.stdout.ends_with("alive\n"), "{ended:?}");
    assert!(ended.stderr.contains("server of the machine's folders has ended"), "{ended:?}");
}

#[test]
fn a_machine_with_volumes_is_neither_saved_nor_forked_and_says_so() {
    let Some(place) = Place::new() else { return };
    place.start(&["--name", "web", "-v", "v:/v"], "sleep 1000");
    let to = place.dir.path().join("saved");
    let ended = place.try_to(&["snapshot", "web", to.to_str().unwrap()]);
    ended.expect_failure(125, &["folders of this host"]);
    assert!(!to.exists());
    place.try_to(&["fork", "web"]).expect_failure(125, &["folders of this host"]);
    assert_eq!(place.state("web")["status"], "running", "it goes on");
    let (bytes, _) = feed(place.command(&["exec", "-i", "web", "--", "cat"]), b"x".to_vec());
    assert_eq!(bytes, b"x");
}
