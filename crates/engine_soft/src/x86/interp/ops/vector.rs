//! Whatever `hostexec` carries out: vector, x87, MMX and rare integer instructions.
// UNSAFETY: runs thunks on pointers to guest RAM, and reads its own records through `Op::imm`.

use arch::x86::{CpuState, Exception, Vector};
use iced_x86::{Instruction, Mnemonic};

use super::attempt;
use super::stack::{RBP, RSP};
use crate::x86::hostexec::{
    Access, Class, MAX_OPERAND_BYTES, MemoryOperand, OperandMemory, Pointers, Thunk, Trap, check_enabled,
    enter_mmx, leave_stack,
};
use crate::x86::interp::access::truncate_address;
use crate::x86::interp::cpu::{Cpu, Fault};
use crate::x86::interp::op::{Flow, Op, address};
use crate::x86::mmu::Intent;

/// What a thunk operation knows beside its `Op`; lives in the block cache's arena.
#[derive(Clone, Copy)]
pub struct Extra {
    /// The instruction's thunk.
    pub thunk: Thunk,
    /// The instruction, decoded.
    pub instruction: Instruction,
    /// Its first bytes.
    pub bytes: [u8; 15],
    /// Width of the code.
    pub bits: u8,
}

/// A bounce buffer, aligned for every instruction.
#[repr(C, align(64))]
struct Buffer([u8; MAX_OPERAND_BYTES]);

/// Runs the operation's thunk. `FLAGS` says that it reads or writes status flags.
pub fn run<const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    // SAFETY: the decoder put the address of an `Extra` in the arena here; no other reference to it exists.
    let extra = unsafe { &mut *(op.imm as *mut Extra) };
    cpu.state.rip = cpu.ip_of(op);
    if cpu.enabled_classes >> extra.thunk.class() as u16 & 1 == 0
        && let Err(exception) = check_enabled(extra.thunk.class(), &cpu.state)
    {
        return raise(cpu, exception);
    }
    if FLAGS {
        cpu.sync_flags();
    }
    let flow = if extra.thunk.is_scattered() { scattered(cpu, op, extra) } else { direct(cpu, op, extra) };
    if FLAGS {
        cpu.reload_flags();
    }
    flow
}

/// The classes whose check depends on control registers alone and passes, as bits.
pub fn enabled_classes(state: &CpuState) -> u16 {
    [Class::Integer, Class::VexInteger, Class::Sse, Class::Avx]
        .into_iter()
        .filter(|class| check_enabled(*class, state).is_ok())
        .fold(0, |bits, class| bits | 1 << class as u16)
}

fn raise(cpu: &mut Cpu, exception: Exception) -> Flow {
    cpu.fault = exception;
    Flow::Fault
}

fn direct(cpu: &mut Cpu, op: &Op, extra: &mut Extra) -> Flow {
    let Some(operand) = extra.thunk.memory() else {
        return enter(cpu, op, extra, std::ptr::null_mut());
    };
    let size = usize::from(operand.size);
    let intent = if operand.access == Access::Read { Intent::Read } else { Intent::Write };
    if operand.alignment > 1 && is_misaligned(cpu, op, operand) {
        // Before limits and canonicality are looked at, so it cannot be the stack's fault either.
        cpu.fault = Exception::GP0;
        return Flow::Raised;
    }
    match resolve(cpu, op, extra, operand, intent) {
        Ok((_, Some(host))) => enter(cpu, op, extra, host),
        Ok((linear, None)) => in_pieces(cpu, op, extra, linear),
        Err(Fault) if intent == Intent::Write => refused_store(cpu, op, extra, size),
        Err(Fault) => Flow::Fault,
    }
}

/// The operand's linear address, checked, and its host address if it has one.
#[inline(always)]
fn resolve(
    cpu: &mut Cpu,
    op: &Op,
    extra: &Extra,
    operand: MemoryOperand,
    intent: Intent,
) -> Result<(u64, Option<*mut u8>), Fault> {
    let size = usize::from(operand.size);
    if is_image(size) {
        return resolve_image(cpu, op, size, intent);
    }
    let linear = cpu.operand_address(op, size, intent)?;
    if cpu.alignment_checks && !converts_halves(extra.instruction.mnemonic()) {
        cpu.check_operand_alignment(linear, size)?;
    }
    Ok((linear, cpu.host_range(linear, size, intent)?))
}

fn is_misaligned(cpu: &Cpu, op: &Op, operand: MemoryOperand) -> bool {
    cpu.based_address(op) & u64::from(operand.alignment - 1) != 0
}

