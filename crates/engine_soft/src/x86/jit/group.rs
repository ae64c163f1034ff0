//! Accesses of a block that one check covers.
//!
//! Instructions that address `[base + displacement]` with the same value of the base form a group if all their
//! bytes lie close together: one check in front of the first makes sure that the whole range is in one page which
//! the TLB has, and leaves what is to be added to a linear address of that page. Every access of the group then is
//! the instruction itself with that addend as its index. PUSH, POP, CALL and RET belong to the groups of RSP, whose
//! movements by constants are followed.
//!
//! The addend of RSP's groups is kept for all blocks in [`StackPage`], since the stack hardly ever leaves its page;
//! that of other groups in one of the [`GROUPS`] places for the rest of the block.
//! It is loaded again only where something else came into the scratch register meanwhile.
//!
//! A check that fails changes nothing: the rest of the block goes on in a *variant* translated without groups.
//! Whatever may change the TLB or the view in the middle of a block (a handler that is not the other half of a
//! memory access) ends all groups.

use std::mem::offset_of;

use iced_x86::{Instruction, InstructionInfoOptions, Mnemonic, OpKind, Register};

use super::access::ADDEND;
use super::asm::{Alu, Condition, Label, Mem, Size};
use super::branch::End;
use super::keep::Cold;
use super::lazy::Save;
use super::plan::{Operand, Plan};
use super::rewrite::{self, S0, S1, host_of};
use super::stubs::frame;
use super::translate::Translation;
use super::{Frame, Kind};
use crate::x86::known::{Known, StackPage};
use crate::x86::mmu::{Intent, TlbEntry};

/// Addends of groups that a block may have beside those of the stack.
pub const GROUPS: usize = 8;
/// The longest range a group may cover; longer ones leave their page too often.
const MAX_RANGE: i32 = 512;
/// Distances of less than this can be added up without care.
const NEAR: i32 = 1 << 28;
/// Numbers of RSP and RBP.
const RSP: usize = 4;
const RBP: usize = 5;

/// Where a group's addend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addend {
    /// In the [`StackPage`].
    Stack,
    /// In this one of the frame's places.
    Place(usize),
}

/// Accesses that one check covers.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// The number of the base register.
    base: usize,
    /// The first instruction that belongs to it.
    first: usize,
    /// The range, relative to the base at the first instruction: start, and end exclusive.
    range: (i32, i32),
    writes: bool,
    accesses: u32,
    addend: Addend,
}

/// The groups of a block.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// By instruction: the group its access belongs to, and where in its range the access begins.
    of: Vec<Option<(usize, i32)>>,
}

/// One access relative to a base register.
#[derive(Clone, Copy)]
struct Reach {
    base: usize,
    start: i32,
    size: i32,
    writes: bool,
}

/// The groups being made.
#[derive(Default)]
struct Maker {
    made: Groups,
    /// By register: the group new accesses may join.
    open: [Option<usize>; 16],
    /// How far each register has moved since its open group began.
    moved: [i32; 16],
}

impl Maker {
    fn join(&mut self, i: usize, reach: Reach) {
        let shift = self.moved[reach.base];
        let (mut start, end) = (reach.start + shift, reach.start + shift + reach.size);
        let group = self.open[reach.base].filter(|known| {
            let range = self.made.groups[*known].range;
            range.1.max(end) - range.0.min(start) <= MAX_RANGE
        });
        let index = group.unwrap_or_else(|| {
            self.moved[reach.base] = 0;
            start = reach.start;
            let range = (reach.start, reach.start + reach.size);
            let (base, writes) = (reach.base, reach.writes);
            let addend = Addend::Stack;
            self.made.groups.push(Group { base, first: i, range, writes, accesses: 0, addend });
            self.made.groups.len() - 1
        });
        self.open[reach.base] = Some(index);
        let known = &mut self.made.groups[index];
        if group.is_some() {
            known.range = (known.range.0.min(start), known.range.1.max(end));
        }
        known.writes |= reach.writes;
        known.accesses += 1;
        self.made.of[i] = Some((index, start));
    }

    /// Gives each group worth it a place for its addend, and forgets the others.
    fn finish(mut self) -> Groups {
        let mut places = 0;
        for group in self.made.groups.iter_mut().filter(|group| group.base != RSP) {
            group.addend = Addend::Place(places);
            if group.accesses > 1 && places < GROUPS {
                places += 1;
            } else {
                group.accesses = 0;
            }
        }
        for of in &mut self.made.of {
            *of = of.filter(|(group, _)| self.made.groups[*group].accesses > 0);
        }
        self.made
    }
}

