//! `delete`: what is left of a container goes.

use std::os::fd::AsFd;
use std::time::Duration;

use super::kill::sys_wait;
use super::{Runtime, require};
use crate::error::{Error, Result};
use crate::hooks::{self, Point};
use crate::state::{Folder, Record, Status};
use crate::sys;

/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

impl Runtime {
    /// Removes a container that has stopped or was never started; with `force` any, and one that does not exist is no
    /// error then.
    ///
    /// # Errors
    /// It runs, or something of it cannot be removed.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        let folder = self.folder(id)?;
        let lock = match folder.lock() {
            Err(Error::Unknown(_)) if force => return Ok(()),
            lock => lock?,
        };
        let record = match folder.read() {
            // One that was being made when its maker was killed: there is nothing to it yet.
            Err(Error::Unknown(_)) => return folder.remove(),
            record => record?,
        };
        let status = record.status(&folder);
        if !force {
            require("delete", id, status, &[Status::Stopped, Status::Created, Status::Creating])?;
        }
        let removed = remove(&folder, &record);
        drop(lock);
        removed
    }
}

/// Ends what runs, and removes everything.
pub(super) fn remove(folder: &Folder, record: &Record) -> Result<()> {
    if let Ok(process) = record.hold() {
        // It may end by itself at the same moment.
        let _ = sys::signal_process(process.as_fd(), libc::SIGKILL);
        if record.cgroups.is_frozen() {
            record.cgroups.freeze(false)?;
        }
        if !sys_wait(&process, DEATH)? {
            let fault = "its process does not end: it waits for the kernel";
            return Err(Error::refused(format!("delete container {:?}", record.id), fault));
        }
    }
    record.cgroups.remove()?;
    let state = record.state_as(folder, Status::Stopped);
    folder.remove()?;
    hooks::run_all(&record.spec, Point::Poststop, &state);
    Ok(())
}
