//! Register numbers and bit fields of the local APIC (SDM vol. 3, table "Local APIC Register Address Map").

/// Register numbers: the MMIO offset divided by 16, and the MSR number minus 0x800.
pub mod reg {
    #![allow(missing_docs)]
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const ISR_LAST: u32 = 0x17;
    pub const TMR: u32 = 0x18;
    pub const TMR_LAST: u32 = 0x1f;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Entries of the local vector table, in register order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lvt {
    Timer = 0,
    Thermal = 1,
    Performance = 2,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

/// How many entries the local vector table has (no CMCI).
pub(crate) const LVT_COUNT: usize = 6;

impl Lvt {
    pub(crate) const ALL: [Self; LVT_COUNT] =
        [Self::Timer, Self::Thermal, Self::Performance, Self::Lint0, Self::Lint1, Self::Error];

    /// The bits a guest may set.
    pub(crate) fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x7_00ff,
            Self::Thermal | Self::Performance => 0x1_07ff,
            Self::Lint0 | Self::Lint1 => 0x1_a7ff,
            Self::Error => 0x1_00ff,
        }
    }
}

/// Bits of LVT entries.
pub(crate) mod lvt {
    pub const REMOTE_IRR: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;
    pub const TIMER_MODE: u32 = 3 << 17;
    pub const TIMER_PERIODIC: u32 = 1 << 17;
}

/// Bits of the spurious interrupt vector register.
pub(crate) mod svr {
    pub const ENABLED: u32 = 1 << 8;
    /// EOI-broadcast suppression.
    pub const NO_EOI_BROADCAST: u32 = 1 << 12;
    pub const WRITABLE: u32 = 0x11ff;
}

/// Bits of the error status register.
pub(crate) mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Bits of IA32_APIC_BASE.
pub(crate) mod base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLED: u64 = 1 << 11;
    pub const ADDRESS: u64 = !0xfff;
    pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
}

/// Version 0x14 (integrated), six LVT entries, EOI-broadcast suppression.
pub(crate) const VERSION: u32 = 1 << 24 | (LVT_COUNT as u32 - 1) << 16 | 0x14;

/// The lowest vector that is not reserved for exceptions.
pub(crate) const FIRST_VECTOR: u8 = 16;
