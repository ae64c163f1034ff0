//! The pages that translated code found last, which it tries before the TLB.
//!
//! One set for user and one for kernel code, each used by code translated for that privilege only. Kernels use the
//! stack's page alone: other pointers of theirs lead to ever other pages, and each miss costs more than the TLB.
//! What is known is forgotten with the TLB entry it was copied from at the latest, and whenever the rights it was found
//! under may no longer hold.

use arch::x86::paging::PAGE_SIZE;

/// What code of one privilege knows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Known {
    /// The stack's page.
    pub stack: StackPage,
    /// The pages of other operands.
    pub operands: OperandPages,
}

/// The page the stack was last found in, writable. Not known while the addend is zero.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct StackPage {
    /// Linear address.
    pub page: u64,
    /// Host address minus linear address.
    pub addend: u64,
}

/// The pages of operands by their base (see `jit::operand`), for loads and for stores.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct OperandPages {
    /// Linear address.
    pub page: [u64; Self::COUNT],
    /// What offsets in the page must be below; 0 while no page is known.
    pub limit: [u64; Self::COUNT],
    /// Host address minus linear address.
    pub addend: [u64; Self::COUNT],
}

impl OperandPages {
    /// Pages that are kept.
    pub const COUNT: usize = 48;
    /// The bytes an access may have.
    pub const MAX_SIZE: u64 = 32;
    /// The `limit` of a page that is known: of its last bytes only the TLB can tell if they are enough.
    pub const LIMIT: u64 = PAGE_SIZE - Self::MAX_SIZE + 1;

    /// Forgets all.
    pub fn forget(&mut self) {
        self.limit = [0; Self::COUNT];
    }
}

impl Known {
    /// Nothing.
    pub const NONE: Self = Self {
        stack: StackPage { page: 0, addend: 0 },
        operands: OperandPages {
            page: [0; OperandPages::COUNT],
            limit: [0; OperandPages::COUNT],
            addend: [0; OperandPages::COUNT],
        },
    };

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.stack.addend = 0;
        self.operands.forget();
    }

    /// Forgets the pages in the region of 2 to the `bits` bytes around `linear`.
    pub fn forget_region(&mut self, linear: u64, bits: u32) {
        if (self.stack.page ^ linear) >> bits == 0 {
            self.stack.addend = 0;
        }
        for (page, limit) in self.operands.page.iter().zip(&mut self.operands.limit) {
            if (page ^ linear) >> bits == 0 {
                *limit = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_forgotten_and_nothing_else() {
        let mut known = Known::NONE;
        known.stack = StackPage { page: 0x20_3000, addend: 1 };
        for (n, page) in [0x20_0000, 0x20_1000, 0x40_0000].into_iter().enumerate() {
            known.operands.page[n] = page;
            known.operands.limit[n] = OperandPages::LIMIT;
        }
        known.forget_region(0x20_1000, 12);
        assert_eq!(known.operands.limit[..3], [OperandPages::LIMIT, 0, OperandPages::LIMIT]);
        assert_eq!(known.stack.addend, 1);
        known.forget_region(0x3f_f000, 21);
        assert_eq!(known.operands.limit[..3], [0, 0, OperandPages::LIMIT]);
        assert_eq!(known.stack.addend, 0);
    }
}
