//! The config `spec` writes, and the one that workloads made from images start from.

use crate::capabilities;
use crate::spec::{
    Capabilities, DeviceRule, IdMapping, Linux, Mount, Namespace, Process, Resources, Rlimit, Root, Spec,
};
use crate::state::OCI_VERSION;

/// Paths that show too much of the host.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that change the host.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A mount of the template.
#[must_use]
pub fn mount(destination: &str, kind: &str, source: &str, options: &str) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(source.to_owned()),
        options: options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect(),
        ..Mount::default()
    }
}

/// The mounts programs expect.
#[must_use]
pub fn mounts() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ]
}

/// Gives `/dev/shm` among these mounts another size.
pub fn limit_shm(mounts: &mut [Mount], bytes: u64) {
    for mount in mounts.iter_mut().filter(|mount| mount.destination == "/dev/shm") {
        mount.options.retain(|option| !option.starts_with("size="));
        mount.options.push(format!("size={bytes}"));
    }
}

/// All five sets but the inheritable and ambient ones, with these capabilities.
#[must_use]
pub fn capabilities(names: &[String]) -> Capabilities {
    Capabilities {
        bounding: names.to_vec(),
        effective: names.to_vec(),
        permitted: names.to_vec(),
        ..Capabilities::default()
    }
}

/// Namespaces by their kinds, all new.
#[must_use]
pub fn namespaces(kinds: &[&str]) -> Vec<Namespace> {
    kinds.iter().map(|kind| Namespace { kind: (*kind).to_owned(), path: None }).collect()
}

/// The config of a shell in `rootfs`; for an ordinary user with `rootless`.
#[must_use]
pub fn spec(rootless: bool) -> Spec {
    let names = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"].map(str::to_owned);
    let mut spec = Spec {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(Process {
            terminal: true,
            args: vec!["sh".to_owned()],
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                "TERM=xterm".to_owned(),
            ],
            cwd: "/".to_owned(),
            capabilities: Some(capabilities(&names)),
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 1024, soft: 1024 }],
            no_new_privileges: true,
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".into(), readonly: true }),
        hostname: Some("strata".to_owned()),
        mounts: mounts(),
        linux: Some(Linux {
            resources: Some(Resources { devices: vec![deny_all()], ..Resources::default() }),
            namespaces: namespaces(&["pid", "network", "ipc", "uts", "mount", "cgroup"]),
            masked_paths: MASKED.map(str::to_owned).to_vec(),
            readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
            ..Linux::default()
        }),
        ..Spec::default()
    };
    if rootless {
        make_rootless(&mut spec);
    }
    spec
}

/// The rule that leaves only the devices every container has.
#[must_use]
pub fn deny_all() -> DeviceRule {
    DeviceRule { allow: false, access: Some("rwm".to_owned()), ..DeviceRule::default() }
}

/// What an ordinary user cannot have goes; its ids are root's inside.
fn make_rootless(spec: &mut Spec) {
    let one = |host_id| vec![IdMapping { container_id: 0, host_id, size: 1 }];
    spec.mounts.retain(|mount| !matches!(mount.destination.as_str(), "/sys" | "/sys/fs/cgroup"));
    for mount in &mut spec.mounts {
        mount.options.retain(|option| !option.starts_with("gid="));
    }
    spec.mounts.push(mount("/sys", "none", "/sys", "rbind,nosuid,noexec,nodev,ro"));
    let Some(linux) = &mut spec.linux else { return };
    linux.resources = None;
    linux.namespaces.retain(|namespace| namespace.kind != "network");
    linux.namespaces.extend(namespaces(&["user"]));
    linux.uid_mappings = one(rustix::process::geteuid().as_raw());
    linux.gid_mappings = one(rustix::process::getegid().as_raw());
}

/// Names of the capabilities a workload has by default.
#[must_use]
pub fn default_capabilities() -> Vec<String> {
    capabilities::DEFAULT.map(str::to_owned).to_vec()
}
