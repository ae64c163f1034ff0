//! The local APIC (Intel SDM vol. 3, chapter "Advanced Programmable Interrupt Controller"): xAPIC and x2APIC.
//!
//! One per vCPU, shared between threads: its vCPU's thread reads and writes registers and takes interrupts, any
//! thread may deliver one. Everything but the timer is atomic, so nothing on the way of an EOI, a TPR write, an
//! IPI or the question whether something is pending takes a lock. What an access asks of other chips is
//! returned as an [`Effect`] and carried out by [`super::apic_bus::ApicBus`], which guests' accesses go through.
//!
//! Absent: CMCI entry, SMIs (dropped), arbitration and remote-read registers (as on processors since Pentium 4),
//! writing the xAPIC id (read-only, as on current processors).

mod access;
pub mod message;
mod page;
pub mod registers;
mod saved;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::bus::lock;
use crate::device::Clock;
use crate::timer::{TimerId, TimerSink};
use message::{BROADCAST, DeliveryMode, DestinationMode, Message, Trigger};
pub use page::{ApicPage, PAGE_BYTES};
use registers::{FIRST_VECTOR, LVT_COUNT, Lvt, base, esr, lvt, svr};
pub use saved::LapicState;
pub use timer::TimerState;
use timer::{Mode, Timer};
use vectors::Vectors;

/// Gets a vCPU's attention. Any thread calls it, the vCPU's own included.
pub trait VcpuWake: Send + Sync {
    /// An interrupt may have become deliverable: the engine is to look.
    fn interrupt(&self, vcpu: u32);
    /// [`Lapic::take_events`] has something: the vCPU's thread is to leave the engine and look.
    fn event(&self, vcpu: u32);
}

/// The guest's time-stamp counter.
pub trait GuestTsc: Send + Sync {
    /// What RDTSC on `vcpu` would return now.
    fn tsc(&self, vcpu: u32) -> u64;
    /// Its frequency in kHz.
    fn khz(&self) -> u32;
}

/// What local APICs are joined to.
#[derive(Clone)]
pub struct LapicGlue {
    /// Machine time.
    pub clock: Arc<dyn Clock>,
    /// The guest's TSC, for the TSC-deadline timer.
    pub tsc: Arc<dyn GuestTsc>,
    /// Where vCPUs are woken.
    pub wake: Arc<dyn VcpuWake>,
    /// Where deadlines are told.
    pub timers: Arc<dyn TimerSink>,
    /// The timer of vCPU 0; the others follow.
    pub first_timer: TimerId,
    /// Input frequency of the APIC timer in Hz. If CPUID leaf 15h states a crystal frequency, Linux takes that
    /// for this one, so they must agree.
    pub timer_hz: u64,
    /// Width of physical addresses, as CPUID leaf 8000_0008h says.
    pub physical_bits: u32,
}

/// Usual input frequency of the APIC timer, that of KVM and QEMU.
pub const DEFAULT_TIMER_HZ: u64 = 1_000_000_000;

/// Bytes of the xAPIC's MMIO page.
pub const MMIO_SIZE: u64 = 0x1000;

/// The guest is to get #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What an access asks of other chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// EOI of a level-triggered vector is to be told to the I/O APICs.
    Eoi(u8),
    /// An IPI is to be delivered.
    Send(Ipi),
}

/// An inter-processor interrupt on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipi {
    /// To whom the message says.
    Message(Message),
    /// To every local APIC but the sender's.
    AllButSelf(Message),
}

/// What other processors want of a vCPU beside interrupts. To be handled in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// INIT: reset the CPU as SDM table "IA-32 and Intel 64 Processor States Following ... INIT" says, call
    /// [`Lapic::init`], and wait for a start-up IPI unless this is the bootstrap processor.
    pub init: bool,
    /// Start-up IPI: start at page `vector`, if waiting for one; otherwise it is lost.
    pub start_up: Option<u8>,
    /// A non-maskable interrupt.
    pub nmi: bool,
}

