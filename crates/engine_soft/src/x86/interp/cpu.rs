//! One vCPU of the interpreter: its state and the loop that runs it.
//!
//! ```text
//!            requests, interrupts, NMI        shadow, single step
//!                     |                              |
//!   run ──► boundary ─┴─► look up block ──► execute ops ──► chain to the next block
//!              ▲               │ fault          │ fault           │ request pending
//!              └── deliver ◄───┴────────────────┴─────────────────┘
//! ```
// UNSAFETY: follows raw pointers to blocks (owned by the cache) and to guest RAM, and reaches registers by offset.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch::x86::cpuid::{CpuModel, CpuidContext};
use arch::x86::paging::is_canonical;
use arch::x86::{CpuState, Exception, Rflags, Segment, SegmentRegister, Vector};
use engine::{Bus, Exit, Request, Statistics, VcpuSignal, VmConfig};
use memory::GuestRam;

use super::cache::BlockCache;
use super::decode;
use super::op::{Block, Flow, NO_BLOCK, Op, address};
use super::shared::Shared;
use crate::x86::hostexec::Thunks;
use crate::x86::mmu::{Mmu, TLB_ENTRIES, TlbEntry, View};
use crate::x86::system::debug;
use crate::x86::system::deliver::{Event, deliver};
use crate::x86::width::{StatusFlags, Width};

/// The instruction faulted; what and why is in [`Cpu::fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Bits of the block mode (see [`Cpu::mode`]).
pub mod mode {
    /// Two bits: 0 = 16-bit code, 1 = 32-bit, 2 = 64-bit.
    pub const BITS: u64 = 3;
    /// The stack pointer is 32 bits wide (legacy modes).
    pub const BIG_STACK: u64 = 1 << 2;
    /// Blocks of one instruction.
    pub const SINGLE: u64 = 1 << 3;
}

/// One virtual CPU.
#[repr(C)]
pub struct Cpu {
    /// Architectural state. Status flags in `rflags` are stale while the loop runs: see `flags`.
    pub state: CpuState,
    /// Always zero: what an operation without base or index register names.
    pub zero: u64,
    /// Offset in CS of the running block's first instruction.
    pub block_ip: u64,
    /// Bits of RIP that exist in the current mode.
    pub ip_mask: u64,
    /// The status flags.
    pub flags: StatusFlags,
    /// The current view of the TLB, or one that never hits.
    pub tlb: *const TlbEntry,
    /// The current view.
    pub view: View,
    /// The exception of an operation that returned [`Flow::Fault`].
    pub fault: Exception,
    /// See [`mode`].
    pub mode: u64,
    /// What the jump table's entries must carry: epoch, privilege and mode.
    jump_key: u64,
    epoch: u64,
    pub(super) mmu: Mmu,
    pub(super) ram: *const GuestRam,
    ram_owner: Arc<GuestRam>,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) signal: Arc<VcpuSignal>,
    pub(super) shared: Arc<Shared>,
    pub(super) thunks: Thunks,
    pub(super) model: Arc<CpuModel>,
    pub(super) index: u32,
    vcpu_count: u32,
    tsc_khz: u32,
    pub(super) cache: BlockCache,
    current: *const Block,
    /// The bus may have an interrupt for us.
    pub(super) interrupt_hint: bool,
    /// Misaligned user accesses fault.
    pub(super) alignment_checks: bool,
    /// Vector instructions of these classes are known to be enabled (see `vector::run`).
    pub(super) enabled_classes: u16,
    /// Data breakpoints the current instruction hit, as in DR6.
    pub(super) debug_hits: u64,
    /// Set by an operation that cannot go on: `run` returns it.
    pub(super) exit: Option<Exit>,
    /// PAUSE instructions so far.
    pub(super) pauses: u32,
    pub(super) counters: Statistics,
    never_hits: Box<[TlbEntry; TLB_ENTRIES]>,
}

