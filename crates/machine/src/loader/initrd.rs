//! Where the initial RAM disk goes.

use memory::{GuestRam, PAGE_SIZE};

use super::Error;

/// Linux's decompressor-less entry maps at least this much; also `initrd_addr_max` of every 64-bit kernel.
const HIGHEST_END: u64 = 0x8000_0000;

/// Bytes that [`write()`] takes for `pieces`.
pub fn size_bytes(pieces: &[impl AsRef<[u8]>]) -> u64 {
    pieces.iter().map(|piece| padded(piece.as_ref())).sum()
}

/// Writes `pieces` at `start`, one after the other; each begins on a 4-byte boundary with zeros before it, as the
/// kernel's unpacker wants them.
///
/// # Errors
/// It is not all inside `ram`.
pub fn write(ram: &GuestRam, start: u64, pieces: &[impl AsRef<[u8]>]) -> Result<(), memory::Error> {
    ram.expect_use(start, size_bytes(pieces));
    let mut at = start;
    for piece in pieces.iter().map(AsRef::as_ref) {
        let len = piece.len() as u64;
        ram.write(at, piece)?;
        ram.write(at + len, &[0; 3][..(padded(piece) - len) as usize])?;
        at += padded(piece);
    }
    Ok(())
}

fn padded(piece: &[u8]) -> u64 {
    piece.len().next_multiple_of(4) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_begin_on_boundaries_behind_zeros() {
        let ram = GuestRam::new(&[(0, 0x4000)]).unwrap();
        ram.write(0x1000, &[9; 16]).unwrap();
        let pieces: [&[u8]; 4] = [b"abcde", b"", b"f", b"ghij"];
        assert_eq!(size_bytes(&pieces), 16);
        write(&ram, 0x1000, &pieces).unwrap();
        let mut found = [0; 17];
        ram.read(0x1000, &mut found).unwrap();
        assert_eq!(&found, b"abcde\0\0\0f\0\0\0ghij\0");
        assert!(write(&ram, 0x3ff8, &pieces).is_err());
    }
}
