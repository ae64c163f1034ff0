//! What is measured, in classes, and how fast each class is meant to be.

/// Rows of one kind, and the goal for the geometric mean of their ratios.
pub struct Class {
    pub name: &'static str,
    pub rows: &'static [&'static str],
    /// Time over QEMU's, at most. No class is meant to be slower than QEMU.
    pub to_qemu: f64,
    /// Time over the host's own, at most.
    pub to_native: Option<f64>,
}

/// The classes. `boot` is no program in the guest: see [`BOOT`].
pub const CLASSES: [Class; 7] = [
    Class {
        name: "integer, hash, compress, dispatch, call/ret, sort",
        rows: &[
            "intloop",
            "sieve",
            "sha256",
            "qsort4M",
            "fib38",
            "interp",
            "gzip",
            "gunzip",
            "sha256sum",
            "awk",
        ],
        to_qemu: 0.30,
        to_native: Some(1.8),
    },
    Class {
        name: "floating point and vectors",
        rows: &["matmul400", "nbody", "vector"],
        to_qemu: 0.10,
        to_native: Some(1.5),
    },
    Class {
        name: "string instructions, memcpy, memset, page zeroing",
        rows: &["repmovsb", "strops", "memcpy", "memset", "pagezero"],
        to_qemu: 0.10,
        to_native: Some(1.5),
    },
    Class { name: "memory latency", rows: &["chase64M", "chase2M"], to_qemu: 1.0, to_native: None },
    Class {
        name: "system calls, pipe, context switches",
        rows: &["syscall1M", "pipe100k", "ctxswitch"],
        to_qemu: 0.5,
        to_native: Some(4.0),
    },
    Class {
        name: "fork+exec, page faults, mmap",
        rows: &["forkexec500", "faults98k", "mmap100k"],
        to_qemu: 0.5,
        to_native: Some(4.0),
    },
    Class { name: "boot", rows: &[BOOT], to_qemu: 0.4, to_native: None },
];

/// From the start of the process to the first output: of a command in a machine of `strata run`, and of PID 1
/// in the guest of the benchmarks under QEMU, which has nothing like it.
pub const BOOT: &str = "boot";
/// The same to the first line of PID 1, for both.
pub const FIRST_LINE: &str = "first-line";
/// Memory of the process beyond guest RAM in KiB: at the first line of PID 1, and after the last row.
pub const OVERHEAD: [&str; 2] = ["overhead-first-line", "overhead-end"];
/// One piece of work by one process, and by two: in a guest with two vCPUs.
pub const PARALLEL: [&str; 2] = ["parallel1", "parallel2"];
/// How much faster two are, at least.
pub const PARALLEL_GOAL: f64 = 1.8;

/// Every program that the guest with one vCPU runs, in this order.
pub fn programs() -> Vec<&'static str> {
    CLASSES.iter().flat_map(|class| class.rows).copied().filter(|row| *row != BOOT).collect()
}
