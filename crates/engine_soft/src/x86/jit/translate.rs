//! One block into host code: the driver, and instructions that stay what they are.

use std::mem::offset_of;

use engine::Statistics;
use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoOptions, Mnemonic, OpKind, Register};
use memory::PageInfo;

use super::asm::{Alu, Asm, Condition, Label, Mem, RAX, RDX, Reg, Size};
use super::flags::{ALL, Effect, Peek};
use super::rewrite::{self, Borrowed, Rewritten, S0, S1, host_of, place_memory};
use super::stubs::{Stubs, flags, frame, gpr};
use super::{Frame, Kind, Site, Tools, Vectors};
use crate::x86::hostexec::{Access, Class};
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Block, Op};
use crate::x86::interp::ops::vector::Extra;
use crate::x86::mmu::Intent;

/// More than the code of any block: 48 instructions, none of which takes more than a few hundred bytes.
pub const MAX_CODE_BYTES: usize = 64 << 10;

/// Where the live flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In EFLAGS.
    pub(super) host: bool,
    /// In the vCPU's `flags`.
    pub(super) saved: bool,
}

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing to do.
    Nothing,
    /// The instruction itself on host registers; its memory operand, if it has one, checked.
    Native {
        /// Size, intent and alignment of the memory operand.
        memory: Option<Operand>,
        /// Vector registers it needs: see [`Vectors`].
        vectors: u8,
    },
    /// LEA
    Address,
    /// PUSH of a register or immediate.
    Push,
    /// POP of a register.
    Pop,
    /// LEAVE
    Leave,
    /// DIV and IDIV, which may trap.
    Divide,
    /// By the interpreter's handler.
    Handler,
}

/// A memory operand to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) size: u32,
    pub(super) intent: Intent,
    pub(super) alignment: u32,
}

/// Code that is needed rarely and stands behind the rest.
pub(super) enum Cold {
    /// At `label`: go to a stub with site number `site`. If that resumes, it is at `resume`, with the live
    /// flags in EFLAGS if `restore`.
    Stub { label: Label, site: usize, stub: u64, resume: Option<Label>, restore: bool },
    /// At `label`: save the flags first if they are in EFLAGS only, then leave with the site.
    Exit { label: Label, site: usize, save: bool },
    /// At `label`: a jump out of the page to `target`, relative to the page.
    FarJump { label: Label, last: usize, target: i64, save: bool },
    /// At `label`: leave with the site and the address in S0.
    Unknown { label: Label, site: usize },
}

/// A block being translated.
pub(super) struct Translation<'a> {
    pub(super) asm: Asm,
    pub(super) stubs: Stubs,
    tools: &'a mut Tools,
    pub(super) block: &'a Block,
    pub(super) ops: &'a [Op],
    /// Offset of the block in its page.
    pub(super) start: u32,
    page: &'a [u8],
    pub(super) instructions: Vec<Instruction>,
    plans: Vec<Plan>,
    /// The flags live before each instruction, and after the last.
    pub(super) live: Vec<u32>,
    exact_flags: bool,
    /// Bytes of the page that were looked at to find out.
    seen: (usize, usize),
    pub(super) place: Place,
    /// Vector registers the rest of the block needs.
    pub(super) vectors: u8,
    pub(super) cold: Vec<Cold>,
    pub(super) sites: &'a mut Vec<Site>,
    /// Sites and where they resume.
    resumes: Vec<(usize, Label)>,
    /// Sites and where the displacement of their jump is.
    patches: Vec<(usize, u32)>,
}

/// A finished translation.
pub(super) struct Finished {
    pub(super) code: Vec<u8>,
    /// Offset of the inner entry; the outer one is at 0.
    pub(super) inner: u32,
    pub(super) instructions: u32,
    /// What of the page was looked at beyond the block.
    pub(super) seen: (usize, usize),
}

/// Sites a block of `ops` operations may need.
pub(super) fn max_sites(ops: usize) -> usize {
    2 * ops + 8
}

