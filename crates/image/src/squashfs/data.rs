//! File contents: blocks of 128 KiB, one file after the other from the end of the superblock.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::{BLOCK_BYTES, BLOCK_UNCOMPRESSED, SUPERBLOCK_BYTES};
use crate::error::{Error, Result};
use crate::layers::Contents;
use crate::tar;

/// Bytes of all files of one image, holes included. Attack: sparse files that claim to be endless, whose lists of blocks
/// would take memory without end.
const MAX_IMAGE_BYTES: u64 = 256 << 30;

/// Where the contents of a file lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileData {
    /// Offset of the first block in the file system.
    pub(crate) start: u64,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Bytes that lie in holes.
    pub(crate) sparse: u64,
    /// The size word of each block, 0 for a hole.
    pub(crate) blocks: Vec<u32>,
}

impl FileData {
    /// Bytes the file takes in the file system.
    pub(crate) fn stored(&self) -> u64 {
        self.size - self.sparse
    }
}

/// Writes file contents, then (see `finish`) the tables.
pub(crate) struct DataWriter {
    pub(super) out: BufWriter<File>,
    pub(super) pos: u64,
    path: PathBuf,
    total: u64,
    block: Box<[u8]>,
}

impl DataWriter {
    /// Begins a file system in the empty file `file`; `path` is for messages.
    pub(crate) fn new(mut file: File, path: PathBuf) -> Result<Self> {
        file.seek(SeekFrom::Start(SUPERBLOCK_BYTES)).map_err(Error::file("seek in", &path))?;
        Ok(DataWriter {
            out: BufWriter::with_capacity(1 << 20, file),
            pos: SUPERBLOCK_BYTES,
            path,
            total: 0,
            block: vec![0; BLOCK_BYTES].into_boxed_slice(),
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::file("write", &self.path))?;
        self.pos += bytes.len() as u64;
        Ok(())
    }

    /// Where the next contents go.
    pub(crate) fn position(&self) -> u64 {
        self.pos
    }

    /// Goes back to `position`: what comes next replaces the tables that were written there.
    pub(crate) fn rewind(&mut self, position: u64) -> Result<()> {
        self.out.seek(SeekFrom::Start(position)).map_err(Error::file("seek in", &self.path))?;
        self.pos = position;
        Ok(())
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Everything written so far is with the kernel; hands out the file.
    pub(crate) fn file(&mut self) -> Result<&File> {
        self.out.flush().map_err(Error::file("write", &self.path))?;
        Ok(self.out.get_ref())
    }
}

impl Contents for DataWriter {
    fn store<R: Read>(&mut self, file: &mut tar::Contents<'_, R>, size: u64) -> Result<io::Result<FileData>> {
        self.total = self.total.saturating_add(size);
        if self.total > MAX_IMAGE_BYTES {
            let reason = format!("its files are larger than {} GiB together", MAX_IMAGE_BYTES >> 30);
            return Err(Error::invalid("image", reason));
        }
        let mut data = FileData { start: self.pos, size, sparse: 0, blocks: Vec::new() };
        let mut left = size;
        while left > 0 {
            // Whole blocks of a hole are not looked at: a file of holes costs a word for each of its blocks.
            let hole = file.hole();
            let skipped = if hole == left { hole } else { hole - hole % BLOCK_BYTES as u64 };
            if skipped > 0 {
                file.skip_hole(skipped);
                let blocks = skipped.div_ceil(BLOCK_BYTES as u64) as usize;
                data.blocks.resize(data.blocks.len() + blocks, 0);
                data.sparse += skipped;
                left -= skipped;
                continue;
            }
            let len = left.min(BLOCK_BYTES as u64) as usize;
            if let Err(e) = file.read_exact(&mut self.block[..len]) {
                return Ok(Err(e));
            }
            if is_zero(&self.block[..len]) {
                data.blocks.push(0);
                data.sparse += len as u64;
            } else {
                self.out.write_all(&self.block[..len]).map_err(Error::file("write", &self.path))?;
                self.pos += len as u64;
                data.blocks.push(len as u32 | BLOCK_UNCOMPRESSED);
            }
            left -= len as u64;
        }
        Ok(Ok(data))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // In pieces: most blocks end the search at once, holes are scanned at memory speed.
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |or, &b| or | b) == 0)
}
