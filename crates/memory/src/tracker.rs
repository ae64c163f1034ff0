//! What is known about each guest physical page: whether it was written, whether an engine holds code
//! decoded from it, and which 64-byte lines that code came from.
//!
//! The protocol between those who write RAM and those who cache what they decoded from it:
//! - an engine that decodes first calls [`PageInfo::begin_code`], then reads the bytes, and keeps the
//!   generation with what it decoded; before each use it compares [`PageInfo::code_generation`];
//! - a page *holds code* as long as one of its lines is marked; overwriting a marked line unmarks all of them
//!   and starts a new generation, so a page whose code is gone is an ordinary page again;
//! - whoever writes RAM writes first and then calls [`PageInfo::note_write`] (`vm-memory` does so through
//!   the [`Bitmap`] implementation), which starts a new generation if the written lines hold code;
//! - who runs code without comparing generations all the time asks to be told when a write by [`Bitmap`] hit some
//!   ([`crate::GuestRam::watch_code`]); what its own vCPUs store it learns from [`PageInfo::note_write`].
//!
//! An engine that writes without `note_write` (its TLB's fast path) must only do so while the page is DIRTY
//! and holds no code, and must drop such entries in all vCPUs before it decodes from a page that held none.
// UNSAFETY: takes zeroed memory as a table of atomics.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use crate::{PAGE_SHIFT, PAGE_SIZE};

bitflags::bitflags! {
    /// Flags of one guest physical page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageFlags: u32 {
        /// Written since the flag was last cleared.
        const DIRTY = 1 << 1;
        /// Guest writes are dropped.
        const ROM = 1 << 2;
        /// Accesses are reported (debugger watchpoints).
        const WATCH = 1 << 3;
    }
}

/// What is known about one page. All fields are atomics: any thread may look and note.
#[derive(Debug, Default)]
#[repr(C)]
pub struct PageInfo {
    flags: AtomicU32,
    code_generation: AtomicU32,
    code_lines: AtomicU64,
}

impl PageInfo {
    /// The page's flags now.
    #[inline]
    pub fn flags(&self) -> PageFlags {
        PageFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// Sets flags.
    #[inline]
    pub fn set(&self, flags: PageFlags) {
        self.flags.fetch_or(flags.bits(), Ordering::SeqCst);
    }

    /// Clears flags and says what they were before.
    #[inline]
    pub fn clear(&self, flags: PageFlags) -> PageFlags {
        PageFlags::from_bits_retain(self.flags.fetch_and(!flags.bits(), Ordering::SeqCst))
    }

    /// Counts how often code in this page was overwritten; compare with what [`Self::begin_code`] returned.
    #[inline]
    pub fn code_generation(&self) -> u32 {
        self.code_generation.load(Ordering::Relaxed)
    }

    /// The counter behind [`Self::code_generation`], for engines that compare it inline.
    pub fn code_generation_counter(&self) -> &AtomicU32 {
        &self.code_generation
    }

    /// Whether something decoded from this page may be in use.
    #[inline]
    pub fn holds_code(&self) -> bool {
        self.code_lines.load(Ordering::SeqCst) != 0
    }

    /// Declares that code is about to be decoded from `len` bytes at `offset` of the page.
    ///
    /// The generation is read before the lines are marked: a writer unmarks first and counts second, so
    /// marks can only be lost together with the generation they were made under.
    pub fn begin_code(&self, offset: usize, len: usize) -> CodeMark {
        let generation = self.code_generation.load(Ordering::SeqCst);
        let before = self.code_lines.fetch_or(lines(offset, len), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        CodeMark { generation, first: before == 0 }
    }

    /// Notes that `len` bytes at `offset` of the page have been written. Returns whether code was hit.
    #[inline]
    pub fn note_write(&self, offset: usize, len: usize) -> bool {
        fence(Ordering::SeqCst);
        if !self.flags().contains(PageFlags::DIRTY) {
            self.set(PageFlags::DIRTY);
        }
        if self.code_lines.load(Ordering::SeqCst) & lines(offset, len) == 0 {
            return false;
        }
        self.start_code_generation();
        true
    }

    /// Makes everything decoded from this page stale.
    pub fn start_code_generation(&self) {
        self.code_lines.swap(0, Ordering::SeqCst);
        self.code_generation.fetch_add(1, Ordering::SeqCst);
    }
}

/// What [`PageInfo::begin_code`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeMark {
    /// The generation to keep with what is decoded.
    pub generation: u32,
    /// The page held no code before: entries that let vCPUs write it unnoticed must be dropped first.
    pub first: bool,
}

/// The bits of a page's 64-byte lines that `offset..offset + len` touches, clamped to the page.
fn lines(offset: usize, len: usize) -> u64 {
    if len == 0 || offset >= PAGE_SIZE {
        return 0;
    }
    let first = offset / 64;
    let last = (offset + len - 1).min(PAGE_SIZE - 1) / 64;
    (u64::MAX >> (63 - (last - first))) << first
}

/// Called after a device has overwritten code in a page, by the thread that did, with what is known of the page.
pub type CodeWatcher = Arc<dyn Fn(*const PageInfo) + Send + Sync>;

/// The pages of one region, as the bitmap `vm-memory` marks writes in.
#[derive(Default)]
pub struct PageTracker {
    pages: Box<[PageInfo]>,
    /// Read only when code was hit, which is rare. Whoever is called takes no lock of this crate.
    watcher: RwLock<Option<CodeWatcher>>,
}

impl fmt::Debug for PageTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTracker").field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

impl PageTracker {
    /// One entry a page, in order.
    pub fn pages(&self) -> &[PageInfo] {
        &self.pages
    }

