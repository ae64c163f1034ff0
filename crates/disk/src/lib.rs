//! Disks: the trait devices use, and the formats behind it.
//!
//! A [`Disk`] is a row of bytes, read and written at any offset by any thread. [`open`] finds the format,
//! takes the lock that keeps two writers apart, and hands out the trait object.
//!
//! Reading order: this file, then [`formats::raw`].
//!
//! Deliberately absent: what a machine or a guest is, caching (the host's page cache does it), and formats
//! other than raw, which are siblings of `formats::raw` with one arm in [`open`].
#![forbid(unsafe_code)]

pub mod formats;

use std::io;
use std::path::{Path, PathBuf};

/// Disks are whole numbers of these, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// Whether a disk can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only. Any number of processes at once.
    ReadOnly,
    /// Reads and writes. One process at a time.
    ReadWrite,
}

/// Whether zeroed ranges may give back their space on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// The space stays reserved.
    Keep,
    /// The space may be freed.
    Free,
}

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened or examined.
    #[error("open disk {}", path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("open disk {}: already in use by another process", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
    },
    /// It is not something that can be a disk.
    #[error("open disk {}: neither a regular file nor a block device", path.display())]
    NotADisk {
        /// Where it is.
        path: PathBuf,
    },
}

/// How to open a disk.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Read-only or not.
    pub access: Access,
}

/// A disk. All calls may be made by several threads at once; overlapping ones are in no particular order.
///
/// Ranges that leave `0..size_bytes()` are an error of kind `InvalidInput` and change nothing.
pub trait Disk: Send + Sync {
    /// Size, a multiple of [`SECTOR_SIZE`].
    fn size_bytes(&self) -> u64;

    /// Whether writes can succeed.
    fn access(&self) -> Access;

    /// Bytes that are best read and written together (a power of two, at least [`SECTOR_SIZE`]).
    fn block_size(&self) -> u32 {
        4096
    }

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// What the host says; `data` may then be partly filled.
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills `data` from `offset` if that takes no waiting for a medium; `false` if it would.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn read_cached_at(&self, data: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (data, offset);
        Ok(false)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// What the host says; part may have been written. Read-only disks: `PermissionDenied`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written so far survive a crash of the host.
    ///
    /// # Errors
    /// What the host says.
    fn flush(&self) -> io::Result<()>;

    /// Says that the contents of `len` bytes at `offset` are not needed; they may read as anything.
    ///
    /// # Errors
    /// What the host says. A host that cannot free space is not an error.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes `len` bytes at `offset` read as zeros.
    ///
    /// # Errors
    /// What the host says.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap) -> io::Result<()>;
}

/// Opens the disk at `path`.
///
/// # Errors
/// All of [`Error`].
pub fn open(path: &Path, options: OpenOptions) -> Result<Box<dyn Disk>, Error> {
    Ok(Box::new(formats::raw::Raw::open(path, options.access)?))
}
