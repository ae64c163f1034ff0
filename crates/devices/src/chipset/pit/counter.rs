//! One counter of an 8254, in ticks of its clock input. Nothing counts: everything is computed from the time.
//!
//! Times are tick numbers. `held + (now - base)` ticks have been counted since the count was loaded.

use serde::{Deserialize, Serialize};

/// One counter, live and saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterState {
    /// Mode 0..=5.
    pub mode: u8,
    /// Bits 5..=0 of the control word: access, mode, BCD as written.
    pub control: u8,
    /// Count register as written; 0 means the largest count.
    pub reload: u16,
    /// Count in use; differs from `reload` until it takes effect in modes 1, 2, 3, 5.
    pub count: u16,
    /// Low byte of a count of which only that was written.
    pub low: Option<u8>,
    /// Whether the next read gives the high byte.
    pub read_high: bool,
    /// Latched count: value, and how many bytes are still to be read.
    pub latch: Option<(u16, u8)>,
    /// Latched status.
    pub status: Option<u8>,
    /// Whether a count was loaded and is being counted (or held by the gate).
    pub loaded: bool,
    /// Whether `reload` waits to take effect.
    pub null_count: bool,
    /// Ticks counted before `base`.
    pub held: u64,
    /// The tick counting went on from; meaningless while the gate stops it.
    pub base: u64,
    /// Gate input.
    pub gate: bool,
}

/// Bits of the control word.
const BCD: u8 = 1;
const ACCESS_LOW: u8 = 1;
const ACCESS_HIGH: u8 = 2;

fn from_bcd(value: u16) -> u32 {
    // Digits above 9 count as what they are; the chip's behaviour is undefined.
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u32::from(value >> (4 * digit) & 15))
}

fn to_bcd(value: u32) -> u16 {
    (0..4).fold(0, |sum, digit| sum | (value / 10u32.pow(digit) % 10) << (4 * digit)) as u16
}

impl CounterState {
    pub(super) fn power_up(gate: bool) -> Self {
        // Undefined until programmed; here, waiting for a count.
        Self { control: 0x30, gate, ..Self::default() }
    }

    fn is_bcd(&self) -> bool {
        self.control & BCD != 0
    }

    /// Number of values a counter goes through.
    fn modulus(&self) -> u64 {
        if self.is_bcd() { 10_000 } else { 0x1_0000 }
    }

    /// A count register's value in ticks.
    fn ticks_of(&self, count: u16) -> u64 {
        let ticks = if self.is_bcd() { u64::from(from_bcd(count)) } else { u64::from(count) };
        // A count of 1 is illegal in modes 2 and 3; taken for 2, it cannot stop time.
        match ticks {
            0 => self.modulus(),
            1 if matches!(self.mode, 2 | 3) => 2,
            ticks => ticks,
        }
    }

    fn period(&self) -> u64 {
        self.ticks_of(self.count)
    }

    /// Whether a low gate stops the count.
    fn is_stopped(&self) -> bool {
        !self.gate && matches!(self.mode, 0 | 2 | 3 | 4)
    }

    fn elapsed(&self, now: u64) -> u64 {
        if self.is_stopped() { self.held } else { self.held + now.saturating_sub(self.base) }
    }

    fn load(&mut self, now: u64) {
        self.count = self.reload;
        self.null_count = false;
        self.loaded = true;
        self.held = 0;
        self.base = now;
    }

    /// Lets a new count of modes 2 and 3 take effect at the end of a period, and keeps numbers small.
    pub(super) fn settle(&mut self, now: u64) {
        if !self.loaded || !matches!(self.mode, 2 | 3) || self.is_stopped() {
            return;
        }
        let elapsed = self.elapsed(now);
        let period = self.period();
        if elapsed >= period {
            // The tick at which the period ended, from which the new count is counted.
            let end = now.saturating_sub(elapsed - period);
            if self.null_count {
                self.load(end);
                return self.settle(now);
            }
            self.held = 0;
            self.base = now.saturating_sub(elapsed % period);
        }
    }

    /// Ticks to the end of the running period, of periodic modes.
    fn position(&self, now: u64) -> u64 {
        self.elapsed(now) % self.period()
    }

    /// The OUT pin.
    pub(super) fn out(&self, now: u64) -> bool {
        let elapsed = self.elapsed(now);
        match self.mode {
            0 => self.loaded && elapsed >= self.period(),
            1 => !self.loaded || elapsed >= self.period(),
            2 => !self.loaded || !self.gate || self.position(now) != self.period() - 1,
            3 => !self.loaded || !self.gate || self.position(now) < self.period().div_ceil(2),
            _ => !self.loaded || elapsed != self.period(),
        }
    }

