//! `config-linux.md`, `namespaces`, id mappings, clocks; `config.md`, host and domain name.

use serde_json::json;

use crate::support::bundle::Bundle;

/// Name in the specification and under `/proc/PID/ns`.
const KINDS: [(&str, &str); 8] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("time", "time"),
];

fn of(pid: impl std::fmt::Display, name: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().to_string_lossy().into_owned()
}

const FOREVER: &str = "while :; do sleep 0.05; done";

/// Ids of root inside are these outside; what has to be theirs is.
fn map_ids(bundle: &mut Bundle) {
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.folder.path(), open).unwrap();
    for folder in ["", "proc", "sys", "dev"] {
        let folder = bundle.rootfs().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(100_000), Some(200_000)).unwrap();
    }
    let map = |host: u32| {
        json!([{ "containerID": 0, "hostID": host, "size": 1000 },
               { "containerID": 5000, "hostID": host + 5000, "size": 1 }])
    };
    bundle.config["linux"]["uidMappings"] = map(100_000);
    bundle.config["linux"]["gidMappings"] = map(200_000);
}

#[test]
fn a_namespace_is_new_if_listed_and_the_runtimes_if_not() {
    let Some(mut bundle) = Bundle::new(FOREVER) else { return };
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
    map_ids(&mut bundle);
    let container = bundle.create(&[]);
    container.start();
    let pid = container.state()["pid"].as_i64().unwrap();
    for (kind, name) in KINDS {
        assert_ne!(of(pid, name), of("self", name), "{kind}");
    }
    drop(container);
    for (kind, name) in
        KINDS.into_iter().filter(|row| !matches!(row.0, "mount" | "user" | "time" | "network"))
    {
        let Some(mut bundle) = Bundle::new(FOREVER) else { return };
        bundle.without_namespace(kind);
        let container = bundle.create(&[]);
        let pid = container.state()["pid"].as_i64().unwrap();
        assert_eq!(of(pid, name), of("self", name), "{kind}");
    }
}

#[test]
fn a_namespace_is_joined_by_its_path() {
    let Some(first) = Bundle::new(FOREVER) else { return };
    let first = first;
    let holder = first.create(&[]);
    holder.start();
    let pid = holder.state()["pid"].as_i64().unwrap();
    let joinable = ["network", "ipc", "uts", "pid", "cgroup"];
    let Some(mut bundle) = Bundle::new(FOREVER) else { return };
    bundle.without_namespace("uts");
    for kind in joinable {
        bundle.without_namespace(kind);
        let name = KINDS.iter().find(|row| row.0 == kind).unwrap().1;
        let entry = json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") });
        bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(entry);
    }
    let joined = bundle.create(&[]);
    let own = joined.state()["pid"].as_i64().unwrap();
    for (kind, name) in KINDS.into_iter().filter(|row| joinable.contains(&row.0)) {
        assert_eq!(of(own, name), of(pid, name), "{kind}");
        assert_ne!(of(own, name), of("self", name), "{kind}");
    }
    assert_ne!(of(own, "mnt"), of(pid, "mnt"));
    joined.start();
    // It is a process of the other's.
    assert_eq!(
        bundle.good(&["exec", &joined.id, "sh", "-c", "readlink /proc/1/ns/pid"]).trim(),
        of(pid, "pid")
    );
}

#[test]
fn paths_that_are_no_such_namespace_are_refused() {
    let Some(bundle) = Bundle::new("true") else { return };
    let config = bundle.config.clone();
    let mut bundle = bundle;
    for (path, words) in [
        // Of another kind, no namespace at all, not there.
        ("/proc/self/ns/uts", ["namespace"]),
        ("/etc/hostname", ["namespace"]),
        ("/gone", ["/gone"]),
        ("relative", ["relative"]),
    ] {
        bundle.config = config.clone();
        bundle.without_namespace("network");
        let entry = json!({ "type": "network", "path": path });
        bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(entry);
        bundle.refused(&words);
    }
    bundle.config = config;
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "pid" }));
    bundle.refused(&["pid", "twice"]);
}

#[test]
fn names_are_those_given_and_need_a_namespace() {
    let Some(mut bundle) = Bundle::new("hostname; cat /proc/sys/kernel/domainname") else { return };
    bundle.config["hostname"] = json!("some-host");
    bundle.config["domainname"] = json!("some.domain");
    assert_eq!(bundle.output(), "some-host\nsome.domain\n");
    for field in ["hostname", "domainname"] {
        let Some(mut bundle) = Bundle::new("true") else { return };
        bundle.without_namespace("uts");
        bundle.config[field] = json!("x");
        bundle.refused(&[field, "uts"]);
        let Some(mut bundle) = Bundle::new("true") else { return };
        bundle.config[field] = json!("x".repeat(65));
        bundle.refused(&["name"]);
    }
}

#[test]
fn ids_are_mapped_as_given() {
    let Some(mut bundle) = Bundle::new(
        "cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /f; stat -c '%u %g' /bin/busybox /f",
    ) else {
        return;
    };
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    bundle.config["root"]["readonly"] = json!(false);
    map_ids(&mut bundle);
    let output = bundle.output();
    let numbers: Vec<Vec<&str>> = output.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(numbers[..2], [["0", "100000", "1000"], ["5000", "105000", "1"]]);
    assert_eq!(numbers[2..4], [["0", "200000", "1000"], ["5000", "205000", "1"]]);
    assert_eq!(numbers[4..], [vec!["0"], vec!["65534", "65534"], vec!["0", "0"]]);
    use std::os::unix::fs::MetadataExt;
    let made = bundle.rootfs().join("f").metadata().unwrap();
    assert_eq!((made.uid(), made.gid()), (100_000, 200_000));
    // A user that is mapped, and one that is not.
    bundle.config["process"]["args"] = json!(["/bin/id", "-u"]);
    bundle.config["process"]["user"] = json!({ "uid": 5000, "gid": 5000 });
    assert_eq!(bundle.output(), "5000\n");
    bundle.config["process"]["user"] = json!({ "uid": 5001, "gid": 0 });
    bundle.refused(&["5001"]);
    bundle.config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    bundle.config["linux"]["gidMappings"] = json!([]);
    bundle.refused(&["gidMappings"]);
}

#[test]
fn mappings_need_a_user_namespace() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    bundle.config["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    bundle.config["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    bundle.refused(&["Mappings", "user namespace"]);
}

#[test]
fn clocks_are_set_off() {
    let Some(mut bundle) = Bundle::new("cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets") else {
        return;
    };
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000, "nanosecs": 0 }, "monotonic": { "secs": 5, "nanosecs": 6 } });
    bundle.refused(&["timeOffsets", "time namespace"]);
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
    let output = bundle.output();
    let uptime: u64 = output.lines().next().unwrap().parse().unwrap();
    assert!(uptime >= 1_000_000, "{output}");
    let rows: Vec<Vec<&str>> = output.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows, [["monotonic", "5", "6"], ["boottime", "1000000", "0"]]);
    bundle.config["linux"]["timeOffsets"] = json!({ "realtime": { "secs": 1, "nanosecs": 0 } });
    bundle.refused(&["realtime"]);
}

#[test]
fn the_network_namespace_has_a_loopback_that_is_up() {
    let Some(bundle) =
        Bundle::new("cat /sys/class/net/lo/operstate /proc/net/dev | grep -c lo; cat /proc/net/fib_trie")
    else {
        return;
    };
    assert!(bundle.output().contains("127.0.0.1"));
}
