//! The os layer: what containers will need of this kernel. Nothing here stops a microVM.

use std::fs;
use std::path::Path;

use super::{Finding, Layer};

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Namespaces, user namespaces, control groups, overlay file systems, seccomp.
pub fn look() -> Vec<Finding> {
    vec![namespaces(), user_namespaces(), mapping(), cgroups(), file_systems(), seccomp()]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn namespaces() -> Finding {
    let (there, gone): (Vec<&str>, Vec<&str>) =
        NAMESPACES.iter().partition(|name| Path::new("/proc/self/ns").join(name).exists());
    if gone.is_empty() {
        Finding::ok(Layer::Os, "namespaces", there.join(" "))
    } else {
        let advice = "containers need a kernel with these namespaces";
        Finding::limited(Layer::Os, "namespaces", format!("without {}", gone.join(" ")), advice)
    }
}

fn user_namespaces() -> Finding {
    let item = "user namespaces";
    if read("/proc/sys/kernel/unprivileged_userns_clone").trim() == "0" {
        let advice = "for containers without root: sysctl kernel.unprivileged_userns_clone=1";
        return Finding::limited(Layer::Os, item, "only for root", advice);
    }
    match read("/proc/sys/user/max_user_namespaces").trim().parse::<u64>() {
        Ok(0) => {
            let advice = "for containers without root: sysctl user.max_user_namespaces=10000";
            Finding::limited(Layer::Os, item, "none allowed", advice)
        }
        Ok(count) => Finding::ok(Layer::Os, item, format!("up to {count}")),
        Err(_) => {
            let advice = "containers without root need a kernel with CONFIG_USER_NS";
            Finding::limited(Layer::Os, item, "not in this kernel", advice)
        }
    }
}

fn mapping() -> Finding {
    let tools = ["newuidmap", "newgidmap"].iter().all(|tool| super::host::find(tool).is_some());
    if !tools {
        let advice = "for containers without root: apt-get install uidmap";
        return Finding::limited(Layer::Os, "id mapping", "newuidmap or newgidmap is not installed", advice);
    }
    let ranges = read("/etc/subuid").lines().count();
    Finding::ok(Layer::Os, "id mapping", format!("newuidmap and newgidmap; {ranges} ranges in /etc/subuid"))
}

/// Which hierarchies are mounted, from `/proc/self/mounts`.
fn cgroups() -> Finding {
    let mounts = read("/proc/self/mounts");
    let kinds: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let count = |kind: &str| kinds.iter().filter(|k| **k == kind).count();
    match (count("cgroup"), count("cgroup2")) {
        (0, 0) => Finding::limited(
            Layer::Os,
            "cgroups",
            "no hierarchy is mounted",
            "limits for containers need one: mount -t cgroup2 none /sys/fs/cgroup",
        ),
        (0, _) => Finding::ok(Layer::Os, "cgroups", "v2"),
        (v1, 0) => Finding::ok(Layer::Os, "cgroups", format!("v1, {v1} hierarchies")),
        (v1, _) => Finding::ok(Layer::Os, "cgroups", format!("hybrid: v1 with {v1} hierarchies beside v2")),
    }
}

fn file_systems() -> Finding {
    let known = read("/proc/filesystems");
    let has = |name: &str| known.lines().any(|line| line.split_whitespace().next_back() == Some(name));
    if has("overlay") {
        return Finding::ok(Layer::Os, "overlay", "file system known to this kernel");
    }
    let advice = "for containers: modprobe overlay";
    Finding::limited(Layer::Os, "overlay", "file system not known to this kernel now", advice)
}

fn seccomp() -> Finding {
    match read("/proc/sys/kernel/seccomp/actions_avail").trim() {
        "" => Finding::limited(
            Layer::Os,
            "seccomp",
            "not in this kernel",
            "containers run without system call filters",
        ),
        actions => Finding::ok(Layer::Os, "seccomp", actions),
    }
}
