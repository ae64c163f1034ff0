//! The os layer: what containers need of this kernel and of this user. Nothing here stops a microVM.

use std::fs;
use std::path::Path;

use container::HostGroups;

use super::{Finding, Layer, State};

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Controllers that limits of `run` and `update` need.
const CONTROLLERS: [&str; 5] = ["memory", "cpu", "pids", "cpuset", "blkio"];

/// CAP_SYS_RESOURCE, as a bit.
const SYS_RESOURCE: u64 = 1 << 24;

/// Without these `run --isolation container` cannot be done at all.
const NEEDED: [&str; 5] = ["namespaces", "rights", "overlay", "squashfs", "loop devices"];

/// All of it, in the order in which a container needs it.
pub fn look() -> Vec<Finding> {
    let mut found = vec![rights(), namespaces(), user_namespaces(), mapping()];
    found.extend(cgroups());
    found.extend([
        file_system("overlay"),
        file_system("squashfs"),
        loop_devices(),
        seccomp(),
        resource_limits(),
        labels(),
        user_network(),
        named_networks(),
    ]);
    found
}

/// Whether images can run as containers.
pub fn is_ready(findings: &[Finding]) -> bool {
    !findings.iter().any(|finding| finding.state != State::Ok && NEEDED.contains(&finding.item))
}

fn rights() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::ok(Layer::Os, "rights", "root");
    }
    let advice = "containers of images are root's: sudo strata run --isolation container, or strata oci with a rootless bundle";
    Finding::limited(Layer::Os, "rights", "not root", advice)
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
    let root = rustix::process::geteuid().is_root();
    if !root && !["/etc/subuid", "/etc/subgid"].iter().all(|file| super::host::has_range(file)) {
        let advice = "for containers without root that have more than one user: usermod --add-subuids 100000-165535 \
                      --add-subgids 100000-165535 USER";
        return Finding::limited(
            Layer::Os,
            "id mapping",
            "no range of this user in /etc/subuid and /etc/subgid",
            advice,
        );
    }
    Finding::ok(
        Layer::Os,
        "id mapping",
        if root { "newuidmap and newgidmap" } else { "newuidmap and newgidmap, and ranges of this user" },
    )
}

/// Which hierarchies are mounted, where this user may make groups, and what it can limit there.
fn cgroups() -> Vec<Finding> {
    let Ok(found) = HostGroups::look() else {
        return vec![Finding::limited(Layer::Os, "cgroups", "no /proc", "mount -t proc proc /proc")];
    };
    let kind = match (found.v1, found.v2) {
        (0, false) => {
            let advice = "limits for containers need one: mount -t cgroup2 none /sys/fs/cgroup";
            return vec![Finding::limited(Layer::Os, "cgroups", "no hierarchy is mounted", advice)];
        }
        (0, true) => "v2".to_owned(),
        (v1, false) => format!("v1, {v1} hierarchies"),
        (v1, true) => format!("hybrid: v1 with {v1} hierarchies beside v2"),
    };
    let closed = match found.closed.first() {
        None => Finding::ok(Layer::Os, "cgroups", kind),
        Some((folder, error)) => {
            let detail = format!("{kind}; no groups in {}: {error}", folder.display());
            Finding::limited(Layer::Os, "cgroups", detail, delegation(error))
        }
    };
    let (there, gone): (Vec<&str>, Vec<&str>) =
        CONTROLLERS.iter().partition(|controller| found.controllers.contains(**controller));
    let limits = if gone.is_empty() {
        Finding::ok(Layer::Os, "limits", there.join(" "))
    } else {
        let detail = format!("none of {}", gone.join(" "));
        let advice = "limits that need one of those are refused: it is off in this kernel, or not delegated to this user";
        Finding::limited(Layer::Os, "limits", detail, advice)
    };
    vec![closed, limits]
}

/// What to do where no group can be made.
fn delegation(error: &std::io::Error) -> &'static str {
    if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem {
        return "no limits for containers there: mount -o remount,rw it, or start what this runs in with its control groups writable";
    }
    "no limits for containers there: run strata in a delegated group, e.g. systemd-run --user --scope -p Delegate=yes strata ..."
}

fn file_system(name: &'static str) -> Finding {
    let known = read("/proc/filesystems");
    if known.lines().any(|line| line.split_whitespace().next_back() == Some(name)) {
        return Finding::ok(Layer::Os, name, "file system known to this kernel");
    }
    let advice = format!("for containers: modprobe {name}");
    Finding::limited(Layer::Os, name, "file system not known to this kernel now", advice)
}

/// A container's root is a file.
fn loop_devices() -> Finding {
    let item = "loop devices";
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    match rustix::fs::access("/dev/loop-control", access) {
        Ok(()) => Finding::ok(Layer::Os, item, "/dev/loop-control"),
        Err(error) => {
            let advice = "for containers of images, whose root is a file: as root, modprobe loop";
            Finding::limited(Layer::Os, item, format!("open /dev/loop-control: {error}"), advice)
        }
    }
}

fn seccomp() -> Finding {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    let actions: Vec<&str> = actions.split_whitespace().collect();
    if actions.is_empty() {
        let advice = "containers with a filter of system calls, as all have by default, are refused: \
                      --security-opt seccomp=unconfined, or a kernel with CONFIG_SECCOMP_FILTER";
        return Finding::limited(Layer::Os, "seccomp", "not in this kernel", advice);
    }
    if !actions.contains(&"user_notif") {
        let advice = "bundles whose filters have a listener are refused: a kernel from 5.0 on has them";
        return Finding::limited(Layer::Os, "seccomp", "without notifications", advice);
    }
    Finding::ok(Layer::Os, "seccomp", actions.join(" "))
}

fn resource_limits() -> Finding {
    let status = read("/proc/self/status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    if effective & SYS_RESOURCE != 0 {
        return Finding::ok(Layer::Os, "resource limits", "can be raised");
    }
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let most = most.map_or_else(|| "any number of".to_owned(), |most| most.to_string());
    let advice =
        "--ulimit and bundles that ask for more get what there is, with a warning: it takes CAP_SYS_RESOURCE";
    Finding::limited(Layer::Os, "resource limits", format!("cannot be raised: {most} files at most"), advice)
}

fn labels() -> Finding {
    let app_armor = read("/sys/module/apparmor/parameters/enabled").starts_with('Y');
    let found = match (app_armor, Path::new("/sys/fs/selinux/enforce").exists()) {
        (true, _) => "AppArmor: profiles that a bundle names",
        (_, true) => "SELinux: labels that a bundle names",
        _ => "neither AppArmor nor SELinux: bundles that name a profile or a label are refused",
    };
    Finding::ok(Layer::Os, "labels", found)
}

fn user_network() -> Finding {
    if Path::new("/dev/net/tun").exists() {
        return Finding::ok(Layer::Os, "user network", "/dev/net/tun");
    }
    let advice = "for --network user of containers: modprobe tun";
    Finding::limited(Layer::Os, "user network", "no /dev/net/tun", advice)
}

fn named_networks() -> Finding {
    let gone: Vec<&str> =
        ["ip", "nft"].into_iter().filter(|program| super::host::find(program).is_none()).collect();
    if gone.is_empty() {
        return Finding::ok(Layer::Os, "named networks", "ip and nft");
    }
    let advice = "for strata network create: apt-get install iproute2 nftables";
    Finding::limited(Layer::Os, "named networks", format!("no {}", gone.join(", no ")), advice)
}
