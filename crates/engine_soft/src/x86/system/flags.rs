//! RFLAGS as a whole, and the interrupt flag (SDM vol. 2 PUSHF, POPF, CLI, STI, CLAC, STAC, HLT, MONITOR; vol. 3 20.3,
//! 20.4 for VME and PVI).

use arch::x86::cpuid::Feature;
use arch::x86::{CpuState, Cr4, Exception, Gpr, Rflags};

use super::{Core, OperandSize, require_cpl0};

/// Every bit of RFLAGS that exists beside the fixed one.
pub(super) const ALL_FLAGS: u64 = Rflags::all().bits();

/// I/O privilege level.
pub(super) const fn iopl(state: &CpuState) -> u8 {
    (state.rflags >> 12 & 3) as u8
}

/// Which instruction takes flags from the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Popper {
    Popf,
    Iret,
}

/// RFLAGS after popping `value`: only what the mode and privilege allow changes.
pub(super) fn popped(state: &CpuState, value: u64, size: OperandSize, popper: Popper) -> u64 {
    let mut writable = Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT;
    let vm86 = state.is_vm86();
    let cpl = if state.is_protected() { state.cpl() } else { 0 };
    if cpl <= iopl(state) {
        writable |= Rflags::IF;
    }
    if cpl == 0 {
        writable |= Rflags::IOPL;
    }
    let mut cleared = Rflags::empty();
    if size != OperandSize::Word {
        writable |= Rflags::AC | Rflags::ID;
        match popper {
            Popper::Popf => cleared |= Rflags::RF,
            Popper::Iret => writable |= Rflags::RF,
        }
        if popper == Popper::Iret && cpl == 0 && state.is_protected() && !vm86 {
            writable |= Rflags::VIF | Rflags::VIP;
        }
    }
    let keep = state.rflags & !(writable | cleared).bits();
    keep | value & writable.bits() | Rflags::FIXED.bits()
}

/// RFLAGS after popping 16 bits in virtual-8086 mode with VME and IOPL below 3: IF stands for VIF.
pub(super) fn popped_virtual(state: &CpuState, value: u64) -> Result<u64, Exception> {
    let wants_interrupts = value & Rflags::IF.bits() != 0;
    let pending = state.rflags & Rflags::VIP.bits() != 0;
    if (wants_interrupts && pending) || value & Rflags::TF.bits() != 0 {
        return Err(Exception::GP0);
    }
    let writable = (Rflags::STATUS | Rflags::DF | Rflags::NT).bits();
    let vif = if wants_interrupts { Rflags::VIF.bits() } else { 0 };
    Ok(state.rflags & !writable & !Rflags::VIF.bits() | value & writable | vif | Rflags::FIXED.bits())
}

/// The 16-bit flags image such code sees: IOPL 3, and VIF in place of IF.
pub(super) const fn virtual_flags(rflags: u64) -> u64 {
    let vif = rflags & Rflags::VIF.bits() != 0;
    let without = rflags & !Rflags::IF.bits() | Rflags::IOPL.bits();
    if vif { without | Rflags::IF.bits() } else { without }
}

/// PUSHF: the value to push, to be cut to `size`.
pub(crate) fn pushf(core: &mut dyn Core, size: OperandSize) -> Result<u64, Exception> {
    let state = core.state();
    let image = state.rflags & !(Rflags::RF | Rflags::VM).bits();
    if !state.is_vm86() || iopl(state) == 3 {
        return Ok(image);
    }
    if state.cr4 & Cr4::VME.bits() == 0 || size != OperandSize::Word {
        return Err(Exception::GP0);
    }
    Ok(virtual_flags(image))
}

/// POPF: takes `value`, already popped and zero-extended. #GP must be raised before RSP changes.
pub(crate) fn popf(core: &mut dyn Core, size: OperandSize, value: u64) -> Result<(), Exception> {
    let state = core.state();
    let rflags = if state.is_vm86() && iopl(state) < 3 {
        if state.cr4 & Cr4::VME.bits() == 0 || size != OperandSize::Word {
            return Err(Exception::GP0);
        }
        popped_virtual(state, value)?
    } else {
        popped(state, value, size, Popper::Popf)
    };
    core.state_mut().rflags = rflags;
    core.mode_changed();
    Ok(())
}

/// Which flag CLI and STI work on.
fn interrupt_flag(state: &CpuState) -> Result<Rflags, Exception> {
    if !state.is_protected() || state.cpl() <= iopl(state) {
        return Ok(Rflags::IF);
    }
    let virtual_allowed = if state.is_vm86() { Cr4::VME } else { Cr4::PVI };
    if state.cpl() == 3 && state.cr4 & virtual_allowed.bits() != 0 {
        return Ok(Rflags::VIF);
    }
    Err(Exception::GP0)
}

/// CLI.
pub(crate) fn cli(core: &mut dyn Core) -> Result<(), Exception> {
    let flag = interrupt_flag(core.state())?;
    core.state_mut().rflags &= !flag.bits();
    core.mode_changed();
    Ok(())
}

/// STI; sets the interrupt shadow if interrupts were off.
pub(crate) fn sti(core: &mut dyn Core) -> Result<(), Exception> {
    let flag = interrupt_flag(core.state())?;
    let state = core.state_mut();
    if flag == Rflags::VIF && state.rflags & Rflags::VIP.bits() != 0 {
        return Err(Exception::GP0);
    }
    if flag == Rflags::IF && state.rflags & Rflags::IF.bits() == 0 {
        state.events.interrupt_shadow = true;
    }
    state.rflags |= flag.bits();
    core.mode_changed();
    Ok(())
}

/// CLAC.
pub(crate) fn clac(core: &mut dyn Core) -> Result<(), Exception> {
    require_smap(core)?;
    core.state_mut().rflags &= !Rflags::AC.bits();
    core.mode_changed();
    Ok(())
}

/// STAC.
pub(crate) fn stac(core: &mut dyn Core) -> Result<(), Exception> {
    require_smap(core)?;
    core.state_mut().rflags |= Rflags::AC.bits();
    core.mode_changed();
    Ok(())
}

fn require_smap(core: &dyn Core) -> Result<(), Exception> {
    if core.model().has(Feature::Smap) && core.state().cpl() == 0 { Ok(()) } else { Err(Exception::UD) }
}

/// HLT: marks the vCPU halted. The caller moves on to the next instruction, then waits.
pub(crate) fn hlt(core: &mut dyn Core) -> Result<(), Exception> {
    require_cpl0(core.state())?;
    core.state_mut().events.halted = true;
    Ok(())
}

/// MONITOR: checks only. No store wakes anybody, which MWAIT's freedom to wake at any time allows.
pub(crate) fn monitor(core: &mut dyn Core) -> Result<(), Exception> {
    require_monitor(core, 0)
}

/// MWAIT: wakes at once.
pub(crate) fn mwait(core: &mut dyn Core) -> Result<(), Exception> {
    require_monitor(core, 1)
}

fn require_monitor(core: &dyn Core, allowed_extensions: u32) -> Result<(), Exception> {
    let state = core.state();
    if !core.model().has(Feature::Monitor) || state.cpl() != 0 {
        return Err(Exception::UD);
    }
    let extensions = state.gpr[Gpr::Rcx as usize] as u32;
    if extensions & !allowed_extensions != 0 { Err(Exception::GP0) } else { Ok(()) }
}
