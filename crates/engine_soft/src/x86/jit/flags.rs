//! Which status flags matter where.
//!
//! Address checks destroy EFLAGS, so it pays to know that nobody will look at them. Flags are followed
//! backwards through a block and forwards into its successors as far as those lie in the same page; beyond, all
//! flags count as live. A flag that is dead here may be wrong in what a fault of this block pushes: nothing
//! that runs later can tell, for the flag is overwritten before it is read.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits,
};

/// The six status flags.
pub const ALL: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Successor instructions looked at in one search.
const SEARCH_LIMIT: u32 = 24;

/// What an instruction does to status flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Flags whose value before matters.
    pub reads: u32,
    /// Flags that it always replaces.
    pub replaces: u32,
    /// Flags that it may change.
    pub changes: u32,
}

impl Effect {
    /// The effect of a translated instruction.
    pub fn of(instruction: &Instruction) -> Self {
        let mut reads = instruction.rflags_read() & ALL;
        let mut changes = instruction.rflags_modified() & ALL;
        // A count in CL may be zero, and then nothing changes.
        let last = instruction.op_count().saturating_sub(1);
        let by_cl = instruction.op_count() >= 2
            && instruction.op_kind(last) == OpKind::Register
            && instruction.op_register(last) == Register::CL
            && is_shift(instruction.mnemonic());
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let replaces = if by_cl || repeated { 0 } else { changes };
        if matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) {
            // Where the rotation comes to nothing AMD's processors write OF, and Intel's leave it as it is.
            (reads, changes) = (reads | RflagsBits::CF, changes | RflagsBits::CF | RflagsBits::OF);
        }
        Self { reads, replaces, changes }
    }

    /// The effect of an instruction that may look at everything.
    pub const OPAQUE: Self = Self { reads: ALL, replaces: 0, changes: ALL };

    /// The flags live before, given those live after.
    pub fn before(self, after: u32) -> u32 {
        after & !self.replaces | self.reads
    }

    /// Whether flags that live on pass through EFLAGS while the instruction changes others.
    pub fn keeps_some(self, after: u32) -> bool {
        self.changes != 0 && after & !self.replaces != 0
    }
}

fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    matches!(mnemonic, Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd)
}

/// A look at a page's code from outside.
pub struct Peek<'a> {
    /// The bytes of the page.
    page: &'a [u8],
    /// Width of the code.
    bits: u32,
    left: u32,
    /// The bytes looked at: first and end.
    pub seen: (usize, usize),
}

impl<'a> Peek<'a> {
    /// A look at `page`, which has code of `bits`.
    pub fn new(page: &'a [u8], bits: u32) -> Self {
        Self { page, bits, left: 0, seen: (usize::MAX, 0) }
    }

    /// The flags that may be read by code at `offset` of the page before it replaces them.
    pub fn live_at(&mut self, offset: u64) -> u32 {
        self.left = SEARCH_LIMIT;
        self.search(offset)
    }

    fn search(&mut self, offset: u64) -> u32 {
        let mut at = offset as usize;
        let mut dead = 0;
        let mut live = 0;
        while dead != ALL {
            if offset >= self.page.len() as u64 || at >= self.page.len() || self.left == 0 {
                return live | ALL & !dead;
            }
            self.left -= 1;
            let mut decoder = Decoder::with_ip(self.bits, &self.page[at..], at as u64, DecoderOptions::NONE);
            let instruction = decoder.decode();
            self.seen = (self.seen.0.min(at), self.seen.1.max(at + instruction.len()));
            if instruction.is_invalid() || !is_transparent(&instruction) {
                return live | ALL & !dead;
            }
            let effect = Effect::of(&instruction);
            live |= effect.reads & !dead;
            dead |= effect.replaces;
            at += instruction.len();
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::UnconditionalBranch | FlowControl::Call
                    if matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) =>
                {
                    return live | self.search(instruction.near_branch_target()) & !dead;
                }
                FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() => {
                    let taken = self.search(instruction.near_branch_target());
                    return live | (taken | self.search(at as u64)) & !dead;
                }
                _ => return live | ALL & !dead,
            }
        }
        live
    }
}

/// Whether the flags an instruction reads and writes are all that its execution depends on and changes. Those
/// of the system are not: they may save or inspect RFLAGS as a whole, or give control to others.
fn is_transparent(instruction: &Instruction) -> bool {
    use Code::{Popfd, Popfq, Popfw, Pushfd, Pushfq, Pushfw, Syscall, Sysenter};
    let whole =
        matches!(instruction.code(), Pushfw | Pushfd | Pushfq | Popfw | Popfd | Popfq | Syscall | Sysenter);
    let elsewhere = matches!(
        instruction.flow_control(),
        FlowControl::Interrupt | FlowControl::Exception | FlowControl::XbeginXabortXend
    );
    !instruction.is_privileged() && !whole && !elsewhere
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(bytes: &[u8]) -> u32 {
        let mut page = vec![0xcc; 4096];
        page[..bytes.len()].copy_from_slice(bytes);
        Peek::new(&page, 64).live_at(0)
    }

    #[test]
    fn a_comparison_ends_the_life_of_all_flags() {
        assert_eq!(live(&[0x48, 0x39, 0xd8]), 0); // cmp rax, rbx
        assert_eq!(live(&[0x48, 0x89, 0xd8, 0x48, 0x39, 0xd8]), 0); // mov first
    }

    #[test]
    fn what_is_read_first_is_live() {
        assert_eq!(live(&[0x48, 0x11, 0xd8]), RflagsBits::CF); // adc rax, rbx
        assert_eq!(live(&[0x0f, 0x94, 0xc0, 0x48, 0x39, 0xd8]), RflagsBits::ZF); // sete al; cmp
    }

    #[test]
    fn increments_leave_the_carry_and_shifts_by_cl_everything() {
        assert_eq!(live(&[0x48, 0xff, 0xc0, 0xc3]), RflagsBits::CF | ALL & RflagsBits::CF); // inc rax; ret
        assert_eq!(live(&[0x48, 0xd3, 0xe0, 0xc3]), ALL); // shl rax, cl; ret
    }

    #[test]
    fn a_rotation_that_comes_to_nothing_may_write_overflow_or_leave_it() {
        let bytes = [0x66, 0xc1, 0xd0, 17]; // rcl ax, 17
        let effect = Effect::of(&Decoder::new(64, &bytes, DecoderOptions::NONE).decode());
        assert_eq!(effect.replaces, 0);
        assert_eq!(effect.changes, RflagsBits::CF | RflagsBits::OF);
        assert_eq!(effect.before(RflagsBits::OF), RflagsBits::CF | RflagsBits::OF);
    }

    #[test]
    fn both_ways_of_a_branch_count() {
        // je +3; cmp rax, rbx; adc rax, rbx at the target
        assert_eq!(live(&[0x74, 0x03, 0x48, 0x39, 0xd8, 0x48, 0x11, 0xd8]), RflagsBits::ZF | RflagsBits::CF);
    }

    #[test]
    fn beyond_the_page_and_at_returns_all_are_live() {
        assert_eq!(live(&[0xc3]), ALL);
        assert_eq!(Peek::new(&[0x90; 4096], 64).live_at(4095), ALL);
        assert_eq!(live(&[0xeb, 0xfe]), ALL, "an endless loop ends the search");
    }
}
