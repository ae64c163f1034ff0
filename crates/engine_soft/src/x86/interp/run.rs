//! The loop that runs a vCPU: what happens between instructions, and the chaining of blocks.
//!
//! ```text
//!            requests, interrupts, NMI        shadow, single step
//!                     |                              |
//!   run ──► boundary ─┴─► look up block ──► execute ops ──► chain to the next block
//!              ▲               │ fault          │ fault           │ request pending
//!              └── deliver ◄───┴────────────────┴─────────────────┘
//! ```
// UNSAFETY: follows raw pointers to blocks, which the cache's arena keeps until it is cleared between blocks.

use std::sync::atomic::Ordering;

use arch::x86::paging::is_canonical;
use arch::x86::{Exception, Rflags, SegmentRegister, Undelivered, Vector};
use engine::{Exit, Request};

use super::cpu::{Cpu, Fault, mode};
use super::decode;
use super::op::{Block, Flow, NO_BLOCK, Op, address};
use super::shared::Changed;
use crate::x86::jit::run::{GsBase, Outcome};
use crate::x86::mmu::View;
use crate::x86::system::debug;
use crate::x86::system::deliver::{Event, deliver};

impl Cpu {
    /// Runs until there is a reason to leave.
    pub fn run(&mut self) -> Exit {
        self.reload_flags();
        self.mode_changed();
        self.interrupt_hint = true;
        self.shared.enter(self.index);
        let gs = GsBase::enter(self);
        let exit = loop {
            self.begin_turn();
            let exit = self.boundary();
            self.end_turn();
            if let Some(exit) = exit {
                break exit;
            }
        };
        drop(gs);
        self.current = NO_BLOCK;
        self.shared.leave(self.index);
        self.sync_flags();
        exit
    }

    /// Everything that happens between instructions, then a stretch of execution.
    fn boundary(&mut self) -> Option<Exit> {
        if self.signal.is_pending() {
            self.service_engine_request();
            self.make_room();
            if self.signal.word().load(Ordering::SeqCst) & Request::KICK.bits() != 0 {
                return Some(Exit::Kicked); // whoever called `run` clears it before looking why
            }
            if self.signal.take(Request::INTERRUPT) {
                self.interrupt_hint = true;
            }
        }
        if let Err(shutdown) = self.deliver_pending() {
            return Some(shutdown);
        }
        if self.state.events.halted {
            return Some(Exit::Halt);
        }
        let stepping = self.state.rflags & Rflags::TF.bits() != 0 || self.state.dr[7] & 0xff != 0;
        if stepping || self.state.events.interrupt_shadow { self.step(stepping) } else { self.execute() }
    }

    /// Lets another vCPU's request to give up write permissions through.
    pub(super) fn service_engine_request(&mut self) {
        if self.signal.take(Request::ENGINE) {
            self.answer_revocation();
            self.forget_changed_code();
        }
    }

    /// Forgets jumps to code that somebody else has overwritten.
    fn forget_changed_code(&mut self) {
        let changed = self.shared.take_changed_code(self.index);
        let Some(jit) = self.jit.as_mut() else { return };
        match changed {
            Changed::Nothing => {}
            Changed::Pages(pages) => pages.into_iter().for_each(|page| jit.forget_code(page)),
            Changed::Many => jit.forget_jumps(),
        }
    }

    /// Gives up write permissions if another vCPU waits for that.
    pub(super) fn answer_revocation(&mut self) {
        if self.shared.is_asked_to_revoke(self.index) {
            self.mmu.revoke_writes();
            self.shared.acknowledge(self.index);
        }
    }

    /// Starts over when the translator has no room left.
    fn make_room(&mut self) {
        if self.jit.as_ref().is_some_and(|jit| !jit.has_room()) {
            self.forget_blocks();
        }
    }

