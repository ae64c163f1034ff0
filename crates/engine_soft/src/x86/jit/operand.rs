//! Instructions with one operand in memory: how they find it.
//!
//! In a loop, what a base register points to is mostly in the page it pointed to in the round before, so each has an
//! [`OperandPages`] entry for loads and one for stores, which is tried before the TLB:
//!
//! ```text
//!   lea  S0, [base + disp]        cmp  S0, gs:[limit]       another page, or its last bytes, or forgotten
//!   sub  S0, gs:[page]            jae  other                the TLB; what it says is known from then on
//!   mov  S1, gs:[addend]          op   [base + S1 + disp]
//! ```
//! The check is beside the way of the data, not in it. Elsewhere code follows pointers to ever other pages, and each miss costs
//! more than to ask the TLB at once. An operand whose address has more parts, or whose base lives in
//! memory, is computed into S0 and checked by way of S1. What a group has checked needs only the addend. Kernels keep
//! what they have for each CPU at places relative to GS alone, in few pages.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Frame;
use super::access::{ADDEND, tag};
use super::asm::{Alu, Condition, Label, Mem, Reg, Size};
use super::branch::End;
use super::keep::Cold;
use super::pieces::Piece;
use super::plan::Operand;
use super::rewrite::{self, S0, S1, host_of, place_memory};
use super::stubs::frame;
use super::translate::Translation;
use crate::x86::known::{Known as KnownSet, OperandPages};
use crate::x86::mmu::Intent;

/// A place in the [`OperandPages`] of a privilege.
#[derive(Clone, Copy, Debug)]
struct Known {
    user: bool,
    n: usize,
}

impl Known {
    /// For an operand with a base in this host register.
    fn of(user: bool, base: Reg, intent: Intent) -> Self {
        Self { user, n: 2 * usize::from(base.0) + usize::from(intent == Intent::Write) }
    }

    /// For an operand of any form. Of those relative to FS or GS alone, places far from each other keep out of each
    /// other's way.
    fn of_operand(user: bool, instruction: &Instruction, intent: Intent) -> Self {
        let base = instruction.memory_base();
        let n = match base {
            _ if is_in_segment(instruction) => 16 + (instruction.memory_displacement64() >> 12) as usize % 8,
            _ if base.is_gpr() => usize::from(host_of(rewrite::number(base)).unwrap_or(S0).0),
            _ => 4, // the number of RSP, whose guest's lives elsewhere
        };
        Self { user, n: 2 * n + usize::from(intent == Intent::Write) }
    }

    fn field(self, offset: usize) -> Mem {
        let set = super::known(self.user) + offset_of!(KnownSet, operands);
        Mem::Field((set + offset + self.n * size_of::<u64>()) as i32)
    }

    fn page(self) -> Mem {
        self.field(offset_of!(OperandPages, page))
    }

    fn limit(self) -> Mem {
        self.field(offset_of!(OperandPages, limit))
    }

    fn addend(self) -> Mem {
        self.field(offset_of!(OperandPages, addend))
    }
}

/// An access that a known page did not serve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unknown {
    known: Known,
    operand: Operand,
    /// `[base + displacement]` if the address has to be computed again.
    address: Option<(Reg, i32)>,
    /// Where the access goes on, with its addend in S1; or without `address`, its host address in S0.
    access: Label,
    /// Where it goes if the TLB does not serve it either.
    miss: Label,
}

/// Whether the operand is at a fixed place relative to FS or GS.
fn is_in_segment(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None
        && rewrite::in_segment(instruction)
}

/// The base and displacement of an operand that has no other parts, if the base lives in a host register.
fn simple(instruction: &Instruction) -> Option<(Reg, i32)> {
    let base = instruction.memory_base();
    let plain =
        base.is_gpr() && instruction.memory_index() == Register::None && !rewrite::in_segment(instruction);
    let home = host_of(rewrite::number(base)).filter(|_| plain);
    home.map(|home| (home, instruction.memory_displacement64() as i32))
}

