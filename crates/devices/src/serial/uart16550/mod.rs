//! A 16550A UART (National Semiconductor PC16550D data sheet).
//!
//! Output leaves at once while the [`ConsoleSink`] takes it, however slow the guest set the line; a sink that
//! takes no more fills the transmit FIFO, the guest sees it full, and the sink is tried again at every status
//! read and every [`RETRY_NS`]. So a guest that fills its console without end waits like on a real line, and
//! one that does not look loses bytes, as on a real line. Input is pushed by any thread through [`SerialInput`].
//!
//! Omitted: baud-rate timing, parity and framing errors (there is no wire), DMA modes. The character time-out
//! interrupt comes as soon as there is data below the trigger level, not four character times later.

mod input;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use state::Section;

use crate::chipset::ports::{bytewise_read, bytewise_write};
use crate::device::{Clock, Device, PioDevice, Timed};
use crate::irq::IrqLine;
use input::Room;
pub use input::SerialInput;

/// I/O ports a UART has.
pub const PORTS: u32 = 8;
/// First port of COM1; its interrupt line is 4.
pub const COM1: u16 = 0x3f8;
/// How often a sink that took nothing is tried again.
pub const RETRY_NS: u64 = 1_000_000;

const FIFO_SIZE: usize = 16;

/// Where a serial port's output goes.
pub trait ConsoleSink: Send {
    /// Takes as many of `bytes` as it can without waiting for a slow reader; how many it took. A sink whose
    /// reader is gone takes all. Called on a vCPU's thread.
    fn write(&mut self, bytes: &[u8]) -> usize;
}

/// Register offsets.
mod reg {
    /// RBR, THR; divisor low with DLAB.
    pub const DATA: u16 = 0;
    /// Divisor high with DLAB.
    pub const IER: u16 = 1;
    /// FCR when written.
    pub const IIR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;
    pub const MSR: u16 = 6;
    pub const SCR: u16 = 7;
}

mod ier {
    pub const RECEIVED: u8 = 1;
    pub const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub const LINE_STATUS: u8 = 1 << 2;
    pub const MODEM_STATUS: u8 = 1 << 3;
    pub const MASK: u8 = 0x0f;
}

mod iir {
    pub const NONE: u8 = 1;
    pub const MODEM_STATUS: u8 = 0;
    pub const TRANSMITTER_EMPTY: u8 = 2;
    pub const RECEIVED: u8 = 4;
    pub const LINE_STATUS: u8 = 6;
    pub const TIME_OUT: u8 = 0xc;
    pub const FIFO_ENABLED: u8 = 0xc0;
}

mod fcr {
    pub const ENABLE: u8 = 1;
    pub const CLEAR_RECEIVER: u8 = 1 << 1;
    pub const CLEAR_TRANSMITTER: u8 = 1 << 2;
    pub const KEPT: u8 = 0xc9;
}

mod lsr {
    pub const DATA_READY: u8 = 1;
    pub const OVERRUN: u8 = 1 << 1;
    pub const BREAK: u8 = 1 << 4;
    pub const TRANSMITTER_EMPTY: u8 = 1 << 5;
    pub const IDLE: u8 = 1 << 6;
}

mod mcr {
    pub const OUT2: u8 = 1 << 3;
    pub const LOOPBACK: u8 = 1 << 4;
    pub const MASK: u8 = 0x1f;
}

/// Modem status with the other end there and ready: DCD, DSR, CTS.
const MSR_CONNECTED: u8 = 0xb0;
/// Modem status: ring indicator.
const MSR_RING: u8 = 1 << 6;
const LCR_DLAB: u8 = 1 << 7;
const LCR_BREAK: u8 = 1 << 6;

const KIND: &str = "uart16550";
const VERSION: u32 = 1;

/// The saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    /// Interrupt enable.
    pub ier: u8,
    /// FIFO control, readable bits.
    pub fcr: u8,
    /// Line control.
    pub lcr: u8,
    /// Modem control.
    pub mcr: u8,
    /// Error bits of the line status.
    pub errors: u8,
    /// Modem status with deltas.
    pub msr: u8,
    /// Scratch.
    pub scr: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// Whether the transmitter-empty interrupt is pending.
    pub transmit_interrupt: bool,
    /// Received, not read.
    pub received: Vec<u8>,
    /// Written, not taken by the sink.
    pub waiting: Vec<u8>,
}

/// The chip.
pub struct Uart16550 {
    // Glue.
    name: String,
    line: IrqLine,
    sink: Box<dyn ConsoleSink>,
    clock: Arc<dyn Clock>,
    room: Arc<Room>,
    // Bookkeeping.
    /// When the sink is tried again.
    retry: Option<u64>,
    // Saved.
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    errors: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    transmit_interrupt: bool,
    received: VecDeque<u8>,
    waiting: VecDeque<u8>,
}

