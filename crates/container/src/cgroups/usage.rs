//! What the processes in a container's groups take of the host.

use std::path::Path;

use super::{Cgroups, Group};

/// What a container takes of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds of processor time since it was started.
    pub cpu_ns: u64,
    /// Bytes of memory, cached files among them.
    pub memory_bytes: u64,
    /// The most it may take; none is without limit.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}

/// What v1 says when there is no limit, rounded down to a page.
const NO_LIMIT: u64 = 1 << 60;

impl Cgroups {
    /// What its processes take. What no controller counts is 0.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let of = |name: &str| self.with(name).or_else(|| self.unified());
        let (cpu, memory, pids) = (of("cpuacct"), of("memory"), of("pids"));
        let limit = memory.and_then(|group| match group.is_v2 {
            true => number(&group.path.join("memory.max")),
            false => number(&group.path.join("memory.limit_in_bytes")),
        });
        Usage {
            cpu_ns: cpu.and_then(cpu_ns).unwrap_or_default(),
            memory_bytes: memory.and_then(memory_bytes).unwrap_or_default(),
            memory_limit: limit.filter(|limit| *limit < NO_LIMIT),
            pids: pids.and_then(|group| number(&group.path.join("pids.current"))).unwrap_or_default(),
        }
    }
}

fn cpu_ns(group: &Group) -> Option<u64> {
    if !group.is_v2 {
        return number(&group.path.join("cpuacct.usage"));
    }
    let text = std::fs::read_to_string(group.path.join("cpu.stat")).ok()?;
    let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(usec.trim().parse::<u64>().ok()?.saturating_mul(1000))
}

fn memory_bytes(group: &Group) -> Option<u64> {
    number(&group.path.join(if group.is_v2 { "memory.current" } else { "memory.usage_in_bytes" }))
}

/// A file of one number; `max` is none.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
