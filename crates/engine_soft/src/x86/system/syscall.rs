//! Fast system calls and the bases of FS and GS (SDM vol. 2 SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, RDFSBASE,
//! WRFSBASE).

use arch::x86::paging::is_canonical;
use arch::x86::{CpuState, Cr4, Efer, Exception, Gpr, Rflags, Segment, SegmentRegister};

use super::far::enter;
use super::{Core, OperandSize, RSP};

const RCX: usize = Gpr::Rcx as usize;
const RDX: usize = Gpr::Rdx as usize;
const R11: usize = Gpr::R11 as usize;

/// A flat 4 GiB segment's attributes without DPL: present, granular.
const FLAT: u32 = Segment::PRESENT | Segment::CODE_OR_DATA | Segment::GRANULAR | Segment::ACCESSED;

fn flat_code(selector: u16, cpl: u8, is_64bit: bool) -> Segment {
    let size = if is_64bit { Segment::LONG } else { Segment::BIG };
    let access = FLAT | Segment::CODE | Segment::WRITABLE | size | u32::from(cpl) << 5;
    Segment::new(selector & 0xfffc | u16::from(cpl), 0, u32::MAX, access)
}

fn flat_stack(selector: u16, cpl: u8) -> Segment {
    let access = FLAT | Segment::WRITABLE | Segment::BIG | u32::from(cpl) << 5;
    Segment::new(selector & 0xfffc | u16::from(cpl), 0, u32::MAX, access)
}

/// #UD unless 64-bit code runs and EFER.SCE is set: Intel has SYSCALL nowhere else.
fn require_syscall(state: &CpuState) -> Result<(), Exception> {
    let enabled = state.msrs.efer & Efer::SCE.bits() != 0;
    if enabled && state.is_64bit_code() { Ok(()) } else { Err(Exception::UD) }
}

/// SYSCALL.
pub(crate) fn syscall(core: &mut dyn Core, next_rip: u64) -> Result<(), Exception> {
    require_syscall(core.state())?;
    let state = core.state_mut();
    state.gpr[RCX] = next_rip;
    state.gpr[R11] = state.rflags & !Rflags::RF.bits();
    state.rflags = state.rflags & !state.msrs.sfmask & !Rflags::RF.bits() | Rflags::FIXED.bits();
    let selector = (state.msrs.star >> 32) as u16;
    *state.segment_mut(SegmentRegister::Ss) = flat_stack((selector & 0xfffc).wrapping_add(8), 0);
    let lstar = state.msrs.lstar;
    enter(core, flat_code(selector, 0, true), lstar);
    Ok(())
}

/// SYSRET to 64-bit code (`Qword`) or compatibility mode.
pub(crate) fn sysret(core: &mut dyn Core, size: OperandSize) -> Result<(), Exception> {
    require_syscall(core.state())?;
    let state = core.state_mut();
    let wide = size == OperandSize::Qword;
    let rcx = state.gpr[RCX];
    if state.cpl() != 0 || (wide && !is_canonical(rcx)) {
        return Err(Exception::GP0);
    }
    const RESTORED: u64 = 0x3c_7fd7;
    state.rflags = state.gpr[R11] & RESTORED | Rflags::FIXED.bits();
    let selector = (state.msrs.star >> 48) as u16;
    *state.segment_mut(SegmentRegister::Ss) = flat_stack(selector.wrapping_add(8), 3);
    let (code, rip) = if wide {
        (flat_code(selector.wrapping_add(16), 3, true), rcx)
    } else {
        (flat_code(selector, 3, false), rcx & 0xffff_ffff)
    };
    enter(core, code, rip);
    Ok(())
}

/// SYSENTER.
pub(crate) fn sysenter(core: &mut dyn Core) -> Result<(), Exception> {
    let state = core.state_mut();
    let selector = state.msrs.sysenter_cs as u16 & 0xfffc;
    if !state.is_protected() || selector == 0 {
        return Err(Exception::GP0);
    }
    let long = state.is_long_mode();
    let cut = |value: u64| if long { value } else { value & 0xffff_ffff };
    state.rflags &= !(Rflags::VM | Rflags::IF | Rflags::RF).bits();
    state.gpr[RSP] = cut(state.msrs.sysenter_esp);
    *state.segment_mut(SegmentRegister::Ss) = flat_stack(selector.wrapping_add(8), 0);
    let rip = cut(state.msrs.sysenter_eip);
    enter(core, flat_code(selector, 0, long), rip);
    Ok(())
}

/// SYSEXIT to 64-bit code (`Qword`) or 32-bit code.
pub(crate) fn sysexit(core: &mut dyn Core, size: OperandSize) -> Result<(), Exception> {
    let state = core.state_mut();
    let selector = state.msrs.sysenter_cs as u16 & 0xfffc;
    if !state.is_protected() || state.cpl() != 0 || selector == 0 {
        return Err(Exception::GP0);
    }
    let wide = size == OperandSize::Qword;
    let (mut rsp, mut rip) = (state.gpr[RCX], state.gpr[RDX]);
    if wide && !(is_canonical(rsp) && is_canonical(rip)) {
        return Err(Exception::GP0);
    }
    if !wide {
        rsp &= 0xffff_ffff;
        rip &= 0xffff_ffff;
    }
    let code = selector.wrapping_add(if wide { 32 } else { 16 });
    state.gpr[RSP] = rsp;
    *state.segment_mut(SegmentRegister::Ss) = flat_stack(code.wrapping_add(8), 3);
    enter(core, flat_code(code, 3, wide), rip);
    Ok(())
}

/// SWAPGS.
pub(crate) fn swapgs(core: &mut dyn Core) -> Result<(), Exception> {
    let state = core.state_mut();
    if !state.is_64bit_code() {
        return Err(Exception::UD);
    }
    if state.cpl() != 0 {
        return Err(Exception::GP0);
    }
    let gs = &mut state.segments[SegmentRegister::Gs as usize];
    std::mem::swap(&mut gs.base, &mut state.msrs.kernel_gs_base);
    Ok(())
}

/// RDFSBASE, RDGSBASE: the base, to be cut to the operand size.
pub(crate) fn read_base(core: &mut dyn Core, register: SegmentRegister) -> Result<u64, Exception> {
    require_fsgsbase(core.state())?;
    Ok(core.state().segment(register).base)
}

/// WRFSBASE, WRGSBASE with a value already zero-extended.
pub(crate) fn write_base(
    core: &mut dyn Core,
    register: SegmentRegister,
    value: u64,
) -> Result<(), Exception> {
    require_fsgsbase(core.state())?;
    if !is_canonical(value) {
        return Err(Exception::GP0);
    }
    core.state_mut().segment_mut(register).base = value;
    Ok(())
}

fn require_fsgsbase(state: &CpuState) -> Result<(), Exception> {
    let enabled = state.cr4 & Cr4::FSGSBASE.bits() != 0;
    if enabled && state.is_64bit_code() { Ok(()) } else { Err(Exception::UD) }
}
