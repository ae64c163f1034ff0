//! Entering translated code and what it calls: the Rust side of [`super::stubs`].
// UNSAFETY: jumps into generated code, follows the sites and blocks it names, and sets the GS base it uses.

use std::arch::asm;
use std::sync::atomic::Ordering;

use arch::x86::Exception;
use arch::x86::cpuid::Feature;
use arch::x86::paging::is_canonical;
use arch::x86::state::FxImage;
use engine::Request;

use iced_x86::{Decoder, DecoderOptions};

use super::listing::Listing;
use super::lockstep::Unit;
use super::pieces::Piece;
use super::{Jit, Kind, Site, Vectors, translate};
use crate::x86::hostexec::Class;
use crate::x86::interp::cpu::{Cpu, mode};
use crate::x86::interp::op::{Block, Flow, Op, Translated};
use crate::x86::mmu::{Intent, View};
use crate::x86::system::Core;

/// AT_HWCAP2 bit: programs may use RDGSBASE and WRGSBASE.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Whether this process may set its GS base without a system call.
pub fn host_has_gs_base() -> bool {
    // SAFETY: no precondition.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// Keeps the GS base at a vCPU's address, and puts the old one back.
pub struct GsBase(u64);

impl GsBase {
    /// Points GS at `cpu`, if it translates.
    pub fn enter(cpu: &Cpu) -> Option<Self> {
        cpu.jit.as_ref()?;
        let old: u64;
        // SAFETY: a translator exists only where `host_has_gs_base`; neither Rust nor the C library uses GS.
        unsafe {
            asm!("rdgsbase {}", out(reg) old, options(nomem, nostack, preserves_flags));
            asm!("wrgsbase {}", in(reg) std::ptr::from_ref(cpu) as u64, options(nomem, nostack, preserves_flags));
        }
        Some(Self(old))
    }
}

impl Drop for GsBase {
    fn drop(&mut self) {
        // SAFETY: as in `enter`.
        unsafe { asm!("wrgsbase {}", in(reg) self.0, options(nomem, nostack, preserves_flags)) };
    }
}

/// How a stretch of translated code ended. RIP is set unless a handler's flow says otherwise.
pub enum Outcome {
    /// An operation of `block` ended it, as in the interpreter.
    Ended(Flow, *const Op, *const Block),
    /// At a place where execution may go on in any way.
    Elsewhere,
    /// At a successor, in the same page, of a block that does not know its code yet.
    Successor(*const Block, Successor),
    /// At a block whose translation cannot run now.
    Interpret,
}

/// A jump to be led to its target.
#[derive(Clone, Copy)]
pub struct Successor {
    /// Which of the block's successors.
    pub link: usize,
    /// The flags are in memory.
    outer: bool,
    patch: u32,
    /// Vector registers that are loaded then.
    vectors: u8,
}

impl Cpu {
    /// Runs translated code from `code`, the outer entry of `block`, which is at RIP.
    pub(in crate::x86) fn run_translated(&mut self, block: *const Block, code: u64) -> Outcome {
        if self.jit.as_ref().is_some_and(|jit| jit.in_step.is_on()) {
            return self.run_in_step(block, code);
        }
        self.run_from(code).0
    }

    /// The same without comparing; and why the code was left.
    pub(super) fn run_from(&mut self, code: u64) -> (Outcome, Kind) {
        let Some(jit) = self.jit.as_ref() else { return (Outcome::Interpret, Kind::Leave) };
        if jit.config.stress.kicks {
            self.signal.post(Request::INTERRUPT);
        }
        let enter = jit.stubs.enter;
        // In this order: who posts a request sets it first, and then draws attention to it.
        jit.attention.store(0, Ordering::SeqCst);
        if self.signal.is_pending() {
            jit.attention.store(1, Ordering::SeqCst);
        }
        self.frame.page = self.state.rip & !0xfff;
        self.frame.code_written = false;
        self.current = std::ptr::null();
        let before = self.counters.instructions;
        // SAFETY: `enter` is the entry stub of an area that lives as long as `jit`; GS points here (`Cpu::run`),
        // and `code` is an outer entry made since the area was last cleared.
        let site = unsafe {
            let enter: extern "sysv64" fn(*mut Self, u64) -> *const Site = std::mem::transmute(enter);
            &*enter(self, code)
        };
        self.save_x87();
        let outcome = self.outcome(site);
        let executed = self.counters.instructions.wrapping_sub(before);
        if let Some(jit) = self.jit.as_mut() {
            jit.counters.left[site.kind as usize] += 1;
            jit.counters.executed = jit.counters.executed.wrapping_add(executed);
        }
        (outcome, site.kind)
    }

    fn outcome(&mut self, site: &Site) -> Outcome {
        let here = self.frame.page.wrapping_add(site.ip as i64 as u64) & self.ip_mask;
        match site.kind {
            Kind::Handler | Kind::Variant => self.ended(site, self.frame.flow),
            Kind::Vectors => {
                self.uncount(site);
                self.state.rip = here;
                Outcome::Interpret
            }
            Kind::Link => {
                self.state.rip = here;
                self.block_ip = self.frame.page; // the same page is all that matters
                let (link, outer) = (usize::from(site.link), site.outer);
                let (patch, vectors) = (site.patch, site.vectors);
                Outcome::Successor(site.block, Successor { link, outer, patch, vectors })
            }
            Kind::Jump if !is_canonical(self.frame.target) => self.refused_jump(site),
            Kind::Jump => {
                self.state.rip = self.frame.target;
                Outcome::Elsewhere
            }
            Kind::Leave | Kind::Fill | Kind::FillForStores => {
                self.state.rip = here;
                Outcome::Elsewhere
            }
        }
    }

    /// Where translated code goes on at RIP after a handler that ended its block, if it is known to and nothing else
    /// comes first.
    fn beyond(&mut self) -> Option<u64> {
        let wanted = self.frame.code_written || self.signal.is_pending() || self.must_stop();
        let jit = self.jit.as_mut()?;
        if wanted || self.mode != mode::LONG || jit.config.stress.forbids_chains() {
            return None;
        }
        let code = jit.jumps[usize::from(self.view == View::User)].find(self.state.rip)?;
        jit.counters.resumed += 1;
        self.frame.page = self.state.rip & !0xfff;
        self.frame.wanted = Vectors::NONE;
        Some(code)
    }

    /// The block's instructions were counted when it was entered; whoever handles its end counts them again.
    fn uncount(&mut self, site: &Site) {
        if !self.jit.as_ref().is_some_and(|jit| jit.config.count) {
            return;
        }
        // SAFETY: a site's block is in the arena as long as the site exists.
        let count = unsafe { (*site.block).instructions() };
        self.counters.instructions = self.counters.instructions.wrapping_sub(count);
    }

    fn ended(&mut self, site: &Site, flow: Flow) -> Outcome {
        self.uncount(site);
        if flow != Flow::Next {
            return Outcome::Ended(flow, self.operation(site), site.block);
        }
        // SAFETY: as in `uncount`.
        let op = unsafe { &*self.operation(site) };
        self.counters.instructions += u64::from(op.position) + 1;
        self.state.rip = self.next_ip(op);
        Outcome::Elsewhere
    }

    /// The operation that `site` is about.
    fn operation(&mut self, site: &Site) -> *const Op {
        // SAFETY: a site's block is in the arena as long as the site exists, and has so many operations.
        unsafe { self.operations(&*site.block).add(site.op.into()) }
    }

    /// A branch to an address that cannot be. Not executed again: a call may have stored over its own operand.
    fn refused_jump(&mut self, site: &Site) -> Outcome {
        self.state.gpr[4] = self.state.gpr[4].wrapping_sub(site.distance as i64 as u64);
        self.block_ip = self.frame.page.wrapping_add(site.ip as i64 as u64);
        self.fault = Exception::GP0;
        self.ended(site, Flow::Fault)
    }

    /// The code of `block`, which starts at RIP, made now if it is worth it.
    #[inline(always)]
    pub(in crate::x86) fn code_of(&mut self, block: *const Block) -> Option<u64> {
        let jit = self.jit.as_ref()?;
        // SAFETY: the caller just looked the block up.
        let block = unsafe { &*block };
        let code = block.code(self.view == View::User).get().outer;
        if code != 0 {
            return self.translates().then_some(code);
        }
        let heat = block.heat.get() + 1;
        block.heat.set(heat);
        if !heat.is_multiple_of(jit.threshold()) || !self.translates() {
            return None;
        }
        self.translate(block)
    }

    /// Whether code is of 32 bits, if it [`Self::translates`].
    pub(super) fn is_narrow(&self) -> bool {
        self.mode & mode::BITS != 2
    }

    #[cold]
    fn translate(&mut self, block: &Block) -> Option<u64> {
        let mut jit = self.jit.take()?;
        if jit.waits(block.heat.get()) {
            self.jit = Some(jit);
            return None;
        }
        if !jit.has_room() {
            self.jit = Some(jit);
            self.signal.post(Request::ENGINE); // which leads to where the area can be emptied
            return None;
        }
        let start = (self.state.rip & 0xfff) as u32;
        self.frame.page = self.state.rip & !0xfff;
        let code = self.translate_with(&mut jit, block, start, None);
        self.jit = Some(jit);
        code
    }

    /// Translates `block`, which starts at `start` of its page, or its variant from operation `variant_from` on.
    fn translate_with(
        &mut self,
        jit: &mut Jit,
        block: &Block,
        start: u32,
        variant_from: Option<usize>,
    ) -> Option<u64> {
        let mut bytes = std::mem::take(&mut jit.tools.page);
        let tail = self.read_code(block, start, &mut bytes)?;
        let (user, narrow) = (self.view == View::User, self.is_narrow());
        let mut pieces = vec![piece(block, start)];
        if variant_from.is_none() {
            extend(&mut pieces, &bytes, narrow, jit.threshold());
        }
        let ops = pieces.iter().map(|piece| piece.ops.len()).sum();
        let table = jit.jumps_of(user, narrow)?;
        let (jumps, jump_bits) = (table.table(), table.bits());
        let address = jit.area.next_address();
        let sites = jit.sites.room(translate::max_sites(ops));
        let first = sites.len();
        let tools = &mut jit.tools;
        let how = (address, jit.config);
        let (linear, attention) = (self.frame.page, jit.attention.low_address());
        let (page, views) = (&bytes[..], self.views_of(user));
        let has_bmi2 = self.model().has(Feature::Bmi2);
        let user_tlb = self.mmu.user_view()?;
        let host = translate::Host { jumps, jump_bits, has_bmi2, views, attention, user_tlb };
        let source = translate::Source { pieces: &pieces, page, tail: &tail, linear, user, narrow, host };
        let job = translate::Translation::new(&source, jit.stubs, tools, sites, how);
        let mut done = job.run(variant_from)?;
        if variant_from.is_none() {
            Jit::record(&jit.keeping, &source, &done, &sites[first..]);
        }
        let second = done.asm.second_part();
        jit.place(first, done.asm.code_mut(), second, done.relocations.iter().copied())?;
        if let Some(trace) = &jit.trace {
            let (page, gfn) = (self.frame.page, block.gfn);
            let (guest, code, marks) = (&done.instructions[..], done.asm.code(), &done.marks[..]);
            let rare = (second, jit.area.address(jit.area.next_rare(0)));
            trace.write(&Listing { page, gfn, guest, code, address, rare, marks }.text());
        }
        if done.seen.0 < done.seen.1 {
            // What was concluded from other code of the page holds as long as that code.
            // SAFETY: page information lives as long as guest RAM.
            let mark = unsafe { (*block.info).begin_code(done.seen.0, done.seen.1 - done.seen.0) };
            if mark.generation != block.generation {
                return None;
            }
        }
        if variant_from.is_none() {
            block.code(user).set(Translated::new(address, done.inner, done.ready, done.vectors)?);
            if jit.in_step.is_on() {
                let blocks = pieces.iter().map(|piece| std::ptr::from_ref(piece.block)).collect();
                let (instructions, reversible) = (done.instructions.clone(), done.reversible);
                jit.in_step.remember(block, user, Unit { blocks, instructions, reversible });
            }
        }
        done.recycle(&mut jit.tools.spare);
        jit.tools.page = bytes;
        Some(address)
    }

    /// Host addresses of the views of the TLB that STAC and CLAC choose between, if they are for such code.
    pub(super) fn views_of(&self, user: bool) -> Option<[u64; 2]> {
        let has_access_flag = !user && self.model().has(Feature::Smap);
        has_access_flag.then(|| [View::Kernel, View::KernelAc].map(|view| self.mmu.view(view) as u64))
    }

    /// Copies the page of `block`, which starts at `start`, to `page`, and returns what the block has of the next one.
    /// `None` if it is stale.
    fn read_code(&self, block: &Block, start: u32, page: &mut Vec<u8>) -> Option<Vec<u8>> {
        page.resize(4096, 0);
        let host = self.guest_ram().page(block.gfn)?.host;
        // SAFETY: a whole page of guest RAM.
        unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), page.as_mut_ptr(), page.len()) };
        let mut tail = Vec::new();
        if let Some(second) = block.second() {
            tail.resize((start as usize + usize::from(block.len)).saturating_sub(page.len()), 0);
            self.guest_ram().read(second.gfn << 12, &mut tail).ok()?;
        }
        let fresh = block.is_fresh() && block.second_is_fresh();
        fresh.then_some(tail)
    }

    /// `next` is what runs at RIP after a stretch of translated code: leads there what came from it.
    pub(in crate::x86) fn connect(&mut self, from: Option<(*const Block, Successor)>, next: *const Block) {
        let user = self.view == View::User;
        let (linear, translates, narrow) = (self.state.rip, self.translates(), self.is_narrow());
        // SAFETY: the caller has just looked `next` up, and `from` is of the same contents of the arena.
        let next = unsafe { &*next };
        // The page may have been looked up long ago, and then the MMU need not know it any more.
        let mut global = !user && !self.local_kernel_code || self.mmu.is_global_code(linear, user);
        if next.straddles() {
            let ends = [linear, linear.wrapping_add(u64::from(next.len) - 1)];
            global = ends.iter().all(|linear| self.mmu.is_global_code(*linear, user));
        }
        let Some(jit) = self.jit.as_mut() else { return };
        let code = next.code(user).get();
        if code.outer == 0 || !translates || jit.config.stress.forbids_chains() {
            return;
        }
        match from {
            None => jit.remember((user, narrow), linear, code.outer, next.info.addr(), global),
            Some((block, successor)) => {
                // SAFETY: as above.
                let block = unsafe { &*block };
                let same_page = block.gfn == next.gfn && !next.straddles();
                if same_page && block.is_fresh() && next.is_fresh() {
                    let is_ready = Vectors::both(successor.vectors, code.vectors) == successor.vectors;
                    let entry = if successor.outer { code.outer } else { code.inside(is_ready) };
                    jit.patch(successor.patch, entry);
                }
            }
        }
    }

    /// Sees that the TLB allows what the group of `site` checks, and returns where the check is made again; or
    /// where the variant goes on if that cannot be.
    fn fill(&mut self, site: &Site) -> u64 {
        let base = self.state.gpr[usize::from(site.register)];
        let linear = base.wrapping_add(site.distance as i64 as u64) & self.ip_mask;
        let intent = if site.kind == Kind::FillForStores { Intent::Write } else { Intent::Read };
        let ram = self.ram_owner.clone();
        // Dirty bits are for the access itself to set, so this is a load whatever follows.
        let placed = self.mmu.place(&ram, &self.state, linear, self.view, Intent::Read);
        if placed.is_ok() && self.has_in_tlb(linear, intent) {
            return site.resume;
        }
        match self.jit.as_ref() {
            Some(jit) => jit.area.address(site.patch) - 1, // the opcode before the displacement
            None => 0,
        }
    }

    /// Whether generated code finds `linear` in the TLB now.
    fn has_in_tlb(&self, linear: u64, intent: Intent) -> bool {
        !self.alignment_checks && self.mmu.allows(linear, self.view, intent)
    }

    /// The variant of the block of `site`, to which the failing check jumps from now on. `None` if there is no
    /// room for it or the block is stale.
    #[cold]
    fn variant(&mut self, site: &Site) -> Option<u64> {
        let mut jit = self.jit.take()?;
        let code = if jit.has_room() {
            // SAFETY: a site's block is in the arena as long as the site exists.
            let block = unsafe { &*site.block };
            self.operations(block);
            self.translate_with(&mut jit, block, site.ip as u32, Some(site.op.into()))
        } else {
            self.signal.post(Request::ENGINE); // which leads to where the area can be emptied
            None
        };
        if let Some(code) = code {
            jit.patch(site.patch, code);
        }
        self.jit = Some(jit);
        code
    }

    /// What to load for code that needs `level`; [`Vectors::NONE`] if the guest may not use it, or expects
    /// errors to trap, which only the interpreter can deliver.
    fn vectors_for(&self, level: u8) -> u8 {
        const MASKS: u32 = 0x1f80;
        let enabled = |class: Class| self.enabled_classes >> class as u16 & 1 != 0;
        let mxcsr = self.state.fx.mxcsr;
        if mxcsr & MASKS != MASKS || mxcsr & !FxImage::MXCSR_MASK != 0 || !enabled(Class::Sse) {
            return Vectors::NONE;
        }
        if enabled(Class::Avx) {
            let low = self.state.ymm.iter().all(|ymm| ymm.0[16..] == [0; 16]);
            return if low { Vectors::YMM_LOW } else { Vectors::YMM };
        }
        if level == Vectors::XMM { Vectors::XMM } else { Vectors::NONE }
    }
}

