//! `kill`: a signal for the first process, or for all.

use std::os::fd::AsFd;

use super::{Runtime, require};
use crate::error::{Result, While};
use crate::state::Status;
use crate::sys;

impl Runtime {
    /// Sends a signal to the container's first process; with `all` to every process.
    ///
    /// # Errors
    /// It is not running, or the kernel refuses.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let folder = self.folder(id)?;
        let record = folder.read()?;
        let status = record.status(&folder);
        let own_ids = record.spec.has_namespace("pid");
        if all || signal == libc::SIGKILL && !own_ids {
            // Those that are left over in a control group have no first process any more.
            record.cgroups.signal(signal)?;
        }
        if !(all && status == Status::Stopped) {
            require("signal", id, status, &[Status::Created, Status::Running, Status::Paused])?;
            let process = record.hold()?;
            sys::signal_process(process.as_fd(), signal)
                .during(|| format!("send signal {signal} to container {id:?}"))?;
        }
        if status == Status::Paused && signal == libc::SIGKILL {
            // Who is frozen cannot die.
            record.cgroups.freeze(false)?;
        }
        Ok(())
    }

    /// Waits until the container's first process has ended; at most so long.
    ///
    /// # Errors
    /// There is no such container.
    pub fn wait(&self, id: &str, timeout: std::time::Duration) -> Result<bool> {
        let folder = self.folder(id)?;
        let Ok(process) = folder.read()?.hold() else { return Ok(true) };
        sys_wait(&process, timeout)
    }
}

/// Whether a process ended in time.
pub(super) fn sys_wait(process: &std::os::fd::OwnedFd, timeout: std::time::Duration) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let ready = poll(&mut polled, Some(&timeout)).during(|| "wait for a process".to_owned())?;
    Ok(ready > 0)
}