/// Whether the operand is an 80-bit number or x87 state, which the processor accesses piece by piece.
fn is_image(size: usize) -> bool {
    matches!(size, 10 | 14 | 28 | 94 | 108)
}

/// As [`resolve`] for such operands: the first piece can fault before the last one exceeds the
/// segment, and one that is stored is tried at its ends first.
#[cold]
fn resolve_image(
    cpu: &mut Cpu,
    op: &Op,
    size: usize,
    intent: Intent,
) -> Result<(u64, Option<*mut u8>), Fault> {
    let linear = match cpu.operand_address(op, size, intent) {
        Ok(linear) => linear,
        Err(Fault) => {
            let refusal = cpu.fault;
            let first = cpu.operand_address(op, 2, intent)?;
            cpu.host_range(first, 2, intent)?;
            return cpu.fail(refusal);
        }
    };
    cpu.check_operand_alignment(linear, size)?;
    if intent == Intent::Write {
        cpu.probe_write(linear, 1)?;
        cpu.probe_write(linear.wrapping_add(size as u64 - 1), 1)?;
    }
    Ok((linear, cpu.host_range(linear, size, intent)?))
}

/// The conversions of half-precision numbers do not check alignment.
fn converts_halves(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Vcvtph2ps | Mnemonic::Vcvtps2ph)
}

/// The operand cannot be stored to; what the processor does before it finds out has happened all the same:
/// MMX instructions have left x87 state behind, VCVTPS2PH has raised its flags or errors, and an x87 store
/// that an unmasked error stops does not touch memory at all.
#[cold]
fn refused_store(cpu: &mut Cpu, op: &Op, extra: &mut Extra, size: usize) -> Flow {
    let refusal = cpu.fault;
    match extra.thunk.class() {
        Class::Mmx => leave_stack(&mut cpu.state),
        Class::X87 if stores_nothing(cpu, op, extra, size) => return Flow::Next,
        Class::Avx if extra.instruction.mnemonic() == Mnemonic::Vcvtps2ph => {
            let mut buffer = Buffer([0; MAX_OPERAND_BYTES]);
            if enter(cpu, op, extra, buffer.0.as_mut_ptr()) == Flow::Fault {
                return Flow::Fault;
            }
        }
        _ => {}
    }
    raise(cpu, refusal)
}

/// Whether the x87 store raises an error that keeps it from storing; if so it has been carried out, else
/// nothing has changed.
fn stores_nothing(cpu: &mut Cpu, op: &Op, extra: &mut Extra, size: usize) -> bool {
    let before = cpu.state.fx;
    for pattern in [0, 0xff] {
        cpu.state.fx = before;
        let mut buffer = Buffer([pattern; MAX_OPERAND_BYTES]);
        let done = enter(cpu, op, extra, buffer.0.as_mut_ptr()) == Flow::Next;
        if !done || buffer.0[..size].iter().any(|byte| *byte != pattern) {
            cpu.state.fx = before;
            return false;
        }
    }
    true
}

/// An operand that crosses pages, or is in one with code, or no RAM.
#[cold]
fn in_pieces(cpu: &mut Cpu, op: &Op, extra: &mut Extra, linear: u64) -> Flow {
    let Some(operand) = extra.thunk.memory() else { return Flow::Next };
    let size = usize::from(operand.size);
    let intent = if operand.access == Access::Read { Intent::Read } else { Intent::Write };
    if operand.atomic {
        return locked(cpu, op, extra, linear, size);
    }
    let mut buffer = Buffer([0; MAX_OPERAND_BYTES]);
    if intent == Intent::Write && cpu.probe_write(linear, size).is_err() {
        return refused_store(cpu, op, extra, size);
    }
    if operand.access != Access::Write {
        attempt!(cpu.load_bytes(linear, &mut buffer.0[..size]));
    }
    let flow = enter(cpu, op, extra, buffer.0.as_mut_ptr());
    if flow == Flow::Next && intent == Intent::Write {
        attempt!(cpu.store_bytes(linear, &buffer.0[..size]));
    }
    flow
}

/// A locked access that crosses a page, hits a page with code or reaches a device.
fn locked(cpu: &mut Cpu, op: &Op, extra: &mut Extra, linear: u64, size: usize) -> Flow {
    let shared = cpu.shared.clone();
    let _guard = shared.split_lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    attempt!(cpu.check_writable(linear, size));
    let mut buffer = Buffer([0; MAX_OPERAND_BYTES]);
    attempt!(cpu.load_bytes(linear, &mut buffer.0[..size]));
    let flow = enter(cpu, op, extra, buffer.0.as_mut_ptr());
    if flow == Flow::Next {
        attempt!(cpu.store_bytes(linear, &buffer.0[..size]));
    }
    flow
}

