//! Translated code against the interpreter, block by block (`Stress::step`).
//!
//! ```text
//!   state before ──► interpreter: its blocks, one after the other ──► state A, pages A
//!        ▲                                                               │ undone: registers, bytes of memory
//!        └───────────────────────────────────────────────────────────────┘
//!   state before ──► translated code ──► state B, pages B: compared with A, and kept
//! ```
//! The interpreter goes first, with a TLB that no store hits, so that each page it stores to is seen in time to keep a
//! copy. What cannot be undone is not tried: device registers, pages with code, and blocks with instructions that
//! reach beyond registers and memory, all of which run the same handler on both sides anyway.
//!
//! Flags are compared if all are kept (`Config::exact_flags`), but for those the manual leaves undefined. Several vCPUs
//! execute one at a time meanwhile (see `interp::turns`). Devices store when they like, which is why undoing touches only the
//! bytes that were changed.
//!
//! The variant of a block without groups (see [`super::group`]) ends with the block, in the middle of its unit: then what the
//! interpreter had come to there is what counts.
// UNSAFETY: follows pointers to blocks, and copies pages of guest RAM by their host addresses.

use std::collections::HashMap;
use std::fmt::Write as _;

use arch::x86::paging::Pte;
use arch::x86::{CpuState, Exception};
use engine::Exit;
use iced_x86::{Instruction, Mnemonic};
use memory::PageInfo;

use super::Kind;
use super::branch::End;
use super::names::{self, REGISTERS};
use super::plan::Plan;
use super::run::Outcome;
use super::translate::Translation;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Block, Flow, Op};
use crate::x86::mmu::{Intent, Place, TLB_ENTRIES, TlbEntry, View};
use crate::x86::width::StatusFlags;
use crate::x86::zeroed::Zeroed;

const PAGE: usize = 4096;

/// What a translation stands for.
pub(super) struct Unit {
    /// The blocks it was made of, in order.
    pub(super) blocks: Vec<*const Block>,
    /// Their instructions.
    pub(super) instructions: Vec<Instruction>,
    /// Whether all of it can be undone.
    pub(super) reversible: bool,
}

impl Unit {
    /// Whether a block that ended as `flow` says is followed by the next, which begins with instruction number `next`.
    fn goes_on(&self, next: usize, flow: Flow) -> bool {
        let Some(end) = self.instructions.get(..next + 1).and_then(|all| all.get(next - 1)) else {
            return false;
        };
        flow == if end.is_jmp_short_or_near() { Flow::Taken } else { Flow::FellThrough }
    }

    /// Whether a block but the first begins at `rip`: variants of a block end with it.
    fn has_block_at(&self, rip: u64) -> bool {
        let mut first = 0;
        self.blocks.iter().any(|block| {
            let start = self.instructions.get(first).map(Instruction::ip);
            // SAFETY: what a unit was made of is in the arena as long as the unit is remembered.
            let count = unsafe { (**block).instructions() } as usize;
            let here = first > 0 && start == Some(rip & (PAGE as u64 - 1));
            first += count;
            here
        })
    }
}

/// What is kept for comparisons.
pub(super) struct InStep {
    every: u32,
    until_next: u32,
    /// By block and whether it is user code.
    units: HashMap<(*const Block, bool), Unit>,
    /// The TLB of the interpreter meanwhile: loads find what translated code finds, stores are all seen.
    tlb: Zeroed<[TlbEntry; TLB_ENTRIES]>,
    /// Comparisons made.
    pub(super) compared: u64,
}

impl InStep {
    pub(super) fn new(every: u32) -> Self {
        Self { every, until_next: every, units: HashMap::new(), tlb: TlbEntry::empty_view(), compared: 0 }
    }

    pub(super) fn is_on(&self) -> bool {
        self.every != 0
    }

    pub(super) fn clear(&mut self) {
        self.units.clear();
    }

