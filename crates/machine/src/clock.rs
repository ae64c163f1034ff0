//! Machine time: nanoseconds counted by the host's TSC since the machine was made, stopping while it rests.
//!
//! The same scale (multiplier and shift) goes into the guest's kvm-clock page, so the guest's idea of time
//! since boot and the devices' are one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use devices::Clock;

use crate::tsc::host_tsc;

/// TSC ticks to nanoseconds: shift left by `shift` (right if negative), multiply, take bits 95..=32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The multiplier, a 0.32 fraction.
    pub multiplier: u32,
    /// The shift that comes first.
    pub shift: i8,
}

impl Scale {
    /// The scale for a counter of `khz`, the way KVM's `kvm_get_time_scale` makes it.
    pub fn from_khz(khz: u32) -> Self {
        const NS: u64 = 1_000_000_000;
        let mut hz = u64::from(khz.max(1)) * 1000;
        let mut shift = 0i8;
        while hz > NS * 2 {
            hz >>= 1;
            shift -= 1;
        }
        while hz <= NS {
            hz <<= 1;
            shift += 1;
        }
        // NS < hz <= 2 NS, so the quotient is below 2^32.
        Self { multiplier: ((NS << 32) / hz) as u32, shift }
    }

    /// Nanoseconds in `ticks`.
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let ticks = if self.shift >= 0 {
            u128::from(ticks) << self.shift
        } else {
            u128::from(ticks >> -i32::from(self.shift))
        };
        ((ticks * u128::from(self.multiplier)) >> 32) as u64
    }
}

/// The clock of one machine.
#[derive(Debug)]
pub struct MachineClock {
    scale: Scale,
    tsc_khz: u32,
    /// TSC value at which machine time was zero, as if it had never rested.
    origin: AtomicU64,
    /// TSC value at which the clock was stopped; 0 while it runs.
    stopped_at: AtomicU64,
}

impl MachineClock {
    /// A clock that shows zero and rests until [`Self::run`].
    pub fn new(tsc_khz: u32) -> Self {
        let now = host_tsc().max(1);
        let scale = Scale::from_khz(tsc_khz);
        Self { scale, tsc_khz, origin: AtomicU64::new(now), stopped_at: AtomicU64::new(now) }
    }

    /// Starts or goes on. The machine only, while its vCPUs are stopped.
    pub fn run(&self) {
        let stopped_at = self.stopped_at.load(Ordering::SeqCst);
        if stopped_at != 0 {
            let rested = host_tsc().wrapping_sub(stopped_at);
            self.origin.fetch_add(rested, Ordering::SeqCst);
            self.stopped_at.store(0, Ordering::SeqCst);
        }
    }

    /// Stops. The machine only, while its vCPUs are stopped.
    pub fn rest(&self) {
        if self.stopped_at.load(Ordering::SeqCst) == 0 {
            self.stopped_at.store(host_tsc().max(1), Ordering::SeqCst);
        }
    }

    /// Shows `now_ns` from now on, resting; the TSC value it rests at. While no vCPU runs.
    pub fn set(&self, now_ns: u64) -> u64 {
        let host = host_tsc().max(1);
        let in_ticks = |ns: u64| (u128::from(ns) * u128::from(self.tsc_khz)).div_ceil(1_000_000) as u64;
        let mut ticks = in_ticks(now_ns);
        // The scale rounds down, and time must not have gone backwards.
        while self.scale.nanoseconds(ticks) < now_ns {
            ticks += in_ticks(now_ns - self.scale.nanoseconds(ticks)).max(1);
        }
        self.origin.store(host.wrapping_sub(ticks), Ordering::SeqCst);
        self.stopped_at.store(host, Ordering::SeqCst);
        host
    }

    /// TSC value it rests at; none while it runs.
    pub fn resting_at(&self) -> Option<u64> {
        Some(self.stopped_at.load(Ordering::SeqCst)).filter(|at| *at != 0)
    }

    /// TSC value at which this clock showed zero.
    pub fn origin(&self) -> u64 {
        self.origin.load(Ordering::SeqCst)
    }

    /// Ticks to nanoseconds.
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// Frequency of the TSC in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Machine time at which the host's TSC shows `tsc`.
    pub fn at_tsc(&self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.origin());
        // A value before the origin wraps; it lies in the past.
        if ticks > u64::MAX / 2 { 0 } else { self.scale.nanoseconds(ticks) }
    }
}

impl Clock for MachineClock {
    fn now(&self) -> u64 {
        match self.stopped_at.load(Ordering::Relaxed) {
            0 => self.at_tsc(host_tsc()),
            stopped_at => self.at_tsc(stopped_at),
        }
    }

    fn wall_clock(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_ticks_is_a_second_at_any_frequency() {
        for khz in [1_000, 33_333, 1_000_000, 1_999_999, 2_100_000, 2_000_001, 4_999_999] {
            let second = Scale::from_khz(khz).nanoseconds(u64::from(khz) * 1000);
            assert!(second.abs_diff(1_000_000_000) <= 4, "{khz} kHz: {second} ns");
        }
    }

    #[test]
    fn a_century_of_ticks_does_not_overflow() {
        let seconds = 100 * 365 * 86_400u64;
        let ns = Scale::from_khz(3_000_000).nanoseconds(seconds * 3_000_000_000);
        assert!(ns.abs_diff(seconds * 1_000_000_000) < 4 * seconds);
    }

    #[test]
    fn a_resting_clock_stands_still_and_goes_on_from_there() {
        let clock = MachineClock::new(1_000_000);
        assert_eq!((clock.now(), clock.now()), (0, 0));
        clock.run();
        while clock.now() == 0 {}
        clock.rest();
        let rested = clock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), rested);
        clock.run();
        assert!(clock.now() >= rested);
    }

    #[test]
    fn a_clock_that_is_set_shows_that_and_never_less() {
        for khz in [1_000_000, 1_999_999, 2_596_140] {
            let clock = MachineClock::new(khz);
            for now in [0, 1, 999, 123_456_789_012, 100 * 365 * 86_400 * 1_000_000_000] {
                let at = clock.set(now);
                assert_eq!(clock.resting_at(), Some(at));
                assert!((0..4).contains(&(clock.now() - now)), "{khz} kHz: {} for {now}", clock.now());
            }
        }
    }

    #[test]
    fn a_counter_value_before_the_origin_is_in_the_past() {
        let clock = MachineClock::new(1_000_000);
        assert_eq!(clock.at_tsc(clock.origin().wrapping_sub(5)), 0);
    }
}
