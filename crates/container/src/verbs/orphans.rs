//! Containers that end with the process that made them, and what is left of those whose maker was killed: their states and
//! control groups. All else of theirs is in namespaces that went with them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Runtime;
use crate::state::process_start;

/// An id for a container that is tied to this process, which tells who made it. Each call gives another.
#[must_use]
pub fn own_id(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    id_of(kind, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The [`own_id`] that another process got when it called that after `number` other calls.
#[must_use]
pub fn id_of(kind: &str, pid: u32, number: u32) -> String {
    let started = process_start(pid.cast_signed()).map_or(0, |(started, _)| started);
    format!("{kind}-{}-{pid}-{started}-{number}", own_pids())
}

/// The number of the namespace in which ids of processes mean something to this one.
fn own_pids() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Whether an id is one of [`own_id`], and its maker, which would be seen from here, is gone.
fn is_orphan(id: &str, pids: u64) -> bool {
    let mut parts = id.split('-').skip(1).map(str::parse::<u64>);
    let (Some(Ok(namespace)), Some(Ok(pid)), Some(Ok(started)), Some(Ok(_)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let lives = |pid| process_start(pid).is_some_and(|(start, alive)| alive && start == started);
    namespace == pids && !i32::try_from(pid).is_ok_and(lives)
}

impl Runtime {
    /// Removes what is left of containers with an [`own_id`] whose makers are gone, and returns how many there were. What
    /// cannot be removed is there for the next attempt.
    pub fn bury_orphans(&self) -> usize {
        let pids = own_pids();
        let all = fs::read_dir(self.root()).into_iter().flatten().flatten();
        let all = all.filter_map(|entry| entry.file_name().into_string().ok());
        let mut buried = 0;
        for id in all.filter(|id| is_orphan(id, pids)) {
            match self.delete(&id, true) {
                Ok(()) => buried += 1,
                Err(error) => tracing::debug!("remove what is left of {id}: {}", error.chain()),
            }
        }
        buried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_its_maker_outlives_is_no_orphan() {
        let pids = own_pids();
        let (ours, another) = (own_id("run"), own_id("run"));
        assert_ne!(ours, another);
        assert!(!is_orphan(&ours, pids));
        // Another process has this one's id by now, or nobody has.
        let pid = std::process::id();
        assert!(is_orphan(&format!("run-{pids}-{pid}-1-0"), pids));
        assert!(is_orphan(&format!("build-{pids}-{}-1-0", i32::MAX), pids));
        // Names of workloads, and of what is made elsewhere.
        for other in ["0123456789ab", "run-1-2", "web", "run", &format!("run-{}-{pid}-1-0", pids + 1)] {
            assert!(!is_orphan(other, pids), "{other}");
        }
    }
}
