//! The tables of an [`Mmu`] that has seen nothing.
// UNSAFETY: says that zeros are entries.

use super::{CodePage, EXEC_ENTRIES, LAST_SLOT, Mmu, NO_CODE, TLB_ENTRIES, TlbEntry};
use crate::x86::listed::Listed;
use crate::x86::parked::Parked;
use crate::x86::zeroed::{FromZeros, Zeroed};

// SAFETY: integers.
unsafe impl FromZeros for TlbEntry {}
// SAFETY: integers, a bool and raw pointers.
unsafe impl FromZeros for CodePage {}

/// Entries of the TLB's views.
pub(super) type Views = Zeroed<[[TlbEntry; TLB_ENTRIES]; 3]>;
/// Pages with code, for each privilege.
pub(super) type CodePages = Zeroed<[[CodePage; EXEC_ENTRIES]; 2]>;

/// A view without pages.
pub(super) fn empty_view() -> Zeroed<[TlbEntry; TLB_ENTRIES]> {
    let mut view = Zeroed::new();
    finish_view(&mut view);
    view
}

/// Entries of the TLB's views, and of pages with code for each privilege.
pub(super) fn empty() -> (Views, CodePages) {
    let (mut entries, mut exec) = (Views::new(), CodePages::new());
    finish(&mut entries, &mut exec);
    (entries, exec)
}

/// Makes zeros tables without pages; entries that are so already stay untouched, and so cost no memory.
pub(super) fn finish(entries: &mut Views, exec: &mut CodePages) {
    entries.iter_mut().for_each(finish_view);
    for pages in exec.iter_mut() {
        pages[0].tag = NO_CODE;
    }
}

fn finish_view(view: &mut [TlbEntry; TLB_ENTRIES]) {
    for slot in [0, LAST_SLOT] {
        view[slot] = TlbEntry::empty(slot);
    }
}

impl Mmu {
    /// Drops everything, and gives the memory for it back to the host.
    pub fn give_back(&mut self) {
        self.flush_all();
        self.entries.give_back();
        self.global.give_back();
        self.exec.give_back();
        finish(&mut self.entries, &mut self.exec);
        (self.filled, self.local) = (Vec::new(), Listed::default());
        (self.code_filled, self.code_local) = (Vec::new(), Listed::default());
        self.parked = Parked::default();
    }
}
