//! What kernels do all the time beside computing: interrupt flag, PUSHF, selectors, the time stamp counter, and bit
//! strings. Each does the common case in place and leaves the others to the interpreter's handler.

use std::mem::offset_of;

use arch::x86::state::Msrs;
use arch::x86::{CpuState, Cr4, Rflags, Segment, SegmentRegister};
use iced_x86::{Instruction, OpKind, Register};

use super::asm::{Alu, Condition, Label, Mem, RAX, RDX, Size};
use super::flags::Effect;
use super::plan::Operand;
use super::relocation::What;
use super::rewrite::{self, GUEST_RSP, S0, S1, host_of, place_memory};
use super::stubs::{flags, gpr};
use super::translate::Translation;
use crate::x86::interp::cpu::Cpu;
use crate::x86::known::StackPage;
use crate::x86::mmu::View;

/// A field of the architectural state.
fn state(offset: usize) -> Mem {
    Mem::Field((offset_of!(Cpu, state) + offset) as i32)
}

fn segment(register: SegmentRegister, offset: usize) -> Mem {
    state(offset_of!(CpuState, segments) + register as usize * size_of::<Segment>() + offset)
}

impl Translation<'_> {
    /// To `other` unless the privilege level is 0. Destroys EFLAGS.
    fn write_kernel_only(&mut self, other: Label) {
        const DPL: i32 = 3 << 5;
        self.asm.test_memory(segment(SegmentRegister::Ss, offset_of!(Segment, access)), DPL);
        self.asm.jump_if(Condition::NE, other);
    }

    /// CLI
    pub(super) fn write_clear_interrupts(&mut self, i: usize) {
        let other = self.asm.label();
        self.clobber(i);
        self.write_kernel_only(other);
        let rflags = state(offset_of!(CpuState, rflags));
        self.asm.alu_memory_immediate(Size::Dword, Alu::And, rflags, !Rflags::IF.bits() as i32);
        self.cold_handler(i, other);
    }

    /// STI, which ends its block at `next`. If an interrupt may be waiting, the handler sees that it waits for one
    /// instruction more.
    pub(super) fn write_set_interrupts(&mut self, last: usize, next: i64) {
        let other = self.asm.label();
        self.clobber(last);
        self.write_kernel_only(other);
        let hint = Mem::Field(offset_of!(Cpu, interrupt_hint) as i32);
        self.asm.alu_memory_immediate(Size::Byte, Alu::Cmp, hint, 0);
        self.asm.jump_if(Condition::NE, other);
        self.write_look_at_attention();
        self.asm.jump_if(Condition::NE, other);
        let rflags = state(offset_of!(CpuState, rflags));
        self.asm.alu_memory_immediate(Size::Dword, Alu::Or, rflags, Rflags::IF.bits() as i32);
        self.cold_end(last, other);
        self.write_direct(last, next, 1, 0);
    }

    /// SWAPGS, which ends its block at `next`.
    pub(super) fn write_swap_gs(&mut self, last: usize, next: i64) {
        let other = self.asm.label();
        self.clobber(last);
        self.write_kernel_only(other);
        let base = segment(SegmentRegister::Gs, offset_of!(Segment, base));
        let kernel = state(offset_of!(CpuState, msrs) + offset_of!(Msrs, kernel_gs_base));
        self.asm.load(Size::Qword, S0, base);
        self.asm.load(Size::Qword, S1, kernel);
        self.asm.store(Size::Qword, kernel, S0);
        self.asm.store(Size::Qword, base, S1);
        self.addend = None;
        self.cold_end(last, other);
        self.write_direct(last, next, 1, 0);
    }

    /// STAC if `on`, else CLAC, which end their block at `next`: another view of the TLB is in force (see
    /// `Cpu::update_view`).
    pub(super) fn write_set_access(&mut self, last: usize, on: bool, next: i64) {
        let other = self.asm.label();
        let views = self.host.views.expect("without views there is no such end");
        self.clobber(last);
        self.write_kernel_only(other);
        let (view, flag) = (if on { View::KernelAc } else { View::Kernel }, Rflags::AC.bits() as i32);
        let rflags = state(offset_of!(CpuState, rflags));
        if on {
            self.asm.alu_memory_immediate(Size::Dword, Alu::Or, rflags, flag);
        } else {
            self.asm.alu_memory_immediate(Size::Dword, Alu::And, rflags, !flag);
            // What was found with the flag may be out of bounds without it; kernel code keeps no other page.
            self.asm.store_immediate(Size::Qword, self.stack_page(offset_of!(StackPage, addend)), 0);
        }
        self.asm.store_immediate(Size::Qword, Mem::Field(offset_of!(Cpu, view) as i32), view as i32);
        self.asm.load_address(S0, views[usize::from(on)]);
        self.relocate(What::View(on), 0);
        self.asm.store(Size::Qword, Mem::Field(offset_of!(Cpu, tlb) as i32), S0);
        self.cold_end(last, other);
        self.write_direct(last, next, 1, 0);
    }

    /// PUSHFQ, where a group has checked the stack.
    pub(super) fn write_push_flags(&mut self, i: usize) {
        const HIDDEN: u64 = Rflags::STATUS.bits() | Rflags::RF.bits() | Rflags::VM.bits();
        if !self.groups.has(i) {
            return self.write_handler(i);
        }
        self.publish_flags(self.live[i]);
        self.clobber(i);
        // From LAHF's byte above SETO's to their places.
        self.asm.movzx_word(S0, flags());
        self.asm.mov(Size::Dword, S1, S0);
        self.asm.shr(Size::Dword, S0, 8);
        self.asm.alu_immediate(Size::Dword, Alu::And, S0, 0xd5);
        self.asm.alu_immediate(Size::Dword, Alu::And, S1, 1);
        self.asm.shl(Size::Dword, S1, 11);
        self.asm.alu(Size::Dword, Alu::Or, S0, S1);
        self.asm.load(Size::Qword, S1, state(offset_of!(CpuState, rflags)));
        self.asm.alu_immediate(Size::Qword, Alu::And, S1, !HIDDEN as i32);
        self.asm.alu(Size::Qword, Alu::Or, S0, S1);
        self.load_addend(i);
        self.asm.store(Size::Qword, Mem::Indexed(GUEST_RSP, S1, 0, -8), S0);
        self.asm.lea(Size::Qword, GUEST_RSP, Mem::Base(GUEST_RSP, -8));
    }

    /// MOV from a segment register to a general purpose one.
    pub(super) fn write_read_segment(&mut self, i: usize) {
        let instruction = &self.instructions[i];
        let to = instruction.op0_register();
        let number = instruction.op1_register().number() * size_of::<Segment>();
        let selector = offset_of!(CpuState, segments) + number + offset_of!(Segment, selector);
        self.asm.movzx_word(S0, state(selector));
        let size = if to.size() == 2 { Size::Word } else { Size::Qword };
        match host_of(rewrite::number(to)) {
            Some(host) => self.asm.mov(size, host, S0),
            None => self.asm.store(size, gpr(rewrite::number(to)), S0),
        }
    }

    /// RDTSC
    pub(super) fn write_time_stamp(&mut self, i: usize) {
        let other = self.asm.label();
        self.clobber(i);
        self.asm.test_memory(state(offset_of!(CpuState, cr4)), Cr4::TSD.bits() as i32);
        self.asm.jump_if(Condition::NE, other);
        self.asm.rdtsc();
        self.asm.shl(Size::Qword, RDX, 32);
        self.asm.lea(Size::Qword, RDX, Mem::Indexed(RDX, RAX, 0, 0));
        self.asm.alu_load(Size::Qword, Alu::Add, RDX, state(offset_of!(CpuState, tsc_offset)));
        self.asm.mov(Size::Dword, RAX, RDX);
        self.asm.shr(Size::Qword, RDX, 32);
        self.cold_handler(i, other);
    }

    /// BT, BTS, BTR and BTC of a bit string in memory, whose number in a register reaches any distance.
    pub(super) fn write_bit_string(&mut self, i: usize, operand: Operand) {
        let instruction = self.instructions[i];
        let bits = instruction.op1_register();
        let size = if operand.size == 8 { Size::Qword } else { Size::Dword };
        let mut made = instruction;
        place_memory(&mut made, S0, None, 0);
        made.set_op1_register(rewrite::sized(S1, bits));
        let Some(bytes) = self.encoded(&made) else { return self.write_handler(i) };
        let miss = self.asm.label();
        self.clobber(i);
        self.write_operand_address(&instruction, operand.size, miss);
        // The unit that has the bit: a signed distance.
        let number = self.in_host(bits, S1);
        match size {
            Size::Qword if number != S1 => self.asm.mov(Size::Qword, S1, number),
            Size::Qword => {}
            _ => self.asm.movsxd(S1, number),
        }
        self.asm.sar(Size::Qword, S1, 3);
        self.asm.alu_immediate(Size::Qword, Alu::And, S1, -(operand.size as i32));
        self.asm.lea(self.word(), S0, Mem::Indexed(S0, S1, 0, 0));
        self.write_check_to_host(operand, miss);
        let number = self.in_host(bits, S1);
        if number != S1 {
            self.asm.mov(Size::Dword, S1, number);
        }
        self.asm.alu_immediate(Size::Dword, Alu::And, S1, operand.size as i32 * 8 - 1);
        let effect = Effect::of(&instruction);
        if effect.keeps_some(self.live[i + 1]) {
            self.need_host(self.live[i]);
        }
        self.asm.raw(&bytes);
        self.flags_after(i, effect);
        self.cold_handler(i, miss);
    }
}

/// Whether the operand in memory is a bit string of 32 or 64-bit units numbered by a register.
pub(super) fn is_bit_string(instruction: &Instruction, narrow: bool) -> bool {
    instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
        && matches!(instruction.op1_register().size(), 4 | 8)
        && instruction.memory_base() != Register::None
        // How far it is from the base of a segment that limits it only the interpreter can tell.
        && !(narrow && rewrite::in_segment(instruction))
}
