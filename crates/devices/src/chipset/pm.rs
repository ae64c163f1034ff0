//! ACPI fixed hardware (ACPI 6.5, section 4.8): PM1a event and control blocks, the power management timer, the
//! reset register.
//!
//! The system is always in ACPI mode: there is no SMI command port, and SCI_EN reads 1. Of the sleep types only
//! soft-off is there. No GPE block, no wake events; holding the power button for four seconds is the host's
//! business. The reset register is the PC's port 0xcf9.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use state::Section;

use super::ports::bytewise_write;
use crate::device::{Clock, Device, PioDevice, PowerEvent, PowerSink, Timed};
use crate::irq::IrqLine;

/// First port of the block: status, enable, control, timer.
pub const PORT: u16 = 0x600;
/// How many.
pub const PORTS: u32 = 12;
/// PM1a event block: status and enable register.
pub const EVENT_BLOCK: u16 = PORT;
/// Its length in bytes.
pub const EVENT_LEN: u8 = 4;
/// PM1a control block.
pub const CONTROL_BLOCK: u16 = PORT + 4;
/// Its length in bytes.
pub const CONTROL_LEN: u8 = 2;
/// Power management timer, 32 bits wide.
pub const TIMER_BLOCK: u16 = PORT + 8;
/// Its length in bytes.
pub const TIMER_LEN: u8 = 4;
/// First of the ports around the reset register. All four are claimed: a 32-bit access at 0xcf8 is PCI's
/// configuration address and must not reach the reset register in its second byte.
pub const RESET_BLOCK: u16 = 0xcf8;
/// How many.
pub const RESET_LEN: u32 = 4;
/// The reset register.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write there.
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of soft-off, for `_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Frequency of the timer.
pub const TIMER_HZ: u64 = 3_579_545;
/// The line the SCI is usually on.
pub const SCI: u32 = 9;

const NS_PER_S: u128 = 1_000_000_000;

/// Bits of status and enable register.
mod event {
    pub const TIMER: u16 = 1;
    pub const POWER_BUTTON: u16 = 1 << 8;
    /// Bus master, global, power button, sleep button, RTC, and wake status.
    pub const STATUS: u16 = 0x8731;
    pub const ENABLE: u16 = 0x0721;
}

/// Bits of the control register.
mod control {
    pub const SCI_ENABLED: u16 = 1;
    pub const SLEEP_TYPE: u16 = 7 << 10;
    pub const SLEEP: u16 = 1 << 13;
    pub const KEPT: u16 = SLEEP_TYPE | 2;
}

/// Port 0xcf9: reset the processors; a rising edge acts.
const RESET_CPU: u8 = 1 << 2;

/// The saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control.
    pub control: u16,
    /// Port 0xcf9.
    pub reset_register: u8,
    /// Timer tick up to which the timer's status bit is right.
    pub seen_tick: u64,
}

/// The registers.
pub struct PowerManagement {
    // Glue.
    clock: Arc<dyn Clock>,
    line: IrqLine,
    power: Arc<dyn PowerSink>,
    // Saved.
    state: PmState,
}

const KIND: &str = "acpi-pm";
const VERSION: u32 = 1;

/// The timer's most significant bit changes this often, in ticks.
const TIMER_CARRY_SHIFT: u32 = 31;

impl PowerManagement {
    /// Registers in power-up state; `line` is the SCI.
    pub fn new(clock: Arc<dyn Clock>, line: IrqLine, power: Arc<dyn PowerSink>) -> Self {
        let state = PmState { status: 0, enable: 0, control: 0, reset_register: 0, seen_tick: 0 };
        let mut pm = Self { clock, line, power, state };
        pm.reset();
        pm
    }

    /// Presses the power button: the guest is asked to turn itself off. Whether it will hear of it: a system
    /// that has not enabled the button's event takes it for a later time.
    pub fn press_power_button(&mut self) -> bool {
        self.state.status |= event::POWER_BUTTON;
        self.update_line();
        self.state.enable & event::POWER_BUTTON != 0
    }

    fn tick(&self) -> u64 {
        (u128::from(self.clock.now()) * u128::from(TIMER_HZ) / NS_PER_S) as u64
    }

    fn settle(&mut self) {
        let tick = self.tick();
        if tick >> TIMER_CARRY_SHIFT > self.state.seen_tick >> TIMER_CARRY_SHIFT {
            self.state.status |= event::TIMER;
        }
        self.state.seen_tick = tick;
        self.update_line();
    }

    fn update_line(&self) {
        self.line.set(self.state.status & self.state.enable != 0);
    }

    fn register(&self, offset: u16) -> u8 {
        let s = &self.state;
        match offset {
            0 | 1 => s.status.to_le_bytes()[usize::from(offset)],
            2 | 3 => s.enable.to_le_bytes()[usize::from(offset - 2)],
            4 | 5 => (s.control | control::SCI_ENABLED).to_le_bytes()[usize::from(offset - 4)],
            8..=11 => (s.seen_tick as u32).to_le_bytes()[usize::from(offset - 8)],
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u16, value: u8) {
        let (shift, mask) = ((offset & 1) * 8, 0xffu16 << ((offset & 1) * 8));
        let value = u16::from(value) << shift;
        let s = &mut self.state;
        match offset {
            0 | 1 => s.status &= !value,
            2 | 3 => s.enable = (s.enable & !mask | value) & event::ENABLE,
            4 | 5 => {
                s.control = (s.control & !mask | value & mask) & control::KEPT;
                let sleep_type = (s.control & control::SLEEP_TYPE) >> 10;
                if value & control::SLEEP != 0 && sleep_type == u16::from(SLEEP_TYPE_S5) {
                    self.power.request(PowerEvent::PowerOff);
                }
            }
            _ => {}
        }
    }

    fn write_reset(&mut self, value: u8) {
        if value & !self.state.reset_register & RESET_CPU != 0 {
            self.power.request(PowerEvent::Reset);
        }
        self.state.reset_register = value & 0x0e;
    }
}

impl Device for PowerManagement {
    fn name(&self) -> &str {
        "acpi-pm"
    }

    fn reset(&mut self) {
        let seen_tick = self.tick();
        self.state = PmState { status: 0, enable: 0, control: 0, reset_register: 0, seen_tick };
        self.update_line();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { clock: _, line: _, power: _, state } = self;
        Section::encode(KIND, VERSION, state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let state: PmState = section.decode(KIND, VERSION)?;
        let is_bad = state.status & !event::STATUS != 0 || state.enable & !event::ENABLE != 0;
        if is_bad || state.control & !control::KEPT != 0 || state.reset_register & !0x0e != 0 {
            let reason = "reserved bits set".to_owned();
            return Err(state::Error::Malformed { kind: KIND, reason });
        }
        self.state = state;
        self.settle();
        Ok(())
    }

    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PioDevice for PowerManagement {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        if (RESET_BLOCK..RESET_BLOCK + RESET_LEN as u16).contains(&port) {
            // No PCI here: all ones but for the reset register.
            match data {
                [byte] if port == RESET_PORT => *byte = self.state.reset_register,
                _ => data.fill(0xff),
            }
            return;
        }
        self.settle();
        for (byte, port) in data.iter_mut().zip(port..) {
            *byte = self.register(port.wrapping_sub(PORT));
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        if let (RESET_PORT, [value]) = (port, data) {
            return self.write_reset(*value);
        }
        self.settle();
        // SLP_EN is in the same byte as SLP_TYP, so bytes can be written one by one.
        bytewise_write(port, data, |port, value| self.write_register(port.wrapping_sub(PORT), value));
        self.update_line();
    }
}

impl Timed for PowerManagement {
    fn next_deadline(&self) -> Option<u64> {
        let s = &self.state;
        (s.enable & event::TIMER != 0 && s.status & event::TIMER == 0).then(|| {
            let next = ((s.seen_tick >> TIMER_CARRY_SHIFT) + 1) << TIMER_CARRY_SHIFT;
            (u128::from(next) * NS_PER_S).div_ceil(u128::from(TIMER_HZ)) as u64
        })
    }

    fn advance(&mut self, _now: u64) {
        self.settle();
    }
}
