//! Emulated devices and the bus they sit on.
//!
//! A device gets lines, memory, a clock and a back end; never the machine, never an engine.
//!
//! Reading order: [`device`] (what every device offers), [`irq`] (lines and MSIs), [`bus`] (address
//! decoding), then the device classes: `chipset`, `serial`, `virtio`, `acpi`; and [`rate`], what holds one of them to a rate.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bus;
pub mod chipset;
pub mod device;
pub mod irq;
pub mod rate;
pub mod serial;
pub mod timer;
pub mod virtio;

pub use bus::{Bus, BusBuilder, BusError, DeviceId, SharedDevice};
pub use device::{Clock, Device, MmioDevice, PioDevice, PowerEvent, PowerSink, Queued, Timed};
pub use irq::{InterruptController, IrqLine, LevelRoute, Msi, MsiSink};
pub use timer::{TimerId, TimerQueue, TimerSink, Timers};
