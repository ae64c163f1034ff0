//! XCHG, XADD and CMPXCHG in all widths. With a memory operand XCHG is always locked; the others are treated
//! as locked too, which the architecture allows to any implementation.

use super::attempt;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::{StatusFlags, Width};

/// `xchg reg, reg`
pub fn exchange_registers<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (cpu.register::<T>(op.dst), cpu.register::<T>(op.src));
    cpu.set_register(op.dst, b);
    cpu.set_register(op.src, a);
    Flow::Next
}

/// `xchg [mem], reg`
pub fn exchange_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let new = cpu.register::<T>(op.src);
    let mut found = T::default();
    attempt!(cpu.modify_locked::<T>(linear, |old| {
        found = old;
        new
    }));
    cpu.set_register(op.src, found);
    Flow::Next
}

/// `xadd reg, reg`
pub fn add_registers<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (cpu.register::<T>(op.dst), cpu.register::<T>(op.src));
    let sum = T::add(a, b, &mut cpu.flags);
    cpu.set_register(op.src, a);
    cpu.set_register(op.dst, sum);
    Flow::Next
}

/// `xadd [mem], reg`
pub fn add_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let addend = cpu.register::<T>(op.src);
    let mut found = T::default();
    let mut flags = cpu.flags;
    attempt!(cpu.modify_locked::<T>(linear, |old| {
        found = old;
        T::add(old, addend, &mut flags)
    }));
    cpu.flags = flags;
    cpu.set_register(op.src, found);
    Flow::Next
}

/// `cmpxchg reg, reg`
pub fn compare_exchange_registers<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let found = cpu.register::<T>(op.dst);
    let expected = cpu.register::<T>(0);
    T::sub(expected, found, &mut cpu.flags);
    if found == expected {
        cpu.set_register(op.dst, cpu.register::<T>(op.src));
    } else {
        cpu.set_register(0, found);
    }
    Flow::Next
}

/// `cmpxchg [mem], reg`
pub fn compare_exchange_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let expected = cpu.register::<T>(0);
    let new = cpu.register::<T>(op.src);
    let mut found = T::default();
    attempt!(cpu.modify_locked::<T>(linear, |old| {
        found = old;
        if old == expected { new } else { old }
    }));
    T::sub(expected, found, &mut cpu.flags);
    if found != expected {
        cpu.set_register(0, found);
    }
    Flow::Next
}

/// `cmpxchg8b [mem]`
pub fn compare_exchange8(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, 8, Intent::Write));
    let pair =
        |cpu: &Cpu, high: usize, low: usize| (cpu.state.gpr[high] << 32) | (cpu.state.gpr[low] & 0xffff_ffff);
    let expected = pair(cpu, 2, 0);
    let new = pair(cpu, 1, 3);
    let mut found = 0;
    attempt!(cpu.modify_locked::<u64>(linear, |old| {
        found = old;
        if old == expected { new } else { old }
    }));
    cpu.flags.assign(StatusFlags::ZF, found == expected);
    if found != expected {
        cpu.state.gpr[0] = found & 0xffff_ffff;
        cpu.state.gpr[2] = found >> 32;
    }
    Flow::Next
}

/// `cmpxchg16b [mem]`
pub fn compare_exchange16(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, 16, Intent::Write));
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.state.gpr[high]) << 64 | u128::from(cpu.state.gpr[low])
    };
    let expected = pair(cpu, 2, 0);
    let new = pair(cpu, 1, 3);
    let found = attempt!(cpu.compare_exchange16(linear, expected, new));
    cpu.flags.assign(StatusFlags::ZF, found == expected);
    if found != expected {
        cpu.state.gpr[0] = found as u64;
        cpu.state.gpr[2] = (found >> 64) as u64;
    }
    Flow::Next
}
