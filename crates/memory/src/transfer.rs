//! Guest RAM that goes to a file of the host, straight from where it is.
// UNSAFETY: tells the kernel where guest RAM is, and makes a system call that no library here has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{GuestRam, PAGE_SHIFT};

/// Pieces that one system call takes.
const MAX_PIECES: usize = 1024;

impl GuestRam {
    /// Writes each `(gpa, bytes)` of `ranges` behind the one before, from `offset` on. Gives how much was written, by one system
    /// call; that is less than all where the kernel takes no more at once. What the guest changes meanwhile is written as
    /// it was or as it is.
    ///
    /// # Errors
    /// A range is not all in RAM, or what the file says.
    pub fn write_to(
        &self,
        ranges: impl IntoIterator<Item = (u64, usize)>,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut pieces: Vec<libc::iovec> = Vec::new();
        for (gpa, len) in ranges {
            self.add_pieces(gpa, len, &mut pieces)?;
        }
        let count = pieces.len().min(MAX_PIECES) as libc::c_int;
        // SAFETY: each piece is in a mapping of guest RAM, which lives as long as `self`; the kernel only reads it, as a device
        // does, and no Rust reference to it exists.
        let written = unsafe { libc::pwritev(file.as_raw_fd(), pieces.as_ptr(), count, offset) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Where the bytes are in the host; what lies next to the last piece makes it longer.
    fn add_pieces(&self, mut gpa: u64, mut len: usize, pieces: &mut Vec<libc::iovec>) -> io::Result<()> {
        while len > 0 {
            let (host, room) = self.stretch(gpa).ok_or(io::ErrorKind::InvalidInput)?;
            let count = len.min(room);
            match pieces.last_mut() {
                Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == host => last.iov_len += count,
                _ => pieces.push(libc::iovec { iov_base: host, iov_len: count }),
            }
            gpa += count as u64;
            len -= count;
        }
        Ok(())
    }

    /// The host address of `gpa`, and how many bytes follow it there.
    fn stretch(&self, gpa: u64) -> Option<(*mut libc::c_void, usize)> {
        let region = self.regions.iter().find(|region| {
            (gpa >> PAGE_SHIFT).checked_sub(region.first_gfn).is_some_and(|index| index < region.pages)
        })?;
        let inside = gpa - (region.first_gfn << PAGE_SHIFT);
        let room = (region.pages << PAGE_SHIFT) - inside;
        Some((region.host.as_ptr().wrapping_add(inside as usize).cast(), room as usize))
    }
}

/// Has the host's disk begin with `len` bytes of a file at `offset`, and waits for none of them: whoever makes the file durable
/// later finds less to do. It says nothing of errors, which are left for him.
pub fn begin_writing(file: BorrowedFd<'_>, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
    // SAFETY: the descriptor is open; the call takes no address.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn bytes_of_several_regions_are_written_one_behind_the_other() {
        let ram = GuestRam::new(&[(0, 0x2000), (0x2000, 0x1000), (0x10000, 0x1000)]).unwrap();
        ram.write(0x1ffe, b"abcd").unwrap();
        ram.write(0x10ffe, b"yz").unwrap();
        let file = tempfile::tempfile().unwrap();
        let ranges = [(0x1ffe, 4), (0x10ffe, 2), (0x1fff, 0)];
        assert_eq!(ram.write_to(ranges, file.as_fd(), 3).unwrap(), 6);
        begin_writing(file.as_fd(), 0, 9);
        let mut found = [0; 9];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"\0\0\0abcdyz");
        for (gpa, len) in [(0x2fff, 2), (0x3000, 1), (0x10ffe, 3), (u64::MAX, 1)] {
            assert!(ram.write_to([(gpa, len)], file.as_fd(), 0).is_err(), "{gpa:#x}");
        }
        assert_eq!(ram.write_to([(0, 0)], file.as_fd(), 0).unwrap(), 0);
        let many = (0..2000).map(|piece| (piece % 2 * 0x1000, 1));
        assert_eq!(ram.write_to(many, file.as_fd(), 0).unwrap(), 1024);
    }
}
