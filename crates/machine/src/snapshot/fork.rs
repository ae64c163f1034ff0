//! Copies of a machine on this host: a snapshot whose files are in memory.
//!
//! Guest memory is copied once, into a file that has no name; each copy maps it privately. So the copies share what none of
//! them has written, whatever becomes of the machine they come from.

use std::fs::File;
use std::io;

use rustix::fs::MemfdFlags;

use super::{Error, PageMap, RAM, Snapshot, encode, path, ram};
use crate::Machine;

/// A machine that copies are made of.
#[derive(Debug)]
pub struct Fork {
    state: Vec<u8>,
    ram: File,
}

/// A file in memory for [`Fork::of`]; made before a sandbox forbids it.
///
/// # Errors
/// The host's.
pub fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("strata-fork", MemfdFlags::CLOEXEC)?.into())
}

impl Fork {
    /// Takes the state of `machine`, which is paused and may go on afterwards.
    ///
    /// # Errors
    /// As [`super::write`].
    pub fn of(machine: &Machine, memory: File, map: &PageMap) -> Result<Self, crate::Error> {
        let mut archive = machine.capture()?;
        let state = ram::write(machine.ram(), &memory, map)?;
        archive.put(path::RAM, encode(path::RAM, RAM, &state)?);
        Ok(Self { state: archive.to_bytes(), ram: memory })
    }

    /// A copy, to be restored with disks and connections of its own.
    ///
    /// # Errors
    /// The host has no more open files.
    pub fn copy(&self) -> Result<Snapshot, Error> {
        let ram = self.ram.try_clone().map_err(|source| Error::Host { act: "share guest memory", source })?;
        Snapshot::parse(&self.state, ram)
    }
}