    pub(super) fn remember(&mut self, block: *const Block, user: bool, unit: Unit) {
        self.units.insert((block, user), unit);
    }

    /// The unit of `block`, if its turn has come to be compared.
    fn take_due(&mut self, block: *const Block, user: bool) -> Option<Unit> {
        self.until_next -= 1;
        if self.until_next > 0 {
            return None;
        }
        self.until_next = 1;
        let unit = self.units.remove(&(block, user)).filter(|unit| unit.reversible)?;
        self.until_next = self.every;
        Some(unit)
    }
}

impl Translation<'_> {
    /// Whether all instructions can be undone: they change registers and memory only, and do so again if repeated.
    pub(super) fn is_reversible(&self) -> bool {
        let last = self.ops.len() - 1;
        let changing = |i: usize| {
            let instruction = &self.instructions[i];
            match self.plans[i] {
                Plan::TimeStamp => false,
                Plan::Handler if self.ops[i].dst == Op::THUNK => {
                    !matches!(instruction.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed)
                }
                Plan::Handler => is_string(instruction.mnemonic()),
                _ => true,
            }
        };
        let end = self.end(last);
        let by_handler = matches!(end, End::Handler | End::SetInterrupts(_) | End::SetAccess(..));
        (0..last).all(changing) && !by_handler
    }
}

/// The string instructions that reach no port.
fn is_string(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    let moves = matches!(mnemonic, M::Movsb | M::Movsw | M::Movsd | M::Movsq);
    let stores = matches!(mnemonic, M::Stosb | M::Stosw | M::Stosd | M::Stosq);
    let loads = matches!(mnemonic, M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq);
    let compares = matches!(mnemonic, M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq);
    moves || stores || loads || compares || matches!(mnemonic, M::Scasb | M::Scasw | M::Scasd | M::Scasq)
}

/// A page the interpreter stored to.
struct Touched {
    host: *mut u8,
    before: Box<[u8; PAGE]>,
    after: Box<[u8; PAGE]>,
}

/// An execution that will be undone.
#[derive(Default)]
pub struct Trial {
    /// In the order in which they were stored to.
    pages: Vec<Touched>,
    /// What it came to between blocks.
    stages: Vec<Stage>,
    /// It came to something that cannot be undone.
    refused: bool,
}

fn copy_of(host: *const u8) -> Box<[u8; PAGE]> {
    let mut copy = Box::new([0; PAGE]);
    // SAFETY: the address of a whole page of guest RAM.
    unsafe { std::ptr::copy_nonoverlapping(host, copy.as_mut_ptr(), PAGE) };
    copy
}

impl Trial {
    /// Whether an access may be made; the page of one that may store is kept.
    pub fn allows(&mut self, place: &Place<'_>, intent: Intent) -> bool {
        let allowed = match place {
            Place::Bus(_) => false,
            Place::Ram(host, info) => intent != Intent::Write || self.keep(*host, info),
        };
        self.refused |= !allowed;
        allowed
    }

    fn keep(&mut self, host: *mut u8, info: &PageInfo) -> bool {
        let host = host.map_addr(|address| address & !(PAGE - 1));
        if !self.pages.iter().any(|page| page.host == host) {
            let before = copy_of(host);
            self.pages.push(Touched { host, after: before.clone(), before });
        }
        !info.holds_code()
    }

    /// Puts back what was changed, byte by byte: others may have stored beside it.
    fn undo(&mut self) {
        for page in &mut self.pages {
            page.after = copy_of(page.host);
            for at in (0..PAGE).filter(|&at| page.after[at] != page.before[at]) {
                // SAFETY: inside the page.
                unsafe { page.host.add(at).write_volatile(page.before[at]) };
            }
        }
    }