// SAFETY: raw pointers lead to data the Cpu owns or keeps alive (cache arena, TLB, GuestRam), none of it
// thread-bound.
unsafe impl Send for Cpu {}

impl Cpu {
    /// Offset of the register that reads as zero.
    pub const ZERO: u16 = offset_of!(Cpu, zero) as u16;
    /// Offset of the block's start address, the base of RIP-relative operands.
    pub const BLOCK_IP: u16 = offset_of!(Cpu, block_ip) as u16;

    /// A vCPU in power-up state.
    pub fn new(
        config: &VmConfig,
        index: u32,
        signal: Arc<VcpuSignal>,
        shared: Arc<Shared>,
        thunks: Thunks,
    ) -> Box<Self> {
        let context = CpuidContext {
            apic_id: index,
            vcpu_count: config.vcpu_count,
            tsc_khz: config.tsc_khz,
            cr4: 0,
            xcr0: 1,
        };
        let physical_bits = config.cpu_model.cpuid(0x8000_0008, 0, &context).eax & 0xff;
        let mut state = CpuState::power_up();
        state.gpr[2] = u64::from(config.cpu_model.cpuid(1, 0, &context).eax);
        let mmu = Mmu::new(physical_bits.clamp(36, 52));
        let mut cpu = Box::new(Self {
            state,
            zero: 0,
            block_ip: 0,
            ip_mask: 0,
            flags: StatusFlags::default(),
            tlb: std::ptr::null(),
            view: View::Kernel,
            fault: Exception::UD,
            mode: 0,
            jump_key: 0,
            epoch: 0,
            mmu,
            ram: Arc::as_ptr(&config.ram),
            ram_owner: config.ram.clone(),
            bus: config.bus.clone(),
            signal,
            shared,
            thunks,
            model: config.cpu_model.clone(),
            index,
            vcpu_count: config.vcpu_count,
            tsc_khz: config.tsc_khz,
            cache: BlockCache::default(),
            current: NO_BLOCK,
            interrupt_hint: true,
            alignment_checks: false,
            enabled_classes: 0,
            debug_hits: 0,
            exit: None,
            pauses: 0,
            counters: Statistics::default(),
            never_hits: Box::new([TlbEntry::EMPTY; TLB_ENTRIES]),
        });
        cpu.mode_changed();
        cpu
    }

    /// The register at byte offset `offset` of the Cpu.
    #[inline(always)]
    pub fn register<T: Width>(&self, offset: u16) -> T {
        // SAFETY: offsets come from `decode`, which only makes those of whole registers (see `Op`).
        unsafe { std::ptr::from_ref(self).cast::<u8>().add(usize::from(offset)).cast::<T>().read() }
    }

    /// Writes a register; a 32-bit write clears the upper half, as in 64-bit mode (legacy code cannot tell).
    #[inline(always)]
    pub fn set_register<T: Width>(&mut self, offset: u16, value: T) {
        // SAFETY: as in `register`; a 32-bit register is the start of a 64-bit one.
        unsafe {
            let place = std::ptr::from_mut(self).cast::<u8>().add(usize::from(offset));
            if T::SIZE == 4 {
                place.cast::<u64>().write(value.zero_extend());
            } else {
                place.cast::<T>().write(value);
            }
        }
    }

    /// Records an exception for the caller to return as [`Fault`].
    #[cold]
    pub fn fail<T>(&mut self, exception: Exception) -> Result<T, Fault> {
        self.fault = exception;
        Err(Fault)
    }

    /// Address of the instruction after `op`.
    #[inline(always)]
    pub fn next_ip(&self, op: &Op) -> u64 {
        self.block_ip.wrapping_add(u64::from(op.offset) + u64::from(op.len)) & self.ip_mask
    }

    /// Address of `op`.
    #[inline(always)]
    pub fn ip_of(&self, op: &Op) -> u64 {
        self.block_ip.wrapping_add(u64::from(op.offset)) & self.ip_mask
    }

