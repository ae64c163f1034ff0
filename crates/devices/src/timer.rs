//! Deadlines: one queue for everything in a machine that acts by itself at certain times.
//!
//! Devices and local APICs state their next deadline to a [`TimerSink`]. [`Timers`] is the sink a machine uses;
//! its one timer thread does nothing but
//! ```text
//! while let Some((timer, now)) = timers.wait(&*clock) {
//!     if timer.0 < bus.device_count() { bus.advance(timer, now) } else { apics.advance(timer, now) }
//! }
//! ```
//! A host timer is re-armed (the thread is woken) only when a deadline becomes the earliest one.
//!
//! Lock order: sinks are called with a device's mutex held; the thread calls devices with no lock held.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::device::Clock;

/// Names one timer of a machine: devices by their number on the bus, then local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub u32);

/// No deadline, where a plain number is stored.
pub(crate) const NO_DEADLINE: u64 = u64::MAX;

/// Is told when a timer's deadline changed. Must return at once and not call back into devices.
pub trait TimerSink: Send + Sync {
    /// The timer is now due at `deadline` in [`Clock`] nanoseconds; `None` if never.
    fn deadline_changed(&self, timer: TimerId, deadline: Option<u64>);
}

/// Deadlines in order. Timers are numbered densely from 0.
#[derive(Default, Debug)]
pub struct TimerQueue {
    by_time: BTreeSet<(u64, TimerId)>,
    by_id: Vec<Option<u64>>,
}

impl TimerQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or clears the deadline of `timer`.
    pub fn set(&mut self, timer: TimerId, deadline: Option<u64>) {
        let index = timer.0 as usize;
        if index >= self.by_id.len() {
            if deadline.is_none() {
                return;
            }
            self.by_id.resize(index + 1, None);
        }
        let before = std::mem::replace(&mut self.by_id[index], deadline);
        if before == deadline {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, timer));
        }
        if let Some(deadline) = deadline {
            self.by_time.insert((deadline, timer));
        }
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<u64> {
        self.by_time.first().map(|&(deadline, _)| deadline)
    }

    /// Takes the earliest timer that is due at `now`. Its deadline is forgotten until it is set again.
    pub fn pop_due(&mut self, now: u64) -> Option<TimerId> {
        let &(deadline, timer) = self.by_time.first()?;
        if deadline > now {
            return None;
        }
        self.by_time.pop_first();
        self.by_id[timer.0 as usize] = None;
        Some(timer)
    }
}

#[derive(Default)]
struct Shared {
    queue: TimerQueue,
    stopped: bool,
    /// What the thread in [`Timers::wait`] sleeps for; 0 while it does not sleep.
    armed: u64,
}

/// A [`TimerQueue`] that any thread may change and one thread waits on.
#[derive(Default)]
pub struct Timers {
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl Timers {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sleeps until a timer is due; returns it and the time. `None` once [`Timers::stop`] was called.
    pub fn wait(&self, clock: &dyn Clock) -> Option<(TimerId, u64)> {
        let mut shared = self.lock();
        loop {
            shared.armed = 0;
            if shared.stopped {
                return None;
            }
            let now = clock.now();
            if let Some(timer) = shared.queue.pop_due(now) {
                return Some((timer, now));
            }
            let next = shared.queue.next_deadline();
            shared.armed = next.unwrap_or(NO_DEADLINE);
            shared = match next {
                None => self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let sleep = Duration::from_nanos(next - now);
                    self.changed.wait_timeout(shared, sleep).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Takes a timer that is due without sleeping.
    pub fn pop_due(&self, now: u64) -> Option<TimerId> {
        self.lock().queue.pop_due(now)
    }

    /// Makes the waiting thread look at the clock again, e.g. after it was paused.
    pub fn clock_changed(&self) {
        self.changed.notify_all();
    }

    /// Ends [`Timers::wait`] for good.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TimerSink for Timers {
    fn deadline_changed(&self, timer: TimerId, deadline: Option<u64>) {
        let mut shared = self.lock();
        shared.queue.set(timer, deadline);
        let earlier = deadline.is_some_and(|d| d < shared.armed);
        drop(shared);
        if earlier {
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::testing::FakeClock;
    use std::sync::Arc;

    #[test]
    fn timers_come_in_order_and_once() {
        let mut queue = TimerQueue::new();
        for (timer, deadline) in [(2, 30), (0, 10), (1, 20)] {
            queue.set(TimerId(timer), Some(deadline));
        }
        queue.set(TimerId(2), Some(5));
        queue.set(TimerId(1), None);
        assert_eq!(queue.next_deadline(), Some(5));
        assert_eq!(
            [queue.pop_due(10), queue.pop_due(10), queue.pop_due(10)],
            [Some(TimerId(2)), Some(TimerId(0)), None]
        );
        assert_eq!(queue.next_deadline(), None);
    }

    #[test]
    fn a_waiting_thread_sees_an_earlier_deadline_and_the_end() {
        let (timers, clock) = (Arc::new(Timers::new()), Arc::new(FakeClock::default()));
        timers.deadline_changed(TimerId(1), Some(u64::MAX - 1));
        let waiter = {
            let (timers, clock) = (timers.clone(), clock.clone());
            std::thread::spawn(move || (timers.wait(&*clock), timers.wait(&*clock)))
        };
        clock.set(50);
        timers.deadline_changed(TimerId(3), Some(40));
        while timers.lock().queue.by_id.get(3).is_some_and(Option::is_some) {
            std::thread::yield_now();
        }
        timers.stop();
        assert_eq!(waiter.join().unwrap(), (Some((TimerId(3), 50)), None));
    }
}
