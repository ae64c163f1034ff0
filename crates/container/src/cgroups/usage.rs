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
    /// Bytes read from disks and written to them, if that is counted.
    pub block: Option<(u64, u64)>,
    /// Processes that the kernel has killed because all of them together had more memory than they may.
    pub oom_kills: u64,
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
            block: of("blkio").and_then(block),
            oom_kills: memory.and_then(oom_kills).unwrap_or_default(),
        }
    }
}

/// Bytes read and written, of all disks.
fn block(group: &Group) -> Option<(u64, u64)> {
    let file = if group.is_v2 { "io.stat" } else { "blkio.throttle.io_service_bytes" };
    Some(sum_of_disks(&std::fs::read_to_string(group.path.join(file)).ok()?))
}

/// Version 2 has a line for each disk, `8:0 rbytes=1 wbytes=2 …`; version 1 one for each disk and way, `8:0 Read 1`.
fn sum_of_disks(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0u64, 0u64);
    for line in text.lines() {
        let mut words = line.split_whitespace().skip(1).peekable();
        while let Some(word) = words.next() {
            let (key, value) =
                word.split_once('=').unwrap_or((word, words.peek().copied().unwrap_or_default()));
            let sum = match key {
                "rbytes" | "Read" => &mut read,
                "wbytes" | "Write" => &mut written,
                _ => continue,
            };
            *sum = sum.saturating_add(value.parse().unwrap_or_default());
        }
    }
    (read, written)
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

/// Version 1 counts since Linux 4.13.
fn oom_kills(group: &Group) -> Option<u64> {
    let file = if group.is_v2 { "memory.events" } else { "memory.oom_control" };
    let text = std::fs::read_to_string(group.path.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// A file of one number; `max` is none.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count_bytes_of_all_disks() {
        let v2 =
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=0\n254:0 rbytes=1 wbytes=2 rios=0 wios=0\n";
        assert_eq!(sum_of_disks(v2), (11, 22));
        let v1 =
            "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\n254:0 Read 1\n254:0 Write 2\nTotal 33\n";
        assert_eq!(sum_of_disks(v1), (11, 22));
        assert_eq!(sum_of_disks("8:0 Read\nx\n\n8:0 rbytes=x"), (0, 0));
    }
}
