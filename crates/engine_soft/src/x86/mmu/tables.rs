//! The tables of an [`Mmu`] that has seen nothing.
// UNSAFETY: says that zeros are entries.

use super::{CodePage, EXEC_ENTRIES, LAST_SLOT, Mmu, NO_CODE, TLB_ENTRIES, TlbEntry, View, invalid};
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
    // Elsewhere it is as good for all but a translator, which would have no memory for its own tables either.
    let mut entries = Views::below_2_gib().unwrap_or_else(|_| Views::new());
    let mut exec = CodePages::new();
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
    /// Host address of the user's view, which is where code of the user looks whatever view is in force. `None` if generated
    /// code cannot name it.
    pub fn user_view(&self) -> Option<i32> {
        i32::try_from(self.view(View::User).addr()).ok()
    }

    /// Fills `copy` with what `view` has for loads, and nothing for stores.
    pub(in crate::x86) fn copy_for_loads(&self, view: View, copy: &mut [TlbEntry; TLB_ENTRIES]) {
        copy.copy_from_slice(&self.entries[view as usize]);
        for (slot, entry) in copy.iter_mut().enumerate() {
            entry.write = invalid(slot);
        }
    }

    /// Whether code of the user has its accesses looked at one by one, and so finds none of its pages here.
    pub fn close_user_view(&mut self, closed: bool) {
        if closed && !self.closed {
            self.forget_known();
            let user = View::User as usize * TLB_ENTRIES;
            for index in self.filled.iter().copied().map(usize::from) {
                if let Some(slot) = index.checked_sub(user).filter(|slot| *slot < TLB_ENTRIES) {
                    // Keeps its host address, by which it is known to be on the list of filled entries.
                    let nothing = invalid(slot);
                    let entry = &mut self.entries.as_flattened_mut()[index];
                    (entry.read, entry.write) = (nothing, nothing);
                }
            }
        }
        self.closed = closed;
    }

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