mod event {
    pub const INIT: u32 = 1;
    pub const NMI: u32 = 1 << 1;
    pub const START_UP: u32 = 1 << 2;
    pub const VECTOR: u32 = 0xff00;
}

/// One local APIC.
pub struct Lapic {
    // Glue.
    vcpu: u32,
    glue: LapicGlue,
    // Registers.
    apic_base: AtomicU64,
    tpr: AtomicU32,
    ldr: AtomicU32,
    dfr: AtomicU32,
    svr: AtomicU32,
    esr: AtomicU32,
    /// Errors since the last write to ESR.
    errors: AtomicU32,
    icr: AtomicU64,
    lvt: [AtomicU32; LVT_COUNT],
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    timer: Mutex<Timer>,
    // Pins and pending requests.
    /// Levels of LINT0 and LINT1.
    pins: [AtomicBool; 2],
    events: AtomicU32,
    /// An ExtINT message arrived: the vector is to be asked of the 8259A.
    ext_int: AtomicBool,
}

impl Lapic {
    /// The local APIC of vCPU `vcpu`, which is also its id, in power-up state.
    pub(super) fn new(vcpu: u32, glue: LapicGlue) -> Self {
        let lapic = Self {
            vcpu,
            timer: Mutex::new(Timer::new(glue.timer_hz.max(1))),
            glue,
            apic_base: AtomicU64::new(0),
            tpr: AtomicU32::new(0),
            ldr: AtomicU32::new(0),
            dfr: AtomicU32::new(0),
            svr: AtomicU32::new(0),
            esr: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            icr: AtomicU64::new(0),
            lvt: Default::default(),
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            pins: Default::default(),
            events: AtomicU32::new(0),
            ext_int: AtomicBool::new(false),
        };
        lapic.reset();
        lapic
    }

    /// Returns to the state after power-up, mode and base address included. Pin levels are their drivers'.
    pub fn reset(&self) {
        let bsp = if self.vcpu == 0 { base::BSP } else { 0 };
        self.apic_base.store(base::DEFAULT_ADDRESS | base::ENABLED | bsp, SeqCst);
        self.events.store(0, SeqCst);
        self.init();
    }

    /// Returns registers to the state after INIT: IA32_APIC_BASE and with it the mode stay. The vCPU's thread
    /// calls this when it takes an INIT.
    pub fn init(&self) {
        self.tpr.store(0, SeqCst);
        self.ldr.store(if self.is_x2apic() { self.x2apic_ldr() } else { 0 }, SeqCst);
        self.dfr.store(u32::MAX, SeqCst);
        self.svr.store(0xff, SeqCst);
        self.esr.store(0, SeqCst);
        self.errors.store(0, SeqCst);
        self.icr.store(0, SeqCst);
        for entry in &self.lvt {
            entry.store(lvt::MASKED, SeqCst);
        }
        for vectors in [&self.irr, &self.isr, &self.tmr] {
            vectors.store(&[0; 8]);
        }
        self.ext_int.store(false, SeqCst);
        let mut timer = lock(&self.timer);
        timer.reset();
        self.tell(&mut timer);
    }

    /// Does what firmware does before it starts a system: enables the APIC and sets up virtual-wire mode
    /// (LINT0 takes the 8259A's interrupts, on the bootstrap processor only; LINT1 is NMI). For boards that
    /// start a kernel with no firmware.
    pub fn set_up_virtual_wire(&self) {
        self.write_svr(svr::ENABLED | 0xff);
        if self.vcpu == 0 {
            self.write_lvt(Lvt::Lint0, 0x700);
        }
        self.write_lvt(Lvt::Lint1, 0x400);
    }

    /// The APIC id.
    pub fn id(&self) -> u32 {
        self.vcpu
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.apic_base.load(SeqCst)
    }

