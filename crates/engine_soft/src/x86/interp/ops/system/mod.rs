//! The way from decoded instructions to the system half: operands in, results out.
//!
//! Every operation here runs with RIP and RFLAGS canonical. Those after which the mode, the privilege or the
//! interrupt state may be another end their block.

use arch::x86::{Exception, SegmentRegister};

use crate::x86::interp::cpu::{Cpu, Fault, mode};
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::system::OperandSize;
use crate::x86::width::Width;

pub(in crate::x86::interp) use select::select;

const RAX: u16 = 0;
const RCX: u16 = 8;
const RDX: u16 = 16;

/// What the system functions return.
type Outcome<T = ()> = Result<T, Exception>;

/// Operand size of a width.
const fn operand_size<T: Width>() -> OperandSize {
    match T::SIZE {
        2 => OperandSize::Word,
        4 => OperandSize::Dword,
        _ => OperandSize::Qword,
    }
}

/// Calls into the system half with canonical state.
#[inline]
fn with_state<T>(cpu: &mut Cpu, op: &Op, act: impl FnOnce(&mut Cpu) -> Outcome<T>) -> Result<T, Flow> {
    cpu.state.rip = cpu.ip_of(op);
    cpu.sync_flags();
    let outcome = act(cpu);
    cpu.reload_flags();
    outcome.map_err(|exception| {
        cpu.fault = exception;
        Flow::Raised
    })
}

/// Unwraps `with_state`.
macro_rules! outcome {
    ($cpu:ident, $op:ident, $act:expr) => {
        match $crate::x86::interp::ops::system::with_state($cpu, $op, $act) {
            Ok(value) => value,
            Err(flow) => return flow,
        }
    };
}

/// Ends the block after an instruction that is no branch.
fn end(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.state.rip = cpu.next_ip(op);
    Flow::Jumped
}

/// An operation of the form `fn(&mut dyn Core) -> Outcome`, after which the block ends.
macro_rules! plain {
    ($name:ident, $doc:literal, $function:path) => {
        #[doc = $doc]
        pub fn $name(cpu: &mut Cpu, op: &Op) -> Flow {
            outcome!(cpu, op, |cpu| $function(cpu));
            end(cpu, op)
        }
    };
}

pub mod flags;
pub mod ports;
pub mod registers;
pub mod segments;
mod select;
pub mod transfer;

/// A register operand whose size is the mode's, not the operand size's.
fn full_register(cpu: &Cpu, offset: u16) -> u64 {
    let value = cpu.register::<u64>(offset);
    if cpu.mode & mode::BITS == 2 { value } else { value & 0xffff_ffff }
}

fn set_full_register(cpu: &mut Cpu, offset: u16, value: u64) {
    if cpu.mode & mode::BITS == 2 {
        cpu.set_register(offset, value)
    } else {
        cpu.set_register(offset, value as u32)
    }
}

/// #GP(0) for privileged instructions, before their operand is looked at.
fn kernel_only(cpu: &mut Cpu, op: &Op) -> Result<(), Flow> {
    if cpu.state.cpl() == 0 {
        return Ok(());
    }
    // `Raised`, because no operand has been looked at that could make it the stack's fault.
    cpu.state.rip = cpu.ip_of(op);
    cpu.fault = Exception::GP0;
    Err(Flow::Raised)
}

/// EDX:EAX
fn data_accumulator(cpu: &Cpu) -> u64 {
    u64::from(cpu.register::<u32>(RDX)) << 32 | u64::from(cpu.register::<u32>(RAX))
}

fn set_data_accumulator(cpu: &mut Cpu, value: u64) {
    cpu.set_register(RAX, value as u32);
    cpu.set_register(RDX, (value >> 32) as u32);
}

fn segment_register(number: u8) -> SegmentRegister {
    [
        SegmentRegister::Es,
        SegmentRegister::Cs,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ][usize::from(number)]
}

#[inline]
fn read_word<const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<u16, Fault> {
    if !FROM_MEMORY {
        return Ok(cpu.register::<u16>(op.src));
    }
    let linear = cpu.operand_address(op, 2, Intent::Read)?;
    cpu.load::<u16>(linear)
}

/// A far pointer from memory: offset of width `T`, then the selector.
fn far_pointer<T: Width>(cpu: &mut Cpu, op: &Op) -> Result<(u64, u16), Fault> {
    let linear = cpu.operand_address(op, T::SIZE, Intent::Read)?;
    let offset = cpu.load::<T>(linear)?.zero_extend();
    let behind = Op { disp: op.disp.wrapping_add(T::SIZE as u64), ..*op };
    let linear = cpu.operand_address(&behind, 2, Intent::Read)?;
    Ok((offset, cpu.load::<u16>(linear)?))
}
