//! Guest memory copied while its machine runs, so that the machine stands still for what it wrote meanwhile alone.
//!
//! ```text
//!  watch ─► copy all ─► copy what was written, until that is little ─► the machine rests ─► copy the rest ─► it goes on
//!                                                                                                          ─► checksums
//! ```
//! A page that is written while it is copied is told by the watch ([`memory::written`]) and copied again, in the end by a
//! machine at rest: so the file holds memory as it is then, to the byte. Checksums are of the file, made when the machine goes
//! on. A host that cannot tell what is written has all memory copied at rest.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use memory::GuestRam;
use memory::written::{Range, Written};

use super::over::{OverState, Own};
use super::ram::{self, Blocks, PageMap, RamState, Zeros};
use super::{Error, Memory};

/// So much is copied at rest without another look: about a millisecond.
const LITTLE: u64 = 2 << 20;
/// How often what was written meanwhile is copied before the machine must rest: it may write faster than can be copied.
const ROUNDS: u32 = 4;

/// Guest memory on its way into a file.
#[derive(Debug)]
pub struct Copying {
    ram: Arc<GuestRam>,
    file: File,
    map: Arc<PageMap>,
    /// Only what is the machine's own is to go there, if possible.
    only_own: bool,
    /// It does.
    own: Option<Own>,
    /// There once everything was copied.
    written: Option<Written>,
    blocks: Blocks,
    /// Blocks that were written to after their checksum was made.
    stale: BTreeSet<u64>,
}

impl Copying {
    /// Nothing is copied yet: [`Self::rest`] copies all.
    ///
    /// # Errors
    /// The host has no more open files.
    pub fn new(ram: &Arc<GuestRam>, file: &File, map: &Arc<PageMap>) -> Result<Self, Error> {
        let file = file.try_clone().map_err(|source| Error::Host { act: "write guest memory", source })?;
        let (blocks, stale) = (Blocks::new(), BTreeSet::new());
        Ok(Self {
            ram: ram.clone(),
            file,
            map: map.clone(),
            only_own: false,
            own: None,
            written: None,
            blocks,
            stale,
        })
    }