    /// Where this vCPU's MMIO page is now; `None` if the APIC is disabled or in x2APIC mode.
    #[inline]
    pub fn mmio_page(&self) -> Option<u64> {
        let value = self.apic_base();
        (value & (base::ENABLED | base::X2APIC) == base::ENABLED).then_some(value & base::ADDRESS)
    }

    fn is_x2apic(&self) -> bool {
        self.apic_base() & base::X2APIC != 0
    }

    fn is_globally_enabled(&self) -> bool {
        self.apic_base() & base::ENABLED != 0
    }

    fn is_software_enabled(&self) -> bool {
        self.svr.load(SeqCst) & svr::ENABLED != 0
    }

    fn x2apic_ldr(&self) -> u32 {
        self.vcpu >> 4 << 16 | 1 << (self.vcpu & 15)
    }

    // ---- Interrupts, seen from the vCPU ----

    /// Processor priority register.
    pub fn ppr(&self) -> u32 {
        let tpr = self.tpr.load(SeqCst);
        let in_service = self.isr.highest().map_or(0, |v| u32::from(v) & 0xf0);
        if tpr & 0xf0 >= in_service { tpr } else { in_service }
    }

    /// The vector [`Lapic::acknowledge`] would return.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (u32::from(vector >> 4) > self.ppr() >> 4 && self.is_globally_enabled()).then_some(vector)
    }

    /// Takes the highest-priority deliverable vector and marks it in service. The vCPU's thread only.
    pub fn acknowledge(&self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.clear(vector);
        self.isr.set(vector);
        Some(vector)
    }

    /// Whether an interrupt of `vector` waits or is in service.
    pub(super) fn holds(&self, vector: u8) -> bool {
        self.irr.contains(vector) || self.isr.contains(vector)
    }

    /// Whether this vCPU takes interrupts of the 8259A: through LINT0, or because the APIC is disabled.
    pub fn accepts_pic(&self) -> bool {
        !self.is_globally_enabled() || {
            let entry = self.lvt(Lvt::Lint0);
            entry & lvt::MASKED == 0 && entry >> 8 & 7 == 7
        }
    }

    /// The 8259A has an interrupt and the APIC is not in its way.
    pub(super) fn wake_for_pic(&self) {
        self.glue.wake.interrupt(self.vcpu);
    }

    /// Whether an ExtINT message waits, and with `take` no more.
    pub(super) fn ext_int(&self, take: bool) -> bool {
        if take { self.ext_int.swap(false, SeqCst) } else { self.ext_int.load(SeqCst) }
    }

    /// INIT, start-up and NMI requests since the last call. The vCPU's thread only.
    pub fn take_events(&self) -> Events {
        if self.events.load(SeqCst) == 0 {
            return Events::default();
        }
        let bits = self.events.swap(0, SeqCst);
        Events {
            init: bits & event::INIT != 0,
            start_up: (bits & event::START_UP != 0).then_some((bits >> 8) as u8),
            nmi: bits & event::NMI != 0,
        }
    }

    /// Whether [`Lapic::take_events`] has something.
    pub fn has_events(&self) -> bool {
        self.events.load(SeqCst) != 0
    }

    /// CR8.
    #[inline]
    pub fn task_priority(&self) -> u8 {
        (self.tpr.load(SeqCst) >> 4) as u8 & 15
    }

    /// Writes CR8.
    #[inline]
    pub fn set_task_priority(&self, priority: u8) {
        self.write_tpr(u32::from(priority & 15) << 4);
    }

    // ---- Interrupts, seen from outside ----

    /// Whether `message` is meant for this APIC.
    pub(super) fn matches(&self, mode: DestinationMode, destination: u32) -> bool {
        match mode {
            DestinationMode::Physical => destination == BROADCAST || destination == self.vcpu,
            DestinationMode::Logical if self.is_x2apic() => {
                let ldr = self.ldr.load(SeqCst);
                destination == BROADCAST
                    || (destination >> 16 == ldr >> 16 && destination & ldr & 0xffff != 0)
            }
            DestinationMode::Logical => {
                let destination = if destination == BROADCAST { 0xff } else { destination };
                let ldr = self.ldr.load(SeqCst) >> 24;
                if destination > 0xff {
                    false
                } else if self.dfr.load(SeqCst) >> 28 == 0xf {
                    destination & ldr != 0
                } else {
                    let cluster = destination >> 4;
                    (cluster == 0xf || cluster == ldr >> 4) && destination & ldr & 0xf != 0
                }
            }
        }
    }

    /// Whether fixed interrupts are accepted.
    pub(super) fn takes_fixed(&self) -> bool {
        self.is_globally_enabled() && self.is_software_enabled()
    }

    /// Delivers to this APIC; whether it was accepted. Any thread.
    pub(super) fn accept(&self, delivery: DeliveryMode, vector: u8, trigger: Trigger) -> bool {
        if !self.is_globally_enabled() {
            return false;
        }
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => return self.accept_fixed(vector, trigger),
            DeliveryMode::Smi => return false,
            DeliveryMode::Nmi => self.post(event::NMI, 0),
            // Start-up requests from before the INIT are void.
            DeliveryMode::Init => self.post(event::INIT, event::START_UP | event::VECTOR),
            DeliveryMode::StartUp => self.post(event::START_UP | u32::from(vector) << 8, event::VECTOR),
            DeliveryMode::ExtInt => {
                self.ext_int.store(true, SeqCst);
                self.glue.wake.interrupt(self.vcpu);
            }
        }
        true
    }

    fn post(&self, set: u32, clear: u32) {
        let change = |bits| Some(bits & !clear | set);
        let _ = self.events.fetch_update(SeqCst, SeqCst, change);
        self.glue.wake.event(self.vcpu);
    }

    fn accept_fixed(&self, vector: u8, trigger: Trigger) -> bool {
        if !self.is_software_enabled() {
            return false;
        }
        if vector < FIRST_VECTOR {
            self.error(esr::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.set_irr(vector, trigger);
        true
    }

    fn set_irr(&self, vector: u8, trigger: Trigger) {
        match trigger {
            Trigger::Level => {
                self.tmr.set(vector);
            }
            Trigger::Edge => self.tmr.clear(vector),
        }
        if self.irr.set(vector) {
            self.glue.wake.interrupt(self.vcpu);
        }
    }

    /// Drives LINT0 or LINT1. For ExtINT the level is asked for by [`Lapic::accepts_pic`]; other modes act here.
    pub(super) fn set_pin(&self, pin: usize, high: bool) {
        let before = self.pins[pin].swap(high, SeqCst);
        if high && !before && self.is_globally_enabled() {
            self.deliver_local(if pin == 0 { Lvt::Lint0 } else { Lvt::Lint1 });
        }
    }

    /// Acts on an entry of the local vector table whose source fired.
    fn deliver_local(&self, which: Lvt) {
        let entry = self.lvt(which);
        if entry & lvt::MASKED != 0 {
            return;
        }
        let vector = entry as u8;
        match DeliveryMode::from_bits(if which == Lvt::Timer { 0 } else { entry >> 8 }) {
            Some(DeliveryMode::Fixed) => {
                let is_pin = matches!(which, Lvt::Lint0 | Lvt::Lint1);
                if is_pin && entry & lvt::LEVEL != 0 {
                    if entry & lvt::REMOTE_IRR == 0 && self.accept_fixed(vector, Trigger::Level) {
                        self.lvt[which as usize].fetch_or(lvt::REMOTE_IRR, SeqCst);
                    }
                } else {
                    self.accept_fixed(vector, Trigger::Edge);
                }
            }
            Some(DeliveryMode::Nmi) => self.post(event::NMI, 0),
            Some(DeliveryMode::Init) => self.post(event::INIT, event::START_UP | event::VECTOR),
            Some(DeliveryMode::ExtInt) => self.glue.wake.interrupt(self.vcpu),
            _ => {}
        }
    }

    fn error(&self, bit: u32) {
        self.errors.fetch_or(bit, SeqCst);
        let entry = self.lvt(Lvt::Error);
        // An illegal vector here would be one more error, and so on.
        if entry & lvt::MASKED == 0 && entry as u8 >= FIRST_VECTOR && self.is_software_enabled() {
            self.set_irr(entry as u8, Trigger::Edge);
        }
    }

    fn wake_if_pending(&self) {
        if self.pending().is_some() {
            self.glue.wake.interrupt(self.vcpu);
        }
    }

    // ---- The timer ----

    /// When [`Lapic::advance`] is to be called next.
    pub fn next_deadline(&self) -> Option<u64> {
        lock(&self.timer).deadline(self.lvt(Lvt::Timer))
    }

    /// The clock shows `now`. Any thread.
    pub fn advance(&self, now: u64) {
        let mut timer = lock(&self.timer);
        // The queue forgot the deadline when it expired.
        timer.told = None;
        self.settle(timer, now);
    }

    /// The guest's TSC was written, or went on while the machine rested: a TSC deadline is at another time now.
    /// The vCPU's thread only, or while it is stopped.
    pub fn tsc_changed(&self) {
        // What expired until now did so by the TSC as it was: it is not to come again.
        self.settle(lock(&self.timer), self.glue.clock.now());
        let mut timer = lock(&self.timer);
        if timer.state.tsc_deadline != 0 {
            timer.state.tsc_deadline_ns = self.tsc_deadline_ns(timer.state.tsc_deadline);
            self.tell(&mut timer);
        }
    }

    fn tsc_deadline_ns(&self, deadline: u64) -> u64 {
        let tsc = &self.glue.tsc;
        timer::tsc_to_ns(deadline, tsc.tsc(self.vcpu), tsc.khz(), self.glue.clock.now())
    }

    /// Expires the timer if it is due, tells the next deadline, and delivers.
    fn settle(&self, mut timer: MutexGuard<'_, Timer>, now: u64) {
        let expired = timer.settle(Mode::of(self.lvt(Lvt::Timer)), now);
        self.tell(&mut timer);
        drop(timer);
        if expired {
            self.deliver_local(Lvt::Timer);
        }
    }

    fn tell(&self, timer: &mut Timer) {
        let deadline = timer.deadline(self.lvt(Lvt::Timer));
        if timer.told != deadline {
            timer.told = deadline;
            self.glue.timers.deadline_changed(TimerId(self.glue.first_timer.0 + self.vcpu), deadline);
        }
    }

    fn change_timer(&self, change: impl FnOnce(&mut Timer, Mode, u64)) {
        let now = self.glue.clock.now();
        self.settle(lock(&self.timer), now);
        let mut timer = lock(&self.timer);
        change(&mut timer, Mode::of(self.lvt(Lvt::Timer)), now);
        self.settle(timer, now);
    }

    /// IA32_TSC_DEADLINE: 0 unless armed.
    pub fn tsc_deadline(&self) -> u64 {
        self.settle(lock(&self.timer), self.glue.clock.now());
        lock(&self.timer).state.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE; ignored in other timer modes.
    pub fn set_tsc_deadline(&self, value: u64) {
        if Mode::of(self.lvt(Lvt::Timer)) != Mode::TscDeadline {
            return;
        }
        let ns = self.tsc_deadline_ns(value);
        let mut timer = lock(&self.timer);
        timer.state.tsc_deadline = value;
        timer.state.tsc_deadline_ns = ns;
        self.settle(timer, self.glue.clock.now());
    }
}

/// MSR numbers.
pub(super) mod msr {
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
}
