//! Operands relative to RIP: which page they are in depends on the page of the code alone.
//!
//! Each of a few pages has a [`FixedPages`] entry for loads and one for stores, which is tried before the TLB:
//!
//! ```text
//!   mov  S0, gs:[frame.page]      cmp  S0, gs:[page]        another page, or forgotten
//!   lea  S0, [S0 + distance]      jne  other                the TLB; what it says is known from then on
//!   mov  S1, gs:[host]            op   [S1 + offset]
//! ```
//! Kernels too find their variables in this way, and keep to few pages of them.

use std::mem::offset_of;

use iced_x86::{Instruction, Register};

use super::Frame;
use super::access::HOST;
use super::asm::{Alu, Condition, Label, Mem, Size};
use super::keep::Cold;
use super::plan::Operand;
use super::rewrite::{self, S0, S1, place_memory};
use super::stubs::frame;
use super::translate::Translation;
use crate::x86::interp::cpu::Cpu;
use crate::x86::known::{FixedPages, Known};
use crate::x86::mmu::{Intent, View};

/// Where an operand relative to RIP is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    operand: Operand,
    /// From the page of the code to that of the operand.
    distance: i32,
    /// Of the operand in its page.
    offset: i32,
    /// The place in [`FixedPages`].
    n: usize,
}

/// An operand whose page was not known.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnknownFixed {
    fixed: Fixed,
    /// Where the access goes on, with the host address of the page in S1.
    access: Label,
    /// Where it goes if the TLB does not serve it either.
    miss: Label,
}

impl Translation<'_> {
    /// The place of an operand relative to RIP, if all of it is in one page, and aligned as it must be.
    pub(super) fn fixed(&self, instruction: &Instruction, operand: Operand) -> Option<Fixed> {
        let plain = instruction.memory_base() == Register::RIP && !rewrite::in_segment(instruction);
        let target = i32::try_from(instruction.memory_displacement64() as i64).ok().filter(|_| plain)?;
        let (distance, offset) = (target & -4096, target & 4095);
        let inside =
            offset as u32 + operand.size <= 4096 && (offset as u32).is_multiple_of(operand.alignment);
        let page = self.linear.wrapping_add_signed(i64::from(distance));
        let n = FixedPages::place(page, operand.intent == Intent::Write);
        inside.then_some(Fixed { operand, distance, offset, n })
    }

    fn fixed_field(&self, fixed: Fixed, offset: usize) -> Mem {
        let set = super::known(self.user) + offset_of!(Known, fixed);
        Mem::Field((set + offset + fixed.n * size_of::<u64>()) as i32)
    }

    /// The linear address of the page into S0.
    fn write_fixed_page(&mut self, fixed: Fixed) {
        self.asm.load(Size::Qword, S0, frame(offset_of!(Frame, page)));
        if fixed.distance != 0 {
            self.asm.lea(Size::Qword, S0, Mem::Base(S0, fixed.distance));
        }
    }

    /// Finds the operand, which is at the returned place then. Destroys both scratch registers and EFLAGS.
    pub(super) fn write_find_fixed(&mut self, fixed: Fixed, miss: Label) -> Mem {
        self.addend = None;
        let (other, access) = (self.asm.label(), self.asm.label());
        self.write_fixed_page(fixed);
        self.asm.alu_load(Size::Qword, Alu::Cmp, S0, self.fixed_field(fixed, offset_of!(FixedPages, page)));
        self.asm.jump_if(Condition::NE, other);
        self.asm.load(Size::Qword, S1, self.fixed_field(fixed, offset_of!(FixedPages, host)));
        self.asm.bind(access);
        self.cold.push(Cold::UnknownFixed(other, UnknownFixed { fixed, access, miss }));
        Mem::Base(S1, fixed.offset)
    }

    /// To `found` if a page found here may not be kept: what kernel code finds with RFLAGS.AC set may be out of bounds
    /// without it.
    pub(super) fn write_keep_check(&mut self, found: Label) {
        if !self.user {
            let view = Mem::Field(offset_of!(Cpu, view) as i32);
            self.asm.alu_memory_immediate(Size::Qword, Alu::Cmp, view, View::Kernel as i32);
            self.asm.jump_if(Condition::NE, found);
        }
    }

    /// An instruction with an operand relative to RIP.
    pub(super) fn write_with_fixed(&mut self, i: usize, fixed: Fixed) {
        let instruction = rewrite::widened(&self.instructions[i]);
        let Some(mut made) = rewrite::registers(&instruction, &mut self.tools.info, &[S0]) else {
            return self.write_handler(i);
        };
        place_memory(&mut made.instruction, S1, None, fixed.offset);
        let Some(bytes) = self.encoded(&made.instruction) else { return self.write_handler(i) };
        self.clobber(i);
        let miss = self.asm.label();
        self.write_find_fixed(fixed, miss);
        self.write_encoded(i, &made, &bytes);
        self.cold_handler(i, miss);
    }

    /// At `label`: asks the TLB, and remembers what it says.
    pub(super) fn write_unknown_fixed(&mut self, label: Label, unknown: UnknownFixed) {
        let UnknownFixed { fixed, access, miss } = unknown;
        self.asm.bind(label);
        if fixed.offset != 0 {
            self.asm.lea(Size::Qword, S0, Mem::Base(S0, fixed.offset));
        }
        self.write_check(Operand { alignment: 1, ..fixed.operand }, miss);
        self.write_load_field(S1, HOST);
        self.write_keep_check(access);
        self.write_fixed_page(fixed);
        self.asm.store(Size::Qword, self.fixed_field(fixed, offset_of!(FixedPages, page)), S0);
        self.asm.store(Size::Qword, self.fixed_field(fixed, offset_of!(FixedPages, host)), S1);
        self.asm.jump(access);
    }
}
