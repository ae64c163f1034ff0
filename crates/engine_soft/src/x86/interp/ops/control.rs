//! Near branches and the end of a block. A direct target is `op.disp`, relative to the block's start.

use super::attempt;
use crate::x86::interp::cpu::{Cpu, mode};
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::Width;

/// Truncates a branch target to operand size `T`.
#[inline(always)]
fn target<T: Width>(cpu: &Cpu, op: &Op) -> u64 {
    T::truncate(cpu.block_ip.wrapping_add(op.disp)).zero_extend()
}

/// #GP(0) for a branch to an address outside the code segment, or a non-canonical one.
#[inline(always)]
fn go(cpu: &mut Cpu, ip: u64, flow: Flow) -> Flow {
    if cpu.mode & mode::BITS == 2 {
        if !arch::x86::paging::is_canonical(ip) {
            cpu.fault = arch::x86::Exception::GP0;
            return Flow::Fault;
        }
    } else if ip > u64::from(cpu.state.segment(arch::x86::SegmentRegister::Cs).limit) {
        cpu.fault = arch::x86::Exception::GP0;
        return Flow::Fault;
    }
    cpu.state.rip = ip;
    flow
}

/// The end of a block that no branch ended.
pub fn end_of_block(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.state.rip = cpu.ip_of(op);
    Flow::FellThrough
}

/// `jmp rel`
pub fn jump<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let ip = target::<T>(cpu, op);
    go(cpu, ip, Flow::Taken)
}

/// `jcc rel`
pub fn jump_if<T: Width, const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.flags.holds::<CONDITION>() {
        let ip = target::<T>(cpu, op);
        return go(cpu, ip, Flow::Taken);
    }
    cpu.state.rip = cpu.next_ip(op);
    Flow::FellThrough
}

/// What LOOP, LOOPE, LOOPNE and JCXZ ask for, beside a count register of width `C`.
pub mod loop_kind {
    #![allow(missing_docs)]
    pub const LOOP: u8 = 0;
    pub const LOOP_EQUAL: u8 = 1;
    pub const LOOP_NOT_EQUAL: u8 = 2;
    pub const ZERO: u8 = 3;
}

/// LOOP and friends: count register of width `C`, target of width `T`.
pub fn count_and_jump<C: Width, T: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    const RCX: u16 = 8;
    let mut count = cpu.register::<C>(RCX);
    if KIND != loop_kind::ZERO {
        count = C::truncate(count.zero_extend().wrapping_sub(1));
    }
    let zero = count == C::default();
    let equal = cpu.flags.holds::<4>();
    let taken = match KIND {
        loop_kind::LOOP => !zero,
        loop_kind::LOOP_EQUAL => !zero && equal,
        loop_kind::LOOP_NOT_EQUAL => !zero && !equal,
        _ => zero,
    };
    let flow = if taken {
        let ip = target::<T>(cpu, op);
        go(cpu, ip, Flow::Taken)
    } else {
        cpu.state.rip = cpu.next_ip(op);
        Flow::FellThrough
    };
    if flow != Flow::Fault && KIND != loop_kind::ZERO {
        cpu.set_register(RCX, count);
    }
    flow
}

/// `jmp reg`
pub fn jump_register<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let ip = cpu.register::<T>(op.src).zero_extend();
    go(cpu, ip, Flow::Jumped)
}

/// `jmp [mem]`
pub fn jump_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let ip = attempt!(cpu.load::<T>(linear)).zero_extend();
    go(cpu, ip, Flow::Jumped)
}

/// The return address is stored before the target is checked, as the processor does: it stays on the stack,
/// below the pointer, if the target is refused.
#[inline(always)]
fn call_to<T: Width>(cpu: &mut Cpu, op: &Op, ip: u64, flow: Flow) -> Flow {
    let back = cpu.next_ip(op);
    let pointer = cpu.state.gpr[4].wrapping_sub(T::SIZE as u64);
    attempt!(cpu.store_on_stack(pointer, T::truncate(back)));
    if go(cpu, ip, flow) == Flow::Fault {
        return Flow::Fault;
    }
    cpu.set_stack_pointer(pointer);
    flow
}

/// `call rel`
pub fn call<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let ip = target::<T>(cpu, op);
    call_to::<T>(cpu, op, ip, Flow::Taken)
}

/// `call reg`
pub fn call_register<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let ip = cpu.register::<T>(op.src).zero_extend();
    call_to::<T>(cpu, op, ip, Flow::Jumped)
}

/// `call [mem]`
pub fn call_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let ip = attempt!(cpu.load::<T>(linear)).zero_extend();
    call_to::<T>(cpu, op, ip, Flow::Jumped)
}

/// `ret` and `ret imm`
pub fn near_return<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let ip = attempt!(cpu.peek::<T>(0)).zero_extend();
    let flow = go(cpu, ip, Flow::Jumped);
    if flow != Flow::Fault {
        cpu.drop_stack(T::SIZE as u64 + op.imm);
    }
    flow
}
