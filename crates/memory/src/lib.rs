//! Guest RAM: where it is in the host, and what is known about each guest physical page.
//!
//! RAM is held by `vm-memory` regions, so devices and `virtio-queue` use it as they would any other; every
//! write that goes through `vm-memory` is noted by [`tracker::PageTracker`], which is how a DMA into code or
//! into a clean page is caught. Engines use [`GuestRam::page`] to fill their TLBs and then access host
//! memory directly, under the rules of [`tracker::PageInfo`].
//!
//! Reading order: [`GuestRam`], then `place`, [`tracker`], [`backing`], [`written`] and [`transfer`].
//!
//! Deliberately absent: device memory, address decoding of anything but RAM, and Rust references into
//! guest RAM: other vCPUs and devices write it at any time, so it is touched by volatile or atomic access.
// UNSAFETY: hands out raw host addresses of guest RAM and reads and writes it through them.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod backing;
mod place;
pub mod tracker;
pub mod transfer;
pub mod written;

pub use backing::Backing;
pub use tracker::{CodeMark, CodeWatcher, PageFlags, PageInfo, PageTracker};
pub use vm_memory;

use std::fs::File;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use place::Place;

/// Bytes in a guest page.
pub const PAGE_SIZE: usize = 4096;
const PAGE_SHIFT: u32 = 12;

/// The `vm-memory` type that holds the regions; what `virtio-queue` and friends take.
pub type Backend = GuestMemoryMmap<PageTracker>;

/// Why guest RAM could not be made or accessed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region's start or length is not a multiple of the page size, is empty, or wraps.
    #[error("guest ram region at gpa {start:#x} (len {len:#x}) is not made of whole pages")]
    Unaligned {
        /// Guest physical address.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// The host did not give the memory, or two regions overlap.
    #[error("map guest ram of {len:#x} bytes")]
    Map {
        /// Bytes of all regions together.
        len: u64,
        /// What the host said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An access that is not wholly inside RAM.
    #[error("access guest ram at gpa {gpa:#x} (len {len:#x})")]
    Access {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        len: usize,
    },
}

/// One RAM page as an engine sees it.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Host address of the page's first byte; valid as long as the [`GuestRam`] lives.
    pub host: NonNull<u8>,
    /// What is known about the page.
    pub info: &'a PageInfo,
}

struct Region {
    first_gfn: u64,
    pages: u64,
    host: NonNull<u8>,
    tracker: NonNull<PageInfo>,
}

/// All RAM of one guest.
pub struct GuestRam {
    backend: Backend,
    /// The same regions, flat, for the engines' TLB fills. Points into `backend` and `_places`.
    regions: Box<[Region]>,
    /// The addresses of both; unmapped after them.
    _places: Vec<Place>,
    /// The files that it is mapped from.
    backing: Option<Backing>,
    /// While somebody watches what is written: what was given back meanwhile.
    discards: Mutex<Option<written::Discards>>,
}

impl std::fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

