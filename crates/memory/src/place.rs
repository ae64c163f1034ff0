//! Where one region of guest RAM is in the host: in a place of its own, which nobody may touch before and behind it.
//!
//! ```text
//!   reserved   ─────┬────────────────────────┬─────
//!            nothing│ RAM, as aligned in the │nothing
//!                   │ host as in the guest   │
//! ```
//! What runs over an end is a fault and not an access to other memory of this process. The kernel joins the region with no
//! neighbour, so what `/proc/PID/smaps` says of it is said of guest RAM alone.
// UNSAFETY: reserves addresses, maps guest RAM at some of them, and unmaps all.

use std::ffi::c_void;
use std::fs::File;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionError;

use crate::backing::{Backing, Data};
use crate::tracker::PageTracker;

/// Bytes at each end that nobody may touch; no Linux host has larger pages.
const GUARD: usize = 64 << 10;
/// Hosts can use their larger pages where a region begins at a multiple of them, as it does for the guest.
const ALIGNMENT: usize = 2 << 20;

const PROT: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// The addresses of one region, and what is mapped there. Dropping it unmaps all.
pub(crate) struct Place {
    reserved: *mut c_void,
    reserved_len: usize,
    len: usize,
}

impl Place {
    /// Maps `len` bytes, whole pages: those of `backing` from `offset` on, or memory that no file is behind.
    pub fn map(len: usize, backing: Option<&Backing>, offset: u64) -> Result<Self, Errno> {
        let place = Self::reserve(len)?;
        match backing {
            // SAFETY: the addresses are this place's, which nobody knows yet.
            None => drop(unsafe { mmap_anonymous(place.ram(), len, PROT, FLAGS | MapFlags::FIXED) }?),
            Some(backing) => {
                place.put(backing.base(), (offset, offset + len as u64), offset)?;
                let over = backing.over().into_iter();
                for extent in over.flat_map(|over| Data::of(over).extents(offset, offset + len as u64)) {
                    place.put(backing.over().expect("it has extents"), extent, offset)?;
                }
            }
        }
        Ok(place)
    }

    fn reserve(len: usize) -> Result<Self, Errno> {
        let reserved_len = len.checked_add(ALIGNMENT + 2 * GUARD).ok_or(Errno::NOMEM)?;
        // SAFETY: the kernel chooses addresses where nothing is.
        let reserved = unsafe { mmap_anonymous(ptr::null_mut(), reserved_len, ProtFlags::empty(), FLAGS) }?;
        Ok(Self { reserved, reserved_len, len })
    }

    /// The region's first byte.
    fn ram(&self) -> *mut c_void {
        let first = self.reserved.addr() + GUARD;
        self.reserved.wrapping_byte_add(GUARD + first.next_multiple_of(ALIGNMENT) - first)
    }

    /// Maps the bytes between `start` and `end` of `file` where they belong in a region that begins at `offset`.
    fn put(&self, file: &File, (start, end): (u64, u64), offset: u64) -> Result<(), Errno> {
        let at = self.ram().wrapping_byte_add((start - offset) as usize);
        // SAFETY: whole pages of this place's region, which nobody knows yet.
        unsafe { mmap(at, (end - start) as usize, PROT, FLAGS | MapFlags::FIXED, file, start) }?;
        Ok(())
    }

    /// For `vm-memory`, which must not use it for longer than the place is there.
    pub fn region(&self) -> Result<MmapRegion<PageTracker>, MmapRegionError> {
        // SAFETY: just these bytes are mapped.
        unsafe { MmapRegion::build_raw(self.ram().cast(), self.len, PROT.bits() as i32, FLAGS.bits() as i32) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: this place's own addresses; `GuestRam`, to which it belongs, has given up all that points there.
        let _ = unsafe { munmap(self.reserved, self.reserved_len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestRam;

    #[test]
    fn a_region_is_a_mapping_of_its_own_between_addresses_that_nobody_may_touch() {
        let len = 3 << 20;
        let ram = GuestRam::new(&[(0, len), (1 << 32, len)]).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for (gpa, len) in ram.ranges() {
            let start = ram.host(gpa).unwrap().addr().get();
            assert!(start.is_multiple_of(ALIGNMENT));
            let end = start + len as usize;
            let lines: Vec<_> = maps.lines().collect();
            let own = lines.iter().position(|line| line.starts_with(&format!("{start:x}-{end:x} rw-p")));
            let own = own.unwrap_or_else(|| panic!("no mapping from {start:x} to {end:x} in {maps}"));
            assert!(lines[own - 1].contains(&format!("-{start:x} ---p")), "{}", lines[own - 1]);
            assert!(lines[own + 1].contains(&format!("{end:x}-")), "{}", lines[own + 1]);
            assert!(lines[own + 1].contains(" ---p"), "{}", lines[own + 1]);
        }
    }

    #[test]
    fn memory_that_no_address_space_holds_is_an_error() {
        for len in [1 << 50, usize::MAX & !0xfff] {
            assert!(matches!(Place::map(len, None, 0), Err(Errno::NOMEM)));
        }
    }
}
