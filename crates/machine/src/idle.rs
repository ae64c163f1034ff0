//! Whether a vCPU has so little to do that what is kept for its speed is of more use to the host.

use std::time::{Duration, Instant};

/// For so long it must have little to do: at first, when most of what it has is of its start, which does not come again.
const FIRST_PERIOD: Duration = Duration::from_secs(2);
/// Later, when what it has is of work that may come again.
const PERIOD: Duration = Duration::from_secs(10);
/// Little is less than one part in so many of that: the ticks of a guest that waits are less.
const LITTLE: u32 = 100;

/// What one vCPU did since it was looked at last. Its work is the processor time that its thread has had: a thread that waits for a
/// processor, on a host that has more to do than it can, does not work.
#[derive(Debug)]
pub struct Idleness {
    period: Duration,
    /// When that began, and what the thread had worked until then.
    since: Instant,
    worked: Duration,
    /// It had little to do in the period before this one.
    is_idle: bool,
}

impl Idleness {
    /// Of a vCPU whose thread has `worked` until it begins to run.
    pub fn new(now: Instant, worked: Duration) -> Self {
        Self { period: FIRST_PERIOD, since: now, worked, is_idle: false }
    }

    /// It begins to run after it was paused: nobody knows what it did meanwhile, which is nothing.
    pub fn begins(&mut self, now: Instant, worked: Duration) {
        (self.since, self.worked) = (now, worked);
    }

    /// It is about to sleep; whether it has come to have little to do. What it has `worked` is asked for once in a period.
    pub fn sleeps(&mut self, now: Instant, worked: impl FnOnce() -> Duration) -> bool {
        let passed = now.saturating_duration_since(self.since);
        if passed < self.period {
            return false;
        }
        let worked = worked();
        let of_it = worked.saturating_sub(self.worked);
        let was = std::mem::replace(&mut self.is_idle, of_it * LITTLE < passed);
        (self.since, self.worked) = (now, worked);
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

    /// A vCPU, the time, and what its thread has worked.
    struct Watched {
        idle: Idleness,
        now: Instant,
        worked: Duration,
    }

    impl Watched {
        fn new() -> Self {
            let now = Instant::now();
            Self { idle: Idleness::new(now, Duration::ZERO), now, worked: Duration::ZERO }
        }

        /// Works, waits for a processor, and is about to sleep, in milliseconds.
        fn sleeps(&mut self, works: u64, waits: u64) -> bool {
            self.now += Duration::from_millis(works + waits);
            self.worked += Duration::from_millis(works);
            self.idle.sleeps(self.now, || self.worked)
        }

        /// Works, waits and sleeps in turns for `periods`; how often it came to have little to do.
        fn found(&mut self, (works, waits, sleeps): (u64, u64, u64), periods: u32) -> usize {
            let end = self.now + PERIOD * periods;
            let mut found = 0;
            while self.now < end {
                found += usize::from(self.sleeps(works, waits));
                self.now += Duration::from_millis(sleeps);
            }
            found
        }
    }

    #[test]
    fn it_is_found_once_until_there_was_more_to_do() {
        let mut vcpu = Watched::new();
        assert_eq!(vcpu.found((100, 0, 900), 3), 0);
        assert_eq!(vcpu.found((1, 0, 999), 5), 1);
        assert_eq!(vcpu.idle.deadline(), None);
        assert_eq!(vcpu.found((100, 0, 900), 2), 0);
        assert_eq!(vcpu.found((1, 0, 999), 5), 1);
    }

    #[test]
    fn to_wait_for_a_processor_is_no_work() {
        assert_eq!(Watched::new().found((1, 500, 499), 3), 1);
    }

    #[test]
    fn a_vcpu_that_nothing_wakes_is_looked_at_after_a_period() {
        let mut vcpu = Watched::new();
        let begun = vcpu.now;
        assert!(!vcpu.sleeps(0, 0));
        assert_eq!(vcpu.idle.deadline(), Some(begun + FIRST_PERIOD));
        vcpu.now += FIRST_PERIOD;
        assert!(vcpu.sleeps(0, 0));
        // It works for a whole period; from now on it is looked at less often.
        assert!(!vcpu.sleeps(10_000, 0));
        assert_eq!(vcpu.idle.deadline(), Some(vcpu.now + PERIOD));
        vcpu.now += PERIOD;
        assert!(vcpu.sleeps(0, 0));
    }

    #[test]
    fn a_pause_is_neither_work_nor_sleep() {
        let mut vcpu = Watched::new();
        vcpu.now += PERIOD * 10;
        vcpu.idle.begins(vcpu.now, vcpu.worked);
        assert!(!vcpu.sleeps(0, 0));
        vcpu.now += PERIOD;
        assert!(vcpu.sleeps(0, 0));
    }
}