    /// Host address and both values of a byte that came out differently.
    fn difference(&self) -> Option<(u64, u8, u8)> {
        self.pages.iter().find_map(|page| {
            let now = copy_of(page.host);
            let at =
                (0..PAGE).find(|&at| now[at] != page.after[at] && !is_walked(at, now[at], page.after[at]))?;
            Some((page.host as u64 + at as u64, page.after[at], now[at]))
        })
    }
}

/// Whether two values of the byte at `at` of a page differ in a page table entry's accessed and dirty bits: walks set
/// them, which a TLB spares, and the interpreter had none for stores.
fn is_walked(at: usize, now: u8, then: u8) -> bool {
    let (present, walked) = (Pte::PRESENT as u8, (Pte::ACCESSED | Pte::DIRTY) as u8);
    at.is_multiple_of(4) && now & present != 0 && (now ^ then) & !walked == 0
}

/// What the interpreter had come to between two blocks of a unit.
struct Stage {
    state: CpuState,
    flags: StatusFlags,
    executed: usize,
    /// The pages it had stored to by then.
    pages: Vec<Box<[u8; PAGE]>>,
    refused: bool,
}

/// How the interpreter ended.
struct Ending {
    flow: Flow,
    op: *const Op,
    fault: Exception,
    state: CpuState,
    flags: StatusFlags,
    /// Instructions that were completed.
    executed: usize,
}

impl Ending {
    /// Makes `stage` the end, and what the pages of `trial` held then what they hold after it.
    fn come_back_to(&mut self, stage: Stage, trial: &mut Trial) {
        for (n, page) in trial.pages.iter_mut().enumerate() {
            page.after.clone_from(stage.pages.get(n).unwrap_or(&page.before));
        }
        trial.refused = stage.refused;
        self.flow = Flow::FellThrough;
        (self.state, self.flags, self.executed) = (stage.state, stage.flags, stage.executed);
    }
}

/// What comes of a comparison.
#[derive(PartialEq, Eq)]
enum Verdict {
    /// One of the two did not come to an end that the other comes to as well.
    None,
    Same,
    /// In what, in words.
    Different(String),
}

impl Cpu {
    /// Runs translated code from `code`, the outer entry of `block`; compares what comes of it if its turn has come.
    pub(super) fn run_in_step(&mut self, block: *const Block, code: u64) -> Outcome {
        let user = self.view == View::User;
        let due = self.jit.as_mut().and_then(|jit| jit.in_step.take_due(block, user));
        let Some(unit) = due else { return self.run_from(code).0 };
        let (before, flags) = (self.state.clone(), self.flags);
        let (mut ending, mut trial) = self.try_out(&unit);
        self.state.clone_from(&before);
        self.flags = flags;
        trial.undo();
        let (outcome, kind) = self.run_from(code);
        let mut verdict = self.verdict(&unit, &ending, (&outcome, kind), (&before, &trial));
        let early = kind == Kind::Link && unit.has_block_at(self.state.rip);
        let stage = || trial.stages.iter().position(|stage| stage.state.rip == self.state.rip);
        // Not by RIP alone: a block that jumps to itself ends where the one before it does.
        if early
            && verdict != Verdict::Same
            && let Some(at) = stage()
        {
            ending.come_back_to(trial.stages.swap_remove(at), &mut trial);
            verdict = self.verdict(&unit, &ending, (&outcome, kind), (&before, &trial));
        }
        let comparable = verdict != Verdict::None;
        if let Verdict::Different(difference) = verdict {
            let reason = self.report(&unit, &before, &difference);
            self.exit = Some(Exit::Fatal { reason });
        }
        if let Some(jit) = self.jit.as_mut() {
            jit.in_step.compared += u64::from(comparable);
            jit.in_step.remember(block, user, unit);
        }
        outcome
    }

