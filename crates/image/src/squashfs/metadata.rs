//! Metadata tables: a run of bytes cut in blocks of 8 KiB, each stored after a 16-bit length.

/// Bytes of a metadata block.
const META_BYTES: usize = 8192;
/// In the length: the block is stored uncompressed.
const META_UNCOMPRESSED: u16 = 1 << 15;
/// What a full block takes in the file.
const META_STORED_BYTES: u64 = META_BYTES as u64 + 2;

/// A table under construction.
#[derive(Debug, Default)]
pub(super) struct MetaTable {
    bytes: Vec<u8>,
}

/// A place in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Where its block begins, stored, from the start of the table.
    pub(super) block: u32,
    /// Offset in the block.
    pub(super) offset: u16,
}

impl Place {
    /// As the format writes it in 64 bits.
    pub(super) fn reference(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }
}

impl MetaTable {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The number of the block that the next byte goes to.
    pub(super) fn block_index(&self) -> usize {
        self.bytes.len() / META_BYTES
    }

    /// Where the next byte goes; `None` when the table is too large for the format.
    pub(super) fn place(&self) -> Option<Place> {
        let block = u32::try_from(self.block_index() as u64 * META_STORED_BYTES).ok()?;
        Some(Place { block, offset: (self.bytes.len() % META_BYTES) as u16 })
    }

    /// The table as stored.
    pub(super) fn stored(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + self.bytes.len() / 4096 + 2);
        for block in self.bytes.chunks(META_BYTES) {
            out.extend_from_slice(&(block.len() as u16 | META_UNCOMPRESSED).to_le_bytes());
            out.extend_from_slice(block);
        }
        out
    }

    /// Where each block begins in the file when the table is stored at `start`.
    pub(super) fn block_offsets(&self, start: u64) -> impl Iterator<Item = u64> {
        let count = self.bytes.len().div_ceil(META_BYTES) as u64;
        (0..count).map(move |i| start + i * META_STORED_BYTES)
    }
}
