//! Which pages of guest RAM were written since one looked last, as the host's page tables know it: whoever wrote them, vCPUs
//! of any engine (the processor itself under KVM) or devices, by stores or by system calls.
//!
//! userfaultfd(2), asynchronous write protection (`Documentation/admin-guide/mm/userfaultfd.rst`, Linux 6.7): the host clears
//! the mark of a page that is written and lets the write go on. `PAGEMAP_SCAN`
//! (`Documentation/admin-guide/mm/pagemap.rst`) finds pages without the mark and marks them in one step, so no write is missed.
//!
//! What was given back to the host ([`GuestRam::discard`]) is another page than before without having been written: that is
//! noted apart.
//!
//! Known omission: the pages of a guest are as large as the host's here, 4 KiB.
// UNSAFETY: makes a userfaultfd for this process's memory, and ioctls whose arguments hold pointers.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::{GuestRam, PAGE_SIZE};

/// Guest physical address and bytes.
pub type Range = (u64, u64);

/// What a [`Written`] asks of the host by ioctl: a sandbox must let it through.
pub const HOST_REQUESTS: &[u64] = &[UFFDIO_REGISTER as u64, UFFDIO_UNREGISTER as u64, PAGEMAP_SCAN as u64];

// `linux/userfaultfd.h`
const UFFDIO_API: Opcode = 0xc018_aa3f;
const UFFDIO_REGISTER: Opcode = 0xc020_aa00;
const UFFDIO_UNREGISTER: Opcode = 0x8010_aa01;
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: u32 = 1;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
// `linux/fs.h`
const PAGEMAP_SCAN: Opcode = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// Pieces of memory that one call tells of.
const REGIONS: usize = 512;

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Unregister {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN`; how many regions it told of.
struct Scan<'a>(&'a mut ScanArg);

// SAFETY: the opcode is that of the argument's type, whose address is handed over; what the kernel returns is a count.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<usize> {
        Ok(usize::try_from(output).unwrap_or(0))
    }
}

/// What it takes to watch memory of this process. Opened before a sandbox forbids it.
#[derive(Debug)]
pub struct Watcher {
    faults: OwnedFd,
    pages: File,
}

impl Watcher {
    /// Opens it.
    ///
    /// # Errors
    /// The host's: one that is too old has none of it.
    pub fn open() -> io::Result<Self> {
        // Any user may watch what only faults of its own processes are.
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: no range is registered yet; those that will be never stop whoever touches them.
        let faults = unsafe { userfaultfd(flags) }?;
        let features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED;
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: the opcode is that of a `struct uffdio_api`, which `Api` is.
        unsafe { ioctl(&faults, Updater::<UFFDIO_API, Api>::new(&mut api)) }?;
        Ok(Self { faults, pages: File::open("/proc/self/pagemap")? })
    }

    /// Watches `ram` from now on; one at a time. All that was ever touched counts as written at first.
    ///
    /// # Errors
    /// The host's.
    pub fn watch(self: &Arc<Self>, ram: &Arc<GuestRam>) -> io::Result<Written> {
        // Dropped, it undoes what was done.
        let mut written = Written { watcher: self.clone(), ram: ram.clone(), registered: Vec::new() };
        for (gpa, len) in ram.ranges() {
            let host = ram.host(gpa).expect("a region's first byte is in ram").addr().get() as u64;
            let mut register = Register { start: host, len, mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
            // SAFETY: the opcode is that of a `struct uffdio_register`, which `Register` is. In this mode no access to the
            // range waits for anybody, and no byte of it changes.
            unsafe { ioctl(&self.faults, Updater::<UFFDIO_REGISTER, Register>::new(&mut register)) }?;
            written.registered.push((host, gpa, len));
        }
        ram.note_discards(true);
        Ok(written)
    }
}

/// Guest RAM that is watched, until this is dropped.
#[derive(Debug)]
pub struct Written {
    watcher: Arc<Watcher>,
    ram: Arc<GuestRam>,
    /// Host address, guest physical address and bytes.
    registered: Vec<(u64, u64, u64)>,
}

impl Written {
    /// What was written since the last time: whole pages, in the order of their addresses.
    ///
    /// # Errors
    /// The host's. What was written is not known then.
    pub fn take(&mut self) -> io::Result<Vec<Range>> {
        // First, so that a discard between the two is told the next time.
        let mut found = self.ram.take_discards();
        for &(host, gpa, len) in &self.registered {
            self.scan(host, len, |start, end| found.push((gpa + (start - host), end - start)))?;
        }
        found.sort_unstable();
        Ok(merged(found))
    }

    /// Tells of the pages from `host` on that were written, and marks them.
    fn scan(&self, host: u64, len: u64, mut tell: impl FnMut(u64, u64)) -> io::Result<()> {
        let (mut at, end) = (host, host + len);
        let mut regions = [PageRegion::default(); REGIONS];
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start: at,
                end,
                vec: regions.as_mut_ptr().addr() as u64,
                vec_len: REGIONS as u64,
                category_mask: PAGE_IS_WRITTEN,
                // What nobody ever touched counts as written too, and is left alone: to mark it, it would need page tables.
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_WRITTEN,
                ..ScanArg::default()
            };
            regions.as_mut_ptr().expose_provenance();
            // SAFETY: the argument is a `struct pm_scan_arg` whose vector is `regions`, with its length; marking pages changes
            // no byte of them.
            let count = unsafe { ioctl(&self.watcher.pages, Scan(&mut arg)) }?;
            for region in regions.iter().take(count) {
                tell(region.start.max(host), region.end.min(end));
            }
            // The kernel says how far it came; one that does not come on would have us ask for ever.
            if arg.walk_end <= at {
                return Err(io::ErrorKind::InvalidData.into());
            }
            at = arg.walk_end;
        }
        Ok(())
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.ram.note_discards(false);
        for &(start, _, len) in &self.registered {
            let mut range = Unregister { start, len };
            // SAFETY: the opcode is that of a `struct uffdio_range`, which `Unregister` is.
            let undone = unsafe {
                ioctl(&self.watcher.faults, Updater::<UFFDIO_UNREGISTER, Unregister>::new(&mut range))
            };
            // Memory that stays watched costs time, not bytes.
            let _ = undone;
        }
    }
}

/// Sorted ranges, those that touch each other as one.
fn merged(ranges: Vec<Range>) -> Vec<Range> {
    let mut all: Vec<Range> = Vec::with_capacity(ranges.len());
    for (start, len) in ranges {
        match all.last_mut() {
            Some((first, count)) if start <= *first + *count => *count = (*count).max(start + len - *first),
            _ => all.push((start, len)),
        }
    }
    all
}

/// Pages that were given back to the host, a bit each: what a guest gives back over and over takes no more room.
#[derive(Debug)]
pub(crate) struct Discards {
    /// Of the regions one after the other.
    bits: Vec<u64>,
}

impl Discards {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bits: vec![0; (bytes / PAGE_SIZE as u64).div_ceil(64) as usize] }
    }

    /// Pages `first..first + count`.
    pub(crate) fn note(&mut self, first: u64, count: u64) {
        for page in first..first + count {
            if let Some(word) = self.bits.get_mut((page / 64) as usize) {
                *word |= 1 << (page % 64);
            }
        }
    }

    /// Forgets all; which pages those were.
    pub(crate) fn take(&mut self) -> Vec<u64> {
        let mut pages = Vec::new();
        for (index, word) in self.bits.iter_mut().enumerate() {
            let bits = std::mem::take(word);
            pages.extend((0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| index as u64 * 64 + bit));
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn ranges(ram: &GuestRam) -> Vec<Range> {
        ram.ranges().collect()
    }

    /// What was watched, if this host can.
    fn watch(ram: &Arc<GuestRam>) -> Option<Written> {
        match Watcher::open() {
            Ok(watcher) => Some(Arc::new(watcher).watch(ram).unwrap()),
            Err(error) => {
                println!("skipped: this host cannot watch what is written: {error}");
                None
            }
        }
    }

    const RANGES: [Range; 2] = [(0, 16 << 20), (1 << 32, 8 << 20)];

    #[test]
    fn what_was_written_since_is_told_once_and_nothing_else_is() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 3 << 20], 0).unwrap();
        file.set_len(24 << 20).unwrap();
        for ram in [GuestRam::new(&RANGES).unwrap(), GuestRam::from_file(&RANGES, &file).unwrap()] {
            let ram = Arc::new(ram);
            ram.write(0x3000, &[1; 0x2000]).unwrap();
            ram.read(0x8000, &mut [0; 8]).unwrap();
            let Some(mut written) = watch(&ram) else { return };
            let first = written.take().unwrap();
            assert!(first.iter().any(|(gpa, len)| *gpa <= 0x3000 && gpa + len >= 0x5000), "{first:x?}");
            // A file's pages come with some of their neighbours.
            let touched: u64 = first.iter().map(|(_, len)| len).sum();
            assert!(touched <= 4 << 20, "what nobody touched is none: {first:x?}");
            assert_eq!(written.take().unwrap(), []);
            // Known pages, and ones that nobody ever touched.
            ram.write(0x4fff, &[2; 2]).unwrap();
            ram.write((1 << 32) + 0x10_0000, &[2]).unwrap();
            // Read ones are none, but for those that come from the file only now.
            ram.read(0x3000, &mut [0; 64]).unwrap();
            assert_eq!(written.take().unwrap(), [(0x4000, 0x2000), ((1 << 32) + 0x10_0000, 0x1000)]);
            assert_eq!(written.take().unwrap(), []);
        }
    }

    #[test]
    fn stores_through_the_host_address_and_by_the_kernel_are_told_too() {
        let ram = Arc::new(GuestRam::new(&RANGES).unwrap());
        let Some(mut written) = watch(&ram) else { return };
        ram.write(0, &[1; 0x8000]).unwrap();
        written.take().unwrap();
        let host = ram.host(0x2010).unwrap();
        // SAFETY: the address is inside ram, which lives; nobody else touches it.
        unsafe { host.as_ptr().write_volatile(5) };
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 64], 0).unwrap();
        let into = ram.host(0x6000).unwrap();
        // SAFETY: as above; the slice ends before the page does, and nobody else has a reference.
        let bytes = unsafe { std::slice::from_raw_parts_mut(into.as_ptr(), 64) };
        file.read_exact_at(bytes, 0).unwrap();
        assert_eq!(written.take().unwrap(), [(0x2000, 0x1000), (0x6000, 0x1000)]);
    }

    #[test]
    fn what_was_given_back_is_told_and_a_second_watch_begins_anew() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(24 << 20).unwrap();
        for ram in [GuestRam::new(&RANGES).unwrap(), GuestRam::from_file(&RANGES, &file).unwrap()] {
            let ram = Arc::new(ram);
            ram.write(0, &[1; 0x8000]).unwrap();
            for _ in 0..2 {
                let Some(mut written) = watch(&ram) else { return };
                written.take().unwrap();
                ram.discard(0x1000, 0x2000);
                ram.discard((1 << 32) + 0x4000, 0x1000);
                let expected = [(0x1000, 0x2000), ((1 << 32) + 0x4000, 0x1000)];
                assert_eq!(written.take().unwrap(), expected);
                assert_eq!(written.take().unwrap(), []);
                ram.write(0, &[1; 0x8000]).unwrap();
            }
            assert_eq!(ranges(&ram), RANGES);
        }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(merged(vec![(0, 2), (2, 2), (3, 4), (8, 1), (8, 3)]), [(0, 7), (8, 3)]);
        assert_eq!(merged(Vec::new()), []);
    }
}
