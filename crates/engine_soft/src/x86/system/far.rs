//! Far JMP, CALL and RET, call gates included (SDM vol. 2, the instructions' pages; vol. 3 5.8).

use arch::x86::segment::system_type;
use arch::x86::{CpuState, Exception, Segment, SegmentRegister, Vector};

use super::descriptor::{
    Descriptor, Gate, check_code_size, check_target, gp, is_64bit, is_null, rpl, selector_fault,
};
use super::segments::real_segment;
use super::stack::{Stack, inner_stack, null_ss, set_rsp, tss64_stack};
use super::task::{self, Reason, Switch};
use super::{Core, OperandSize, RSP};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    Jump,
    Call,
}

/// Puts `code` into CS and goes to `rip`.
pub(super) fn enter(core: &mut dyn Core, code: Segment, rip: u64) {
    let state = core.state_mut();
    *state.segment_mut(SegmentRegister::Cs) = code;
    state.rip = rip;
    core.mode_changed();
}

/// Of a 64-bit offset what legacy code has room for.
fn fitted(state: &CpuState, code: &Segment, offset: u64) -> u64 {
    if is_64bit(state, code) { offset } else { offset & 0xffff_ffff }
}

/// Far JMP to `selector`:`offset`, the offset already cut to the operand size.
pub(crate) fn far_jump(
    core: &mut dyn Core,
    selector: u16,
    offset: u64,
    next_rip: u64,
) -> Result<(), Exception> {
    if !core.state().is_protected() || core.state().is_vm86() {
        let cs = real_code(core.state(), selector, offset)?;
        enter(core, cs, offset);
        return Ok(());
    }
    let target = fetch_target(core, selector)?;
    if !target.segment.is_code_or_data() {
        return through_system(core, target, Transfer::Jump, next_rip);
    }
    let cs = direct_code(core, target)?;
    let offset = fitted(core.state(), &cs, offset);
    check_target(core.state(), &cs, offset, 0)?;
    enter(core, cs, offset);
    Ok(())
}

/// Far CALL to `selector`:`offset`; `next_rip` is the return address.
pub(crate) fn far_call(
    core: &mut dyn Core,
    selector: u16,
    offset: u64,
    size: OperandSize,
    next_rip: u64,
) -> Result<(), Exception> {
    let cs = if !core.state().is_protected() || core.state().is_vm86() {
        real_code(core.state(), selector, offset)?
    } else {
        let target = fetch_target(core, selector)?;
        if !target.segment.is_code_or_data() {
            return through_system(core, target, Transfer::Call, next_rip);
        }
        direct_code(core, target)?
    };
    // As the processor does it: pushed the way the code called uses the stack, and before its limit is checked.
    let state = core.state();
    let ss = *state.segment(SegmentRegister::Ss);
    let fault = Exception::new(Vector::StackFault);
    let mut stack = Stack::new(ss, state.gpr[RSP], is_64bit(state, &cs), state.cpl(), fault);
    push_return(core, &mut stack, size, next_rip)?;
    let offset = fitted(core.state(), &cs, offset);
    if core.state().is_protected() && !core.state().is_vm86() {
        check_target(core.state(), &cs, offset, 0)?;
    }
    core.state_mut().gpr[RSP] = stack.rsp();
    enter(core, cs, offset);
    Ok(())
}

fn push_return(
    core: &mut dyn Core,
    stack: &mut Stack,
    size: OperandSize,
    next_rip: u64,
) -> Result<(), Exception> {
    let selector = core.state().segment(SegmentRegister::Cs).selector;
    stack.push(core, u64::from(selector), size)?;
    stack.push(core, next_rip, size)
}

/// CS for a far transfer in real or virtual-8086 mode.
fn real_code(state: &CpuState, selector: u16, offset: u64) -> Result<Segment, Exception> {
    if offset > u64::from(state.segment(SegmentRegister::Cs).limit) {
        return Err(Exception::GP0);
    }
    Ok(real_segment(state, SegmentRegister::Cs, selector))
}

fn fetch_target(core: &mut dyn Core, selector: u16) -> Result<Descriptor, Exception> {
    if is_null(selector) {
        return Err(Exception::GP0);
    }
    Descriptor::fetch(core, selector, Vector::GeneralProtection, 0)
}

/// CS for a direct JMP or CALL, which stays at the current privilege level.
fn direct_code(core: &mut dyn Core, mut target: Descriptor) -> Result<Segment, Exception> {
    let selector = target.segment.selector;
    let (cpl, dpl) = (core.state().cpl(), target.segment.dpl());
    let reachable = if target.is_conforming() { dpl <= cpl } else { rpl(selector) <= cpl && dpl == cpl };
    if !target.segment.is_code() || !reachable {
        return Err(gp(selector));
    }
    check_code_size(core.state(), &target.segment, 0)?;
    if !target.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
    }
    target.mark_accessed(core)?;
    target.segment.selector = selector & !3 | u16::from(cpl);
    Ok(target.segment)
}

