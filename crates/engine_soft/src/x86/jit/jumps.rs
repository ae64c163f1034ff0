//! Where jumps to other pages and indirect ones go: a table for each privilege, looked up by generated code.
//!
//! Code behind an entry is as fresh as when it was entered: whoever hears that code of a page was overwritten forgets the
//! jumps to it before the next one ([`Jumps::forget_code`]), so a block need not look whether it is stale.
// UNSAFETY: says that zeros are entries.

use std::io;

use arch::x86::paging::PAGE_SHIFT;

use crate::x86::listed::Listed;
use crate::x86::parked::Parked;
use crate::x86::regions::Regions;
use crate::x86::zeroed::{FromZeros, Zeroed};

/// An instruction that ends in a page begins at most so many bytes before it.
const LONGEST: u64 = 14;
/// Entries of a jump table, as a power of two, at first: all of their memory is used soon, for they are scattered.
pub(super) const FEW_BITS: u32 = 14;
/// The same where those are not enough: GCC at work goes to some twenty thousand places over and over.
const MANY_BITS: u32 = 16;
/// Room for that many, which costs no memory as long as it is not used.
const JUMP_ENTRIES: usize = 1 << MANY_BITS;

/// Where translated code for a linear address is.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(in crate::x86) struct Jump {
    pub(super) linear: u64,
    pub(super) code: u64,
}

// SAFETY: integers.
unsafe impl FromZeros for Jump {}

impl Jump {
    /// An entry that nothing matches: jumps to its address look elsewhere than in `slot` and its neighbour. All but the first
    /// two are zeros, which an untouched table costs no memory for.
    const fn none(slot: usize) -> Self {
        Self { linear: if slot < 2 { 1 << 63 | 2 } else { 0 }, code: 0 }
    }

    /// The entry where `linear` is looked for first in a table of 2 to the `bits`; the other one is its neighbour, the number
    /// with the lowest bit inverted.
    pub(super) const fn slot(linear: u64, bits: u32) -> usize {
        ((linear as u32).wrapping_mul(Self::FACTOR) >> (32 - bits)) as usize
    }

    /// What an address is multiplied by to find its entry: the top bits of the product are its number.
    pub(super) const FACTOR: u32 = 0x9e37_79b9;
}

/// The jump table of a privilege.
pub(super) struct Jumps {
    /// How many of the entries are used, as a power of two.
    bits: u32,
    entries: Zeroed<[Jump; JUMP_ENTRIES]>,
    /// Which page, by the address of what is known of it, the code of an entry was made from.
    sources: Zeroed<[usize; JUMP_ENTRIES]>,
    /// Which entries lead to pages that are the same in all address spaces.
    global: Zeroed<[bool; JUMP_ENTRIES]>,
    /// Entries in use, so that forgetting them touches only those: their code is known, if not where it belongs.
    filled: Vec<u16>,
    /// Those that came to lead to pages that are not global since such jumps were forgotten.
    local: Listed<JUMP_ENTRIES>,
    /// Pages that jumps lead to, and whether some are global.
    pages: Regions,
    /// Pages that code behind jumps was made from, those parked included.
    source_pages: Regions,
    has_global: bool,
    /// Jumps of other address spaces, with their entries.
    parked: Parked<(u16, Jump, usize)>,
    /// The PCID that jumps are of, if that is known.
    pcid: Option<u16>,
}

impl Jumps {
    /// Without any, and with 2 to the `bits` entries.
    ///
    /// # Errors
    /// If the host has no memory where generated code can name it.
    pub(super) fn new(bits: u32) -> io::Result<Self> {
        let mut jumps = Self {
            bits,
            entries: Zeroed::below_2_gib()?,
            sources: Zeroed::new(),
            global: Zeroed::new(),
            filled: Vec::new(),
            local: Listed::default(),
            pages: Regions::default(),
            source_pages: Regions::default(),
            has_global: false,
            parked: Parked::default(),
            pcid: None,
        };
        jumps.finish();
        Ok(jumps)
    }

    /// Makes zeros entries that nothing matches.
    fn finish(&mut self) {
        (0..2).for_each(|slot| self.entries[slot] = Jump::none(slot));
    }

    /// Forgets all jumps, and gives the memory for them back.
    pub(super) fn give_back(&mut self) {
        self.forget_all();
        self.entries.give_back();
        self.sources.give_back();
        self.global.give_back();
        self.finish();
        (self.filled, self.local, self.parked) = (Vec::new(), Listed::default(), Parked::default());
        self.bits = FEW_BITS;
    }

    /// Whether there are so many jumps that they drive each other out, and could have more entries.
    pub(super) fn is_crowded(&self) -> bool {
        self.bits < MANY_BITS && self.filled.len() > 1 << (self.bits - 1)
    }

    /// Forgets all jumps, and has more entries from now on: no code may be left that looks among fewer.
    pub(super) fn grow(&mut self) {
        self.forget_all();
        self.bits = MANY_BITS;
    }

