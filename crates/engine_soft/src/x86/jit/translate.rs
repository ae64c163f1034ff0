//! One block into host code: the driver, and instructions that stay what they are.
// UNSAFETY: reads the records and page information that blocks point to.

use std::mem::offset_of;

use engine::Statistics;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use super::asm::{Asm, Label, Mem, Size};
use super::finished::{Finished, Spare};
use super::flags::{ALL, Effect, Peek};
use super::group::Groups;
use super::held::{self, Held};
use super::keep::Cold;
use super::lazy::{Place, Save};
use super::listing::{Mark, Stretch};
use super::pieces::Piece;
use super::plan::{Plan, plan_of_plain, plan_of_thunk};
use super::relocation::Relocation;
use super::rewrite::{self, Borrowed, Encoded, Rewritten, S0, S1};
use super::stubs::{Stubs, gpr};
use super::{Config, Site, Tools, Vectors};
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::Op;
use crate::x86::interp::ops::vector::Extra;

/// More than the code of any block: 48 instructions, none of which takes more than a few hundred bytes.
pub const MAX_CODE_BYTES: usize = 24 << 10;

/// A block being translated.
pub(super) struct Translation<'a> {
    pub(super) asm: Asm,
    pub(super) stubs: Stubs,
    pub(super) tools: &'a mut Tools,
    pub(super) pieces: &'a [Piece<'a>],
    pub(super) ops: Vec<&'a Op>,
    /// By operation: the piece it belongs to.
    pub(super) piece_of: Vec<u16>,
    pub(super) page: &'a [u8],
    /// The page's linear address now.
    pub(super) linear: u64,
    /// Whether it is code of privilege level 3.
    pub(super) user: bool,
    /// Whether it is code of 32 bits: addresses are too, and the stack has slots of four bytes.
    pub(super) narrow: bool,
    /// What code names of its vCPU and host.
    pub(super) host: Host,
    pub(super) instructions: Vec<Instruction>,
    pub(super) plans: Vec<Plan>,
    pub(super) groups: Groups,
    /// The flags live before each instruction, and after the last.
    pub(super) live: Vec<u32>,
    pub(super) config: Config,
    marks: Vec<Mark>,
    /// Bytes of the page that were looked at to find out.
    pub(super) seen: (usize, usize),
    pub(super) place: Place,
    /// An inner entry that saves the flags, and where it goes on.
    pub(super) late_save: Option<(Label, Label)>,
    /// The last instruction that EFLAGS were destroyed for, and what is to be done for them if it fails.
    pub(super) missed: (usize, Save),
    /// It may be a part of a loop.
    pub(super) is_in_loop: bool,
    /// Base registers that a loop moves far with each round, as bits.
    pub(super) strided: u16,
    /// The addend of a group that S1 has.
    pub(super) addend: Option<Mem>,
    /// What the scratch registers hold otherwise.
    pub(super) held: Held,
    /// The group, the offset in it and the alignment of an access that is known to be aligned.
    pub(super) aligned: Option<(usize, i32, u32)>,
    /// The first instruction that jumps back to another block of the unit.
    pub(super) jumps_back: usize,
    /// Vector registers the rest of the block needs.
    pub(super) vectors: u8,
    /// The page is noted as that of the last x87 instruction.
    pub(super) x87_page_noted: bool,
    pub(super) cold: Vec<Cold>,
    pub(super) sites: &'a mut Vec<Site>,
    /// How many of the sites are other translations'.
    pub(super) first_site: usize,
    /// Addresses of this process in the code.
    pub(super) relocations: Vec<Relocation>,
    /// Sites and where they resume.
    pub(super) resumes: Vec<(usize, Label)>,
    /// Sites and where the displacement of their jump is.
    pub(super) patches: Vec<(usize, u32)>,
}

/// What code names of the vCPU that it is for, and of the host.
#[derive(Clone, Copy)]
pub(super) struct Host {
    /// Host address of the jump table for code of its privilege and width.
    pub(super) jumps: i32,
    /// How many entries that has, as a power of two.
    pub(super) jump_bits: u32,
    /// Whether the guest's processor, and so the host's, has BMI2.
    pub(super) has_bmi2: bool,
    /// Host addresses of the views of the TLB without and with RFLAGS.AC, if STAC and CLAC are for this code.
    pub(super) views: Option<[u64; 2]>,
    /// Host address of the word that asks for attention.
    pub(super) attention: i32,
    /// Host address of the user's view of the TLB.
    pub(super) user_tlb: i32,
}

