//! Bytes of a descriptor that may be a pipe, a socket or a file.

use alloc::vec;
use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Bytes that are read or written at once.
pub(crate) const PIECE_BYTES: usize = 128 << 10;

fn retry<T>(
    fd: BorrowedFd<'_>,
    wait_for: PollFlags,
    mut act: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    loop {
        match act() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, wait_for)], None);
            }
            done => return done,
        }
    }
}

/// Where an archive goes.
pub(crate) struct Sink<'f> {
    fd: BorrowedFd<'f>,
    buffer: Vec<u8>,
}

impl<'f> Sink<'f> {
    pub(crate) fn new(fd: BorrowedFd<'f>) -> Self {
        Self { fd, buffer: Vec::new() }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    pub(crate) fn zeros(&mut self, mut count: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let piece = count.min(ZEROS.len() as u64);
            self.write(&ZEROS[..piece as usize])?;
            count -= piece;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            let written = retry(self.fd, PollFlags::OUT, || rustix::io::write(self.fd, rest));
            rest = &rest[written.map_err(Error::os("write the archive", b""))?..];
        }
        self.buffer.clear();
        Ok(())
    }
}

/// Where an archive comes from.
pub(crate) struct Source<'f> {
    fd: BorrowedFd<'f>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'f> Source<'f> {
    pub(crate) fn new(fd: BorrowedFd<'f>) -> Self {
        Self { fd, buffer: vec![0; PIECE_BYTES], start: 0, end: 0 }
    }

    /// What is there next, at most so much; empty at the end.
    pub(crate) fn next(&mut self, most: u64) -> Result<&[u8]> {
        if self.start == self.end {
            let read = retry(self.fd, PollFlags::IN, || rustix::io::read(self.fd, &mut self.buffer[..]));
            (self.start, self.end) = (0, read.map_err(Error::os("read the archive", b""))?);
        }
        let count = most.min((self.end - self.start) as u64) as usize;
        self.start += count;
        Ok(&self.buffer[self.start - count..self.start])
    }

    /// Fills `bytes`; false if the archive has ended before the first one.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < bytes.len() {
            let piece = self.next((bytes.len() - filled) as u64)?;
            match piece.len() {
                0 if filled == 0 => return Ok(false),
                0 => return Err(cut_short()),
                count => {
                    bytes[filled..filled + count].copy_from_slice(piece);
                    filled += count;
                }
            }
        }
        Ok(true)
    }

    pub(crate) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            match self.next(count)?.len() {
                0 => return Err(cut_short()),
                skipped => count -= skipped as u64,
            }
        }
        Ok(())
    }

    /// Reads on to the end, so that whoever writes sees no broken pipe.
    pub(crate) fn drain(&mut self) -> Result<()> {
        while !self.next(u64::MAX)?.is_empty() {}
        Ok(())
    }
}

pub(crate) fn cut_short() -> Error {
    Error::invalid("read the archive", b"", "it ends too early")
}