    /// How many entries it has, as a power of two.
    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    /// Forgets all jumps.
    pub(super) fn forget_all(&mut self) {
        self.forget_local();
        (self.pages, self.source_pages, self.has_global) = (Regions::default(), Regions::default(), false);
        for slot in self.filled.drain(..).map(usize::from) {
            self.entries[slot] = Jump::none(slot);
        }
    }

    /// Forgets those that are not global, of every PCID.
    pub(super) fn forget_local(&mut self) {
        self.parked.clear();
        self.pcid = None;
        self.take_local().for_each(drop);
    }

    /// Forgets the jumps into the region of 2 to the `bits` bytes around `linear`.
    pub(super) fn forget_region(&mut self, linear: u64, bits: u32) {
        if bits == PAGE_SHIFT && !self.pages.has(linear >> PAGE_SHIFT) {
            return;
        }
        let entries = &mut self.entries;
        self.filled.retain(|slot| {
            let slot = usize::from(*slot);
            let jump = entries[slot].linear;
            let gone = (jump ^ linear) >> bits == 0 || (jump.wrapping_add(LONGEST) ^ linear) >> bits == 0;
            if gone {
                entries[slot] = Jump::none(slot);
            }
            !gone
        });
    }

    /// Forgets the jumps, those parked included, to code made from the page that `source` is the address of what is known of.
    pub(super) fn forget_code(&mut self, source: usize) {
        if !self.source_pages.has(source as u64) {
            return;
        }
        let (entries, sources) = (&mut self.entries, &self.sources);
        self.filled.retain(|slot| {
            let slot = usize::from(*slot);
            let gone = sources[slot] == source;
            if gone {
                entries[slot] = Jump::none(slot);
            }
            !gone
        });
        self.parked.retain(|(_, _, from)| *from != source);
    }

    /// Forgets what is parked for `pcid`, which is not the current one.
    pub(super) fn forget_other(&mut self, pcid: u16) {
        self.parked.forget(pcid);
    }

    /// CR3 leads to the address space of `pcid` now, the jumps of which count only if they are to be kept.
    pub(super) fn switch(&mut self, pcid: u16, keep: bool) {
        let before = self.pcid.replace(pcid);
        if keep && before == Some(pcid) {
            return;
        }
        let mut parked = std::mem::take(&mut self.parked);
        match before.filter(|before| *before != pcid) {
            Some(before) => parked.park(before, self.take_local()),
            None => self.take_local().for_each(drop),
        }
        if !self.has_global {
            self.pages = Regions::default();
        }
        let set = parked.take(pcid);
        if keep {
            set.iter().for_each(|(slot, jump, source)| self.enter(usize::from(*slot), *jump, *source, false));
        }
        parked.recycle(set);
        self.parked = parked;
    }

    /// Forgets the jumps that are not global, and hands them out.
    fn take_local(&mut self) -> impl Iterator<Item = (u16, Jump, usize)> {
        let (entries, global, sources) = (&mut self.entries, &self.global, &self.sources);
        self.local.drain().filter(|slot| !global[*slot]).filter_map(|slot| {
            let nowhere = Jump::none(slot).linear;
            let jump = entries[slot];
            // Keeps its code, by which it is known to be on the list of filled entries.
            entries[slot].linear = nowhere;
            (jump.linear != nowhere).then_some((slot as u16, jump, sources[slot]))
        })
    }

    /// The address of its first entry, which stays where it is.
    pub(super) fn table(&self) -> i32 {
        self.entries.low_address()
    }

    /// Where the code for `linear` is entered.
    pub(super) fn find(&self, linear: u64) -> Option<u64> {
        let slot = Jump::slot(linear, self.bits);
        let jumps = [slot, slot ^ 1].map(|slot| self.entries[slot]);
        jumps.into_iter().find(|jump| jump.linear == linear).map(|jump| jump.code)
    }

    /// Lets jumps to `linear` go to `code`, which was made from the page that `source` is the address of what is known of.
    pub(super) fn remember(&mut self, linear: u64, code: u64, source: usize, global: bool) {
        let slot = Jump::slot(linear, self.bits);
        let before = self.entries[slot];
        if before.linear != Jump::none(slot).linear && before.linear != linear {
            // Two that are needed in turn do not drive each other out.
            self.enter(slot ^ 1, before, self.sources[slot], self.global[slot]);
        }
        self.enter(slot, Jump { linear, code }, source, global);
    }