/// What is translated: a unit of one block, or of several, one after the other: each but the last ends in a conditional
/// jump and is followed by the next where that is not taken, or in a jump to the next.
pub(super) struct Source<'a> {
    pub(super) pieces: &'a [Piece<'a>],
    /// The bytes of the page.
    pub(super) page: &'a [u8],
    /// Those of the next page that belong to the only instruction, if it is in both.
    pub(super) tail: &'a [u8],
    /// Its linear address now; it may be mapped elsewhere too.
    pub(super) linear: u64,
    /// Whether it is to run at privilege level 3, or at the others.
    pub(super) user: bool,
    /// Whether it is code of 32 bits, in flat segments (`mode::FLAT32`), or of 64.
    pub(super) narrow: bool,
    /// What code names of its vCPU and host.
    pub(super) host: Host,
}

/// Sites a block of `ops` operations may need.
pub(super) fn max_sites(ops: usize) -> usize {
    4 * ops + 8
}

impl<'a> Translation<'a> {
    /// Prepares the translation of `source` for host address `address`.
    pub(super) fn new(
        source: &Source<'a>,
        stubs: Stubs,
        tools: &'a mut Tools,
        sites: &'a mut Vec<Site>,
        (address, config): (u64, Config),
    ) -> Self {
        let Source { pieces, page, tail, linear, user, narrow, host } = *source;
        let mut spare = std::mem::take(&mut tools.spare);
        spare.asm.restart(address);
        spare.instructions.clear();
        spare.piece_of.clear();
        // Addresses relative to the page: targets and operands come out independent of where it is mapped.
        let bits = if narrow { 32 } else { 64 };
        for (n, piece) in (0..).zip(pieces) {
            let start = piece.start as usize;
            let end = (start + usize::from(piece.block.len)).min(page.len());
            let bytes = [&page[start..end], tail].concat();
            spare.instructions.extend(Decoder::with_ip(bits, &bytes, start as u64, DecoderOptions::NONE));
            spare.piece_of.extend(piece.ops.iter().map(|_| n));
        }
        spare.plans.clear();
        spare.live.clear();
        spare.marks.clear();
        spare.cold.clear();
        spare.relocations.clear();
        spare.resumes.clear();
        spare.patches.clear();
        Self {
            asm: spare.asm,
            stubs,
            tools,
            pieces,
            ops: pieces.iter().flat_map(|piece| piece.ops).collect(),
            piece_of: spare.piece_of,
            page,
            linear,
            user,
            narrow,
            host,
            instructions: spare.instructions,
            plans: spare.plans,
            groups: Groups::default(),
            live: spare.live,
            config,
            marks: spare.marks,
            seen: (usize::MAX, 0),
            place: Place::EFLAGS,
            late_save: None,
            is_in_loop: false,
            strided: 0,
            missed: (0, Save::Nothing),
            addend: None,
            held: Held::default(),
            aligned: None,
            jumps_back: usize::MAX,
            vectors: Vectors::NONE,
            x87_page_noted: false,
            cold: spare.cold,
            first_site: sites.len(),
            relocations: spare.relocations,
            sites,
            resumes: spare.resumes,
            patches: spare.patches,
        }
    }

    /// Translates; or only the variant without groups from operation `variant_from` on, which is entered with
    /// the live flags saved. `None` if the bytes are not those of the operations any more.
    pub(super) fn run(mut self, variant_from: Option<usize>) -> Option<Finished> {
        let agrees = |i: usize| {
            let (op, instruction) = (self.ops[i], &self.instructions[i]);
            usize::from(op.len) == instruction.len()
                && u64::from(op.offset) + self.start_of(i) as u64 == instruction.ip()
        };
        let real: u64 = self.pieces.iter().map(|piece| piece.block.instructions()).sum();
        if self.instructions.len() as u64 != real || !(0..self.instructions.len()).all(agrees) {
            return None;
        }
        self.plan();
        self.find_live_flags();
        self.find_loop();
        self.find_strides();
        let mut entries = None;
        if variant_from.is_none() {
            self.find_groups();
            self.mark(Stretch::Outer);
            self.write_outer_entry();
            let inner = self.join_entries();
            self.mark(Stretch::Inner);
            let ready = self.write_inner_entry();
            entries = Some((inner, if self.live[0] == 0 { ready } else { inner }));
        } else {
            self.place = Place::MEMORY;
        }
        let last = self.ops.len() - 1;
        for i in variant_from.unwrap_or(0)..last {
            self.mark(Stretch::Instruction(i));
            if variant_from.is_none() {
                self.write_count(i);
            }
            self.keep_lazy(i);
            self.write_group_check(i);
            self.write_instruction(i);
            self.follow_lazy(i);
        }
        self.mark(Stretch::Instruction(last));
        if variant_from.is_none() {
            self.write_count(last);
        }
        self.keep_lazy(last);
        self.write_group_check(last);
        self.write_end(last);
        self.write_late_save();
        self.mark(Stretch::Cold);
        self.asm.begin_second_part();
        self.write_cold();
        Some(self.finish(entries))
    }

