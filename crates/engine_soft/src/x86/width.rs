//! Operand widths, and arithmetic with the flags the host's own CPU computes.
//!
//! Status flags are kept in the form `LAHF; SETO AL` leaves in AX, because that is what the host gives for
//! one or two cycles: AL is OF, AH is SF ZF 0 AF 0 PF 1 CF. See [`StatusFlags`].
// UNSAFETY: inline assembly, so that results and flags (undefined ones included) are the processor's own.

use std::arch::asm;

/// The status flags in the layout described above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct StatusFlags(pub u16);

impl StatusFlags {
    /// Overflow.
    pub const OF: u16 = 1 << 0;
    /// Carry.
    pub const CF: u16 = 1 << 8;
    /// Parity.
    pub const PF: u16 = 1 << 10;
    /// Adjust.
    pub const AF: u16 = 1 << 12;
    /// Zero.
    pub const ZF: u16 = 1 << 14;
    /// Sign.
    pub const SF: u16 = 1 << 15;
    const IN_AH: u64 = 0xd5;

    /// Takes the status flags out of RFLAGS.
    pub fn from_rflags(rflags: u64) -> Self {
        Self((((rflags & Self::IN_AH) << 8) | ((rflags >> 11) & 1)) as u16)
    }

    /// RFLAGS with its status flags replaced by these.
    pub fn merge_into(self, rflags: u64) -> u64 {
        let status = (u64::from(self.0 >> 8) & Self::IN_AH) | (u64::from(self.0 & 1) << 11);
        (rflags & !(Self::IN_AH | 1 << 11)) | status
    }

    /// Sets or clears the flags in `mask`.
    pub fn assign(&mut self, mask: u16, on: bool) {
        if on {
            self.0 |= mask;
        } else {
            self.0 &= !mask;
        }
    }

    /// Whether condition code `CONDITION` (the low four bits of Jcc, SETcc, CMOVcc opcodes) holds.
    #[inline(always)]
    pub fn holds<const CONDITION: u8>(self) -> bool {
        let f = self.0;
        let less = ((f >> 15) ^ f) & 1 != 0;
        let yes = match CONDITION >> 1 {
            0 => f & Self::OF != 0,
            1 => f & Self::CF != 0,
            2 => f & Self::ZF != 0,
            3 => f & (Self::CF | Self::ZF) != 0,
            4 => f & Self::SF != 0,
            5 => f & Self::PF != 0,
            6 => less,
            _ => less || f & Self::ZF != 0,
        };
        yes != (CONDITION & 1 != 0)
    }
}

