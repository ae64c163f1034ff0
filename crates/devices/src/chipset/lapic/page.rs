//! A local APIC's registers as they lie in its page, which is how those that are not ours are saved and loaded
//! (SDM vol. 3, table "Local APIC Register Address Map"; `struct kvm_lapic_state` in KVM's API).
//!
//! Not in the page, so they stay where they are: the levels of the pins, and requests a vCPU has yet to take.

use super::registers::{Lvt, VERSION, lvt, reg, svr};
use super::timer::Mode;
use super::{Lapic, LapicState, TimerState};
use crate::bus::lock;

/// Bytes of a page that hold registers.
pub const PAGE_BYTES: usize = 1024;

/// All registers of a local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApicPage {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The registers, 16 bytes apart; the id in the highest byte of its register, in x2APIC mode too.
    pub registers: [u8; PAGE_BYTES],
    /// IA32_TSC_DEADLINE; zero if disarmed.
    pub tsc_deadline: u64,
}

impl ApicPage {
    fn get(&self, register: u32) -> u32 {
        let at = register as usize * 16;
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.registers[at + i]))
    }

    fn put(&mut self, register: u32, value: u32) {
        let at = register as usize * 16;
        self.registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn vectors(&self, first: u32) -> [u32; 8] {
        std::array::from_fn(|i| self.get(first + i as u32))
    }
}

impl Lapic {
    /// The registers now. The vCPU is stopped.
    pub fn export(&self) -> ApicPage {
        let now = self.glue.clock.now();
        // What is due has happened.
        self.settle(lock(&self.timer), now);
        let state = self.save();
        let mode = Mode::of(state.lvt[Lvt::Timer as usize]);
        let current = lock(&self.timer).current(mode, now);
        let mut page = ApicPage {
            base: state.apic_base,
            registers: [0; PAGE_BYTES],
            tsc_deadline: if mode == Mode::TscDeadline { state.timer.tsc_deadline } else { 0 },
        };
        let fields = [
            (reg::ID, state.id << 24),
            (reg::VERSION, VERSION),
            (reg::TPR, state.tpr),
            (reg::LDR, state.ldr),
            (reg::DFR, state.dfr),
            (reg::SVR, state.svr),
            (reg::ESR, state.esr),
            (reg::ICR, state.icr as u32),
            (reg::ICR_HIGH, (state.icr >> 32) as u32),
            // A counter that has run out would start again where the initial count is all that says whether it runs.
            (reg::INITIAL_COUNT, if current == 0 && mode == Mode::OneShot { 0 } else { state.timer.initial }),
            (reg::CURRENT_COUNT, current),
            (reg::DIVIDE, state.timer.divide),
        ];
        fields.iter().for_each(|&(register, value)| page.put(register, value));
        (reg::LVT_TIMER..).zip(state.lvt).for_each(|(register, value)| page.put(register, value));
        for (first, words) in [(reg::ISR, state.isr), (reg::TMR, state.tmr), (reg::IRR, state.irr)] {
            (first..).zip(words).for_each(|(register, value)| page.put(register, value));
        }
        page
    }

    /// Takes over registers. The vCPU is stopped.
    ///
    /// # Errors
    /// What no local APIC of this id could have.
    pub fn import(&self, page: &ApicPage) -> Result<(), String> {
        let kept = self.save();
        let mut state = LapicState {
            apic_base: page.base,
            tpr: page.get(reg::TPR) & 0xff,
            ldr: page.get(reg::LDR),
            dfr: page.get(reg::DFR),
            svr: page.get(reg::SVR) & svr::WRITABLE,
            esr: page.get(reg::ESR) & 0xff,
            errors: 0,
            icr: u64::from(page.get(reg::ICR_HIGH)) << 32 | u64::from(page.get(reg::ICR)),
            irr: page.vectors(reg::IRR),
            isr: page.vectors(reg::ISR),
            tmr: page.vectors(reg::TMR),
            ..kept
        };
        for ((value, register), which) in state.lvt.iter_mut().zip(reg::LVT_TIMER..).zip(Lvt::ALL) {
            *value = page.get(register) & (which.writable() | lvt::REMOTE_IRR);
        }
        let mode = Mode::of(state.lvt[Lvt::Timer as usize]);
        state.timer = self.timer_from(mode, page);
        state.check(self.id())?;
        self.load(&state);
        Ok(())
    }

