//! Whether a vCPU has so little to do that what is kept for its speed is of more use to the host.

use std::time::{Duration, Instant};

/// For so long it must have little to do: at first, when most of what it has is of its start, which does not come again.
const FIRST_PERIOD: Duration = Duration::from_secs(2);
/// Later, when what it has is of work that may come again.
const PERIOD: Duration = Duration::from_secs(10);
/// Little is less than one part in so many of that: the ticks of a guest that waits are less.
const LITTLE: u32 = 100;

/// What one vCPU did since it was looked at last.
#[derive(Debug)]
pub struct Idleness {
    period: Duration,
    /// When that began.
    since: Instant,
    /// What of it the vCPU executed, until it woke last.
    worked: Duration,
    woke: Instant,
    /// It had little to do in the period before this one.
    is_idle: bool,
}

impl Idleness {
    /// Of a vCPU that begins to run.
    pub fn new(now: Instant) -> Self {
        Self { period: FIRST_PERIOD, since: now, worked: Duration::ZERO, woke: now, is_idle: false }
    }

    /// It begins to run after it was paused: nobody knows what it did meanwhile, which is nothing.
    pub fn begins(&mut self, now: Instant) {
        (self.since, self.worked, self.woke) = (now, Duration::ZERO, now);
    }

    /// It wakes.
    pub fn wakes(&mut self, now: Instant) {
        self.woke = now;
    }

    /// It is about to sleep; whether it has come to have little to do.
    pub fn sleeps(&mut self, now: Instant) -> bool {
        self.worked += now.saturating_duration_since(self.woke);
        self.woke = now;
        let passed = now.saturating_duration_since(self.since);
        if passed < self.period {
            return false;
        }
        let was = std::mem::replace(&mut self.is_idle, self.worked * LITTLE < passed);
        (self.since, self.worked) = (now, Duration::ZERO);
        let found = self.is_idle && !was;
        if found {
            self.period = PERIOD;
        }
        found
    }

    /// When it is to be looked at again although nothing woke it, if that matters.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.is_idle).then(|| self.since + self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works and sleeps in turns, in milliseconds, for `periods`; when it came to have little to do.
    fn found(
        idle: &mut Idleness,
        now: &mut Instant,
        (works, sleeps): (u64, u64),
        periods: u32,
    ) -> Vec<Instant> {
        let end = *now + PERIOD * periods;
        let mut found = Vec::new();
        while *now < end {
            *now += Duration::from_millis(works);
            if idle.sleeps(*now) {
                found.push(*now);
            }
            *now += Duration::from_millis(sleeps);
            idle.wakes(*now);
        }
        found
    }

    #[test]
    fn it_is_found_once_until_there_was_more_to_do() {
        let mut now = Instant::now();
        let mut idle = Idleness::new(now);
        assert_eq!(found(&mut idle, &mut now, (100, 900), 3), []);
        assert_eq!(found(&mut idle, &mut now, (1, 999), 5).len(), 1);
        assert_eq!(idle.deadline(), None);
        assert_eq!(found(&mut idle, &mut now, (100, 900), 2), []);
        assert_eq!(found(&mut idle, &mut now, (1, 999), 5).len(), 1);
    }

    #[test]
    fn a_vcpu_that_nothing_wakes_is_looked_at_after_a_period() {
        let now = Instant::now();
        let mut idle = Idleness::new(now);
        assert!(!idle.sleeps(now));
        let again = idle.deadline().unwrap();
        assert_eq!(again, now + FIRST_PERIOD);
        idle.wakes(again);
        assert!(idle.sleeps(again));
        // Until here it works; from now on it is looked at less often.
        let busy = again + PERIOD;
        assert!(!idle.sleeps(busy));
        assert_eq!(idle.deadline(), Some(busy + PERIOD));
        idle.wakes(busy + PERIOD);
        assert!(idle.sleeps(busy + PERIOD));
    }

    #[test]
    fn a_pause_is_neither_work_nor_sleep() {
        let now = Instant::now();
        let mut idle = Idleness::new(now);
        idle.begins(now + PERIOD * 10);
        assert!(!idle.sleeps(now + PERIOD * 10));
        idle.wakes(now + PERIOD * 11);
        assert!(idle.sleeps(now + PERIOD * 11));
    }
}
