//! What docker's client asks of the kernel for a container: parameters, devices, shared memory, name spaces of the host, names.

use crate::docker::{RUNTIMES, Server, refused};

fn run(server: &Server, flags: &[&str], script: &str) -> String {
    server.docker(&[&["run", "--rm"], flags, &["debian", "sh", "-c", script]].concat())
}

#[test]
fn a_container_has_of_the_kernel_what_the_client_asks_for() {
    let Some(server) = Server::with_client() else { return };
    let said = |flags: &[&str], script: &str| run(&server, flags, script);
    assert_eq!(said(&["--shm-size", "2m"], "df -k /dev/shm | tail -1 | awk '{print $2}'"), "2048\n");
    assert_eq!(
        said(&["--sysctl", "net.ipv4.ip_default_ttl=77"], "cat /proc/sys/net/ipv4/ip_default_ttl"),
        "77\n"
    );
    assert_eq!(said(&["--oom-score-adj", "77"], "cat /proc/self/oom_score_adj"), "77\n");
    assert!(said(&["--group-add", "27", "-u", "33"], "id -G").split_whitespace().any(|group| group == "27"));
    // One that no container has by itself.
    let device = ["--device", "/dev/loop-control:/dev/mine:r"];
    let script = ": < /dev/mine && echo read; (: > /dev/mine) 2>/dev/null || echo refused";
    assert_eq!(said(&device, script), "read\nrefused\n");
    assert_eq!(
        said(&["--add-host", "far.test:192.0.2.9"], "getent hosts far.test").split(' ').next(),
        Some("192.0.2.9")
    );
    assert_eq!(
        said(&["--cpuset-cpus", "0"], "grep Cpus_allowed_list /proc/self/status"),
        "Cpus_allowed_list:\t0\n"
    );
    for (flag, kind) in [("--pid", "pid"), ("--ipc", "ipc"), ("--uts", "uts")] {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let script = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(said(&[flag, "host"], &script).trim(), own.to_str().unwrap(), "{flag}");
        assert_ne!(said(&[], &script).trim(), own.to_str().unwrap(), "{flag}");
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(said(&["--uts", "host"], "uname -n").trim(), name);

    assert!(said(&["--group-add", "audio", "-u", "33"], "id -Gn").contains("audio"));
    let nobody = ["run", "--rm", "--group-add", "no-such", "debian", "true"];
    refused(&server.try_to(&nobody), 125, "no-such");
    for flags in [["--shm-size", "2m"], ["--pid", "host"], ["--cpu-shares", "5"]] {
        let all = [&["run", "--rm", "--runtime", "strata-vm"][..], &flags, &["debian", "true"]].concat();
        refused(&server.try_to(&all), 125, "a microVM has a kernel of its own");
    }
    let log = ["run", "--rm", "--log-driver", "syslog", "debian", "true"];
    refused(&server.try_to(&log), 125, "not syslog");
    // What cannot be is told when it is made, not by a start.
    refused(&server.try_to(&["create", "--device", "/no/such", "debian", "true"]), 1, "/no/such");
    refused(&server.try_to(&["create", "--cap-add", "no_such", "debian", "true"]), 1, "CAP_NO_SUCH");
}

#[test]
fn whom_to_ask_for_names_is_the_clients_to_say_on_any_network() {
    let Some(server) = Server::with_client() else { return };
    let asks = ["--dns", "192.0.2.53", "--dns-search", "a.test", "--dns-option", "ndots:3"];
    let said = |flags: &[&str], script: &str| run(&server, &[&asks[..], flags].concat(), script);
    let own = "nameserver 192.0.2.53\nsearch a.test\noptions ndots:3\n";
    for runtime in RUNTIMES {
        let flags = ["--runtime", runtime, "--mac-address", "02:42:ac:11:00:07"];
        let script = "cat /etc/resolv.conf /sys/class/net/eth0/address";
        assert_eq!(said(&flags, script), format!("{own}02:42:ac:11:00:07\n"), "{runtime}");
    }
    for network in ["host", "none"] {
        assert_eq!(said(&["--network", network], "cat /etc/resolv.conf"), own, "{network}");
    }
}

#[test]
fn names_are_added_to_those_of_a_network_and_all_exposed_ports_are_published() {
    let Some(server) = Server::with_client() else { return };
    let network = format!("tuned-{}", std::process::id());
    server.docker(&["network", "create", &network]);
    let flags = ["--network", &network, "--add-host", "far:192.0.2.9", "--add-host", "up:host-gateway"];
    let found = run(&server, &flags, "getent hosts far up | awk '{print $1}'");
    let gateway =
        server.docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", &network]);
    assert_eq!(found, format!("192.0.2.9\n{gateway}"));
    server.docker(&[
        "run", "-d", "--name", "all", "-P", "--expose", "80", "--expose", "53/udp", "debian", "sleep", "1000",
    ]);
    let ports = server.docker(&["port", "all"]);
    assert!(ports.contains("80/tcp -> 0.0.0.0:") && ports.contains("53/udp -> 0.0.0.0:"), "{ports}");
    server.docker(&["rm", "-f", "all"]);
    server.docker(&["network", "rm", &network]);
}

#[test]
fn the_first_process_takes_those_that_nobody_waits_for_and_hands_signals_on() {
    let Some(server) = Server::with_client() else { return };
    // A process whose parent ends is the first one's; without an init the shell that is first never waits for it.
    let script = "sh -c 'sleep 0.2 & exit'; sleep 1; cat /proc/[0-9]*/stat | grep -c ') Z '; tr '\\0' ' ' < /proc/1/cmdline";
    let said = run(&server, &["--init"], script);
    assert!(said.starts_with("0\ninit reap "), "{said}");
    for runtime in ["strata", "strata-vm"] {
        let run = ["run", "-d", "--name", "trap", "--init", "--runtime", runtime, "debian", "sh", "-c"];
        let script = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
        server.docker(&[&run[..], &[script]].concat());
        while !server.docker(&["logs", "trap"]).contains("ready") {}
        server.docker(&["stop", "-t", "60", "trap"]);
        assert_eq!(server.docker(&["wait", "trap"]), "7\n", "{runtime}");
        assert_eq!(server.docker(&["logs", "trap"]), "ready\nasked\n", "{runtime}");
        assert_eq!(server.docker(&["inspect", "-f", "{{.HostConfig.Init}}", "trap"]), "true\n");
        server.docker(&["rm", "trap"]);
    }
    let failed = server.try_to(&["run", "--rm", "--init", "debian", "no-such"]);
    refused(&failed, 127, "executable file not found");
    assert_eq!(server.try_to(&["run", "--rm", "--init", "debian", "sh", "-c", "kill -9 $$"]).code(), 137);
    // It can neither be written to nor is it the host's.
    let script = "echo x 2>/dev/null > /proc/1/exe && echo written; readlink /proc/1/exe";
    let said = run(&server, &["--init", "--privileged"], script);
    assert!(said.contains("memfd") && !said.contains("written"), "{said}");
}

#[test]
fn containers_share_processes_and_memory_as_far_as_they_say() {
    let Some(server) = Server::with_client() else { return };
    let start =
        ["run", "-d", "--name", "one", "--ipc", "shareable", "--shm-size", "3m", "debian", "sh", "-c"];
    server.docker(&[&start[..], &["echo mine > /dev/shm/file; exec sleep 1001"]].concat());
    let said = |flags: &[&str], script: &str| run(&server, flags, script);
    assert!(
        said(&["--pid", "container:one"], "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").contains("sleep 1001")
    );
    let script = "cat /dev/shm/file; df -k /dev/shm | tail -1 | awk '{print $2}'; readlink /proc/self/ns/ipc";
    let theirs = server.docker(&["exec", "one", "readlink", "/proc/self/ns/ipc"]);
    assert_eq!(said(&["--ipc", "container:one"], script), format!("mine\n3072\n{theirs}"));
    assert_eq!(said(&["--ipc", "none"], "grep -c ' /dev/shm ' /proc/mounts || true"), "0\n");
    server.docker(&["run", "-d", "--name", "two", "debian", "sleep", "1000"]);
    let joins = ["run", "--rm", "--ipc", "container:two", "debian", "true"];
    refused(&server.try_to(&joins), 125, "non-shareable IPC");
    server.docker(&["stop", "-t", "0", "two"]);
    let joins = ["run", "--rm", "--pid", "container:two", "debian", "true"];
    refused(&server.try_to(&joins), 125, "non running container");
    refused(
        &server.try_to(&["run", "--rm", "--pid", "container:none", "debian", "true"]),
        125,
        "No such container: none",
    );
    server.docker(&["rm", "-f", "one", "two"]);
}

#[test]
fn machines_and_those_on_networks_know_the_names_they_are_told() {
    let Some(server) = Server::with_client() else { return };
    let vm = [
        "run",
        "--rm",
        "--runtime",
        "strata-vm",
        "--add-host",
        "far.test:192.0.2.9",
        "debian",
        "getent",
        "hosts",
        "far.test",
    ];
    assert_eq!(server.docker(&vm).split(' ').next(), Some("192.0.2.9"));
    let network = format!("links-{}", std::process::id());
    server.docker(&["network", "create", "-o", "com.docker.network.bridge.name=strata-links", &network]);
    assert!(std::path::Path::new("/sys/class/net/strata-links").exists());
    let taken = ["network", "create", "-o", "com.docker.network.bridge.name=lo", "other"];
    refused(&server.try_to(&taken), 1, "an interface lo already");
    server.docker(&["run", "-d", "--name", "db", "--network", &network, "debian", "sleep", "1000"]);
    let address =
        server.docker(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "db"]);
    for runtime in ["strata", "strata-vm"] {
        let flags = ["--runtime", runtime, "--network", &network, "--link", "db:store"];
        assert_eq!(run(&server, &flags, "getent hosts store | awk '{print $1}'"), address, "{runtime}");
        // Nobody else calls it so.
        assert_eq!(run(&server, &flags[..4], "getent hosts store || echo none"), "none\n", "{runtime}");
    }
    refused(&server.try_to(&["run", "--rm", "--link", "db", "debian", "true"]), 125, "networks with a name");
    server.docker(&["rm", "-f", "db"]);
    server.docker(&["network", "rm", &network]);
    assert!(!std::path::Path::new("/sys/class/net/strata-links").exists());
}

#[test]
fn output_that_nobody_keeps_and_processes_as_ps_shows_them() {
    let Some(server) = Server::with_client() else { return };
    let start = [
        "run",
        "-d",
        "--name",
        "quiet",
        "--log-driver",
        "none",
        "debian",
        "sh",
        "-c",
        "echo x; exec sleep 1002",
    ];
    server.docker(&start);
    refused(&server.try_to(&["logs", "quiet"]), 1, "does not support reading");
    assert_eq!(server.docker(&["inspect", "-f", "{{.HostConfig.LogConfig.Type}}", "quiet"]), "none\n");
    for arguments in [&[][..], &["aux"], &["-eo", "pid,args"]] {
        let said = server.docker(&[&["top", "quiet"], arguments].concat());
        assert!(said.lines().count() == 2 && said.contains("sleep 1002") && said.contains("PID"), "{said}");
    }
    refused(&server.try_to(&["top", "quiet", "-o", "args"]), 1, "PID field");
    server.docker(&["rm", "-f", "quiet"]);
    let shown = server.docker(&["run", "--rm", "--log-driver", "none", "debian", "echo", "seen"]);
    assert_eq!(shown, "seen\n");
}