    fn timer_from(&self, mode: Mode, page: &ApicPage) -> TimerState {
        let (initial, current) = (page.get(reg::INITIAL_COUNT), page.get(reg::CURRENT_COUNT));
        let deadline = if mode == Mode::TscDeadline { page.tsc_deadline } else { 0 };
        TimerState {
            initial,
            divide: page.get(reg::DIVIDE) & 0xb,
            running: mode != Mode::TscDeadline && initial != 0 && (current != 0 || mode == Mode::Periodic),
            first: if current == 0 { initial } else { current },
            start: self.glue.clock.now(),
            tsc_deadline: deadline,
            tsc_deadline_ns: if deadline == 0 { 0 } else { self.tsc_deadline_ns(deadline) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::message::{DeliveryMode, Trigger};
    use super::*;
    use crate::chipset::testing::Recorder;
    use crate::device::Clock;

    fn lapic() -> (Arc<Recorder>, Lapic) {
        let recorder = Recorder::new();
        let lapic = Lapic::new(3, recorder.lapic_glue());
        (recorder, lapic)
    }

    fn write(lapic: &Lapic, register: u32, value: u32) {
        lapic.mmio_write(u64::from(register) * 16, &value.to_le_bytes());
    }

    #[test]
    fn registers_survive_the_way_out_and_back_in() {
        let (_, lapic) = lapic();
        lapic.set_up_virtual_wire();
        for (register, value) in [
            (reg::TPR, 0x31),
            (reg::LDR, 0x0800_0000),
            (reg::DFR, 0x0fff_ffff),
            (reg::LVT_ERROR, 0xfe),
            (reg::DIVIDE, 0xb),
        ] {
            write(&lapic, register, value);
        }
        lapic.accept(DeliveryMode::Fixed, 0x45, Trigger::Level);
        lapic.accept(DeliveryMode::Fixed, 0xe0, Trigger::Edge);
        lapic.acknowledge();
        let page = lapic.export();
        assert_eq!((page.get(reg::ID), page.get(reg::ISR + 7), page.get(reg::IRR + 2)), (3 << 24, 1, 1 << 5));
        let (_, other) = self::lapic();
        other.import(&page).unwrap();
        assert_eq!(other.save(), lapic.save());
        assert_eq!(other.export(), page);
    }

    #[test]
    fn a_running_counter_goes_on_from_where_it_was() {
        let (recorder, lapic) = lapic();
        lapic.set_up_virtual_wire();
        write(&lapic, reg::DIVIDE, 0xb);
        write(&lapic, reg::LVT_TIMER, 0x40);
        write(&lapic, reg::INITIAL_COUNT, 1_000_000);
        recorder.clock.pass(400_000);
        let page = lapic.export();
        assert_eq!((page.get(reg::INITIAL_COUNT), page.get(reg::CURRENT_COUNT)), (1_000_000, 600_000));
        recorder.clock.pass(5_000_000);
        let (recorder, other) = self::lapic();
        recorder.clock.set(77);
        other.import(&page).unwrap();
        assert_eq!(other.next_deadline(), Some(600_077));
    }

    #[test]
    fn a_counter_that_ran_out_stays_out() {
        let (recorder, lapic) = lapic();
        lapic.set_up_virtual_wire();
        write(&lapic, reg::LVT_TIMER, 0x40);
        write(&lapic, reg::INITIAL_COUNT, 10);
        recorder.clock.pass(1_000);
        lapic.advance(recorder.clock.now());
        let page = lapic.export();
        assert_eq!((page.get(reg::INITIAL_COUNT), page.get(reg::CURRENT_COUNT)), (0, 0));
        let (_, other) = self::lapic();
        other.import(&page).unwrap();
        assert_eq!(other.next_deadline(), None);
        assert_eq!(other.pending(), Some(0x40));
    }

    #[test]
    fn a_tsc_deadline_is_one_again() {
        let (recorder, lapic) = lapic();
        lapic.set_up_virtual_wire();
        write(&lapic, reg::LVT_TIMER, 2 << 17 | 0x40);
        lapic.set_tsc_deadline(2_000_000);
        let page = lapic.export();
        assert_eq!(page.tsc_deadline, 2_000_000);
        let (_, other) = self::lapic();
        other.import(&page).unwrap();
        assert_eq!(other.next_deadline(), lapic.next_deadline());
        assert!(recorder.clock.now() < other.next_deadline().unwrap());
    }

    #[test]
    fn registers_no_apic_can_have_are_refused() {
        let (_, lapic) = lapic();
        let before = lapic.save();
        let mut page = lapic.export();
        page.put(reg::IRR, 1 << 3);
        assert!(lapic.import(&page).unwrap_err().contains("illegal vector"));
        let page = ApicPage { base: 0xfee0_0400, ..lapic.export() };
        assert!(lapic.import(&page).is_err());
        assert_eq!(lapic.save(), before);
    }
}
