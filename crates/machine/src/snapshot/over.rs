//! Memory as what a machine has written since it was mapped from a file: what a copy of it needs beside that file.
//!
//! Most machines go on from a template or a snapshot and have written little of it. A file of just their own pages is made in
//! milliseconds, and its machine and all copies share the rest with everybody who goes on from there.
//!
//! A hole in the file is the other file's page; so pages of zeros are written like any other.

use std::fs::File;
use std::os::unix::fs::FileExt;

use memory::GuestRam;
use memory::backing::Data;
use serde::{Deserialize, Serialize};

use super::Error;
use super::ram::{FileStamp, PAGE, PageMap, each, size_of_ranges};

/// Each run of pages is mapped by itself; processes have 65530 mappings, and with more the whole memory is the better file.
const MAX_RUNS: usize = 4096;
/// So many pages between two others are written with them: their bytes are there once, the mapping for each copy.
const GAP: u64 = 15;
/// Bytes that are written at once at most.
const PIECE: u64 = 1 << 20;

/// What is known of two such files. Neither has a checksum: the first has no name, and both are those that were written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverState {
    /// Guest physical address and bytes of each region, in the files' order.
    pub ranges: Vec<(u64, u64)>,
    file: FileStamp,
    base: FileStamp,
}

impl OverState {
    /// Of memory that was written to `file`.
    pub(super) fn of(ram: &GuestRam, file: &File) -> Result<Self, Error> {
        let failed = |source| Error::Host { act: "write guest memory", source };
        let base = ram.backing().map(|backing| FileStamp::of(backing.base())).transpose().map_err(failed)?;
        let base = base.ok_or(Error::Base)?;
        Ok(Self { ranges: ram.ranges().collect(), file: FileStamp::of(file).map_err(failed)?, base })
    }

    /// Says that the files are still those.
    ///
    /// # Errors
    /// [`Error::Base`] and [`Error::RamChanged`].
    pub(super) fn check(&self, file: &File, base: Option<&File>) -> Result<(), Error> {
        let failed = |source| Error::Host { act: "read guest memory", source };
        let base = base.ok_or(Error::Base)?;
        for (file, stamp) in [(file, &self.file), (base, &self.base)] {
            if FileStamp::of(file).map_err(failed)? != *stamp {
                return Err(Error::RamChanged { offset: 0 });
            }
        }
        let bytes = size_of_ranges(&self.ranges);
        match [&self.file, &self.base].into_iter().find(|stamp| stamp.len_bytes() != bytes) {
            Some(stamp) => Err(Error::RamSize { found: stamp.len_bytes(), expected: bytes }),
            None => Ok(()),
        }
    }
}

/// The pages of a machine's own.
#[derive(Debug)]
pub(super) struct Own {
    /// Where each run begins and ends, in the file, and its guest physical address.
    runs: Vec<(u64, u64, u64)>,
}

impl Own {
    /// Those of `ram`; `None` if it comes from no file, the host does not tell, or there are too many runs of them.
    pub(super) fn of(ram: &GuestRam, map: &PageMap) -> Option<Self> {
        let backing = ram.backing()?;
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        let mut region = 0;
        for (start, len) in ram.ranges() {
            let mut own = map.own(ram.host(start)?.addr().get(), (len / PAGE) as usize)?;
            for (from, to) in
                backing.over().into_iter().flat_map(|over| Data::of(over).extents(region, region + len))
            {
                own[((from - region) / PAGE) as usize..((to - region) / PAGE) as usize].fill(true);
            }
            for page in (0..).zip(own).filter(|(_, own)| *own).map(|(page, _)| page * PAGE) {
                let at = region + page;
                match runs.last_mut() {
                    Some((first, end, _)) if *first >= region && at <= *end + GAP * PAGE => *end = at + PAGE,
                    _ => runs.push((at, at + PAGE, start + page)),
                }
            }
            region += len;
        }
        (runs.len() <= MAX_RUNS).then_some(Self { runs })
    }

