//! The saved state of a local APIC.

use std::sync::atomic::Ordering::SeqCst;

use serde::{Deserialize, Serialize};

use super::registers::{LVT_COUNT, base, lvt, svr};
use super::{Lapic, Lvt, TimerState};
use crate::bus::lock;

/// A local APIC at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// APIC id.
    pub id: u32,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Task priority.
    pub tpr: u32,
    /// Logical destination.
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// Spurious interrupt vector.
    pub svr: u32,
    /// Error status as last latched.
    pub esr: u32,
    /// Errors since.
    pub errors: u32,
    /// Interrupt command.
    pub icr: u64,
    /// Local vector table: timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; LVT_COUNT],
    /// Interrupt request.
    pub irr: [u32; 8],
    /// In service.
    pub isr: [u32; 8],
    /// Trigger mode.
    pub tmr: [u32; 8],
    /// The timer.
    pub timer: TimerState,
    /// Levels of LINT0 and LINT1.
    pub pins: [bool; 2],
    /// Pending INIT, NMI, start-up IPI with its vector.
    pub events: u32,
    /// Pending ExtINT message.
    pub ext_int: bool,
}

impl Lapic {
    /// The state; only while nothing else uses this APIC.
    pub fn save(&self) -> LapicState {
        let Self {
            vcpu,
            glue: _,
            apic_base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            errors,
            icr,
            lvt,
            irr,
            isr,
            tmr,
            timer,
            pins,
            events,
            ext_int,
        } = self;
        LapicState {
            id: *vcpu,
            apic_base: apic_base.load(SeqCst),
            tpr: tpr.load(SeqCst),
            ldr: ldr.load(SeqCst),
            dfr: dfr.load(SeqCst),
            svr: svr.load(SeqCst),
            esr: esr.load(SeqCst),
            errors: errors.load(SeqCst),
            icr: icr.load(SeqCst),
            lvt: std::array::from_fn(|i| lvt[i].load(SeqCst)),
            irr: irr.words(),
            isr: isr.words(),
            tmr: tmr.words(),
            timer: lock(timer).state,
            pins: std::array::from_fn(|i| pins[i].load(SeqCst)),
            events: events.load(SeqCst),
            ext_int: ext_int.load(SeqCst),
        }
    }

    /// Takes over a state that [`LapicState::check`] accepted for this APIC.
    pub(crate) fn load(&self, state: &LapicState) {
        self.apic_base.store(state.apic_base, SeqCst);
        self.tpr.store(state.tpr, SeqCst);
        self.ldr.store(state.ldr, SeqCst);
        self.dfr.store(state.dfr, SeqCst);
        self.svr.store(state.svr, SeqCst);
        self.esr.store(state.esr, SeqCst);
        self.errors.store(state.errors, SeqCst);
        self.icr.store(state.icr, SeqCst);
        for (to, from) in self.lvt.iter().zip(state.lvt) {
            to.store(from, SeqCst);
        }
        self.irr.store(&state.irr);
        self.isr.store(&state.isr);
        self.tmr.store(&state.tmr);
        for (to, from) in self.pins.iter().zip(state.pins) {
            to.store(from, SeqCst);
        }
        self.events.store(state.events, SeqCst);
        self.ext_int.store(state.ext_int, SeqCst);
        let mut timer = lock(&self.timer);
        timer.state = state.timer;
        self.tell(&mut timer);
        drop(timer);
        self.wake_if_pending();
        if self.has_events() {
            self.glue.wake.event(self.vcpu);
        }
    }
}

impl LapicState {
    /// Whether the APIC `id` could have this state.
    ///
    /// # Errors
    /// What could not be.
    pub(crate) fn check(&self, id: u32) -> Result<(), String> {
        let mode = self.apic_base & (base::ENABLED | base::X2APIC);
        let bad = if self.id != id {
            "apic id"
        } else if mode == base::X2APIC || self.apic_base & 0x2ff != 0 {
            "apic base"
        } else if self.tpr > 0xff || self.svr & !svr::WRITABLE != 0 || self.esr > 0xff || self.errors > 0xff {
            "tpr, svr or esr"
        } else if (self.lvt.iter().zip(Lvt::ALL)).any(|(e, l)| e & !(l.writable() | lvt::REMOTE_IRR) != 0) {
            "local vector table"
        } else if [&self.irr, &self.isr].iter().any(|words| words[0] & 0xffff != 0) {
            "illegal vector pending"
        } else if self.timer.divide & !0xb != 0 {
            "divide configuration"
        } else if self.events & !0xff07 != 0 {
            "pending events"
        } else {
            return Ok(());
        };
        Err(format!("local apic {id}: {bad}"))
    }
}
