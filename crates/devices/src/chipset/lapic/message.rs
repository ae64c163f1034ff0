//! Interrupt messages, as local APICs, I/O APICs and MSIs send them to each other
//! (SDM vol. 3, "Interrupt Command Register" and "Message Signalled Interrupts").

use crate::irq::Msi;

/// What an interrupt message asks its receiver to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to all destinations.
    Fixed,
    /// The vector, to the destination that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt: there is no SMM here, it is dropped.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI: the vector is the page the processor starts at.
    StartUp,
    /// The vector is to be asked of the 8259A.
    ExtInt,
}

impl DeliveryMode {
    /// From the three bits registers hold; `None` for the reserved one.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// How destinations are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationMode {
    /// By APIC id.
    Physical,
    /// By the logical destination register.
    Logical,
}

/// Edge or level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// One interrupt per edge.
    Edge,
    /// EOI is to be told to the I/O APICs.
    Level,
}

/// Destination that means every local APIC.
pub const BROADCAST: u32 = u32::MAX;

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC id or logical destination; [`BROADCAST`] for all.
    pub destination: u32,
    /// How `destination` is to be read.
    pub mode: DestinationMode,
    /// What to do.
    pub delivery: DeliveryMode,
    /// The vector.
    pub vector: u8,
    /// Edge or level.
    pub trigger: Trigger,
}

/// Widens an 8-bit destination.
pub(crate) fn wide(destination: u32) -> u32 {
    if destination == 0xff { BROADCAST } else { destination }
}

impl Message {
    /// What an MSI says; `None` if it is no interrupt message. Address bits 11..=5 extend the destination to
    /// 15 bits, as KVM offers its guests (KVM_FEATURE_MSI_EXT_DEST_ID).
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address & !0xf_ffff != 0xfee0_0000 {
            return None;
        }
        let address = msi.address as u32;
        let destination = wide((address >> 12) & 0xff | ((address >> 5) & 0x7f) << 8);
        Some(Self {
            destination,
            mode: if address & 4 != 0 { DestinationMode::Logical } else { DestinationMode::Physical },
            delivery: DeliveryMode::from_bits(msi.data >> 8)?,
            vector: msi.data as u8,
            trigger: if msi.data & 1 << 15 != 0 { Trigger::Level } else { Trigger::Edge },
        })
    }
}