    /// Writes them to `file`, whatever that held.
    pub(super) fn write(&self, ram: &GuestRam, file: &File, threads: usize) -> Result<(), Error> {
        let failed = |source| Error::Host { act: "write guest memory", source };
        file.set_len(0).and_then(|()| file.set_len(ram.size_bytes())).map_err(failed)?;
        let pieces = |&(start, end, gpa): &(u64, u64, u64)| {
            let offsets = (start..end).step_by(PIECE as usize);
            offsets.map(move |at| (at, PIECE.min(end - at), gpa + (at - start)))
        };
        let pieces: Vec<_> = self.runs.iter().flat_map(pieces).collect();
        each(&pieces, threads, |&(offset, len, gpa), buffer| {
            let bytes = &mut buffer[..len as usize];
            // What is between the pages of its own is the file's still: to look at it copies nothing.
            ram.read(gpa, bytes)?;
            file.write_all_at(bytes, offset).map_err(failed)
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::contents;
    use super::*;

    const RANGES: [(u64, u64); 2] = [(0, 2 << 20), (1 << 32, 0x9000)];

    #[test]
    fn copies_of_copies_have_what_each_wrote_and_little_is_written_for_them() {
        use std::os::unix::fs::MetadataExt;
        let map = PageMap::open();
        let base = tempfile::tempfile().unwrap();
        base.write_all_at(&[3; 2 << 20], 0).unwrap();
        base.set_len((2 << 20) + 0x9000).unwrap();
        let first = GuestRam::from_file(&RANGES, &base).unwrap();
        // Looked at only; cleared; on both sides of where the regions meet in the file.
        first.read(0x10_0000, &mut [0; 8]).unwrap();
        first.write(0x4000, &[0; 0x1000]).unwrap();
        first.write((2 << 20) - 8, &[7; 8]).unwrap();
        first.write(1 << 32, &[8; 8]).unwrap();
        let Some(own) = Own::of(&first, &map) else {
            return println!("skipped: this host does not tell which pages are a process's own");
        };
        assert_eq!(own.runs.len(), 3, "{:x?}", own.runs);
        let over = tempfile::tempfile().unwrap();
        own.write(&first, &over, 2).unwrap();
        assert!(over.metadata().unwrap().blocks() * 512 <= 3 * 0x1000);
        let second = GuestRam::from_files(&RANGES, &base, Some(&over)).unwrap();
        assert!(contents(&second) == contents(&first));
        // Of these the second has but one itself.
        second.write(0x8000, &[9; 8]).unwrap();
        let again = tempfile::tempfile().unwrap();
        let own = Own::of(&second, &map).unwrap();
        own.write(&second, &again, 1).unwrap();
        assert_eq!(
            own.runs.first(),
            Some(&(0x4000, 0x9000, 0x4000)),
            "what is between two is one run with them"
        );
        OverState::of(&second, &again).unwrap().check(&again, Some(&base)).unwrap();
        let third = GuestRam::from_files(&RANGES, &base, Some(&again)).unwrap();
        assert!(contents(&third) == contents(&second));
    }

    #[test]
    fn memory_in_too_many_pieces_or_from_nowhere_is_not_told_by_its_own_pages() {
        let map = PageMap::open();
        assert!(Own::of(&GuestRam::new(&RANGES).unwrap(), &map).is_none());
        let len = (MAX_RUNS as u64 + 1) * (GAP + 2) * PAGE;
        let base = tempfile::tempfile().unwrap();
        base.set_len(len).unwrap();
        let ram = GuestRam::from_file(&[(0, len)], &base).unwrap();
        (0..=MAX_RUNS as u64).for_each(|n| ram.write(n * (GAP + 2) * PAGE, &[1]).unwrap());
        assert!(Own::of(&ram, &map).is_none());
    }
}
