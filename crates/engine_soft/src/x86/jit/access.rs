//! Memory: the address of an operand, the check that the TLB has it, and the stack.
//!
//! ```text
//!   lea  S0, [operand]            rorx S1, S0, 7            or mov and shr, without BMI2
//!                                 and  S1, slots            entry of the page
//!   add  S1, gs:[tlb]             sub  S0, [S1 + tag]       offset in the page, if it is that page
//!   cmp  S0, 4096 - size          ja   miss                 another page, or not wholly in it
//!   mov  S1, [S1 + host]          op   [S0 + S1]
//! ```
//! Code of the user has one view of the TLB, whose address is part of its instructions instead of `gs:[tlb]`; where accesses
//! are looked at one by one (alignment checks) nothing is in that view.
//!
//! In 32-bit code all addresses are computed by LEA to 32 bits, so they wrap as they must and are below 4 GiB, whatever
//! the upper halves of registers hold; what is added to them then is what has been checked. ES, SS and DS are flat
//! there (`mode::FLAT32`); FS and GS are looked at.

use std::mem::offset_of;

use arch::x86::{CpuState, Segment};
use iced_x86::{Instruction, OpKind, Register};

use super::Frame;
use super::asm::{Alu, Condition, Label, Mem, RBP, Reg, Size};
use super::held;
use super::plan::Operand;
use super::relocation::What;
use super::rewrite::{self, GUEST_RSP, S0, S1, host_of, number};
use super::stubs::{frame, gpr};
use super::translate::Translation;
use crate::x86::interp::cpu::Cpu;
use crate::x86::mmu::{Intent, TLB_ENTRIES, TLB_ENTRY_SHIFT, TlbEntry};

/// Where an entry has the host address of its page.
pub(super) const HOST: usize = offset_of!(TlbEntry, host);
/// Where it has what to add to a linear address in it.
pub(super) const ADDEND: usize = offset_of!(TlbEntry, addend);

/// Where it has the linear address of a page that may be used so.
pub(super) fn tag(intent: Intent) -> usize {
    match intent {
        Intent::Write => offset_of!(TlbEntry, write),
        _ => offset_of!(TlbEntry, read),
    }
}

fn segment_base(register: Register) -> Mem {
    let index = register.number() * size_of::<Segment>();
    let segments = offset_of!(Cpu, state) + offset_of!(CpuState, segments);
    Mem::Field((segments + index + offset_of!(Segment, base)) as i32)
}

