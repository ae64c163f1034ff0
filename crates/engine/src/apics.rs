//! Local APICs that are the engine's own, such as those in a host's kernel: interrupts reach vCPUs without a detour
//! through their threads. I/O APIC and 8259A stay the board's.
//!
//! While vCPUs are stopped, the board may take all registers out and put them back in.

use crate::Error;

/// Bytes of registers in an APIC's page.
pub const APIC_PAGE: usize = 1024;

/// Everything one local APIC holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApicRegisters {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The start of the xAPIC's page (SDM vol. 3, table "Local APIC Register Address Map"), in x2APIC mode too: the id
    /// stands in the highest byte of its register, which bounds it to 254.
    pub page: [u8; APIC_PAGE],
    /// IA32_TSC_DEADLINE; zero if disarmed.
    pub tsc_deadline: u64,
}

/// A level-triggered input of the I/O APIC as the message it sends. The engine tells the bus of the end of such
/// interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelRoute {
    /// Which input.
    pub pin: u32,
    /// Address of the message.
    pub address: u64,
    /// Its data.
    pub data: u32,
}

/// The local APICs of one machine. Any thread may call.
pub trait LocalApics: Send + Sync {
    /// Delivers a message-signalled interrupt.
    fn send(&self, address: u64, data: u32);

    /// Says which interrupts of the I/O APIC are level-triggered now: all of them, each time.
    fn set_level_routes(&self, routes: &[LevelRoute]);

    /// The registers of vCPU `vcpu`, which is stopped.
    ///
    /// # Errors
    /// [`Error::Host`], [`Error::Unsupported`] if there is no such vCPU.
    fn save(&self, vcpu: u32) -> Result<ApicRegisters, Error>;

    /// Gives vCPU `vcpu`, which is stopped, these registers.
    ///
    /// # Errors
    /// As [`Self::save`]; registers that no APIC can have are refused.
    fn load(&self, vcpu: u32, registers: &ApicRegisters) -> Result<(), Error>;
}