    /// What is to be said of translated code that came to `outcome` from `before`, where the interpreter came to `ending`.
    fn verdict(
        &self,
        unit: &Unit,
        ending: &Ending,
        (outcome, kind): (&Outcome, Kind),
        (before, trial): (&CpuState, &Trial),
    ) -> Verdict {
        let at_start = kind == Kind::Leave && self.state.rip == before.rip;
        if ending.flow == Flow::Retry || trial.refused || at_start || !ended_whole(outcome, kind) {
            return Verdict::None;
        }
        self.difference(unit, ending, outcome, trial).map_or(Verdict::Same, Verdict::Different)
    }

    /// The blocks of `unit` by the interpreter, as far as they follow each other.
    fn try_out(&mut self, unit: &Unit) -> (Ending, Box<Trial>) {
        let (counters, hits) = (self.counters, self.debug_hits);
        self.trial = Some(Box::default());
        let tlb = self.tlb;
        if let Some(jit) = self.jit.as_mut().filter(|_| !self.alignment_checks) {
            self.mmu.copy_for_loads(self.view, &mut jit.in_step.tlb);
            self.tlb = jit.in_step.tlb.as_ptr();
        }
        self.mmu.frozen = true;
        self.current = std::ptr::null();
        let (mut executed, mut behind) = (0, 0);
        let mut blocks = unit.blocks.iter();
        let (flow, op) = loop {
            let block = *blocks.next().expect("a unit has blocks, and the last one ends it");
            // SAFETY: what a unit was made of is in the arena as long as the unit is remembered.
            let block = unsafe { &*block };
            // SAFETY: as above.
            let (flow, op) = unsafe { self.run_block(block) };
            executed += usize::from(op.position) + usize::from(!matches!(flow, Flow::Fault | Flow::Retry));
            behind += block.instructions() as usize;
            if !unit.goes_on(behind, flow) {
                break (flow, std::ptr::from_ref(op));
            }
            self.keep_stage(executed);
        };
        self.tlb = tlb;
        self.mmu.frozen = false;
        let trial = self.trial.take().expect("put there above");
        (self.counters, self.debug_hits) = (counters, hits);
        let (fault, state, flags) = (self.fault, self.state.clone(), self.flags);
        (Ending { flow, op, fault, state, flags, executed }, trial)
    }

    /// Notes what the trial has come to, between two blocks.
    fn keep_stage(&mut self, executed: usize) {
        let (state, flags) = (self.state.clone(), self.flags);
        let Some(trial) = self.trial.as_mut() else { return };
        let pages = trial.pages.iter().map(|page| copy_of(page.host)).collect();
        trial.stages.push(Stage { state, flags, executed, pages, refused: trial.refused });
    }

    /// What differs between `ending` and what is so now, in words.
    fn difference(&self, unit: &Unit, ending: &Ending, outcome: &Outcome, trial: &Trial) -> Option<String> {
        let faulted = |flow: Flow| matches!(flow, Flow::Fault | Flow::Raised);
        let mut text = String::new();
        let then = (ending.flow, ending.op, ending.fault);
        let now = match *outcome {
            Outcome::Ended(flow, op, _) if faulted(flow) => Some((flow, op, self.fault)),
            _ => None,
        };
        match now {
            Some(now) if now != then => {
                let _ = write!(text, " {:?} {:?} instead of {:?} {:?};", now.0, now.2, then.0, then.2);
            }
            Some(_) => {}
            None if faulted(then.0) => {
                let _ = write!(text, " no fault instead of {:?};", then.2);
            }
            None if self.state.rip != ending.state.rip => {
                let _ = write!(text, " rip {:#x} instead of {:#x};", self.state.rip, ending.state.rip);
            }
            None => {}
        }
        for (n, name) in REGISTERS.iter().enumerate() {
            // Legacy code cannot tell what the upper halves are.
            let (now, then) = (self.state.gpr[n] & self.ip_mask, ending.state.gpr[n] & self.ip_mask);
            if now != then {
                let _ = write!(text, " {name} {now:#x} instead of {then:#x};");
            }
        }
        let mask = self.flags_compared(unit, ending);
        if (self.flags.0 ^ ending.flags.0) & mask != 0 {
            let (now, then) = (self.flags.merge_into(0), ending.flags.merge_into(0));
            let _ = write!(text, " flags {now:#x} instead of {then:#x};");
        }
        self.compare_rest(ending, &mut text);
        if let Some((at, then, now)) = trial.difference() {
            let _ = write!(text, " byte at host {at:#x} {now:#x} instead of {then:#x};");
        }
        (!text.is_empty()).then_some(text)
    }

