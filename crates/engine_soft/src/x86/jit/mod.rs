//! The translator: hot guest code as host code of the same instruction set.
//!
//! A block that the interpreter has executed often enough is translated: guest registers live in host registers,
//! status flags in EFLAGS, vectors in vector registers; only memory accesses, branches and what is privileged
//! become something else. Whatever has no translation calls the interpreter's own handler for that one
//! instruction, so the translator is complete by construction and a fault is always the interpreter's to report.
//!
//! ```text
//!   interp::run ──► run::enter ──► entry stub ──► block ─► block ─► … (chained)
//!        ▲                                          │ TLB miss, rare instruction
//!        └───────── leave stub ◄── unknown target ──┤
//!                                                   └► slow stub ─► run::slow ─► handler ─► back
//! ```
//!
//! # Host registers
//! RAX-RDI, R8 and R12-R15 hold the guest's registers of the same name, R9 holds the guest's RSP, R10 and R11
//! are scratch; the guest's R9-R11 stay in memory. The GS base is the address of the [`Cpu`].
//!
//! # Where the flags are
//! At a block's *inner* entry the live flags are in EFLAGS; that is how blocks of one page chain. At its *outer*
//! entry, in handlers and in Rust they are in [`Cpu::flags`].
//!
//! # Why a block may run
//! Whoever overwrites code asks running vCPUs to leave their blocks, and to forget the jumps that lead to code of that page
//! before they enter others. Rust looks whether a block is fresh before it enters it; of two pages, so does its outer entry.
//! Behind the inner entry's check that vector registers are loaded is the *ready* one, for blocks that have them.
//!
//! Reading order: this file, `sites`, [`translate`], `pieces`, `plan`, `entries`, `group`, `access`, `operand`, `branch`, `returns`, `system`, `divide`, `strings`, `x87`, `keep`, `held`, `jumps`, `finished`, `place`, `idle`, [`flags`], [`rewrite`], [`run`], [`stubs`].
//! What need not be translated anew is in [`kept`], `reuse` and `relocation`.
//! What it makes is shown by [`listing`], `names` and [`inspect`], and put to the test by [`stress`] and `lockstep`.
// UNSAFETY: keeps code and the addresses of interpreter blocks; what runs it is in `run`.

mod access;
pub mod asm;
mod branch;
mod divide;
mod entries;
mod finished;
mod fixed;
pub mod flags;
mod group;
mod held;
mod idle;
pub mod inspect;
mod jumps;
mod keep;
pub mod kept;
mod lazy;
pub mod listing;
pub(super) mod lockstep;
mod names;
mod operand;
mod pieces;
mod place;
mod plan;
mod relocation;
mod returns;
mod reuse;
pub mod rewrite;
pub mod run;
mod sites;
pub mod stress;
mod strings;
pub mod stubs;
mod system;
pub mod translate;
mod x87;

use std::io::{self, Write};
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iced_x86::{Encoder, InstructionInfoFactory};

use super::code::CodeArea;
use super::interp::cpu::Cpu;
use super::interp::op::Flow;
use super::known::Known;
use super::mmu::Mmu;
use super::zeroed::Zeroed;
use finished::Spare;
use group::GROUPS;
use jumps::Jumps;
use kept::Keeping;
use lockstep::InStep;
use returns::ReturnStack;
use sites::{Kind, Site, Sites};
use stress::Stress;
use stubs::Stubs;

/// While a vCPU has not run for long, blocks are translated after so many times [`Config::threshold`] executions.
const PATIENT: u32 = 8;

/// How a translator behaves; the default is right unless a test wants to provoke something.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Executions by the interpreter before a block is translated.
    pub threshold: u32,
    /// How often a block that has been executed so often is left to the interpreter all the same, unless that was
    /// [`PATIENT`] times as often: a guest that does little and then waits is not worth translating.
    pub patience: u32,
    /// Bytes of host code a vCPU keeps before it starts over; they cost host memory as they are used. GCC at work fills more
    /// than half of the default, and would spend its time on translations in half of it.
    pub code_bytes: usize,
    /// Whether flags are kept that nothing can read but what a fault saves (see [`flags`]).
    pub exact_flags: bool,
    /// Whether translated code counts the instructions it executes, which costs it time.
    pub count: bool,
    /// What is provoked on purpose.
    pub stress: Stress,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threshold: 12,
            patience: 4096,
            code_bytes: 128 << 20,
            exact_flags: false,
            count: false,
            stress: Stress::default(),
        }
    }
}

