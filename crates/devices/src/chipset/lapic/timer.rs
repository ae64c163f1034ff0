//! The local APIC's timer (SDM vol. 3, "APIC Timer"): one-shot, periodic, and TSC-deadline mode.
//!
//! Nothing counts: the current count is computed from the clock when it is read, and expiry is a deadline.

use serde::{Deserialize, Serialize};

use super::registers::lvt;

/// A shorter period would let a guest keep the host's timer thread busy for ever.
const MIN_PERIOD_NS: u64 = 50_000;

const NS_PER_S: u128 = 1_000_000_000;

/// Mode and mask, from the LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    pub(super) fn of(entry: u32) -> Self {
        match entry & lvt::TIMER_MODE {
            lvt::TIMER_PERIODIC => Self::Periodic,
            0 => Self::OneShot,
            // Both bits set is reserved and taken for the deadline mode.
            _ => Self::TscDeadline,
        }
    }
}

/// The saved half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerState {
    /// Initial count register.
    pub initial: u32,
    /// Divide configuration register.
    pub divide: u32,
    /// Whether the counter runs (one-shot and periodic mode).
    pub running: bool,
    /// Count the current run began with.
    pub first: u32,
    /// When the current run began, in clock nanoseconds.
    pub start: u64,
    /// IA32_TSC_DEADLINE; 0 if disarmed.
    pub tsc_deadline: u64,
    /// The same in clock nanoseconds.
    pub tsc_deadline_ns: u64,
}

#[derive(Debug)]
pub(super) struct Timer {
    /// Counts per second before division.
    hz: u64,
    pub(super) state: TimerState,
    /// The deadline last told to the sink.
    pub(super) told: Option<u64>,
}

impl Timer {
    pub(super) fn new(hz: u64) -> Self {
        Self { hz, state: TimerState::default(), told: None }
    }

    fn divisor(&self) -> u64 {
        let bits = (self.state.divide >> 1 & 4) | (self.state.divide & 3);
        1 << ((bits + 1) & 7)
    }

    /// Nanoseconds `count` takes, rounded up: never early.
    fn duration(&self, count: u32) -> u64 {
        let ticks = u128::from(count) * u128::from(self.divisor());
        (ticks * NS_PER_S).div_ceil(u128::from(self.hz)) as u64
    }

    fn period(&self) -> u64 {
        self.duration(self.state.initial).max(MIN_PERIOD_NS)
    }

    /// When the timer expires next, whether masked or not.
    fn expiry(&self, mode: Mode) -> Option<u64> {
        let s = &self.state;
        match mode {
            Mode::TscDeadline => (s.tsc_deadline != 0).then_some(s.tsc_deadline_ns),
            Mode::OneShot => s.running.then(|| s.start.saturating_add(self.duration(s.first))),
            Mode::Periodic => {
                s.running.then(|| s.start.saturating_add(self.duration(s.first).max(MIN_PERIOD_NS)))
            }
        }
    }

    /// When somebody must look again: not at all while masked.
    pub(super) fn deadline(&self, entry: u32) -> Option<u64> {
        if entry & lvt::MASKED != 0 { None } else { self.expiry(Mode::of(entry)) }
    }

    /// Takes account of the time until `now`; whether the timer expired since the last time.
    pub(super) fn settle(&mut self, mode: Mode, now: u64) -> bool {
        let Some(expiry) = self.expiry(mode).filter(|&e| e <= now) else { return false };
        match mode {
            Mode::TscDeadline => self.state.tsc_deadline = 0,
            Mode::OneShot => self.state.running = false,
            Mode::Periodic => {
                // Late ticks are skipped: the next one is on the grid after `now`.
                let period = self.period();
                self.state.start = expiry + (now - expiry) / period * period;
                self.state.first = self.state.initial;
            }
        }
        true
    }

    /// Current count register.
    pub(super) fn current(&self, mode: Mode, now: u64) -> u32 {
        let s = &self.state;
        if !s.running || mode == Mode::TscDeadline {
            return 0;
        }
        let elapsed = u128::from(now.saturating_sub(s.start));
        let ticks = elapsed * u128::from(self.hz) / NS_PER_S / u128::from(self.divisor());
        s.first.saturating_sub(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Writes the initial count, which starts the counter, or stops it if 0.
    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        let s = &mut self.state;
        s.initial = count;
        s.first = count;
        s.start = now;
        s.running = count != 0;
    }

    /// Writes the divide configuration. A running counter goes on from where it is.
    pub(super) fn set_divide(&mut self, divide: u32, mode: Mode, now: u64) {
        let left = self.current(mode, now);
        self.state.divide = divide & 0xb;
        if self.state.running {
            self.state.first = left;
            self.state.start = now;
        }
    }

    /// The timer's mode changed: going to or from TSC-deadline mode disarms it.
    pub(super) fn change_mode(&mut self, from: Mode, to: Mode) {
        if from != to && (from == Mode::TscDeadline || to == Mode::TscDeadline) {
            self.state.running = false;
            self.state.tsc_deadline = 0;
        }
    }

    /// Stops, as INIT does.
    pub(super) fn reset(&mut self) {
        self.state = TimerState::default();
    }
}

/// Clock nanoseconds at which the TSC, which is `tsc` at `now` and runs at `khz`, reaches `deadline`.
pub(super) fn tsc_to_ns(deadline: u64, tsc: u64, khz: u32, now: u64) -> u64 {
    let ticks = u128::from(deadline.saturating_sub(tsc));
    let ns = (ticks * 1_000_000).div_ceil(u128::from(khz.max(1)));
    now.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)).min(u64::MAX - 1)
}
