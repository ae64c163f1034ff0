//! The local APICs of a machine and the messages between them: IPIs, MSIs, I/O APIC interrupts, EOI broadcasts.
//!
//! Guest accesses come in here: the MMIO page of a vCPU's own APIC, its MSRs, CR8, and the questions an engine
//! asks about interrupts. Nothing here takes a lock but [`Lapic`]'s timer lock, and the I/O APIC's at the EOI
//! of a level-triggered interrupt.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{OnceLock, Weak};

use serde::{Deserialize, Serialize};
use state::Section;

use super::elsewhere::LapicsElsewhere;
use super::lapic::message::{DeliveryMode, Message};
use super::lapic::{Effect, GeneralProtection, Ipi, Lapic, LapicGlue, LapicState, msr};
use crate::irq::{LevelRoute, Msi, MsiSink};
use crate::timer::TimerId;

/// Is told of the end of level-triggered interrupts: an I/O APIC.
pub trait EoiSink: Send + Sync {
    /// A local APIC ended an interrupt of `vector`.
    fn end_of_interrupt(&self, vector: u8);
}

/// All local APICs of a machine.
pub struct ApicBus {
    lapics: Box<[Lapic]>,
    first_timer: u32,
    eoi_sink: OnceLock<Weak<dyn EoiSink>>,
    /// Where the search for a lowest-priority destination starts, so that equals take turns.
    turn: AtomicUsize,
    /// The 8259A's INTR output.
    intr: AtomicBool,
    /// Local APICs to use instead of these while vCPUs run; see [`super::elsewhere`].
    elsewhere: LapicsElsewhere,
}

/// Section kind of [`ApicBus::save`].
const KIND: &str = "local-apics";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct ApicBusState {
    lapics: Vec<LapicState>,
    intr: bool,
}

impl ApicBus {
    /// `vcpu_count` local APICs in power-up state.
    pub fn new(vcpu_count: u32, glue: LapicGlue) -> Self {
        Self {
            first_timer: glue.first_timer.0,
            lapics: (0..vcpu_count).map(|vcpu| Lapic::new(vcpu, glue.clone())).collect(),
            eoi_sink: OnceLock::new(),
            turn: AtomicUsize::new(0),
            intr: AtomicBool::new(false),
            elsewhere: LapicsElsewhere::default(),
        }
    }

    /// The local APICs that may be in use instead of these.
    pub(super) fn elsewhere(&self) -> &LapicsElsewhere {
        &self.elsewhere
    }

    /// Joins the I/O APIC, once. Weak, because an I/O APIC holds this bus.
    pub fn set_eoi_sink(&self, sink: Weak<dyn EoiSink>) {
        assert!(self.eoi_sink.set(sink).is_ok(), "a machine has one i/o apic");
    }

    /// The local APIC of a vCPU.
    ///
    /// # Panics
    /// If there is no such vCPU.
    #[inline]
    pub fn lapic(&self, vcpu: u32) -> &Lapic {
        &self.lapics[vcpu as usize]
    }

    /// The local APICs, in the order of vCPUs.
    pub fn lapics(&self) -> &[Lapic] {
        &self.lapics
    }

    /// A load by `vcpu` at `offset` of its own APIC's page (see [`Lapic::mmio_page`]).
    pub fn mmio_read(&self, vcpu: u32, offset: u64, data: &mut [u8]) {
        self.lapic(vcpu).mmio_read(offset, data);
    }

    /// A store by `vcpu` at `offset` of its own APIC's page.
    pub fn mmio_write(&self, vcpu: u32, offset: u64, data: &[u8]) {
        self.carry_out(vcpu, self.lapic(vcpu).mmio_write(offset, data));
    }

    /// Whether [`ApicBus::msr_read`] and [`ApicBus::msr_write`] are to be asked about an MSR.
    pub fn has_msr(index: u32) -> bool {
        matches!(index, msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST)
    }

    /// RDMSR.
    ///
    /// # Errors
    /// [`GeneralProtection`].
    pub fn msr_read(&self, vcpu: u32, index: u32) -> Result<u64, GeneralProtection> {
        self.lapic(vcpu).msr_read(index)
    }

    /// WRMSR.
    ///
    /// # Errors
    /// [`GeneralProtection`].
    pub fn msr_write(&self, vcpu: u32, index: u32, value: u64) -> Result<(), GeneralProtection> {
        let effect = self.lapic(vcpu).msr_write(index, value)?;
        self.carry_out(vcpu, effect);
        Ok(())
    }

