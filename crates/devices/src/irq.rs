//! Interrupt lines and message-signalled interrupts, as devices see them.

use std::sync::Arc;

/// What interrupt lines end in: the board routes a line number (GSI) to PIC and IOAPIC inputs.
pub trait InterruptController: Send + Sync {
    /// Drives line `gsi` to `high` or low. Idempotent. Any thread.
    fn set_line(&self, gsi: u32, high: bool);
}

/// One interrupt line, held by the device that drives it.
#[derive(Clone)]
pub struct IrqLine {
    controller: Arc<dyn InterruptController>,
    gsi: u32,
}

impl IrqLine {
    /// The line that drives `gsi` of `controller`.
    pub fn new(controller: Arc<dyn InterruptController>, gsi: u32) -> Self {
        Self { controller, gsi }
    }

    /// Drives the line.
    pub fn set(&self, high: bool) {
        self.controller.set_line(self.gsi, high);
    }

    /// Raises and lowers: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// The line's number.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (SDM vol. 3, "Message Signalled Interrupts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// 0xfee0_0000 plus destination bits.
    pub address: u64,
    /// Vector, delivery mode, trigger.
    pub data: u32,
}

/// Takes MSIs and delivers them to local APICs. Any thread.
pub trait MsiSink: Send + Sync {
    /// An I/O APIC has other level-triggered interrupts now: `routes` are all of them. For those who must know before
    /// whose end is to be told.
    fn set_level_routes(&self, _routes: &[LevelRoute]) {}
    /// Delivers `msi`; one that names no APIC is dropped, as on hardware.
    fn send(&self, msi: Msi);
}

/// A level-triggered interrupt of an I/O APIC, as the message that its pin sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelRoute {
    /// Which pin.
    pub pin: u32,
    /// What it sends.
    pub msi: Msi,
}