// SAFETY: the pointers in `regions` point into mappings of `_places`, which never move; access through
// them follows the volatile/atomic rule of the module, so any thread may hold them.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Maps anonymous, lazily committed memory at each `(gpa, bytes)` of `ranges`.
    ///
    /// # Errors
    /// [`Error::Unaligned`] and [`Error::Map`].
    pub fn new(ranges: &[(u64, u64)]) -> Result<Self, Error> {
        Self::map(ranges, None)
    }

    /// Maps the contents of `file`, the regions of `ranges` one after the other, privately: pages come from the file when
    /// they are touched, what the guest writes is its own, and copies of one machine share the rest.
    ///
    /// Whoever shortens the file while it is mapped ends this process (SIGBUS); nothing here can prevent that.
    ///
    /// # Errors
    /// [`Error::Unaligned`] and [`Error::Map`].
    pub fn from_file(ranges: &[(u64, u64)], file: &File) -> Result<Self, Error> {
        Self::from_files(ranges, file, None)
    }

    /// The same with a second file: what is no hole there takes the place of what `base` has.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_files(ranges: &[(u64, u64)], base: &File, over: Option<&File>) -> Result<Self, Error> {
        let share = |file: &File| {
            let shared = file.try_clone().map(Arc::new);
            shared.map_err(|e| Error::Map { len: ranges.iter().map(|(_, len)| len).sum(), source: e.into() })
        };
        let backing = Backing { base: share(base)?, over: over.map(share).transpose()? };
        Self::map(ranges, Some(backing))
    }

    fn map(ranges: &[(u64, u64)], backing: Option<Backing>) -> Result<Self, Error> {
        let (sized, total) = checked(ranges)?;
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| Error::Map { len: total, source };
        let mut offset = 0;
        let (mut places, mut regions) = (Vec::new(), Vec::new());
        for (start, len) in sized {
            let place = Place::map(len, backing.as_ref(), offset).map_err(|errno| refused(errno.into()))?;
            let mapping = place.region().map_err(|e| refused(e.into()))?;
            let region = GuestRegionMmap::new(mapping, start);
            regions.push(region.ok_or(Error::Unaligned { start: start.0, len: len as u64 })?);
            places.push(place);
            offset += len as u64;
        }
        let backend = Backend::from_regions(regions).map_err(|e| refused(e.into()))?;
        let regions = backend.iter().map(Region::of).collect();
        Ok(Self { backend, regions, _places: places, backing, discards: Mutex::default() })
    }

    /// The files behind the regions, if they are [`Self::from_files`].
    pub fn backing(&self) -> Option<&Backing> {
        self.backing.as_ref()
    }

    /// The regions as `vm-memory` knows them.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Bytes of RAM.
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.pages << PAGE_SHIFT).sum()
    }

    /// The `(gpa, bytes)` of every region, in address order.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().map(|r| (r.first_gfn << PAGE_SHIFT, r.pages << PAGE_SHIFT))
    }

    /// The RAM page with guest frame number `gfn`, or `None` where there is no RAM.
    #[inline]
    pub fn page(&self, gfn: u64) -> Option<Page<'_>> {
        for region in &*self.regions {
            let index = gfn.wrapping_sub(region.first_gfn);
            if index < region.pages {
                // SAFETY: `index < pages`, so both pointers stay inside the region's mapping and tracker.
                let (host, info) = unsafe {
                    (
                        region.host.add((index as usize) << PAGE_SHIFT),
                        region.tracker.add(index as usize).as_ref(),
                    )
                };
                return Some(Page { host, info });
            }
        }
        None
    }

    /// Host address of guest physical address `gpa`, or `None` where there is no RAM.
    #[inline]
    pub fn host(&self, gpa: u64) -> Option<NonNull<u8>> {
        let page = self.page(gpa >> PAGE_SHIFT)?;
        // SAFETY: the offset is below the page size.
        Some(unsafe { page.host.add((gpa & (PAGE_SIZE as u64 - 1)) as usize) })
    }

    /// Copies `data` to `gpa` and notes the write, as a device's DMA does.
    ///
    /// # Errors
    /// [`Error::Access`]; part of the data may have been written.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Error> {
        self.backend.write_slice(data, GuestAddress(gpa)).map_err(|_| Error::Access { gpa, len: data.len() })
    }

    /// Has `watcher` called after each write by [`Self::write`], or by a device through [`Self::backend`], that hit
    /// code: generations are new by then. It takes the place of a watcher from before.
    pub fn watch_code(&self, watcher: &CodeWatcher) {
        for region in self.backend.iter() {
            let mapping: &vm_memory::MmapRegion<PageTracker> = region;
            mapping.bitmap().watch_code(watcher.clone());
        }
    }

    /// Tells who watches code that some in the page `gfn` was overwritten: for whoever learned it from
    /// [`PageInfo::note_write`] and has no vCPU of its own to tell.
    #[cold]
    pub fn tell_of_code(&self, gfn: u64) {
        if let (Some(page), Some(region)) =
            (self.page(gfn), self.backend.find_region(GuestAddress(gfn << PAGE_SHIFT)))
        {
            let mapping: &vm_memory::MmapRegion<PageTracker> = region;
            mapping.bitmap().tell_watcher(page.info);
        }
    }

    /// Says that all of `len` bytes at `gpa` are about to be written: the host gives their memory at once, instead
    /// of by a page fault for each 4 KiB. What cannot be had is no error. Not for memory that may stay untouched.
    ///
    /// Huge pages would be fewer faults still, but on a host that is a virtual machine itself and reports its free
    /// memory to its own host, it is just huge pages that must be fetched back: 40 ms became 40 or 130.
    pub fn expect_use(&self, gpa: u64, len: u64) {
        let inside = |(start, size): &(u64, u64)| gpa >= *start && len <= size.saturating_sub(gpa - start);
        let (true, Some(host)) = (self.ranges().any(|range| inside(&range)), self.host(gpa)) else { return };
        let skip = host.addr().get().wrapping_neg() & (PAGE_SIZE - 1);
        let Some(len) = (len as usize).checked_sub(skip).map(|len| len & !(PAGE_SIZE - 1)) else { return };
        // SAFETY: the range is page-aligned and inside one region's mapping, which lives as long as `self`;
        // MADV_POPULATE_WRITE changes no byte, and faults that it meets are its own error.
        let advised = unsafe {
            let start = host.as_ptr().add(skip);
            rustix::mm::madvise(start.cast(), len, rustix::mm::Advice::LinuxPopulateWrite)
        };
        // Before Linux 5.14 pages come one by one.
        let _ = advised;
    }

    /// Gives the host the memory of every whole page in `len` bytes at `gpa`; how many bytes that were. What the guest finds
    /// there next is zeros, or, in memory that is [`Self::from_file`], what the file holds; code that
    /// was decoded from there is stale. A range that is not wholly inside one region is left alone.
    pub fn discard(&self, gpa: u64, len: u64) -> u64 {
        let page = PAGE_SIZE as u64;
        let inside = |(start, size): &(u64, u64)| gpa >= *start && len <= size.saturating_sub(gpa - start);
        let Some((region, _)) = self.ranges().enumerate().find(|(_, range)| inside(range)) else { return 0 };
        let (first, end) = (gpa.next_multiple_of(page), (gpa + len) & !(page - 1));
        let (Some(count), Some(host)) = (end.checked_sub(first), self.host(first)) else { return 0 };
        if count == 0 {
            return 0;
        }
        // SAFETY: the range is page-aligned and inside one region's private mapping, which lives as long as `self`. Its bytes
        // change as by a write of the guest; nobody holds a reference to them.
        let given = unsafe {
            rustix::mm::madvise(host.as_ptr().cast(), count as usize, rustix::mm::Advice::LinuxDontNeed)
        };
        let before: u64 = self.regions.iter().take(region).map(|region| region.pages).sum();
        let region = self.backend.iter().nth(region);
        if let (Ok(()), Some(region)) = (given, region) {
            let mapping: &vm_memory::MmapRegion<PageTracker> = region;
            let offset = (first - region.start_addr().0) as usize;
            // Pages without code are not looked up to be written to: most of a guest's memory was never used.
            mapping.bitmap().note_discard(offset, count as usize);
            if let Some(discards) = &mut *self.discards() {
                discards.note(before + (offset as u64 >> PAGE_SHIFT), count >> PAGE_SHIFT);
            }
            return count;
        }
        0
    }

    fn discards(&self) -> std::sync::MutexGuard<'_, Option<written::Discards>> {
        self.discards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it noted from now on what is given back, or no more.
    fn note_discards(&self, watched: bool) {
        *self.discards() = watched.then(|| written::Discards::new(self.size_bytes()));
    }

    /// What was given back since the last time.
    fn take_discards(&self) -> Vec<written::Range> {
        let pages = self.discards().as_mut().map(written::Discards::take).unwrap_or_default();
        let mut regions = self.regions.iter();
        let (mut region, mut before) = (regions.next(), 0);
        let mut found = Vec::with_capacity(pages.len());
        for page in pages {
            while let Some(at) = region.filter(|at| page >= before + at.pages) {
                before += at.pages;
                region = regions.next();
            }
            if let Some(at) = region {
                found.push(((at.first_gfn + page - before) << PAGE_SHIFT, PAGE_SIZE as u64));
            }
        }
        found
    }

    /// Copies from `gpa` into `data`.
    ///
    /// # Errors
    /// [`Error::Access`]; part of the data may have been read.
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), Error> {
        let len = data.len();
        self.backend.read_slice(data, GuestAddress(gpa)).map_err(|_| Error::Access { gpa, len })
    }
}