impl<'a> Translation<'a> {
    /// Prepares the translation of `block`, whose page's bytes are `page`, for host address `address`.
    pub(super) fn new(
        block: &'a Block,
        ops: &'a [Op],
        start: u32,
        page: &'a [u8],
        stubs: Stubs,
        tools: &'a mut Tools,
        sites: &'a mut Vec<Site>,
        (address, exact_flags): (u64, bool),
    ) -> Self {
        let bytes = &page[start as usize..(start as usize + usize::from(block.len)).min(page.len())];
        // Addresses relative to the page: targets and operands come out independent of where it is mapped.
        let decoder = Decoder::with_ip(64, bytes, u64::from(start), DecoderOptions::NONE);
        let instructions: Vec<Instruction> = decoder.into_iter().collect();
        Self {
            asm: Asm::new(address),
            stubs,
            tools,
            block,
            ops,
            start,
            page,
            instructions,
            plans: Vec::new(),
            live: Vec::new(),
            exact_flags,
            seen: (usize::MAX, 0),
            place: Place { host: true, saved: false },
            vectors: Vectors::NONE,
            cold: Vec::new(),
            sites,
            resumes: Vec::new(),
            patches: Vec::new(),
        }
    }

    /// Translates. `None` if the bytes are not those of the operations any more.
    pub(super) fn run(mut self) -> Option<Finished> {
        let agrees = |(op, instruction): (&Op, &Instruction)| {
            usize::from(op.len) == instruction.len()
                && u64::from(op.offset) + u64::from(self.start) == instruction.ip()
        };
        let real = self.ops.iter().take_while(|op| op.len != 0).count();
        if self.instructions.len() != real || !self.ops.iter().zip(&self.instructions).all(agrees) {
            return None;
        }
        self.plan();
        self.find_live_flags();
        self.write_outer_entry();
        let inner = self.asm.position();
        self.write_inner_entry();
        let last = self.ops.len() - 1;
        for i in 0..last {
            self.write_instruction(i);
        }
        self.write_end(last);
        self.write_cold();
        Some(self.finish(inner, real as u32))
    }

    fn finish(mut self, inner: u32, instructions: u32) -> Finished {
        let code = self.asm.finish().to_vec();
        for (site, label) in &self.resumes {
            self.sites[*site].resume = u64::from(self.asm.offset_of(*label));
        }
        for (site, at) in &self.patches {
            self.sites[*site].patch = *at;
        }
        Finished { code, inner, instructions, seen: self.seen }
    }

    /// The offset in the page of what may be live in `offset`, looked at and remembered.
    pub(super) fn live_at(&mut self, offset: i64) -> u32 {
        if self.exact_flags {
            return ALL;
        }
        let Ok(offset) = u64::try_from(offset) else { return ALL };
        let mut peek = Peek::new(self.page);
        let live = peek.live_at(offset);
        if peek.seen.0 < peek.seen.1 {
            self.seen = (self.seen.0.min(peek.seen.0), self.seen.1.max(peek.seen.1));
        }
        live
    }

    fn plan(&mut self) {
        let last = self.ops.len() - 1;
        for i in 0..last {
            let plan = self.plan_of(i);
            if let Plan::Native { vectors, .. } = plan {
                self.vectors = self.vectors.max(vectors);
            }
            self.plans.push(plan);
        }
    }

    fn find_live_flags(&mut self) {
        let last = self.ops.len() - 1;
        self.live = vec![ALL; self.ops.len() + 1];
        if self.exact_flags {
            return;
        }
        let (before_end, after) = self.live_around_end(last);
        self.live[last + 1] = after;
        self.live[last] = before_end;
        for i in (0..last).rev() {
            self.live[i] = self.effect(i).before(self.live[i + 1]);
        }
    }

    /// What instruction `i` does to flags, translated as planned.
    fn effect(&self, i: usize) -> Effect {
        match self.plans[i] {
            Plan::Nothing | Plan::Address | Plan::Push | Plan::Pop | Plan::Leave => Effect::default(),
            Plan::Handler if self.instructions[i].is_string_instruction() => {
                Effect { replaces: 0, ..Effect::of(&self.instructions[i]) }
            }
            Plan::Handler => Effect::OPAQUE,
            Plan::Native { .. } | Plan::Divide => Effect::of(&self.instructions[i]),
        }
    }

