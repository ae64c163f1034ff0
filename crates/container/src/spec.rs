//! `config.json` of a bundle: the OCI runtime specification 1.2, `config.md` and `config-linux.md`.
//!
//! Own shapes rather than a crate's: names the specification lets a runtime pass over (capabilities, architectures,
//! system calls of other kernels) must not make the whole file unreadable, and reading must cost nothing.
//! Not here: Windows, Solaris, VM sections. Unknown fields are passed over, as the specification asks; those that are
//! known and cannot be done are kept, to be refused by `bundle`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

macro_rules! shapes {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
    )*};
}

shapes! {
    /// The whole file.
    Spec {
        /// Version of the specification.
        oci_version: String,
        /// The process that `start` executes.
        #[serde(skip_serializing_if = "Option::is_none")]
        process: Option<Process>,
        /// The root file system.
        #[serde(skip_serializing_if = "Option::is_none")]
        root: Option<Root>,
        /// Host name, in a UTS namespace of its own.
        #[serde(skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
        /// Domain name, in a UTS namespace of its own.
        #[serde(skip_serializing_if = "Option::is_none")]
        domainname: Option<String>,
        /// Mounts, in their order.
        mounts: Vec<Mount>,
        /// Programs to run at points of the life cycle.
        #[serde(skip_serializing_if = "Option::is_none")]
        hooks: Option<Hooks>,
        /// For whoever reads it; `state` repeats them.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
        /// What only Linux has.
        #[serde(skip_serializing_if = "Option::is_none")]
        linux: Option<Linux>,
    }
    /// A process.
    Process {
        /// Whether it gets a terminal.
        terminal: bool,
        /// The terminal's size in characters.
        #[serde(skip_serializing_if = "Option::is_none")]
        console_size: Option<ConsoleSize>,
        /// Who runs it.
        user: User,
        /// The command and its arguments.
        args: Vec<String>,
        /// `NAME=value`.
        env: Vec<String>,
        /// Absolute path of its working directory.
        cwd: String,
        /// Its capabilities; none if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        capabilities: Option<Capabilities>,
        /// Resource limits.
        rlimits: Vec<Rlimit>,
        /// Whether executing something may never give more privileges.
        no_new_privileges: bool,
        /// AppArmor profile.
        #[serde(skip_serializing_if = "Option::is_none")]
        apparmor_profile: Option<String>,
        /// -1000 to 1000.
        #[serde(skip_serializing_if = "Option::is_none")]
        oom_score_adj: Option<i32>,
        /// SELinux label.
        #[serde(skip_serializing_if = "Option::is_none")]
        selinux_label: Option<String>,
        /// Priority for disks.
        #[serde(skip_serializing_if = "Option::is_none")]
        io_priority: Option<IoPriority>,
        /// How it is scheduled.
        #[serde(skip_serializing_if = "Option::is_none")]
        scheduler: Option<Scheduler>,
        /// Processors of those that come later.
        #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
        exec_cpu_affinity: Option<CpuAffinity>,
    }
    /// Processors of a process, as in `0-3,7`.
    CpuAffinity {
        /// Before it is in the container's control groups.
        initial: Option<String>,
        /// Afterwards.
        #[serde(rename = "final")]
        last: Option<String>,
    }
    /// Size of a terminal.
    ConsoleSize {
        /// Rows.
        height: u16,
        /// Columns.
        width: u16,
    }
    /// A user, by numbers.
    User {
        /// User id inside.
        uid: u32,
        /// Group id inside.
        gid: u32,
        /// File mode creation mask.
        #[serde(skip_serializing_if = "Option::is_none")]
        umask: Option<u32>,
        /// Further groups.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        additional_gids: Vec<u32>,
    }
    /// Capability sets, by name.
    Capabilities {
        /// What may ever be had.
        bounding: Vec<String>,
        /// What counts.
        effective: Vec<String>,
        /// What files may hand on.
        inheritable: Vec<String>,
        /// What may become effective.
        permitted: Vec<String>,
        /// What stays over an ordinary exec.
        ambient: Vec<String>,
    }
    /// One resource limit.
    Rlimit {
        /// `RLIMIT_…`
        #[serde(rename = "type")]
        kind: String,
        /// The ceiling.
        hard: u64,
        /// The value.
        soft: u64,
    }
    /// Priority for disks: `ioprio_set(2)`.
    IoPriority {
        /// `IOPRIO_CLASS_RT`, `_BE` or `_IDLE`.
        class: String,
        /// 0 to 7.
        priority: u32,
    }
    /// How a process is scheduled: `sched_setattr(2)`.
    Scheduler {
        /// `SCHED_…`
        policy: String,
        /// Nice value.
        nice: i32,
        /// Priority of real-time policies.
        priority: u32,
        /// `SCHED_FLAG_…`
        flags: Vec<String>,
        /// Nanoseconds, of SCHED_DEADLINE.
        runtime: u64,
        /// Nanoseconds, of SCHED_DEADLINE.
        deadline: u64,
        /// Nanoseconds, of SCHED_DEADLINE.
        period: u64,
    }
    /// The root file system.
    Root {
        /// Absolute, or relative to the bundle.
        path: PathBuf,
        /// Whether it is mounted read-only.
        readonly: bool,
    }
    /// One mount.
    Mount {
        /// Where, inside.
        destination: String,
        /// Type of file system.
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// Device, path on the host, or just a name.
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        /// As `mount -o` has them, plus those of the specification.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        options: Vec<String>,
        /// Ids of an id-mapped mount.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        uid_mappings: Vec<IdMapping>,
        /// Ids of an id-mapped mount.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        gid_mappings: Vec<IdMapping>,
    }
    /// Programs to run at points of the life cycle.
    Hooks {
        /// Old name of createRuntime's place; run before it.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        prestart: Vec<Hook>,
        /// In the runtime's namespaces, when the container's exist.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        create_runtime: Vec<Hook>,
        /// In the container's namespaces, before its root becomes `/`.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        create_container: Vec<Hook>,
        /// Inside, right before the process.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        start_container: Vec<Hook>,
        /// In the runtime's namespaces, when the process runs.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        poststart: Vec<Hook>,
        /// In the runtime's namespaces, when the container is gone.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        poststop: Vec<Hook>,
    }
    /// One program.
    Hook {
        /// Absolute path.
        path: PathBuf,
        /// All arguments, with the name.
        args: Vec<String>,
        /// Its whole environment.
        env: Vec<String>,
        /// Seconds after which it is killed.
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout: Option<u64>,
    }
    /// What only Linux has.
    Linux {
        /// User ids of a new user namespace.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        uid_mappings: Vec<IdMapping>,
        /// Group ids of a new user namespace.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        gid_mappings: Vec<IdMapping>,
        /// Kernel parameters to set.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        sysctl: BTreeMap<String, String>,
        /// Limits.
        #[serde(skip_serializing_if = "Option::is_none")]
        resources: Option<Resources>,
        /// Where in the control groups.
        #[serde(skip_serializing_if = "Option::is_none")]
        cgroups_path: Option<String>,
        /// New or joined namespaces; the others are the runtime's.
        namespaces: Vec<Namespace>,
        /// Devices beside the default ones.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        devices: Vec<Device>,
        /// Filter of system calls.
        #[serde(skip_serializing_if = "Option::is_none")]
        seccomp: Option<Seccomp>,
        /// `private`, `slave`, `shared`, `unbindable`.
        #[serde(skip_serializing_if = "Option::is_none")]
        rootfs_propagation: Option<String>,
        /// Paths that cannot be read.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        masked_paths: Vec<String>,
        /// Paths that cannot be written.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        readonly_paths: Vec<String>,
        /// SELinux label of mounts.
        #[serde(skip_serializing_if = "Option::is_none")]
        mount_label: Option<String>,
        /// Execution domain.
        #[serde(skip_serializing_if = "Option::is_none")]
        personality: Option<Personality>,
        /// Offsets of clocks in a new time namespace, by clock.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        time_offsets: BTreeMap<String, TimeOffset>,
        /// Refused unless empty.
        #[serde(skip_serializing_if = "Option::is_none")]
        intel_rdt: Option<serde_json::Value>,
        /// Refused unless empty.
        #[serde(skip_serializing_if = "Option::is_none")]
        net_devices: Option<serde_json::Value>,
        /// Refused unless empty.
        #[serde(skip_serializing_if = "Option::is_none")]
        memory_policy: Option<serde_json::Value>,
    }
    /// A range of ids.
    IdMapping {
        /// First id inside.
        #[serde(rename = "containerID")]
        container_id: u32,
        /// First id outside.
        #[serde(rename = "hostID")]
        host_id: u32,
        /// How many.
        size: u32,
    }
    /// A namespace.
    Namespace {
        /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
        #[serde(rename = "type")]
        kind: String,
        /// One to join instead of a new one.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
    }
    /// A device node.
    Device {
        /// Where, inside.
        path: String,
        /// `c`, `u`, `b` or `p`.
        #[serde(rename = "type")]
        kind: String,
        /// Number.
        major: i64,
        /// Number.
        minor: i64,
        /// Permissions.
        #[serde(skip_serializing_if = "Option::is_none")]
        file_mode: Option<u32>,
        /// Owner inside.
        #[serde(skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
        /// Group inside.
        #[serde(skip_serializing_if = "Option::is_none")]
        gid: Option<u32>,
    }
    /// Execution domain.
    Personality {
        /// `LINUX` or `LINUX32`.
        domain: String,
        /// None are defined.
        flags: Vec<String>,
    }
    /// How far a clock is off.
    TimeOffset {
        /// Seconds.
        secs: i64,
        /// Nanoseconds.
        nanosecs: u32,
    }
    /// Limits.
    Resources {
        /// What devices may be used, later rules over earlier.
        devices: Vec<DeviceRule>,
        /// Memory.
        #[serde(skip_serializing_if = "Option::is_none")]
        memory: Option<Memory>,
        /// Processor time.
        #[serde(skip_serializing_if = "Option::is_none")]
        cpu: Option<Cpu>,
        /// Number of tasks.
        #[serde(skip_serializing_if = "Option::is_none")]
        pids: Option<Pids>,
        /// Disks.
        #[serde(rename = "blockIO", skip_serializing_if = "Option::is_none")]
        block_io: Option<BlockIo>,
        /// Huge pages.
        hugepage_limits: Vec<HugepageLimit>,
        /// Files of the v2 hierarchy to write as they are.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        unified: BTreeMap<String, String>,
        /// Refused unless empty.
        #[serde(skip_serializing_if = "Option::is_none")]
        network: Option<serde_json::Value>,
        /// Refused unless empty.
        #[serde(skip_serializing_if = "Option::is_none")]
        rdma: Option<serde_json::Value>,
    }
    /// One rule of the device filter.
    DeviceRule {
        /// Whether it allows.
        allow: bool,
        /// `a`, `c` or `b`; all if absent.
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// Number; all if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        major: Option<i64>,
        /// Number; all if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        minor: Option<i64>,
        /// Some of `rwm`.
        #[serde(skip_serializing_if = "Option::is_none")]
        access: Option<String>,
    }
    /// Memory, in bytes; -1 is without a limit.
    Memory {
        /// The limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<i64>,
        /// What is left alone under pressure.
        #[serde(skip_serializing_if = "Option::is_none")]
        reservation: Option<i64>,
        /// Memory plus swap.
        #[serde(skip_serializing_if = "Option::is_none")]
        swap: Option<i64>,
        /// 0 to 100; v1 only.
        #[serde(skip_serializing_if = "Option::is_none")]
        swappiness: Option<u64>,
        /// v1 only.
        #[serde(rename = "disableOOMKiller", skip_serializing_if = "Option::is_none")]
        disable_oom_killer: Option<bool>,
        /// Whether a limit below what is used is refused.
        #[serde(skip_serializing_if = "Option::is_none")]
        check_before_update: Option<bool>,
    }
    /// Processor time.
    Cpu {
        /// Weight, 2 to 262144.
        #[serde(skip_serializing_if = "Option::is_none")]
        shares: Option<u64>,
        /// Microseconds per period; -1 is without a limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        quota: Option<i64>,
        /// Microseconds that may be saved up.
        #[serde(skip_serializing_if = "Option::is_none")]
        burst: Option<u64>,
        /// Microseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        period: Option<u64>,
        /// Real-time microseconds per period.
        #[serde(skip_serializing_if = "Option::is_none")]
        realtime_runtime: Option<i64>,
        /// Microseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        realtime_period: Option<u64>,
        /// Processors.
        #[serde(skip_serializing_if = "Option::is_none")]
        cpus: Option<String>,
        /// Memory nodes.
        #[serde(skip_serializing_if = "Option::is_none")]
        mems: Option<String>,
        /// 1 is SCHED_IDLE for all.
        #[serde(skip_serializing_if = "Option::is_none")]
        idle: Option<i64>,
    }
    /// Number of tasks.
    Pids {
        /// At most; 0 or less is without a limit.
        limit: i64,
    }
    /// Disks.
    BlockIo {
        /// 10 to 1000.
        #[serde(skip_serializing_if = "Option::is_none")]
        weight: Option<u16>,
        /// Refused: no kernel has it any more.
        #[serde(skip_serializing_if = "Option::is_none")]
        leaf_weight: Option<u16>,
        /// Weights of single disks.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        weight_device: Vec<DiskWeight>,
        /// Bytes per second.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        throttle_read_bps_device: Vec<Throttle>,
        /// Bytes per second.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        throttle_write_bps_device: Vec<Throttle>,
        /// Operations per second.
        #[serde(rename = "throttleReadIOPSDevice", skip_serializing_if = "Vec::is_empty")]
        throttle_read_iops_device: Vec<Throttle>,
        /// Operations per second.
        #[serde(rename = "throttleWriteIOPSDevice", skip_serializing_if = "Vec::is_empty")]
        throttle_write_iops_device: Vec<Throttle>,
    }
    /// The weight of one disk.
    DiskWeight {
        /// Number of the device.
        major: i64,
        /// Number of the device.
        minor: i64,
        /// 10 to 1000.
        #[serde(skip_serializing_if = "Option::is_none")]
        weight: Option<u16>,
        /// Refused: no kernel has it any more.
        #[serde(skip_serializing_if = "Option::is_none")]
        leaf_weight: Option<u16>,
    }
    /// A limit of one disk.
    Throttle {
        /// Number of the device.
        major: i64,
        /// Number of the device.
        minor: i64,
        /// The limit.
        rate: u64,
    }
    /// Huge pages of one size.
    HugepageLimit {
        /// E.g. `2MB`.
        page_size: String,
        /// Bytes.
        limit: u64,
    }
    /// Filter of system calls.
    Seccomp {
        /// What happens to calls that no rule names.
        default_action: String,
        /// errno of the default action.
        #[serde(skip_serializing_if = "Option::is_none")]
        default_errno_ret: Option<u32>,
        /// `SCMP_ARCH_…`; the host's own if empty.
        architectures: Vec<String>,
        /// `SECCOMP_FILTER_FLAG_…`
        flags: Vec<String>,
        /// Socket that is given the notification descriptor.
        #[serde(skip_serializing_if = "Option::is_none")]
        listener_path: Option<PathBuf>,
        /// Handed on with it.
        #[serde(skip_serializing_if = "Option::is_none")]
        listener_metadata: Option<String>,
        /// Rules.
        syscalls: Vec<SyscallRule>,
    }
    /// A rule for some system calls.
    SyscallRule {
        /// Their names.
        names: Vec<String>,
        /// `SCMP_ACT_…`
        action: String,
        /// errno of the action.
        #[serde(skip_serializing_if = "Option::is_none")]
        errno_ret: Option<u32>,
        /// All must hold.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        args: Vec<SyscallArg>,
    }
    /// A condition on an argument.
    SyscallArg {
        /// Which, 0 to 5.
        index: u32,
        /// What it is compared with.
        value: u64,
        /// The second value, of masked comparison.
        value_two: u64,
        /// `SCMP_CMP_…`
        op: String,
    }
}

impl Spec {
    /// The Linux section, empty if there is none.
    #[must_use]
    pub fn linux(&self) -> &Linux {
        static NONE: LazyLock<Linux> = LazyLock::new(Linux::default);
        self.linux.as_ref().unwrap_or(&NONE)
    }

    /// Whether the container gets a namespace of this kind that is not the runtime's.
    #[must_use]
    pub fn has_namespace(&self, kind: &str) -> bool {
        self.linux.as_ref().is_some_and(|linux| linux.namespaces.iter().any(|n| n.kind == kind))
    }
}
