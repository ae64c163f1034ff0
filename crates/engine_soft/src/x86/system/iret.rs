//! IRET in every mode (SDM vol. 2 "IRET/IRETD/IRETQ").

use arch::x86::{Cr4, Exception, Rflags, Segment, SegmentRegister, Vector};

use super::descriptor::{check_target, rpl};
use super::far::{enter, enter_outer, returned_code, returned_stack};
use super::flags::{self, iopl};
use super::segments::real_segment;
use super::stack::{Stack, set_rsp};
use super::task::{self, Reason, Switch};
use super::{Core, OperandSize, RSP, read_system};

/// IRET; `next_rip` is what a task switch saves. Ends the blocking of NMIs.
pub(crate) fn iret(core: &mut dyn Core, size: OperandSize, next_rip: u64) -> Result<(), Exception> {
    let state = core.state();
    if !state.is_protected() {
        real_mode(core, size)?;
    } else if state.is_vm86() {
        vm86_mode(core, size)?;
    } else if state.rflags & Rflags::NT.bits() != 0 {
        if state.is_long_mode() {
            return Err(Exception::GP0);
        }
        nested_task(core, next_rip)?;
    } else {
        protected_mode(core, size)?;
    }
    core.state_mut().events.nmi_blocked = false;
    Ok(())
}

/// Pops IP, CS and flags.
fn pop_frame(
    core: &mut dyn Core,
    stack: &mut Stack,
    size: OperandSize,
) -> Result<(u64, u16, u64), Exception> {
    // The flags first, as the processor's page faults show.
    let mut above = *stack;
    above.skip(2 * size.bytes() as u16);
    above.pop(core, size)?;
    let rip = stack.pop(core, size)?;
    let cs = stack.pop(core, size)? as u16;
    let rflags = stack.pop(core, size)?;
    Ok((rip, cs, rflags))
}

fn real_mode(core: &mut dyn Core, size: OperandSize) -> Result<(), Exception> {
    let mut stack = Stack::current(core.state());
    let (rip, selector, popped) = pop_frame(core, &mut stack, size)?;
    let code = real_segment(core.state(), SegmentRegister::Cs, selector);
    check_target(core.state(), &code, rip, 0)?;
    let rflags = flags::popped(core.state(), popped, size, flags::Popper::Iret);
    let state = core.state_mut();
    state.gpr[RSP] = stack.rsp();
    state.rflags = rflags;
    enter(core, code, rip);
    Ok(())
}

fn vm86_mode(core: &mut dyn Core, size: OperandSize) -> Result<(), Exception> {
    if iopl(core.state()) == 3 {
        return real_mode(core, size);
    }
    if core.state().cr4 & Cr4::VME.bits() == 0 || size != OperandSize::Word {
        return Err(Exception::GP0);
    }
    let mut stack = Stack::current(core.state());
    let (rip, selector, popped) = pop_frame(core, &mut stack, size)?;
    let code = real_segment(core.state(), SegmentRegister::Cs, selector);
    check_target(core.state(), &code, rip, 0)?;
    let rflags = flags::popped_virtual(core.state(), popped)?;
    let state = core.state_mut();
    state.gpr[RSP] = stack.rsp();
    state.rflags = rflags;
    enter(core, code, rip);
    Ok(())
}

/// Back to the task whose TSS the link of the current one names.
fn nested_task(core: &mut dyn Core, next_rip: u64) -> Result<(), Exception> {
    let tss = core.state().tr.base;
    let selector = read_system::<2>(core, tss, 0)? as u16;
    let rflags = core.state().rflags;
    task::switch(core, Switch { selector, reason: Reason::Return, next_rip, rflags, ext: 0 })
}

fn protected_mode(core: &mut dyn Core, size: OperandSize) -> Result<(), Exception> {
    let from_64bit = core.state().is_64bit_code();
    let mut stack = Stack::current(core.state());
    let (rip, selector, popped) = pop_frame(core, &mut stack, size)?;
    let to_vm86 = popped & Rflags::VM.bits() != 0 && size == OperandSize::Dword;
    if to_vm86 && core.state().cpl() == 0 && !core.state().is_long_mode() {
        return enter_vm86(core, stack, rip, selector, popped);
    }
    let code = returned_code(core, selector)?;
    let outer = rpl(selector) > core.state().cpl();
    let rflags = flags::popped(core.state(), popped, size, flags::Popper::Iret);
    if !outer && !from_64bit {
        check_target(core.state(), &code, rip, 0)?;
        let state = core.state_mut();
        state.gpr[RSP] = stack.rsp();
        state.rflags = rflags;
        enter(core, code, rip);
        return Ok(());
    }
    let rsp = stack.pop(core, size)?;
    let ss_selector = stack.pop(core, size)? as u16;
    let ss = returned_stack(core, ss_selector, &code)?;
    check_target(core.state(), &code, rip, 0)?;
    core.state_mut().rflags = rflags;
    if outer {
        enter_outer(core, code, rip, ss, rsp);
    } else {
        let to_64bit = core.state().is_long_mode() && code.access & Segment::LONG != 0;
        let state = core.state_mut();
        set_rsp(state, &ss, to_64bit, rsp);
        *state.segment_mut(SegmentRegister::Ss) = ss;
        enter(core, code, rip);
    }
    Ok(())
}

/// From privilege level 0 to virtual-8086 mode.
fn enter_vm86(
    core: &mut dyn Core,
    mut stack: Stack,
    rip: u64,
    selector: u16,
    popped: u64,
) -> Result<(), Exception> {
    const ORDER: [SegmentRegister; 5] = [
        SegmentRegister::Ss,
        SegmentRegister::Es,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ];
    let rsp = stack.pop(core, OperandSize::Dword)?;
    let mut selectors = [0u16; 5];
    for selector in &mut selectors {
        *selector = stack.pop(core, OperandSize::Dword)? as u16;
    }
    if rip > 0xffff {
        return Err(Exception::new(Vector::GeneralProtection));
    }
    let state = core.state_mut();
    state.rflags = popped & flags::ALL_FLAGS | Rflags::FIXED.bits();
    for (register, selector) in ORDER.into_iter().zip(selectors) {
        *state.segment_mut(register) = Segment::real_mode(selector, 0xf3);
    }
    state.gpr[RSP] = rsp;
    enter(core, Segment::real_mode(selector, 0xf3), rip);
    Ok(())
}
