//! A process and all that it began: found by parent and session, stopped until nothing more is found, then killed.
//!
//! Stopped first, because who is stopped begins nothing: killed one by one, they would leave children whose parents are gone.
//! What left the session and lost its parent before belongs to the container alone, and ends with it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Result, While};
use crate::sys;
use crate::verbs::Running;

/// How often processes are looked for: in a container that makes them as fast as it can the end must come too.
const PASSES: u32 = 50;

/// A process that leads a session of its own, and all that it began.
#[derive(Debug)]
pub struct Tree {
    leader: i32,
    pidfd: OwnedFd,
}

/// What `/proc` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    parent: i32,
    session: i32,
}

impl Running {
    /// The process with all that it begins.
    ///
    /// # Errors
    /// This process has no more open files.
    pub fn tree(&self) -> Result<Tree> {
        let pidfd = self.pidfd().try_clone_to_owned().during(|| "hold a process".to_owned())?;
        Ok(Tree { leader: self.pid(), pidfd })
    }
}

impl Tree {
    /// Kills all of it. Nothing happens if the leader has ended and was waited for: then nobody can tell what was its.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn kill(&self) -> Result<()> {
        let mut held: BTreeMap<i32, OwnedFd> = BTreeMap::new();
        for _ in 0..PASSES {
            let members = members(self.leader, &places()?);
            // Its number may be another's by now.
            if sys::signal_process(self.pidfd.as_fd(), 0).is_err() {
                return Ok(());
            }
            let before = held.len();
            for pid in members {
                if !held.contains_key(&pid)
                    && let Some(process) = hold(pid, self.leader, &held)
                {
                    // One that has just ended is as good.
                    let _ = sys::signal_process(process.as_fd(), libc::SIGSTOP);
                    held.insert(pid, process);
                }
            }
            if held.len() == before {
                break;
            }
        }
        for (_, process) in held.iter().filter(|(pid, _)| **pid != self.leader) {
            let _ = sys::signal_process(process.as_fd(), libc::SIGKILL);
        }
        // Last: whoever waits for it may end this process then.
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        Ok(())
    }
}

/// A descriptor of a process that still has the place it was found in.
fn hold(pid: i32, leader: i32, held: &BTreeMap<i32, OwnedFd>) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let place = place(pid)?;
    let belongs = pid == leader || place.session == leader || held.contains_key(&place.parent);
    // One whose parent is held in this very pass comes in the next.
    belongs.then_some(process)
}

/// The leader, those of its session, and what descends from them.
fn members(leader: i32, places: &BTreeMap<i32, Place>) -> Vec<i32> {
    let belongs = |pid: i32| {
        let mut at = pid;
        // As many steps as there are processes: the listing is no moment's, so that it might have a ring.
        for _ in 0..=places.len() {
            let Some(place) = places.get(&at) else { return false };
            if at == leader || place.session == leader {
                return true;
            }
            at = place.parent;
        }
        false
    };
    places.keys().copied().filter(|pid| belongs(*pid)).collect()
}

fn places() -> Result<BTreeMap<i32, Place>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").during(|| "list processes".to_owned())? {
        let entry = entry.during(|| "list processes".to_owned())?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some((pid, place)) = pid.and_then(|pid| Some((pid, place(pid)?))) {
            found.insert(pid, place);
        }
    }
    Ok(found)
}

/// Nothing of a process that is gone.
fn place(pid: i32) -> Option<Place> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `stat` of proc(5): its name, in brackets, may hold anything.
fn parse(stat: &str) -> Option<Place> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Place { parent, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_process_hides_nothing() {
        let place = parse("7 (a) S 1 2 (3) Z 5 6 7 0 -1").unwrap();
        assert_eq!(place, Place { parent: 5, session: 7 });
        assert_eq!(parse("7 (a"), None);
        assert_eq!(parse("7 (a) S x 1 1"), None);
    }

    #[test]
    fn sessions_and_descendants_belong_and_a_ring_ends() {
        let place = |parent, session| Place { parent, session };
        let places = BTreeMap::from([
            (1, place(0, 1)),
            (10, place(2, 10)),
            (11, place(10, 10)),
            // It left the session, and has its parent.
            (12, place(11, 12)),
            (13, place(12, 12)),
            // Its parent is gone, and it is of the session.
            (14, place(1, 10)),
            (20, place(1, 20)),
            (30, place(31, 30)),
            (31, place(30, 30)),
        ]);
        assert_eq!(members(10, &places), [10, 11, 12, 13, 14]);
    }
}