    fn deliver_pending(&mut self) -> Result<(), Exit> {
        let events = &mut self.state.events;
        if let Some(event) = events.undelivered.take() {
            events.halted = false;
            return self.deliver(match event {
                Undelivered::Interrupt(vector) => Event::Interrupt(vector),
                Undelivered::DebugTrap => Event::Exception(Exception::new(Vector::Debug)),
            });
        }
        if events.interrupt_shadow {
            return Ok(());
        }
        if events.nmi_pending && !events.nmi_blocked {
            events.nmi_pending = false;
            events.halted = false;
            return self.deliver(Event::Nmi);
        }
        if self.interrupt_hint && self.state.rflags & Rflags::IF.bits() != 0 {
            match self.bus.acknowledge_interrupt(self.index) {
                Some(vector) => {
                    self.state.events.halted = false;
                    return self.deliver(Event::Interrupt(vector));
                }
                None => self.interrupt_hint = false,
            }
        }
        Ok(())
    }

    fn deliver(&mut self, event: Event) -> Result<(), Exit> {
        self.counters.events += 1;
        self.sync_flags();
        let result = deliver(self, event);
        self.reload_flags();
        self.mode_changed();
        result.map_err(|shutdown| Exit::Shutdown { reason: shutdown.reason })
    }

    /// One instruction, with what follows single-stepped ones.
    fn step(&mut self, stepping: bool) -> Option<Exit> {
        let shadow = std::mem::take(&mut self.state.events.interrupt_shadow);
        if stepping && !shadow && self.state.rflags & Rflags::RF.bits() == 0 {
            let linear = self.state.segment(SegmentRegister::Cs).base.wrapping_add(self.state.rip);
            let hits = debug::hits(&self.state, linear, 1, debug::Watch::Execute);
            if hits != 0 {
                return self.debug_exception(hits);
            }
        }
        let (traced, open) =
            (self.state.rflags & Rflags::TF.bits() != 0, self.state.rflags & Rflags::IF.bits());
        if !shadow {
            self.debug_hits = 0;
        }
        self.mode |= mode::SINGLE;
        self.update_jump_key();
        let events = self.counters.events;
        let exit = self.execute();
        self.mode &= !mode::SINGLE;
        self.update_jump_key();
        let completed = self.counters.events == events;
        // MOV to SS and POP SS hold traps back too, of which the data breakpoints are reported one instruction
        // later (SDM vol. 3 section 6.8.3). The shadow of STI, which opens IF, does not.
        if self.state.events.interrupt_shadow && self.state.rflags & Rflags::IF.bits() == open {
            return exit;
        }
        let trap = std::mem::take(&mut self.debug_hits) | if traced && completed { debug::DR6_BS } else { 0 };
        if exit.is_none() && trap != 0 && completed {
            return self.debug_exception(trap);
        }
        exit
    }

    fn debug_exception(&mut self, causes: u64) -> Option<Exit> {
        let exception = debug::debug_exception(self, causes);
        self.raise(exception)
    }

    fn raise(&mut self, exception: Exception) -> Option<Exit> {
        self.deliver(Event::Exception(exception)).err()
    }

    /// Between two blocks: whether there is something to do before the next one.
    #[inline(always)]
    fn wants_boundary(&mut self) -> bool {
        self.pass_turn();
        self.signal.is_pending() || self.must_stop()
    }

