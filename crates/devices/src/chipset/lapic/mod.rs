//! The local APIC (Intel SDM vol. 3, chapter "Advanced Programmable Interrupt Controller"): xAPIC and x2APIC.
//!
//! One per vCPU, shared between threads: its vCPU's thread reads and writes registers and takes interrupts, any
//! thread may deliver one. Everything but the timer is atomic, so nothing on the way of an EOI, a TPR write, an
//! IPI or the question whether something is pending takes a lock. What an access asks of other chips is
//! returned as an [`Effect`] and carried out by [`super::apic_bus::ApicBus`], which guests' accesses go through.
//!
//! Absent: CMCI entry, SMIs (dropped), arbitration and remote-read registers (as on processors since Pentium 4),
//! writing the xAPIC id (read-only, as on current processors).

pub mod message;
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
use message::{BROADCAST, DeliveryMode, DestinationMode, Message, Trigger, wide};
use registers::{FIRST_VECTOR, LVT_COUNT, Lvt, VERSION, base, esr, lvt, reg, svr};
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

    /// The guest's TSC was written: a TSC deadline is at another time now. The vCPU's thread only.
    pub fn tsc_changed(&self) {
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

// ---- Registers ----

/// The way a register is accessed; some differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Mmio,
    Msr,
}

impl Lapic {
    /// A load from the xAPIC page. Offsets within a register but its first four bytes read 0.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let value = match self.read(offset as u32 >> 4 & 0xff, Access::Mmio) {
            Ok(value) => value,
            Err(GeneralProtection) => {
                self.error(esr::ILLEGAL_REGISTER);
                0
            }
        };
        let bytes = value.to_le_bytes();
        for (byte, i) in data.iter_mut().zip(offset as usize & 15..) {
            *byte = if i < 4 { bytes[i] } else { 0 };
        }
    }

    /// A store to the xAPIC page. All but aligned ones of at least 4 bytes are ignored (the SDM leaves them
    /// undefined).
    pub fn mmio_write(&self, offset: u64, data: &[u8]) -> Effect {
        let Some(bytes) = data.first_chunk::<4>().filter(|_| offset & 15 == 0) else { return Effect::None };
        match self.write(offset as u32 >> 4 & 0xff, u32::from_le_bytes(*bytes), Access::Mmio) {
            Ok(effect) => effect,
            Err(GeneralProtection) => {
                self.error(esr::ILLEGAL_REGISTER);
                Effect::None
            }
        }
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE, or an x2APIC register.
    ///
    /// # Errors
    /// [`GeneralProtection`] for registers that cannot be read in this mode.
    pub fn msr_read(&self, index: u32) -> Result<u64, GeneralProtection> {
        match index {
            msr::APIC_BASE => Ok(self.apic_base()),
            msr::TSC_DEADLINE => Ok(self.tsc_deadline()),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.is_x2apic() => match index - msr::X2APIC_FIRST {
                reg::ICR => Ok(self.icr.load(SeqCst)),
                reg::DFR | reg::ICR_HIGH => Err(GeneralProtection),
                register => self.read(register, Access::Msr).map(u64::from),
            },
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of such a register.
    ///
    /// # Errors
    /// [`GeneralProtection`] for reserved bits and registers that cannot be written in this mode.
    pub fn msr_write(&self, index: u32, value: u64) -> Result<Effect, GeneralProtection> {
        match index {
            msr::APIC_BASE => self.write_apic_base(value).map(|()| Effect::None),
            msr::TSC_DEADLINE => {
                self.set_tsc_deadline(value);
                Ok(Effect::None)
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.is_x2apic() => {
                let register = index - msr::X2APIC_FIRST;
                if register == reg::ICR {
                    return self.write_x2apic_icr(value);
                }
                let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
                check_reserved(register, value)?;
                self.write(register, value, Access::Msr)
            }
            _ => Err(GeneralProtection),
        }
    }

    fn read(&self, register: u32, access: Access) -> Result<u32, GeneralProtection> {
        Ok(match register {
            reg::ID if access == Access::Msr => self.vcpu,
            reg::ID => self.vcpu << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.load(SeqCst),
            reg::PPR => self.ppr(),
            // Write-only; reads of the MMIO register return 0.
            reg::EOI if access == Access::Mmio => 0,
            reg::LDR => self.ldr.load(SeqCst),
            reg::DFR => self.dfr.load(SeqCst),
            reg::SVR => self.svr.load(SeqCst),
            reg::ISR..=reg::ISR_LAST => self.isr.word((register - reg::ISR) as usize),
            reg::TMR..=reg::TMR_LAST => self.tmr.word((register - reg::TMR) as usize),
            reg::IRR..=reg::IRR_LAST => self.irr.word((register - reg::IRR) as usize),
            reg::ESR => self.esr.load(SeqCst),
            reg::ICR => self.icr.load(SeqCst) as u32,
            reg::ICR_HIGH => (self.icr.load(SeqCst) >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(register - reg::LVT_TIMER) as usize].load(SeqCst),
            reg::INITIAL_COUNT => lock(&self.timer).state.initial,
            reg::CURRENT_COUNT => {
                let (mode, now) = (Mode::of(self.lvt(Lvt::Timer)), self.glue.clock.now());
                let mut timer = lock(&self.timer);
                let expired = timer.settle(mode, now);
                let current = timer.current(mode, now);
                self.tell(&mut timer);
                drop(timer);
                if expired {
                    self.deliver_local(Lvt::Timer);
                }
                current
            }
            reg::DIVIDE => lock(&self.timer).state.divide,
            _ => return Err(GeneralProtection),
        })
    }

    fn write(&self, register: u32, value: u32, access: Access) -> Result<Effect, GeneralProtection> {
        match register {
            reg::TPR => self.write_tpr(value & 0xff),
            reg::EOI => return Ok(self.end_of_interrupt()),
            reg::LDR if access == Access::Mmio => self.ldr.store(value & 0xff00_0000, SeqCst),
            reg::DFR if access == Access::Mmio => self.dfr.store(value | 0x0fff_ffff, SeqCst),
            reg::SVR => self.write_svr(value),
            reg::ESR => self.esr.store(self.errors.swap(0, SeqCst), SeqCst),
            reg::ICR => {
                // The delivery status is always idle: sending takes no time.
                let icr = self.icr.load(SeqCst) & 0xffff_ffff_0000_0000 | u64::from(value & !(1 << 12));
                self.icr.store(icr, SeqCst);
                return Ok(self.send(value, wide((icr >> 56) as u32)));
            }
            reg::ICR_HIGH if access == Access::Mmio => {
                let low = self.icr.load(SeqCst) as u32;
                self.icr.store(u64::from(value & 0xff00_0000) << 32 | u64::from(low), SeqCst);
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                self.write_lvt(Lvt::ALL[(register - reg::LVT_TIMER) as usize], value);
            }
            reg::INITIAL_COUNT => self.change_timer(|timer, mode, now| {
                // In TSC-deadline mode writes are ignored.
                if mode != Mode::TscDeadline {
                    timer.set_initial(value, now);
                }
            }),
            reg::DIVIDE => self.change_timer(|timer, mode, now| timer.set_divide(value, mode, now)),
            reg::SELF_IPI if access == Access::Msr => {
                self.self_ipi(value as u8);
            }
            // Read-only registers ignore MMIO writes without an error.
            reg::ID | reg::VERSION | reg::PPR | reg::CURRENT_COUNT if access == Access::Mmio => {}
            reg::ISR..=reg::IRR_LAST if access == Access::Mmio => {}
            _ => return Err(GeneralProtection),
        }
        Ok(Effect::None)
    }

    fn write_tpr(&self, value: u32) {
        let before = self.tpr.swap(value, SeqCst);
        if value < before {
            self.wake_if_pending();
        }
    }

    fn write_svr(&self, value: u32) {
        self.svr.store(value & svr::WRITABLE, SeqCst);
        if value & svr::ENABLED == 0 {
            for entry in &self.lvt {
                entry.fetch_or(lvt::MASKED, SeqCst);
            }
            self.tell(&mut lock(&self.timer));
        }
    }

    fn lvt(&self, which: Lvt) -> u32 {
        self.lvt[which as usize].load(SeqCst)
    }

    fn write_lvt(&self, which: Lvt, value: u32) {
        let before = self.lvt(which);
        let mut entry = value & which.writable() | before & lvt::REMOTE_IRR;
        if entry & lvt::LEVEL == 0 {
            entry &= !lvt::REMOTE_IRR;
        }
        if !self.is_software_enabled() {
            entry |= lvt::MASKED;
        }
        if which == Lvt::Timer {
            // What expired until now did so under the old entry.
            self.settle(lock(&self.timer), self.glue.clock.now());
            let mut timer = lock(&self.timer);
            self.lvt[which as usize].store(entry, SeqCst);
            timer.change_mode(Mode::of(before), Mode::of(entry));
            self.tell(&mut timer);
            return;
        }
        self.lvt[which as usize].store(entry, SeqCst);
        if which == Lvt::Lint0 && self.pins[0].load(SeqCst) {
            self.glue.wake.interrupt(self.vcpu);
        }
    }

    fn end_of_interrupt(&self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.clear(vector);
        let level = self.tmr.contains(vector);
        if level {
            self.end_of_pin_interrupt(vector);
        }
        self.wake_if_pending();
        if level && self.svr.load(SeqCst) & svr::NO_EOI_BROADCAST == 0 {
            Effect::Eoi(vector)
        } else {
            Effect::None
        }
    }

    /// A level-triggered local pin that is still high interrupts again.
    fn end_of_pin_interrupt(&self, vector: u8) {
        for (which, pin) in [(Lvt::Lint0, 0), (Lvt::Lint1, 1)] {
            let entry = self.lvt(which);
            if entry & lvt::REMOTE_IRR != 0 && entry as u8 == vector {
                self.lvt[which as usize].fetch_and(!lvt::REMOTE_IRR, SeqCst);
                if self.pins[pin].load(SeqCst) {
                    self.deliver_local(which);
                }
            }
        }
    }

    fn write_x2apic_icr(&self, value: u64) -> Result<Effect, GeneralProtection> {
        let low = value as u32;
        if low & 0xfff3_3000 != 0 {
            return Err(GeneralProtection);
        }
        self.icr.store(value, SeqCst);
        Ok(self.send(low, (value >> 32) as u32))
    }

    fn self_ipi(&self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.error(esr::SEND_ILLEGAL_VECTOR);
        } else {
            self.accept_fixed(vector, Trigger::Edge);
        }
    }

    /// Carries out a write to the interrupt command register.
    fn send(&self, low: u32, destination: u32) -> Effect {
        let Some(delivery) = DeliveryMode::from_bits(low >> 8) else { return Effect::None };
        let vector = low as u8;
        let fixed = matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        // There is no ExtINT IPI; and INIT level de-assert does nothing since Pentium 4.
        let is_deassert = low & 1 << 14 == 0;
        if delivery == DeliveryMode::ExtInt || (delivery == DeliveryMode::Init && is_deassert) {
            return Effect::None;
        }
        if fixed && vector < FIRST_VECTOR {
            self.error(esr::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let mode = if low & 1 << 11 != 0 { DestinationMode::Logical } else { DestinationMode::Physical };
        // IPIs are edges whatever the trigger bit says.
        let message = Message { destination, mode, delivery, vector, trigger: Trigger::Edge };
        let everyone = Message { destination: BROADCAST, mode: DestinationMode::Physical, ..message };
        match low >> 18 & 3 {
            0 => Effect::Send(Ipi::Message(message)),
            1 if fixed => {
                self.accept_fixed(vector, Trigger::Edge);
                Effect::None
            }
            2 if fixed => Effect::Send(Ipi::Message(everyone)),
            3 => Effect::Send(Ipi::AllButSelf(everyone)),
            // To itself too, anything but a vector is invalid.
            _ => Effect::None,
        }
    }

    /// IA32_APIC_BASE (SDM vol. 3, "x2APIC State Transitions").
    fn write_apic_base(&self, value: u64) -> Result<(), GeneralProtection> {
        let reserved = 0x2ff | u64::MAX.checked_shl(self.glue.physical_bits).unwrap_or(0);
        if value & reserved != 0 {
            return Err(GeneralProtection);
        }
        let before = self.apic_base();
        let mode = |value: u64| (value & base::ENABLED != 0, value & base::X2APIC != 0);
        match (mode(before), mode(value)) {
            (_, (false, true)) | ((false, _), (true, true)) | ((true, true), (true, false)) => {
                return Err(GeneralProtection);
            }
            _ => {}
        }
        self.apic_base.store(value, SeqCst);
        if mode(before) != mode(value) {
            if mode(value).1 {
                self.ldr.store(self.x2apic_ldr(), SeqCst);
                self.icr.store(self.icr.load(SeqCst) & 0xffff_ffff, SeqCst);
            } else {
                // Disabled, or enabled again: the state is that after reset.
                self.init();
            }
        }
        Ok(())
    }
}

/// Reserved bits of x2APIC registers.
fn check_reserved(register: u32, value: u32) -> Result<(), GeneralProtection> {
    let allowed = match register {
        reg::TPR | reg::SELF_IPI => 0xff,
        reg::EOI | reg::ESR => 0,
        reg::SVR => svr::WRITABLE,
        // Read-only bits may be written as read.
        reg::LVT_TIMER..=reg::LVT_ERROR => {
            Lvt::ALL[(register - reg::LVT_TIMER) as usize].writable() | 1 << 12 | lvt::REMOTE_IRR
        }
        reg::INITIAL_COUNT => u32::MAX,
        reg::DIVIDE => 0xb,
        _ => return Err(GeneralProtection),
    };
    if value & !allowed != 0 { Err(GeneralProtection) } else { Ok(()) }
}

/// MSR numbers.
pub(super) mod msr {
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
}