    fn finish(mut self, entries: Option<(Label, Label)>) -> Finished {
        let relocations = &mut self.relocations;
        self.asm.finish(|at| relocations.push(Relocation::across(at)));
        let (inner, ready) =
            entries.map_or((0, 0), |(inner, ready)| (self.asm.offset_of(inner), self.asm.offset_of(ready)));
        for (site, label) in &self.resumes {
            self.sites[*site].resume = u64::from(self.asm.offset_of(*label));
        }
        for (site, at) in &self.patches {
            self.sites[*site].patch = *at;
        }
        let reversible = self.config.stress.step != 0 && self.is_reversible();
        self.tools.spare = Spare {
            piece_of: self.piece_of,
            plans: self.plans,
            live: self.live,
            cold: self.cold,
            resumes: self.resumes,
            patches: self.patches,
            ..Spare::default()
        };
        Finished {
            asm: self.asm,
            inner,
            ready,
            vectors: self.vectors,
            seen: self.seen,
            instructions: self.instructions,
            marks: self.marks,
            relocations: self.relocations,
            reversible,
        }
    }

    /// Width of the code.
    pub(super) fn bits(&self) -> u32 {
        if self.narrow { 32 } else { 64 }
    }

    /// That of addresses and of what the stack has in its slots.
    pub(super) fn word(&self) -> Size {
        if self.narrow { Size::Dword } else { Size::Qword }
    }

    /// Bytes of a slot on the stack.
    pub(super) fn slot(&self) -> i32 {
        if self.narrow { 4 } else { 8 }
    }

    /// The flags live at `offset` of the page; what was looked at to find out is remembered.
    pub(super) fn live_at(&mut self, offset: i64) -> u32 {
        if self.config.exact_flags {
            return ALL;
        }
        let Ok(offset) = u64::try_from(offset) else { return ALL };
        let mut peek = Peek::new(self.page, self.bits());
        let live = peek.live_at(offset);
        if peek.seen.0 < peek.seen.1 {
            self.seen = (self.seen.0.min(peek.seen.0), self.seen.1.max(peek.seen.1));
        }
        live
    }

    fn plan(&mut self) {
        let last = self.ops.len() - 1;
        for i in 0..last {
            let plan = match self.instructions[i].mnemonic() {
                Mnemonic::Jmp if self.begins_piece(i + 1) => self.plan_of_join(i),
                _ if self.begins_piece(i + 1) => Plan::SideExit,
                _ => self.plan_of(i),
            };
            let needed = match plan {
                Plan::Native { vectors, .. } => vectors,
                Plan::LoadControlWord(_) => Vectors::X87,
                _ => Vectors::NONE,
            };
            self.vectors = Vectors::both(self.vectors, needed);
            self.plans.push(plan);
        }
    }

    fn find_live_flags(&mut self) {
        let last = self.ops.len() - 1;
        self.live.resize(self.ops.len() + 1, ALL);
        if self.config.exact_flags {
            return;
        }
        let (before_end, after) = self.live_around_end(last);
        self.live[last + 1] = after;
        self.live[last] = before_end;
        for i in (0..last).rev() {
            let behind = self.live[i + 1];
            self.live[i] = match self.plans[i] {
                Plan::SideExit => self.live_before_side_exit(i, behind),
                _ => self.effect(i).before(behind),
            };
        }
    }

    /// What instruction `i` does to flags, translated as planned.
    fn effect(&self, i: usize) -> Effect {
        match self.plans[i] {
            Plan::Nothing | Plan::Address | Plan::Push | Plan::PushMemory(_) => Effect::default(),
            Plan::Pop | Plan::Leave => Effect::default(),
            Plan::Handler if self.instructions[i].is_string_instruction() => {
                Effect { replaces: 0, ..Effect::of(&self.instructions[i]) }
            }
            Plan::Handler | Plan::SideExit => Effect::OPAQUE,
            Plan::ClearInterrupts | Plan::ReadSegment | Plan::TimeStamp => Effect::default(),
            Plan::FillString { .. } | Plan::MoveString { .. } | Plan::LoadControlWord(_) => Effect::default(),
            Plan::PushFlags => Effect { reads: ALL, ..Effect::default() },
            Plan::Native { .. } | Plan::Divide { .. } | Plan::BitString(_) => {
                Effect::of(&self.instructions[i])
            }
        }
    }

    /// The plan of a jump to the next block of the unit.
    fn plan_of_join(&mut self, i: usize) -> Plan {
        if self.instructions[i + 1].ip() <= self.instructions[i].ip() {
            self.jumps_back = self.jumps_back.min(i);
        }
        Plan::Nothing
    }