    /// The next tick after `now` at which OUT changes.
    pub(super) fn next_change(&self, now: u64) -> Option<u64> {
        if !self.loaded || self.is_stopped() {
            return None;
        }
        let (elapsed, period) = (self.elapsed(now), self.period());
        let left = match self.mode {
            0 | 1 => period.checked_sub(elapsed).filter(|&left| left > 0)?,
            2 => {
                let position = elapsed % period;
                if position < period - 1 { period - 1 - position } else { 1 }
            }
            3 => {
                let (position, half) = (elapsed % period, period.div_ceil(2));
                if position < half { half - position } else { period - position }
            }
            _ if elapsed < period => period - elapsed,
            _ if elapsed == period => 1,
            _ => return None,
        };
        now.checked_add(left)
    }

    /// The next tick after `now` at which OUT rises, or changes for more than a tick.
    pub(super) fn next_deadline(&self, now: u64) -> Option<u64> {
        let change = self.next_change(now)?;
        // Modes 2, 4 and 5 go low for one tick.
        let is_pulse = !matches!(self.mode, 0 | 1 | 3) && self.out(now);
        change.checked_add(is_pulse.into())
    }

    /// The counting element's value, as it would be latched.
    fn current(&self, now: u64) -> u16 {
        if !self.loaded {
            return self.count;
        }
        let modulus = self.modulus();
        let value = match self.mode {
            2 => self.period() - self.position(now),
            3 => {
                // Counts down by two, twice a period.
                let (position, half) = (self.position(now), self.period().div_ceil(2));
                let position = if position < half { position } else { position - half };
                (self.period() & !1) - 2 * position
            }
            // Goes on below zero.
            _ => (self.period() + modulus - self.elapsed(now) % modulus) % modulus,
        } % modulus;
        if self.is_bcd() { to_bcd(value as u32) } else { value as u16 }
    }

    /// Writes a control word for this counter.
    pub(super) fn write_control(&mut self, value: u8) {
        let mode = value >> 1 & 7;
        *self = Self {
            control: value & 0x3f,
            // The highest bit is ignored in modes 2 and 3.
            mode: if mode > 5 { mode & 3 } else { mode },
            null_count: true,
            gate: self.gate,
            count: self.count,
            reload: self.reload,
            ..Self::default()
        };
    }

    /// Latches the count, unless one is latched already.
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latch.is_none() {
            let bytes = if self.access() == ACCESS_LOW | ACCESS_HIGH { 2 } else { 1 };
            self.latch = Some((self.current(now), bytes));
        }
    }

    /// Latches the status, unless one is latched already.
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.status.is_none() {
            let out = if self.out(now) { 0x80 } else { 0 };
            let null = if self.null_count { 0x40 } else { 0 };
            self.status = Some(out | null | self.control);
        }
    }

    fn access(&self) -> u8 {
        self.control >> 4 & 3
    }

    /// Reads the counter's port.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        if let Some((value, left)) = self.latch {
            self.latch = (left > 1).then_some((value, left - 1));
            let is_high = self.access() == ACCESS_HIGH || (left == 1 && self.access() != ACCESS_LOW);
            return if is_high { (value >> 8) as u8 } else { value as u8 };
        }
        let [low, high] = self.current(now).to_le_bytes();
        match self.access() {
            ACCESS_LOW => low,
            ACCESS_HIGH => high,
            _ => {
                self.read_high = !self.read_high;
                if self.read_high { low } else { high }
            }
        }
    }

    /// Writes the counter's port.
    pub(super) fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access(), self.low.take()) {
            (ACCESS_LOW, _) => u16::from(value),
            (ACCESS_HIGH, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.low = Some(value);
                if self.mode == 0 {
                    // The first byte stops the count, and OUT is low.
                    self.loaded = false;
                }
                return;
            }
        };
        self.reload = count;
        self.null_count = true;
        match self.mode {
            0 | 4 => self.load(now),
            // A running period is completed first.
            2 | 3 if !self.loaded => self.load(now),
            // Modes 1 and 5 wait for the gate.
            _ => {}
        }
    }

    /// Drives the gate.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        let elapsed = self.elapsed(now);
        self.gate = gate;
        match self.mode {
            // The gate holds the count.
            0 | 4 => {
                self.held = elapsed;
                self.base = now;
            }
            // A rising edge starts it anew.
            1 | 5 if gate && (self.loaded || self.null_count) => self.load(now),
            2 | 3 if gate && self.loaded => self.load(now),
            2 | 3 => {
                self.held = elapsed;
                self.base = now;
            }
            _ => {}
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        self.mode <= 5
            && self.control & !0x3f == 0
            && self.held <= u64::from(u32::MAX)
            && self.latch.is_none_or(|(_, left)| matches!(left, 1 | 2))
    }

    /// Keeps `held` within what [`Self::is_valid`] takes, for counters held and released for ever.
    pub(super) fn bound(&mut self) {
        if self.held > u64::from(u32::MAX) {
            self.held = self.held % self.modulus() + 2 * self.modulus();
        }
    }
}
