//! What chips are tested with: a clock that stands still, lines and wakes that are written down, and
//! pseudo-random accesses.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::lapic::{GuestTsc, LapicGlue, VcpuWake};
use crate::device::{Clock, PowerEvent, PowerSink};
use crate::irq::{InterruptController, IrqLine, Msi, MsiSink};
use crate::timer::{TimerId, TimerSink};

/// A clock that shows what it is told. The wall clock is ahead by `wall`.
#[derive(Default)]
pub(crate) struct FakeClock {
    now: AtomicU64,
    wall: AtomicU64,
}

impl FakeClock {
    pub(crate) fn set(&self, now: u64) {
        self.now.store(now, SeqCst);
    }

    pub(crate) fn pass(&self, ns: u64) {
        self.now.fetch_add(ns, SeqCst);
    }

    pub(crate) fn set_wall(&self, wall: u64) {
        self.wall.store(wall - self.now(), SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> u64 {
        self.now.load(SeqCst)
    }

    fn wall_clock(&self) -> u64 {
        self.now() + self.wall.load(SeqCst)
    }
}

/// Writes down everything it is told; a TSC of 2 GHz that follows its clock, ahead by `tsc_offset`.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) tsc_offset: AtomicU64,
    /// Line changes: number and level.
    pub(crate) lines: Mutex<Vec<(u32, bool)>>,
    pub(crate) msis: Mutex<Vec<Msi>>,
    /// vCPUs woken for interrupts, and for events.
    pub(crate) interrupts: Mutex<Vec<u32>>,
    pub(crate) events: Mutex<Vec<u32>>,
    pub(crate) deadlines: Mutex<Vec<(TimerId, Option<u64>)>>,
    pub(crate) power: Mutex<Vec<PowerEvent>>,
}

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(self.clone(), gsi)
    }

    /// The level of a line.
    pub(crate) fn level(&self, gsi: u32) -> bool {
        self.lines.lock().unwrap().iter().rev().find(|(g, _)| *g == gsi).is_some_and(|(_, level)| *level)
    }

    /// How often a line rose.
    pub(crate) fn edges(&self, gsi: u32) -> usize {
        self.lines.lock().unwrap().iter().filter(|(g, level)| *g == gsi && *level).count()
    }

    pub(crate) fn lapic_glue(self: &Arc<Self>) -> LapicGlue {
        LapicGlue {
            clock: self.clock.clone(),
            tsc: self.clone(),
            wake: self.clone(),
            timers: self.clone(),
            first_timer: TimerId(0),
            timer_hz: 1_000_000_000,
            physical_bits: 40,
        }
    }
}

impl InterruptController for Recorder {
    fn set_line(&self, gsi: u32, high: bool) {
        if self.level(gsi) != high {
            self.lines.lock().unwrap().push((gsi, high));
        }
    }
}

impl MsiSink for Recorder {
    fn send(&self, msi: Msi) {
        self.msis.lock().unwrap().push(msi);
    }
}

impl VcpuWake for Recorder {
    fn interrupt(&self, vcpu: u32) {
        self.interrupts.lock().unwrap().push(vcpu);
    }

    fn event(&self, vcpu: u32) {
        self.events.lock().unwrap().push(vcpu);
    }
}

impl GuestTsc for Recorder {
    fn tsc(&self, _vcpu: u32) -> u64 {
        (self.clock.now() * 2).wrapping_add(self.tsc_offset.load(SeqCst))
    }

    fn khz(&self) -> u32 {
        2_000_000
    }
}

impl TimerSink for Recorder {
    fn deadline_changed(&self, timer: TimerId, deadline: Option<u64>) {
        self.deadlines.lock().unwrap().push((timer, deadline));
    }
}

impl PowerSink for Recorder {
    fn request(&self, event: PowerEvent) {
        self.power.lock().unwrap().push(event);
    }
}

/// Pseudo-random numbers (xorshift64*), the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}
