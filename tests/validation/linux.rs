//! `config-linux.md`: devices, kernel parameters, execution domain, and what this runtime refuses to pass over.

use serde_json::{Value, json};

use crate::support::bundle::Bundle;

#[test]
fn the_default_devices_are_there() {
    let script = "for d in null zero full random urandom tty; do stat -c '%F %t:%T %a %u:%g' /dev/$d; done; \
                  for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; \
                  echo x > /dev/null; head -c 2 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
                  echo x > /dev/full || echo full";
    let Some(bundle) = Bundle::new(script) else { return };
    let numbers = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"];
    let devices: String = numbers.iter().map(|n| format!("character special file {n} 666 0:0\n")).collect();
    let links = "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    assert_eq!(bundle.output(), format!("{devices}{links}2\n3\nfull\n"));
}

#[test]
fn further_devices_are_made() {
    let Some(mut bundle) = Bundle::new("stat -c '%n %F %t:%T %a %u:%g' /dev/some /dev/deep/block /dev/pipe")
    else {
        return;
    };
    bundle.config["linux"]["devices"] = json!([
        { "path": "/dev/some", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 3, "gid": 4 },
        { "path": "/dev/deep/block", "type": "b", "major": 7, "minor": 300 },
        { "path": "/dev/pipe", "type": "p", "fileMode": 0o600 },
    ]);
    let output = bundle.output();
    let wanted = "/dev/some character special file a:e5 640 3:4\n/dev/deep/block block special file 7:12c 666 0:0\n\
                  /dev/pipe fifo 0:0 600 0:0\n";
    assert_eq!(output, wanted);
    // One that has to be another than what is there already.
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 5 }]);
    bundle.refused(&["/dev/null", "something else"]);
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "z", "major": 1, "minor": 5 }]);
    bundle.refused(&["/dev/x", "\"z\""]);
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "c", "major": -1, "minor": 5 }]);
    bundle.refused(&["/dev/x", "-1"]);
}

#[test]
fn parameters_of_its_namespaces_are_set() {
    let parameters = [
        ("net.ipv4.ip_forward", "1"),
        ("net/ipv4/ping_group_range", "5\t6"),
        ("kernel.shmmni", "1234"),
        ("fs.mqueue.msg_max", "7"),
    ];
    let script: String = parameters
        .iter()
        .map(|(name, _)| {
            format!(
                "cat /proc/sys/{};",
                if name.contains('/') { (*name).to_owned() } else { name.replace('.', "/") }
            )
        })
        .collect();
    let Some(mut bundle) = Bundle::new(&script) else { return };
    bundle.config["linux"]["sysctl"] =
        parameters.iter().map(|(n, v)| ((*n).to_owned(), json!(v))).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(bundle.output(), "1\n5\t6\n1234\n7\n");
    for (name, value) in
        [("net.ipv4.no_such", "1"), ("vm.swappiness", "1"), ("net.ipv4.ip_forward", "nonsense")]
    {
        bundle.config["linux"]["sysctl"] = json!({ name: value });
        bundle.refused(&[name]);
    }
    bundle.config["linux"]["sysctl"] = json!({ "kernel.shmmni": "1234" });
    bundle.without_namespace("ipc");
    bundle.refused(&["kernel.shmmni", "ipc"]);
}

#[test]
fn the_execution_domain_is_set() {
    let Some(mut bundle) = Bundle::new("uname -m") else { return };
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX" });
    assert_eq!(bundle.output().trim(), std::env::consts::ARCH);
    if std::env::consts::ARCH == "x86_64" {
        bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
        assert_eq!(bundle.output(), "i686\n");
    }
    for wrong in [json!({ "domain": "SOLARIS" }), json!({ "domain": "LINUX", "flags": ["X"] })] {
        bundle.config["linux"]["personality"] = wrong;
        bundle.refused(&["personality"]);
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_not_passed_over() {
    let Some(bundle) = Bundle::new("true") else { return };
    let config = bundle.config.clone();
    let mut bundle = bundle;
    let refused: [(&str, Value, &str); 5] = [
        ("/linux/intelRdt", json!({ "closID": "x" }), "intelRdt"),
        ("/linux/resources/network", json!({ "classID": 1 }), "network"),
        ("/linux/resources/rdma", json!({ "mlx5_1": { "hcaHandles": 3 } }), "rdma"),
        ("/linux/netDevices", json!({ "eth0": {} }), "netDevices"),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "0" }), "memoryPolicy"),
    ];
    for (place, value, word) in refused {
        bundle.config = config.clone();
        let (above, field) = place.rsplit_once('/').unwrap();
        bundle.config.pointer_mut(above).unwrap()[field] = value;
        bundle.refused(&[word]);
    }
    // Empty ones ask for nothing.
    bundle.config = config;
    bundle.config["linux"]["intelRdt"] = Value::Null;
    bundle.config["linux"]["resources"]["rdma"] = json!({});
    bundle.config["linux"]["resources"]["network"] = json!({});
    bundle.output();
}

#[test]
fn a_label_of_selinux_needs_selinux() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return println!("skipped: this host has SELinux");
    }
    bundle.config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    bundle.refused(&["SELinux"]);
}
