//! Where the initial RAM disk goes.

use memory::{GuestRam, PAGE_SIZE};

use super::Error;

/// Linux's decompressor-less entry maps at least this much; also `initrd_addr_max` of every 64-bit kernel.
const HIGHEST_END: u64 = 0x8000_0000;

/// Concatenates `pieces` on 4-byte boundaries, as the kernel's unpacker wants them.
pub fn join(pieces: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let padded = |piece: &[u8]| piece.len().next_multiple_of(4);
    let mut all = Vec::with_capacity(pieces.iter().map(|p| padded(p.as_ref())).sum());
    for piece in pieces {
        all.extend_from_slice(piece.as_ref());
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all
}

/// The address for an initial RAM disk of `len` bytes: as high as possible in the RAM region that starts at
/// zero, below 2 GiB, page aligned, and above `kernel_end`.
///
/// # Errors
/// [`Error::InitrdDoesNotFit`].
pub fn place(ram: &GuestRam, kernel_end: u64, len: u64) -> Result<u64, Error> {
    let page = PAGE_SIZE as u64;
    let low_end = ram.ranges().find(|(start, _)| *start == 0).map_or(0, |(_, len)| len);
    let start = low_end.min(HIGHEST_END).checked_sub(len).map(|start| start & !(page - 1));
    match start {
        Some(start) if start >= kernel_end => Ok(start),
        _ => Err(Error::InitrdDoesNotFit {
            initrd_mib: len.div_ceil(1 << 20),
            memory_mib: ram.size_bytes() >> 20,
        }),
    }
}
