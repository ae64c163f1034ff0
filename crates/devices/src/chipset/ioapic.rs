//! The I/O APIC: Intel 82093AA with 24 pins, and the EOI register of later versions (version 0x20).
//!
//! A line's level means *asserted* whatever the polarity bit of its entry says, as in KVM: lines here have no
//! voltage, and drivers set the bit to what ACPI tells them. Interrupts leave as MSIs, so that local APICs may be
//! anyone's. Omitted: the arbitration id's life of its own (it mirrors the id); SMIs are dropped by receivers.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use state::Section;

use super::apic_bus::EoiSink;
use crate::bus::lock;
use crate::device::{Device, MmioDevice};
use crate::irq::{LevelRoute, Msi, MsiSink};

/// Interrupt inputs.
pub const PINS: u32 = 24;
/// Where PCs have it.
pub const DEFAULT_ADDRESS: u64 = 0xfec0_0000;
/// Bytes of address space.
pub const MMIO_SIZE: u64 = 0x1000;

const VERSION_VALUE: u32 = (PINS - 1) << 16 | 0x20;

/// Offsets of the memory-mapped registers.
mod offset {
    pub const IOREGSEL: u64 = 0x00;
    pub const IOWIN: u64 = 0x10;
    pub const EOI: u64 = 0x40;
}

/// Registers behind the window.
mod index {
    pub const ID: u8 = 0x00;
    pub const VERSION: u8 = 0x01;
    pub const ARBITRATION: u8 = 0x02;
    pub const REDIRECTION: u8 = 0x10;
    pub const REDIRECTION_LAST: u8 = 0x3f;
}

/// Bits of a redirection entry.
mod entry {
    pub const VECTOR: u64 = 0xff;
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// Vector, delivery and destination mode, polarity, trigger, mask, destination (with KVM's extension).
    pub const WRITABLE: u64 = 0xfffe_0000_0001_afff;
}

/// The saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Identification register, bits 27..=24.
    pub id: u32,
    /// Register select.
    pub select: u8,
    /// Redirection table.
    pub entries: [u64; PINS as usize],
    /// Asserted lines, a bit per pin.
    pub lines: u32,
}

const KIND: &str = "ioapic";
const VERSION: u32 = 1;

/// The chip.
pub struct IoApic {
    // Glue.
    sink: Arc<dyn MsiSink>,
    // Saved.
    id: u32,
    select: u8,
    entries: [u64; PINS as usize],
    lines: u32,
}