/// An operand width: `u8`, `u16`, `u32` or `u64`.
pub trait Width: Copy + Eq + Default + Send + Sync + 'static {
    /// Bytes.
    const SIZE: usize;
    /// Bits.
    const BITS: u32 = Self::SIZE as u32 * 8;
    /// The low bits of `value`.
    fn truncate(value: u64) -> Self;
    /// Zero-extended.
    fn zero_extend(self) -> u64;
    /// Sign-extended.
    fn sign_extend(self) -> i64;

    /// `a + b`.
    fn add(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// `a + b + CF`.
    fn adc(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// `a - b`.
    fn sub(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// `a - b - CF`.
    fn sbb(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// `a & b`.
    fn and(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// `a | b`.
    fn or(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// `a ^ b`.
    fn xor(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// `a + 1`, CF kept.
    fn inc(a: Self, f: &mut StatusFlags) -> Self;
    /// `a - 1`, CF kept.
    fn dec(a: Self, f: &mut StatusFlags) -> Self;
    /// `-a`.
    fn neg(a: Self, f: &mut StatusFlags) -> Self;
    /// Shifts and rotates by `count`, which the processor masks; flags are kept where it keeps them.
    fn shl(a: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// Logical shift right.
    fn shr(a: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// Arithmetic shift right.
    fn sar(a: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// Rotate left.
    fn rol(a: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// Rotate right.
    fn ror(a: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// Rotate left through carry.
    fn rcl(a: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// Rotate right through carry.
    fn rcr(a: Self, count: u8, f: &mut StatusFlags) -> Self;
}

/// Two operands, flags written without being read.
macro_rules! binary {
    ($name:ident, $mnemonic:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, b: Self, f: &mut StatusFlags) -> Self {
            let flags: u16;
            // SAFETY: touches only the named registers and flags.
            unsafe {
                asm!(concat!($mnemonic, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($class) a, b = in($class) b, out("ax") flags,
                    options(pure, nomem, nostack));
            }
            f.0 = flags;
            a
        }
    };
}

/// Two operands and the carry flag.
macro_rules! binary_with_carry {
    ($name:ident, $mnemonic:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, b: Self, f: &mut StatusFlags) -> Self {
            // SAFETY: touches only the named registers and flags.
            unsafe {
                asm!("bt ax, 8", concat!($mnemonic, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($class) a, b = in($class) b, inout("ax") f.0,
                    options(pure, nomem, nostack));
            }
            a
        }
    };
}

/// One operand, the carry flag goes in (and stays, where the instruction keeps it).
macro_rules! unary {
    ($name:ident, $mnemonic:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, f: &mut StatusFlags) -> Self {
            // SAFETY: touches only the named registers and flags.
            unsafe {
                asm!("bt ax, 8", concat!($mnemonic, " {a", $m, "}"), "lahf", "seto al",
                    a = inout($class) a, inout("ax") f.0,
                    options(pure, nomem, nostack));
            }
            a
        }
    };
}

/// Shifts by CL with all status flags going in: `add al, 127` makes OF from AL, SAHF the rest.
macro_rules! shift {
    ($name:ident, $mnemonic:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, count: u8, f: &mut StatusFlags) -> Self {
            // SAFETY: touches only the named registers and flags.
            unsafe {
                asm!("add al, 127", "sahf", concat!($mnemonic, " {a", $m, "}, cl"), "lahf", "seto al",
                    a = inout($class) a, in("cl") count, inout("ax") f.0,
                    options(pure, nomem, nostack));
            }
            a
        }
    };
}

macro_rules! width {
    ($t:ty, $signed:ty, $class:ident, $m:literal) => {
        impl Width for $t {
            const SIZE: usize = size_of::<$t>();
            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn zero_extend(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sign_extend(self) -> i64 {
                self as $signed as i64
            }
            binary!(add, "add", $class, $m);
            binary!(sub, "sub", $class, $m);
            binary!(and, "and", $class, $m);
            binary!(or, "or", $class, $m);
            binary!(xor, "xor", $class, $m);
            binary_with_carry!(adc, "adc", $class, $m);
            binary_with_carry!(sbb, "sbb", $class, $m);
            unary!(inc, "inc", $class, $m);
            unary!(dec, "dec", $class, $m);
            unary!(neg, "neg", $class, $m);
            shift!(shl, "shl", $class, $m);
            shift!(shr, "shr", $class, $m);
            shift!(sar, "sar", $class, $m);
            shift!(rol, "rol", $class, $m);
            shift!(ror, "ror", $class, $m);
            shift!(rcl, "rcl", $class, $m);
            shift!(rcr, "rcr", $class, $m);
        }
    };
}

width!(u8, i8, reg_byte, "");
width!(u16, i16, reg, ":x");
width!(u32, i32, reg, ":e");
width!(u64, i64, reg, ":r");

/// Double shifts and widening multiplication exist from 16 bits up.
pub trait WideWidth: Width {
    /// SHLD.
    fn shld(a: Self, b: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// SHRD.
    fn shrd(a: Self, b: Self, count: u8, f: &mut StatusFlags) -> Self;
    /// IMUL with two operands: the low half, CF and OF set if the high half matters.
    fn imul(a: Self, b: Self, f: &mut StatusFlags) -> Self;
    /// Bit scan forward of a non-zero value.
    fn bsf(a: Self, f: &mut StatusFlags) -> Self;
    /// Bit scan reverse of a non-zero value.
    fn bsr(a: Self, f: &mut StatusFlags) -> Self;
    /// Bytes reversed.
    fn swap_bytes(a: Self) -> Self;
}

macro_rules! double_shift {
    ($name:ident, $mnemonic:literal, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, b: Self, count: u8, f: &mut StatusFlags) -> Self {
            // SAFETY: touches only the named registers and flags.
            unsafe {
                asm!("add al, 127", "sahf", concat!($mnemonic, " {a", $m, "}, {b", $m, "}, cl"), "lahf", "seto al",
                    a = inout(reg) a, b = in(reg) b, in("cl") count, inout("ax") f.0,
                    options(pure, nomem, nostack));
            }
            a
        }
    };
}

/// Two operands, all status flags going in (the instruction may leave some as they are).
macro_rules! with_flags {
    ($name:ident, $mnemonic:literal, $m:literal) => {
        #[inline(always)]
        fn $name(b: Self, f: &mut StatusFlags) -> Self {
            let mut a: Self = 0;
            // SAFETY: touches only the named registers and flags.
            unsafe {
                asm!("add al, 127", "sahf", concat!($mnemonic, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout(reg) a, b = in(reg) b, inout("ax") f.0,
                    options(pure, nomem, nostack));
            }
            a
        }
    };
}

macro_rules! wide {
    ($t:ty, $m:literal) => {
        impl WideWidth for $t {
            double_shift!(shld, "shld", $m);
            double_shift!(shrd, "shrd", $m);
            binary!(imul, "imul", reg, $m);
            with_flags!(bsf, "bsf", $m);
            with_flags!(bsr, "bsr", $m);
            #[inline(always)]
            fn swap_bytes(a: Self) -> Self {
                a.swap_bytes()
            }
        }
    };
}
wide!(u16, ":x");
wide!(u32, ":e");
wide!(u64, ":r");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_to_rflags_and_back() {
        for status in [0u64, 0x8d5, 0x1, 0x800, 0x44] {
            let f = StatusFlags::from_rflags(status | 0x202);
            assert_eq!(f.merge_into(0x8d5 | 0x202), status | 0x202);
        }
    }

    #[test]
    fn signed_overflow_and_carry_are_told_apart() {
        let mut f = StatusFlags::default();
        assert_eq!(u8::add(0x7f, 1, &mut f), 0x80);
        assert!(f.holds::<0>() && !f.holds::<2>());
        assert_eq!(u32::sub(0, 1, &mut f), u32::MAX);
        assert!(!f.holds::<0>() && f.holds::<2>());
        assert!(f.holds::<0xc>(), "0 < 1 signed");
    }

    #[test]
    fn increment_keeps_the_carry_and_shift_by_zero_keeps_all() {
        let mut f = StatusFlags(StatusFlags::CF);
        u64::inc(1, &mut f);
        assert!(f.holds::<2>());
        let mut all = StatusFlags::from_rflags(0x8d5);
        u32::shl(5, 32, &mut all);
        assert_eq!(all.merge_into(0), 0x8d5);
    }
}