    fn plan_of(&mut self, i: usize) -> Plan {
        let op = self.ops[i];
        let instruction = &self.instructions[i];
        if op.dst == Op::THUNK {
            // SAFETY: operations with this mark keep an `Extra` in the arena, which is not cleared now.
            let extra = unsafe { &*(op.imm as *const Extra) };
            return plan_of_thunk(extra, instruction, self.narrow);
        }
        plan_of_plain(instruction, self.narrow, self.tools)
    }

    pub(super) fn mark(&mut self, what: Stretch) {
        self.marks.push(Mark { at: self.asm.position(), what });
    }

    /// Counts the instructions of the block that begins with operation `i`, if asked to.
    fn write_count(&mut self, i: usize) {
        if !self.config.count || !self.begins_piece(i) {
            return;
        }
        let count = self.piece(i).block.instructions() as i32; // what leaving in the middle takes back
        let counter = Mem::Field((offset_of!(Cpu, counters) + offset_of!(Statistics, instructions)) as i32);
        self.asm.load(Size::Qword, S0, counter);
        self.asm.lea(Size::Qword, S0, Mem::Base(S0, count));
        self.asm.store(Size::Qword, counter, S0);
    }

    fn write_instruction(&mut self, i: usize) {
        let keeps_addend = matches!(
            self.plans[i],
            Plan::Nothing | Plan::Native { .. } | Plan::Push | Plan::Pop | Plan::Leave | Plan::SideExit
        );
        if !keeps_addend {
            self.addend = None;
        }
        match self.plans[i] {
            Plan::Nothing => {}
            Plan::Native { memory: None, .. } => self.write_native(i),
            Plan::Native { memory: Some(operand), .. } => self.write_with_memory(i, operand),
            Plan::Address => self.write_address(i),
            Plan::Push => self.write_push(i),
            Plan::PushMemory(operand) => self.write_push_memory(i, operand),
            Plan::Pop => self.write_pop(i),
            Plan::Leave => self.write_leave(i),
            Plan::Divide { memory } => self.write_divide(i, memory),
            Plan::ClearInterrupts => self.write_clear_interrupts(i),
            Plan::PushFlags => self.write_push_flags(i),
            Plan::ReadSegment => self.write_read_segment(i),
            Plan::TimeStamp => self.write_time_stamp(i),
            Plan::BitString(operand) => self.write_bit_string(i, operand),
            Plan::FillString { shift } => self.write_fill_string(i, shift),
            Plan::MoveString { shift } => self.write_move_string(i, shift),
            Plan::LoadControlWord(operand) => self.write_load_control_word(i, operand),
            Plan::SideExit => self.write_side_exit(i),
            Plan::Handler => self.write_handler(i),
        }
        if !keeps_addend {
            self.addend = None;
        }
    }

    /// An instruction between registers.
    fn write_native(&mut self, i: usize) {
        let instruction = rewrite::widened(&self.instructions[i]);
        let Some(made) = self.on_scratch_registers(&instruction) else {
            return self.write_handler(i);
        };
        let Some(bytes) = self.native_bytes(&made) else { return self.write_handler(i) };
        self.write_encoded(i, &made, &bytes);
    }

    /// The code of an instruction between registers.
    pub(super) fn native_bytes(&mut self, made: &Rewritten) -> Option<Encoded> {
        let at = made.instruction.ip() as usize;
        match self.page.get(at..at + made.instruction.len()) {
            Some(bytes) if made.verbatim && !self.narrow => Encoded::of(bytes),
            _ => self.encoded(&made.instruction),
        }
    }

    /// Instruction `i` as `bytes`, with the flags it needs and its registers from memory around it.
    pub(super) fn write_encoded(&mut self, i: usize, made: &Rewritten, bytes: &[u8]) {
        let effect = Effect::of(&self.instructions[i]);
        if effect.reads != 0 || effect.keeps_some(self.live[i + 1]) {
            self.need_host(self.live[i]);
        }
        let mut held = self.held();
        for Borrowed { guest, host, read, .. } in made.borrowed.iter().flatten() {
            if *host == S1 {
                self.addend = None;
            }
            let holder = &mut held[held::place(*host)];
            if *read && *holder != Some(*guest) {
                self.asm.load(Size::Qword, *host, gpr(*guest));
            }
            *holder = Some(*guest);
        }
        self.asm.raw(bytes);
        for Borrowed { guest, host, written, .. } in made.borrowed.iter().flatten() {
            if *written {
                self.asm.store(Size::Qword, gpr(*guest), *host);
            }
        }
        self.hold(held);
        self.flags_after(i, effect);
        self.note_x87(i);
    }

    pub(super) fn encoded(&mut self, instruction: &Instruction) -> Option<Encoded> {
        let done = self.tools.encoder().encode(instruction, 0).is_ok();
        let mut bytes = self.tools.encoder().take_buffer();
        let encoded = Encoded::of(&bytes).filter(|_| done);
        bytes.clear();
        self.tools.encoder().set_buffer(bytes);
        encoded
    }
}