/// Where listings of translations go (see [`listing`]).
#[derive(Clone)]
pub struct Trace(Arc<Mutex<dyn Write + Send>>);

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trace")
    }
}

impl Trace {
    /// To `to`, from all vCPUs.
    pub fn new(to: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(to)))
    }

    fn write(&self, text: &str) {
        // A listing that cannot be written is no reason to stop a guest.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes());
    }
}

/// Offset in the vCPU of what code of a privilege knows of pages.
fn known(user: bool) -> usize {
    offset_of!(Cpu, mmu) + offset_of!(Mmu, known) + usize::from(user) * size_of::<Known>()
}

/// What generated code and its Rust side exchange; part of the [`Cpu`], reached through GS.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// The vCPU this is part of.
    cpu: *mut Cpu,
    /// Linear address of the page the running block is in.
    pub page: u64,
    /// The host's stack pointer inside generated code.
    host_stack: u64,
    /// What the groups of the running block add to their addresses.
    addends: [u64; GROUPS],
    /// The stack pointer of translated code while a handler runs: in the [`ReturnStack`].
    returns: u64,
    /// That of an empty stack.
    no_returns: u64,
    /// Host address that code goes on at.
    resume: u64,
    /// A guest address in transit: target of a call, or of a jump the table does not know.
    target: u64,
    /// Host RAX while the flags pass through it.
    saved_rax: u64,
    /// [`run::slow`].
    slow: u64,
    /// MXCSR as Rust code expects it.
    host_mxcsr: u32,
    /// What is in the vector registers: see [`Vectors`].
    vectors: u8,
    /// What the slow stub shall load into them before it goes on.
    wanted: u8,
    /// A handler overwrote translated or decoded code.
    pub code_written: bool,
    /// How the operation ended for which translated code was left.
    flow: Flow,
    /// The processor has the guest's x87 state: see [`x87`].
    x87: bool,
    /// Where the last x87 instruction is in `x87_page`, if one has run since then.
    x87_offset: i32,
    /// Linear address of the page it is in.
    x87_page: u64,
}

/// What vector registers hold while translated code runs, as numbers generated code compares; and, for blocks and sites,
/// whether they need the x87 too.
pub(super) struct Vectors;

impl Vectors {
    /// Nothing of the guest's.
    pub(super) const NONE: u8 = 0;
    /// XMM0-15 and MXCSR; AVX is not enabled, the upper halves stay in the state.
    pub(super) const XMM: u8 = 1;
    /// YMM0-15 and MXCSR.
    pub(super) const YMM: u8 = 2;
    /// As `YMM`, to be loaded from a state whose upper halves are all zero.
    pub(super) const YMM_LOW: u8 = 3;
    /// A bit beside the number: the x87 state.
    pub(super) const X87: u8 = 1 << 7;

    /// The number alone.
    pub(super) fn level(needed: u8) -> u8 {
        needed & !Self::X87
    }

    /// What is needed by two things together.
    pub(super) fn both(one: u8, other: u8) -> u8 {
        Self::level(one).max(Self::level(other)) | (one | other) & Self::X87
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            cpu: std::ptr::null_mut(),
            page: 0,
            host_stack: 0,
            addends: [0; GROUPS],
            returns: 0,
            no_returns: 0,
            resume: 0,
            target: 0,
            saved_rax: 0,
            slow: 0,
            host_mxcsr: arch::x86::state::FxImage::MXCSR_RESET,
            vectors: Vectors::NONE,
            wanted: Vectors::NONE,
            code_written: false,
            flow: Flow::Next,
            x87: false,
            x87_offset: 0,
            x87_page: 0,
        }
    }
}

impl Frame {
    /// Makes this the frame of the vCPU at `cpu`, which will not move, and whose empty [`ReturnStack`] has stack
    /// pointer `no_returns`.
    pub fn attach(&mut self, cpu: *mut Cpu, no_returns: u64) {
        (self.returns, self.no_returns) = (no_returns, no_returns);
        self.cpu = cpu;
        self.slow = run::slow as *const () as u64;
    }

