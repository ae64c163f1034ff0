//! Two-operand and one-operand arithmetic and logic, plain and locked.

use super::attempt;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::{StatusFlags, Width};

/// A two-operand operation.
pub trait Binary {
    /// Whether the result is stored (CMP and TEST only set flags).
    const STORES: bool = true;
    /// Computes result and flags.
    fn apply<T: Width>(a: T, b: T, f: &mut StatusFlags) -> T;
}

macro_rules! binary {
    ($name:ident, $function:ident, $stores:literal) => {
        #[doc = concat!("`", stringify!($name), "`")]
        pub struct $name;
        impl Binary for $name {
            const STORES: bool = $stores;
            #[inline(always)]
            fn apply<T: Width>(a: T, b: T, f: &mut StatusFlags) -> T {
                T::$function(a, b, f)
            }
        }
    };
}
binary!(Add, add, true);
binary!(Or, or, true);
binary!(Adc, adc, true);
binary!(Sbb, sbb, true);
binary!(And, and, true);
binary!(Sub, sub, true);
binary!(Xor, xor, true);
binary!(Cmp, sub, false);
binary!(Test, and, false);

/// A one-operand operation.
pub trait Unary {
    /// Computes result and flags.
    fn apply<T: Width>(a: T, f: &mut StatusFlags) -> T;
}

macro_rules! unary {
    ($name:ident, $function:expr) => {
        #[doc = concat!("`", stringify!($name), "`")]
        pub struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Width>(a: T, f: &mut StatusFlags) -> T {
                $function(a, f)
            }
        }
    };
}
unary!(Inc, T::inc);
unary!(Dec, T::dec);
unary!(Neg, T::neg);
unary!(Not, |a: T, _: &mut StatusFlags| T::truncate(!a.zero_extend()));

/// `op reg, reg`
pub fn register_register<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = O::apply::<T>(cpu.register(op.dst), cpu.register(op.src), &mut cpu.flags);
    if O::STORES {
        cpu.set_register(op.dst, result);
    }
    Flow::Next
}

/// `op reg, imm`
pub fn register_immediate<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = O::apply::<T>(cpu.register(op.dst), T::truncate(op.imm), &mut cpu.flags);
    if O::STORES {
        cpu.set_register(op.dst, result);
    }
    Flow::Next
}

/// `op reg, [mem]`
pub fn register_memory<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let value = attempt!(cpu.load::<T>(linear));
    let result = O::apply::<T>(cpu.register(op.dst), value, &mut cpu.flags);
    if O::STORES {
        cpu.set_register(op.dst, result);
    }
    Flow::Next
}

#[inline(always)]
fn memory_value<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op, value: T) -> Flow {
    if !O::STORES {
        let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
        let old = attempt!(cpu.load::<T>(linear));
        O::apply(old, value, &mut cpu.flags);
        return Flow::Next;
    }
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let mut flags = cpu.flags;
    attempt!(cpu.modify::<T>(linear, |old| O::apply(old, value, &mut flags)));
    cpu.flags = flags;
    Flow::Next
}

/// `op [mem], reg`
pub fn memory_register<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.register(op.src);
    memory_value::<O, T>(cpu, op, value)
}

/// `op [mem], imm`
pub fn memory_immediate<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    memory_value::<O, T>(cpu, op, T::truncate(op.imm))
}

#[inline(always)]
fn locked_value<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op, value: T) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let before = cpu.flags;
    let mut flags = before;
    attempt!(cpu.modify_locked::<T>(linear, |old| {
        flags = before;
        O::apply(old, value, &mut flags)
    }));
    cpu.flags = flags;
    Flow::Next
}

/// `lock op [mem], reg`
pub fn locked_register<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.register(op.src);
    locked_value::<O, T>(cpu, op, value)
}

/// `lock op [mem], imm`
pub fn locked_immediate<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    locked_value::<O, T>(cpu, op, T::truncate(op.imm))
}

/// `op reg`
pub fn unary_register<O: Unary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = O::apply::<T>(cpu.register(op.dst), &mut cpu.flags);
    cpu.set_register(op.dst, result);
    Flow::Next
}

/// `op [mem]`
pub fn unary_memory<O: Unary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let mut flags = cpu.flags;
    attempt!(cpu.modify::<T>(linear, |old| O::apply(old, &mut flags)));
    cpu.flags = flags;
    Flow::Next
}

/// `lock op [mem]`
pub fn unary_locked<O: Unary, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Write));
    let before = cpu.flags;
    let mut flags = before;
    attempt!(cpu.modify_locked::<T>(linear, |old| {
        flags = before;
        O::apply(old, &mut flags)
    }));
    cpu.flags = flags;
    Flow::Next
}
