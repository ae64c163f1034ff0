//! Memory that only the start of a process needed.

// UNSAFETY: asks the loader for addresses of this program and the kernel to take pages there.
#![expect(
    unsafe_code,
    reason = "there is no safe way to ask the loader for the program's segments, nor to give pages back"
)]

use std::ffi::{c_int, c_void};
use std::ptr;

use rustix::mm::{Advice, madvise};

/// No Linux host has larger pages.
const LARGEST_PAGE: u64 = 64 << 10;

/// Has all threads allocate from one heap: those of a machine allocate little, and what one has freed another can use then. Before
/// they start; each has a heap of its own otherwise.
///
/// It also keeps the C library from opening files, which would end a confined process: it reads the number of processors when it
/// may make more heaps, and `/proc/sys/vm/overcommit_memory` before it shrinks one of those. Large blocks have mappings of their
/// own and go back as ever.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers; if one is not taken, nothing has changed.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Gives back what starting took and running does not: pages of the program's code and constants, which come back from the
/// file when they are needed again, and what the allocator holds free. What was written to since it was read from the file is
/// left alone.
pub fn give_back_memory() {
    // SAFETY: `give_back_segments` is called during this call alone, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(give_back_segments), ptr::null_mut()) };
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator's own function, which any thread may call at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether nothing can have been written to a segment.
fn is_constant(header: &libc::Elf64_Phdr) -> bool {
    header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
}

/// Gives back whole pages of a segment without write permission between two addresses.
fn give_back(start: u64, end: u64) {
    let (start, end) = (start.next_multiple_of(LARGEST_PAGE), end / LARGEST_PAGE * LARGEST_PAGE);
    if start < end {
        // SAFETY: whole pages of a segment without write permission: the private mapping has no pages of its own, so
        // each access finds what it found before. Segments that relocations write to have that permission in their
        // headers, whatever protection they get afterwards. If the host refuses, nothing has changed.
        let _ = unsafe {
            madvise(
                ptr::with_exposed_provenance_mut(start as usize),
                (end - start) as usize,
                Advice::LinuxDontNeed,
            )
        };
    }
}

/// Gives back the program's segments that nothing can have been written to.
unsafe extern "C" fn give_back_segments(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes it; the headers live as long as the object, which is never taken away.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    for header in headers.iter().filter(|header| is_constant(header)) {
        give_back(base + header.p_vaddr, base + header.p_vaddr + header.p_memsz);
    }
    // The first object is the program; the libraries are small, and others' too.
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of this program's own code that are mapped.
    fn code_in_memory() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let program = std::env::current_exe().unwrap();
        let mut ours = false;
        let mut total = 0;
        for line in maps.lines() {
            if line.contains(" r-xp ") || line.contains(" r--p ") || line.contains(" rw-p ") {
                ours = line.contains(" r-xp ") && line.ends_with(program.to_str().unwrap());
            } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| ours) {
                total += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        total
    }

    #[test]
    fn code_goes_and_comes_back() {
        // What is read from all over the code is in memory.
        code_in_memory();
        let before = code_in_memory();
        give_back_memory();
        let after = code_in_memory();
        assert!(0 < after && after < before, "{before} KiB, then {after}");
    }
}
