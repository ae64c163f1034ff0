//! Numbers of system calls by name, for each architecture whose programs may run.

use std::str::FromStr;

/// An architecture as the kernel tells it to a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit x86 with 32-bit pointers: the same numbers with a bit set.
    X32,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
}

/// The bit in the number of a call of [`Arch::X32`].
pub const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    /// `AUDIT_ARCH_…` of `linux/audit.h`.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// The call's number, if the architecture has it.
    pub fn number(self, name: &str) -> Option<u32> {
        fn find<T: FromStr>(name: &str, number: impl Fn(T) -> i32) -> Option<u32> {
            name.parse().ok().and_then(|call| u32::try_from(number(call)).ok())
        }
        match self {
            Self::X86_64 => find(name, |call: syscalls::x86_64::Sysno| call.id()),
            Self::X32 => Self::X86_64.number(name).map(|number| number | X32_BIT),
            Self::X86 => find(name, |call: syscalls::x86::Sysno| call.id()),
            Self::Aarch64 => find(name, |call: syscalls::aarch64::Sysno| call.id()),
            Self::Arm => find(name, |call: syscalls::arm::Sysno| call.id()),
            Self::Riscv64 => find(name, |call: syscalls::riscv64::Sysno| call.id()),
        }
    }
}

/// The architecture of a name `SCMP_ARCH_…`.
pub fn by_name(name: &str) -> Option<Arch> {
    Some(match name {
        "SCMP_ARCH_X86_64" => Arch::X86_64,
        "SCMP_ARCH_X32" => Arch::X32,
        "SCMP_ARCH_X86" => Arch::X86,
        "SCMP_ARCH_AARCH64" => Arch::Aarch64,
        "SCMP_ARCH_ARM" => Arch::Arm,
        "SCMP_ARCH_RISCV64" => Arch::Riscv64,
        _ => return None,
    })
}

/// The one this program runs on.
pub fn native() -> Arch {
    match std::env::consts::ARCH {
        "aarch64" => Arch::Aarch64,
        "riscv64" => Arch::Riscv64,
        _ => Arch::X86_64,
    }
}
