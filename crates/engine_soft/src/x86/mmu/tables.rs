//! The tables of an [`Mmu`](super::Mmu) that has seen nothing.
// UNSAFETY: takes zeroed memory as tables.

use super::{CodePage, EXEC_ENTRIES, LAST_SLOT, NO_CODE, TLB_ENTRIES, TlbEntry};

/// Entries of the TLB's views.
pub(super) type Views = Box<[[TlbEntry; TLB_ENTRIES]; 3]>;
/// Pages with code, for each privilege.
pub(super) type CodePages = Box<[[CodePage; EXEC_ENTRIES]; 2]>;

/// A view without pages.
pub(super) fn empty_view() -> Box<[TlbEntry; TLB_ENTRIES]> {
    // SAFETY: integers, for which zeros are values.
    let mut view = unsafe { Box::<[TlbEntry; TLB_ENTRIES]>::new_zeroed().assume_init() };
    finish(&mut view);
    view
}

/// Makes zeros a view without pages; those that are so already stay untouched, and so cost no memory.
fn finish(view: &mut [TlbEntry; TLB_ENTRIES]) {
    for slot in [0, LAST_SLOT] {
        view[slot] = TlbEntry::empty(slot);
    }
}

/// Entries of the TLB's views, and of pages with code for each privilege. They are made where they stay: the stack of a vCPU's
/// thread is smaller.
pub(super) fn empty() -> (Views, CodePages) {
    // SAFETY: integers, a bool and raw pointers, for all of which zeros are values.
    let (mut entries, mut exec) = unsafe {
        (
            Box::<[[TlbEntry; TLB_ENTRIES]; 3]>::new_zeroed().assume_init(),
            Box::<[[CodePage; EXEC_ENTRIES]; 2]>::new_zeroed().assume_init(),
        )
    };
    entries.iter_mut().for_each(finish);
    let none = std::ptr::null();
    exec.as_flattened_mut().fill(CodePage {
        tag: NO_CODE,
        global: false,
        gfn: 0,
        host: none,
        info: std::ptr::null(),
    });
    (entries, exec)
}
