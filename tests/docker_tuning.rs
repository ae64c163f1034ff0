//! What docker's client asks of the kernel for a container: parameters, devices, shared memory, name spaces of the host, names.

use crate::docker::{Server, refused};

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

    for flags in
        [["--shm-size", "2m"], ["--add-host", "a:10.0.0.1"], ["--pid", "host"], ["--cpu-shares", "5"]]
    {
        let all = [&["run", "--rm", "--runtime", "strata-vm"][..], &flags, &["debian", "true"]].concat();
        refused(&server.try_to(&all), 125, "a microVM has a kernel of its own");
    }
    let log = ["run", "--rm", "--log-driver", "syslog", "debian", "true"];
    refused(&server.try_to(&log), 125, "not syslog");
    refused(&server.try_to(&["run", "--rm", "--device", "/no/such", "debian", "true"]), 125, "/no/such");
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
