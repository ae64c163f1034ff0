//! Delivery of exceptions and interrupts in every mode, with double and triple faults
//! (SDM vol. 3 ch. 6, 20.1.4, 20.3; vol. 2 "INT n").
//!
//! ```text
//!            deliver ──► inject ──► real mode: vector table at IDTR
//!               ▲          │        long mode: 16-byte gates, IST
//!   second fault│          │        protected: interrupt, trap, task gates
//!               └─escalate─┘        VM86 + VME: redirected to the task's own table
//! ```

use arch::x86::paging::is_canonical;
use arch::x86::segment::system_type;
use arch::x86::{CpuState, Cr4, Exception, Rflags, Segment, SegmentRegister, Vector};

use super::descriptor::{Descriptor, Gate, check_target, is_null, rpl, selector_fault};
use super::far::enter;
use super::flags::{iopl, virtual_flags};
use super::segments::real_segment;
use super::stack::{Stack, inner_stack, null_ss, tss64_stack};
use super::task::{self, Reason, Switch};
use super::{Access, Core, OperandSize, RSP, debug, read, read_system};

/// Something to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A fault or trap: `state.rip` is the address to return to.
    Exception(Exception),
    /// A maskable external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An instruction that interrupts. `state.rip` is still its own address, which its faults need.
    Software { vector: u8, kind: SoftwareKind, next_rip: u64 },
}

/// Which instruction interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SoftwareKind {
    /// INT n: checks the gate's DPL, and IOPL in virtual-8086 mode.
    IntN,
    /// INT3 or INTO: checks the gate's DPL.
    Trap,
    /// INT1: checks nothing, as if it were external.
    Int1,
}

/// The processor has stopped for good: a triple fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shutdown {
    /// What led there, for a person.
    pub reason: String,
}

impl std::fmt::Display for Shutdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Serial faults (benign after benign) before we call it a loop no hardware leaves either.
const MAX_SERIAL_FAULTS: u32 = 16;

/// An event, reduced to what delivery depends on.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    vector: u8,
    error_code: Option<u32>,
    return_rip: u64,
    /// The EXT bit of error codes: not caused by an instruction that asked for an interrupt.
    ext: u32,
    software: Option<SoftwareKind>,
    /// RFLAGS to push.
    rflags: u64,
}

impl Delivery {
    fn of(state: &CpuState, event: &Event) -> Self {
        let (rip, rflags) = (state.rip, state.rflags);
        let plain = Self { vector: 2, error_code: None, return_rip: rip, ext: 1, software: None, rflags };
        match *event {
            Event::Nmi => plain,
            Event::Interrupt(vector) => Self { vector, ..plain },
            Event::Exception(e) => {
                // Faults push RF so that the retried instruction does not hit its breakpoint again.
                let fault = !matches!(e.vector, Vector::Debug | Vector::Nmi | Vector::MachineCheck);
                Self {
                    vector: e.vector as u8,
                    error_code: e.vector.has_error_code().then_some(e.error_code),
                    rflags: if fault { rflags | Rflags::RF.bits() } else { rflags },
                    ..plain
                }
            }
            Event::Software { vector, kind, next_rip } => Self {
                vector,
                return_rip: next_rip,
                ext: u32::from(kind == SoftwareKind::Int1),
                software: Some(kind),
                rflags: rflags & !Rflags::RF.bits(),
                ..plain
            },
        }
    }

    /// #GP naming the entry of the interrupt table.
    fn gp(&self) -> Exception {
        self.entry_fault(Vector::GeneralProtection)
    }

    fn entry_fault(&self, vector: Vector) -> Exception {
        Exception::with_code(vector, u32::from(self.vector) << 3 | 2 | self.ext)
    }

    fn selector_fault(&self, vector: Vector, selector: u16) -> Exception {
        selector_fault(vector, selector, self.ext)
    }
}

/// Delivers `event`, and the faults its delivery raises.
///
/// # Errors
/// [`Shutdown`] after a triple fault.
pub(crate) fn deliver(core: &mut dyn Core, event: Event) -> Result<(), Shutdown> {
    let mut event = event;
    for _ in 0..MAX_SERIAL_FAULTS {
        if let Event::Exception(Exception { vector: Vector::PageFault, address, .. }) = event {
            core.state_mut().cr2 = address;
        }
        let delivery = Delivery::of(core.state(), &event);
        match inject(core, &delivery) {
            Ok(()) => {
                finish(core.state_mut(), &event);
                return Ok(());
            }
            Err(second) => event = escalate(core.state_mut(), event, second)?,
        }
    }
    Err(Shutdown { reason: format!("faults without end while delivering {event:x?}") })
}

