//! Limits, lists and variables through the Docker Engine API, and clients that do not behave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::docker::{RUNTIMES, Server, refused};

#[test]
fn limits_change_while_a_container_runs() {
    let Some(server) = Server::with_client() else { return };
    server.docker(&["run", "-d", "--name", "web", "--memory", "256m", "debian", "sleep", "1000"]);
    let update = [
        "update",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "40",
        "--restart",
        "on-failure:2",
        "web",
    ];
    server.docker(&update);
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes \
                  /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null";
    let told = server.try_to(&["exec", "web", "sh", "-c", script]).stdout;
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.contains(&"67108864") && lines.contains(&"40"), "{told}");
    let shape = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} \
                 {{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(server.docker(&["inspect", "-f", shape, "web"]), "67108864 500000000 40 on-failure:2\n");
    // The policy counts from now on, and the other limits at the next start too.
    server.docker(&["kill", "-s", "KILL", "web"]);
    server.docker(&["wait", "web"]);
    server.docker(&["start", "web"]);
    assert_eq!(server.try_to(&["exec", "web", "sh", "-c", script]).stdout, told);
    server.place.strata(&["update", "--memory", "128M", "web"]);
    assert_eq!(server.docker(&["inspect", "-f", "{{.HostConfig.Memory}}", "web"]), "134217728\n");
    let update = [
        "update",
        "--cpuset-cpus",
        "0",
        "--cpu-shares",
        "77",
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "10000",
    ];
    server.docker(&[&update[..], &["--memory-reservation", "32m", "web"]].concat());
    let script = "grep Cpus_allowed_list /proc/self/status; cd /sys/fs/cgroup; cat cpu/cpu.shares cpu/cpu.cfs_quota_us \
                  memory/memory.soft_limit_in_bytes 2>/dev/null || cat cpu.max memory.low";
    let told = server.docker(&["exec", "web", "sh", "-c", script]);
    assert!(told.starts_with("Cpus_allowed_list:\t0\n") && told.ends_with("\n33554432\n"), "{told}");
    assert!(told.contains("77\n20000\n") || told.contains("20000 100000\n"), "{told}");
    let shape = "{{.HostConfig.CpusetCpus}} {{.HostConfig.CpuShares}} {{.HostConfig.CpuQuota}} {{.HostConfig.CpuPeriod}} \
                 {{.HostConfig.NanoCpus}}";
    assert_eq!(server.docker(&["inspect", "-f", shape, "web"]), "0 77 10000 50000 0\n");
    refused(&server.try_to(&["update", "--cpu-rt-period", "5", "web"]), 1, "CpuRealtimePeriod");
    refused(&server.try_to(&["update", "--blkio-weight", "5", "web"]), 1, "from 10 to 1000");
    server.place.try_to(&["update", "web"]).expect_failure(2, &["what is to be changed"]);
    server.docker(&["rm", "-f", "web"]);
}

#[test]
fn a_machine_has_its_memory_for_as_long_as_it_runs() {
    let Some(server) = Server::with_client() else { return };
    let run = ["run", "-d", "--name", "vm", "--runtime", "strata-vm", "debian", "sleep", "1000"];
    server.docker(&run);
    refused(&server.try_to(&["update", "--memory", "256m", "vm"]), 1, "a machine has the memory");
    server.docker(&["update", "--restart", "always", "vm"]);
    assert_eq!(server.docker(&["inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", "vm"]), "always\n");
    server.docker(&["stop", "-t", "0", "vm"]);
    server.docker(&["update", "--memory", "384m", "vm"]);
    server.docker(&["start", "vm"]);
    let total = server.docker(&["exec", "vm", "sh", "-c", "grep MemTotal /proc/meminfo | tr -dc 0-9"]);
    let total: u64 = total.trim().parse().unwrap();
    assert!((256 << 10..384 << 10).contains(&total), "{total} KiB");
    server.docker(&["rm", "-f", "vm"]);
}

#[test]
fn processes_and_variables_are_the_workloads_own() {
    let Some(server) = Server::with_client() else { return };
    let context = tempfile::tempdir().unwrap();
    std::fs::write(context.path().join("Dockerfile"), "FROM debian\nENV FROM_IMAGE=1 KEPT=2\n").unwrap();
    server.docker(&["build", "-q", "-t", "with-env", context.path().to_str().unwrap()]);
    for runtime in RUNTIMES {
        // A name that has no value where the client is takes the image's away.
        let run = ["run", "--rm", "--runtime", runtime, "-e", "FROM_IMAGE", "-e", "GIVEN", "with-env", "env"];
        let mut command = server.command(&run);
        let told = crate::support::finish({
            command.env("GIVEN", "here").env_remove("FROM_IMAGE");
            command
        });
        let has = |line: &str| told.stdout.lines().any(|other| other == line);
        assert!(has("KEPT=2") && has("GIVEN=here"), "{runtime}: {told:?}");
        assert!(!told.stdout.contains("FROM_IMAGE"), "{runtime}: {told:?}");

        // No program of the image has a part in it.
        let script = "rm -f /bin/ps /usr/bin/ps; exec sleep 1234";
        server.docker(&["run", "-d", "--name", "web", "--runtime", runtime, "debian", "sh", "-c", script]);
        let listed = || server.docker(&["top", "web"]);
        server.place.wait_for("its process", || listed().contains("sleep 1234"));
        assert!(listed().starts_with("UID "), "{runtime}: {}", listed());
        assert!(server.place.strata(&["top", "web"]).contains("sleep 1234"), "{runtime}");
        server.docker(&["rm", "-f", "web"]);
    }
    let init = ["run", "--rm", "--init", "--runtime", "strata-vm", "debian", "true"];
    server.docker(&init);
}

#[test]
fn sizes_and_ages_are_told() {
    let Some(server) = Server::with_client() else { return };
    server.docker(&["run", "--name", "web", "debian", "sh", "-c", "head -c 3000000 /dev/zero > /file"]);
    let shape = "{{.SizeRw}} {{gt .SizeRootFs .SizeRw}}";
    assert_eq!(server.docker(&["inspect", "-s", "-f", shape, "web"]), "3000000 true\n");
    assert!(server.docker(&["ps", "-as", "--format", "{{.Size}}"]).starts_with("3MB (virtual "));
    assert!(server.docker(&["system", "df", "-v"]).contains("3MB"));
    server.docker(&["tag", "debian", "other:1"]);
    for (filter, count) in [
        ("until=24h", None),
        ("before=debian", Some(0)),
        ("since=debian", Some(0)),
        ("reference=oth*", Some(1)),
    ] {
        let listed = server.docker(&["images", "-q", "--filter", filter]);
        assert!(count.is_none_or(|count| listed.lines().count() == count), "{filter}: {listed}");
    }
    refused(&server.try_to(&["images", "--filter", "until=soon"]), 1, "invalid filter");
}

/// A request that never ends: its head, and what has come of its body.
fn half(server: &Server, method: &str, path: &str, body: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}

#[test]
fn clients_that_go_in_the_middle_leave_nothing_behind() {
    let Some(server) = Server::start() else { return };
    for isolation in ["container", "vm"] {
        let run = ["run", "-d", "--name", "web", "--isolation", isolation, "debian", "--", "sh", "-c"];
        let script = "while :; do echo line; sleep 0.05; done";
        server.place.strata(&[&run[..], &[script]].concat());
        // An archive that stops in the middle is no archive: what came of it may be there, no more.
        let mut header = [0u8; 512];
        header[..4].copy_from_slice(b"file");
        drop(half(&server, "PUT", "/containers/web/archive?path=/", &header));
        drop(half(&server, "PUT", "/containers/web/archive?path=/", b""));
        drop(half(&server, "POST", "/build", b"x"));
        drop(half(&server, "POST", "/images/load", b"x"));
        drop(half(&server, "POST", "/images/create?fromSrc=-&repo=x", b"x"));
        let mut read = UnixStream::connect(server.socket()).unwrap();
        read.write_all(b"GET /containers/web/archive?path=/usr HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut some = [0; 4096];
        read.read_exact(&mut some).unwrap();
        assert!(some.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&some[..200]));
        drop(read);
        let mut attached = UnixStream::connect(server.socket()).unwrap();
        let attach = "POST /containers/web/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n";
        attached.write_all(attach.as_bytes()).unwrap();
        attached.read_exact(&mut some[..12]).unwrap();
        assert_eq!(&some[..12], b"HTTP/1.1 101");
        drop(attached);
        // The workload goes on as if nobody had been there, and no child of the server is left.
        let state: Value = serde_json::from_str(&server.ask("GET", "/containers/web/json", "").1).unwrap();
        assert_eq!(state["State"]["Status"], "running", "{isolation}");
        let children = || {
            let pid = server.pid();
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
        };
        server.place.wait_for("the end of the children", || {
            children().split_whitespace().all(|child| {
                let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                !line.windows(5).any(|word| word == b"files")
            })
        });
        let names = || std::fs::read_dir(server.place.dir.path().join("store")).unwrap().flatten();
        server.place.wait_for("the end of what clients left", || {
            names().all(|entry| !entry.file_name().to_string_lossy().starts_with(".upload-"))
        });
        server.place.strata(&["rm", "-f", "web"]);
    }
}

#[test]
fn a_client_that_is_slow_holds_up_nobody() {
    let Some(server) = Server::start() else { return };
    let mut slow: Vec<UnixStream> = Vec::new();
    for number in 0..200 {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        let piece = if number % 2 == 0 {
            "GET /_pi"
        } else {
            "POST /containers/create HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"
        };
        stream.write_all(piece.as_bytes()).unwrap();
        slow.push(stream);
    }
    assert_eq!(server.ask("GET", "/_ping", "").1, "OK");
    // Whoever never ends a head is sent away; who says something in time is served.
    slow[0].write_all(b"ng HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    slow[0].read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    slow[2].set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let mut rest = Vec::new();
    slow[2].read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
}

#[test]
fn clients_without_number_that_ask_nothing_make_room() {
    const POST: &str =
        "POST /containers/create HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    let Some(server) = Server::start() else { return };
    // More than a server talks to at once, and than a process may have files.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let mut slow: Vec<UnixStream> = Vec::new();
    for number in 0..1300 {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        let piece = ["GET /_pi", POST][number % 2];
        // It may have been sent away already.
        let _ = stream.write_all(piece.as_bytes());
        slow.push(stream);
    }
    assert_eq!(server.ask("GET", "/_ping", "").1, "OK");
    // It is those who came first that went, and not all.
    let gone = |stream: &mut UnixStream| {
        stream.set_nonblocking(true).unwrap();
        !matches!(stream.read(&mut [0; 512]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let gone: Vec<bool> = slow.iter_mut().map(gone).collect();
    let count = |of: &[bool]| of.iter().filter(|gone| **gone).count();
    assert_eq!((count(&gone[..200]), count(&gone[600..])), (200, 0));
}

#[test]
fn states_that_cannot_be_get_dockers_status() {
    let Some(server) = Server::start() else { return };
    let create = |name: &str, body: &str| {
        assert_eq!(server.ask("POST", &format!("/containers/create?name={name}"), body).0, 201, "{name}");
    };
    create("idle", "{\"Image\":\"debian\",\"Cmd\":[\"sleep\",\"1000\"]}");
    create("up", "{\"Image\":\"debian\",\"Cmd\":[\"sleep\",\"1000\"]}");
    assert_eq!(server.ask("POST", "/containers/up/start", "").0, 204);
    for (method, path, body, status) in [
        ("POST", "/containers/up/start", "", 304),
        ("POST", "/containers/idle/stop", "", 304),
        ("POST", "/containers/idle/kill", "", 409),
        ("POST", "/containers/up/kill?signal=NONE", "", 400),
        ("POST", "/containers/idle/pause", "", 409),
        ("POST", "/containers/up/unpause", "", 409),
        ("POST", "/containers/idle/resize?h=1&w=1", "", 409),
        ("GET", "/containers/idle/top", "", 409),
        ("POST", "/containers/idle/exec", "{\"Cmd\":[\"true\"]}", 409),
        ("POST", "/containers/up/exec", "{\"Cmd\":[]}", 400),
        ("POST", "/containers/idle/rename?name=up", "", 409),
        ("POST", "/containers/idle/rename", "", 400),
        ("DELETE", "/containers/up", "", 409),
        ("POST", "/containers/up/update", "{\"Memory\":-1}", 400),
        ("POST", "/containers/up/update", "{\"Memory\":\"x\"}", 400),
        ("POST", "/containers/up/update", "[]", 400),
        ("POST", "/containers/none/update", "{}", 404),
        ("POST", "/commit?container=up&changes=RUN+true", "", 400),
        ("POST", "/commit?container=up&repo=Not+A+Name", "", 400),
        ("POST", "/commit?container=up", "[]", 400),
        ("GET", "/containers/up/archive?path=/none", "", 404),
        ("GET", "/containers/up/archive?path=/etc/passwd/x", "", 400),
        ("PUT", "/containers/up/archive?path=/none", "", 404),
    ] {
        let (found, answer) = server.ask(method, path, body);
        assert_eq!(found, status, "{method} {path} {body}: {answer}");
    }
    for name in ["up", "idle"] {
        assert_eq!(server.ask("DELETE", &format!("/containers/{name}?force=1"), "").0, 204);
    }
}

#[test]
fn disks_of_the_host_are_limited_by_name_and_for_containers_alone() {
    let Some(server) = Server::with_client() else { return };
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut disks = disks.map(|disk| format!("/dev/{}", disk.file_name().to_string_lossy()));
    let Some(disk) = disks.find(|disk| std::path::Path::new(disk).exists()) else {
        return println!("skipped: this host has no disk");
    };
    let rate = format!("{disk}:3mb");
    let script =
        "cat /sys/fs/cgroup/io.max /sys/fs/cgroup/blkio/blkio.throttle.read_bps_device 2>/dev/null; true";
    let ended = server.try_to(&["run", "--rm", "--device-read-bps", &rate, "debian", "sh", "-c", script]);
    if ended.code() == 0 {
        assert!(ended.stdout.contains("3145728"), "{ended:?}");
    } else {
        refused(&ended, 125, "limit of blkio");
    }
    let none = ["run", "--rm", "--device-write-iops", "/dev/null:10", "debian", "true"];
    refused(&server.try_to(&none), 125, "it is no block device");
    let vm = ["run", "--rm", "--runtime", "strata-vm", "--device-read-bps", &rate, "debian", "true"];
    refused(&server.try_to(&vm), 125, "a microVM has no disk of this host");
}

#[test]
fn each_end_of_what_is_started_again_is_one_to_wait_for() {
    let Some(server) = Server::with_client() else { return };
    let again = ["--name", "again", "--restart", "always", "debian", "sh", "-c", "sleep 1; exit 3"];
    server.docker(&[&["run", "-d"], &again[..]].concat());
    for _ in 0..2 {
        assert_eq!(server.docker(&["wait", "again"]), "3\n");
    }
    server.docker(&["rm", "-f", "again"]);
    // Whoever is attached is so until the first end.
    let ended =
        server.try_to(&["run", "--restart", "on-failure:3", "debian", "sh", "-c", "echo out; exit 4"]);
    assert_eq!((ended.code(), &*ended.stdout), (4, "out\n"), "{ended:?}");
}