    /// The same, only of what is the machine's own, if its memory comes from a file and the host can tell.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn over(ram: &Arc<GuestRam>, file: &File, map: &Arc<PageMap>) -> Result<Self, Error> {
        Ok(Self { only_own: true, ..Self::new(ram, file, map)? })
    }

    /// Copies everything that is to be copied; numbers and checksums of blocks, if all of them are.
    fn all(&mut self, threads: usize) -> Result<Blocks, Error> {
        self.own = if self.only_own { Own::of(&self.ram, &self.map) } else { None };
        match &self.own {
            // A page that becomes its own while this looks is told by the watch.
            Some(own) => own.write(&self.ram, &self.file, threads).map(|()| Blocks::new()),
            None => ram::write_all(&self.ram, &self.file, &self.map, threads),
        }
    }

    fn again(&mut self, pages: &[Range], threads: usize) -> Result<(), Error> {
        let zeros = if self.own.is_some() { Zeros::Count } else { Zeros::MayBeHoles };
        self.stale.append(&mut ram::write_again(&self.ram, &self.file, pages, threads, zeros)?);
        Ok(())
    }

    /// Copies what it can while the machine runs; nothing where the host does not tell what is written. One at a time.
    ///
    /// # Errors
    /// The host's: no space, most likely. The machine has not noticed.
    pub fn ahead(mut self) -> Result<Self, Error> {
        let Some(watcher) = self.map.watcher.clone() else { return Ok(self) };
        let mut written = match watcher.watch(&self.ram).and_then(|mut written| {
            written.take()?;
            Ok(written)
        }) {
            Ok(written) => written,
            Err(error) => {
                tracing::debug!(%error, "memory is saved while the machine stands still");
                return Ok(self);
            }
        };
        // One thread: the processors are the guest's.
        self.blocks = self.all(1)?;
        let mut last = u64::MAX;
        for _ in 0..ROUNDS {
            let Ok(pages) = written.take() else { return Ok(self) };
            let bytes = pages.iter().map(|(_, len)| len).sum();
            self.again(&pages, 1)?;
            // Enough is enough, and what does not get less will not.
            if bytes <= LITTLE || bytes > last / 2 {
                break;
            }
            last = bytes;
        }
        self.written = Some(written);
        Ok(self)
    }

    /// Copies what is not in the file yet, of a machine at rest. How many bytes those were.
    ///
    /// # Errors
    /// As [`Self::ahead`].
    pub fn rest(&mut self) -> Result<u64, Error> {
        let size = |pages: &[Range]| pages.iter().map(|(_, len)| len).sum();
        if let Some(Ok(pages)) = self.written.as_mut().map(Written::take) {
            self.again(&pages, self.map.threads)?;
            return Ok(size(&pages));
        }
        self.stale.clear();
        self.blocks = self.all(self.map.threads)?;
        Ok(self.ram.size_bytes())
    }

    /// The file that what was copied is the differences from, if it is.
    ///
    /// # Errors
    /// The host has no more open files.
    pub fn base(&self) -> Result<Option<File>, Error> {
        let base = self.own.as_ref().and_then(|_| self.ram.backing());
        let shared = base.map(|backing| backing.base().try_clone()).transpose();
        shared.map_err(|source| Error::Host { act: "share guest memory", source })
    }

    /// What is known of the file, which is not durable yet. The machine may run again.
    ///
    /// # Errors
    /// As [`Self::ahead`].
    pub fn finish(mut self) -> Result<Memory, Error> {
        // What is written from now on is nobody's business.
        self.written = None;
        if self.own.is_some() {
            return OverState::of(&self.ram, &self.file).map(Memory::Over);
        }
        let sums = ram::sums(&self.file, self.ram.size_bytes(), &self.stale, self.map.threads)?;
        self.blocks.retain(|number, _| !self.stale.contains(number));
        self.blocks.extend(sums);
        RamState::of(&self.ram, &self.file, self.blocks).map(Memory::Whole)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::ram::tests::contents;
    use super::*;

    const RANGES: [Range; 2] = [(0, 24 << 20), (1 << 32, (3 << 20) + 0x5000)];

    /// Writes, clears and gives back pages all over until told to stop.
    fn scribble(ram: &GuestRam, stop: &AtomicBool, began: &Barrier) {
        let mut random = 7u64;
        began.wait();
        while !stop.load(Ordering::Relaxed) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let gpa = (random >> 20) % (24 << 20);
            match random >> 60 {
                0 => drop(ram.discard(gpa & !0xfff, 0x3000)),
                1 | 2 => ram.write(gpa & !0xfff, &[0; 0x1000]).unwrap(),
                3 => ram.write((1 << 32) + gpa % (3 << 20), &random.to_le_bytes()).unwrap(),
                _ => drop(ram.write(gpa, &random.to_le_bytes())),
            }
        }
    }

    #[test]
    fn a_copy_made_while_memory_is_written_all_the_time_is_memory_as_it_rests() {
        let map = Arc::new(PageMap::open());
        if map.watcher.is_none() {
            return println!("skipped: this host cannot watch what is written");
        }
        let behind = tempfile::tempfile().unwrap();
        let old: Vec<u8> = (0..10u32 << 20).map(|at| (at / 5) as u8).collect();
        std::os::unix::fs::FileExt::write_all_at(&behind, &old, 0).unwrap();
        behind.set_len(RANGES.iter().map(|(_, len)| len).sum()).unwrap();
        let inherited = || GuestRam::from_file(&RANGES, &behind).unwrap();
        let kinds = [(GuestRam::new(&RANGES).unwrap(), false), (inherited(), false), (inherited(), true)];
        let mut some = false;
        for (ram, over) in kinds {
            let ram = Arc::new(ram);
            let begin = if over { Copying::over } else { Copying::new };
            let file = tempfile::tempfile().unwrap();
            for _ in 0..2 {
                let stop = AtomicBool::new(false);
                let mut copying = std::thread::scope(|scope| {
                    let began = Arc::new(Barrier::new(2));
                    let (ram, stop, theirs) = (&ram, &stop, began.clone());
                    scope.spawn(move || scribble(ram, stop, &theirs));
                    began.wait();
                    let copying = begin(ram, &file, &map).unwrap().ahead().unwrap();
                    stop.store(true, Ordering::Relaxed);
                    copying
                });
                assert!(copying.written.is_some());
                let (copied, all) = (copying.rest().unwrap(), ram.size_bytes());
                assert!(copied < all, "{copied:#x} of {all:#x} bytes at rest");
                some |= copied > 0;
                let expected = contents(&ram);
                // What comes after is not in it.
                ram.write(0x1000, b"later").unwrap();
                let state = match copying.finish().unwrap() {
                    Memory::Whole(state) => state,
                    Memory::Over(state) => {
                        state.check(&file, Some(&behind)).unwrap();
                        let alone = state.check(&file, None).unwrap_err();
                        assert!(matches!(alone, Error::Base), "{alone}");
                        let other = state.check(&file, Some(&file)).unwrap_err();
                        assert!(matches!(other, Error::RamChanged { .. }), "{other}");
                        let restored = GuestRam::from_files(&RANGES, &behind, Some(&file)).unwrap();
                        assert!(over && contents(&restored) == expected);
                        continue;
                    }
                };
                assert!(!over);
                ram::check(&file, &state).unwrap();
                let restored = GuestRam::from_file(&RANGES, &file).unwrap();
                assert!(contents(&restored) == expected);
                // The checksums are those of a copy that was made at rest.
                let whole = tempfile::tempfile().unwrap();
                assert!(ram::write(&restored, &whole, &map).unwrap().is_same(&state));
            }
        }
        assert!(some, "nothing was written meanwhile");
    }

    #[test]
    fn without_a_watch_all_is_copied_at_rest() {
        let ram = Arc::new(GuestRam::new(&RANGES).unwrap());
        let mut map = PageMap::open();
        map.watcher = None;
        let map = Arc::new(map);
        let file = tempfile::tempfile().unwrap();
        ram.write(0x5000, b"before").unwrap();
        let mut copying = Copying::new(&ram, &file, &map).unwrap().ahead().unwrap();
        ram.write(0x5000, b"at rest").unwrap();
        assert_eq!(copying.rest().unwrap(), ram.size_bytes());
        let Memory::Whole(state) = copying.finish().unwrap() else { panic!("it comes from no file") };
        ram::check(&file, &state).unwrap();
        assert!(contents(&GuestRam::from_file(&RANGES, &file).unwrap()) == contents(&ram));
    }
}
