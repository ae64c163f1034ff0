//! Loading and inspecting segment and table registers (SDM vol. 2: MOV, POP, LDS, LGDT, LIDT, LLDT, LTR, SGDT,
//! SIDT, SLDT, STR, VERR, VERW, LAR, LSL, ARPL).

use arch::x86::paging::is_canonical;
use arch::x86::segment::system_type;
use arch::x86::{CpuState, Cr4, Exception, Rflags, Segment, SegmentRegister, TableRegister, Vector};

use super::descriptor::{Descriptor, gp, is_null, rpl, selector_fault};
use super::stack::null_ss;
use super::{Core, require_cpl0, require_protected};

/// MOV, POP or LDS/LES/LSS/LFS/LGS of `selector` into `register`. The interrupt shadow of MOV SS and POP SS
/// is the caller's, as LSS has none.
pub(crate) fn load_segment(
    core: &mut dyn Core,
    register: SegmentRegister,
    selector: u16,
) -> Result<(), Exception> {
    let segment = match register {
        SegmentRegister::Cs => return Err(Exception::UD),
        _ if !core.state().is_protected() || core.state().is_vm86() => {
            real_segment(core.state(), register, selector)
        }
        SegmentRegister::Ss => checked_ss(core, selector)?,
        _ => checked_data(core, selector, Vector::GeneralProtection)?,
    };
    *core.state_mut().segment_mut(register) = segment;
    core.mode_changed();
    Ok(())
}

/// What real and virtual-8086 mode put into a segment register. Real mode keeps limit and attributes, which
/// is how "unreal" mode works.
pub(super) fn real_segment(state: &CpuState, register: SegmentRegister, selector: u16) -> Segment {
    if state.is_vm86() {
        return Segment::real_mode(selector, 0xf3);
    }
    let old = state.segment(register);
    if old.is_unusable() {
        return Segment::real_mode(selector, 0x93);
    }
    Segment { base: u64::from(selector) << 4, selector, ..*old }
}

/// SS for code that stays at its privilege level.
fn checked_ss(core: &mut dyn Core, selector: u16) -> Result<Segment, Exception> {
    let cpl = core.state().cpl();
    if is_null(selector) {
        let allowed = core.state().is_64bit_code() && cpl < 3 && rpl(selector) == cpl;
        return if allowed { Ok(null_ss(selector, cpl)) } else { Err(Exception::GP0) };
    }
    let mut ss = Descriptor::fetch(core, selector, Vector::GeneralProtection, 0)?;
    if rpl(selector) != cpl || ss.segment.dpl() != cpl || !ss.is_writable_data() {
        return Err(gp(selector));
    }
    if !ss.segment.is_present() {
        return Err(selector_fault(Vector::StackFault, selector, 0));
    }
    ss.mark_accessed(core)?;
    Ok(ss.segment)
}

/// DS, ES, FS or GS; `vector` is what a bad selector raises (#GP, or #TS in a task switch).
pub(super) fn checked_data(core: &mut dyn Core, selector: u16, vector: Vector) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Ok(Segment::new(selector, 0, 0, Segment::UNUSABLE));
    }
    let mut data = Descriptor::fetch(core, selector, vector, 0)?;
    let readable = !data.segment.is_code() || data.segment.access & Segment::WRITABLE != 0;
    let inner = rpl(selector).max(core.state().cpl()) > data.segment.dpl();
    if !data.segment.is_code_or_data() || !readable || (inner && !data.is_conforming()) {
        return Err(selector_fault(vector, selector, 0));
    }
    if !data.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
    }
    data.mark_accessed(core)?;
    Ok(data.segment)
}

/// LGDT with a base already cut to the operand size.
pub(crate) fn lgdt(core: &mut dyn Core, limit: u16, base: u64) -> Result<(), Exception> {
    core.state_mut().gdtr = checked_table(core.state(), limit, base)?;
    Ok(())
}

