//! Copies of a machine on this host: a snapshot whose files are in memory.
//!
//! Guest memory is copied once, into a file that has no name; each copy maps it privately. So the copies share what none of
//! them has written, whatever becomes of the machine they come from. Of a machine whose memory came from a file itself, only
//! what it has changed is copied, and the copies map both.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals};

use super::{Error, RamFiles, Snapshot};

/// A machine that copies are made of: the files of a snapshot, in memory.
#[derive(Debug)]
pub struct Frozen {
    /// For [`super::write`], empty at first.
    pub state: File,
    /// Guest memory; the same.
    pub ram: File,
    /// The file that `ram` tells the differences from, if it does.
    pub base: Option<File>,
}

impl Frozen {
    /// Empty files.
    ///
    /// # Errors
    /// The host has no more open files.
    pub fn create() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = |name: &str| Ok::<File, io::Error>(rustix::fs::memfd_create(name, flags)?.into());
        Ok(Self { state: file("strata-fork-state")?, ram: file("strata-fork-ram")?, base: None })
    }

    /// Once they are written: from now on nobody can change them. Memory that is mapped must not get shorter.
    ///
    /// # Errors
    /// Somebody has them mapped to write to them.
    pub fn seal(&self) -> io::Result<()> {
        for file in [&self.state, &self.ram] {
            fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
        }
        Ok(())
    }

    /// All files, in the order of the fields.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        [Some(&self.state), Some(&self.ram), self.base.as_ref()].into_iter().flatten()
    }

    /// A copy, to be restored with disks and connections of its own.
    ///
    /// # Errors
    /// As [`Snapshot::read`].
    pub fn copy(&self) -> Result<Snapshot, Error> {
        let share = |file: &File| {
            file.try_clone().map_err(|source| Error::Host { act: "share guest memory", source })
        };
        let base = self.base.as_ref().map(share).transpose()?;
        Snapshot::read(&self.state, RamFiles { ram: share(&self.ram)?, base })
    }
}
