//! Shifts, rotates, bit tests, bit scans.

use super::attempt;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::{StatusFlags, WideWidth, Width};

/// A shift or rotate.
pub trait Shift {
    /// Computes result and flags; the count is masked as the processor does.
    fn apply<T: Width>(a: T, count: u8, f: &mut StatusFlags) -> T;
}

macro_rules! shift {
    ($name:ident, $function:ident) => {
        #[doc = concat!("`", stringify!($name), "`")]
        pub struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Width>(a: T, count: u8, f: &mut StatusFlags) -> T {
                T::$function(a, count, f)
            }
        }
    };
}
shift!(Shl, shl);
shift!(Shr, shr);
shift!(Sar, sar);
shift!(Rol, rol);
shift!(Ror, ror);
shift!(Rcl, rcl);
shift!(Rcr, rcr);

/// Where the count comes from: `CL` is register 1, else the immediate.
#[inline(always)]
fn count<const BY_CL: bool>(cpu: &Cpu, op: &Op) -> u8 {
    if BY_CL { cpu.register::<u8>(8) } else { op.imm as u8 }
}

/// `shift reg, count`
pub fn shift_register<O: Shift, T: Width, const BY_CL: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = count::<BY_CL>(cpu, op);
    let result = O::apply::<T>(cpu.register(op.dst), count, &mut cpu.flags);
    cpu.set_register(op.dst, result);
    Flow::Next
}

/// `shift [mem], count`
pub fn shift_memory<O: Shift, T: Width, const BY_CL: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = count::<BY_CL>(cpu, op);
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let mut flags = cpu.flags;
    attempt!(cpu.modify::<T>(linear, |old| O::apply(old, count, &mut flags)));
    cpu.flags = flags;
    Flow::Next
}

/// `shld`/`shrd reg, reg, count`
pub fn double_shift_register<T: WideWidth, const LEFT: bool, const BY_CL: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Flow {
    let count = count::<BY_CL>(cpu, op);
    let result = double_shift::<T, LEFT>(cpu.register(op.dst), cpu.register(op.src), count, &mut cpu.flags);
    cpu.set_register(op.dst, result);
    Flow::Next
}

/// `shld`/`shrd [mem], reg, count`
pub fn double_shift_memory<T: WideWidth, const LEFT: bool, const BY_CL: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Flow {
    let count = count::<BY_CL>(cpu, op);
    let filler = cpu.register::<T>(op.src);
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let mut flags = cpu.flags;
    attempt!(cpu.modify::<T>(linear, |old| double_shift::<T, LEFT>(old, filler, count, &mut flags)));
    cpu.flags = flags;
    Flow::Next
}

#[inline(always)]
fn double_shift<T: WideWidth, const LEFT: bool>(a: T, b: T, count: u8, f: &mut StatusFlags) -> T {
    if LEFT { T::shld(a, b, count, f) } else { T::shrd(a, b, count, f) }
}

/// What BT, BTS, BTR and BTC do to the bit they test.
pub mod action {
    #![allow(missing_docs)]
    pub const TEST: u8 = 0;
    pub const SET: u8 = 1;
    pub const RESET: u8 = 2;
    pub const COMPLEMENT: u8 = 3;
}

#[inline(always)]
fn change_bit<T: Width, const ACTION: u8>(old: T, bit: u32) -> T {
    let mask = 1u64 << bit;
    let value = old.zero_extend();
    T::truncate(match ACTION {
        action::TEST => value,
        action::SET => value | mask,
        action::RESET => value & !mask,
        _ => value ^ mask,
    })
}

/// `bt* reg, reg`
pub fn bit_register<T: Width, const ACTION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let bit = cpu.register::<T>(op.src).zero_extend() as u32 & (T::BITS - 1);
    change_register_bit::<T, ACTION>(cpu, op, bit)
}

/// `bt* reg, imm`
pub fn bit_register_immediate<T: Width, const ACTION: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    change_register_bit::<T, ACTION>(cpu, op, op.imm as u32 & (T::BITS - 1))
}

#[inline(always)]
fn change_register_bit<T: Width, const ACTION: u8>(cpu: &mut Cpu, op: &Op, bit: u32) -> Flow {
    let old = cpu.register::<T>(op.dst);
    cpu.flags.assign(StatusFlags::CF, old.zero_extend() >> bit & 1 != 0);
    if ACTION != action::TEST {
        cpu.set_register(op.dst, change_bit::<T, ACTION>(old, bit));
    }
    Flow::Next
}

/// `bt* [mem], reg`: the register is a signed bit offset from the operand, which selects another word.
pub fn bit_memory<T: Width, const ACTION: u8, const LOCKED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let offset = cpu.register::<T>(op.src).sign_extend();
    let word = (offset >> T::BITS.trailing_zeros()).wrapping_mul(T::SIZE as i64);
    let at = Op { disp: op.disp.wrapping_add(word as u64), ..*op };
    let flow = change_memory_bit::<T, ACTION, LOCKED>(cpu, &at, offset as u32 & (T::BITS - 1));
    if flow == Flow::Fault {
        // Only here is the word's address known.
        cpu.refine_fault(&at);
    }
    flow
}

/// `bt* [mem], imm`
pub fn bit_memory_immediate<T: Width, const ACTION: u8, const LOCKED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    change_memory_bit::<T, ACTION, LOCKED>(cpu, op, op.imm as u32 & (T::BITS - 1))
}

#[inline(always)]
fn change_memory_bit<T: Width, const ACTION: u8, const LOCKED: bool>(
    cpu: &mut Cpu,
    op: &Op,
    bit: u32,
) -> Flow {
    let intent = if ACTION == action::TEST { Intent::Read } else { Intent::Write };
    let linear = attempt!(cpu.operand_address(op, T::SIZE, intent));
    let mut found = T::default();
    if ACTION == action::TEST {
        found = attempt!(cpu.load::<T>(linear));
    } else {
        let change = |old: T| {
            found = old;
            change_bit::<T, ACTION>(old, bit)
        };
        if LOCKED {
            attempt!(cpu.modify_locked::<T>(linear, change));
        } else {
            attempt!(cpu.modify::<T>(linear, change));
        }
    }
    cpu.flags.assign(StatusFlags::CF, found.zero_extend() >> bit & 1 != 0);
    Flow::Next
}

/// BSF and BSR from a register or memory; a zero source leaves the destination as it is.
pub fn scan<T: WideWidth, const FORWARD: bool, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = if FROM_MEMORY {
        let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
        attempt!(cpu.load::<T>(linear))
    } else {
        cpu.register::<T>(op.src)
    };
    let mut flags = cpu.flags;
    let found = if FORWARD { T::bsf(value, &mut flags) } else { T::bsr(value, &mut flags) };
    cpu.flags = flags;
    if value != T::default() {
        cpu.set_register(op.dst, found);
    }
    Flow::Next
}