    /// Runs blocks until a request, an event or an exit wants the boundary.
    fn execute(&mut self) -> Option<Exit> {
        // RF holds for one instruction, which does not see it: PUSHF hides it and every fault pushes it set. One
        // that IRET restores or a repetition leaves is for the next.
        self.state.rflags &= !Rflags::RF.bits();
        let mut block = match self.look_up() {
            Ok(block) => block,
            Err(Fault) => return self.deliver_fault(),
        };
        let mut interpret = false;
        loop {
            let code = if interpret { None } else { self.code_of(block) };
            let (flow, op) = match code {
                Some(code) => match self.run_translated(block, code) {
                    Outcome::Ended(flow, op, within) => {
                        block = within;
                        // SAFETY: as below, for the block that was running then.
                        (flow, unsafe { &*op })
                    }
                    outcome => {
                        // A block to interpret comes first: it would be translated code again next time.
                        interpret = matches!(outcome, Outcome::Interpret);
                        if self.wants_boundary() && !interpret {
                            return self.exit.take();
                        }
                        block = match self.after_translated(&outcome) {
                            Ok(next) => next,
                            Err(Fault) => return self.deliver_fault(),
                        };
                        continue;
                    }
                },
                None => {
                    interpret = false;
                    self.current = block;
                    // SAFETY: blocks stay in the arena until `look_up` clears it, which only happens between blocks.
                    unsafe { self.run_block(&*block) }
                }
            };
            let link = match flow {
                Flow::Taken => 0,
                Flow::FellThrough => 1,
                Flow::Jumped => 2,
                Flow::Fault => {
                    self.counters.instructions += u64::from(op.position);
                    self.state.rip = self.ip_of(op);
                    self.refine_fault(op);
                    return self.deliver_fault();
                }
                Flow::Raised => {
                    self.counters.instructions += u64::from(op.position);
                    return self.deliver_fault();
                }
                Flow::Retry | Flow::Next => {
                    self.counters.instructions += u64::from(op.position);
                    self.state.rip = self.ip_of(op);
                    return self.exit.take();
                }
            };
            self.counters.instructions += u64::from(op.position) + 1;
            if self.wants_boundary() {
                return self.exit.take();
            }
            let next =
                if code.is_some() { self.after_handler(block, link) } else { self.follow(block, link) };
            block = match next {
                Ok(next) => next,
                Err(Fault) => return self.deliver_fault(),
            };
        }
    }

    /// The block at RIP, which translated code came to without knowing its translation.
    fn after_translated(&mut self, outcome: &Outcome) -> Result<*const Block, Fault> {
        let cleared = self.cache.clears();
        let Outcome::Successor(block, successor) = *outcome else {
            let next = self.look_up()?;
            self.connect(None, next);
            return Ok(next);
        };
        let next = self.follow(block, successor.link)?;
        if self.cache.clears() == cleared {
            self.connect(Some((block, successor)), next);
        }
        Ok(next)
    }

    /// The block that follows `block`, which ended in a handler called by translated code: that finds the way itself next
    /// time (see `jit::run::slow`).
    fn after_handler(&mut self, block: *const Block, link: usize) -> Result<*const Block, Fault> {
        let next = self.follow(block, link)?;
        self.connect(None, next);
        Ok(next)
    }

    #[inline(always)]
    pub(in crate::x86) fn must_stop(&self) -> bool {
        self.mode & mode::SINGLE != 0
            || (self.state.events.interrupt_shadow | self.state.events.halted | self.state.events.nmi_pending)
            || self.exit.is_some()
            || (self.interrupt_hint && self.state.rflags & Rflags::IF.bits() != 0)
            || self.state.rflags & Rflags::TF.bits() | self.state.dr[7] & 0xff != 0
    }

    /// The operations of `block`, decoded now if they have not been yet.
    #[inline(always)]
    pub(in crate::x86) fn operations(&mut self, block: &Block) -> *const Op {
        let ops = block.ops.get();
        if ops.is_null() { decode::late(self, block) } else { ops }
    }

