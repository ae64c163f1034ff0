//! The kernel's local APICs, seen from the board.

use std::sync::{Arc, OnceLock};

use arch::x86::msr;
use engine::apics::APIC_PAGE;
use engine::{ApicRegisters, Error, LevelRoute, LocalApics};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_lapic_state, kvm_msi,
};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::refused;
use crate::state::{read_msrs, write_msrs};
use crate::vcpu::no_such_vcpu;

/// See the module.
pub struct Apics {
    vm: Arc<VmFd>,
    vcpus: Box<[OnceLock<Arc<VcpuFd>>]>,
}

impl Apics {
    /// Of a machine with `count` vCPUs, none of which is made yet.
    pub fn new(vm: Arc<VmFd>, count: u32) -> Self {
        Self { vm, vcpus: (0..count).map(|_| OnceLock::new()).collect() }
    }

    /// vCPU `index` was made.
    pub fn add(&self, index: u32, vcpu: Arc<VcpuFd>) {
        assert!(self.vcpus[index as usize].set(vcpu).is_ok(), "each vcpu is made once");
    }

    fn vcpu(&self, index: u32) -> Result<&VcpuFd, Error> {
        let vcpu = self.vcpus.get(index as usize).and_then(OnceLock::get);
        vcpu.map(|vcpu| &**vcpu).ok_or_else(|| no_such_vcpu(index, self.vcpus.len() as u32))
    }
}

impl LocalApics for Apics {
    fn send(&self, address: u64, data: u32) {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // A message that names no APIC, or that one refuses, is dropped, as on hardware.
        let _ = self.vm.signal_msi(msi);
    }

    fn set_level_routes(&self, routes: &[LevelRoute]) {
        let entry = |route: &LevelRoute| {
            let mut entry =
                kvm_irq_routing_entry { gsi: route.pin, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: route.address as u32,
                address_hi: (route.address >> 32) as u32,
                data: route.data,
                ..Default::default()
            };
            entry
        };
        let entries: Vec<_> = routes.iter().map(entry).collect();
        // Two dozen entries always fit. A guest's nonsense in one of them is no reason to end it: the kernel then keeps
        // the routes it had.
        if let Ok(table) = KvmIrqRouting::from_entries(&entries) {
            let _ = self.vm.set_gsi_routing(&table);
        }
    }

    fn save(&self, vcpu: u32) -> Result<ApicRegisters, Error> {
        let fd = self.vcpu(vcpu)?;
        let base = fd.get_sregs().map_err(refused("read a vcpu's system registers"))?.apic_base;
        let state = fd.get_lapic().map_err(refused("read a local apic"))?;
        let mut page = [0; APIC_PAGE];
        for (to, from) in page.iter_mut().zip(state.regs) {
            *to = from as u8;
        }
        let deadline = read_msrs(fd, &[msr::TSC_DEADLINE])?;
        Ok(ApicRegisters { base, page, tsc_deadline: deadline.first().map_or(0, |(_, value)| *value) })
    }

    fn load(&self, vcpu: u32, registers: &ApicRegisters) -> Result<(), Error> {
        let fd = self.vcpu(vcpu)?;
        // The base first: it says in which mode the registers are to be read. Then the timer's mode, then its deadline.
        let mut sregs = fd.get_sregs().map_err(refused("read a vcpu's system registers"))?;
        if sregs.apic_base != registers.base {
            sregs.apic_base = registers.base;
            sregs.interrupt_bitmap = [0; 4];
            fd.set_sregs(&sregs)
                .map_err(refused(format!("write {:#x} to a local apic's base", registers.base)))?;
        }
        let mut state = kvm_lapic_state::default();
        for (to, from) in state.regs.iter_mut().zip(registers.page) {
            *to = from as _;
        }
        fd.set_lapic(&state).map_err(refused("write a local apic"))?;
        write_msrs(fd, &[(msr::TSC_DEADLINE, registers.tsc_deadline)])
    }
}