    fn carry_out(&self, vcpu: u32, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Eoi(vector) => {
                if let Some(sink) = self.eoi_sink.get().and_then(Weak::upgrade) {
                    sink.end_of_interrupt(vector);
                }
            }
            Effect::Send(Ipi::Message(message)) => {
                self.deliver(&message);
            }
            Effect::Send(Ipi::AllButSelf(message)) => {
                let others = self.lapics.iter().filter(|l| l.id() != vcpu);
                if message.delivery == DeliveryMode::LowestPriority {
                    self.deliver_lowest(others, &message);
                } else {
                    for lapic in others {
                        lapic.accept(message.delivery, message.vector, message.trigger);
                    }
                }
            }
        }
    }

    /// Delivers to whom `message` names; whether anyone accepted. Any thread.
    pub fn deliver(&self, message: &Message) -> bool {
        let matching = self.lapics.iter().filter(|l| l.matches(message.mode, message.destination));
        if message.delivery == DeliveryMode::LowestPriority {
            return self.deliver_lowest(matching, message);
        }
        let accept = |l: &Lapic| l.accept(message.delivery, message.vector, message.trigger);
        matching.fold(false, |accepted, lapic| accept(lapic) | accepted)
    }

    fn deliver_lowest<'a>(&self, among: impl Iterator<Item = &'a Lapic>, message: &Message) -> bool {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.lapics.len().max(1);
        // Those whose turn is past rank behind the others of their priority.
        let rank = |l: &&Lapic| (l.ppr() >> 4, (l.id() as usize) < turn, l.id());
        let chosen = among.filter(|l| l.takes_fixed()).min_by_key(rank);
        chosen.is_some_and(|l| l.accept(DeliveryMode::Fixed, message.vector, message.trigger))
    }

    /// The 8259A's INTR output, wired to LINT0 of every processor.
    pub fn set_intr(&self, high: bool) {
        self.intr.store(high, Ordering::SeqCst);
        let elsewhere = self.elsewhere.in_use().is_some();
        for lapic in &self.lapics {
            lapic.set_pin(0, high);
            // With the APIC disabled the pin is the processor's INTR. Others know themselves who takes it.
            if high && (elsewhere || lapic.apic_base() & 1 << 11 == 0) {
                lapic.wake_for_pic();
            }
        }
    }

    /// Drives LINT1, the NMI pin, of every processor.
    pub fn set_nmi(&self, high: bool) {
        for lapic in &self.lapics {
            lapic.set_pin(1, high);
        }
    }

    /// Whether `vcpu` is to take a vector from the 8259A.
    #[inline]
    pub fn is_pic_pending(&self, vcpu: u32) -> bool {
        let lapic = self.lapic(vcpu);
        let accepts = || self.elsewhere.in_use().is_some() || lapic.accepts_pic();
        (self.intr.load(Ordering::SeqCst) && accepts()) || lapic.ext_int(false)
    }

    /// Forgets an ExtINT message to `vcpu`: its vector is being asked for.
    pub(super) fn take_ext_int(&self, vcpu: u32) {
        self.lapic(vcpu).ext_int(true);
    }

    /// The clock shows `now`: called for timers from `first_timer` on.
    pub fn advance(&self, timer: TimerId, now: u64) {
        if let Some(lapic) = timer.0.checked_sub(self.first_timer).and_then(|i| self.lapics.get(i as usize)) {
            lapic.advance(now);
        }
    }

    /// Power-up state everywhere.
    pub fn reset(&self) {
        for lapic in &self.lapics {
            lapic.reset();
        }
    }

    /// The state of all local APICs. Only while every vCPU is stopped.
    ///
    /// # Errors
    /// [`state::Error::Encode`].
    pub fn save(&self) -> Result<Section, state::Error> {
        let lapics = self.lapics.iter().map(Lapic::save).collect();
        Section::encode(KIND, VERSION, &ApicBusState { lapics, intr: self.intr.load(Ordering::SeqCst) })
    }

    /// Takes over a saved state; on error nothing has changed. Only while every vCPU is stopped.
    ///
    /// # Errors
    /// Another kind, version or number of vCPUs, or values an APIC cannot have.
    pub fn restore(&self, section: &Section) -> Result<(), state::Error> {
        let state: ApicBusState = section.decode(KIND, VERSION)?;
        let malformed = |reason| state::Error::Malformed { kind: KIND, reason };
        if state.lapics.len() != self.lapics.len() {
            return Err(malformed(format!("{} vcpus, not {}", state.lapics.len(), self.lapics.len())));
        }
        for (lapic, saved) in self.lapics.iter().zip(&state.lapics) {
            saved.check(lapic.id()).map_err(malformed)?;
        }
        self.intr.store(state.intr, Ordering::SeqCst);
        for (lapic, saved) in self.lapics.iter().zip(&state.lapics) {
            lapic.load(saved);
        }
        Ok(())
    }
}

impl MsiSink for ApicBus {
    fn set_level_routes(&self, routes: &[LevelRoute]) {
        if let Some(lapics) = self.elsewhere.in_use() {
            lapics.set_level_routes(routes);
        }
    }

    fn send(&self, msi: Msi) {
        if let Some(lapics) = self.elsewhere.in_use() {
            lapics.send(msi);
        } else if let Some(message) = Message::from_msi(msi) {
            self.deliver(&message);
        }
    }
}