impl Translation<'_> {
    /// The linear address of the memory operand of `size` bytes, into S0. Destroys S1, and EFLAGS where FS or GS is
    /// involved. To `miss` if only the interpreter can tell whether the segment allows it.
    pub(super) fn write_operand_address(&mut self, instruction: &Instruction, size: u32, miss: Label) {
        self.write_effective_address(instruction, self.word(), S0);
        if !rewrite::in_segment(instruction) {
            return;
        }
        let segment = instruction.memory_segment();
        if self.narrow {
            let open = Mem::Field(offset_of!(Cpu, open_segments) as i32);
            self.asm.test_memory_byte(open, 1 << segment.number());
            self.asm.jump_if(Condition::E, miss);
            self.asm.alu_immediate(Size::Dword, Alu::Cmp, S0, (size as i32).wrapping_neg());
            self.asm.jump_if(Condition::A, miss);
        }
        self.asm.alu_load(self.word(), Alu::Add, S0, segment_base(segment));
    }

    /// Base + index * scale + displacement, cut to `width`, into `to`. Destroys both scratch registers, keeps EFLAGS.
    fn write_effective_address(&mut self, instruction: &Instruction, width: Size, to: Reg) {
        let base = instruction.memory_base();
        let displacement = instruction.memory_displacement64() as i32;
        if base == Register::RIP {
            self.asm.load(Size::Qword, S0, frame(offset_of!(Frame, page)));
            self.asm.lea(width, to, Mem::Base(S0, displacement));
            return;
        }
        let index = instruction.memory_index();
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        let held = self.held();
        let base = (base != Register::None).then(|| self.in_host(base, S0));
        let index = (index != Register::None).then(|| match base {
            // Not where the base has just been loaded.
            Some(base) if base != S0 && held[0] == Some(number(index)) => S0,
            _ => self.in_host(index, S1),
        });
        let address = match (base, index) {
            (Some(base), None) if displacement == 0 => {
                if base != to || width == Size::Dword {
                    self.asm.mov(width, to, base);
                }
                return;
            }
            (Some(base), None) => Mem::Base(base, displacement),
            (Some(base), Some(index)) => Mem::Indexed(base, index, scale, displacement),
            (None, Some(index)) => Mem::Scaled(index, scale, displacement),
            (None, None) => Mem::Absolute(displacement),
        };
        self.asm.lea(width, to, address);
    }

    /// The host register with the value of a guest register: its own, or `scratch` after a load.
    pub(super) fn in_host(&mut self, register: Register, scratch: Reg) -> Reg {
        let number = number(register);
        let held = self.held()[held::place(scratch)] == Some(number);
        host_of(number).unwrap_or_else(|| {
            if held {
                return scratch;
            }
            if scratch == S1 {
                self.addend = None;
            }
            self.asm.load(Size::Qword, scratch, gpr(number));
            scratch
        })
    }

    /// To `miss` unless the linear address in S0 is aligned as it must be.
    pub(super) fn write_alignment_check(&mut self, operand: Operand, miss: Label) {
        if operand.alignment > 1 {
            self.asm.test_low_byte(S0, (operand.alignment - 1) as u8);
            self.asm.jump_if(Condition::NE, miss);
        }
    }

    /// The linear address `[base + displacement]`, into S0. Keeps EFLAGS.
    pub(super) fn write_place(&mut self, base: Reg, displacement: i32) {
        match displacement {
            0 => self.asm.mov(self.word(), S0, base),
            _ => self.asm.lea(self.word(), S0, Mem::Base(base, displacement)),
        }
    }

    /// Checks the access at linear address S0. After it S0 is the offset in the page and S1 its TLB entry; at
    /// `miss` nothing has happened. Destroys EFLAGS.
    pub(super) fn write_check(&mut self, operand: Operand, miss: Label) {
        const SLOTS: i32 = ((TLB_ENTRIES - 1) << TLB_ENTRY_SHIFT) as i32;
        self.addend = None;
        self.write_alignment_check(operand, miss);
        let count = 12 - TLB_ENTRY_SHIFT as u8;
        if self.host.has_bmi2 {
            self.asm.rotated_right(S1, S0, count);
        } else {
            self.asm.mov(Size::Dword, S1, S0);
            self.asm.shr(Size::Dword, S1, count);
        }
        self.asm.alu_immediate(Size::Dword, Alu::And, S1, SLOTS);
        if !self.user {
            self.asm.alu_load(Size::Qword, Alu::Add, S1, Mem::Field(offset_of!(Cpu, tlb) as i32));
        }
        self.asm.alu_load(Size::Qword, Alu::Sub, S0, self.entry_field(tag(operand.intent)));
        self.relocate_entry();
        self.asm.alu_immediate(Size::Qword, Alu::Cmp, S0, 4096 - operand.size as i32);
        self.asm.jump_if(Condition::A, miss);
    }

    /// A field of the entry of the TLB that S1 leads to; [`Self::relocate_entry`] has to follow.
    fn entry_field(&self, field: usize) -> Mem {
        Mem::Base(S1, field as i32 + if self.user { self.host.user_tlb } else { 0 })
    }

    /// The instruction just written has the address of the user's view of the TLB, if this is code of the user.
    fn relocate_entry(&mut self) {
        if self.user {
            self.relocate(What::UserTlb, 0);
        }
    }

    /// Loads a field of the entry that S1 leads to, which may be in S1's own way.
    pub(super) fn write_load_field(&mut self, to: Reg, field: usize) {
        self.asm.load(Size::Qword, to, self.entry_field(field));
        self.relocate_entry();
    }

    /// With the offset in the page in S0 and its entry in S1: the host address, in S0.
    pub(super) fn write_host_address(&mut self) {
        self.asm.alu_load(Size::Qword, Alu::Add, S0, self.entry_field(HOST));
        self.relocate_entry();
    }

    /// As [`Self::write_check`], then the host address in S0.
    pub(super) fn write_check_to_host(&mut self, operand: Operand, miss: Label) {
        self.write_check(operand, miss);
        self.write_host_address();
    }

    /// LEA
    pub(super) fn write_address(&mut self, i: usize) {
        let instruction = self.instructions[i];
        let to = instruction.op0_register();
        let width = if to.size() == 8 { Size::Qword } else { Size::Dword };
        match host_of(number(to)) {
            Some(host) if to.size() > 2 => self.write_effective_address(&instruction, width, host),
            Some(host) => {
                self.write_effective_address(&instruction, width, S0);
                self.asm.mov(Size::Word, host, S0);
            }
            None => {
                self.write_effective_address(&instruction, width, S0);
                let size = if to.size() == 2 { Size::Word } else { Size::Qword };
                self.asm.store(size, gpr(number(to)), S0);
                if size == Size::Qword {
                    self.hold([Some(number(to)), None]);
                }
            }
        }
    }

    /// PUSH of a register or immediate.
    pub(super) fn write_push(&mut self, i: usize) {
        let instruction = self.instructions[i];
        let miss = self.asm.label();
        let slot = self.write_slot_below(i, miss);
        if instruction.op0_kind() == OpKind::Register {
            let free = if slot == Mem::Base(S0, 0) { S1 } else { S0 };
            let value = self.in_host(instruction.op0_register(), free);
            self.asm.store(self.word(), slot, value);
        } else {
            self.asm.store_immediate(self.word(), slot, instruction.immediate(0) as i32);
        }
        self.write_move_stack(-self.slot());
        self.cold_access(i, miss);
    }

    /// PUSH of an operand in memory, which may itself be addressed by the stack pointer.
    pub(super) fn write_push_memory(&mut self, i: usize, operand: Operand) {
        let instruction = self.instructions[i];
        let (miss, value) = (self.asm.label(), frame(offset_of!(Frame, target)));
        self.clobber(i);
        self.write_operand_address(&instruction, operand.size, miss);
        self.write_load(miss);
        self.asm.store(Size::Qword, value, S0);
        let slot = self.write_slot_below(i, miss);
        let free = self.free_beside(slot);
        self.asm.load(Size::Qword, free.1, value);
        self.asm.store(self.word(), free.0, free.1);
        self.write_move_stack(-self.slot());
        // The load is not the group's.
        self.cold_handler(i, miss);
    }

    /// Moves the stack pointer by `bytes`.
    pub(super) fn write_move_stack(&mut self, bytes: i32) {
        self.asm.lea(self.word(), GUEST_RSP, Mem::Base(GUEST_RSP, bytes));
    }

    /// Where instruction `i` stores the slot below the stack pointer: by S0 alone, or by S1 and the stack pointer, or, in
    /// 32-bit code, by both.
    pub(super) fn write_slot_below(&mut self, i: usize, miss: Label) -> Mem {
        let size = self.slot();
        if !self.narrow && self.load_addend(i) {
            return Mem::Indexed(GUEST_RSP, S1, 0, -size);
        }
        if !self.groups.has(i) {
            self.clobber(i);
        }
        self.asm.lea(self.word(), S0, Mem::Base(GUEST_RSP, -size));
        if self.load_addend(i) {
            return Mem::Indexed(S0, S1, 0, 0);
        }
        self.write_check_to_host(Operand { size: size as u32, intent: Intent::Write, alignment: 1 }, miss);
        Mem::Base(S0, 0)
    }

    /// The same place as `slot`, of [`Self::write_slot_below`], and a scratch register that is not part of it.
    pub(super) fn free_beside(&mut self, slot: Mem) -> (Mem, Reg) {
        match slot {
            Mem::Base(S0, _) => (slot, S1),
            Mem::Indexed(S0, S1, ..) => {
                self.asm.lea(Size::Qword, S0, slot);
                self.addend = None;
                (Mem::Base(S0, 0), S1)
            }
            _ => (slot, S0),
        }
    }

    /// The slot at the linear address in `at`, which instruction `i` loads, into S0.
    pub(super) fn write_load_from(&mut self, i: usize, at: Reg, miss: Label) {
        let word = self.word();
        if !self.groups.has(i) {
            self.clobber(i);
            self.asm.mov(word, S0, at);
            return self.write_load(miss);
        }
        let mut from = at;
        if self.narrow {
            self.asm.mov(word, S0, at);
            from = S0;
        }
        self.load_addend(i);
        self.asm.load(word, S0, Mem::Indexed(from, S1, 0, 0));
    }

    /// The slot at linear address S0, into S0.
    pub(super) fn write_load(&mut self, miss: Label) {
        self.write_check(Operand { size: self.slot() as u32, intent: Intent::Read, alignment: 1 }, miss);
        self.write_load_field(S1, HOST);
        self.asm.load(self.word(), S0, Mem::Indexed(S0, S1, 0, 0));
    }

    /// POP of a register.
    pub(super) fn write_pop(&mut self, i: usize) {
        let number = number(self.instructions[i].op0_register());
        let miss = self.asm.label();
        self.write_load_from(i, GUEST_RSP, miss);
        match host_of(number) {
            Some(host) => self.asm.mov(self.word(), host, S0),
            None => self.asm.store(Size::Qword, gpr(number), S0),
        }
        if host_of(number) != Some(GUEST_RSP) {
            self.write_move_stack(self.slot());
        }
        self.cold_access(i, miss);
    }

    /// LEAVE
    pub(super) fn write_leave(&mut self, i: usize) {
        let miss = self.asm.label();
        self.write_load_from(i, RBP, miss);
        self.asm.lea(self.word(), GUEST_RSP, Mem::Base(RBP, self.slot()));
        self.asm.mov(self.word(), RBP, S0);
        self.cold_access(i, miss);
    }

    /// At `miss`: instruction `i` by its handler, unless its group has checked the access.
    fn cold_access(&mut self, i: usize, miss: Label) {
        if !self.groups.has(i) {
            self.cold_handler(i, miss);
        }
    }
}
