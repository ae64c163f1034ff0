//! How a block ends: jumps inside the page, which chain; jumps to other pages and indirect ones, which go through
//! the jump table; calls and returns.

use std::mem::offset_of;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Mnemonic, OpKind};

use super::asm::{Alu, Condition, Label, Mem, RSP, Size};
use super::flags::{ALL, Effect};
use super::jumps::Jump;
use super::keep::Cold;
use super::lazy::Place;
use super::plan::Operand;
use super::relocation::What;
use super::rewrite::{GUEST_RSP, S0, S1};
use super::stubs::frame;
use super::translate::Translation;
use super::{Frame, Kind, Vectors, returns};
use crate::x86::interp::select;
use crate::x86::mmu::Intent;

/// The ways a block ends; targets are relative to the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Execution goes on at this place.
    Jump(i64),
    /// Jcc: taken, not taken.
    Conditional(Condition, i64, i64),
    /// CALL to a known place.
    Call(i64),
    /// JMP to a register or memory operand.
    JumpIndirect,
    /// CALL of a register or memory operand.
    CallIndirect,
    /// RET, with the bytes it drops beside the address.
    Return(u16),
    /// STI, with the place where execution goes on.
    SetInterrupts(i64),
    /// SWAPGS, the same.
    SwapGs(i64),
    /// STAC or CLAC, the same.
    SetAccess(bool, i64),
    /// By the interpreter's handler.
    Handler,
}

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// How another block is gone to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Jump,
    Call,
}

/// The first operand of an indirect branch is fine for us.
fn is_usable(instruction: &iced_x86::Instruction, narrow: bool) -> bool {
    let size = if narrow { 4 } else { 8 };
    match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() == size,
        _ => instruction.memory_size().size() == size && !super::plan::is_odd(instruction, narrow),
    }
}

