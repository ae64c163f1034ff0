//! A disk whose bytes are the bytes of a file or block device.
//!
//! The file is locked with `flock` (shared for reading, exclusive for writing), which ends with the process
//! however it ends. A file whose length is not a multiple of a sector reads as if filled up with zeros; a
//! write into that last sector makes the file longer.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::{Access, Disk, Error, SECTOR_SIZE, Unmap};

/// Zeros written at a time where the host cannot zero a range itself.
const ZERO_CHUNK: usize = 64 << 10;

/// An open raw disk.
#[derive(Debug)]
pub struct Raw {
    file: File,
    size: u64,
    access: Access,
}

impl Raw {
    /// Opens and locks the file at `path`.
    ///
    /// # Errors
    /// All of [`Error`].
    pub fn open(path: &Path, access: Access) -> Result<Self, Error> {
        let open = |source| Error::Open { path: path.to_owned(), source };
        let file = File::options()
            .read(true)
            .write(access == Access::ReadWrite)
            // Opening a FIFO must not wait for its other end.
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .map_err(open)?;
        let kind = file.metadata().map_err(open)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::NotADisk { path: path.to_owned() });
        }
        let operation = match access {
            Access::ReadOnly => FlockOperation::NonBlockingLockShared,
            Access::ReadWrite => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::InUse { path: path.to_owned() }),
            Err(error) => return Err(open(error.into())),
        }
        Self::from_file(file, access).map_err(open)
    }

    /// A disk on a file that is already open and locked (or needs no lock).
    ///
    /// # Errors
    /// The length cannot be found out.
    pub fn from_file(file: File, access: Access) -> io::Result<Self> {
        // Seeking, unlike metadata, also tells the size of a block device. Nothing else uses the position.
        let len = rustix::fs::seek(&file, SeekFrom::End(0))?;
        let size = len.checked_next_multiple_of(SECTOR_SIZE).ok_or(ErrorKind::FileTooLarge)?;
        Ok(Self { file, size, access })
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let text = format!("access {len:#x} bytes at {offset:#x} of a disk of {:#x}", self.size);
        Err(io::Error::new(ErrorKind::InvalidInput, text))
    }

    fn check_writable(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.access {
            Access::ReadWrite => self.check(offset, len),
            Access::ReadOnly => Err(ErrorKind::PermissionDenied.into()),
        }
    }

    fn write_zeroes_by_hand(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let zeros = vec![0; ZERO_CHUNK.min(len as usize)];
        while len > 0 {
            let count = (zeros.len() as u64).min(len);
            self.file.write_all_at(&zeros[..count as usize], offset)?;
            offset += count;
            len -= count;
        }
        Ok(())
    }
}