    /// Returns go where the guest's stack says: which code is where has changed.
    pub fn forget_returns(&mut self) {
        self.returns = self.no_returns;
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Times translated code was left, by [`Kind`].
    left: [u64; Kind::COUNT],
    /// Handlers after which translated code went on.
    resumed: u64,
    /// How often all translations were thrown away.
    clears: u64,
    /// What the longest of these took.
    longest_clear: Duration,
    /// Guest instructions that translated code executed, handlers included; if it counts.
    executed: u64,
}

/// The translator of one vCPU.
pub struct Jit {
    config: Config,
    trace: Option<Trace>,
    keeping: Keeping,
    area: CodeArea,
    stubs: Stubs,
    sites: Sites,
    returns: ReturnStack,
    /// Not zero as soon as the vCPU's signal has a request: what generated code polls.
    attention: Arc<Zeroed<AtomicU32>>,
    /// Where the bottom of `returns` leads to: a jump to wherever.
    _lost: Box<Site>,
    /// `[kernel, user]`
    jumps: [Jumps; 2],
    /// The same for 32-bit code, if there was any: the same address may lead to code of both widths.
    narrow_jumps: Option<[Jumps; 2]>,
    /// There may be jumps of kernel code into the lower half of the address space.
    kernel_below: bool,
    tools: Tools,
    counters: Counters,
    in_step: InStep,
    /// What is left of [`Config::patience`].
    patience: u32,
}

// SAFETY: sites lead into the arena of the vCPU's block cache, which moves along with it; the area is the vCPU's.
unsafe impl Send for Jit {}

/// What translating needs and is worth keeping.
struct Tools {
    /// Its tables are large, and a copy of an idle machine may never need them.
    encoder: Option<Encoder>,
    info: InstructionInfoFactory,
    spare: Spare,
    /// A copy of the page that is being translated.
    page: Vec<u8>,
    /// Code that is being adopted.
    code: Vec<u8>,
}

impl Tools {
    fn new() -> Self {
        Self {
            encoder: None,
            info: InstructionInfoFactory::new(),
            spare: Spare::default(),
            page: Vec::new(),
            code: Vec::new(),
        }
    }

    fn encoder(&mut self) -> &mut Encoder {
        self.encoder.get_or_insert_with(|| Encoder::new(64))
    }
}

impl Jit {
    /// A translator with no translations, which lists those it makes in `trace`. `keeping` is for what it does when nothing
    /// is provoked, counted or exact.
    ///
    /// # Errors
    /// If the host does not give executable memory, or code cannot reach its data through GS.
    pub fn new(config: Config, trace: Option<Trace>, keeping: Keeping) -> io::Result<Self> {
        if !run::host_has_gs_base() {
            return Err(io::Error::other("the host does not let programs set the GS base (FSGSBASE)"));
        }
        let mut area = CodeArea::new(config.code_bytes)?;
        let lost = Box::new(Site::lost());
        let stubs = Stubs::push(&mut area, &lost)?;
        area.seal_prologue();
        let plain = !config.count && !config.exact_flags && config.stress == Stress::default();
        Ok(Self {
            config,
            trace,
            keeping: if plain { keeping } else { Keeping::Nothing },
            area,
            stubs,
            sites: Sites::default(),
            returns: ReturnStack::new(stubs.bottom, config.stress),
            attention: Arc::new(Zeroed::below_2_gib()?),
            _lost: lost,
            jumps: [Jumps::new(jumps::FEW_BITS)?, Jumps::new(jumps::FEW_BITS)?],
            narrow_jumps: None,
            kernel_below: false,
            tools: Tools::new(),
            counters: Counters::default(),
            in_step: InStep::new(config.stress.step),
            patience: config.patience,
        })
    }

    /// What has been counted.
    pub(super) fn statistics(&self) -> engine::Translation {
        let Counters { left, resumed, clears, longest_clear, executed } = self.counters;
        let left = |kind: Kind| left[kind as usize];
        engine::Translation {
            instructions: executed,
            handlers: resumed + left(Kind::Handler),
            events: left(Kind::Handler) + left(Kind::Vectors) + left(Kind::Variant),
            unknown: left(Kind::Link) + left(Kind::Jump),
            attention: left(Kind::Leave),
            clears,
            longest_clear,
            compared: self.in_step.compared,
        }
    }

    /// Whether the software TLB is to hold one page only.
    pub(super) fn holds_one_page(&self) -> bool {
        self.config.stress.one_page
    }

    /// Whether what translated code does is compared with the interpreter.
    pub(super) fn is_in_step(&self) -> bool {
        self.in_step.is_on()
    }

    /// Executions before a block is translated.
    pub(super) fn threshold(&self) -> u32 {
        self.config.threshold
    }

    /// Whether a block that was executed `heat` times, a multiple of the threshold, is left to the interpreter for now.
    pub(super) fn waits(&mut self, heat: u32) -> bool {
        let waits = self.patience > 0 && heat < self.config.threshold.saturating_mul(PATIENT);
        self.patience -= u32::from(waits);
        waits
    }

