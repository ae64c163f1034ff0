//! How a guest reaches the registers: the xAPIC's page, the x2APIC's MSRs, and what writes do.

use std::sync::atomic::Ordering::SeqCst;

use super::message::{BROADCAST, DeliveryMode, DestinationMode, Message, Trigger, wide};
use super::registers::{FIRST_VECTOR, Lvt, VERSION, base, esr, lvt, reg, svr};
use super::timer::Mode;
use super::{Effect, GeneralProtection, Ipi, Lapic, msr};
use crate::bus::lock;

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

    pub(super) fn write_tpr(&self, value: u32) {
        let before = self.tpr.swap(value, SeqCst);
        if value < before {
            self.wake_if_pending();
        }
    }

    pub(super) fn write_svr(&self, value: u32) {
        self.svr.store(value & svr::WRITABLE, SeqCst);
        if value & svr::ENABLED == 0 {
            for entry in &self.lvt {
                entry.fetch_or(lvt::MASKED, SeqCst);
            }
            self.tell(&mut lock(&self.timer));
        }
    }

    pub(super) fn lvt(&self, which: Lvt) -> u32 {
        self.lvt[which as usize].load(SeqCst)
    }

    pub(super) fn write_lvt(&self, which: Lvt, value: u32) {
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