impl Translation<'_> {
    /// Finds the groups of the block.
    pub(super) fn find_groups(&mut self) {
        let mut maker = Maker::default();
        maker.made.of = vec![None; self.ops.len()];
        for i in 0..self.instructions.len() {
            if let Some(reach) = self.reach(i) {
                maker.join(i, reach);
            }
            self.close_groups(i, &mut maker);
        }
        self.groups = maker.finish();
    }

    /// The access of instruction `i`, if it is of the kind that groups are made of.
    fn reach(&self, i: usize) -> Option<Reach> {
        let instruction = &self.instructions[i];
        let slot = self.slot();
        let on_stack = |start: i32, writes| Some(Reach { base: RSP, start, size: slot, writes });
        let Some(plan) = self.plans.get(i) else {
            return match self.end(i) {
                End::Call(_) | End::CallIndirect => on_stack(-slot, true),
                End::Return(_) => on_stack(0, false),
                _ => None,
            };
        };
        match plan {
            Plan::Push | Plan::PushMemory(_) | Plan::PushFlags => on_stack(-slot, true),
            Plan::Pop => on_stack(0, false),
            Plan::Leave => Some(Reach { base: RBP, start: 0, size: slot, writes: false }),
            Plan::Native { memory: Some(operand), .. } => reach_of_operand(instruction, *operand),
            _ => None,
        }
    }

    /// Ends the groups whose base instruction `i` changes.
    fn close_groups(&mut self, i: usize, maker: &mut Maker) {
        let instruction = &self.instructions[i];
        if matches!(self.plans.get(i), None | Some(Plan::Handler)) {
            maker.open = [None; 16];
            return;
        }
        if maker.open == [None; 16] {
            return;
        }
        let shift = shift(instruction, self.slot());
        let options = InstructionInfoOptions::NO_MEMORY_USAGE;
        for used in self.tools.info.info_options(instruction, options).used_registers() {
            let register = used.register();
            if !register.is_gpr() || !rewrite::writes(used.access()) {
                continue;
            }
            let number = usize::from(rewrite::number(register));
            match shift.filter(|shift| shift.0 == number) {
                Some((_, by)) if (-NEAR..NEAR).contains(&(maker.moved[number] + by)) => {
                    maker.moved[number] += by;
                }
                _ => maker.open[number] = None,
            }
        }
    }

    /// A field of the stack's page.
    pub(super) fn stack_page(&self, offset: usize) -> Mem {
        Mem::Field((super::known(self.user) + offset_of!(Known, stack) + offset) as i32)
    }

    fn addend_field(&self, addend: Addend) -> Mem {
        match addend {
            Addend::Stack => self.stack_page(offset_of!(StackPage, addend)),
            Addend::Place(n) => frame(offset_of!(Frame, addends) + n * size_of::<u64>()),
        }
    }

    /// If the access of instruction `i` is checked by its group, loads the addend into S1.
    pub(super) fn load_addend(&mut self, i: usize) -> bool {
        let Some(index) = self.groups.of(i) else { return false };
        let addend = self.groups.groups[index].addend;
        let field = self.addend_field(addend);
        if self.addend != Some(field) {
            self.asm.load(Size::Qword, S1, field);
            self.addend = Some(field);
        }
        true
    }

    /// Checks the group that begins with instruction `i`, if one does.
    pub(super) fn write_group_check(&mut self, i: usize) {
        let Some(index) = self.groups.of(i) else { return };
        let group = self.groups.groups[index];
        if group.first != i {
            return;
        }
        let Some(base) = host_of(group.base as u8) else { return };
        self.clobber(i);
        let (retry, failed) = (self.asm.label(), self.asm.label());
        self.asm.bind(retry);
        let size = group.range.1 - group.range.0;
        let (field, page) = (self.addend_field(group.addend), self.stack_page(offset_of!(StackPage, page)));
        self.asm.lea(self.word(), S0, Mem::Base(base, group.range.0));
        if group.addend == Addend::Stack {
            self.asm.alu_load(Size::Qword, Alu::Sub, S0, page);
            self.asm.alu_immediate(Size::Qword, Alu::Cmp, S0, 4096 - size);
            self.asm.jump_if(Condition::A, failed);
            self.asm.load(Size::Qword, S1, field);
            self.asm.test(Size::Qword, S1, S1);
            self.asm.jump_if(Condition::E, failed);
        } else if self.tries_known(group.operand(), Register::RAX + group.base as u32) {
            self.write_find((base, group.range.0), group.operand(), failed);
            self.asm.store(Size::Qword, field, S1);
        } else {
            self.write_check(group.operand(), failed);
            self.write_load_field(S1, ADDEND);
            self.asm.store(Size::Qword, field, S1);
        }
        self.addend = Some(field);
        let save = self.missed(i);
        self.cold.push(Cold::Group { label: failed, index, retry, save });
    }

    /// At `label`: the check of a group failed. If the TLB has the page of the stack after all, it is remembered
    /// and the check made again at `retry`; else Rust walks; and a range in two pages is for the variant.
    pub(super) fn write_failed_group(&mut self, label: Label, index: usize, retry: Label, save: Save) {
        let group = self.groups.groups[index];
        let Some(base) = host_of(group.base as u8) else { return };
        let operand = group.operand();
        let (field, page) = (self.addend_field(group.addend), self.stack_page(offset_of!(StackPage, page)));
        let (absent, split, unknown) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.bind(label);
        self.asm.lea(self.word(), S0, Mem::Base(base, group.range.0));
        self.asm.mov(Size::Dword, S1, S0);
        self.asm.alu_immediate(Size::Dword, Alu::And, S1, 4095);
        self.asm.alu_immediate(Size::Dword, Alu::Cmp, S1, 4096 - operand.size as i32);
        self.asm.jump_if(Condition::A, split);
        if group.addend == Addend::Stack {
            self.write_check(operand, absent);
            self.write_load_field(S0, offset_of!(TlbEntry, write));
            self.asm.store(Size::Qword, page, S0);
            self.write_load_field(S0, ADDEND);
            self.asm.store(Size::Qword, field, S0);
            self.asm.jump(retry);
        }
        self.asm.bind(absent);
        let kind = if operand.intent == Intent::Write { Kind::FillForStores } else { Kind::Fill };
        let fill = self.site(kind, group.first, self.start_of(group.first));
        self.sites[fill].register = group.base as u8;
        self.sites[fill].distance = group.range.0;
        self.resumes.push((fill, retry));
        self.write_save(save);
        self.jump_with_site(fill, self.stubs.slow);
        self.asm.bind(split);
        self.write_save(save);
        self.asm.jump(unknown);
        let variant = self.site(Kind::Variant, group.first, self.start_of(group.first));
        self.patch_here(fill);
        self.patch_here(variant);
        self.asm.bind(unknown);
        self.jump_with_site(variant, self.stubs.slow);
    }
}

