//! Multiplication and division.

use arch::x86::{Exception, Vector};

use super::attempt;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::{StatusFlags, WideWidth, Width};

const RDX: u16 = 16;
const AH: u16 = 1;

/// The single operand, from register or memory.
macro_rules! source {
    ($cpu:ident, $op:ident, $t:ty, $from_memory:expr) => {
        if $from_memory {
            let linear = attempt!($cpu.operand_address($op, <$t>::SIZE, Intent::Read));
            attempt!($cpu.load::<$t>(linear))
        } else {
            $cpu.register::<$t>($op.src)
        }
    };
}

/// Sets flags as IMUL/MUL of width `T` do: CF and OF say that the upper half matters, the rest is what the
/// host's IMUL of the low halves leaves (undefined by the manual).
#[inline(always)]
fn product_flags(f: &mut StatusFlags, low: u64, bits: u32, overflow: bool) {
    // Undefined flags follow what current processors do: SF and PF from the low half, ZF and AF clear.
    let sign = low >> (bits - 1) & 1 != 0;
    f.assign(StatusFlags::CF | StatusFlags::OF, overflow);
    f.assign(StatusFlags::SF, sign);
    f.assign(StatusFlags::PF, (low as u8).count_ones().is_multiple_of(2));
    f.assign(StatusFlags::ZF | StatusFlags::AF, false);
}

#[inline(always)]
fn store_product<T: Width>(cpu: &mut Cpu, low: u64, high: u64) {
    if T::SIZE == 1 {
        cpu.set_register(0, (low & 0xff | high << 8) as u16);
    } else {
        cpu.set_register(0, T::truncate(low));
        cpu.set_register(RDX, T::truncate(high));
    }
}

/// `mul`
pub fn multiply<T: Width, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = source!(cpu, op, T, FROM_MEMORY);
    let product = u128::from(cpu.register::<T>(0).zero_extend()) * u128::from(b.zero_extend());
    let low = T::truncate(product as u64).zero_extend();
    let high = (product >> T::BITS) as u64;
    product_flags(&mut cpu.flags, low, T::BITS, high != 0);
    store_product::<T>(cpu, low, high);
    Flow::Next
}

/// `imul` with one operand.
pub fn multiply_signed<T: Width, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = source!(cpu, op, T, FROM_MEMORY);
    let product = i128::from(cpu.register::<T>(0).sign_extend()) * i128::from(b.sign_extend());
    let low = T::truncate(product as u64);
    product_flags(&mut cpu.flags, low.zero_extend(), T::BITS, i128::from(low.sign_extend()) != product);
    store_product::<T>(cpu, low.zero_extend(), (product >> T::BITS) as u64);
    Flow::Next
}

/// `imul reg, reg/mem`
pub fn multiply_into<T: WideWidth, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = source!(cpu, op, T, FROM_MEMORY);
    let result = T::imul(cpu.register(op.dst), b, &mut cpu.flags);
    cpu.set_register(op.dst, result);
    Flow::Next
}

/// `imul reg, reg/mem, imm`
pub fn multiply_immediate<T: WideWidth, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = source!(cpu, op, T, FROM_MEMORY);
    let result = T::imul(b, T::truncate(op.imm), &mut cpu.flags);
    cpu.set_register(op.dst, result);
    Flow::Next
}

fn divide_error(cpu: &mut Cpu) -> Flow {
    cpu.fault = Exception::new(Vector::DivideError);
    Flow::Fault
}

#[inline(always)]
fn store_quotient<T: Width>(cpu: &mut Cpu, quotient: u64, remainder: u64) {
    if T::SIZE == 1 {
        cpu.set_register(0, quotient as u8);
        cpu.set_register(AH, remainder as u8);
    } else {
        cpu.set_register(0, T::truncate(quotient));
        cpu.set_register(RDX, T::truncate(remainder));
    }
}

/// `div`: flags are undefined and left alone.
pub fn divide<T: Width, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = source!(cpu, op, T, FROM_MEMORY).zero_extend();
    if divisor == 0 {
        return divide_error(cpu);
    }
    let high =
        if T::SIZE == 1 { u64::from(cpu.register::<u8>(AH)) } else { cpu.register::<T>(RDX).zero_extend() };
    let low = cpu.register::<T>(0).zero_extend();
    if high >= divisor {
        return divide_error(cpu);
    }
    let (quotient, remainder) = if T::SIZE == 8 && high != 0 {
        let dividend = u128::from(high) << 64 | u128::from(low);
        ((dividend / u128::from(divisor)) as u64, (dividend % u128::from(divisor)) as u64)
    } else {
        let dividend = if T::SIZE == 8 { low } else { high << T::BITS | low };
        (dividend / divisor, dividend % divisor)
    };
    store_quotient::<T>(cpu, quotient, remainder);
    Flow::Next
}

/// `idiv`
pub fn divide_signed<T: Width, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = i128::from(source!(cpu, op, T, FROM_MEMORY).sign_extend());
    if divisor == 0 {
        return divide_error(cpu);
    }
    let high =
        if T::SIZE == 1 { u8::sign_extend(cpu.register(AH)) } else { cpu.register::<T>(RDX).sign_extend() };
    let dividend = i128::from(high) << T::BITS | i128::from(cpu.register::<T>(0).zero_extend());
    // i128::MIN / -1 is the only quotient that overflows i128; it overflows T too.
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return divide_error(cpu);
    };
    if i128::from(T::truncate(quotient as u64).sign_extend()) != quotient {
        return divide_error(cpu);
    }
    store_quotient::<T>(cpu, quotient as u64, remainder as u64);
    Flow::Next
}
