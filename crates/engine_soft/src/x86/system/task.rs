//! Hardware task switching by JMP, CALL, interrupts and IRET through TSS descriptors and task gates
//! (SDM vol. 3 ch. 8). Does not exist in long mode.

use arch::x86::segment::system_type;
use arch::x86::{CpuState, Cr0, Exception, Rflags, Segment, SegmentRegister, Vector};

use super::control::load_pdptes;
use super::descriptor::{Descriptor, check_target, is_null, rpl, selector_fault};
use super::segments::{checked_data, checked_ldt};
use super::{Access, Core, Flush, wrap};

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Jump,
    /// CALL or an interrupt: the new task is nested in the old one.
    Call,
    /// An interrupt or exception through a task gate; as CALL.
    Interrupt,
    /// IRET with NT set.
    Return,
}

/// ES, CS, SS, DS, FS, GS in the order a TSS holds them.
const SEGMENTS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// Where things stand in a TSS (SDM vol. 3 figures 8-2 and 8-10).
struct Layout {
    /// Bytes of a register slot.
    slot: usize,
    /// Offset of EIP; EFLAGS and eight registers follow, then the selectors.
    ip: usize,
    /// Offset of ES.
    segments: usize,
    ldt: usize,
    /// Lowest valid limit.
    min_limit: u32,
}

const TSS16: Layout = Layout { slot: 2, ip: 0x0e, segments: 0x22, ldt: 0x2a, min_limit: 0x2b };
const TSS32: Layout = Layout { slot: 4, ip: 0x20, segments: 0x48, ldt: 0x60, min_limit: 0x67 };
const CR3: usize = 0x1c;
const DEBUG_TRAP: usize = 0x64;

impl Layout {
    fn of(tss: &Segment) -> &'static Self {
        if matches!(tss.kind(), system_type::TSS16_AVAILABLE | system_type::TSS16_BUSY) {
            &TSS16
        } else {
            &TSS32
        }
    }

    fn is_32bit(&self) -> bool {
        self.slot == 4
    }

    fn bytes(&self) -> usize {
        self.min_limit as usize + 1
    }
}

/// What a TSS says of a task.
struct Task {
    cr3: Option<u32>,
    rip: u64,
    rflags: u64,
    gpr: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    debug_trap: bool,
}

impl Task {
    fn decode(layout: &Layout, image: &[u8; 0x68]) -> Self {
        let half = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let slot = |at: usize| {
            let high = if layout.is_32bit() { half(at + 2) } else { 0 };
            u64::from(half(at)) | u64::from(high) << 16
        };
        let mut gpr = [0; 8];
        for (i, register) in gpr.iter_mut().enumerate() {
            *register = slot(layout.ip + (2 + i) * layout.slot);
        }
        let mut selectors = [0; 6];
        let count = if layout.is_32bit() { 6 } else { 4 };
        for (i, selector) in selectors[..count].iter_mut().enumerate() {
            *selector = half(layout.segments + i * layout.slot);
        }
        Self {
            cr3: layout.is_32bit().then(|| slot(CR3) as u32),
            rip: slot(layout.ip),
            rflags: slot(layout.ip + layout.slot),
            gpr,
            selectors,
            ldt: half(layout.ldt),
            debug_trap: layout.is_32bit() && image[DEBUG_TRAP] & 1 != 0,
        }
    }
}

/// A task switch to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switch {
    /// Names the TSS of the new task.
    pub selector: u16,
    pub reason: Reason,
    /// Where the old task goes on.
    pub next_rip: u64,
    /// The old task's flags, as they are saved.
    pub rflags: u64,
    /// As in [`selector_fault`].
    pub ext: u32,
}

