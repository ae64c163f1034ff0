//! What control groups this host has, and which limits this user may set with them: for whoever explains a host.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rustix::fs::Access;

use super::{hierarchies, read};
use crate::error::Result;

/// Control groups of the host.
#[derive(Debug, Default)]
pub struct HostGroups {
    /// How many v1 hierarchies are mounted.
    pub v1: usize,
    /// Whether the v2 hierarchy is.
    pub v2: bool,
    /// Controllers of the hierarchies in which this user may make groups.
    pub controllers: BTreeSet<String>,
    /// Folders in which it may not, each with what the kernel says.
    pub closed: Vec<(PathBuf, std::io::Error)>,
}

impl HostGroups {
    /// Looks.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn look() -> Result<Self> {
        let (mountinfo, own) = (read("/proc/self/mountinfo".as_ref())?, read("/proc/self/cgroup".as_ref())?);
        let mut found = Self::default();
        for hierarchy in hierarchies(&mountinfo, &own) {
            let folder = super::base(&hierarchy);
            if hierarchy.is_v2 {
                found.v2 = true;
            } else {
                found.v1 += 1;
            }
            if let Err(error) = rustix::fs::access(&folder, Access::WRITE_OK | Access::EXEC_OK) {
                found.closed.push((folder, error.into()));
            } else if hierarchy.is_v2 {
                let there = read(&folder.join("cgroup.controllers")).unwrap_or_default();
                // The other name of the same controller.
                let named = |name: &str| if name == "io" { "blkio".to_owned() } else { name.to_owned() };
                found.controllers.extend(there.split_whitespace().map(named));
            } else {
                found.controllers.extend(hierarchy.controllers);
            }
        }
        Ok(found)
    }
}
