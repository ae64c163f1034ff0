//! `update`: other limits for a container that exists.

use super::{Runtime, require};
use crate::error::Result;
use crate::spec::Resources;
use crate::state::Status;

impl Runtime {
    /// Sets the limits that are given; the others stay. Rules for devices cannot be changed.
    ///
    /// # Errors
    /// It has stopped, or the kernel refuses one.
    pub fn update(&self, id: &str, resources: &Resources) -> Result<()> {
        let (folder, record, _lock) = self.open(id)?;
        let allowed = [Status::Created, Status::Running, Status::Paused];
        require("update", id, record.status(&folder), &allowed)?;
        record.cgroups.update(resources)
    }
}