/// Switches tasks.
///
/// Faults that concern the old task leave the state alone. Faults found while the new task's segments are
/// loaded are raised in the new task: the state then is that task's, before its first instruction.
pub(super) fn switch(core: &mut dyn Core, to: Switch) -> Result<(), Exception> {
    let Switch { selector, reason, ext, .. } = to;
    let mut tss = target(core, selector, reason, ext)?;
    let layout = Layout::of(&tss.segment);
    if tss.segment.limit < layout.min_limit {
        return Err(selector_fault(Vector::InvalidTss, selector, ext));
    }
    let mut image = [0; 0x68];
    let base = tss.segment.base;
    core.read_linear(base, &mut image[..layout.bytes()], Access::SYSTEM)?;
    let mut task = Task::decode(layout, &image);
    // Written before it is made the current task, so that a fault here still belongs to the old one.
    if matches!(reason, Reason::Call | Reason::Interrupt) {
        let link = core.state().tr.selector;
        core.write_linear(base, &link.to_le_bytes(), Access::SYSTEM)?;
        task.rflags |= Rflags::NT.bits();
    }
    save_old(core, &to)?;
    if reason == Reason::Return {
        release_old(core, ext)?;
    } else {
        if reason == Reason::Jump {
            release_old(core, ext)?;
        }
        tss.mark_busy(core)?;
    }
    tss.segment.access |= Segment::WRITABLE;
    core.state_mut().tr = tss.segment;
    load(core, &task)?;
    validate(core, &task, ext)?;
    if task.debug_trap {
        core.state_mut().dr[6] |= super::debug::DR6_BT;
        return Err(Exception::new(Vector::Debug));
    }
    Ok(())
}

/// The TSS descriptor to switch to, checked as far as the old task is concerned.
fn target(core: &mut dyn Core, selector: u16, reason: Reason, ext: u32) -> Result<Descriptor, Exception> {
    let returning = reason == Reason::Return;
    let vector = if returning { Vector::InvalidTss } else { Vector::GeneralProtection };
    let bad = selector_fault(vector, selector, ext);
    if is_null(selector) || selector & 4 != 0 {
        return Err(bad);
    }
    let tss = Descriptor::fetch(core, selector, vector, ext)?;
    let kinds = if returning {
        [system_type::TSS16_BUSY, system_type::TSS_BUSY]
    } else {
        [system_type::TSS16_AVAILABLE, system_type::TSS_AVAILABLE]
    };
    if !kinds.iter().any(|kind| tss.is_system(*kind)) {
        return Err(bad);
    }
    if !tss.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, ext));
    }
    Ok(tss)
}

/// Clears the busy bit of the current task.
fn release_old(core: &mut dyn Core, ext: u32) -> Result<(), Exception> {
    let selector = core.state().tr.selector;
    Descriptor::fetch(core, selector, Vector::InvalidTss, ext)?.mark_available(core)
}

