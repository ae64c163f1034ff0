//! General purpose, flag and control registers (SDM vol. 1 ch. 3, vol. 3 ch. 2).

use bitflags::bitflags;

/// A general purpose register, numbered as in ModRM/REX encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

bitflags! {
    /// RFLAGS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always one.
        const FIXED = 1 << 1;
        /// Parity of the low byte of the result.
        const PF = 1 << 2;
        /// Carry out of bit 3.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Single step.
        const TF = 1 << 8;
        /// Maskable interrupts are accepted.
        const IF = 1 << 9;
        /// String instructions go downwards.
        const DF = 1 << 10;
        /// Signed overflow.
        const OF = 1 << 11;
        /// I/O privilege level, two bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Debug faults are suppressed for one instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check; with SMAP, supervisor access to user pages is allowed.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID exists if this bit can be toggled.
        const ID = 1 << 21;
        /// The six flags arithmetic instructions write.
        const STATUS = Self::CF.bits() | Self::PF.bits() | Self::AF.bits() | Self::ZF.bits()
            | Self::SF.bits() | Self::OF.bits();
    }

    /// CR0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Cr0: u64 {
        /// Protected mode.
        const PE = 1 << 0;
        /// WAIT honours TS.
        const MP = 1 << 1;
        /// x87 instructions raise #NM.
        const EM = 1 << 2;
        /// Task switched: FPU use raises #NM.
        const TS = 1 << 3;
        /// Always one on processors since the 486.
        const ET = 1 << 4;
        /// x87 errors are reported by #MF rather than by the legacy FERR# line.
        const NE = 1 << 5;
        /// Supervisor writes honour read-only pages.
        const WP = 1 << 16;
        /// Alignment checks are possible.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }

    /// CR4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Cr4: u64 {
        /// Virtual-8086 extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC is privileged.
        const TSD = 1 << 2;
        /// I/O breakpoints; DR4/DR5 raise #UD.
        const DE = 1 << 3;
        /// 4 MiB pages in 32-bit paging.
        const PSE = 1 << 4;
        /// Physical address extension.
        const PAE = 1 << 5;
        /// Machine checks.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC is allowed at any privilege.
        const PCE = 1 << 8;
        /// The OS uses FXSAVE and SSE.
        const OSFXSR = 1 << 9;
        /// The OS handles #XM.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// Five-level paging.
        const LA57 = 1 << 12;
        /// RDFSBASE and friends are allowed.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and XCR0 are enabled.
        const OSXSAVE = 1 << 18;
        /// Supervisor execution of user pages faults.
        const SMEP = 1 << 20;
        /// Supervisor access to user pages faults unless RFLAGS.AC.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
    }

    /// The extended feature enable register, MSR 0xc000_0080.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Efer: u64 {
        /// SYSCALL/SYSRET are enabled.
        const SCE = 1 << 0;
        /// Long mode is enabled (active once paging is on).
        const LME = 1 << 8;
        /// Long mode is active.
        const LMA = 1 << 10;
        /// No-execute pages.
        const NXE = 1 << 11;
    }

    /// XCR0: which states XSAVE manages.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Xcr0: u64 {
        /// x87; always one.
        const X87 = 1 << 0;
        /// XMM registers and MXCSR.
        const SSE = 1 << 1;
        /// Upper halves of the YMM registers.
        const AVX = 1 << 2;
    }
}
