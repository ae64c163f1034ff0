//! Files that were read before and have not changed since: a server that lists five hundred workloads every second reads those
//! that did.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;

use crate::description::Description;
use crate::error::{Error, Result};
use crate::files;
use crate::state::State;

/// A file that is younger may be replaced again with nothing to see of it: a kernel's time stamps are some milliseconds apart,
/// and the number of a file that is gone is given away again.
const SETTLED: Duration = Duration::from_secs(2);

/// What was read of the workloads of a store.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) descriptions: Files<Description>,
    pub(crate) states: Files<State>,
}

impl Known {
    /// Forgets files that are gone, where more are known than the `there` workloads that are there.
    pub(crate) fn keep(&self, there: usize) {
        self.descriptions.keep(there);
        self.states.keep(there);
    }
}

/// What was read of files of one kind, by their paths.
#[derive(Debug)]
pub(crate) struct Files<T> {
    read: Mutex<HashMap<PathBuf, (Stamp, Arc<T>)>>,
}

impl<T> Default for Files<T> {
    fn default() -> Self {
        Files { read: Mutex::default() }
    }
}

impl<T: DeserializeOwned> Files<T> {
    /// What the file holds now.
    ///
    /// # Errors
    /// It cannot be read, or is none of this kind.
    pub(crate) fn read(&self, path: &Path) -> Result<Arc<T>> {
        let now = fs::metadata(path).map_err(Error::file("open", path))?;
        if let Some(known) = self.known(path, Stamp::of(&now)) {
            return Ok(known);
        }
        let file = File::open(path).map_err(Error::file("open", path))?;
        // Of what is open: the name may be another file's already.
        let opened = file.metadata().map_err(Error::file("read", path))?;
        let value = Arc::new(files::read_open(file, path)?);
        let stamp = Stamp::of(&opened);
        if stamp.is_settled() {
            self.lock().insert(path.to_owned(), (stamp, Arc::clone(&value)));
        }
        Ok(value)
    }

    fn known(&self, path: &Path, stamp: Stamp) -> Option<Arc<T>> {
        let read = self.lock();
        let (known, value) = read.get(path)?;
        (*known == stamp).then(|| Arc::clone(value))
    }

    fn keep(&self, there: usize) {
        let mut read = self.lock();
        if read.len() > there {
            read.retain(|path, _| path.exists());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, Arc<T>)>> {
        // What a panic left is whole: entries are put in and taken out in one step.
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells one file from the next under the same name. Files are replaced, never written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    /// When its name was given to it, in seconds and nanoseconds since 1970.
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Stamp {
        Stamp { inode: file.ino(), bytes: file.len(), changed: (file.ctime(), file.ctime_nsec()) }
    }

    fn is_settled(self) -> bool {
        let (seconds, nanos) = self.changed;
        let changed = UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanos as u32);
        SystemTime::now().duration_since(changed).is_ok_and(|age| age >= SETTLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durable, replace};

    #[test]
    fn what_has_settled_is_read_once_and_what_replaces_it_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number.json");
        let files: Files<u32> = Files::default();
        assert!(files.read(&path).is_err());
        replace(&path, &1, Durable::Now).unwrap();
        // As young as this it may be replaced within the same stamp.
        assert_eq!(*files.read(&path).unwrap(), 1);
        assert!(files.lock().is_empty());
        std::thread::sleep(SETTLED + Duration::from_millis(100));
        let first = files.read(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &files.read(&path).unwrap()));
        for durable in [Durable::Now, Durable::Later] {
            for number in 2..6 {
                replace(&path, &number, durable).unwrap();
                assert_eq!(*files.read(&path).unwrap(), number);
            }
        }
        fs::remove_file(&path).unwrap();
        assert!(files.read(&path).is_err());
        files.keep(0);
        assert!(files.lock().is_empty());
    }
}
