//! Moves, extensions, address computation and flag-less conversions.

use super::attempt;
use crate::x86::interp::access::truncate_address;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::{WideWidth, Width};

/// Nothing: NOP, ENDBR, hints and prefetches.
pub fn nop(_: &mut Cpu, _: &Op) -> Flow {
    Flow::Next
}

/// `mov reg, reg`
pub fn move_register<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.set_register::<T>(op.dst, cpu.register(op.src));
    Flow::Next
}

/// `mov reg, imm`
pub fn move_immediate<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.set_register(op.dst, T::truncate(op.imm));
    Flow::Next
}

/// `mov reg, [mem]`
pub fn load<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let value = attempt!(cpu.load::<T>(linear));
    cpu.set_register(op.dst, value);
    Flow::Next
}

/// `mov [mem], reg`
pub fn store<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    attempt!(cpu.store(linear, cpu.register::<T>(op.src)));
    Flow::Next
}

/// `mov [mem], imm`
pub fn store_immediate<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    attempt!(cpu.store(linear, T::truncate(op.imm)));
    Flow::Next
}

/// `movzx reg, reg`: from `S` to `T`.
pub fn zero_extend_register<T: Width, S: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.register::<S>(op.src).zero_extend();
    cpu.set_register(op.dst, T::truncate(value));
    Flow::Next
}

/// `movzx reg, [mem]`
pub fn zero_extend_memory<T: Width, S: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, S::SIZE, Intent::Read));
    let value = attempt!(cpu.load::<S>(linear)).zero_extend();
    cpu.set_register(op.dst, T::truncate(value));
    Flow::Next
}

/// `movsx`/`movsxd reg, reg`
pub fn sign_extend_register<T: Width, S: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.register::<S>(op.src).sign_extend();
    cpu.set_register(op.dst, T::truncate(value as u64));
    Flow::Next
}

/// `movsx`/`movsxd reg, [mem]`
pub fn sign_extend_memory<T: Width, S: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, S::SIZE, Intent::Read));
    let value = attempt!(cpu.load::<S>(linear)).sign_extend();
    cpu.set_register(op.dst, T::truncate(value as u64));
    Flow::Next
}

/// CBW, CWDE, CDQE: the accumulator's lower half `S` into `T`.
pub fn widen_accumulator<T: Width, S: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let value = cpu.register::<S>(0).sign_extend();
    cpu.set_register(0, T::truncate(value as u64));
    Flow::Next
}

/// CWD, CDQ, CQO: the accumulator's sign into the data register.
pub fn sign_to_data<T: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let sign = cpu.register::<T>(0).sign_extend() >> 63;
    cpu.set_register(16, T::truncate(sign as u64));
    Flow::Next
}

/// `lea reg, [mem]`
pub fn address<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let offset = truncate_address(op, cpu.effective_address(op));
    cpu.set_register(op.dst, T::truncate(offset));
    Flow::Next
}

/// `cmovcc reg, reg`: a 32-bit destination is zero-extended even if the condition is false.
pub fn conditional_move<T: Width, const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let from = if cpu.flags.holds::<CONDITION>() { op.src } else { op.dst };
    cpu.set_register::<T>(op.dst, cpu.register(from));
    Flow::Next
}

/// `cmovcc reg, [mem]`: the load happens in any case.
pub fn conditional_load<T: Width, const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let value = attempt!(cpu.load::<T>(linear));
    let value = if cpu.flags.holds::<CONDITION>() { value } else { cpu.register(op.dst) };
    cpu.set_register(op.dst, value);
    Flow::Next
}

/// `setcc reg`
pub fn set_register<const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.set_register(op.dst, u8::from(cpu.flags.holds::<CONDITION>()));
    Flow::Next
}

/// `setcc [mem]`
pub fn set_memory<const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, 1, Intent::Write));
    attempt!(cpu.store(linear, u8::from(cpu.flags.holds::<CONDITION>())));
    Flow::Next
}

/// `bswap reg`
pub fn byte_swap<T: WideWidth>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.set_register(op.dst, T::swap_bytes(cpu.register(op.dst)));
    Flow::Next
}

/// `movbe reg, [mem]`
pub fn load_swapped<T: WideWidth>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let value = attempt!(cpu.load::<T>(linear));
    cpu.set_register(op.dst, T::swap_bytes(value));
    Flow::Next
}

/// `movbe [mem], reg`
pub fn store_swapped<T: WideWidth>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    attempt!(cpu.store(linear, T::swap_bytes(cpu.register(op.src))));
    Flow::Next
}

/// `xlatb`: AL from the table at BX + AL.
pub fn translate_byte(cpu: &mut Cpu, op: &Op) -> Flow {
    let at = Op { disp: u64::from(cpu.register::<u8>(0)), ..*op };
    let linear = attempt!(cpu.operand_address(&at, 1, Intent::Read));
    let value = attempt!(cpu.load::<u8>(linear));
    cpu.set_register(0, value);
    Flow::Next
}
