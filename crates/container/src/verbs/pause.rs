//! `pause` and `resume`.

use super::{Runtime, require};
use crate::error::Result;
use crate::state::Status;

impl Runtime {
    /// Freezes all processes of a container.
    ///
    /// # Errors
    /// It is not running, or there is no freezer.
    pub fn pause(&self, id: &str) -> Result<()> {
        let (folder, record, _lock) = self.open(id)?;
        require("pause", id, record.status(&folder), &[Status::Running, Status::Created])?;
        record.cgroups.freeze(true)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// It is not paused.
    pub fn resume(&self, id: &str) -> Result<()> {
        let (folder, record, _lock) = self.open(id)?;
        require("resume", id, record.status(&folder), &[Status::Paused])?;
        record.cgroups.freeze(false)
    }
}