/// LIDT with a base already cut to the operand size.
pub(crate) fn lidt(core: &mut dyn Core, limit: u16, base: u64) -> Result<(), Exception> {
    core.state_mut().idtr = checked_table(core.state(), limit, base)?;
    Ok(())
}

fn checked_table(state: &CpuState, limit: u16, base: u64) -> Result<TableRegister, Exception> {
    require_cpl0(state)?;
    if !is_canonical(base) {
        return Err(Exception::GP0);
    }
    Ok(TableRegister { base, limit, reserved: [0; 3] })
}

/// #GP(0) at CPL 1-3 with CR4.UMIP: SGDT, SIDT, SLDT, STR and SMSW show a kernel's secrets.
pub(super) fn check_umip(state: &CpuState) -> Result<(), Exception> {
    if state.cr4 & Cr4::UMIP.bits() != 0 && state.cpl() != 0 { Err(Exception::GP0) } else { Ok(()) }
}

/// SGDT: what to store.
pub(crate) fn sgdt(core: &mut dyn Core) -> Result<TableRegister, Exception> {
    check_umip(core.state())?;
    Ok(core.state().gdtr)
}

/// SIDT: what to store.
pub(crate) fn sidt(core: &mut dyn Core) -> Result<TableRegister, Exception> {
    check_umip(core.state())?;
    Ok(core.state().idtr)
}

/// SLDT: the selector to store.
pub(crate) fn sldt(core: &mut dyn Core) -> Result<u16, Exception> {
    require_protected(core.state())?;
    check_umip(core.state())?;
    Ok(core.state().ldtr.selector)
}

/// STR: the selector to store.
pub(crate) fn str(core: &mut dyn Core) -> Result<u16, Exception> {
    require_protected(core.state())?;
    check_umip(core.state())?;
    Ok(core.state().tr.selector)
}

/// LLDT.
pub(crate) fn lldt(core: &mut dyn Core, selector: u16) -> Result<(), Exception> {
    require_protected(core.state())?;
    require_cpl0(core.state())?;
    core.state_mut().ldtr = checked_ldt(core, selector, Vector::GeneralProtection)?;
    Ok(())
}

/// The LDT `selector` names; `vector` is what a bad one raises (#GP, or #TS in a task switch).
pub(super) fn checked_ldt(core: &mut dyn Core, selector: u16, vector: Vector) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Ok(Segment::new(selector, 0, 0, Segment::UNUSABLE));
    }
    let bad = selector_fault(vector, selector, 0);
    if selector & 4 != 0 {
        return Err(bad);
    }
    let mut ldt = Descriptor::fetch(core, selector, vector, 0)?;
    if !ldt.is_system(system_type::LDT) {
        return Err(bad);
    }
    if !ldt.segment.is_present() {
        // In a task switch an absent LDT is an invalid TSS too.
        let absent = if vector == Vector::InvalidTss { vector } else { Vector::SegmentNotPresent };
        return Err(selector_fault(absent, selector, 0));
    }
    ldt.read_upper(core, vector, 0)?;
    if !is_canonical(ldt.segment.base) {
        return Err(bad);
    }
    Ok(ldt.segment)
}

/// LTR.
pub(crate) fn ltr(core: &mut dyn Core, selector: u16) -> Result<(), Exception> {
    require_protected(core.state())?;
    require_cpl0(core.state())?;
    if is_null(selector) {
        return Err(Exception::GP0);
    }
    if selector & 4 != 0 {
        return Err(gp(selector));
    }
    let mut tss = Descriptor::fetch(core, selector, Vector::GeneralProtection, 0)?;
    let available16 = tss.is_system(system_type::TSS16_AVAILABLE) && !core.state().is_long_mode();
    if !tss.is_system(system_type::TSS_AVAILABLE) && !available16 {
        return Err(gp(selector));
    }
    if !tss.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
    }
    tss.read_upper(core, Vector::GeneralProtection, 0)?;
    if !is_canonical(tss.segment.base) {
        return Err(gp(selector));
    }
    tss.mark_busy(core)?;
    core.state_mut().tr = tss.segment;
    Ok(())
}

