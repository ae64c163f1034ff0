//! The pages that translated code found last, which it tries before the TLB.
//!
//! One set for user and one for kernel code, each used by code translated for that privilege only. Kernels use the
//! stack's page and those of their variables: other pointers of theirs lead to ever other pages, and each miss costs more
//! than the TLB.
//! What is known is forgotten with the TLB entry it was copied from at the latest, and whenever the rights it was found
//! under may no longer hold.

use arch::x86::paging::PAGE_SIZE;

/// What code of one privilege knows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Known {
    /// The stack's page.
    pub stack: StackPage,
    /// The pages of operands relative to RIP.
    pub fixed: FixedPages,
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

/// The pages of operands relative to RIP (see `jit::fixed`), for loads and for stores.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FixedPages {
    /// Linear address, or [`Self::NONE`].
    pub page: [u64; Self::COUNT],
    /// Host address.
    pub host: [u64; Self::COUNT],
}

impl FixedPages {
    /// Pages that are kept.
    pub const COUNT: usize = 32;
    /// What no page begins at.
    const NONE: u64 = 1;

    /// Where the page at `linear` is kept for loads, or for stores if `writes`.
    pub fn place(linear: u64, writes: bool) -> usize {
        let slot = (linear / PAGE_SIZE) as usize % (Self::COUNT / 2);
        2 * slot + usize::from(writes)
    }

    fn forget(&mut self) {
        self.page = [Self::NONE; Self::COUNT];
    }
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

    fn forget(&mut self) {
        self.limit = [0; Self::COUNT];
    }
}

impl Known {
    /// Nothing.
    pub const NONE: Self = Self {
        stack: StackPage { page: 0, addend: 0 },
        fixed: FixedPages { page: [FixedPages::NONE; FixedPages::COUNT], host: [0; FixedPages::COUNT] },
        operands: OperandPages {
            page: [0; OperandPages::COUNT],
            limit: [0; OperandPages::COUNT],
            addend: [0; OperandPages::COUNT],
        },
    };

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.stack.addend = 0;
        self.forget_operands();
    }

    /// Forgets everything but the stack's page.
    pub fn forget_operands(&mut self) {
        self.fixed.forget();
        self.operands.forget();
    }

    /// Forgets the pages in the region of 2 to the `bits` bytes around `linear`.
    pub fn forget_region(&mut self, linear: u64, bits: u32) {
        if (self.stack.page ^ linear) >> bits == 0 {
            self.stack.addend = 0;
        }
        for page in &mut self.fixed.page {
            if (*page ^ linear) >> bits == 0 {
                *page = FixedPages::NONE;
            }
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
            known.fixed.page[n] = page;
        }
        known.forget_region(0x20_1000, 12);
        assert_eq!(known.operands.limit[..3], [OperandPages::LIMIT, 0, OperandPages::LIMIT]);
        assert_eq!(known.fixed.page[..3], [0x20_0000, FixedPages::NONE, 0x40_0000]);
        assert_eq!(known.stack.addend, 1);
        known.forget_region(0x3f_f000, 21);
        assert_eq!(known.operands.limit[..3], [0, 0, OperandPages::LIMIT]);
        assert_eq!(known.fixed.page[..3], [FixedPages::NONE, FixedPages::NONE, 0x40_0000]);
        assert_eq!(known.stack.addend, 0);
    }
}