    /// Whether the area can take the translation of any block, and tables the jumps to it.
    pub(super) fn has_room(&self) -> bool {
        let mut tables = self.jumps.iter().chain(self.narrow_jumps.iter().flatten());
        self.area.left() > translate::MAX_CODE_BYTES && !tables.any(Jumps::is_crowded)
    }

    /// The stack pointer of translated code that has made no calls.
    pub(super) fn empty_returns(&self) -> u64 {
        self.returns.empty()
    }

    /// Throws all translations away; none of them may be running.
    pub(super) fn clear(&mut self) {
        if self.all_jumps().any(|jumps| jumps.is_crowded()) {
            self.all_jumps().for_each(Jumps::grow);
        }
        self.forget_jumps();
        self.area.clear();
        self.sites.clear();
        self.in_step.clear();
    }

    /// Notes that all translations, and what they were made of, were thrown away in `took`.
    pub(super) fn note_clear(&mut self, took: Duration) {
        self.counters.clears += 1;
        self.counters.longest_clear = self.counters.longest_clear.max(took);
    }

    /// Forgets all jumps through the tables.
    pub(super) fn forget_jumps(&mut self) {
        self.all_jumps().for_each(Jumps::forget_all);
        self.kernel_below = false;
    }

    /// How many entries each table of jumps has, as a power of two: they grow together.
    fn jump_bits(&self) -> u32 {
        self.jumps[0].bits()
    }

    /// The tables of jumps, of 64-bit code and of 32-bit code.
    fn all_jumps(&mut self) -> impl Iterator<Item = &mut Jumps> {
        self.jumps.iter_mut().chain(self.narrow_jumps.iter_mut().flatten())
    }

    /// Forgets the jumps to pages that are not the same in all address spaces.
    pub(super) fn forget_local_jumps(&mut self) {
        self.all_jumps().for_each(Jumps::forget_local);
    }

    /// Forgets the jumps of the address space of `pcid`, which is not the current one.
    pub(super) fn forget_other_jumps(&mut self, pcid: u16) {
        self.all_jumps().for_each(|jumps| jumps.forget_other(pcid));
    }

    /// The address space of `pcid` is the current one now, the jumps of which count only if they are to be kept.
    pub(super) fn switch_jumps(&mut self, pcid: u16, keep: bool) {
        self.all_jumps().for_each(|jumps| jumps.switch(pcid, keep));
    }

    /// Forgets the jumps into the region of 2 to the `bits` bytes around `linear`.
    pub(super) fn forget_jumps_into(&mut self, linear: u64, bits: u32) {
        self.jumps[1].forget_region(linear, bits);
        self.narrow_jumps.iter_mut().flatten().for_each(|jumps| jumps.forget_region(linear, bits));
        // Kernels keep their code in the upper half, and take many a user page away.
        if linear >> 63 != 0 || self.kernel_below {
            self.jumps[0].forget_region(linear, bits);
        }
    }

    /// Forgets the jumps to code made from the page that `source` is the address of what is known of.
    pub(super) fn forget_code(&mut self, source: usize) {
        self.all_jumps().for_each(|jumps| jumps.forget_code(source));
    }

    /// The jump table for user or kernel code, `narrow` if of 32 bits. `None` if the host has no memory for it.
    fn jumps_of(&mut self, user: bool, narrow: bool) -> Option<&mut Jumps> {
        if narrow && self.narrow_jumps.is_none() {
            let bits = self.jump_bits();
            self.narrow_jumps = Some([Jumps::new(bits).ok()?, Jumps::new(bits).ok()?]);
        }
        let tables = if narrow { self.narrow_jumps.as_mut()? } else { &mut self.jumps };
        Some(&mut tables[usize::from(user)])
    }

    /// Lets jumps to `linear` go straight to `code`, which was made from `source`.
    fn remember(
        &mut self,
        (user, narrow): (bool, bool),
        linear: u64,
        code: u64,
        source: usize,
        global: bool,
    ) {
        self.kernel_below |= !user && !narrow && linear >> 63 == 0;
        if let Some(jumps) = self.jumps_of(user, narrow) {
            jumps.remember(linear, code, source, global);
        }
    }

    /// What sees to it that generated code notices a request of the vCPU's signal.
    pub(super) fn hook(&self) -> Box<dyn Fn() + Send + Sync> {
        let attention = self.attention.clone();
        Box::new(move || attention.store(1, Ordering::SeqCst))
    }
}
