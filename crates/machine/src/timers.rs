//! The machine's one timer thread, and the short cut that keeps it out of an idle vCPU's way.
//!
//! All deadlines go to [`devices::Timers`], whose thread sleeps until the earliest. A halted vCPU would make
//! that two wake-ups a tick: the timer thread's, and then its own. So while a vCPU sleeps, its local APIC's
//! deadline is taken out of the queue and the vCPU sleeps no longer than until then.
//!
//! While the machine rests the clock stands still; the queue is emptied then, and filled again afterwards. What has expired by
//! then is told before: so a machine at rest has no timer that is due, however late the thread is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::{Clock, TimerId, TimerSink, Timers};
use engine::VcpuSignal;

use crate::Error;

const NEVER: u64 = u64::MAX;

/// Where deadlines expire.
pub trait Expiry: Send + Sync {
    /// The clock shows `now`, at or after what `timer` stated.
    fn advance(&self, timer: TimerId, now: u64);
}

struct VcpuSlot {
    timer: TimerId,
    signal: Arc<VcpuSignal>,
    /// The vCPU's thread sleeps, or is about to, and minds its own deadline.
    asleep: AtomicBool,
}

/// All deadlines of one machine.
pub struct MachineTimers {
    queue: Timers,
    clock: Arc<dyn Clock>,
    /// The deadline of each timer, whether in the queue or not.
    deadlines: Box<[AtomicU64]>,
    vcpus: Box<[VcpuSlot]>,
    /// Serialises rest and resume against each other and against late reports. Taken after `telling` and devices' locks.
    resting: Mutex<bool>,
    /// Held while a timer is told that it has expired by the thread or by who rests, so that one of them does. Taken first.
    telling: Mutex<()>,
}

impl MachineTimers {
    /// For timers `0..first_vcpu_timer` of devices, then one for each of `signals`.
    pub fn new(clock: Arc<dyn Clock>, first_vcpu_timer: TimerId, signals: &[Arc<VcpuSignal>]) -> Self {
        let vcpus: Box<[VcpuSlot]> = (first_vcpu_timer.0..)
            .zip(signals)
            .map(|(id, signal)| VcpuSlot {
                timer: TimerId(id),
                signal: signal.clone(),
                asleep: AtomicBool::new(false),
            })
            .collect();
        let count = first_vcpu_timer.0 as usize + vcpus.len();
        Self {
            queue: Timers::new(),
            clock,
            deadlines: (0..count).map(|_| AtomicU64::new(NEVER)).collect(),
            vcpus,
            resting: Mutex::new(true),
            telling: Mutex::default(),
        }
    }

    /// Starts the timer thread; it ends with [`Self::stop`].
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn spawn(self: &Arc<Self>, expiry: Arc<dyn Expiry>) -> Result<JoinHandle<()>, Error> {
        let timers = self.clone();
        let name = "timers".to_owned();
        let run = move || {
            while let Some((timer, now)) = timers.queue.wait(&*timers.clock) {
                timers.tell(timer, now, &*expiry);
            }
        };
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(run)
            .map_err(|source| Error::Thread { name, source })
    }

    /// Ends the timer thread for good.
    pub fn stop(&self) {
        self.queue.stop();
    }

    /// The clock is about to stand still.
    pub fn rest(&self) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        *resting = true;
        for id in 0..self.deadlines.len() {
            self.queue.deadline_changed(TimerId(id as u32), None);
        }
    }

    /// Tells `expiry` of every timer that has expired. After [`Self::rest`], when the clock stands still; vCPUs do too.
    pub fn tell_expired(&self, expiry: &dyn Expiry) {
        let now = self.clock.now();
        for id in 0..self.deadlines.len() {
            self.tell(TimerId(id as u32), now, expiry);
        }
    }

    /// Tells `expiry` of a timer that has expired at `now`, unless somebody else has, or its deadline was changed.
    fn tell(&self, timer: TimerId, now: u64, expiry: &dyn Expiry) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.deadlines.get(timer.0 as usize).is_some_and(|deadline| deadline.load(Ordering::SeqCst) <= now)
        {
            self.forget(timer);
            expiry.advance(timer, now);
        }
    }

    /// The clock goes on.
    pub fn resume(&self) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        *resting = false;
        for (id, deadline) in self.deadlines.iter().enumerate() {
            let deadline = deadline.load(Ordering::SeqCst);
            if deadline != NEVER {
                self.queue.deadline_changed(TimerId(id as u32), Some(deadline));
            }
        }
    }

    /// Sleeps as a halted vCPU does: until a request or its own timer, which then expires into `expiry`; or until `at_most`.
    /// The vCPU's thread only.
    pub fn sleep(&self, vcpu: u32, at_most: Option<Instant>, expiry: &dyn Expiry) {
        let Some(slot) = self.vcpus.get(vcpu as usize) else { return };
        slot.asleep.store(true, Ordering::SeqCst);
        self.queue.deadline_changed(slot.timer, None);
        let deadline = self.deadlines[slot.timer.0 as usize].load(Ordering::SeqCst);
        slot.signal.wait(self.instant_of(deadline).into_iter().chain(at_most).min());
        slot.asleep.store(false, Ordering::SeqCst);
        // It may have been changed meanwhile.
        let deadline = self.deadlines[slot.timer.0 as usize].load(Ordering::SeqCst);
        if deadline == NEVER {
            return;
        }
        let now = self.clock.now();
        if now >= deadline {
            self.forget(slot.timer);
            expiry.advance(slot.timer, now);
        } else {
            self.enqueue(slot.timer, Some(deadline));
        }
    }

    fn instant_of(&self, deadline: u64) -> Option<Instant> {
        if deadline == NEVER {
            return None;
        }
        Instant::now().checked_add(Duration::from_nanos(deadline.saturating_sub(self.clock.now())))
    }

    fn forget(&self, timer: TimerId) {
        if let Some(deadline) = self.deadlines.get(timer.0 as usize) {
            deadline.store(NEVER, Ordering::SeqCst);
        }
    }

    fn enqueue(&self, timer: TimerId, deadline: Option<u64>) {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if !*resting {
            self.queue.deadline_changed(timer, deadline);
        }
    }
}