impl Translation<'_> {
    pub(super) fn end(&self, last: usize) -> End {
        let Some(instruction) = self.instructions.get(last) else {
            return End::Jump(i64::from(self.start_of(last)) + i64::from(self.ops[last].offset));
        };
        let (direct, target) = match instruction.op0_kind() {
            OpKind::NearBranch64 => (true, instruction.near_branch_target() as i64),
            // Truncated, where the page does not begin at zero.
            OpKind::NearBranch32 if self.narrow => (true, i64::from(instruction.near_branch32() as i32)),
            _ => (false, 0),
        };
        match instruction.mnemonic() {
            Mnemonic::Jmp if direct => End::Jump(target),
            Mnemonic::Call if direct => End::Call(target),
            Mnemonic::Jmp if instruction.is_jmp_near_indirect() && is_usable(instruction, self.narrow) => {
                End::JumpIndirect
            }
            Mnemonic::Call if instruction.is_call_near_indirect() && is_usable(instruction, self.narrow) => {
                End::CallIndirect
            }
            Mnemonic::Ret => match (instruction.code(), self.narrow) {
                (Code::Retnq, false) | (Code::Retnd, true) => End::Return(0),
                (Code::Retnq_imm16, false) | (Code::Retnd_imm16, true) => {
                    End::Return(instruction.immediate16())
                }
                _ => End::Handler,
            },
            Mnemonic::Sti => End::SetInterrupts(instruction.next_ip() as i64),
            Mnemonic::Swapgs if !self.user => End::SwapGs(instruction.next_ip() as i64),
            Mnemonic::Stac | Mnemonic::Clac if self.host.views.is_some() => {
                End::SetAccess(instruction.mnemonic() == Mnemonic::Stac, instruction.next_ip() as i64)
            }
            _ if instruction.is_jcc_short_or_near() && direct => {
                let condition = Condition(select::condition(instruction));
                End::Conditional(condition, target, instruction.next_ip() as i64)
            }
            _ => End::Handler,
        }
    }

    /// The flags live before and after the last operation.
    pub(super) fn live_around_end(&mut self, last: usize) -> (u32, u32) {
        match self.end(last) {
            End::Jump(target)
            | End::Call(target)
            | End::SetInterrupts(target)
            | End::SwapGs(target)
            | End::SetAccess(_, target) => {
                let live = self.live_at(target);
                (live, live)
            }
            End::Conditional(_, taken, next) => {
                let after = self.live_at(taken) | self.live_at(next);
                (Effect::of(&self.instructions[last]).before(after), after)
            }
            _ => (ALL, ALL),
        }
    }

    pub(super) fn write_end(&mut self, last: usize) {
        match self.end(last) {
            End::Jump(target) => self.write_direct(last, target, 0, 0),
            End::Conditional(condition, taken, next) => self.write_conditional(last, condition, taken, next),
            End::Call(target) => self.write_call(last, target),
            End::JumpIndirect => {
                self.write_branch_operand(last);
                self.publish_flags(ALL);
                self.write_lookup(last, 0, Way::Jump);
            }
            End::CallIndirect => self.write_call_indirect(last),
            End::Return(bytes) => self.write_return(last, bytes),
            End::SetInterrupts(next) => self.write_set_interrupts(last, next),
            End::SwapGs(next) => self.write_swap_gs(last, next),
            End::SetAccess(on, next) => self.write_set_access(last, on, next),
            End::Handler => {
                self.publish_flags(ALL);
                let site = self.site(Kind::Handler, last, self.start_of(last));
                self.jump_with_site(site, self.stubs.slow);
            }
        }
    }

    /// At `label`: the whole last operation by its handler, which ends the block.
    pub(super) fn cold_end(&mut self, last: usize, label: Label) {
        let site = self.site(Kind::Handler, last, self.start_of(last));
        let save = self.missed(last);
        self.cold.push(Cold::Slow { label, site, resume: None, restore: false, addend: None, save });
    }

    /// At `label`: the last operation by its handler, unless its group has checked its access to the stack.
    fn cold_stack_access(&mut self, last: usize, label: Label) {
        if !self.groups.has(last) {
            self.cold_end(last, label);
        }
    }

    /// Goes on at `target`, which is successor number `link`.
    pub(super) fn write_direct(&mut self, last: usize, target: i64, link: u8, moved: i32) {
        if !self.is_linked(target) {
            self.publish_flags(ALL);
            return self.write_far_jump(last, target, moved);
        }
        let live = self.live_at(target);
        let from = self.instructions.get(last).map_or(i64::MAX, |i| i.ip() as i64);
        let polls = from != i64::MAX && self.may_close_loop(last, target);
        let unknown = self.asm.label();
        if polls {
            let wanted = self.write_poll(last, target, live);
            if live == 0 {
                self.asm.jump_if(Condition::E, unknown);
                self.link(last, target, link, live, unknown);
                return self.asm.jump(wanted);
            }
            self.asm.jump_if(Condition::NE, wanted);
        }
        self.prepare_link(live);
        self.asm.jump(unknown);
        self.link(last, target, link, live, unknown);
    }

    /// Before a jump to another block: flags that are in memory alone stay there.
    fn prepare_link(&mut self, live: u32) {
        if !self.place.saved {
            self.need_host(live);
        }
    }

    /// The jump just written leads to `unknown` until the block at `target` is translated.
    fn link(&mut self, last: usize, target: i64, link: u8, live: u32, unknown: Label) {
        let site = self.site(Kind::Link, last, target as i32);
        self.sites[site].link = link;
        self.sites[site].outer = live != 0 && !self.place.host;
        self.patch_here(site);
        let save = self.saving(live);
        self.cold.push(Cold::Exit { label: unknown, site, save });
    }

    /// Whether a jump of instruction `i` to `target` may be the only one of a loop that leads back, but for those inside
    /// this unit.
    fn may_close_loop(&self, i: usize, target: i64) -> bool {
        i > self.jumps_back || target <= self.instructions[i].ip() as i64
    }

    /// Compares, so that the jump to the returned label is for when somebody wants attention; every loop passes one of
    /// these or a look-up.
    fn write_poll(&mut self, last: usize, target: i64, live: u32) -> Label {
        self.save_flags(live);
        self.place.host = false;
        self.write_look_at_attention();
        let wanted = self.asm.label();
        let site = self.site(Kind::Leave, last, target as i32);
        let save = self.saving(live);
        self.cold.push(Cold::Exit { label: wanted, site, save });
        wanted
    }

    fn write_conditional(&mut self, last: usize, condition: Condition, taken: i64, next: i64) {
        self.write_taken(last, condition, taken);
        self.write_direct(last, next, 1, 0);
    }

    /// A conditional jump in the middle, behind which the unit goes on.
    pub(super) fn write_side_exit(&mut self, i: usize) {
        if let End::Conditional(condition, taken, _) = self.end(i) {
            self.write_taken(i, condition, taken);
        }
    }

    /// The flags live before the conditional jump `i` in the middle, given those behind it.
    pub(super) fn live_before_side_exit(&mut self, i: usize, behind: u32) -> u32 {
        let End::Conditional(_, taken, _) = self.end(i) else { return ALL };
        let after = behind | self.live_at(taken);
        Effect::of(&self.instructions[i]).before(after)
    }

    /// Goes to `taken` if `condition` holds.
    fn write_taken(&mut self, last: usize, condition: Condition, taken: i64) {
        self.need_host(self.live[last]);
        if !self.is_linked(taken) {
            let label = self.asm.label();
            self.asm.jump_if(condition, label);
            let save = self.saving(ALL);
            self.cold.push(Cold::FarJump { label, last, target: taken, save });
        } else if self.may_close_loop(last, taken) {
            let skip = self.asm.label();
            self.asm.jump_if(condition.inverse(), skip);
            let place = self.place;
            self.write_direct(last, taken, 0, 0);
            self.place = place;
            self.asm.bind(skip);
        } else {
            let live = self.live_at(taken);
            let unknown = self.asm.label();
            self.asm.jump_if(condition, unknown);
            self.link(last, taken, 0, live, unknown);
        }
    }

    /// Pushes the address behind the call.
    fn write_push_return(&mut self, last: usize, miss: Label) {
        let next = self.instructions[last].next_ip() as i32;
        let slot = self.write_slot_below(last, miss);
        let (slot, value) = self.free_beside(slot);
        self.asm.load(Size::Qword, value, frame(offset_of!(Frame, page)));
        self.asm.lea(self.word(), value, Mem::Base(value, next));
        self.asm.store(self.word(), slot, value);
        self.write_move_stack(-self.slot());
        self.move_lazy(-self.slot());
        self.asm.push(value);
    }

    /// Goes to `full` if no more calls can be remembered. Destroys EFLAGS.
    fn write_call_limit(&mut self, full: Label) {
        let mask = returns::full_mask(self.config.stress);
        self.asm.test_immediate(RSP, mask);
        self.asm.jump_if(Condition::E, full);
    }

    /// Behind a host `call`: where the return comes to, with the guest's address in S0 and the flags saved.
    fn write_return_site(&mut self, last: usize) {
        self.asm.lea(Size::Qword, RSP, Mem::Base(RSP, 8));
        self.place = Place::MEMORY;
        let next = self.instructions[last].next_ip() as i64;
        if !self.is_linked(next) {
            return self.write_lookup(last, 0, Way::Jump);
        }
        self.write_page_of_target();
        // What was called may have left the vector registers to Rust.
        let vectors = std::mem::replace(&mut self.vectors, Vectors::NONE);
        self.write_direct(last, next, 1, 0);
        self.vectors = vectors;
    }

    fn write_call(&mut self, last: usize, target: i64) {
        let miss = self.asm.label();
        self.write_push_return(last, miss);
        self.cold_stack_access(last, miss);
        if !self.is_linked(target) {
            self.publish_flags(ALL);
            self.write_far_address(target);
            self.write_lookup_of(last, target, -self.slot(), Way::Call);
            return self.write_return_site(last);
        }
        // Calls that never return fill the stack of returns, so no loop of calls goes unnoticed.
        let live = self.live_at(target);
        let (full, unknown) = (self.asm.label(), self.asm.label());
        self.save_flags(live);
        self.place.host = false;
        self.write_call_limit(full);
        let site = self.site(Kind::Leave, last, target as i32);
        let save = self.saving(live);
        self.cold.push(Cold::Exit { label: full, site, save });
        self.prepare_link(live);
        self.asm.call(unknown);
        self.link(last, target, 0, live, unknown);
        self.write_return_site(last);
    }

    /// The target of an indirect branch, into S0.
    fn write_branch_operand(&mut self, last: usize) {
        self.clobber(last);
        let instruction = self.instructions[last];
        if instruction.op0_kind() == OpKind::Register {
            let host = self.in_host(instruction.op0_register(), S0);
            if host != S0 {
                self.asm.mov(self.word(), S0, host);
            }
            return;
        }
        let miss = self.asm.label();
        let operand = Operand { size: self.slot() as u32, intent: Intent::Read, alignment: 1 };
        if let Some(fixed) = self.fixed(&instruction, operand) {
            let place = self.write_find_fixed(fixed, miss);
            self.asm.load(Size::Qword, S0, place);
        } else {
            self.write_operand_address(&instruction, operand.size, miss);
            self.write_load(miss);
        }
        self.cold_end(last, miss);
    }

    fn write_call_indirect(&mut self, last: usize) {
        let target = frame(offset_of!(Frame, target));
        self.write_branch_operand(last);
        self.asm.store(Size::Qword, target, S0);
        let miss = self.asm.label();
        self.write_push_return(last, miss);
        self.cold_stack_access(last, miss);
        self.publish_flags(ALL);
        self.asm.load(Size::Qword, S0, target);
        self.write_lookup(last, -self.slot(), Way::Call);
        self.write_return_site(last);
    }

    fn write_return(&mut self, last: usize, bytes: u16) {
        let miss = self.asm.label();
        self.clobber(last);
        self.write_load_from(last, GUEST_RSP, miss);
        self.cold_stack_access(last, miss);
        let moved = self.slot() + i32::from(bytes);
        self.write_move_stack(moved);
        self.move_lazy(moved);
        self.publish_flags(ALL);
        let other = self.asm.label();
        self.asm.alu_load(Size::Qword, Alu::Cmp, S0, Mem::Base(RSP, 8));
        self.asm.jump_if(Condition::NE, other);
        self.asm.ret();
        self.cold.push(Cold::Unexpected { label: other, last, moved });
    }

    /// A jump out of the page; the flags are saved.
    pub(super) fn write_far_jump(&mut self, last: usize, target: i64, moved: i32) {
        self.write_far_address(target);
        self.write_lookup_of(last, target, moved, Way::Jump);
    }

    /// The linear address of `target` into S0.
    fn write_far_address(&mut self, target: i64) {
        self.asm.load(Size::Qword, S0, frame(offset_of!(Frame, page)));
        self.asm.lea(self.word(), S0, Mem::Base(S0, target as i32));
    }

    /// At `label`: a return to S0 where the stack of returns says otherwise.
    pub(super) fn write_unexpected(&mut self, label: Label, last: usize, moved: i32) {
        self.asm.bind(label);
        self.asm.load(Size::Qword, RSP, frame(offset_of!(Frame, no_returns)));
        self.write_lookup(last, moved, Way::Jump);
    }

    /// Goes to the linear address in S0 through the jump table; RSP has moved by `moved`. The flags are saved.
    fn write_lookup(&mut self, last: usize, moved: i32, way: Way) {
        let unknown = self.asm.label();
        self.write_attention(way, unknown);
        self.write_find_jump(unknown);
        self.write_found(way);
        self.cold_unknown_target(last, moved, unknown);
    }

    /// The same where S0 is `target`, relative to the page: at once to the entry that has it where the page is mapped
    /// now.
    fn write_lookup_of(&mut self, last: usize, target: i64, moved: i32, way: Way) {
        let (unknown, other) = (self.asm.label(), self.asm.label());
        self.write_attention(way, unknown);
        let there = self.linear.wrapping_add_signed(target);
        let slot = Jump::slot(if self.narrow { there & 0xffff_ffff } else { there }, self.host.jump_bits);
        let entry = (slot * size_of::<Jump>()) as i32;
        let field = |field: usize| Mem::Absolute(self.host.jumps + entry + field as i32);
        let (linear, code) = (field(offset_of!(Jump, linear)), field(offset_of!(Jump, code)));
        match way {
            Way::Jump => {
                self.asm.alu_load(Size::Qword, Alu::Cmp, S0, linear);
                self.relocate(What::Jumps, 0);
                self.asm.jump_if(Condition::NE, other);
                self.write_page_of_target();
                self.asm.jump_indirect(code);
                self.relocate(What::Jumps, 0);
                self.cold.push(Cold::OtherJump { label: other, unknown, found: None });
            }
            Way::Call => {
                // The call is the same one for every entry, for the sake of where it returns to.
                let found = self.asm.label();
                self.asm.load_immediate(S1, entry as u64);
                self.asm.alu_load(Size::Qword, Alu::Cmp, S0, linear);
                self.relocate(What::Jumps, 0);
                self.asm.jump_if(Condition::NE, other);
                self.asm.bind(found);
                self.write_found(way);
                self.cold.push(Cold::OtherJump { label: other, unknown, found: Some(found) });
            }
        }
        self.cold_unknown_target(last, moved, unknown);
    }

    /// To `unknown` if somebody wants attention; every loop passes one of these or a poll.
    fn write_attention(&mut self, way: Way, unknown: Label) {
        match way {
            // Fills the stack of returns, so no loop of calls goes unnoticed.
            Way::Call => self.write_call_limit(unknown),
            Way::Jump => {
                self.write_look_at_attention();
                self.asm.jump_if(Condition::NE, unknown);
            }
        }
    }

    /// A field of the entry which S1 is the offset of.
    fn entry(&self, field: usize) -> Mem {
        Mem::Base(S1, self.host.jumps + field as i32)
    }

    /// The offset of the entry of the linear address in S0 into S1; to `unknown` if there is none.
    fn write_find_jump(&mut self, unknown: Label) {
        const SIZE: u32 = size_of::<Jump>() as u32;
        self.asm.multiply(Size::Dword, S1, S0, Jump::FACTOR as i32);
        self.asm.shr(Size::Dword, S1, (32 - self.host.jump_bits - SIZE.trailing_zeros()) as u8);
        self.asm.alu_immediate(Size::Dword, Alu::And, S1, -(SIZE as i32));
        self.asm.alu_load(Size::Qword, Alu::Cmp, S0, self.entry(offset_of!(Jump, linear)));
        self.relocate(What::Jumps, 0);
        let (second, found) = (self.asm.label(), self.asm.label());
        self.asm.jump_if(Condition::NE, second);
        self.asm.bind(found);
        self.cold.push(Cold::SecondJump { label: second, unknown, found });
    }

    /// At `label`: the address in S0 is not in the entry in S1; perhaps in its neighbour.
    pub(super) fn write_second_jump(&mut self, label: Label, unknown: Label, found: Label) {
        self.asm.bind(label);
        self.asm.alu_immediate(Size::Qword, Alu::Xor, S1, size_of::<Jump>() as i32);
        self.asm.alu_load(Size::Qword, Alu::Cmp, S0, self.entry(offset_of!(Jump, linear)));
        self.relocate(What::Jumps, 0);
        self.asm.jump_if(Condition::NE, unknown);
        self.asm.jump(found);
    }

    /// The page of the address in S0 is the one that runs.
    fn write_page_of_target(&mut self) {
        self.asm.alu_immediate(Size::Qword, Alu::And, S0, -4096);
        self.asm.store(Size::Qword, frame(offset_of!(Frame, page)), S0);
    }

    /// Goes where the entry in S1, of the address in S0, leads.
    fn write_found(&mut self, way: Way) {
        self.write_page_of_target();
        let code = self.entry(offset_of!(Jump, code));
        match way {
            Way::Jump => self.asm.jump_indirect(code),
            Way::Call => self.asm.call_indirect(code),
        }
        self.relocate(What::Jumps, 0);
    }

    fn cold_unknown_target(&mut self, last: usize, moved: i32, label: Label) {
        let site = self.site(Kind::Jump, last, self.start_of(last));
        self.sites[site].distance = moved;
        self.cold.push(Cold::UnknownTarget { label, site });
    }

    /// At `label`: the address in S0 is not in the entry where it was expected; perhaps in another, which is then gone to
    /// from `found`, or here.
    pub(super) fn write_other_jump(&mut self, label: Label, unknown: Label, found: Option<Label>) {
        self.asm.bind(label);
        self.write_find_jump(unknown);
        match found {
            Some(found) => self.asm.jump(found),
            None => self.write_found(Way::Jump),
        }
    }
}

impl Translation<'_> {
    /// Whether the instruction at a place relative to the page is wholly in the page. If so, jumps there lead from code
    /// to code; else through the jump table, which forgets what the mapping of either page said.
    fn is_linked(&mut self, target: i64) -> bool {
        let at_end = 4096 - LONGEST as i64..4096;
        if at_end.contains(&target) {
            self.seen = (self.seen.0.min(target as usize), self.page.len());
        }
        self.is_in_page(target)
    }

    /// The same without noting what was looked at.
    pub(super) fn is_in_page(&self, target: i64) -> bool {
        let Some(bytes) = usize::try_from(target).ok().and_then(|at| self.page.get(at..)) else {
            return false;
        };
        if bytes.len() >= LONGEST {
            return true;
        }
        let mut decoder = Decoder::new(self.bits(), bytes, DecoderOptions::NONE);
        let _ = decoder.decode();
        decoder.last_error() != DecoderError::NoMoreBytes
    }
}