    /// Makes `state.rflags` canonical.
    #[inline(always)]
    pub fn sync_flags(&mut self) {
        self.state.rflags = self.flags.merge_into(self.state.rflags);
    }

    /// Takes the status flags from `state.rflags`.
    #[inline(always)]
    pub fn reload_flags(&mut self) {
        self.flags = StatusFlags::from_rflags(self.state.rflags);
    }

    /// Recomputes what is derived from control registers, CS, SS, privilege and RFLAGS.AC.
    pub fn mode_changed(&mut self) {
        let bits = self.state.code_bits();
        self.ip_mask = if bits == 64 { u64::MAX } else { 0xffff_ffff };
        // A stepped instruction that changes the mode still ends the step.
        let mut mode = u64::from(bits / 32) | self.mode & mode::SINGLE;
        if bits != 64 && self.state.segment(SegmentRegister::Ss).access & Segment::BIG != 0 {
            mode |= mode::BIG_STACK;
        }
        self.mode = mode;
        self.enabled_classes = super::ops::vector::enabled_classes(&self.state);
        self.update_view();
    }

    /// Recomputes what depends on privilege and RFLAGS.AC only.
    pub fn update_view(&mut self) {
        self.view = View::of(&self.state);
        self.alignment_checks = self.wants_alignment_checks();
        self.tlb = if self.alignment_checks { self.never_hits.as_ptr() } else { self.mmu.view(self.view) };
        self.update_jump_key();
    }

    fn update_jump_key(&mut self) {
        let user = u64::from(self.view == View::User);
        self.jump_key = self.epoch << 8 | self.mode << 1 | user;
    }

    /// After a TLB flush: linear addresses may lead to other blocks.
    pub(super) fn new_epoch(&mut self) {
        self.epoch += 1;
        self.update_jump_key();
    }

    /// What CPUID answers depend on.
    pub fn cpuid_context(&self) -> CpuidContext {
        CpuidContext {
            apic_id: self.index,
            vcpu_count: self.vcpu_count,
            tsc_khz: self.tsc_khz,
            cr4: self.state.cr4,
            xcr0: self.state.xcr0,
        }
    }

    /// Somebody changed the state from outside: cached translations may not fit it any more.
    pub fn forget_translations(&mut self) {
        self.mmu.flush_all();
        self.new_epoch();
    }

    /// The arena was emptied: the block that ran last is gone.
    pub(super) fn forget_current(&mut self) {
        self.current = NO_BLOCK;
    }

    /// After a store that hit decoded code: the rest of the running block may be stale, so it ends here.
    #[inline]
    pub(super) fn after_code_write(&mut self, hit: bool) {
        if hit {
            self.abandon_block();
        }
    }

    #[cold]
    fn abandon_block(&mut self) {
        if self.current.is_null() {
            return;
        }
        // SAFETY: `current` is the block being executed; it stays in the arena until the loop's next boundary.
        // Its generation is stale or it is about to be looked up again, so nobody else runs these operations.
        unsafe {
            let block = &*self.current;
            if block.is_fresh() && (!block.straddles() || block.second_is_fresh()) {
                return;
            }
            for i in 0..usize::from(block.count) {
                (*block.ops.add(i)).run = end_before;
            }
        }
    }

    /// Runs until there is a reason to leave.
    pub fn run(&mut self) -> Exit {
        self.reload_flags();
        self.mode_changed();
        self.interrupt_hint = true;
        self.shared.enter(self.index);
        let exit = loop {
            if let Some(exit) = self.boundary() {
                break exit;
            }
        };
        self.current = NO_BLOCK;
        self.shared.leave(self.index);
        self.sync_flags();
        exit
    }