impl TimerSink for MachineTimers {
    fn deadline_changed(&self, timer: TimerId, deadline: Option<u64>) {
        let Some(stored) = self.deadlines.get(timer.0 as usize) else { return };
        stored.store(deadline.unwrap_or(NEVER), Ordering::SeqCst);
        let sleeper = self.vcpus.first().and_then(|first| {
            let index = timer.0.checked_sub(first.timer.0)?;
            self.vcpus.get(index as usize).filter(|slot| slot.asleep.load(Ordering::SeqCst))
        });
        match sleeper {
            // Somebody else changed it (the timer thread, late): let the sleeper look again.
            Some(slot) => slot.signal.interrupt(),
            None => self.enqueue(timer, deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MachineClock;
    use std::sync::mpsc;

    struct Report(Mutex<mpsc::Sender<TimerId>>);

    impl Expiry for Report {
        fn advance(&self, timer: TimerId, _: u64) {
            self.0.lock().unwrap().send(timer).unwrap();
        }
    }

    fn machine() -> (Arc<MachineTimers>, Arc<MachineClock>, Arc<Report>, mpsc::Receiver<TimerId>) {
        let clock = Arc::new(MachineClock::new(crate::tsc::host_tsc_khz()));
        let signals = [Arc::new(VcpuSignal::new())];
        let timers = Arc::new(MachineTimers::new(clock.clone(), TimerId(2), &signals));
        let (sender, receiver) = mpsc::channel();
        (timers, clock, Arc::new(Report(Mutex::new(sender))), receiver)
    }

    #[test]
    fn a_deadline_expires_on_the_timer_thread() {
        let (timers, clock, report, expired) = machine();
        let thread = timers.spawn(report).unwrap();
        clock.run();
        timers.resume();
        timers.deadline_changed(TimerId(1), Some(clock.now() + 1_000_000));
        assert_eq!(expired.recv().unwrap(), TimerId(1));
        timers.stop();
        thread.join().unwrap();
    }

    #[test]
    fn a_sleeping_vcpu_minds_its_own_deadline() {
        let (timers, clock, report, expired) = machine();
        clock.run();
        timers.resume();
        // No timer thread runs: only the sleeper can notice.
        timers.deadline_changed(TimerId(2), Some(clock.now() + 1_000_000));
        timers.sleep(0, None, &*report);
        assert_eq!(expired.try_recv().unwrap(), TimerId(2));
        assert_eq!(timers.queue.pop_due(u64::MAX), None, "not queued as well");
    }

    #[test]
    fn a_woken_vcpu_leaves_its_deadline_to_the_thread() {
        let (timers, clock, report, expired) = machine();
        clock.run();
        timers.resume();
        timers.deadline_changed(TimerId(2), Some(u64::MAX - 1));
        timers.vcpus[0].signal.interrupt();
        timers.sleep(0, None, &*report);
        assert!(expired.try_recv().is_err());
        assert_eq!(timers.queue.pop_due(u64::MAX), Some(TimerId(2)));
    }

    #[test]
    fn what_expired_before_a_rest_is_told_by_it_and_not_again() {
        let (timers, clock, report, expired) = machine();
        clock.run();
        timers.resume();
        timers.deadline_changed(TimerId(1), Some(clock.now()));
        timers.deadline_changed(TimerId(2), Some(u64::MAX - 1));
        // No timer thread runs: it is late.
        timers.rest();
        clock.rest();
        assert!(expired.try_recv().is_err());
        timers.tell_expired(&*report);
        assert_eq!(expired.try_recv().unwrap(), TimerId(1));
        assert!(expired.try_recv().is_err(), "the other has not");
        clock.run();
        timers.resume();
        assert_eq!(timers.queue.pop_due(u64::MAX), Some(TimerId(2)));
        assert_eq!(timers.queue.pop_due(u64::MAX), None);
        // What the thread took from the queue before.
        timers.tell(TimerId(1), clock.now(), &*report);
        assert!(expired.try_recv().is_err());
    }

    #[test]
    fn deadlines_survive_a_rest() {
        let (timers, clock, report, expired) = machine();
        let thread = timers.spawn(report).unwrap();
        clock.run();
        timers.resume();
        timers.deadline_changed(TimerId(0), Some(clock.now() + 3_000_000));
        timers.rest();
        clock.rest();
        assert!(expired.recv_timeout(Duration::from_millis(10)).is_err());
        clock.run();
        timers.resume();
        assert_eq!(expired.recv().unwrap(), TimerId(0));
        timers.stop();
        thread.join().unwrap();
    }
}
