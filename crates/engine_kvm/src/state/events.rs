//! What is pending, blocked or half delivered, and whether the vCPU runs, halts or waits for a start-up IPI.
//!
//! An event that KVM has accepted but not delivered is one of: an external interrupt or a debug trap, which are kept as
//! they are; an NMI, which is pending again; a fault or the interrupt of an instruction, which comes again when the
//! instruction at RIP is executed again.

use arch::x86::{CpuState, Undelivered, Vector};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_mp_state, kvm_vcpu_events,
};

const DEBUG: u8 = Vector::Debug as u8;

pub fn take(events: &kvm_vcpu_events, activity: &kvm_mp_state, state: &mut CpuState) {
    let to = &mut state.events;
    let lost = events.nmi.injected != 0;
    to.nmi_pending = events.nmi.pending != 0 || lost;
    to.nmi_blocked = events.nmi.masked != 0 && !lost;
    to.interrupt_shadow = events.interrupt.shadow != 0;
    to.undelivered = if events.interrupt.injected != 0 && events.interrupt.soft == 0 {
        Some(Undelivered::Interrupt(events.interrupt.nr))
    } else if events.exception.injected | events.exception.pending != 0 && events.exception.nr == DEBUG {
        Some(Undelivered::DebugTrap)
    } else {
        None
    };
    to.waits_for_start_up = !matches!(activity.mp_state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED);
    to.halted = to.waits_for_start_up || activity.mp_state == KVM_MP_STATE_HALTED;
}

pub fn give(state: &CpuState, template: kvm_vcpu_events) -> (kvm_vcpu_events, kvm_mp_state) {
    let from = &state.events;
    let mut events = kvm_vcpu_events {
        exception: Default::default(),
        interrupt: Default::default(),
        nmi: Default::default(),
        exception_has_payload: 0,
        exception_payload: 0,
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..template
    };
    events.nmi.pending = from.nmi_pending.into();
    events.nmi.masked = from.nmi_blocked.into();
    // KVM tells the shadows of STI and MOV SS apart; either holds interrupts back, and MOV SS more than that.
    events.interrupt.shadow = if from.interrupt_shadow { SHADOW_STI } else { 0 };
    match from.undelivered {
        Some(Undelivered::Interrupt(vector)) => {
            (events.interrupt.injected, events.interrupt.nr) = (1, vector)
        }
        Some(Undelivered::DebugTrap) => (events.exception.injected, events.exception.nr) = (1, DEBUG),
        None => {}
    }
    let mp_state = if from.waits_for_start_up {
        // "Uninitialized" would wait for an INIT first.
        KVM_MP_STATE_INIT_RECEIVED
    } else if from.halted && from.undelivered.is_none() {
        KVM_MP_STATE_HALTED
    } else {
        KVM_MP_STATE_RUNNABLE
    };
    (events, kvm_mp_state { mp_state })
}

/// `KVM_X86_SHADOW_INT_STI`.
const SHADOW_STI: u8 = 2;