/// Checks that regions are made of whole pages; their sum comes with them.
fn checked(ranges: &[(u64, u64)]) -> Result<(Vec<(GuestAddress, usize)>, u64), Error> {
    let total = ranges.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
    let mut sized = Vec::with_capacity(ranges.len());
    for &(start, len) in ranges {
        let whole = start.is_multiple_of(PAGE_SIZE as u64) && len.is_multiple_of(PAGE_SIZE as u64);
        let fits = start.checked_add(len).is_some() && usize::try_from(len).is_ok();
        if !whole || !fits || len == 0 {
            return Err(Error::Unaligned { start, len });
        }
        sized.push((GuestAddress(start), len as usize));
    }
    Ok((sized, total))
}

impl Region {
    fn of(region: &GuestRegionMmap<PageTracker>) -> Self {
        let mapping: &vm_memory::MmapRegion<PageTracker> = region;
        Self {
            first_gfn: region.start_addr().0 >> PAGE_SHIFT,
            pages: region.len() >> PAGE_SHIFT,
            host: NonNull::new(mapping.as_ptr()).expect("mmap never returns null"),
            tracker: NonNull::from(mapping.bitmap().pages()).cast(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_exist_exactly_where_ram_is() {
        let ram = GuestRam::new(&[(0, 0x4000), (0x1_0000_0000, 0x2000)]).unwrap();
        assert!(ram.page(3).is_some());
        assert!(ram.page(4).is_none());
        assert!(ram.page(0x10_0001).is_some());
        assert!(ram.page(0x10_0002).is_none());
        assert_eq!(ram.size_bytes(), 0x6000);
    }

    #[test]
    fn partial_pages_and_empty_regions_are_refused() {
        for range in [(0, 0), (1, 0x1000), (0, 0x1001), (u64::MAX - 0xfff, 0x2000)] {
            assert!(matches!(GuestRam::new(&[range]), Err(Error::Unaligned { .. })), "{range:x?}");
        }
    }

    #[test]
    fn a_device_write_marks_its_pages_dirty() {
        let ram = GuestRam::new(&[(0, 0x4000)]).unwrap();
        ram.write(0xffe, &[1, 2, 3, 4]).unwrap();
        let dirty = |gfn| ram.page(gfn).unwrap().info.flags().contains(PageFlags::DIRTY);
        assert_eq!([dirty(0), dirty(1), dirty(2)], [true, true, false]);
    }

    #[test]
    fn a_device_write_to_a_line_with_code_starts_a_new_code_generation() {
        let ram = GuestRam::new(&[(0, 0x4000)]).unwrap();
        let info = ram.page(1).unwrap().info;
        let before = info.begin_code(0x40, 0x10).generation;
        ram.write(0x1080, &[0; 16]).unwrap();
        assert_eq!(info.code_generation(), before, "another line");
        ram.write(0x103f, &[0; 2]).unwrap();
        assert_ne!(info.code_generation(), before);
        assert!(!info.holds_code());
    }

    #[test]
    fn whoever_watches_code_is_told_of_writes_that_hit_some() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU32, Ordering};
        let ram = GuestRam::new(&[(0, 0x4000), (0x1_0000_0000, 0x2000)]).unwrap();
        let told = Arc::new(AtomicU32::new(0));
        let count = told.clone();
        let watcher: CodeWatcher = Arc::new(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
        ram.watch_code(&watcher);
        ram.write(0x1000, &[0; 64]).unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 0, "no code there");
        for gfn in [1, 2, 0x10_0000] {
            ram.page(gfn).unwrap().info.begin_code(0x40, 0x10);
        }
        ram.write(0x1030, &[0; 8]).unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 0, "beside it");
        ram.write(0x1000, &[0; 0x2000]).unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 2, "two pages by one write");
        ram.write(0x1_0000_0040, &[0]).unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 3, "another region");
        ram.tell_of_code(3);
        assert_eq!(told.load(Ordering::SeqCst), 4, "by whoever notes writes");
    }

    #[test]
    fn memory_that_is_given_back_is_the_files_again_and_code_in_it_is_known_to_be_gone() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 0x4000]).unwrap();
        let ranges = [(0, 0x4000)];
        let byte = |ram: &GuestRam, gpa| {
            let mut byte = [0];
            ram.read(gpa, &mut byte).unwrap();
            byte[0]
        };
        for (ram, before) in
            [(GuestRam::new(&ranges).unwrap(), 0), (GuestRam::from_file(&ranges, &file).unwrap(), 1)]
        {
            ram.write(0, &[9; 0x4000]).unwrap();
            let info = ram.page(2).unwrap().info;
            let generation = info.begin_code(0, 16).generation;
            assert_eq!(ram.discard(0x1800, 0x1800), 0x1000);
            assert_eq!([0x1fff, 0x2000, 0x2fff, 0x3000].map(|gpa| byte(&ram, gpa)), [9, before, before, 9]);
            assert_ne!(info.code_generation(), generation);
            let nonsense =
                [(0, 0), (0x1800, 0x400), (0x3000, 0x2000), (u64::MAX, 1), (0x3fff, 1), (1, u64::MAX)];
            assert!(nonsense.iter().all(|&(gpa, len)| ram.discard(gpa, len) == 0));
            assert_eq!(byte(&ram, 0x3fff), 9);
        }
    }

    #[test]
    fn expected_use_changes_no_byte_and_may_be_nonsense() {
        let ram = GuestRam::new(&[(0, 4 << 20), (1 << 32, 0x4000)]).unwrap();
        ram.write(0x1_0ffe, &[1, 2, 3, 4]).unwrap();
        for (gpa, len) in
            [(0x1_0800, 3 << 20), (0, 4 << 20), (0, u64::MAX), (u64::MAX, 1), (1, 2), (1 << 32, 1)]
        {
            ram.expect_use(gpa, len);
        }
        let mut bytes = [0; 4];
        ram.read(0x1_0ffe, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
    }

    #[test]
    fn memory_from_a_file_is_read_from_it_and_written_beside_it() {
        use std::io::{Read, Seek, Write};
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 0x1000]).unwrap();
        file.write_all(&[2; 0x1000]).unwrap();
        let ranges = [(0, 0x1000), (1 << 32, 0x1000)];
        let (one, two) =
            (GuestRam::from_file(&ranges, &file).unwrap(), GuestRam::from_file(&ranges, &file).unwrap());
        one.write(1 << 32, &[9]).unwrap();
        let byte = |ram: &GuestRam, gpa| {
            let mut byte = [0];
            ram.read(gpa, &mut byte).unwrap();
            byte[0]
        };
        assert_eq!([byte(&one, 0), byte(&one, 1 << 32), byte(&two, 1 << 32)], [1, 9, 2]);
        assert!(one.backing().is_some() && GuestRam::new(&ranges).unwrap().backing().is_none());
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes[..0x1000] == [1; 0x1000] && bytes[0x1000..] == [2; 0x1000]);
    }

    #[test]
    fn what_is_over_a_file_takes_its_place_and_comes_back_when_memory_is_given_back() {
        use std::os::unix::fs::FileExt;
        let (base, over) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        base.write_all_at(&[1; 0x5000], 0).unwrap();
        over.set_len(0x5000).unwrap();
        over.write_all_at(&[2; 0x1000], 0x2000).unwrap();
        over.write_all_at(&[0; 0x1000], 0x4000).unwrap();
        let ram = GuestRam::from_files(&[(0, 0x3000), (1 << 32, 0x2000)], &base, Some(&over)).unwrap();
        let byte = |gpa| {
            let mut byte = [9];
            ram.read(gpa, &mut byte).unwrap();
            byte[0]
        };
        let places = [0x1fff, 0x2000, 0x2fff, 1 << 32, (1 << 32) + 0x1000];
        assert_eq!(places.map(byte), [1, 2, 2, 1, 0]);
        ram.write(0x2000, &[7]).unwrap();
        assert_eq!(byte(0x2000), 7);
        assert_eq!(ram.discard(0, 0x3000), 0x3000);
        assert_eq!(places.map(byte), [1, 2, 2, 1, 0]);
    }

    #[test]
    fn access_outside_ram_is_an_error() {
        let ram = GuestRam::new(&[(0, 0x1000)]).unwrap();
        assert!(ram.write(0xfff, &[0; 2]).is_err());
        assert!(ram.read(u64::MAX, &mut [0; 8]).is_err());
    }
}
