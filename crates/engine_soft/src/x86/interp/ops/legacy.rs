//! Decimal arithmetic and other instructions that 64-bit mode dropped (SDM vol. 2).

use arch::x86::{Exception, Vector};

use super::attempt;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::{StatusFlags, Width};

fn al(cpu: &Cpu) -> u8 {
    cpu.register(0)
}

/// Sets SF, ZF and PF from AL; the host's OR computes them and clears the others.
fn result_flags(cpu: &mut Cpu, carry: bool, adjust: bool) {
    let value = al(cpu);
    u8::or(value, value, &mut cpu.flags);
    cpu.flags.assign(StatusFlags::CF, carry);
    cpu.flags.assign(StatusFlags::AF, adjust);
}

/// DAA (`ADD`) and DAS.
pub fn decimal_adjust<const ADD: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    let old = al(cpu);
    let carry = cpu.flags.0 & StatusFlags::CF != 0;
    let adjust = old & 0xf > 9 || cpu.flags.0 & StatusFlags::AF != 0;
    let change = |value: u8, by: u8| if ADD { value.wrapping_add(by) } else { value.wrapping_sub(by) };
    let mut value = old;
    let mut carry_out = carry;
    if adjust {
        value = change(value, 6);
        carry_out |= !ADD && old < 6;
    }
    if old > 0x99 || carry {
        value = change(value, 0x60);
        carry_out = true;
    } else if ADD {
        carry_out = false;
    }
    cpu.set_register(0, value);
    result_flags(cpu, carry_out, adjust);
    Flow::Next
}

/// AAA (`ADD`) and AAS.
pub fn ascii_adjust<const ADD: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    let adjust = al(cpu) & 0xf > 9 || cpu.flags.0 & StatusFlags::AF != 0;
    if adjust {
        let ax = cpu.register::<u16>(0);
        cpu.set_register(0, if ADD { ax.wrapping_add(0x106) } else { ax.wrapping_sub(0x106) });
    }
    let value = al(cpu) & 0xf;
    cpu.set_register(0, value);
    result_flags(cpu, adjust, adjust);
    Flow::Next
}

/// AAM: divides AL by the immediate.
pub fn ascii_multiply(cpu: &mut Cpu, op: &Op) -> Flow {
    let base = op.imm as u8;
    if base == 0 {
        cpu.fault = Exception::new(Vector::DivideError);
        return Flow::Fault;
    }
    let value = al(cpu);
    cpu.set_register(0, u16::from(value / base) << 8 | u16::from(value % base));
    result_flags(cpu, false, false);
    Flow::Next
}

/// AAD: AL + AH * immediate.
pub fn ascii_divide(cpu: &mut Cpu, op: &Op) -> Flow {
    let high = cpu.register::<u8>(1);
    let value = al(cpu).wrapping_add(high.wrapping_mul(op.imm as u8));
    cpu.set_register(0, u16::from(value));
    result_flags(cpu, false, false);
    Flow::Next
}

/// SALC: AL from the carry flag.
pub fn set_al_from_carry(cpu: &mut Cpu, _: &Op) -> Flow {
    let value = if cpu.flags.0 & StatusFlags::CF != 0 { 0xffu8 } else { 0 };
    cpu.set_register(0, value);
    Flow::Next
}

/// BOUND
pub fn bound<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let lower = attempt!(cpu.load::<T>(linear)).sign_extend();
    let second = Op { disp: op.disp.wrapping_add(T::SIZE as u64), ..*op };
    let linear = attempt!(cpu.operand_address(&second, T::SIZE, Intent::Read));
    let upper = attempt!(cpu.load::<T>(linear)).sign_extend();
    let index = cpu.register::<T>(op.dst).sign_extend();
    if index < lower || index > upper {
        cpu.fault = Exception::new(Vector::BoundRange);
        return Flow::Fault;
    }
    Flow::Next
}
