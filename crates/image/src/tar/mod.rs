//! Tar archives, read as a stream: POSIX ustar and pax (IEEE Std 1003.1-2008, "pax"), GNU tar's long names and sparse files
//! (old format, pax 0.0, 0.1 and 1.0), base-256 numbers, xattrs as `SCHILY.xattr.*`.
//!
//! Everything an archive can claim is bounded before memory is taken for it, because archives come from strangers; that is
//! why this is not a crate: those at hand read extension headers of any size into memory.
//! Known omissions: `LIBARCHIVE.xattr`, POSIX ACL records, multi-volume archives, character sets other than bytes as they are.

mod header;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use reader::{Contents, End, Entry, Kind, Reader};
pub(crate) use writer::Writer;

use std::io;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It ends before the end of its last entry, or without the mark for its end.
    #[error("the archive is truncated at offset {offset:#x}")]
    Truncated {
        /// Bytes of the uncompressed archive that were there.
        offset: u64,
    },
    /// Its first block is no tar header.
    #[error("not a tar archive")]
    NotTar,
    /// An entry is malformed, or goes past a limit.
    #[error("entry {path:?} at offset {offset:#x}: {reason}")]
    Entry {
        /// The path as the archive has it, or as much as is known.
        path: String,
        /// Where its header begins in the uncompressed archive.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The bytes under it cannot be read or decompressed.
    #[error("at offset {offset:#x}")]
    Io {
        /// Bytes of the uncompressed archive read so far.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Paths and link targets; Linux knows none longer.
const MAX_PATH_BYTES: usize = 4096;
/// One pax extended header. Attack: a header that claims gigabytes.
const MAX_PAX_BYTES: u64 = 1 << 20;
/// Value of one xattr (Linux: XATTR_SIZE_MAX).
const MAX_XATTR_BYTES: usize = 64 << 10;
/// Segments of one sparse file.
const MAX_SEGMENTS: usize = 1 << 16;
/// Entries of one archive. Attack: a small compressed archive that makes millions of files in memory.
const MAX_ENTRIES: u64 = 4 << 20;