/// VERR: sets ZF if `selector` may be read.
pub(crate) fn verr(core: &mut dyn Core, selector: u16) -> Result<(), Exception> {
    let ok = inspect(core, selector)?.is_some_and(|d| {
        d.segment.is_code_or_data() && (!d.segment.is_code() || d.segment.access & Segment::WRITABLE != 0)
    });
    set_zf(core.state_mut(), ok);
    Ok(())
}

/// VERW: sets ZF if `selector` may be written.
pub(crate) fn verw(core: &mut dyn Core, selector: u16) -> Result<(), Exception> {
    let ok = inspect(core, selector)?.is_some_and(|d| d.is_writable_data());
    set_zf(core.state_mut(), ok);
    Ok(())
}

/// LAR: sets ZF; the access rights to store, or `None` to leave the destination.
pub(crate) fn lar(core: &mut dyn Core, selector: u16) -> Result<Option<u32>, Exception> {
    use system_type::*;
    const LEGACY: &[u8] =
        &[TSS16_AVAILABLE, LDT, TSS16_BUSY, CALL_GATE16, TASK_GATE, TSS_AVAILABLE, TSS_BUSY, CALL_GATE];
    const LONG: &[u8] = &[LDT, TSS_AVAILABLE, TSS_BUSY, CALL_GATE];
    let found = inspect(core, selector)?.filter(|d| is_allowed_kind(core.state(), d, LEGACY, LONG));
    set_zf(core.state_mut(), found.is_some());
    Ok(found.map(|d| (d.raw() >> 32) as u32 & 0x00ff_ff00))
}

/// LSL: sets ZF; the limit in bytes to store, or `None` to leave the destination.
pub(crate) fn lsl(core: &mut dyn Core, selector: u16) -> Result<Option<u32>, Exception> {
    use system_type::*;
    const LEGACY: &[u8] = &[TSS16_AVAILABLE, LDT, TSS16_BUSY, TSS_AVAILABLE, TSS_BUSY];
    const LONG: &[u8] = &[LDT, TSS_AVAILABLE, TSS_BUSY];
    let found = inspect(core, selector)?.filter(|d| is_allowed_kind(core.state(), d, LEGACY, LONG));
    set_zf(core.state_mut(), found.is_some());
    Ok(found.map(|d| d.segment.limit))
}

fn is_allowed_kind(state: &CpuState, d: &Descriptor, legacy: &[u8], long: &[u8]) -> bool {
    let kinds = if state.is_long_mode() { long } else { legacy };
    d.segment.is_code_or_data() || kinds.contains(&d.segment.kind())
}

/// The descriptor `selector` names if the running code may know of it.
fn inspect(core: &mut dyn Core, selector: u16) -> Result<Option<Descriptor>, Exception> {
    require_protected(core.state())?;
    if is_null(selector) {
        return Ok(None);
    }
    let outside = gp(selector);
    let descriptor = match Descriptor::fetch(core, selector, Vector::GeneralProtection, 0) {
        Ok(descriptor) => descriptor,
        Err(fault) if fault == outside => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let inner = rpl(selector).max(core.state().cpl()) > descriptor.segment.dpl();
    Ok((descriptor.is_conforming() || !inner).then_some(descriptor))
}

/// ARPL: sets ZF; the adjusted selector to store, or `None` to leave the destination.
pub(crate) fn arpl(core: &mut dyn Core, destination: u16, source: u16) -> Result<Option<u16>, Exception> {
    require_protected(core.state())?;
    let raise = rpl(destination) < rpl(source);
    set_zf(core.state_mut(), raise);
    Ok(raise.then_some(destination & !3 | source & 3))
}

fn set_zf(state: &mut CpuState, on: bool) {
    let zf = Rflags::ZF.bits();
    state.rflags = if on { state.rflags | zf } else { state.rflags & !zf };
}
