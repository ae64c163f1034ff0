//! The PC's real-time clock and CMOS memory (Motorola MC146818A data sheet; century at 0x32 as ACPI's FADT says).
//!
//! The time is the machine's wall clock plus what the guest set it off by. Interrupts go to line 8. Nothing
//! ticks unless an interrupt is enabled: flags are computed from the time when register C is read.
//!
//! Omitted: daylight saving (its bit is kept), the square-wave output. The NMI mask in port 0x70 is kept for
//! whoever has an NMI to send.

mod date;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use state::Section;

use super::ports::{bytewise_read, bytewise_write};
use crate::device::{Clock, Device, PioDevice, Timed};
use crate::irq::IrqLine;
use date::Date;

/// Index port; data is at the next one.
pub const PORT: u16 = 0x70;
/// How many ports.
pub const PORTS: u32 = 2;
/// Bytes of CMOS memory, registers included.
pub const CMOS_SIZE: usize = 128;

/// CMOS addresses.
mod reg {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = 0x32;
}

/// CMOS address of the century, for the FADT.
pub const CENTURY_INDEX: u8 = reg::CENTURY;

mod reg_a {
    pub const UPDATE_IN_PROGRESS: u8 = 0x80;
    pub const DIVIDER: u8 = 0x70;
    /// Divider chain held in reset.
    pub const DIVIDER_RESET: u8 = 0x60;
    pub const RATE: u8 = 0x0f;
    pub const POWER_UP: u8 = 0x26;
}

mod reg_b {
    pub const SET: u8 = 0x80;
    pub const HOUR_24: u8 = 0x02;
    pub const BINARY: u8 = 0x04;
    /// 24 hours, BCD.
    pub const POWER_UP: u8 = HOUR_24;
}

/// Flags of register C; their enable bits in B have the same places.
mod flag {
    pub const IRQ: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
    pub const ALL: u8 = PERIODIC | ALARM | UPDATE;
}

/// Register D: battery fine.
const VALID_TIME: u8 = 0x80;
const HOUR_PM: u8 = 0x80;
/// Alarm fields from here on match any value.
const ALARM_ANY: u8 = 0xc0;
const NS_PER_S: i128 = 1_000_000_000;
/// An update takes 1984 µs, and UIP is set 244 µs earlier.
const UPDATE_NS: i128 = 1_984_000 + 244_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// Where time registers are copied to while SET holds them: seconds, minutes, hours, weekday, day, month, year,
/// century.
const TIME_REGISTERS: [u8; 8] =
    [reg::SECONDS, reg::MINUTES, reg::HOURS, reg::WEEKDAY, reg::DAY, reg::MONTH, reg::YEAR, reg::CENTURY];

/// The saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Selected CMOS address.
    pub index: u8,
    /// Bit 7 of the last write to port 0x70.
    pub nmi_masked: bool,
    /// CMOS memory, 128 bytes; time registers only while they are held.
    pub cmos: Vec<u8>,
    /// The guest's time minus the machine's wall clock, in nanoseconds.
    pub offset_ns: i64,
    /// Flags of register C without the IRQ bit.
    pub flags: u8,
    /// Guest second up to which flags are right.
    pub seen_second: i64,
    /// Periodic tick up to which flags are right.
    pub seen_tick: u64,
}

/// The chip.
pub struct Rtc {
    // Glue.
    clock: Arc<dyn Clock>,
    line: IrqLine,
    // Saved.
    index: u8,
    nmi_masked: bool,
    cmos: [u8; CMOS_SIZE],
    offset_ns: i64,
    flags: u8,
    seen_second: i64,
    seen_tick: u64,
}

const KIND: &str = "rtc";
const VERSION: u32 = 1;

impl Rtc {
    /// A clock that shows the machine's wall clock (as UTC) and drives `line`, usually 8.
    pub fn new(clock: Arc<dyn Clock>, line: IrqLine) -> Self {
        let mut rtc = Self {
            clock,
            line,
            index: 0,
            nmi_masked: false,
            cmos: [0; CMOS_SIZE],
            offset_ns: 0,
            flags: 0,
            seen_second: 0,
            seen_tick: 0,
        };
        rtc.cmos[usize::from(reg::A)] = reg_a::POWER_UP;
        rtc.cmos[usize::from(reg::B)] = reg_b::POWER_UP;
        rtc.forget_time();
        rtc
    }

