//! REP STOS and REP MOVS: at the speed of the host's where all that they touch is in one page, or one each.

use std::mem::offset_of;

use arch::x86::{CpuState, Rflags};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Frame;
use super::access::ADDEND;
use super::asm::{Alu, Condition, Label, Mem, RCX, RDI, RSI, Reg, Size};
use super::plan::{Operand, Plan};
use super::rewrite::{self, S0, S1};
use super::stubs::frame;
use super::translate::Translation;
use crate::x86::interp::cpu::Cpu;
use crate::x86::mmu::Intent;

/// Bytes of a page.
const PAGE: i32 = 4096;

/// The plan for a repeated string instruction with addresses of 64 bits that has one of its own.
pub(super) fn plan_of_string(instruction: &Instruction) -> Option<Plan> {
    use Mnemonic as M;
    if !instruction.has_rep_prefix() || instruction.op0_kind() != OpKind::MemoryESRDI {
        return None;
    }
    let plain = !rewrite::in_segment(instruction);
    let plan = match instruction.mnemonic() {
        M::Stosb => Plan::FillString { shift: 0 },
        M::Stosw => Plan::FillString { shift: 1 },
        M::Stosd => Plan::FillString { shift: 2 },
        M::Stosq => Plan::FillString { shift: 3 },
        _ if instruction.op1_kind() != OpKind::MemorySegRSI || !plain => return None,
        M::Movsb => Plan::MoveString { shift: 0 },
        M::Movsw => Plan::MoveString { shift: 1 },
        M::Movsd => Plan::MoveString { shift: 2 },
        M::Movsq => Plan::MoveString { shift: 3 },
        _ => return None,
    };
    Some(plan)
}

impl Translation<'_> {
    /// REP STOS of elements of 2 to the `shift` bytes.
    pub(super) fn write_fill_string(&mut self, i: usize, shift: u8) {
        let other = self.asm.label();
        self.write_string_start(i, shift, other);
        self.write_find_string(RDI, shift, Intent::Write, other);
        self.asm.lea(Size::Qword, RDI, Mem::Indexed(RDI, S1, 0, 0));
        self.asm.repeat(0xaa, shift);
        self.asm.alu(Size::Qword, Alu::Sub, RDI, S1);
        self.cold_handler(i, other);
    }

    /// REP MOVS of elements of 2 to the `shift` bytes.
    pub(super) fn write_move_string(&mut self, i: usize, shift: u8) {
        let (other, source) = (self.asm.label(), frame(offset_of!(Frame, target)));
        self.write_string_start(i, shift, other);
        self.write_find_string(RSI, shift, Intent::Read, other);
        self.asm.store(Size::Qword, source, S1);
        self.write_find_string(RDI, shift, Intent::Write, other);
        self.asm.alu_load(Size::Qword, Alu::Add, RSI, source);
        self.asm.lea(Size::Qword, RDI, Mem::Indexed(RDI, S1, 0, 0));
        self.asm.repeat(0xa4, shift);
        self.asm.alu(Size::Qword, Alu::Sub, RDI, S1);
        self.asm.alu_load(Size::Qword, Alu::Sub, RSI, source);
        self.cold_handler(i, other);
    }

    /// To `other` if addresses go down, or if there is more than a page.
    fn write_string_start(&mut self, i: usize, shift: u8, other: Label) {
        self.clobber(i);
        let rflags = Mem::Field((offset_of!(Cpu, state) + offset_of!(CpuState, rflags)) as i32);
        self.asm.test_memory(rflags, Rflags::DF.bits() as i32);
        self.asm.jump_if(Condition::NE, other);
        self.asm.alu_immediate(Size::Qword, Alu::Cmp, RCX, PAGE >> shift);
        self.asm.jump_if(Condition::A, other);
    }

    /// What to add to addresses of the string at `start`, into S1. To `other` unless it is in one page that the TLB has.
    fn write_find_string(&mut self, start: Reg, shift: u8, intent: Intent, other: Label) {
        self.asm.mov(Size::Qword, S0, start);
        self.write_check(Operand { size: 1, intent, alignment: 1 }, other);
        self.asm.lea(Size::Qword, S0, Mem::Indexed(S0, RCX, shift, 0));
        self.asm.alu_immediate(Size::Qword, Alu::Cmp, S0, PAGE);
        self.asm.jump_if(Condition::A, other);
        self.write_load_field(S1, ADDEND);
    }
}
