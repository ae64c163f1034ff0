//! The bytes of a kernel image: in memory, or left in their file and read where they are needed.
//!
//! A distribution's vmlinux is 50 MiB and all of it goes into guest memory: a copy on the way there costs
//! time at every start, and memory.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use super::Error;

/// An image, by its bytes or by the file they are in.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// All of it.
    Memory(&'a [u8]),
    /// A file of that many bytes. If it shrinks meanwhile, reading is an error.
    File(&'a File, u64),
}

impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Image<'a> {
    fn from(bytes: &'a T) -> Self {
        Self::Memory(bytes.as_ref())
    }
}

impl<'a> Image<'a> {
    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The image, if it is in memory.
    pub fn memory(&self) -> Option<&'a [u8]> {
        match self {
            Self::Memory(bytes) => Some(bytes),
            Self::File(..) => None,
        }
    }

    /// `len` bytes at `offset`. The caller bounds `len`.
    ///
    /// # Errors
    /// [`Error::Read`], also where the image ends before.
    pub fn read(&self, offset: u64, len: u64) -> Result<Cow<'a, [u8]>, Error> {
        let failed = |source| Error::Read { offset, source };
        let end = offset.checked_add(len).filter(|&end| end <= self.len());
        let end = end.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        match self {
            Self::Memory(bytes) => Ok(Cow::Borrowed(&bytes[offset as usize..end as usize])),
            Self::File(file, _) => {
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, offset).map_err(failed)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Hands `len` bytes at `offset` to `each`, with where they are, at most `chunk` at once, until it breaks off.
    ///
    /// # Errors
    /// [`Error::Read`], and whatever `each` says.
    pub fn chunks(
        &self,
        offset: u64,
        len: u64,
        chunk: usize,
        mut each: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let (file, size) = match self {
            Self::Memory(_) => return each(offset, &self.read(offset, len)?).map(drop),
            Self::File(file, size) => (file, size),
        };
        let failed = |offset, source| Error::Read { offset, source };
        let end = offset.checked_add(len).filter(|end| end <= size);
        let end = end.ok_or_else(|| failed(offset, io::ErrorKind::UnexpectedEof.into()))?;
        let mut buffer = vec![0; chunk.min(len as usize)];
        let mut at = offset;
        while at < end {
            let count = (end - at).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..count], at).map_err(|source| failed(at, source))?;
            if each(at, &buffer[..count])?.is_break() {
                break;
            }
            at += count as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_gives_the_same_bytes_as_memory_and_an_error_beyond_its_end() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        for image in [Image::from(&bytes), Image::File(&file, 1000)] {
            assert_eq!(*image.read(5, 300).unwrap(), bytes[5..305]);
            let mut copy = Vec::new();
            let collect = |at: u64, part: &[u8]| {
                assert_eq!(at, 10 + copy.len() as u64);
                copy.extend_from_slice(part);
                Ok(ControlFlow::Continue(()))
            };
            image.chunks(10, 900, 64, collect).unwrap();
            assert_eq!(copy, bytes[10..910]);
            for (offset, len) in [(0, 1001), (1001, 0), (u64::MAX, 2)] {
                assert!(matches!(image.read(offset, len), Err(Error::Read { .. })));
                assert!(matches!(
                    image.chunks(offset, len, 64, |_, _| Ok(ControlFlow::Continue(()))),
                    Err(Error::Read { .. })
                ));
            }
        }
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let image = Image::File(&file, 100);
        file.set_len(50).unwrap();
        assert!(matches!(image.read(40, 20), Err(Error::Read { offset: 40, .. })));
    }
}