    /// Sets a byte of CMOS memory, as firmware's set-up does. Clock registers are left alone.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        if index > reg::D && index != reg::CENTURY && usize::from(index) < CMOS_SIZE {
            self.cmos[usize::from(index)] = value;
        }
    }

    /// Whether the guest masks NMIs by bit 7 of port 0x70.
    pub fn is_nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    fn cmos(&self, index: u8) -> u8 {
        self.cmos[usize::from(index)]
    }

    /// Whether the time registers hold still.
    fn is_held(&self) -> bool {
        self.cmos(reg::B) & reg_b::SET != 0
            || self.cmos(reg::A) & reg_a::DIVIDER_RESET == reg_a::DIVIDER_RESET
    }

    /// The guest's time in nanoseconds since the epoch.
    fn time_ns(&self) -> i128 {
        i128::from(self.clock.wall_clock()) + i128::from(self.offset_ns)
    }

    fn second(&self) -> i64 {
        self.time_ns().div_euclid(NS_PER_S) as i64
    }

    /// Nanoseconds between periodic interrupts as a power of two of the 32,768 Hz clock; `None` if off.
    fn periodic_shift(&self) -> Option<u32> {
        match self.cmos(reg::A) & reg_a::RATE {
            0 => None,
            // Aliases of 8 and 9.
            rate @ (1 | 2) => Some(u32::from(rate) + 6),
            rate => Some(u32::from(rate) - 1),
        }
        .filter(|_| self.cmos(reg::A) & reg_a::DIVIDER_RESET != reg_a::DIVIDER_RESET)
    }

    fn tick(&self) -> u64 {
        (i128::from(self.clock.now()) * 32_768 / NS_PER_S) as u64
    }

    /// What happens from now on counts; what happened before does not.
    fn forget_time(&mut self) {
        self.seen_second = self.second();
        self.seen_tick = self.tick();
    }

    /// Sets the flags of what happened since the last time, and drives the line.
    fn settle(&mut self) {
        let tick = self.tick();
        if let Some(shift) = self.periodic_shift()
            && tick >> shift > self.seen_tick >> shift
        {
            self.flags |= flag::PERIODIC;
        }
        self.seen_tick = tick;
        let second = self.second();
        if !self.is_held() && second > self.seen_second {
            self.flags |= flag::UPDATE;
            // A day holds every time of day, and bounds the search.
            let from = (self.seen_second + 1).max(second.saturating_sub(SECONDS_PER_DAY - 1));
            if self.flags & flag::ALARM == 0 && (from..=second).any(|s| self.is_alarm(s)) {
                self.flags |= flag::ALARM;
            }
        }
        // The wall clock may be set back.
        self.seen_second = second;
        self.update_line();
    }

    fn update_line(&self) {
        self.line.set(self.flags & self.cmos(reg::B) & flag::ALL != 0);
    }

    fn is_alarm(&self, second: i64) -> bool {
        let time = second.rem_euclid(SECONDS_PER_DAY);
        let matches = |alarm: u8, value: u8| self.cmos(alarm) >= ALARM_ANY || self.cmos(alarm) == value;
        // An hour with PM set is no wildcard unless its upper two bits are.
        matches(reg::SECONDS_ALARM, self.encode((time % 60) as u8))
            && matches(reg::MINUTES_ALARM, self.encode((time / 60 % 60) as u8))
            && matches(reg::HOURS_ALARM, self.encode_hour((time / 3600) as u8))
    }

    fn encode(&self, value: u8) -> u8 {
        if self.cmos(reg::B) & reg_b::BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.cmos(reg::B) & reg_b::BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cmos(reg::B) & reg_b::HOUR_24 != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOUR_PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.cmos(reg::B) & reg_b::HOUR_24 != 0 {
            return self.decode(value);
        }
        let pm = if value & HOUR_PM != 0 { 12 } else { 0 };
        self.decode(value & !HOUR_PM) % 12 + pm
    }

    /// The value a time register shows at `second`.
    fn time_register(&self, index: u8, second: i64) -> u8 {
        let date = Date::from_seconds(second);
        match index {
            reg::SECONDS => self.encode(date.second),
            reg::MINUTES => self.encode(date.minute),
            reg::HOURS => self.encode_hour(date.hour),
            reg::WEEKDAY => self.encode(date.weekday),
            reg::DAY => self.encode(date.day),
            reg::MONTH => self.encode(date.month),
            reg::YEAR => self.encode(date.year.rem_euclid(100) as u8),
            _ => self.encode(date.year.div_euclid(100).rem_euclid(100) as u8),
        }
    }

    /// Stops the time registers: from now on they are memory.
    fn hold(&mut self) {
        let second = self.second();
        for index in TIME_REGISTERS {
            self.cmos[usize::from(index)] = self.time_register(index, second);
        }
    }

    /// Lets the time go on from what the registers hold.
    fn release(&mut self) {
        let field = |index| self.decode(self.cmos(index));
        let date = Date {
            year: i64::from(field(reg::CENTURY)) * 100 + i64::from(field(reg::YEAR)),
            month: field(reg::MONTH),
            day: field(reg::DAY),
            hour: self.decode_hour(self.cmos(reg::HOURS)),
            minute: field(reg::MINUTES),
            second: field(reg::SECONDS),
            weekday: 1,
        };
        // The divider chain keeps its phase.
        let phase = self.time_ns().rem_euclid(NS_PER_S);
        let wanted = i128::from(date.to_seconds()) * NS_PER_S + phase;
        let offset = wanted - i128::from(self.clock.wall_clock());
        self.offset_ns = offset.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        self.forget_time();
    }

    fn is_updating(&self) -> bool {
        !self.is_held() && self.time_ns().rem_euclid(NS_PER_S) >= NS_PER_S - UPDATE_NS
    }

    fn read(&mut self) -> u8 {
        self.settle();
        match self.index {
            reg::A => {
                let updating = if self.is_updating() { reg_a::UPDATE_IN_PROGRESS } else { 0 };
                self.cmos(reg::A) | updating
            }
            reg::C => {
                let enabled = self.flags & self.cmos(reg::B) & flag::ALL;
                let value = self.flags | if enabled != 0 { flag::IRQ } else { 0 };
                self.flags = 0;
                self.update_line();
                value
            }
            reg::D => VALID_TIME,
            index if TIME_REGISTERS.contains(&index) && !self.is_held() => {
                self.time_register(index, self.second())
            }
            index => self.cmos(index),
        }
    }

    fn write(&mut self, value: u8) {
        self.settle();
        let index = self.index;
        match index {
            reg::A => self.change_hold(|rtc| {
                rtc.cmos[usize::from(reg::A)] = value & (reg_a::DIVIDER | reg_a::RATE);
            }),
            // Setting SET clears the update-ended interrupt's enable bit.
            reg::B => self.change_hold(|rtc| {
                let clear = if value & reg_b::SET != 0 { flag::UPDATE } else { 0 };
                rtc.cmos[usize::from(reg::B)] = value & !clear;
            }),
            reg::C | reg::D => {}
            _ if TIME_REGISTERS.contains(&index) && !self.is_held() => {
                self.hold();
                self.cmos[usize::from(index)] = value;
                self.release();
            }
            _ => self.cmos[usize::from(index)] = value,
        }
        self.update_line();
    }

    /// Changes register A or B, which may stop the time or let it go on.
    fn change_hold(&mut self, change: impl FnOnce(&mut Self)) {
        let was_held = self.is_held();
        if !was_held {
            self.hold();
        }
        change(self);
        // Registers hold digits in the format they were written in, so that a change of format re-reads them.
        if was_held && !self.is_held() {
            self.release();
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    /// The chip has a battery: time and memory stay, interrupts are disabled.
    fn reset(&mut self) {
        self.settle();
        self.cmos[usize::from(reg::B)] &= !flag::ALL;
        self.flags = 0;
        self.index = 0;
        self.nmi_masked = false;
        self.update_line();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { clock: _, line: _, index, nmi_masked, cmos, offset_ns, flags, seen_second, seen_tick } =
            self;
        let state = RtcState {
            index: *index,
            nmi_masked: *nmi_masked,
            cmos: cmos.to_vec(),
            offset_ns: *offset_ns,
            flags: *flags,
            seen_second: *seen_second,
            seen_tick: *seen_tick,
        };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let s: RtcState = section.decode(KIND, VERSION)?;
        let bad = || state::Error::Malformed { kind: KIND, reason: "index, flags or memory size".to_owned() };
        let cmos: [u8; CMOS_SIZE] = s.cmos.try_into().map_err(|_| bad())?;
        if usize::from(s.index) >= CMOS_SIZE || s.flags & !flag::ALL != 0 {
            return Err(bad());
        }
        (self.index, self.nmi_masked, self.cmos) = (s.index, s.nmi_masked, cmos);
        (self.offset_ns, self.flags) = (s.offset_ns, s.flags);
        (self.seen_second, self.seen_tick) = (s.seen_second, s.seen_tick);
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

impl PioDevice for Rtc {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        // The index port is write-only.
        bytewise_read(port, data, |port| if port == PORT + 1 { self.read() } else { 0xff });
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        bytewise_write(port, data, |port, value| match port {
            PORT => {
                self.index = value & 0x7f;
                self.nmi_masked = value & 0x80 != 0;
            }
            p if p == PORT + 1 => self.write(value),
            _ => {}
        });
    }
}

impl Timed for Rtc {
    fn next_deadline(&self) -> Option<u64> {
        let enabled = self.cmos(reg::B) & flag::ALL & !self.flags;
        let now = self.clock.now();
        let periodic = self.periodic_shift().filter(|_| enabled & flag::PERIODIC != 0).map(|shift| {
            let next = ((self.seen_tick >> shift) + 1) << shift;
            (i128::from(next) * NS_PER_S).div_euclid(32_768) as u64 + 1
        });
        let is_second = enabled & (flag::ALARM | flag::UPDATE) != 0 && !self.is_held();
        let second = is_second.then(|| {
            let left = (i128::from(self.seen_second) + 1) * NS_PER_S - self.time_ns();
            now.saturating_add(left.clamp(1, NS_PER_S) as u64)
        });
        periodic.into_iter().chain(second).min()
    }

    fn advance(&mut self, _now: u64) {
        self.settle();
    }
}
