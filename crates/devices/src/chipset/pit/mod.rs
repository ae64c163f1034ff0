//! The PC's 8254 programmable interval timer (Intel 8254 data sheet) and system control port B (0x61).
//!
//! Counter 0 drives interrupt line 0; counter 2 is gated by port 0x61, where its output can be read, as systems
//! do to calibrate other clocks; counter 1 has no output. There is no speaker.
//!
//! Departures: a count takes effect at the write, not a tick later; several output changes between two looks at
//! the clock make one edge (late ticks are counted, not replayed).

mod counter;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use state::Section;

use super::ports::{bytewise_read, bytewise_write};
use crate::device::{Clock, Device, PioDevice, Timed};
use crate::irq::IrqLine;
use counter::CounterState;

/// Frequency of the clock input.
pub const HZ: u64 = 1_193_182;
/// First of the four ports.
pub const PORT: u16 = 0x40;
/// How many.
pub const PORTS: u32 = 4;
/// System control port B.
pub const SYSTEM_CONTROL_B: u16 = 0x61;

const CONTROL: u16 = PORT + 3;
const NS_PER_S: u128 = 1_000_000_000;
/// A shorter period would let a guest keep the host's timer thread busy for ever.
const MIN_INTERVAL_NS: u64 = 50_000;

/// Bits of port 0x61.
mod control_b {
    pub const GATE2: u8 = 1;
    /// Gate, speaker, and the enable bits of checks that never fail.
    pub const WRITABLE: u8 = 0x0f;
    /// Toggles with every memory refresh.
    pub const REFRESH: u8 = 1 << 4;
    pub const OUT2: u8 = 1 << 5;
    pub const REFRESH_NS: u64 = 15_085;
}

/// The chip.
pub struct Pit {
    // Glue.
    clock: Arc<dyn Clock>,
    line: IrqLine,
    // Bookkeeping.
    /// When counter 0 is looked at next.
    deadline: Option<u64>,
    // Saved.
    counters: [CounterState; 3],
    control_b: u8,
    /// Level of line 0, and the tick up to which it is right.
    out: bool,
    seen: u64,
}

#[derive(Serialize, Deserialize)]
struct PitState {
    counters: [CounterState; 3],
    control_b: u8,
    out: bool,
    seen: u64,
}

const KIND: &str = "pit";
const VERSION: u32 = 1;

fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(HZ) / NS_PER_S) as u64
}

/// The first nanosecond of a tick.
fn nanoseconds(tick: u64) -> u64 {
    u64::try_from((u128::from(tick) * NS_PER_S).div_ceil(u128::from(HZ))).unwrap_or(u64::MAX)
}

impl Pit {
    /// A timer in power-up state that drives `line`, usually 0.
    pub fn new(clock: Arc<dyn Clock>, line: IrqLine) -> Self {
        let mut pit = Self {
            clock,
            line,
            deadline: None,
            counters: Default::default(),
            control_b: 0,
            out: false,
            seen: 0,
        };
        pit.reset();
        pit
    }

    fn now(&self) -> u64 {
        ticks(self.clock.now())
    }

    /// Brings counters and line 0 up to date before and after a change at tick `now`.
    fn settle(&mut self, now: u64) {
        let changed = self.counters[0].next_change(self.seen).is_some_and(|change| change <= now);
        for counter in &mut self.counters {
            counter.settle(now);
            counter.bound();
        }
        self.seen = now;
        let out = self.counters[0].out(now);
        if changed && out && self.out {
            // It was low in between.
            self.line.set(false);
        }
        self.out = out;
        self.line.set(out);
        self.deadline = self.counters[0].next_deadline(now).map(nanoseconds);
    }

    fn read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            PORT..CONTROL => self.counters[usize::from(port - PORT)].read(now),
            SYSTEM_CONTROL_B => {
                let refresh = (self.clock.now() / control_b::REFRESH_NS) & 1 != 0;
                let refresh = if refresh { control_b::REFRESH } else { 0 };
                let out = if self.counters[2].out(now) { control_b::OUT2 } else { 0 };
                self.control_b | refresh | out
            }
            // The control word cannot be read.
            _ => 0xff,
        }
    }

    fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            PORT..CONTROL => self.counters[usize::from(port - PORT)].write(value, now),
            CONTROL => self.write_control(value, now),
            SYSTEM_CONTROL_B => {
                self.control_b = value & control_b::WRITABLE;
                self.counters[2].set_gate(value & control_b::GATE2 != 0, now);
            }
            _ => {}
        }
    }

    fn write_control(&mut self, value: u8, now: u64) {
        let select = usize::from(value >> 6);
        if select == 3 {
            // Read-back: the latch bits are low-active.
            for (i, counter) in self.counters.iter_mut().enumerate() {
                if value & 2 << i != 0 {
                    if value & 0x20 == 0 {
                        counter.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        counter.latch_status(now);
                    }
                }
            }
        } else if value & 0x30 == 0 {
            self.counters[select].latch_count(now);
        } else {
            self.counters[select].write_control(value);
        }
    }
}

impl Device for Pit {
    fn name(&self) -> &str {
        "pit"
    }

    fn reset(&mut self) {
        let power_up = CounterState::power_up;
        self.counters = [power_up(true), power_up(true), power_up(false)];
        self.control_b = 0;
        self.out = false;
        self.settle(self.now());
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { clock: _, line: _, deadline: _, counters, control_b, out, seen } = self;
        let state = PitState { counters: counters.clone(), control_b: *control_b, out: *out, seen: *seen };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let PitState { counters, control_b, out, seen } = section.decode(KIND, VERSION)?;
        let gate_fits = counters[2].gate == (control_b & control_b::GATE2 != 0);
        let gates = counters[0].gate && counters[1].gate && gate_fits;
        if !gates || control_b & !control_b::WRITABLE != 0 || !counters.iter().all(CounterState::is_valid) {
            let reason = "mode, gate or control bits".to_owned();
            return Err(state::Error::Malformed { kind: KIND, reason });
        }
        (self.counters, self.control_b, self.out, self.seen) = (counters, control_b, out, seen);
        self.settle(self.now());
        Ok(())
    }

    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PioDevice for Pit {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        let now = self.now();
        self.settle(now);
        bytewise_read(port, data, |port| self.read(port, now));
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        let now = self.now();
        self.settle(now);
        bytewise_write(port, data, |port, value| self.write(port, value, now));
        self.settle(now);
    }
}

impl Timed for Pit {
    fn next_deadline(&self) -> Option<u64> {
        self.deadline
    }

    fn advance(&mut self, now: u64) {
        self.settle(ticks(now));
        self.deadline = self.deadline.map(|d| d.max(now.saturating_add(MIN_INTERVAL_NS)));
    }
}
