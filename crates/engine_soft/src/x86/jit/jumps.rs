//! Where jumps to other pages and indirect ones go: a table for each privilege, looked up by generated code.

/// Entries of a jump table; a power of two.
pub(super) const JUMP_ENTRIES: usize = 16384;

/// Where translated code for a linear address is.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(in crate::x86) struct Jump {
    pub(super) linear: u64,
    pub(super) code: u64,
}

impl Jump {
    /// An entry that nothing matches: no jump inside canonical addresses gets there, and other jumps look for its
    /// address elsewhere than in `slot` and its neighbour.
    const fn none(slot: usize) -> Self {
        Self { linear: 1 << 63 | if slot < 2 { 2 } else { 0 }, code: 0 }
    }

    /// The entry where `linear` is looked for first; the other one is its neighbour, the number with the lowest bit
    /// inverted.
    pub(super) const fn slot(linear: u64) -> usize {
        (linear as u32 ^ linear as u32 >> 12) as usize & (JUMP_ENTRIES - 1)
    }
}

/// Aligned so that neighbours differ in one bit of their addresses.
#[repr(C, align(64))]
struct Entries([Jump; JUMP_ENTRIES]);

/// The jump table of a privilege.
pub(super) struct Jumps {
    entries: Box<Entries>,
    /// Which entries lead to pages that are the same in all address spaces.
    global: Box<[bool; JUMP_ENTRIES]>,
    /// Entries in use, so that forgetting them touches only those.
    filled: Vec<u16>,
}

impl Jumps {
    /// Without any.
    pub(super) fn new() -> Self {
        Self {
            entries: Box::new(Entries(std::array::from_fn(Jump::none))),
            global: Box::new([false; JUMP_ENTRIES]),
            filled: Vec::new(),
        }
    }

    /// Forgets the jumps to linear addresses for which `which` holds, given whether they are global.
    pub(super) fn forget(&mut self, which: impl Fn(u64, bool) -> bool) {
        self.filled.retain(|slot| {
            let slot = usize::from(*slot);
            let gone = which(self.entries.0[slot].linear, self.global[slot]);
            if gone {
                self.entries.0[slot] = Jump::none(slot);
            }
            !gone
        });
    }

    /// Its first entry, which stays where it is.
    pub(super) fn table(&self) -> *const Jump {
        self.entries.0.as_ptr()
    }

    /// Where the code for `linear` is entered.
    pub(super) fn find(&self, linear: u64) -> Option<u64> {
        let slot = Jump::slot(linear);
        let jumps = [slot, slot ^ 1].map(|slot| self.entries.0[slot]);
        jumps.into_iter().find(|jump| jump.linear == linear).map(|jump| jump.code)
    }

    /// Whether no jump is known.
    pub(super) fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Lets jumps to `linear` go to `code`.
    pub(super) fn remember(&mut self, linear: u64, code: u64, global: bool) {
        let slot = Jump::slot(linear);
        let before = self.entries.0[slot];
        if before.code != 0 && before.linear != linear {
            // Two that are needed in turn do not drive each other out.
            self.enter(slot ^ 1, before, self.global[slot]);
        }
        self.enter(slot, Jump { linear, code }, global);
    }

    fn enter(&mut self, slot: usize, jump: Jump, global: bool) {
        if self.entries.0[slot].code == 0 {
            self.filled.push(slot as u16);
        }
        self.entries.0[slot] = jump;
        self.global[slot] = global;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_finds_an_unused_entry() {
        for slot in 0..JUMP_ENTRIES {
            assert_ne!(Jump::slot(Jump::none(slot).linear) & !1, slot & !1);
        }
    }

    #[test]
    fn two_jumps_of_one_entry_are_both_remembered_and_forgotten() {
        let mut jumps = Jumps::new();
        let (one, other) = (0xffff_ffff_8106_ad90, 0xffff_ffff_8127_af80);
        let slot = Jump::slot(one);
        assert_eq!(Jump::slot(other), slot);
        jumps.remember(one, 1, true);
        jumps.remember(other, 2, false);
        assert_eq!((jumps.entries.0[slot].linear, jumps.entries.0[slot ^ 1].linear), (other, one));
        assert_eq!((jumps.find(one), jumps.find(other), jumps.find(one + 1)), (Some(1), Some(2), None));
        jumps.forget(|_, global| !global);
        assert_eq!((jumps.entries.0[slot].code, jumps.entries.0[slot ^ 1].code), (0, 1));
        jumps.forget(|linear, _| linear == one);
        assert_eq!(jumps.entries.0[slot ^ 1].code, 0);
        assert!(jumps.filled.is_empty());
    }
}