    /// Has `watcher` called whenever a marked write hit code, in place of whoever was called before.
    pub(crate) fn watch_code(&self, watcher: CodeWatcher) {
        *self.watcher.write().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
    }

    /// Tells who watches that code in `page` was overwritten.
    #[cold]
    pub(crate) fn tell_watcher(&self, page: &PageInfo) {
        if let Some(watcher) = &*self.watcher.read().unwrap_or_else(PoisonError::into_inner) {
            watcher(page);
        }
    }
}

impl NewBitmap for PageTracker {
    fn with_len(len: usize) -> Self {
        let count = len.div_ceil(PAGE_SIZE);
        // SAFETY: all-zero bytes are a valid `PageInfo` (three atomics). Asking for zeroed memory keeps the
        // table untouched, and so uncommitted, until a page is used: 512 GiB guests cost nothing up front.
        let pages = unsafe { Box::<[PageInfo]>::new_zeroed_slice(count).assume_init() };
        Self { pages, watcher: RwLock::default() }
    }
}

impl<'a> WithBitmapSlice<'a> for PageTracker {
    type S = RefSlice<'a, Self>;
}

impl PageTracker {
    /// Notes that the whole pages in `len` bytes at `offset` hold something else now. What is known of a page without code is
    /// only read, so that a table of pages that were never touched stays untouched itself.
    pub(crate) fn note_discard(&self, offset: usize, len: usize) {
        let pages = &self.pages[offset >> PAGE_SHIFT..(offset + len) >> PAGE_SHIFT];
        for page in pages.iter().filter(|page| page.holds_code()) {
            page.start_code_generation();
            self.tell_watcher(page);
        }
    }
}

impl Bitmap for PageTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let end = offset.saturating_add(len).min(self.pages.len() << PAGE_SHIFT);
        let mut at = offset;
        while at < end {
            let in_page = at & (PAGE_SIZE - 1);
            let count = (end - at).min(PAGE_SIZE - in_page);
            let page = &self.pages[at >> PAGE_SHIFT];
            if page.note_write(in_page, count) {
                self.tell_watcher(page);
            }
            at += count;
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.get(offset >> PAGE_SHIFT).is_some_and(|p| p.flags().contains(PageFlags::DIRTY))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cover_the_touched_range_and_no_more() {
        assert_eq!(lines(0, 1), 1);
        assert_eq!(lines(63, 2), 0b11);
        assert_eq!(lines(0, 4096), u64::MAX);
        assert_eq!(lines(4095, 100), 1 << 63);
        assert_eq!(lines(128, 0), 0);
    }

    #[test]
    fn marking_beyond_the_end_touches_nothing() {
        let tracker = PageTracker::with_len(0x2000);
        tracker.mark_dirty(0x1fff, usize::MAX);
        assert!(tracker.dirty_at(0x1000) && !tracker.dirty_at(0));
        tracker.mark_dirty(0x5000, 1);
    }
}