    fn plan_of(&mut self, i: usize) -> Plan {
        let op = &self.ops[i];
        let instruction = &self.instructions[i];
        if op.dst == Op::THUNK {
            // SAFETY: operations with this mark keep an `Extra` in the arena, which is not cleared now.
            let extra = unsafe { &*(op.imm as *const Extra) };
            return plan_of_thunk(extra, instruction);
        }
        plan_of_plain(instruction, self.tools)
    }

    /// From Rust and from other pages: the flags are saved, the code may be stale.
    fn write_outer_entry(&mut self) {
        let counter = std::ptr::from_ref(PageInfo::code_generation_counter(
            // SAFETY: page information lives as long as guest RAM, which the engine holds.
            unsafe { &*self.block.info },
        ));
        self.asm.load_immediate(S0, counter as u64);
        let generation = self.block.generation as i32;
        self.asm.alu_memory_immediate(Size::Dword, Alu::Cmp, Mem::Base(S0, 0), generation);
        let stale = self.asm.label();
        self.asm.jump_if(Condition::NE, stale);
        let site = self.site(Kind::Leave, 0, self.start as i32);
        self.cold.push(Cold::Exit { label: stale, site, save: false });
        if self.live[0] != 0 {
            self.load_flags();
        }
    }

    /// From the same page: counts, and sees that vector registers are loaded.
    fn write_inner_entry(&mut self) {
        let count = self.ops.iter().filter(|op| op.len != 0).count() as i32;
        let counter = Mem::Field((offset_of!(Cpu, counters) + offset_of!(Statistics, instructions)) as i32);
        if self.live[0] == 0 {
            self.asm.alu_memory_immediate(Size::Qword, Alu::Add, counter, count);
        } else {
            self.asm.load(Size::Qword, S0, counter);
            self.asm.lea(Size::Qword, S0, Mem::Base(S0, count));
            self.asm.store(Size::Qword, counter, S0);
        }
        if self.vectors == Vectors::NONE {
            return;
        }
        self.clobber(0);
        let needed = i32::from(self.vectors);
        self.asm.alu_memory_immediate(Size::Byte, Alu::Cmp, frame(offset_of!(Frame, vectors)), needed);
        let (missing, resume) = (self.asm.label(), self.asm.label());
        self.asm.jump_if(Condition::B, missing);
        self.asm.bind(resume);
        let site = self.site(Kind::Vectors, 0, self.start as i32);
        let stub = self.stubs.slow;
        self.cold.push(Cold::Stub { label: missing, site, stub, resume: Some(resume), restore: false });
    }

    fn write_instruction(&mut self, i: usize) {
        match self.plans[i] {
            Plan::Nothing => {}
            Plan::Native { memory: None, .. } => self.write_native(i),
            Plan::Native { memory: Some(operand), .. } => self.write_with_memory(i, operand),
            Plan::Address => self.write_address(i),
            Plan::Push => self.write_push(i),
            Plan::Pop => self.write_pop(i),
            Plan::Leave => self.write_leave(i),
            Plan::Divide => self.write_divide(i),
            Plan::Handler => self.write_handler(i),
        }
    }

    /// An instruction between registers.
    fn write_native(&mut self, i: usize) {
        let instruction = self.instructions[i];
        let Some(made) = rewrite::registers(&instruction, &mut self.tools.info, &[S0, S1]) else {
            return self.write_handler(i);
        };
        let effect = Effect::of(&instruction);
        if effect.reads != 0 || effect.keeps_some(self.live[i + 1]) {
            self.need_host(self.live[i]);
        }
        let position = self.asm.position();
        if made.verbatim {
            let at = instruction.ip() as usize;
            self.asm.raw(&self.page[at..at + instruction.len()]);
        } else if !self.write_rewritten(&made) {
            self.asm.rewind(position);
            return self.write_handler(i);
        }
        self.flags_after(effect);
    }

