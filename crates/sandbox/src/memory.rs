//! Memory that only the start of a process needed.

// UNSAFETY: asks the loader for addresses of this program and the kernel to take pages there.
#![expect(
    unsafe_code,
    reason = "there is no safe way to ask the loader for the program's segments, nor to give pages back"
)]

use std::ffi::{c_int, c_void};
use std::ptr;

use rustix::mm::{Advice, madvise};

/// The table of relocations, and its bytes, in a dynamic section (System V ABI, "Dynamic Section").
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
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

/// Gives back what the loader read of the program's file to place it, three quarters of a mebibyte of relocations: at the beginning of
/// a process that is to stay small from its first moment on.
pub fn give_back_relocations() {
    // SAFETY: as above.
    unsafe { libc::dl_iterate_phdr(Some(find_relocations), ptr::null_mut()) };
}

/// Where an object is, and its program headers.
///
/// # Safety
/// `object` is a description that the loader has passed.
unsafe fn headers<'a>(object: *const libc::dl_phdr_info) -> (u64, &'a [libc::Elf64_Phdr]) {
    // SAFETY: the caller's promise; the headers live as long as the object, which is never taken away.
    unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    }
}

/// Gives back the table that the program's dynamic section names.
unsafe extern "C" fn find_relocations(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes it.
    let (base, headers) = unsafe { headers(object) };
    let (mut table, mut size) = (0, 0);
    if let Some(dynamic) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) {
        let count = dynamic.p_memsz as usize / size_of::<[u64; 2]>();
        let first = ptr::with_exposed_provenance::<[u64; 2]>((base + dynamic.p_vaddr) as usize);
        // SAFETY: the segment is mapped as long as the object lives and holds pairs of a tag and a value, of which there are so many.
        for [tag, value] in unsafe { std::slice::from_raw_parts(first, count) } {
            match *tag {
                DT_RELA => table = *value,
                DT_RELASZ => size = *value,
                _ => {}
            }
        }
    }
    // Some loaders write where the table is in place of where the file has it.
    let table = if table < base { base + table } else { table };
    let holds = |header: &libc::Elf64_Phdr| {
        let start = base + header.p_vaddr;
        start <= table && table + size <= start + header.p_memsz
    };
    if headers.iter().any(|header| is_constant(header) && holds(header)) {
        give_back(table, table + size);
    }
    1
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
    // SAFETY: the loader passes it.
    let (base, headers) = unsafe { headers(object) };
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
    fn relocations_go_and_nothing_else_is_changed() {
        // Addresses that the loader wrote by them: taken back, they would lead nowhere.
        static TABLE: [&str; 2] = ["one", "three"];
        give_back_relocations();
        assert_eq!(std::hint::black_box(&TABLE).map(|text| text.chars().count()), [3, 5]);
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