impl Uart16550 {
    /// A UART in power-up state.
    pub fn new(name: &str, line: IrqLine, sink: Box<dyn ConsoleSink>, clock: Arc<dyn Clock>) -> Self {
        Self {
            name: name.to_owned(),
            line,
            sink,
            clock,
            room: Arc::default(),
            retry: None,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            errors: 0,
            msr: MSR_CONNECTED,
            scr: 0,
            // What firmware leaves: 115200 baud.
            divisor: 1,
            transmit_interrupt: false,
            received: VecDeque::with_capacity(FIFO_SIZE),
            waiting: VecDeque::with_capacity(FIFO_SIZE),
        }
    }

    /// Receives as many of `bytes` as there is room for; how many. [`SerialInput`] does the waiting.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        if self.mcr & mcr::LOOPBACK != 0 {
            // The pin is disconnected. Waiting would stop the sender for as long as the guest likes.
            return bytes.len();
        }
        let count = bytes.len().min(self.capacity() - self.received.len().min(self.capacity()));
        self.received.extend(&bytes[..count]);
        self.update_line();
        count
    }

    fn is_fifo_enabled(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.is_fifo_enabled() { FIFO_SIZE } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        match (self.is_fifo_enabled(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            _ => 14,
        }
    }

    fn line_status(&self) -> u8 {
        let mut value = self.errors;
        if !self.received.is_empty() {
            value |= lsr::DATA_READY;
        }
        if self.waiting.is_empty() {
            value |= lsr::TRANSMITTER_EMPTY | lsr::IDLE;
        }
        value
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & mcr::LOOPBACK == 0 {
            return self.msr;
        }
        // RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD.
        let m = self.mcr;
        self.msr & 0x0f | (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4
    }

    /// The pending interrupt of highest priority.
    fn interrupt(&self) -> u8 {
        if self.ier & ier::LINE_STATUS != 0 && self.errors != 0 {
            iir::LINE_STATUS
        } else if self.ier & ier::RECEIVED != 0 && self.received.len() >= self.trigger_level() {
            iir::RECEIVED
        } else if self.ier & ier::RECEIVED != 0 && !self.received.is_empty() {
            iir::TIME_OUT
        } else if self.ier & ier::TRANSMITTER_EMPTY != 0 && self.transmit_interrupt {
            iir::TRANSMITTER_EMPTY
        } else if self.ier & ier::MODEM_STATUS != 0 && self.msr & 0x0f != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    /// OUT2 gates the line on a PC's board; in loop-back mode the pin is high, and the line quiet.
    fn update_line(&self) {
        let gate = self.mcr & (mcr::OUT2 | mcr::LOOPBACK) == mcr::OUT2;
        self.line.set(gate && self.interrupt() != iir::NONE);
    }

    fn transmit(&mut self, byte: u8) {
        self.transmit_interrupt = false;
        if self.mcr & mcr::LOOPBACK != 0 {
            if self.received.len() < self.capacity() {
                self.received.push_back(byte);
            } else {
                self.errors |= lsr::OVERRUN;
            }
            self.transmit_interrupt = true;
            return;
        }
        if self.waiting.is_empty() && self.sink.write(&[byte]) == 1 {
            self.transmit_interrupt = true;
            return;
        }
        // A guest that writes into a full FIFO loses the byte.
        if self.waiting.len() < self.capacity() {
            self.waiting.push_back(byte);
        }
        self.retry.get_or_insert_with(|| self.clock.now().saturating_add(RETRY_NS));
    }

    /// Gives the sink what waits.
    fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let bytes = self.waiting.make_contiguous();
        let taken = self.sink.write(bytes).min(bytes.len());
        self.waiting.drain(..taken);
        if self.waiting.is_empty() {
            self.retry = None;
            self.transmit_interrupt = true;
        }
    }

    fn read(&mut self, register: u16) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        let value = match register {
            reg::DATA if dlab => self.divisor as u8,
            reg::IER if dlab => (self.divisor >> 8) as u8,
            reg::DATA => {
                let byte = self.received.pop_front().unwrap_or(0);
                if self.received.is_empty() {
                    self.room.announce();
                }
                byte
            }
            reg::IER => self.ier,
            reg::IIR => {
                let interrupt = self.interrupt();
                if interrupt == iir::TRANSMITTER_EMPTY {
                    self.transmit_interrupt = false;
                }
                interrupt | if self.is_fifo_enabled() { iir::FIFO_ENABLED } else { 0 }
            }
            reg::LCR => self.lcr,
            reg::MCR => self.mcr,
            reg::LSR => {
                self.flush();
                let value = self.line_status();
                self.errors = 0;
                value
            }
            reg::MSR => {
                let value = self.modem_status();
                self.msr &= 0xf0;
                value
            }
            reg::SCR => self.scr,
            _ => 0xff,
        };
        self.update_line();
        value
    }

    fn write(&mut self, register: u16, value: u8) {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register {
            reg::DATA if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            reg::IER if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            reg::DATA => self.transmit(value),
            reg::IER => self.write_ier(value & ier::MASK),
            reg::IIR => self.write_fcr(value),
            reg::LCR => self.write_lcr(value),
            reg::MCR => self.write_mcr(value & mcr::MASK),
            reg::SCR => self.scr = value,
            // LSR and MSR are for tests in the factory.
            _ => {}
        }
        self.update_line();
    }

    fn write_ier(&mut self, value: u8) {
        // Enabling the interrupt while the transmitter is empty raises it.
        if value & !self.ier & ier::TRANSMITTER_EMPTY != 0 && self.waiting.is_empty() {
            self.transmit_interrupt = true;
        }
        self.ier = value;
    }

    fn write_fcr(&mut self, value: u8) {
        let is_switched = (value ^ self.fcr) & fcr::ENABLE != 0;
        if value & fcr::CLEAR_RECEIVER != 0 || is_switched {
            self.received.clear();
            self.room.announce();
        }
        // What waits for a slow sink was sent as far as a guest could tell from a real line's speed.
        let is_enabled = value & fcr::ENABLE != 0;
        if (value & fcr::CLEAR_TRANSMITTER != 0 && is_enabled) || is_switched {
            self.flush();
            self.waiting.clear();
            self.retry = None;
            self.transmit_interrupt = true;
        }
        // The other bits can be written only together with the enable bit.
        self.fcr = if is_enabled { value & fcr::KEPT } else { 0 };
    }

    fn write_lcr(&mut self, value: u8) {
        let is_looped = self.mcr & mcr::LOOPBACK != 0;
        if is_looped && value & !self.lcr & LCR_BREAK != 0 {
            self.errors |= lsr::BREAK;
            if self.received.len() < self.capacity() {
                self.received.push_back(0);
            }
        }
        self.lcr = value;
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_status();
        self.mcr = value;
        let after = self.modem_status();
        let changed = (before ^ after) >> 4;
        // The ring indicator counts when it ends.
        let ring_ended = before & !after & MSR_RING != 0;
        self.msr |= changed & 0b1011 | u8::from(ring_ended) << 2;
    }
}