/// Stores the running task's registers into its TSS.
fn save_old(core: &mut dyn Core, to: &Switch) -> Result<(), Exception> {
    let state = core.state();
    let layout = Layout::of(&state.tr);
    if state.tr.is_unusable() || state.tr.limit < layout.min_limit {
        return Err(selector_fault(Vector::InvalidTss, state.tr.selector, to.ext));
    }
    let mut flags = to.rflags;
    if to.reason == Reason::Return {
        flags &= !Rflags::NT.bits();
    }
    let mut image = [0u8; 0x68];
    let mut put = |at: usize, value: u64, bytes: usize| {
        image[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    put(layout.ip, to.next_rip, layout.slot);
    put(layout.ip + layout.slot, flags, layout.slot);
    for (i, register) in state.gpr[..8].iter().enumerate() {
        put(layout.ip + (2 + i) * layout.slot, *register, layout.slot);
    }
    let count = if layout.is_32bit() { 6 } else { 4 };
    for (i, register) in SEGMENTS[..count].iter().enumerate() {
        put(layout.segments + i * layout.slot, u64::from(state.segment(*register).selector), 2);
    }
    let end = layout.segments + count * layout.slot;
    let base = wrap(state, state.tr.base + layout.ip as u64);
    core.write_linear(base, &image[layout.ip..end], Access::SYSTEM)
}

/// The commit point: registers and selectors of the new task, its segments not usable yet.
fn load(core: &mut dyn Core, task: &Task) -> Result<(), Exception> {
    let paging = core.state().is_paging();
    let state = core.state_mut();
    state.cr0 |= Cr0::TS.bits();
    state.rip = task.rip;
    state.rflags = task.rflags & super::flags::ALL_FLAGS | Rflags::FIXED.bits();
    for (to, from) in state.gpr.iter_mut().zip(task.gpr) {
        *to = from;
    }
    state.dr[7] &= !super::debug::DR7_LOCAL_ENABLES;
    let vm86 = state.is_vm86();
    let cpl = if vm86 { 3 } else { rpl(task.selectors[SegmentRegister::Cs as usize]) };
    for (register, selector) in SEGMENTS.iter().zip(task.selectors) {
        *state.segment_mut(*register) = if vm86 {
            Segment::real_mode(selector, 0xf3)
        } else {
            Segment::new(selector, 0, 0, Segment::UNUSABLE | u32::from(cpl) << 5)
        };
    }
    state.ldtr = Segment::new(task.ldt, 0, 0, Segment::UNUSABLE);
    let mut changed = Ok(());
    if let Some(cr3) = task.cr3
        && paging
        && u64::from(cr3) != state.cr3
    {
        core.state_mut().cr3 = u64::from(cr3);
        changed = load_pdptes(core);
        core.flush_tlb(Flush::NonGlobal);
    }
    core.mode_changed();
    changed
}

/// Loads LDTR and the segments of the new task, checked.
fn validate(core: &mut dyn Core, task: &Task, ext: u32) -> Result<(), Exception> {
    let with_ext = |fault: Exception| match fault.vector {
        Vector::PageFault => fault,
        _ => Exception { error_code: fault.error_code | ext, ..fault },
    };
    core.state_mut().ldtr = checked_ldt(core, task.ldt, Vector::InvalidTss).map_err(with_ext)?;
    if !core.state().is_vm86() {
        validate_code_and_stack(core, task, ext)?;
        for register in [SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Fs, SegmentRegister::Gs] {
            let selector = task.selectors[register as usize];
            let segment = checked_data(core, selector, Vector::InvalidTss).map_err(with_ext)?;
            *core.state_mut().segment_mut(register) = segment;
        }
    }
    core.mode_changed();
    let cs = *core.state().segment(SegmentRegister::Cs);
    check_target(core.state(), &cs, task.rip, ext)
}

fn validate_code_and_stack(core: &mut dyn Core, task: &Task, ext: u32) -> Result<(), Exception> {
    let selector = task.selectors[SegmentRegister::Cs as usize];
    let bad = selector_fault(Vector::InvalidTss, selector, ext);
    let cpl = rpl(selector);
    if is_null(selector) {
        return Err(bad);
    }
    let mut code = Descriptor::fetch(core, selector, Vector::InvalidTss, ext)?;
    let dpl = code.segment.dpl();
    let reachable = if code.is_conforming() { dpl <= cpl } else { dpl == cpl };
    if !code.segment.is_code() || !reachable {
        return Err(bad);
    }
    if !code.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, ext));
    }
    code.mark_accessed(core)?;

    let selector = task.selectors[SegmentRegister::Ss as usize];
    let bad = selector_fault(Vector::InvalidTss, selector, ext);
    if is_null(selector) {
        return Err(bad);
    }
    let mut ss = Descriptor::fetch(core, selector, Vector::InvalidTss, ext)?;
    if rpl(selector) != cpl || ss.segment.dpl() != cpl || !ss.is_writable_data() {
        return Err(bad);
    }
    if !ss.segment.is_present() {
        return Err(selector_fault(Vector::StackFault, selector, ext));
    }
    ss.mark_accessed(core)?;
    let state: &mut CpuState = core.state_mut();
    *state.segment_mut(SegmentRegister::Cs) = code.segment;
    *state.segment_mut(SegmentRegister::Ss) = ss.segment;
    Ok(())
}