    fn enter(&mut self, slot: usize, jump: Jump, source: usize, global: bool) {
        if self.entries[slot].code == 0 {
            self.filled.push(slot as u16);
        }
        self.entries[slot] = jump;
        self.sources[slot] = source;
        self.global[slot] = global;
        self.source_pages.add(source as u64);
        self.pages.add(jump.linear >> PAGE_SHIFT);
        self.pages.add(jump.linear.wrapping_add(LONGEST) >> PAGE_SHIFT);
        self.has_global |= global;
        if !global {
            self.local.add(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_finds_an_unused_entry() {
        for bits in [FEW_BITS, MANY_BITS] {
            for slot in 0..1 << bits {
                assert_ne!(Jump::slot(Jump::none(slot).linear, bits) & !1, slot & !1);
            }
        }
    }

    #[test]
    fn an_untouched_table_has_unused_entries_at_an_address_that_code_can_count_on() {
        let jumps = Jumps::new(FEW_BITS).unwrap();
        assert_eq!(jumps.table() % 64, 0);
        for slot in 0..JUMP_ENTRIES {
            let (found, none) = (jumps.entries[slot], Jump::none(slot));
            assert_eq!((found.linear, found.code), (none.linear, none.code));
        }
    }

    #[test]
    fn two_jumps_of_one_entry_are_both_remembered_and_forgotten() {
        let mut jumps = Jumps::new(FEW_BITS).unwrap();
        let one = 0xffff_ffff_8106_ad90;
        let slot = Jump::slot(one, FEW_BITS);
        let other = (1..).map(|n| one + 16 * n).find(|other| Jump::slot(*other, FEW_BITS) == slot).unwrap();
        jumps.remember(one, 1, 0x1000, true);
        jumps.remember(other, 2, 0x1000 * 2, false);
        assert_eq!((jumps.entries[slot].linear, jumps.entries[slot ^ 1].linear), (other, one));
        assert_eq!((jumps.find(one), jumps.find(other), jumps.find(one + 1)), (Some(1), Some(2), None));
        jumps.forget_local();
        assert_eq!((jumps.find(one), jumps.find(other)), (Some(1), None));
        jumps.forget_region(one, 12);
        assert_eq!(jumps.find(one), None);
        jumps.remember(one, 3, 0x1000 * 3, true);
        jumps.forget_all();
        assert_eq!(jumps.find(one), None);
        assert!(jumps.filled.is_empty());
    }

    #[test]
    fn jumps_to_code_of_a_page_are_forgotten_wherever_they_are() {
        let mut jumps = Jumps::new(FEW_BITS).unwrap();
        let (gone, kept) = (0x5000, 0x6000);
        jumps.switch(1, false);
        jumps.remember(0x40_1000, 2, gone, false);
        jumps.remember(0x40_2000, 3, kept, false);
        jumps.switch(2, true);
        jumps.remember(0x40_1000, 4, gone, false);
        jumps.remember(0xffff_ffff_8106_ad90, 5, gone, true);
        jumps.forget_code(0x7000);
        assert_eq!(jumps.find(0x40_1000), Some(4));
        jumps.forget_code(gone);
        assert_eq!([0x40_1000, 0xffff_ffff_8106_ad90].map(|linear| jumps.find(linear)), [None; 2]);
        jumps.switch(1, true);
        assert_eq!([0x40_1000, 0x40_2000].map(|linear| jumps.find(linear)), [None, Some(3)]);
    }

    #[test]
    fn jumps_come_back_with_their_address_space_if_it_is_kept() {
        let mut jumps = Jumps::new(FEW_BITS).unwrap();
        let (shared, own) = (0xffff_ffff_8106_ad90, 0x40_1000);
        jumps.switch(1, false);
        jumps.remember(shared, 1, 0x1000, true);
        jumps.remember(own, 2, 0x1000 * 2, false);
        jumps.switch(2, true);
        assert_eq!((jumps.find(shared), jumps.find(own)), (Some(1), None));
        jumps.remember(own, 3, 0x1000 * 3, false);
        jumps.switch(1, true);
        assert_eq!(jumps.find(own), Some(2));
        jumps.forget_other(2);
        jumps.switch(2, true);
        assert_eq!(jumps.find(own), None);
        jumps.switch(1, false);
        assert_eq!((jumps.find(shared), jumps.find(own)), (Some(1), None));
    }

    #[test]
    fn the_same_address_space_loaded_anew_keeps_its_jumps_if_asked_to() {
        let mut jumps = Jumps::new(FEW_BITS).unwrap();
        jumps.switch(1, false);
        jumps.remember(0x40_1000, 2, 0x1000 * 2, false);
        jumps.switch(1, true);
        assert_eq!(jumps.find(0x40_1000), Some(2));
        jumps.switch(1, false);
        assert_eq!(jumps.find(0x40_1000), None);
    }

    #[test]
    fn a_crowded_table_grows_and_finds_what_it_is_told_then() {
        let mut jumps = Jumps::new(FEW_BITS).unwrap();
        let fill = |jumps: &mut Jumps| {
            (1..1 << FEW_BITS).for_each(|n| jumps.remember(0x40_0000 + 7 * n, n, 0x1000, false));
        };
        assert!(!jumps.is_crowded());
        fill(&mut jumps);
        assert!(jumps.is_crowded());
        jumps.grow();
        assert_eq!((jumps.find(0x40_0007), jumps.is_crowded()), (None, false));
        fill(&mut jumps);
        let found = (1..1 << FEW_BITS).filter(|n| jumps.find(0x40_0000 + 7 * n) == Some(*n)).count();
        assert!(found > 9 << (FEW_BITS - 4) && !jumps.is_crowded(), "{found}");
        jumps.give_back();
        assert_eq!((jumps.find(0x40_0007), jumps.bits()), (None, FEW_BITS));
    }
}