impl IoApic {
    /// An I/O APIC in power-up state that sends its interrupts to `sink`.
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        Self { sink, id: 0, select: 0, entries: [entry::MASKED; PINS as usize], lines: 0 }
    }

    /// Asserts or negates a pin.
    pub fn set_pin(&mut self, pin: u32, asserted: bool) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        let rising = asserted && self.lines & bit == 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.entries[pin as usize] & entry::LEVEL != 0 {
            self.service_level(pin as usize);
        } else if rising && self.entries[pin as usize] & entry::MASKED == 0 {
            // An edge at a masked pin is lost.
            self.deliver(pin as usize);
        }
    }

    /// Ends level-triggered interrupts of `vector`; those still asserted are delivered again.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..self.entries.len() {
            let e = self.entries[pin];
            if e & entry::VECTOR == u64::from(vector) && e & entry::LEVEL != 0 && e & entry::REMOTE_IRR != 0 {
                self.entries[pin] &= !entry::REMOTE_IRR;
                self.service_level(pin);
            }
        }
    }

    fn service_level(&mut self, pin: usize) {
        let e = self.entries[pin];
        if self.lines & 1 << pin != 0 && e & (entry::MASKED | entry::REMOTE_IRR) == 0 {
            // Only fixed and lowest-priority interrupts have an EOI to wait for.
            if e >> 8 & 7 <= 1 {
                self.entries[pin] |= entry::REMOTE_IRR;
            }
            self.deliver(pin);
        }
    }

    fn deliver(&self, pin: usize) {
        self.sink.send(message(self.entries[pin]));
    }

    /// The level-triggered interrupts, masked ones included: they may be in service.
    pub fn level_routes(&self) -> Vec<LevelRoute> {
        let level = (0..).zip(&self.entries).filter(|(_, e)| *e & entry::LEVEL != 0);
        level.map(|(pin, e)| LevelRoute { pin, msi: message(*e) }).collect()
    }

    /// Ends the level-triggered interrupts that no local APIC holds any more: those whose end was on its way when
    /// `held` was asked for the last time.
    pub(super) fn end_unheld(&mut self, held: impl Fn(u8) -> bool) {
        for pin in 0..self.entries.len() {
            let (e, vector) = (self.entries[pin], self.entries[pin] as u8);
            if e & entry::LEVEL != 0 && e & entry::REMOTE_IRR != 0 && !held(vector) {
                self.end_of_interrupt(vector);
            }
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            index::ID | index::ARBITRATION => self.id,
            index::VERSION => VERSION_VALUE,
            i @ index::REDIRECTION..=index::REDIRECTION_LAST => {
                let e = self.entries[usize::from(i - index::REDIRECTION) / 2];
                if i & 1 == 0 { e as u32 } else { (e >> 32) as u32 }
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, value: u32) {
        match self.select {
            index::ID => self.id = value & 0x0f00_0000,
            i @ index::REDIRECTION..=index::REDIRECTION_LAST => {
                let pin = usize::from(i - index::REDIRECTION) / 2;
                let before = self.entries[pin];
                let written = if i & 1 == 0 {
                    before & !0xffff_ffff | u64::from(value)
                } else {
                    before & 0xffff_ffff | u64::from(value) << 32
                };
                let mut e = written & entry::WRITABLE | before & entry::REMOTE_IRR;
                if e & entry::LEVEL == 0 {
                    // Linux clears a stuck remote IRR this way.
                    e &= !entry::REMOTE_IRR;
                }
                self.entries[pin] = e;
                if (before | e) & entry::LEVEL != 0
                    && (before ^ e) & !(entry::MASKED | entry::REMOTE_IRR) != 0
                {
                    self.sink.set_level_routes(&self.level_routes());
                }
                if e & entry::LEVEL != 0 {
                    self.service_level(pin);
                }
            }
            _ => {}
        }
    }
}

/// What a pin with redirection entry `e` sends.
fn message(e: u64) -> Msi {
    let logical = if e & entry::LOGICAL != 0 { 1 << 2 } else { 0 };
    let address = 0xfee0_0000 | (e >> 56) << 12 | (e >> 49 & 0x7f) << 5 | logical;
    // Delivery mode and vector have the places they have in an MSI; bit 14 is the level, asserted.
    let level = if e & entry::LEVEL != 0 { 1 << 15 } else { 0 };
    Msi { address, data: (e & 0x7ff) as u32 | 1 << 14 | level }
}

impl Device for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    /// Line levels stay: they are their drivers'.
    fn reset(&mut self) {
        self.id = 0;
        self.select = 0;
        self.entries = [entry::MASKED; PINS as usize];
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { sink: _, id, select, entries, lines } = self;
        let state = IoApicState { id: *id, select: *select, entries: *entries, lines: *lines };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let IoApicState { id, select, entries, lines } = section.decode(KIND, VERSION)?;
        let is_bad = |e: &u64| e & !(entry::WRITABLE | entry::REMOTE_IRR) != 0;
        if id & !0x0f00_0000 != 0 || lines >> PINS != 0 || entries.iter().any(is_bad) {
            let reason = "reserved bits set".to_owned();
            return Err(state::Error::Malformed { kind: KIND, reason });
        }
        (self.id, self.select, self.entries, self.lines) = (id, select, entries, lines);
        Ok(())
    }

    fn as_mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        Some(self)
    }
}

impl MmioDevice for IoApic {
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset & !3 {
            offset::IOREGSEL => u32::from(self.select),
            offset::IOWIN => self.read_register(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        for (byte, i) in data.iter_mut().zip(offset as usize & 3..) {
            *byte = bytes.get(i).copied().unwrap_or(0);
        }
    }

    /// Registers are written whole; a narrow write sets the register's other bytes to 0, as the chip latches
    /// what is on its data lines.
    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset {
            offset::IOREGSEL => self.select = value as u8,
            offset::IOWIN => self.write_register(value),
            offset::EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

impl EoiSink for Mutex<IoApic> {
    fn end_of_interrupt(&self, vector: u8) {
        lock(self).end_of_interrupt(vector);
    }
}