impl Translation<'_> {
    /// Whether the page of an operand is looked for among those known. Kernels follow pointers to ever other pages.
    pub(super) fn tries_known(&self, operand: Operand, base: Register) -> bool {
        let strided = base.is_gpr() && self.strided >> rewrite::number(base) & 1 != 0;
        self.user && self.is_in_loop && !strided && u64::from(operand.size) <= OperandPages::MAX_SIZE
    }

    /// The same of an operand with an address of any form.
    fn tries_known_of(&self, operand: Operand, instruction: &Instruction) -> bool {
        let fits = u64::from(operand.size) <= OperandPages::MAX_SIZE;
        self.tries_known(operand, instruction.memory_base()) || fits && is_in_segment(instruction)
    }

    /// Whether this is a loop, or a part of one: it jumps back to a block of its own; or wherever it likes, as what interprets
    /// something does.
    pub(super) fn find_loop(&mut self) {
        let jumps_back = |instruction: &Instruction| {
            let direct = instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near();
            let target = instruction.near_branch_target();
            let is_start = |piece: &Piece<'_>| u64::from(piece.start) == target;
            direct && target <= instruction.ip() && self.pieces.iter().any(is_start)
        };
        let last = self.ops.len() - 1;
        self.is_in_loop = self.instructions.iter().any(jumps_back) || self.end(last) == End::JumpIndirect;
    }

    /// Finds the registers that move by the value of another in each round of a loop that is one unit: down a
    /// column of a matrix each access is in another page.
    pub(super) fn find_strides(&mut self) {
        let last = self.ops.len() - 1;
        if !matches!(self.end(last), End::Conditional(_, taken, _) if taken == i64::from(self.start_of(0))) {
            return;
        }
        for instruction in &self.instructions {
            let moves = matches!(instruction.mnemonic(), Mnemonic::Add | Mnemonic::Sub)
                && instruction.op0_kind() == OpKind::Register
                && instruction.op0_register().size() == self.slot() as usize
                && instruction.op1_kind() == OpKind::Register;
            if moves {
                self.strided |= 1 << rewrite::number(instruction.op0_register());
            }
        }
    }

    /// An instruction with one operand in memory.
    pub(super) fn write_with_memory(&mut self, i: usize, operand: Operand) {
        let instruction = rewrite::widened(&self.instructions[i]);
        if let Some(fixed) = self.fixed(&instruction, operand) {
            return self.write_with_fixed(i, fixed);
        }
        let Some((base, displacement)) = simple(&instruction).filter(|_| self.groups.has(i) || !self.narrow)
        else {
            return self.write_by_address(i, operand);
        };
        let Some(mut made) = rewrite::registers(&instruction, &mut self.tools.info, &[S0]) else {
            return self.write_handler(i);
        };
        if self.narrow {
            place_memory(&mut made.instruction, S0, Some(S1), 0);
        } else {
            place_memory(&mut made.instruction, base, Some(S1), displacement);
        }
        let Some(bytes) = self.encoded(&made.instruction) else {
            return self.write_handler(i); // AH..BH beside a scratch register
        };
        if self.groups.has(i) && (operand.alignment <= 1 || self.is_aligned(i, operand)) {
            if self.narrow {
                self.asm.lea(Size::Dword, S0, Mem::Base(base, displacement));
            }
            self.load_addend(i);
            return self.write_encoded(i, &made, &bytes);
        }
        self.clobber(i);
        let miss = self.asm.label();
        self.write_place(base, displacement);
        if self.groups.has(i) {
            self.write_alignment_check(operand, miss);
            self.load_addend(i);
            self.aligned = self.groups.offset(i).map(|(group, offset)| (group, offset, operand.alignment));
        } else if self.tries_known(operand, instruction.memory_base()) {
            self.write_find((base, displacement), operand, miss);
        } else {
            self.write_check(operand, miss);
            self.write_load_field(S1, ADDEND);
        }
        self.write_encoded(i, &made, &bytes);
        self.cold_handler(i, miss);
    }

    /// Whether an access before has shown that the one of instruction `i`, of the same group, is aligned.
    fn is_aligned(&self, i: usize, operand: Operand) -> bool {
        let (Some((group, offset)), Some((known, at, alignment))) = (self.groups.offset(i), self.aligned)
        else {
            return false;
        };
        group == known && operand.alignment <= alignment && (offset - at) % operand.alignment as i32 == 0
    }

    /// With the linear address `[base + displacement]` in S0: what to add to one in its page, into S1. Destroys S0.
    pub(super) fn write_find(&mut self, address: (Reg, i32), operand: Operand, miss: Label) {
        self.addend = None;
        self.write_alignment_check(operand, miss);
        let known = Known::of(self.user, address.0, operand.intent);
        let (other, access) = (self.asm.label(), self.asm.label());
        self.asm.alu_load(Size::Qword, Alu::Sub, S0, known.page());
        self.asm.alu_load(Size::Qword, Alu::Cmp, S0, known.limit());
        self.asm.jump_if(Condition::AE, other);
        self.asm.load(Size::Qword, S1, known.addend());
        self.asm.bind(access);
        let address = Some(address);
        self.cold.push(Cold::Unknown(other, Unknown { known, operand, address, access, miss }));
    }

    /// As [`Self::write_with_memory`], for any address.
    fn write_by_address(&mut self, i: usize, operand: Operand) {
        let instruction = rewrite::widened(&self.instructions[i]);
        let Some(mut made) = rewrite::registers(&instruction, &mut self.tools.info, &[S1]) else {
            return self.write_handler(i);
        };
        place_memory(&mut made.instruction, S0, None, 0);
        let Some(bytes) = self.encoded(&made.instruction) else { return self.write_handler(i) };
        self.addend = None;
        self.clobber(i);
        let miss = self.asm.label();
        self.write_operand_address(&instruction, operand.size, miss);
        if !self.tries_known_of(operand, &instruction) {
            self.write_check_to_host(operand, miss);
        } else {
            self.write_alignment_check(operand, miss);
            let known = Known::of_operand(self.user, &instruction, operand.intent);
            let (other, access) = (self.asm.label(), self.asm.label());
            self.asm.mov(Size::Qword, S1, S0);
            self.asm.alu_load(Size::Qword, Alu::Sub, S1, known.page());
            self.asm.alu_load(Size::Qword, Alu::Cmp, S1, known.limit());
            self.asm.jump_if(Condition::AE, other);
            self.asm.alu_load(Size::Qword, Alu::Add, S0, known.addend());
            self.asm.bind(access);
            self.cold.push(Cold::Unknown(other, Unknown { known, operand, address: None, access, miss }));
        }
        self.write_encoded(i, &made, &bytes);
        self.cold_handler(i, miss);
    }

    /// At `label`: asks the TLB, and remembers what it says.
    pub(super) fn write_unknown_page(&mut self, label: Label, unknown: Unknown) {
        let Unknown { known, operand, address, access, miss } = unknown;
        self.asm.bind(label);
        if let Some((base, displacement)) = address {
            self.write_place(base, displacement);
        }
        self.write_check(Operand { alignment: 1, ..operand }, miss);
        let parked = frame(offset_of!(Frame, target));
        if address.is_none() {
            self.write_host_address();
            self.asm.store(Size::Qword, parked, S0);
        }
        self.write_keep_check(access);
        self.write_load_field(S0, tag(operand.intent));
        self.asm.store(Size::Qword, known.page(), S0);
        self.write_load_field(S1, ADDEND);
        self.asm.store(Size::Qword, known.addend(), S1);
        self.asm.store_immediate(Size::Qword, known.limit(), OperandPages::LIMIT as i32);
        if address.is_none() {
            self.asm.load(Size::Qword, S0, parked);
        }
        self.asm.jump(access);
    }
}