fn enter(cpu: &mut Cpu, op: &Op, extra: &mut Extra, memory: *mut u8) -> Flow {
    loop {
        let operand = truncate_address(op, cpu.effective_address(op));
        let at = Pointers { rip: cpu.state.rip, operand };
        // SAFETY: the thunk is this Cpu's; `memory` is a host range or a buffer of the operand's size and
        // alignment (guest pages are page-aligned in the host, so offsets agree).
        match unsafe { cpu.thunks.run(&extra.thunk, &mut cpu.state, memory, at) } {
            Ok(()) => return Flow::Next,
            Err(Trap::Exception(exception)) => {
                if extra.thunk.class() == Class::MmxSse {
                    enter_mmx(&mut cpu.state);
                }
                return raise(cpu, exception);
            }
            Err(Trap::Stale) => {
                let bits = u32::from(extra.bits);
                match cpu.thunks.compile(&extra.instruction, bits, &extra.bytes) {
                    Ok(thunk) => extra.thunk = thunk,
                    Err(_) => return raise(cpu, Exception::UD),
                }
            }
        }
    }
}

/// Gathers and masked moves reach memory element by element.
struct Elements<'a> {
    cpu: &'a mut Cpu,
    op: &'a Op,
}

impl Elements<'_> {
    fn linear(&mut self, offset: u64, len: usize, intent: Intent) -> Result<u64, Fault> {
        // An operand that begins below 64 KiB goes on there, with 16-bit addresses too: mostly past the segment's limit.
        let wraps = self.op.address & address::MASK16 == 0;
        let offset = if wraps { truncate_address(self.op, offset) } else { offset };
        self.cpu.segment_address(self.op.segment, offset, len, intent)
    }
}

impl OperandMemory for Elements<'_> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Exception> {
        self.linear(offset, data.len(), Intent::Read)
            .and_then(|linear| self.cpu.load_bytes(linear, data))
            .map_err(|Fault| self.cpu.fault)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Exception> {
        self.linear(offset, data.len(), Intent::Write)
            .and_then(|linear| self.cpu.store_bytes(linear, data))
            .map_err(|Fault| self.cpu.fault)
    }

    fn probe_write(&mut self, offset: u64, len: usize) -> Result<(), Exception> {
        self.linear(offset, len, Intent::Write)
            .and_then(|linear| self.cpu.probe_write(linear, len))
            .map_err(|Fault| self.cpu.fault)
    }
}

fn is_masked_bytes(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu)
}

fn scattered(cpu: &mut Cpu, op: &Op, extra: &Extra) -> Flow {
    let offset = truncate_address(op, cpu.effective_address(op));
    if cpu.alignment_checks && is_masked_bytes(extra.instruction.mnemonic()) {
        // After the segment's limit for the first byte, before that for the last.
        let first = cpu.segment_address(op.segment, offset, 1, Intent::Write);
        if first.and_then(|linear| cpu.check_alignment_of(linear, 8)).is_err() {
            if extra.thunk.class() == Class::Mmx {
                enter_mmx(&mut cpu.state);
            }
            return Flow::Fault;
        }
    }
    // The state is copied out and back because elements are accessed through the Cpu that holds it.
    let mut state = cpu.state.clone();
    let thunks = std::ptr::from_ref(&cpu.thunks);
    let mut elements = Elements { cpu, op };
    // SAFETY: `Elements` reaches the Cpu's memory side only; nothing there touches `thunks`.
    let result = unsafe { &*thunks }.run_scattered(
        &extra.thunk,
        &extra.instruction,
        offset,
        &mut state,
        &mut elements,
    );
    cpu.state = state;
    match result {
        Ok(()) => Flow::Next,
        Err(exception) => {
            let on_stack = op.base == RSP || op.base == RBP;
            if exception == Exception::GP0
                && extra.bits == 64
                && on_stack
                && op.address & address::SEGMENT == 0
            {
                return raise(cpu, Exception::new(Vector::StackFault));
            }
            raise(cpu, exception)
        }
    }
}

/// UD2 and everything that does not decode.
pub fn undefined(cpu: &mut Cpu, _: &Op) -> Flow {
    raise(cpu, Exception::UD)
}

/// An instruction of more than 15 bytes.
pub fn too_long(cpu: &mut Cpu, _: &Op) -> Flow {
    raise(cpu, Exception::new(Vector::GeneralProtection))
}

/// Whether instructions of `class` may touch status flags at all.
pub fn may_use_flags(class: Class, instruction: &Instruction) -> bool {
    let touched = instruction.rflags_read() | instruction.rflags_modified();
    touched != 0 || matches!(class, Class::Integer | Class::VexInteger)
}