/// JMP or CALL to a call gate, task gate or TSS.
fn through_system(
    core: &mut dyn Core,
    mut target: Descriptor,
    transfer: Transfer,
    next_rip: u64,
) -> Result<(), Exception> {
    use system_type::*;
    let selector = target.segment.selector;
    let long = core.state().is_long_mode();
    let kind = target.segment.kind();
    let known = match kind {
        CALL_GATE => true,
        CALL_GATE16 | TASK_GATE | TSS16_AVAILABLE | TSS_AVAILABLE => !long,
        _ => false,
    };
    if !known || target.segment.dpl() < core.state().cpl().max(rpl(selector)) {
        return Err(gp(selector));
    }
    if !target.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
    }
    let reason = if transfer == Transfer::Jump { Reason::Jump } else { Reason::Call };
    let rflags = core.state().rflags;
    let to = Switch { selector, reason, next_rip, rflags, ext: 0 };
    match kind {
        TSS16_AVAILABLE | TSS_AVAILABLE => task::switch(core, to),
        TASK_GATE => task::switch(core, Switch { selector: target.gate().selector, ..to }),
        _ => {
            target.read_upper(core, Vector::GeneralProtection, 0)?;
            through_call_gate(core, target.gate(), transfer, next_rip)
        }
    }
}

fn through_call_gate(
    core: &mut dyn Core,
    gate: Gate,
    transfer: Transfer,
    next_rip: u64,
) -> Result<(), Exception> {
    if is_null(gate.selector) {
        return Err(Exception::GP0);
    }
    let long = core.state().is_long_mode();
    let cpl = core.state().cpl();
    let mut code = Descriptor::fetch(core, gate.selector, Vector::GeneralProtection, 0)?;
    let dpl = code.segment.dpl();
    let inner = dpl < cpl && !code.is_conforming();
    let shape = code.segment.access & (Segment::LONG | Segment::BIG);
    let reachable = dpl <= cpl && !(inner && transfer == Transfer::Jump);
    if !code.segment.is_code() || !reachable || (long && shape != Segment::LONG) {
        return Err(gp(gate.selector));
    }
    if !code.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, gate.selector, 0));
    }
    code.mark_accessed(core)?;
    check_target(core.state(), &code.segment, gate.offset, 0)?;
    let new_cpl = if inner { dpl } else { cpl };
    code.segment.selector = gate.selector & !3 | u16::from(new_cpl);
    if inner {
        return call_inner(core, gate, code.segment, next_rip);
    }
    if transfer == Transfer::Call {
        let mut stack = gate_stack(core.state());
        push_return(core, &mut stack, gate_size(&gate, long), next_rip)?;
        core.state_mut().gpr[RSP] = stack.rsp();
    }
    enter(core, code.segment, gate.offset);
    Ok(())
}

/// The current stack, seen from the code a gate leads to: 64-bit code in long mode.
fn gate_stack(state: &CpuState) -> Stack {
    let ss = *state.segment(SegmentRegister::Ss);
    let fault = Exception::new(Vector::StackFault);
    Stack::new(ss, state.gpr[RSP], state.is_long_mode(), state.cpl(), fault)
}

fn gate_size(gate: &Gate, long: bool) -> OperandSize {
    match (long, gate.is_16bit()) {
        (true, _) => OperandSize::Qword,
        (_, true) => OperandSize::Word,
        _ => OperandSize::Dword,
    }
}

/// CALL through a gate to more privileged code: the stack comes from the TSS, parameters are copied.
fn call_inner(core: &mut dyn Core, gate: Gate, code: Segment, next_rip: u64) -> Result<(), Exception> {
    let long = core.state().is_long_mode();
    let dpl = code.dpl();
    let (ss, rsp) = if long {
        (null_ss(u16::from(dpl), dpl), tss64_stack(core, dpl, 0)?)
    } else {
        inner_stack(core, dpl, 0)?
    };
    let size = gate_size(&gate, long);
    let fault = selector_fault(Vector::StackFault, ss.selector, 0);
    let mut stack = Stack::new(ss, rsp, long, dpl, fault);
    let old_ss = core.state().segment(SegmentRegister::Ss).selector;
    let old_rsp = core.state().gpr[RSP];
    stack.push(core, u64::from(old_ss), size)?;
    stack.push(core, old_rsp, size)?;
    if !long {
        let mut parameters = [0; 31];
        let count = usize::from(gate.count);
        let mut from = Stack::current(core.state());
        for value in &mut parameters[..count] {
            *value = from.pop(core, size)?;
        }
        for value in parameters[..count].iter().rev() {
            stack.push(core, *value, size)?;
        }
    }
    push_return(core, &mut stack, size, next_rip)?;
    let state = core.state_mut();
    *state.segment_mut(SegmentRegister::Ss) = ss;
    state.gpr[RSP] = stack.rsp();
    enter(core, code, gate.offset);
    Ok(())
}