    /// Everything that happens between instructions, then a stretch of execution.
    fn boundary(&mut self) -> Option<Exit> {
        if self.signal.is_pending() {
            self.service_engine_request();
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
        if self.signal.take(Request::ENGINE) && self.shared.take_revocation(self.index) {
            self.mmu.revoke_writes();
            self.shared.acknowledge(self.index);
        }
    }

    fn deliver_pending(&mut self) -> Result<(), Exit> {
        let events = &mut self.state.events;
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
        let (traced, open) = (self.state.rflags & Rflags::TF.bits() != 0, self.state.rflags & Rflags::IF.bits());
        if !shadow {
            self.debug_hits = 0;
        }
        self.mode |= mode::SINGLE;
        self.update_jump_key();
        let events = self.counters.events;
        let resumed = self.state.rflags & Rflags::RF.bits() != 0;
        let exit = self.execute();
        self.mode &= !mode::SINGLE;
        self.update_jump_key();
        // RF holds for one instruction. One that an IRET has just restored is for the next.
        if resumed {
            self.state.rflags &= !Rflags::RF.bits();
        }
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

    /// Runs blocks until a request, an event or an exit wants the boundary.
    fn execute(&mut self) -> Option<Exit> {
        // What is left of RF is seen by nobody: PUSHF hides it and every fault pushes it set.
        self.state.rflags &= !Rflags::RF.bits();
        let mut block = match self.look_up() {
            Ok(block) => block,
            Err(Fault) => return self.deliver_fault(),
        };
        loop {
            self.current = block;
            // SAFETY: blocks stay in the arena until `look_up` clears it, which only happens between blocks.
            let (flow, op) = unsafe { self.run_block(&*block) };
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
            if self.signal.is_pending() || self.must_stop() {
                return self.exit.take();
            }
            block = match self.follow(block, link) {
                Ok(next) => next,
                Err(Fault) => return self.deliver_fault(),
            };
        }
    }

    #[inline(always)]
    fn must_stop(&self) -> bool {
        self.mode & mode::SINGLE != 0
            || self.state.events.interrupt_shadow
            || self.state.events.halted
            || self.exit.is_some()
            || (self.interrupt_hint && self.state.rflags & Rflags::IF.bits() != 0)
            || self.state.rflags & Rflags::TF.bits() | self.state.dr[7] & 0xff != 0
    }

    /// Executes the operations of `block` and returns how it ended, with the last operation.
    #[inline(always)]
    unsafe fn run_block<'a>(&mut self, block: &'a Block) -> (Flow, &'a Op) {
        self.block_ip = self.state.rip;
        let mut op = block.ops.cast_const();
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
        if self.mode & mode::BITS != 2 {
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
                && self.mode & mode::BITS == 2
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
    fn refine_fault(&mut self, op: &Op) {
        let on_stack = op.base == super::ops::stack::RSP || op.base == super::ops::stack::RBP;
        let plain = op.address & address::SEGMENT == 0;
        if self.fault == Exception::GP0
            && self.state.is_64bit_code()
            && on_stack
            && plain
            && !is_canonical(self.effective_address(op))
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

    /// The guest's RAM.
    pub(super) fn guest_ram(&self) -> &GuestRam {
        &self.ram_owner
    }

    /// The guest's time stamp counter.
    pub fn tsc(&self) -> u64 {
        // SAFETY: RDTSC has no effect but its result.
        unsafe { core::arch::x86_64::_rdtsc() }.wrapping_add(self.state.tsc_offset)
    }

    /// What has been counted.
    pub fn statistics(&self) -> Statistics {
        self.counters
    }

    /// Makes sure no vCPU can write a page without noticing the code in it.
    pub(super) fn revoke_writes_everywhere(&mut self) {
        self.mmu.revoke_writes();
        let shared = self.shared.clone();
        shared.request_revocation(self.index);
        while !shared.is_revoked(self.index) {
            self.service_engine_request();
            std::thread::yield_now();
        }
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Stands in for the operations of an abandoned block.
fn end_before(_: &mut Cpu, _: &Op) -> Flow {
    Flow::Retry
}