impl Disk for Raw {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn access(&self) -> Access {
        self.access
    }

    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        let mut done = 0;
        while done < data.len() {
            match self.file.read_at(&mut data[done..], offset + done as u64) {
                Ok(0) => {
                    data[done..].fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_cached_at(&self, data: &mut [u8], offset: u64) -> io::Result<bool> {
        self.check(offset, data.len() as u64)?;
        let mut slices = [IoSliceMut::new(data)];
        // A short count, "would block" and "not supported here" all mean the same: ask again and wait.
        let count = preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT).unwrap_or(0);
        Ok(count == data.len())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable(offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        match self.access {
            Access::ReadWrite => self.file.sync_data(),
            Access::ReadOnly => Ok(()),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap) -> io::Result<()> {
        self.check_writable(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let flags = match unmap {
            Unmap::Free => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Unmap::Keep => FallocateFlags::ZERO_RANGE,
        };
        match fallocate(&self.file, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => self.write_zeroes_by_hand(offset, len),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{OpenOptions, open};

    fn disk(len: usize) -> (tempfile::NamedTempFile, Box<dyn Disk>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; len]).unwrap();
        let disk = open(file.path(), OpenOptions { access: Access::ReadWrite }).unwrap();
        (file, disk)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let (_file, disk) = disk(8192);
        disk.write_at(&[1, 2, 3], 4095).unwrap();
        let mut data = [0; 5];
        disk.read_at(&mut data, 4094).unwrap();
        assert_eq!(data, [7, 1, 2, 3, 7]);
        disk.flush().unwrap();
    }

    #[test]
    fn a_cached_read_is_the_same_as_a_read_or_none() {
        let (_file, disk) = disk(8192);
        let mut data = [0; 512];
        if disk.read_cached_at(&mut data, 512).unwrap() {
            assert_eq!(data, [7; 512]);
        }
    }

    #[test]
    fn a_partial_last_sector_reads_as_zeros_and_can_be_written() {
        let (_file, disk) = disk(1000);
        assert_eq!(disk.size_bytes(), 1024);
        let mut data = [1; 48];
        disk.read_at(&mut data, 976).unwrap();
        assert_eq!(data[..24], [7; 24]);
        assert_eq!(data[24..], [0; 24]);
        assert!(!disk.read_cached_at(&mut data, 976).unwrap());
        disk.write_at(&[9; 48], 976).unwrap();
        disk.read_at(&mut data, 976).unwrap();
        assert_eq!(data, [9; 48]);
    }

    #[test]
    fn accesses_beyond_the_end_are_refused() {
        let (file, disk) = disk(1024);
        for (offset, len) in [(1024u64, 1usize), (1023, 2), (u64::MAX, 1), (u64::MAX - 1, 512)] {
            assert_eq!(disk.read_at(&mut vec![0; len], offset).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(disk.write_at(&vec![0; len], offset).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert!(disk.discard(offset, len as u64).is_err());
            assert!(disk.write_zeroes(offset, len as u64, Unmap::Free).is_err());
        }
        assert_eq!(file.as_file().metadata().unwrap().len(), 1024);
    }

    #[test]
    fn zeroed_ranges_read_as_zeros_and_their_neighbours_do_not() {
        for unmap in [Unmap::Keep, Unmap::Free] {
            let (_file, disk) = disk(16384);
            disk.write_zeroes(1024, 8192, unmap).unwrap();
            let mut data = vec![1; 16384];
            disk.read_at(&mut data, 0).unwrap();
            assert!(data[1024..9216].iter().all(|&b| b == 0));
            assert!(data[..1024].iter().chain(&data[9216..]).all(|&b| b == 7));
        }
        let (_file, disk) = disk(16384);
        disk.discard(0, 16384).unwrap();
        assert_eq!(disk.size_bytes(), 16384);
    }

    #[test]
    fn a_read_only_disk_is_not_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let disk = open(file.path(), OpenOptions { access: Access::ReadOnly }).unwrap();
        assert_eq!(disk.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert!(disk.discard(0, 512).is_err());
        assert!(disk.flush().is_ok());
    }

    #[test]
    fn two_writers_are_kept_apart_and_readers_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ro = OpenOptions { access: Access::ReadOnly };
        let rw = OpenOptions { access: Access::ReadWrite };
        let first = open(file.path(), ro).unwrap();
        let second = open(file.path(), ro).unwrap();
        let Err(error) = open(file.path(), rw) else { panic!("opened twice") };
        assert!(matches!(error, Error::InUse { .. }));
        assert!(error.to_string().ends_with("already in use by another process"));
        drop((first, second));
        let writer = open(file.path(), rw).unwrap();
        assert!(matches!(open(file.path(), ro), Err(Error::InUse { .. })));
        drop(writer);
        open(file.path(), rw).unwrap();
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ro = OpenOptions { access: Access::ReadOnly };
        assert!(matches!(open(dir.path(), ro), Err(Error::NotADisk { .. })));
        assert!(matches!(open(Path::new("/dev/null"), ro), Err(Error::NotADisk { .. })));
        assert!(matches!(open(&dir.path().join("none"), ro), Err(Error::Open { .. })));
    }
}
