//! Files that guest memory is mapped from: one with all of it, and perhaps one over that, of what has changed since.
//!
//! ```text
//!   base   ████████ ████ ██      the machine that others are copies of, or a template
//!   over      ██     █           pages that it wrote after it came from there itself
//!   memory mine? over? base      each page is the first of these that there is
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::PAGE_SIZE;

/// The files behind guest memory, the regions one after the other in each.
#[derive(Clone, Debug)]
pub struct Backing {
    pub(crate) base: Arc<File>,
    pub(crate) over: Option<Arc<File>>,
}

impl Backing {
    /// The file with all of it.
    pub fn base(&self) -> &File {
        &self.base
    }

    /// The one over it: what is no hole there counts.
    pub fn over(&self) -> Option<&File> {
        self.over.as_deref()
    }

    /// Reads what the files say, whatever the guest has written since.
    ///
    /// # Errors
    /// The host's.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.base.read_exact_at(bytes, offset)?;
        let Some(over) = &self.over else { return Ok(()) };
        for (start, end) in Data::of(over).extents(offset, offset + bytes.len() as u64) {
            over.read_exact_at(&mut bytes[(start - offset) as usize..(end - offset) as usize], start)?;
        }
        Ok(())
    }
}

/// Where a file is more than a hole, asked for in the order of its bytes. A file system that knows no holes says everywhere.
#[derive(Debug)]
pub struct Data<'a> {
    file: &'a File,
    /// There is none before that, from where was asked last.
    next: u64,
}

impl<'a> Data<'a> {
    /// Of `file`.
    pub fn of(file: &'a File) -> Self {
        Self { file, next: 0 }
    }

    /// Whether any of `len` bytes at `offset` are.
    pub fn is_in(&mut self, offset: u64, len: u64) -> bool {
        if self.next <= offset {
            self.next = seek(self.file, SeekFrom::Data(offset), offset);
        }
        self.next < offset + len
    }

    /// The stretches between `start` and `end` that are, of whole pages where both are of whole pages.
    pub fn extents(self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + 'a {
        let page = PAGE_SIZE as u64;
        let mut at = start;
        std::iter::from_fn(move || {
            let first = seek(self.file, SeekFrom::Data(at), at) / page * page;
            let first = first.max(at);
            if first >= end {
                return None;
            }
            let hole = seek(self.file, SeekFrom::Hole(first), end);
            at = hole.max(first + 1).div_ceil(page).saturating_mul(page).min(end);
            Some((first, at))
        })
    }
}

/// Where there is what is looked for, at or behind a place; never, or `unknown` if the file system cannot tell.
fn seek(file: &File, from: SeekFrom, unknown: u64) -> u64 {
    match rustix::fs::seek(file, from) {
        Ok(at) => at,
        Err(Errno::NXIO) => u64::MAX,
        Err(_) => unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_base_counts_where_it_is_no_hole() {
        let (base, over) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        base.write_all_at(&[1; 0x8000], 0).unwrap();
        over.set_len(0x8000).unwrap();
        over.write_all_at(&[2; 0x1000], 0x2000).unwrap();
        over.write_all_at(&[0; 0x2000], 0x5000).unwrap();
        let extents: Vec<_> = Data::of(&over).extents(0, 0x8000).collect();
        assert_eq!(extents, [(0x2000, 0x3000), (0x5000, 0x7000)]);
        assert_eq!(Data::of(&over).extents(0x6000, 0x7800).collect::<Vec<_>>(), [(0x6000, 0x7000)]);
        let backing = Backing { base: Arc::new(base), over: Some(Arc::new(over)) };
        let mut bytes = vec![9; 0x7000];
        backing.read_exact_at(&mut bytes, 0x800).unwrap();
        let at = |offset: usize| bytes[offset - 0x800];
        assert_eq!([0x800, 0x1fff, 0x2000, 0x2fff, 0x3000].map(at), [1, 1, 2, 2, 1]);
        assert_eq!([0x4fff, 0x5000, 0x6fff, 0x7000].map(at), [1, 0, 0, 1]);
    }
}
