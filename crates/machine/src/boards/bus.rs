//! What an engine calls: the engine's bus trait over the board's devices, local APICs and KVM's clock.

use std::sync::Arc;

use devices::Clock;
use devices::chipset::{ApicBus, InterruptRouter, lapic};
use engine::{BusResult, MsrResult};
use memory::GuestRam;

use crate::clock::MachineClock;
use crate::kvmclock::{KvmClock, Time};
use crate::machine::Power;
use crate::tsc::VcpuTscs;

/// `-KVM_ENOSYS`: no such hypercall (`include/uapi/linux/kvm_para.h`).
const HYPERCALL_UNKNOWN: u64 = -1000i64 as u64;
/// `KVM_HC_VAPIC_POLL_IRQ`: nothing to do, by definition.
const HYPERCALL_POLL_IRQ: u64 = 1;

/// MSRs that guests touch without need: they read as zero and ignore writes. Everything that is the
/// processor's is the engine's; these are the package's.
const HARMLESS_MSRS: [u32; 12] = [
    0x0000_0034, // SMI count
    0x0000_00ce, // platform info
    0x0000_0140, // MISC_FEATURES_ENABLES
    0x0000_0198, // performance status
    0x0000_0199, // performance control
    0x0000_019a, // clock modulation
    0x0000_019b, // thermal interrupt
    0x0000_019c, // thermal status
    0x0000_01a2, // temperature target
    0x0000_01ad, // turbo ratio limit
    0xc001_0015, // AMD HWCR
    0xc001_001f, // AMD NB_CFG
];

/// The bus of one board.
pub struct BoardBus {
    /// The devices.
    pub devices: devices::Bus,
    /// PIC, I/O APIC, local APICs.
    pub router: Arc<InterruptRouter>,
    /// KVM's clock.
    pub kvm_clock: KvmClock,
    /// Guest memory, for KVM's clock.
    pub ram: Arc<GuestRam>,
    /// Machine time.
    pub clock: Arc<MachineClock>,
    /// How far the TSCs of vCPUs are from the host's.
    pub tscs: Arc<VcpuTscs>,
    pub(crate) power: Arc<Power>,
}

impl BoardBus {
    fn apics(&self) -> &ApicBus {
        self.router.apics()
    }

    /// What kvm-clock is computed from.
    pub fn time(&self) -> Time<'_> {
        Time { ram: &self.ram, clock: &self.clock, tscs: &self.tscs }
    }

    /// After every access that may have asked for a reset or power-off.
    fn result(&self) -> BusResult {
        if self.power.is_requested() { BusResult::Stop } else { BusResult::Done }
    }

    /// The offset of `gpa` in the page of the vCPU's own local APIC.
    #[inline]
    fn lapic_offset(&self, vcpu: u32, gpa: u64) -> Option<u64> {
        let page = self.apics().lapic(vcpu).mmio_page()?;
        gpa.checked_sub(page).filter(|offset| *offset < lapic::MMIO_SIZE)
    }
}

impl engine::Bus for BoardBus {
    fn port_read(&self, _: u32, port: u16, data: &mut [u8]) -> BusResult {
        self.devices.port_read(port, data);
        self.result()
    }

    fn port_write(&self, _: u32, port: u16, data: &[u8]) -> BusResult {
        self.devices.port_write(port, data);
        self.result()
    }

    fn mmio_read(&self, vcpu: u32, gpa: u64, data: &mut [u8]) -> BusResult {
        match self.lapic_offset(vcpu, gpa) {
            Some(offset) => self.apics().mmio_read(vcpu, offset, data),
            None => self.devices.mmio_read(gpa, data),
        }
        BusResult::Done
    }

    fn mmio_write(&self, vcpu: u32, gpa: u64, data: &[u8]) -> BusResult {
        match self.lapic_offset(vcpu, gpa) {
            Some(offset) => self.apics().mmio_write(vcpu, offset, data),
            None => self.devices.mmio_write(gpa, data),
        }
        self.result()
    }

    fn msr_read(&self, vcpu: u32, index: u32) -> MsrResult {
        if ApicBus::has_msr(index) {
            return self.apics().msr_read(vcpu, index).map_or(MsrResult::Fault, MsrResult::Done);
        }
        if let Some(result) = self.kvm_clock.read(vcpu, index) {
            return result;
        }
        if HARMLESS_MSRS.contains(&index) {
            return MsrResult::Done(0);
        }
        tracing::debug!(vcpu, msr = format_args!("{index:#x}"), "rdmsr of an unknown msr");
        MsrResult::Fault
    }

    fn msr_write(&self, vcpu: u32, index: u32, value: u64) -> MsrResult {
        if ApicBus::has_msr(index) {
            let done = self.apics().msr_write(vcpu, index, value);
            return done.map_or(MsrResult::Fault, |()| MsrResult::Done(value));
        }
        if let Some(result) = self.kvm_clock.write(vcpu, index, value, self.time()) {
            return result;
        }
        if HARMLESS_MSRS.contains(&index) {
            return MsrResult::Done(value);
        }
        tracing::debug!(vcpu, msr = format_args!("{index:#x}"), value, "wrmsr of an unknown msr");
        MsrResult::Fault
    }

    fn tsc_changed(&self, vcpu: u32, offset: u64) {
        self.tscs.set_offset(vcpu, offset);
        self.apics().lapic(vcpu).tsc_changed();
        self.kvm_clock.tsc_changed(self.time());
    }

    fn end_of_interrupt(&self, vector: u8) {
        devices::bus::lock(self.router.ioapic()).end_of_interrupt(vector);
    }

    fn interrupt_pending(&self, vcpu: u32) -> bool {
        self.router.is_pending(vcpu)
    }

    fn acknowledge_interrupt(&self, vcpu: u32) -> Option<u8> {
        self.router.acknowledge(vcpu)
    }

    fn task_priority(&self, vcpu: u32) -> u8 {
        self.apics().lapic(vcpu).task_priority()
    }

    fn set_task_priority(&self, vcpu: u32, priority: u8) {
        self.apics().lapic(vcpu).set_task_priority(priority);
    }

    fn hypercall(&self, _: u32, number: u64, _: [u64; 4]) -> u64 {
        if number == HYPERCALL_POLL_IRQ { 0 } else { HYPERCALL_UNKNOWN }
    }
}

/// Wakes vCPUs through their signals.
pub struct Wake(pub Box<[Arc<engine::VcpuSignal>]>);

impl lapic::VcpuWake for Wake {
    fn interrupt(&self, vcpu: u32) {
        if let Some(signal) = self.0.get(vcpu as usize) {
            signal.interrupt();
        }
    }

    fn event(&self, vcpu: u32) {
        if let Some(signal) = self.0.get(vcpu as usize) {
            signal.kick();
        }
    }
}

/// So that a board can hand its clock to devices.
pub fn as_clock(clock: &Arc<MachineClock>) -> Arc<dyn Clock> {
    clock.clone()
}
