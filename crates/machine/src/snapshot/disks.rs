//! What a snapshot knows of the disks of its machine: enough to tell one that was changed since.
//!
//! The guest's kernel has parts of its disks in memory. On a disk that somebody else has written to meanwhile, the machine
//! itself if it went on, it would mix the two and destroy both.

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ram::FileStamp;
use super::{Error, Snapshot};
use crate::config::DiskConfig;

/// A disk at the moment of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskState {
    len: u64,
    /// In nanoseconds since 1970. A file that is copied with its times is the same.
    modified_ns: i128,
}

/// Section kind and version of the list, in the order of the configuration.
pub(crate) const DISKS: (&str, u32) = ("disks", 1);

impl DiskState {
    fn of(file: &File) -> Result<Self, Error> {
        let stamp = FileStamp::of(file).map_err(|source| Error::Host { act: "look at a disk", source })?;
        Ok(Self { len: stamp.len_bytes(), modified_ns: stamp.modified_ns() })
    }
}

/// The disks of a machine, held open to be looked at when nothing can be opened any more.
#[derive(Debug, Default)]
pub(crate) struct Disks(Vec<File>);

impl Disks {
    /// Opens them.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub(crate) fn open(disks: &[DiskConfig]) -> Result<Self, Error> {
        Ok(Self(disks.iter().map(|disk| open(&disk.path)).collect::<Result<_, _>>()?))
    }

    /// How they are now.
    pub(crate) fn state(&self) -> Result<Vec<DiskState>, Error> {
        self.0.iter().map(DiskState::of).collect()
    }
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Disk { path: path.to_owned(), source })
}

impl Snapshot {
    /// Says that its disks are there and as they were. A snapshot of a version that did not note them has only to find them.
    ///
    /// # Errors
    /// [`Error::Disk`] and [`Error::DiskChanged`].
    pub fn check_disks(&self) -> Result<(), Error> {
        let mut noted = self.disks.iter();
        for disk in &self.config.disks {
            let now = DiskState::of(&open(&disk.path)?)?;
            if noted.next().is_some_and(|then| *then != now) {
                return Err(Error::DiskChanged { path: disk.path.clone() });
            }
        }
        Ok(())
    }
}
