//! The end of workloads: their folders go once nobody watches them any more.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::control::{Client, Request};
use crate::error::{Error, Result};
use crate::files;
use crate::folder::{Folder, UNFINISHED, Workloads};
use crate::state::Status;
use crate::volumes::Volumes;

/// How long the monitor of a workload that has ended may wait for a disk that others keep busy.
const ENDING: Duration = Duration::from_secs(60);
/// How long one is killed again and again that still runs: requests fail at its start and its end.
const DEATH: Duration = Duration::from_secs(15);
/// Between two looks at whether somebody is still there.
const GLANCE: Duration = Duration::from_millis(5);

/// What removing does to a workload that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// It stays, and whoever wants it removed is told so.
    Stays,
    /// It is killed.
    Killed,
}

impl Workloads {
    /// Removes a workload, and all it wrote.
    ///
    /// # Errors
    /// It runs and is not to be killed, it is gone already, or its folder cannot be removed.
    pub fn remove(&self, folder: &Folder, running: Running) -> Result<()> {
        let begun = Instant::now();
        loop {
            // Without the lock: its monitor may wait for the disk, and nobody else for that.
            folder.await_end(running, begun)?;
            let _lock = self.lock()?;
            // Somebody may have started it meanwhile.
            if !folder.is_watched()? {
                return folder.bury();
            }
        }
    }
}

impl Folder {
    /// Waits until nobody watches it any more: not for its command to end, but for its monitor to have noted that. One that
    /// was to be started is not.
    ///
    /// # Errors
    /// It runs and is not to be killed, or its monitor takes longer than any does.
    pub fn end(&self, running: Running) -> Result<()> {
        self.await_end(running, Instant::now())
    }

    fn await_end(&self, running: Running, begun: Instant) -> Result<()> {
        while self.is_watched()? {
            let status = match self.state() {
                Ok(state) => state.status,
                // Its monitor removes it.
                Err(_) if !self.path().exists() => return Ok(()),
                Err(error) => return Err(error),
            };
            let is_late = begun.elapsed() > if status.is_active() { DEATH } else { ENDING };
            let request = match (status.is_active(), running) {
                (true, Running::Stays) => return Err(self.busy(status)),
                _ if is_late => return Err(self.busy(status)),
                (true, Running::Killed) => Request::Kill,
                (false, _) => Request::GiveUp,
            };
            // It may end at this moment, with nobody left to answer; what was started meanwhile is found running.
            let _ = Client::connect(self).and_then(|mut client| client.ask(&request, &[]));
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    fn busy(&self, status: Status) -> Error {
        Error::Busy { name: self.description().name.clone(), status }
    }

    /// Removes the folder: for [`Workloads::remove`], and for a monitor whose workload is to be removed.
    pub(crate) fn bury(&self) -> Result<()> {
        let name = self.path().file_name().unwrap_or_default().to_string_lossy();
        let grave = self.path().with_file_name(format!("{UNFINISHED}{name}"));
        fs::rename(self.path(), &grave).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound { name: self.description().name.clone() },
            _ => Error::file("remove", self.path())(error),
        })?;
        files::sync_parent(self.path())?;
        self.tell("destroy", &[]);
        match fs::remove_dir_all(&grave) {
            // Whoever made a workload meanwhile has cleaned up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(Error::file("remove", &grave))?,
        }
        if self.description().wanted.remove && !self.description().wanted.mounts.is_empty() {
            // What cannot be removed now is by whoever looks at the volumes next.
            let root = self.path().parent().and_then(Path::parent).unwrap_or(self.path());
            let _ = Volumes::open(root).and_then(|volumes| volumes.clean());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::testing::{wanted, workloads};
    use crate::state::State;

    #[test]
    fn what_has_ended_is_removed_once_its_monitor_is_gone_however_long_that_takes() {
        let (_dir, all) = workloads();
        let folder = all.create(Some("slow".to_owned()), wanted()).unwrap();
        let watch = folder.watch().unwrap();
        folder.set_state(&State { status: Status::Exited, ..State::new() }).unwrap();
        let removed = std::thread::scope(|scope| {
            let removing = scope.spawn(|| all.remove(&folder, Running::Killed));
            // Longer than a disk at rest takes; meanwhile others are made.
            std::thread::sleep(Duration::from_secs(3));
            all.create(Some("other".to_owned()), wanted()).unwrap();
            assert!(!removing.is_finished() && folder.path().exists());
            drop(watch);
            removing.join().unwrap()
        });
        removed.unwrap();
        assert!(all.find("slow").is_err());
    }
}
