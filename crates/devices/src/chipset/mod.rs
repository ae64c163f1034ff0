//! The chips of a PC's board.
//!
//! Reading order: [`router`] (how the interrupt chips are joined), [`pic`], [`ioapic`], [`lapic`] and
//! [`apic_bus`], [`elsewhere`]; then the clocks [`pit`] and [`rtc`]; then [`pm`], [`i8042`], [`ports`] and [`generation`].

pub mod apic_bus;
#[cfg(test)]
mod board_tests;
pub mod elsewhere;
pub mod generation;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod ports;
pub mod router;
pub mod rtc;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use apic_bus::ApicBus;
pub use elsewhere::{ForeignError, ForeignLapics};
pub use generation::GenerationId;
pub use i8042::I8042;
pub use ioapic::IoApic;
pub use lapic::{Lapic, LapicGlue};
pub use pic::DualPic;
pub use pit::Pit;
pub use pm::PowerManagement;
pub use ports::BoardPorts;
pub use router::InterruptRouter;
pub use rtc::Rtc;