impl Device for Uart16550 {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&mut self) {
        self.flush();
        (self.ier, self.fcr, self.lcr, self.mcr) = (0, 0, 0, 0);
        (self.errors, self.msr, self.scr, self.divisor) = (0, MSR_CONNECTED, 0, 1);
        self.transmit_interrupt = false;
        self.received.clear();
        self.waiting.clear();
        self.retry = None;
        self.room.announce();
        self.update_line();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self {
            name: _,
            line: _,
            sink: _,
            clock: _,
            room: _,
            retry: _,
            ier,
            fcr,
            lcr,
            mcr,
            errors,
            msr,
            scr,
            divisor,
            transmit_interrupt,
            received,
            waiting,
        } = self;
        let state = UartState {
            ier: *ier,
            fcr: *fcr,
            lcr: *lcr,
            mcr: *mcr,
            errors: *errors,
            msr: *msr,
            scr: *scr,
            divisor: *divisor,
            transmit_interrupt: *transmit_interrupt,
            received: received.iter().copied().collect(),
            waiting: waiting.iter().copied().collect(),
        };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let s: UartState = section.decode(KIND, VERSION)?;
        let is_bad_fifo = s.received.len() > FIFO_SIZE || s.waiting.len() > FIFO_SIZE;
        if is_bad_fifo || s.ier & !ier::MASK != 0 || s.mcr & !mcr::MASK != 0 || s.fcr & !fcr::KEPT != 0 {
            let reason = "fifo length or reserved bits".to_owned();
            return Err(state::Error::Malformed { kind: KIND, reason });
        }
        (self.ier, self.fcr, self.lcr, self.mcr) = (s.ier, s.fcr, s.lcr, s.mcr);
        (self.errors, self.msr, self.scr, self.divisor) = (s.errors, s.msr, s.scr, s.divisor);
        self.transmit_interrupt = s.transmit_interrupt;
        self.received = s.received.into();
        self.waiting = s.waiting.into();
        self.retry = (!self.waiting.is_empty()).then(|| self.clock.now());
        self.room.announce();
        self.update_line();
        Ok(())
    }

    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PioDevice for Uart16550 {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        bytewise_read(port, data, |port| self.read(port & 7));
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        bytewise_write(port, data, |port, value| self.write(port & 7, value));
    }
}

impl Timed for Uart16550 {
    fn next_deadline(&self) -> Option<u64> {
        self.retry
    }

    fn advance(&mut self, now: u64) {
        if self.retry.is_some_and(|retry| retry <= now) {
            self.flush();
            self.retry = (!self.waiting.is_empty()).then(|| now.saturating_add(RETRY_NS));
            self.update_line();
        }
    }
}
