//! The writer: plain ustar files, enough for image archives. Sizes past 8 GiB are written in base 256.

use std::io::{self, Read, Write};

/// The header of a regular file: mode 0644, owner 0:0, mtime 0. The name must be at most 100 bytes.
fn header_block(name: &str, size: u64) -> [u8; 512] {
    assert!(name.len() <= 100, "names of our own are short");
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    if size < 1 << 33 {
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Writes an archive of regular files.
pub(crate) struct Writer<W> {
    inner: W,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(inner: W) -> Self {
        Writer { inner }
    }

    /// One file of exactly `size` bytes from `contents`.
    pub(crate) fn file(&mut self, name: &str, size: u64, contents: impl Read) -> io::Result<()> {
        self.inner.write_all(&header_block(name, size))?;
        let copied = io::copy(&mut contents.take(size), &mut self.inner)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{name} is shorter than it was"),
            ));
        }
        let padding = (size.next_multiple_of(512) - size) as usize;
        self.inner.write_all(&[0; 512][..padding])
    }

    /// The mark of the end.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 1024])?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}