    /// Executes the operations of `block` and returns how it ended, with the last operation.
    #[inline(always)]
    pub(in crate::x86) unsafe fn run_block<'a>(&mut self, block: &'a Block) -> (Flow, &'a Op) {
        self.block_ip = self.state.rip;
        let mut op = self.operations(block);
        loop {
            // SAFETY: every block ends in an operation that does not return `Next`.
            let current = unsafe { &*op };
            let flow = (current.run)(self, current);
            if flow != Flow::Next {
                return (flow, current);
            }
            // SAFETY: as above.
            op = unsafe { op.add(1) };
        }
    }

    /// The block that follows `block`, by its link if it has one.
    #[inline(always)]
    fn follow(&mut self, block: *const Block, link: usize) -> Result<*const Block, Fault> {
        if link < 2 {
            // SAFETY: see `execute`; links lead to blocks of the same arena contents.
            let known = unsafe { (*block).links[link].as_ref() };
            if let Some(next) = known.filter(|next| next.is_fresh()) {
                return Ok(next);
            }
            return self.link(block, link);
        }
        if !self.links_blocks() {
            return self.look_up();
        }
        let next = self.cache.jump(self.state.rip, self.jump_key);
        // SAFETY: the table only holds blocks of the arena's current contents.
        if !next.is_null() && unsafe { (*next).is_fresh() } {
            return Ok(next);
        }
        self.look_up()
    }

    /// Looks the next block up and remembers it in `block` if both are in the same page, linear and physical:
    /// then the link is as good as the block itself.
    #[cold]
    fn link(&mut self, block: *const Block, link: usize) -> Result<*const Block, Fault> {
        let cleared = self.cache.clears();
        let next = self.look_up()?;
        // SAFETY: `next` is valid; `block` is, unless the arena was cleared meanwhile.
        unsafe {
            if self.cache.clears() == cleared
                && !(*block).straddles()
                && !(*next).straddles()
                && (*next).gfn == (*block).gfn
                && (self.block_ip ^ self.state.rip) >> 12 == 0
                && self.links_blocks()
            {
                (*block.cast_mut()).links[link] = next;
            }
        }
        Ok(next)
    }

    #[inline(always)]
    fn fetch_address(&self) -> u64 {
        if self.mode & mode::BITS == 2 {
            self.state.rip
        } else {
            self.state.segment(SegmentRegister::Cs).base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }

    /// The block at CS:RIP, decoded if necessary.
    fn look_up(&mut self) -> Result<*const Block, Fault> {
        let linear = self.fetch_address();
        let known = self.cache.jump(linear, self.jump_key);
        // SAFETY: as in `follow`.
        if !known.is_null() && unsafe { (*known).is_fresh() } {
            if self.mode & mode::BITS != 2 {
                self.check_code_limit(known)?;
            }
            return Ok(known);
        }
        let block = decode::block_at(self, linear)?;
        // SAFETY: just looked up.
        if !unsafe { (*block).straddles() } {
            self.cache.remember(linear, self.jump_key, block);
            let user = self.view == View::User;
            self.local_kernel_code |= !user && (linear >> 63 == 0 || !self.mmu.is_global_code(linear, user));
        }
        Ok(block)
    }

    /// #GP(0) if a block's first instruction leaves the code segment. Longer blocks are cut by the decoder.
    pub(super) fn check_code_limit(&mut self, block: *const Block) -> Result<(), Fault> {
        // SAFETY: the caller just looked it up.
        let last = unsafe { self.state.rip + u64::from((*block).len) - 1 };
        if last > u64::from(self.state.segment(SegmentRegister::Cs).limit) {
            return self.fail(Exception::GP0);
        }
        Ok(())
    }

    /// In 64-bit mode a non-canonical address is #SS where it is relative to RSP or RBP, which only the
    /// operation knows.
    #[cold]
    pub(super) fn refine_fault(&mut self, op: &Op) {
        let on_stack = op.base == super::ops::stack::RSP || op.base == super::ops::stack::RBP;
        let plain = op.address & address::SEGMENT == 0;
        let linear = self.effective_address(op);
        let misaligned = op.address & address::ALIGNED16 != 0 && linear & 15 != 0;
        if self.fault == Exception::GP0
            && self.state.is_64bit_code()
            && on_stack
            && plain
            && !misaligned
            && !is_canonical(linear)
        {
            self.fault = Exception::with_code(Vector::StackFault, 0);
        }
    }

    fn deliver_fault(&mut self) -> Option<Exit> {
        if let Some(exit) = self.exit.take() {
            return Some(exit);
        }
        self.raise(self.fault)
    }
}