    /// An instruction with one operand in memory.
    fn write_with_memory(&mut self, i: usize, operand: Operand) {
        let instruction = self.instructions[i];
        let Some(mut made) = rewrite::registers(&instruction, &mut self.tools.info, &[S1]) else {
            return self.write_handler(i);
        };
        let alone = made.borrowed[0].is_some();
        place_memory(&mut made.instruction, S0, (!alone).then_some(S1));
        if self.encoded(&made.instruction).is_none() {
            return self.write_handler(i); // AH..BH beside a scratch register
        }
        self.clobber(i);
        let miss = self.asm.label();
        self.write_operand_address(&instruction);
        self.write_check(operand, miss);
        let host = Mem::Base(S1, super::access::HOST);
        if alone {
            self.asm.alu_load(Size::Qword, Alu::Add, S0, host);
        } else {
            self.asm.load(Size::Qword, S1, host);
        }
        let effect = Effect::of(&instruction);
        if effect.reads != 0 || effect.keeps_some(self.live[i + 1]) {
            self.need_host(self.live[i]);
        }
        let written = self.write_rewritten(&made);
        debug_assert!(written, "encoded before");
        self.flags_after(effect);
        self.cold_handler(i, miss);
    }

    /// A rewritten instruction with its registers from memory around it.
    fn write_rewritten(&mut self, made: &Rewritten) -> bool {
        let Some(bytes) = self.encoded(&made.instruction) else { return false };
        for Borrowed { guest, host, read, .. } in made.borrowed.iter().flatten() {
            if *read {
                self.asm.load(Size::Qword, *host, gpr(*guest));
            }
        }
        self.asm.raw(&bytes);
        for Borrowed { guest, host, written, .. } in made.borrowed.iter().flatten() {
            if *written {
                self.asm.store(Size::Qword, gpr(*guest), *host);
            }
        }
        true
    }

    fn encoded(&mut self, instruction: &Instruction) -> Option<Vec<u8>> {
        let done = self.tools.encoder.encode(instruction, 0).is_ok();
        let bytes = self.tools.encoder.take_buffer();
        done.then_some(bytes)
    }

    /// DIV and IDIV natively where the quotient surely fits: the high half below the divisor, or for IDIV a
    /// dividend that is one sign-extended register and a divisor that is neither 0 nor -1.
    fn write_divide(&mut self, i: usize) {
        let instruction = self.instructions[i];
        let size = if instruction.op0_register().size() == 8 { Size::Qword } else { Size::Dword };
        let number = rewrite::number(instruction.op0_register());
        let slow = self.asm.label();
        self.clobber(i);
        let divisor = match host_of(number) {
            Some(host) => host,
            None => {
                self.asm.load(size, S1, gpr(number));
                S1
            }
        };
        if instruction.mnemonic() == Mnemonic::Div {
            self.asm.alu(size, Alu::Cmp, RDX, divisor);
            self.asm.jump_if(Condition::AE, slow);
        } else {
            self.asm.mov(size, S0, RAX);
            self.asm.sar(size, S0, if size == Size::Qword { 63 } else { 31 });
            self.asm.alu(size, Alu::Cmp, S0, RDX);
            self.asm.jump_if(Condition::NE, slow);
            self.asm.lea(size, S0, Mem::Base(divisor, 1));
            self.asm.alu_immediate(size, Alu::Cmp, S0, 1);
            self.asm.jump_if(Condition(6), slow);
        }
        let mut host = instruction;
        host.set_op0_register(sized(divisor, size));
        let Some(bytes) = self.encoded(&host) else {
            unreachable!("a division by a register has an encoding")
        };
        self.asm.raw(&bytes);
        self.flags_after(Effect::of(&instruction));
        self.cold_handler(i, slow);
    }

    /// By the interpreter's handler, after which the block goes on.
    pub(super) fn write_handler(&mut self, i: usize) {
        self.save_flags(self.live[i]);
        let site = self.site(Kind::Handler, i, self.start as i32);
        let resume = self.asm.label();
        self.jump_with_site(site, self.stubs.slow);
        self.asm.bind(resume);
        self.resumes.push((site, resume));
        self.place = Place { host: false, saved: true };
    }

    /// At `label`: instruction `i` by its handler, then on behind it.
    pub(super) fn cold_handler(&mut self, i: usize, label: Label) {
        let site = self.site(Kind::Handler, i, self.start as i32);
        let resume = self.asm.label();
        self.asm.bind(resume);
        let restore = self.live[i + 1] != 0 && self.place.host;
        let stub = self.stubs.slow;
        self.cold.push(Cold::Stub { label, site, stub, resume: Some(resume), restore });
    }

