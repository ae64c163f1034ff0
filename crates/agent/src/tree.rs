//! A process and all that it began: who is killed leaves nothing behind, neither in its session nor in others.
//!
//! Found by parent and session, stopped until nothing more is found, then killed: who is stopped begins nothing. What left the
//! session and lost its parent before is nobody's any more, and stays until the machine ends.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;

use rustix::fs::{Dir, OFlags};

use crate::fault::Fault;
use crate::{files, sys};

/// How often processes are looked for: where they are made as fast as can be the end must come too.
const PASSES: u32 = 50;

const KILL: u8 = 9;
const STOP: u8 = 19;

/// What `/proc` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    parent: i32,
    session: i32,
}

/// Kills process `leader`, which nobody has waited for yet, and all that is its.
///
/// # Errors
/// `/proc` cannot be read; the leader's group is killed all the same.
pub fn kill(leader: i32) -> Result<(), Fault> {
    let mut held = BTreeSet::new();
    let mut looked = Ok(());
    for _ in 0..PASSES {
        let found = match places() {
            Ok(places) => members(leader, &places),
            Err(fault) => {
                looked = Err(fault);
                break;
            }
        };
        let before = held.len();
        for pid in found {
            if held.insert(pid) {
                // One that has just ended is as good.
                let _ = sys::kill(pid, STOP);
            }
        }
        if held.len() == before {
            break;
        }
    }
    for pid in held {
        let _ = sys::kill(pid, KILL);
    }
    let _ = sys::kill(-leader, KILL);
    looked
}

/// The leader, those of its session, and what descends from them.
fn members(leader: i32, places: &BTreeMap<i32, Place>) -> BTreeSet<i32> {
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

fn places() -> Result<BTreeMap<i32, Place>, Fault> {
    let fault = |errno| Fault::os("read", "/proc", errno);
    let folder = files::open("/proc", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut found = BTreeMap::new();
    for entry in Dir::read_from(&folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else { continue };
        // One that is gone meanwhile is nobody's.
        let Ok(stat) = files::read_bytes(&format!("/proc/{pid}/stat")) else { continue };
        if let Some(place) = parse(&String::from_utf8_lossy(&stat)) {
            found.insert(pid, place);
        }
    }
    Ok(found)
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
        assert_eq!(parse("7 (a) S 1 2 (3) Z 5 6 7 0 -1"), Some(Place { parent: 5, session: 7 }));
        assert_eq!(parse("7 (a"), None);
        assert_eq!(parse("7 (a) S x 1 1"), None);
    }

    #[test]
    fn sessions_and_descendants_belong_and_a_ring_ends() {
        let place = |parent, session| Place { parent, session };
        let places = BTreeMap::from([
            (1, place(0, 1)),
            (10, place(1, 10)),
            (11, place(10, 11)),
            (12, place(11, 12)),
            (13, place(1, 10)),
            (14, place(1, 14)),
            (20, place(21, 20)),
            (21, place(20, 20)),
        ]);
        assert_eq!(members(10, &places), BTreeSet::from([10, 11, 12, 13]));
    }
}