    /// The registers that differ seldom.
    fn compare_rest(&self, ending: &Ending, text: &mut String) {
        for (n, (now, then)) in self.state.ymm.iter().zip(&ending.state.ymm).enumerate() {
            if now != then {
                let _ = write!(text, " ymm{n} {:x?} instead of {:x?};", now.0, then.0);
            }
        }
        if self.state.fx != ending.state.fx {
            let _ = write!(text, " x87, MXCSR {:x?} instead of {:x?};", self.state.fx, ending.state.fx);
        }
        if (self.state.segments, self.state.cr2, self.state.rflags & !ARITHMETIC)
            != (ending.state.segments, ending.state.cr2, ending.state.rflags & !ARITHMETIC)
        {
            text.push_str(" segments, CR2 or control flags;");
        }
    }

    /// The flags both sides must agree about, in the layout of [`StatusFlags`].
    fn flags_compared(&self, unit: &Unit, ending: &Ending) -> u16 {
        if !self.jit.as_ref().is_some_and(|jit| jit.config.exact_flags) {
            return 0;
        }
        let undefined =
            unit.instructions[..ending.executed.min(unit.instructions.len())].iter().fold(0, undefined_after);
        StatusFlags::from_rflags(!u64::from(undefined) & ARITHMETIC).0
    }

    fn report(&self, unit: &Unit, before: &CpuState, difference: &str) -> String {
        let mut text = format!("translated code does not do what the interpreter does:{difference} block at");
        let _ = write!(text, " {:#x}, registers before:", before.rip);
        for (name, value) in REGISTERS.iter().zip(before.gpr) {
            let _ = write!(text, " {name}={value:x}");
        }
        text.push_str("; code:");
        for instruction in &unit.instructions {
            let _ = write!(text, " {:x}: {};", instruction.ip(), names::guest(instruction));
        }
        text
    }
}

const ARITHMETIC: u64 = 0x8d5;

/// The arithmetic flags, as in RFLAGS, that are undefined after `instruction`, given those before.
fn undefined_after(before: u32, instruction: &Instruction) -> u32 {
    use iced_x86::RflagsBits as Bits;
    let to_rflags = |bits: u32| {
        [
            (Bits::OF, 1 << 11),
            (Bits::SF, 1 << 7),
            (Bits::ZF, 1 << 6),
            (Bits::AF, 1 << 4),
            (Bits::CF, 1),
            (Bits::PF, 1 << 2),
        ]
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .fold(0, |all, (_, flag)| all | flag)
    };
    // A count of zero, for shifts and repetitions, leaves all flags as they were.
    let certain = !instruction.is_string_instruction()
        && !(0..instruction.op_count()).any(|n| {
            instruction.op_kind(n) == iced_x86::OpKind::Register
                && instruction.op_register(n) == iced_x86::Register::CL
        });
    let defined = instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
    let kept = if certain { before & !to_rflags(defined) } else { before };
    kept | to_rflags(instruction.rflags_undefined())
}

/// Whether translated code came to an end that the interpreter comes to as well.
fn ended_whole(outcome: &Outcome, kind: Kind) -> bool {
    match outcome {
        Outcome::Interpret => false,
        Outcome::Ended(flow, ..) => *flow != Flow::Retry,
        // A handler that ended the block early.
        Outcome::Elsewhere => !matches!(kind, Kind::Handler | Kind::Variant),
        Outcome::Successor(..) => true,
    }
}