    /// A new site for operation `i`.
    pub(super) fn site(&mut self, kind: Kind, i: usize, ip: i32) -> usize {
        assert!(self.sites.len() < self.sites.capacity(), "room for the block's sites was made");
        self.sites.push(Site {
            kind,
            link: 0,
            vectors: self.vectors,
            moved: 0,
            ip,
            patch: 0,
            resume: 0,
            block: self.block,
            op: &raw const self.ops[i],
        });
        self.sites.len() - 1
    }

    /// `mov S0, site; jmp stub`
    pub(super) fn jump_with_site(&mut self, site: usize, stub: u64) {
        let address = &raw const self.sites[site];
        self.asm.load_immediate(S0, address as u64);
        self.asm.jump_to(stub);
    }

    /// The jump just written, whose displacement are the last four bytes, is what `site` will patch.
    pub(super) fn patch_here(&mut self, site: usize) {
        self.patches.push((site, self.asm.position() - 4));
    }

    // Flags.

    /// EFLAGS will be destroyed before instruction `i`.
    pub(super) fn clobber(&mut self, i: usize) {
        self.save_flags(self.live[i]);
        self.place.host = false;
    }

    /// Sees that live flags are in memory too.
    pub(super) fn save_flags(&mut self, live: u32) {
        if live != 0 && !self.place.saved {
            self.store_flags();
            self.place.saved = true;
        }
    }

    pub(super) fn store_flags(&mut self) {
        self.asm.mov(Size::Qword, S1, RAX);
        self.asm.flags_to_ax();
        self.asm.store(Size::Word, flags(), RAX);
        self.asm.mov(Size::Qword, RAX, S1);
    }

    /// Sees that the `live` flags are in EFLAGS; both scratch registers keep their values.
    pub(super) fn need_host(&mut self, live: u32) {
        if !self.place.host {
            if live != 0 {
                self.load_flags();
            }
            self.place.host = true;
        }
    }

    pub(super) fn load_flags(&mut self) {
        self.asm.store(Size::Qword, frame(offset_of!(Frame, saved_rax)), RAX);
        self.asm.movzx_word(RAX, flags());
        self.asm.flags_from_ax();
        self.asm.load(Size::Qword, RAX, frame(offset_of!(Frame, saved_rax)));
    }

    fn flags_after(&mut self, effect: Effect) {
        if effect.changes != 0 {
            self.place = Place { host: true, saved: false };
        }
    }

    fn write_cold(&mut self) {
        // Cold code may make more of it.
        while let Some(cold) = self.cold.pop() {
            match cold {
                Cold::Stub { label, site, stub, resume, restore } => {
                    self.asm.bind(label);
                    self.jump_with_site(site, stub);
                    if let Some(resume) = resume {
                        self.write_resume(site, resume, restore);
                    }
                }
                Cold::Exit { label, site, save } => {
                    self.asm.bind(label);
                    if save {
                        self.store_flags();
                    }
                    self.jump_with_site(site, self.stubs.leave);
                }
                Cold::FarJump { label, last, target, save } => {
                    self.asm.bind(label);
                    if save {
                        self.store_flags();
                    }
                    self.write_far_jump(last, target, 0);
                }
                Cold::Unknown { label, site } => {
                    self.asm.bind(label);
                    self.asm.store(Size::Qword, frame(offset_of!(Frame, target)), S0);
                    self.jump_with_site(site, self.stubs.leave);
                }
            }
        }
    }

    /// Where the handler of `site` comes back to: `resume`, with the flags in EFLAGS if `restore`.
    fn write_resume(&mut self, site: usize, resume: Label, restore: bool) {
        if !restore {
            self.resumes.push((site, resume));
            return;
        }
        let back = self.asm.label();
        self.asm.bind(back);
        self.load_flags();
        self.asm.jump(resume);
        self.resumes.push((site, back));
    }
}

fn sized(reg: Reg, size: Size) -> Register {
    let first = if size == Size::Qword { Register::RAX } else { Register::EAX };
    first + u32::from(reg.0)
}