/// A block as a piece of a unit.
fn piece(block: &Block, start: u32) -> Piece<'_> {
    Piece { block, ops: ops_of(block), start }
}

/// The operations of `block`, which are decoded.
pub(super) fn ops_of(block: &Block) -> &[Op] {
    let ops = block.ops.get();
    assert!(!ops.is_null(), "what is translated has been decoded");
    // SAFETY: they stand in the arena as long as the block does.
    unsafe { std::slice::from_raw_parts(ops, usize::from(block.count)) }
}

/// Adds to a unit the blocks that execution goes on with where its conditional jumps are not taken, and those that its
/// other jumps lead to, while they are warm too. The latter are code a second time, so they are to be short.
fn extend(pieces: &mut Vec<Piece<'_>>, page: &[u8], narrow: bool, threshold: u32) {
    const MAX_OPS: usize = 48;
    const MAX_JOINED: usize = 12;
    loop {
        let last = &pieces[pieces.len() - 1];
        let Some((next, link)) = continuation(last, page, narrow) else { return };
        // SAFETY: links lead to blocks of the same arena contents.
        let Some(block) = (unsafe { last.block.links[link].as_ref() }) else { return };
        let length: usize = pieces.iter().map(|piece| piece.ops.len()).sum();
        let room = length + usize::from(block.count) <= MAX_OPS
            && (link == 1 || usize::from(block.count) <= MAX_JOINED);
        let ready = !block.ops.get().is_null() && block.heat.get() >= threshold / 2;
        if !room || block.straddles() || !block.is_fresh() || !ready {
            return;
        }
        if pieces.iter().any(|piece| piece.start == next) {
            return;
        }
        pieces.push(piece(block, next));
    }
}