/// What delivery changes beside control flow.
fn finish(state: &mut CpuState, event: &Event) {
    state.events.halted = false;
    state.events.interrupt_shadow = false;
    match event {
        Event::Nmi => state.events.nmi_blocked = true,
        Event::Exception(Exception { vector: Vector::Debug, .. }) => state.dr[7] &= !debug::DR7_GD,
        _ => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(event: &Event) -> Class {
    let Event::Exception(e) = event else { return Class::Benign };
    match e.vector {
        Vector::DivideError
        | Vector::InvalidTss
        | Vector::SegmentNotPresent
        | Vector::StackFault
        | Vector::GeneralProtection => Class::Contributory,
        Vector::PageFault => Class::PageFault,
        Vector::DoubleFault => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What to deliver after `second` was raised while delivering `first` (SDM vol. 3 table 6-5).
fn escalate(state: &mut CpuState, first: Event, second: Exception) -> Result<Event, Shutdown> {
    if second.vector == Vector::PageFault {
        state.cr2 = second.address;
    }
    let next = Event::Exception(second);
    let double = match (class(&first), class(&next)) {
        (_, Class::Benign) | (Class::Benign, _) | (Class::Contributory, Class::PageFault) => false,
        (Class::DoubleFault, _) => {
            let cs = state.segment(SegmentRegister::Cs).selector;
            let reason = format!(
                "triple fault: {:?} (error code {:#x}) while delivering a double fault at {cs:04x}:{:#x}",
                second.vector, second.error_code, state.rip
            );
            return Err(Shutdown { reason });
        }
        _ => true,
    };
    Ok(if double { Event::Exception(Exception::new(Vector::DoubleFault)) } else { next })
}

fn inject(core: &mut dyn Core, d: &Delivery) -> Result<(), Exception> {
    let state = core.state();
    if !state.is_protected() {
        return real_mode(core, d);
    }
    if state.is_long_mode() {
        return long_mode(core, d);
    }
    if state.is_vm86() && d.software == Some(SoftwareKind::IntN) {
        if state.cr4 & Cr4::VME.bits() != 0 && is_redirected(core, d.vector)? {
            return redirected(core, d);
        }
        if iopl(core.state()) < 3 {
            return Err(Exception::GP0);
        }
    }
    protected_mode(core, d)
}

/// Real mode: the table of far pointers at IDTR.
fn real_mode(core: &mut dyn Core, d: &Delivery) -> Result<(), Exception> {
    let idtr = core.state().idtr;
    let at = u64::from(d.vector) * 4;
    if at + 3 > u64::from(idtr.limit) {
        return Err(d.gp());
    }
    let entry = read_system::<4>(core, idtr.base, at)?;
    let clear = Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF;
    enter_real(core, d.rflags, d.return_rip, entry, clear)
}

/// Pushes FLAGS, CS and IP as 16-bit values and goes to the far pointer `entry`.
fn enter_real(
    core: &mut dyn Core,
    pushed_flags: u64,
    return_rip: u64,
    entry: u64,
    clear: Rflags,
) -> Result<(), Exception> {
    let mut stack = Stack::current(core.state());
    let cs = core.state().segment(SegmentRegister::Cs).selector;
    for value in [pushed_flags, u64::from(cs), return_rip] {
        stack.push(core, value, OperandSize::Word)?;
    }
    let (selector, ip) = ((entry >> 16) as u16, entry & 0xffff);
    let code = real_segment(core.state(), SegmentRegister::Cs, selector);
    check_target(core.state(), &code, ip, 0)?;
    let state = core.state_mut();
    state.gpr[RSP] = stack.rsp();
    state.rflags &= !clear.bits();
    enter(core, code, ip);
    Ok(())
}

/// Whether the redirection bitmap of the TSS sends INT `vector` to the virtual-8086 task's own table.
fn is_redirected(core: &mut dyn Core, vector: u8) -> Result<bool, Exception> {
    let tr = core.state().tr;
    if tr.is_unusable() || tr.kind() != system_type::TSS_BUSY || tr.limit < 0x67 {
        return Err(Exception::GP0);
    }
    let map = read_system::<2>(core, tr.base, 0x66)?;
    let at = map.checked_sub(32).ok_or(Exception::GP0)? + u64::from(vector / 8);
    if at > u64::from(tr.limit) {
        return Err(Exception::GP0);
    }
    let byte = read_system::<1>(core, tr.base, at)?;
    Ok(byte >> (vector % 8) & 1 == 0)
}

/// INT n in virtual-8086 mode, handled as the 8086 would with the table at linear address 0.
fn redirected(core: &mut dyn Core, d: &Delivery) -> Result<(), Exception> {
    let entry = read::<4>(core, u64::from(d.vector) * 4, Access::at(3))?;
    let full = iopl(core.state()) == 3;
    let pushed = if full { d.rflags } else { virtual_flags(d.rflags) };
    let enable = if full { Rflags::IF } else { Rflags::VIF };
    enter_real(core, pushed, d.return_rip, entry, enable | Rflags::TF | Rflags::RF)
}

/// Protected mode with 32-bit paging or none: 8-byte gates.
fn protected_mode(core: &mut dyn Core, d: &Delivery) -> Result<(), Exception> {
    use system_type::*;
    let gate = read_gate(core, d, 8)?;
    match gate.kind {
        TASK_GATE => through_task_gate(core, d, &gate),
        INTERRUPT_GATE16 | TRAP_GATE16 | INTERRUPT_GATE | TRAP_GATE => through_gate(core, d, &gate),
        _ => Err(d.gp()),
    }
}

/// Reads and checks the IDT entry of the delivery, `bytes` long.
fn read_gate(core: &mut dyn Core, d: &Delivery, bytes: u64) -> Result<Gate, Exception> {
    use system_type::*;
    let idtr = core.state().idtr;
    let at = u64::from(d.vector) * bytes;
    if at + bytes - 1 > u64::from(idtr.limit) {
        return Err(d.gp());
    }
    let raw = read_system::<8>(core, idtr.base, at)?;
    let upper = if bytes == 16 { read_system::<8>(core, idtr.base, at + 8)? } else { 0 };
    let gate = Gate::decode(raw, upper);
    let known = match gate.kind {
        INTERRUPT_GATE | TRAP_GATE => true,
        TASK_GATE | INTERRUPT_GATE16 | TRAP_GATE16 => bytes == 8,
        _ => false,
    };
    let checks_dpl = matches!(d.software, Some(SoftwareKind::IntN | SoftwareKind::Trap));
    if !known || (checks_dpl && gate.dpl < core.state().cpl()) {
        return Err(d.gp());
    }
    if !gate.present {
        return Err(d.entry_fault(Vector::SegmentNotPresent));
    }
    Ok(gate)
}

fn through_task_gate(core: &mut dyn Core, d: &Delivery, gate: &Gate) -> Result<(), Exception> {
    let to = Switch {
        selector: gate.selector,
        reason: Reason::Interrupt,
        next_rip: d.return_rip,
        rflags: d.rflags,
        ext: d.ext,
    };
    task::switch(core, to)?;
    if let Some(code) = d.error_code {
        let wide = core.state().tr.kind() == system_type::TSS_BUSY;
        let size = if wide { OperandSize::Dword } else { OperandSize::Word };
        let mut stack = Stack::current(core.state());
        stack.push(core, u64::from(code), size)?;
        core.state_mut().gpr[RSP] = stack.rsp();
    }
    Ok(())
}

/// The code segment of an interrupt or trap gate.
fn handler_code(core: &mut dyn Core, d: &Delivery, gate: &Gate) -> Result<Descriptor, Exception> {
    let selector = gate.selector;
    let bad = d.selector_fault(Vector::GeneralProtection, selector);
    if is_null(selector) {
        return Err(bad);
    }
    let mut code = Descriptor::fetch(core, selector, Vector::GeneralProtection, d.ext)?;
    if !code.segment.is_code() || code.segment.dpl() > core.state().cpl() {
        return Err(bad);
    }
    if core.state().is_long_mode() {
        let shape = code.segment.access & (Segment::LONG | Segment::BIG);
        if shape != Segment::LONG {
            return Err(bad);
        }
    }
    if !code.segment.is_present() {
        return Err(d.selector_fault(Vector::SegmentNotPresent, selector));
    }
    code.mark_accessed(core)?;
    let cpl = if code.is_conforming() { core.state().cpl() } else { code.segment.dpl() };
    code.segment.selector = selector & !3 | u16::from(cpl);
    Ok(code)
}

fn through_gate(core: &mut dyn Core, d: &Delivery, gate: &Gate) -> Result<(), Exception> {
    let code = handler_code(core, d, gate)?;
    let (cpl, new_cpl) = (core.state().cpl(), rpl(code.segment.selector));
    let from_vm86 = core.state().is_vm86();
    if from_vm86 && new_cpl != 0 {
        return Err(d.selector_fault(Vector::GeneralProtection, gate.selector));
    }
    let size = if gate.is_16bit() { OperandSize::Word } else { OperandSize::Dword };
    let state = core.state();
    let old_ss = *state.segment(SegmentRegister::Ss);
    let old_rsp = state.gpr[RSP];
    let mut ss = old_ss;
    let mut stack;
    if new_cpl < cpl {
        let (inner, rsp) = inner_stack(core, new_cpl, d.ext)?;
        ss = inner;
        let fault = d.selector_fault(Vector::StackFault, ss.selector);
        stack = Stack::new(ss, rsp, false, new_cpl, fault);
        check_target(core.state(), &code.segment, gate.offset, d.ext)?;
        if from_vm86 {
            push_vm86_segments(core, &mut stack, size)?;
        }
        stack.push(core, u64::from(old_ss.selector), size)?;
        stack.push(core, old_rsp, size)?;
    } else {
        let fault = Exception::with_code(Vector::StackFault, d.ext);
        stack = Stack::new(ss, old_rsp, false, cpl, fault);
        check_target(core.state(), &code.segment, gate.offset, d.ext)?;
    }
    push_frame(core, d, &mut stack, size)?;
    if from_vm86 {
        clear_vm86_segments(core.state_mut());
    }
    arrive(core, gate, code.segment, ss, stack.rsp());
    Ok(())
}

/// Pushes flags, CS, IP and the error code.
fn push_frame(
    core: &mut dyn Core,
    d: &Delivery,
    stack: &mut Stack,
    size: OperandSize,
) -> Result<(), Exception> {
    let cs = core.state().segment(SegmentRegister::Cs).selector;
    stack.push(core, d.rflags, size)?;
    stack.push(core, u64::from(cs), size)?;
    stack.push(core, d.return_rip, size)?;
    match d.error_code {
        Some(code) => stack.push(core, u64::from(code), size),
        None => Ok(()),
    }
}

const VM86_SEGMENTS: [SegmentRegister; 4] =
    [SegmentRegister::Gs, SegmentRegister::Fs, SegmentRegister::Ds, SegmentRegister::Es];

fn push_vm86_segments(core: &mut dyn Core, stack: &mut Stack, size: OperandSize) -> Result<(), Exception> {
    for register in VM86_SEGMENTS {
        let selector = core.state().segment(register).selector;
        stack.push(core, u64::from(selector), size)?;
    }
    Ok(())
}

fn clear_vm86_segments(state: &mut CpuState) {
    for register in VM86_SEGMENTS {
        *state.segment_mut(register) = Segment::new(0, 0, 0, Segment::UNUSABLE);
    }
}

/// Starts the handler: the stack's and the code's registers, and the flags delivery clears.
fn arrive(core: &mut dyn Core, gate: &Gate, code: Segment, ss: Segment, rsp: u64) {
    let mut clear = Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM;
    if matches!(gate.kind, system_type::INTERRUPT_GATE | system_type::INTERRUPT_GATE16) {
        clear |= Rflags::IF;
    }
    let state = core.state_mut();
    state.rflags &= !clear.bits();
    *state.segment_mut(SegmentRegister::Ss) = ss;
    state.gpr[RSP] = rsp;
    enter(core, code, gate.offset);
}

/// Long mode: 16-byte gates, always a full frame on an aligned stack.
fn long_mode(core: &mut dyn Core, d: &Delivery) -> Result<(), Exception> {
    let gate = read_gate(core, d, 16)?;
    let code = handler_code(core, d, &gate)?;
    let (cpl, new_cpl) = (core.state().cpl(), rpl(code.segment.selector));
    let old_ss = *core.state().segment(SegmentRegister::Ss);
    let old_rsp = core.state().gpr[RSP];
    let ist = gate.count & 7;
    let rsp = match ist {
        0 if new_cpl == cpl => old_rsp,
        0 => tss64_stack(core, new_cpl, d.ext)?,
        _ => tss64_stack(core, 3 + ist, d.ext)?,
    };
    let ss = if new_cpl == cpl { old_ss } else { null_ss(u16::from(new_cpl), new_cpl) };
    if !is_canonical(gate.offset) {
        return Err(Exception::with_code(Vector::GeneralProtection, d.ext));
    }
    let fault = Exception::with_code(Vector::StackFault, d.ext);
    let mut stack = Stack::new(ss, rsp & !0xf, true, new_cpl, fault);
    stack.push(core, u64::from(old_ss.selector), OperandSize::Qword)?;
    stack.push(core, old_rsp, OperandSize::Qword)?;
    push_frame(core, d, &mut stack, OperandSize::Qword)?;
    arrive(core, &gate, code.segment, ss, stack.rsp());
    Ok(())
}