/// What `hostexec` would run in a thunk runs in place, unless it is our own code or x87.
fn plan_of_thunk(extra: &Extra, instruction: &Instruction) -> Plan {
    let thunk = &extra.thunk;
    let upper = matches!(instruction.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall);
    if !(thunk.is_host_code() || upper) || is_odd(instruction) {
        return Plan::Handler;
    }
    let vectors = match thunk.class() {
        Class::Integer | Class::VexInteger => Vectors::NONE,
        Class::Sse => Vectors::XMM,
        Class::Avx => Vectors::YMM,
        _ => return Plan::Handler,
    };
    let memory = thunk.memory().map(|operand| Operand {
        size: u32::from(operand.size),
        intent: if operand.access == Access::Read { Intent::Read } else { Intent::Write },
        alignment: u32::from(operand.alignment),
    });
    if memory.is_none() && instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
        return Plan::Handler;
    }
    Plan::Native { memory, vectors }
}

/// Operands that have no place in a translation: addresses of 32 bits, vectors of addresses, implied operands.
pub(super) fn is_odd(instruction: &Instruction) -> bool {
    let in_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let far = i32::try_from(instruction.memory_displacement64() as i64).is_err();
    let narrow = |register: Register| register != Register::None && register.size() != 8;
    let address = narrow(instruction.memory_base()) || narrow(instruction.memory_index());
    let truncated = instruction.memory_displ_size() == 4
        && instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None;
    let other = |kind: OpKind| {
        !matches!(
            kind,
            OpKind::Register
                | OpKind::Memory
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    };
    in_memory && (address || far || truncated) || instruction.op_kinds().any(other)
}

/// The integer instructions that are the same on host registers.
fn is_plain(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Add
            | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Imul
            | Mul
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Bswap
            | Xchg
            | Xadd
            | Cmpxchg
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Movnti
    )
}

fn plan_of_plain(instruction: &Instruction, tools: &mut Tools) -> Plan {
    use Mnemonic as M;
    let wide_register = |n: u32| {
        instruction.op_kind(n) == OpKind::Register
            && instruction.op_register(n).is_gpr()
            && instruction.op_register(n).size() == 8
    };
    match instruction.mnemonic() {
        M::Nop | M::Endbr64 | M::Endbr32 | M::Lfence => return Plan::Nothing,
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw => {
            return Plan::Nothing;
        }
        M::Lea if !is_odd(instruction) => return Plan::Address,
        M::Push if instruction.stack_pointer_increment() == -8 => {
            let register = instruction.op0_kind() == OpKind::Register;
            return match instruction.op0_kind() {
                OpKind::Register if wide_register(0) => Plan::Push,
                OpKind::Memory => Plan::Handler,
                _ if register => Plan::Handler,
                _ => Plan::Push,
            };
        }
        M::Pop if instruction.stack_pointer_increment() == 8 && wide_register(0) => {
            return if instruction.op0_register() == Register::RSP { Plan::Handler } else { Plan::Pop };
        }
        M::Leave if instruction.code() == iced_x86::Code::Leaveq => return Plan::Leave,
        M::Div | M::Idiv
            if instruction.op0_kind() == OpKind::Register && instruction.op0_register().size() >= 4 =>
        {
            return Plan::Divide;
        }
        _ => {}
    }
    let mnemonic = instruction.mnemonic();
    let conditional = instruction.condition_code() != iced_x86::ConditionCode::None
        && matches!(instruction.flow_control(), iced_x86::FlowControl::Next)
        && instruction.op_count() <= 2;
    let general = (0..instruction.op_count())
        .all(|n| instruction.op_kind(n) != OpKind::Register || instruction.op_register(n).is_gpr());
    if !(is_plain(mnemonic) || conditional) || !general || is_odd(instruction) {
        return Plan::Handler;
    }
    let in_memory = (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory);
    let Some(n) = in_memory else {
        return Plan::Native { memory: None, vectors: Vectors::NONE };
    };
    // A bit offset in a register reaches beyond the operand.
    let bits = matches!(mnemonic, M::Bt | M::Bts | M::Btr | M::Btc);
    if bits && instruction.op1_kind() == OpKind::Register {
        return Plan::Handler;
    }
    let access = tools.info.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE).op_access(n);
    let intent = if rewrite::writes(access) { Intent::Write } else { Intent::Read };
    let size = instruction.memory_size().size() as u32;
    if size == 0 {
        return Plan::Handler;
    }
    Plan::Native { memory: Some(Operand { size, intent, alignment: 1 }), vectors: Vectors::NONE }
}