impl Groups {
    /// The group that the access of instruction `i` belongs to.
    fn of(&self, i: usize) -> Option<usize> {
        self.offset(i).map(|(group, _)| group)
    }

    /// The same, and where the access begins, relative to the base where the group begins.
    pub(super) fn offset(&self, i: usize) -> Option<(usize, i32)> {
        self.of.get(i).copied().flatten()
    }

    /// Whether the check of a group stands before instruction `i`.
    pub(super) fn starts(&self, i: usize) -> bool {
        self.of(i).is_some_and(|group| self.groups[group].first == i)
    }

    /// Whether the access of instruction `i` is checked by a group.
    pub(super) fn has(&self, i: usize) -> bool {
        self.of(i).is_some()
    }
}

impl Group {
    /// The whole range as an operand. The stack's page is kept for stores and loads alike.
    fn operand(&self) -> Operand {
        let intent = if self.writes || self.addend == Addend::Stack { Intent::Write } else { Intent::Read };
        Operand { size: (self.range.1 - self.range.0) as u32, intent, alignment: 1 }
    }
}

/// `[base + displacement]` with a base that lives in a host register.
fn reach_of_operand(instruction: &Instruction, operand: Operand) -> Option<Reach> {
    let base = instruction.memory_base();
    let plain =
        base.is_gpr() && instruction.memory_index() == Register::None && !rewrite::in_segment(instruction);
    if !plain || host_of(rewrite::number(base)).is_none() || operand.size as i32 > MAX_RANGE {
        return None;
    }
    let start = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
    let near = (-NEAR..NEAR).contains(&start);
    let (base, size) = (usize::from(rewrite::number(base)), operand.size as i32);
    near.then_some(Reach { base, start, size, writes: operand.intent == Intent::Write })
}

/// The register an instruction moves by a constant, and how far, if that is all of a register of `width` bytes.
pub(super) fn shift(instruction: &Instruction, width: i32) -> Option<(usize, i32)> {
    let first = instruction.op0_register();
    let moves =
        instruction.op0_kind() == OpKind::Register && first.is_gpr() && first.size() == width as usize;
    let by_immediate = || {
        let kind = instruction.try_op_kind(1).ok()?;
        let value = match kind {
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => width == 8,
            OpKind::Immediate8to32 | OpKind::Immediate32 => width == 4,
            _ => false,
        };
        value.then(|| instruction.immediate(1) as i32)
    };
    let (register, by) = match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq
            if first.full_register() != Register::RSP || !moves =>
        {
            (Register::RSP, instruction.stack_pointer_increment())
        }
        Mnemonic::Add if moves => (first, by_immediate()?),
        Mnemonic::Sub if moves => (first, by_immediate()?.wrapping_neg()),
        Mnemonic::Inc if moves => (first, 1),
        Mnemonic::Dec if moves => (first, -1),
        Mnemonic::Lea
            if moves
                && instruction.memory_base() == first
                && instruction.memory_index() == Register::None =>
        {
            (first, instruction.memory_displacement64() as i32)
        }
        _ => return None,
    };
    (-NEAR..NEAR).contains(&by).then(|| (usize::from(rewrite::number(register)), by))
}