/// Where in its page execution goes on after `last` in the same unit, and by which link.
fn continuation(last: &Piece<'_>, page: &[u8], narrow: bool) -> Option<(u32, usize)> {
    let at = last.start as usize + usize::from(last.ops.last()?.offset);
    let behind = last.start as usize + usize::from(last.block.len);
    let bits = if narrow { 32 } else { 64 };
    let jump = Decoder::with_ip(bits, page.get(at..behind)?, at as u64, DecoderOptions::NONE).decode();
    if jump.is_jcc_short_or_near() {
        return (behind < page.len()).then_some((behind as u32, 1));
    }
    let target = u32::try_from(jump.near_branch_target()).ok()?;
    (jump.is_jmp_short_or_near() && (target as usize) < page.len()).then_some((target, 0))
}

/// Called by the slow stub with the state complete: executes `site`. Returns the host address to go on at, or 0
/// to leave; then `Frame::flow` says how the operation ended.
///
/// # Safety
/// `cpu` is the running vCPU, with no other reference to it in use, and `site` one of its translator's.
pub(super) unsafe extern "sysv64" fn slow(cpu: *mut Cpu, site: *const Site) -> u64 {
    // SAFETY: the caller's promise.
    let (cpu, site) = unsafe { (&mut *cpu, &*site) };
    if !site.keeps_x87 {
        cpu.save_x87();
    }
    let resume = match site.kind {
        Kind::Handler => {
            cpu.block_ip = cpu.frame.page.wrapping_add(site.ip as i64 as u64);
            // SAFETY: a site's operation is in the arena as long as the site exists.
            let op = unsafe { &*cpu.operation(site) };
            let flow = (op.run)(cpu, op);
            cpu.frame.flow = flow;
            match flow {
                Flow::Next if !cpu.frame.code_written && !cpu.must_stop() => {}
                Flow::Taken | Flow::FellThrough | Flow::Jumped => return cpu.beyond().unwrap_or(0),
                _ => return 0,
            }
            site.resume
        }
        Kind::Fill | Kind::FillForStores => cpu.fill(site),
        Kind::Variant => match cpu.variant(site) {
            Some(code) => code,
            None => {
                cpu.block_ip = cpu.frame.page.wrapping_add(site.ip as i64 as u64);
                cpu.frame.flow = Flow::Retry;
                return 0;
            }
        },
        _ => site.resume,
    };
    cpu.frame.wanted = Vectors::NONE;
    let level = Vectors::level(site.vectors);
    if level != Vectors::NONE {
        cpu.frame.wanted = cpu.vectors_for(level);
        if cpu.frame.wanted == Vectors::NONE {
            return 0;
        }
    }
    if site.vectors & Vectors::X87 != 0 && !cpu.load_x87() {
        return 0;
    }
    if let Some(jit) = cpu.jit.as_mut()
        && site.kind == Kind::Handler
    {
        jit.counters.resumed += 1;
    }
    resume
}
