//! The last block of a root file says what all before it should be, so that a byte that changed on the disk is found.
//!
//! ```text
//! 0   magic, 16 bytes
//! 16  bytes before this block, little endian
//! 24  SHA-256 of them
//! 56  zeros up to 4096
//! ```
//!
//! It lies in the file itself so that both appear at once. No reader of the file system looks behind its end.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::digest::{Digest, HashReader};

/// Bytes of the block: the file's size stays a multiple of it.
pub(crate) const SEAL_BYTES: u64 = 4096;

const MAGIC: &[u8; 16] = b"strata root v2\n\0";
const DIGEST_AT: usize = 24;

/// Reads the `size` bytes of `file` and puts the block behind them.
pub(crate) fn seal(file: &File, size: u64) -> io::Result<()> {
    let mut block = [0; SEAL_BYTES as usize];
    block[..16].copy_from_slice(MAGIC);
    block[16..DIGEST_AT].copy_from_slice(&size.to_le_bytes());
    block[DIGEST_AT..DIGEST_AT + 32].copy_from_slice(digest(file, size)?.as_bytes());
    file.write_all_at(&block, size)
}

/// Whether a file of `size` bytes ends with a block that speaks of as many: it was not cut short. Cheap.
pub(crate) fn is_sealed(file: &File, size: u64) -> bool {
    said(file, size).is_some()
}

/// Whether the file's bytes, all of which are read, are those that were sealed.
pub(crate) fn is_unbroken(file: &File, size: u64) -> io::Result<bool> {
    match said(file, size) {
        Some(wanted) => Ok(digest(file, size - SEAL_BYTES)?.as_bytes() == &wanted),
        None => Ok(false),
    }
}

fn said(file: &File, size: u64) -> Option<[u8; 32]> {
    let before = size.checked_sub(SEAL_BYTES)?;
    let mut block = [0; DIGEST_AT + 32];
    file.read_exact_at(&mut block, before).ok()?;
    let right = &block[..16] == MAGIC && block[16..DIGEST_AT] == before.to_le_bytes();
    right.then(|| block[DIGEST_AT..].try_into().expect("32 bytes"))
}

fn digest(file: &File, size: u64) -> io::Result<Digest> {
    let (digest, count) = HashReader::new(At { file, at: 0 }.take(size)).finish()?;
    if count == size { Ok(digest) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads a file from its beginning without moving its offset, which others may share.
struct At<'f> {
    file: &'f File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