/// Far RET, releasing `parameter_bytes` after it.
pub(crate) fn far_return(
    core: &mut dyn Core,
    size: OperandSize,
    parameter_bytes: u16,
) -> Result<(), Exception> {
    let mut stack = Stack::current(core.state());
    let mut upper = stack;
    upper.skip(size.bytes() as u16);
    // The selector first, as the processor's page faults show.
    let selector = upper.pop(core, OperandSize::Word)? as u16;
    let rip = stack.pop(core, size)?;
    stack.skip(size.bytes() as u16);
    if !core.state().is_protected() || core.state().is_vm86() {
        let cs = real_code(core.state(), selector, rip)?;
        stack.skip(parameter_bytes);
        core.state_mut().gpr[RSP] = stack.rsp();
        enter(core, cs, rip);
        return Ok(());
    }
    let cs = returned_code(core, selector)?;
    let rip = fitted(core.state(), &cs, rip);
    if rpl(selector) == core.state().cpl() {
        check_target(core.state(), &cs, rip, 0)?;
        stack.skip(parameter_bytes);
        core.state_mut().gpr[RSP] = stack.rsp();
        enter(core, cs, rip);
        return Ok(());
    }
    stack.skip(parameter_bytes);
    let rsp = stack.pop(core, size)?;
    let ss_selector = stack.pop(core, size)? as u16;
    let ss = returned_stack(core, ss_selector, &cs)?;
    check_target(core.state(), &cs, rip, 0)?;
    enter_outer(core, cs, rip, ss, rsp);
    // The parameters are released from the outer stack as well.
    let mut outer = Stack::current(core.state());
    outer.skip(parameter_bytes);
    core.state_mut().gpr[RSP] = outer.rsp();
    Ok(())
}

/// CS for RET or IRET: same or outer privilege, as the selector's RPL says.
pub(super) fn returned_code(core: &mut dyn Core, selector: u16) -> Result<Segment, Exception> {
    let mut code = fetch_target(core, selector)?;
    let (dpl, to) = (code.segment.dpl(), rpl(selector));
    let reachable = if code.is_conforming() { dpl <= to } else { dpl == to };
    if !code.segment.is_code() || to < core.state().cpl() || !reachable {
        return Err(gp(selector));
    }
    check_code_size(core.state(), &code.segment, 0)?;
    if !code.segment.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
    }
    code.mark_accessed(core)?;
    Ok(code.segment)
}

/// SS for a return to `code` at the privilege level of its selector.
pub(super) fn returned_stack(
    core: &mut dyn Core,
    selector: u16,
    code: &Segment,
) -> Result<Segment, Exception> {
    let to = rpl(code.selector);
    if is_null(selector) {
        let allowed = is_64bit(core.state(), code) && to < 3 && rpl(selector) == to;
        return if allowed { Ok(null_ss(selector, to)) } else { Err(Exception::GP0) };
    }
    let mut ss = Descriptor::fetch(core, selector, Vector::GeneralProtection, 0)?;
    if rpl(selector) != to || ss.segment.dpl() != to || !ss.is_writable_data() {
        return Err(gp(selector));
    }
    if !ss.segment.is_present() {
        return Err(selector_fault(Vector::StackFault, selector, 0));
    }
    ss.mark_accessed(core)?;
    Ok(ss.segment)
}

/// Goes to outer code with its stack; data segments it may not use become null.
pub(super) fn enter_outer(core: &mut dyn Core, code: Segment, rip: u64, ss: Segment, rsp: u64) {
    let wide = is_64bit(core.state(), &code);
    let state = core.state_mut();
    set_rsp(state, &ss, wide, rsp);
    *state.segment_mut(SegmentRegister::Ss) = ss;
    let cpl = rpl(code.selector);
    for register in [SegmentRegister::Es, SegmentRegister::Ds, SegmentRegister::Fs, SegmentRegister::Gs] {
        let segment = state.segment_mut(register);
        let conforming = segment.is_code() && segment.access & Segment::CONFORMING != 0;
        if !segment.is_unusable() && segment.dpl() < cpl && !conforming {
            segment.selector = 0;
            segment.access |= Segment::UNUSABLE;
        }
    }
    enter(core, code, rip);
}
