//! One vCPU of the interpreter: its state and what is derived from it. The loop is in [`super::run`].
// UNSAFETY: follows raw pointers to blocks (owned by the cache) and to guest RAM, and reaches registers by offset.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arch::x86::cpuid::{CpuModel, CpuidContext};
use arch::x86::{CpuState, Exception, Rflags, Segment, SegmentRegister};
use engine::{Bus, Exit, Statistics, VcpuSignal, VmConfig};
use memory::{GuestRam, PageInfo};

use super::cache::{ARENA_BYTES, BlockCache, TRANSLATOR_ARENA_BYTES};
use super::op::{Block, Flow, NO_BLOCK, Op};
use super::shared::Shared;
use super::turns::Turn;
use crate::x86::hostexec::Thunks;
use crate::x86::jit::lockstep::Trial;
use crate::x86::jit::{Frame, Jit};
use crate::x86::mmu::{Mmu, TLB_ENTRIES, TlbEntry, View};
use crate::x86::width::{StatusFlags, Width};
use crate::x86::zeroed::Zeroed;

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
    /// Legacy protected mode where no segment but FS and GS changes or limits an address: see `Cpu::is_flat`.
    pub const FLAT: u64 = 1 << 4;
    /// Plain 64-bit code.
    pub const LONG: u64 = 2;
    /// Plain 32-bit code, in compatibility mode or without long mode.
    pub const FLAT32: u64 = 1 | BIG_STACK | FLAT;
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
    /// What the translator's code uses.
    pub frame: Frame,
    /// The current view of the TLB, or one that never hits.
    pub tlb: *const TlbEntry,
    /// The current view.
    pub view: View,
    /// The exception of an operation that returned [`Flow::Fault`].
    pub fault: Exception,
    /// See [`mode`].
    pub mode: u64,
    /// Segments that, beside their base, neither change nor limit an access to data, as bits.
    pub open_segments: u8,
    /// What the jump table's entries must carry: epoch, privilege and mode.
    pub(super) jump_key: u64,
    /// How often linear addresses came to lead elsewhere, and one: `[kernel, user]`.
    epochs: [u64; 2],
    /// Kernel code was looked up since then that is in the lower half or not the same in all address spaces.
    pub(in crate::x86) local_kernel_code: bool,
    pub(in crate::x86) mmu: Mmu,
    pub(super) ram: *const GuestRam,
    pub(in crate::x86) ram_owner: Arc<GuestRam>,
    pub(super) bus: Arc<dyn Bus>,
    pub(in crate::x86) signal: Arc<VcpuSignal>,
    pub(super) shared: Arc<Shared>,
    pub(super) thunks: Thunks,
    pub(super) model: Arc<CpuModel>,
    pub(super) index: u32,
    vcpu_count: u32,
    tsc_khz: u32,
    pub(super) cache: BlockCache,
    pub(in crate::x86) current: *const Block,
    /// The bus may have an interrupt for us.
    pub(in crate::x86) interrupt_hint: bool,
    /// Misaligned user accesses fault.
    pub(in crate::x86) alignment_checks: bool,
    /// Vector instructions of these classes are known to be enabled (see `vector::run`).
    pub(in crate::x86) enabled_classes: u16,
    /// CR0, CR4, XCR0 and RFLAGS.VM they were computed for.
    classes_of: [u64; 4],
    /// Data breakpoints the current instruction hit, as in DR6.
    pub(in crate::x86) debug_hits: u64,
    /// Set by an operation that cannot go on: `run` returns it.
    pub(in crate::x86) exit: Option<Exit>,
    /// PAUSE instructions so far.
    pub(super) pauses: u32,
    pub(in crate::x86) counters: Statistics,
    /// The translator, if this vCPU has one.
    pub(in crate::x86) jit: Option<Box<Jit>>,
    never_hits: Zeroed<[TlbEntry; TLB_ENTRIES]>,
    /// If vCPUs execute one at a time.
    pub(super) turn: Turn,
    /// What is executed will be undone (see `jit::lockstep`).
    pub(in crate::x86) trial: Option<Box<Trial>>,
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
        jit: Option<Jit>,
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
        let arena_bytes = if jit.is_some() { TRANSLATOR_ARENA_BYTES } else { ARENA_BYTES };
        let mut mmu = Mmu::new(physical_bits.clamp(36, 52));
        mmu.one_page = jit.as_ref().is_some_and(Jit::holds_one_page);
        let turn = Turn::new(config.vcpu_count > 1 && jit.as_ref().is_some_and(Jit::is_in_step));
        let mut cpu = Box::new(Self {
            state,
            zero: 0,
            block_ip: 0,
            ip_mask: 0,
            flags: StatusFlags::default(),
            frame: Frame::default(),
            tlb: std::ptr::null(),
            view: View::Kernel,
            fault: Exception::UD,
            mode: 0,
            open_segments: 0,
            jump_key: 0,
            epochs: [1; 2],
            local_kernel_code: false,
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
            cache: BlockCache::new(arena_bytes),
            current: NO_BLOCK,
            interrupt_hint: true,
            alignment_checks: false,
            enabled_classes: 0,
            classes_of: [u64::MAX; 4],
            debug_hits: 0,
            exit: None,
            pauses: 0,
            counters: Statistics::default(),
            jit: jit.map(Box::new),
            never_hits: TlbEntry::empty_view(),
            trial: None,
            turn,
        });
        cpu.attach_translator();
        cpu.mode_changed();
        cpu
    }

    /// Lets generated code find the vCPU, which will not move, and its requests.
    fn attach_translator(&mut self) {
        let place = std::ptr::from_mut(self);
        let no_returns = self.jit.as_ref().map_or(0, |jit| jit.empty_returns());
        self.frame.attach(place, no_returns);
        if let Some(jit) = &self.jit {
            self.signal.set_hook(jit.hook());
        }
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
        if bits == 32 {
            self.open_segments = open_segments(&self.state);
            mode |= if self.is_flat() { mode::FLAT } else { 0 };
        }
        self.mode = mode;
        let vm86 = self.state.rflags & Rflags::VM.bits();
        let controls = [self.state.cr0, self.state.cr4, self.state.xcr0, vm86];
        if self.classes_of != controls {
            self.classes_of = controls;
            self.enabled_classes = super::ops::vector::enabled_classes(&self.state);
        }
        self.update_view();
    }

    /// Whether CS, and ES, SS and DS, for loads and stores, are all 4 GiB from address zero on.
    fn is_flat(&self) -> bool {
        const OPEN: u8 =
            1 << SegmentRegister::Es as u8 | 1 << SegmentRegister::Ss as u8 | 1 << SegmentRegister::Ds as u8;
        let segments = &self.state.segments;
        self.open_segments & OPEN == OPEN
            && segments[..4].iter().all(|segment| segment.base == 0)
            && self.state.segment(SegmentRegister::Cs).limit == u32::MAX
    }

    /// Whether code of the current mode can be translated.
    #[inline(always)]
    pub(in crate::x86) fn translates(&self) -> bool {
        matches!(self.mode, mode::LONG | mode::FLAT32)
    }

    /// Whether the next block in the same page is the same whatever the segments are.
    #[inline(always)]
    pub(super) fn links_blocks(&self) -> bool {
        self.mode & mode::BITS == 2 || self.mode & mode::FLAT != 0
    }

    /// Recomputes what depends on privilege and RFLAGS.AC only.
    pub fn update_view(&mut self) {
        let before = std::mem::replace(&mut self.view, View::of(&self.state));
        self.mmu.view_changed(before, self.view);
        self.alignment_checks = self.wants_alignment_checks();
        self.mmu.close_user_view(self.alignment_checks);
        self.tlb = if self.alignment_checks { self.never_hits.as_ptr() } else { self.mmu.view(self.view) };
        self.update_jump_key();
    }

    pub(super) fn update_jump_key(&mut self) {
        let user = self.view == View::User;
        self.jump_key = self.epochs[usize::from(user)] << 8 | self.mode << 1 | u64::from(user);
    }

    /// After a TLB flush: linear addresses may lead to other blocks.
    pub(super) fn new_epoch(&mut self) {
        self.frame.forget_returns();
        self.epochs.iter_mut().for_each(|epoch| *epoch += 1);
        self.local_kernel_code = false;
        self.update_jump_key();
    }

    /// The same where global pages, or those of the upper half, are as before: mostly a kernel's code is.
    pub(super) fn new_local_epoch(&mut self) {
        if self.local_kernel_code {
            return self.new_epoch();
        }
        self.frame.forget_returns();
        self.epochs[1] += 1;
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
        if let Some(jit) = self.jit.as_mut() {
            jit.forget_jumps();
        }
    }

    /// Empties the arena, and with it everything that leads into it. Only between blocks.
    pub(super) fn forget_blocks(&mut self) {
        let began = Instant::now();
        self.cache.clear();
        self.current = NO_BLOCK;
        if let Some(jit) = self.jit.as_mut() {
            jit.clear();
            jit.note_clear(began.elapsed());
        }
    }

    /// Gives back to the host what is kept for speed alone: the vCPU has little to do. Only between two calls of `run`.
    pub fn give_back(&mut self) {
        self.forget_blocks();
        self.cache.give_back();
        self.mmu.give_back();
        self.new_epoch();
        if let Some(jit) = self.jit.as_mut() {
            jit.give_back();
        }
    }

    /// After a store that hit decoded code: the rest of the running block may be stale, so it ends here.
    #[inline]
    pub(super) fn after_code_write(&mut self, hit: bool, page: *const PageInfo) {
        if hit {
            self.frame.code_written = true;
            if let Some(jit) = self.jit.as_mut() {
                jit.forget_code(page.addr());
            }
            self.shared.code_changed(self.index, page.addr());
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
                (*block.ops.get().add(i)).run = end_before;
            }
        }
    }

    /// Whether so many blocks that are not decoded can be stored before the cache is full.
    pub(in crate::x86) fn has_room_for(&self, blocks: usize) -> bool {
        self.cache.has_room(blocks * size_of::<Block>() / size_of::<Op>() + 1)
    }

    /// The block at a guest physical address in the current mode, whose code may have been overwritten.
    pub(in crate::x86) fn known_block(&self, gpa: u64) -> Option<*const Block> {
        self.cache.find(gpa, self.mode)
    }

    /// Stores a block that is not decoded.
    pub(in crate::x86) fn insert_undecoded(&mut self, gpa: u64, block: Block) -> *const Block {
        self.counters.blocks += 1;
        self.cache.insert_undecoded(gpa, self.mode, block)
    }

    /// The guest's RAM.
    pub(in crate::x86) fn guest_ram(&self) -> &GuestRam {
        &self.ram_owner
    }

    /// The guest's time stamp counter.
    pub fn tsc(&self) -> u64 {
        // SAFETY: RDTSC has no effect but its result.
        unsafe { core::arch::x86_64::_rdtsc() }.wrapping_add(self.state.tsc_offset)
    }

    /// What has been counted.
    pub fn statistics(&self) -> Statistics {
        let translation = self.jit.as_ref().map(|jit| jit.statistics()).unwrap_or_default();
        Statistics { translation, ..self.counters }
    }

    /// Makes sure no vCPU can write a page without noticing the code in it.
    pub(in crate::x86) fn revoke_writes_everywhere(&mut self) {
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

/// The segments of `state`, which is in protected or virtual-8086 mode or neither, that can be loaded from and stored to
/// at any offset, as bits.
fn open_segments(state: &CpuState) -> u8 {
    const TYPE: u32 = Segment::UNUSABLE | Segment::CODE | Segment::CONFORMING | Segment::WRITABLE;
    let open = |segment: &Segment| segment.access & TYPE == Segment::WRITABLE && segment.limit == u32::MAX;
    if !state.is_protected() || state.is_vm86() {
        return 0;
    }
    (0..6).filter(|n| open(&state.segments[*n])).fold(0, |bits, n| bits | 1 << n)
}

/// Stands in for the operations of an abandoned block.
fn end_before(_: &mut Cpu, _: &Op) -> Flow {
    Flow::Retry
}
