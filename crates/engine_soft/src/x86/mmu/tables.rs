//! The tables of an [`Mmu`](super::Mmu) that has seen nothing.
// UNSAFETY: takes zeroed memory as tables.

use super::{CodePage, EXEC_ENTRIES, NO_CODE, TLB_ENTRIES, TlbEntry};

/// Entries of the TLB's views.
pub(super) type Views = Box<[[TlbEntry; TLB_ENTRIES]; 3]>;
/// Pages with code, for each privilege.
pub(super) type CodePages = Box<[[CodePage; EXEC_ENTRIES]; 2]>;

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
    for (index, entry) in entries.as_flattened_mut().iter_mut().enumerate() {
        *entry = TlbEntry::empty(index % TLB_ENTRIES);
    }
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
