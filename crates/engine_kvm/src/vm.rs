//! One machine: its memory, its interrupt controllers, its vCPUs.
// UNSAFETY: tells the kernel which of our memory is the guest's.

use std::sync::{Arc, OnceLock};

use arch::x86::cpuid::{CpuModel, CpuidContext, Feature};
use arch::x86::msr;
use engine::{Doorbells, Error, LocalApics, Vcpu, VcpuSignal, Vm, VmConfig};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use memory::GuestRam;

use crate::apics::Apics;
use crate::doorbells::IoEvents;
use crate::host::Host;
use crate::kick::Kick;
use crate::run_page::RunPage;
use crate::state::{Shape, read_msrs, write_msrs};
use crate::vcpu::{KvmVcpu, Parts, no_such_vcpu};
use crate::{NAME, cpuid, msrs, refused};

/// Inputs of the board's I/O APIC, for which routes are kept.
const IOAPIC_PINS: u64 = 24;

/// Where KVM puts what processors without "unrestricted guest" need for real mode: a page table, then three pages of a
/// TSS. Just below the last 256 KiB under 4 GiB, as every VMM has it; no board has anything there.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;

/// See the module.
pub struct KvmVm {
    vm: Arc<VmFd>,
    config: VmConfig,
    apics: Arc<Apics>,
    /// Found out with the first vCPU; the same for all.
    shape: OnceLock<Arc<Shape>>,
}

impl KvmVm {
    /// Makes the machine of `config` without its vCPUs.
    pub fn create(host: &Arc<Host>, mut config: VmConfig) -> Result<Self, Error> {
        config.cpu_model = Arc::new(cpuid::fit(&config.cpu_model, host.features, host.physical_bits)?);
        let vm = host.kvm().create_vm().map_err(refused("create a virtual machine"))?;
        vm.set_identity_map_address(IDENTITY_MAP).map_err(refused("place the identity map"))?;
        vm.set_tss_address(TSS).map_err(refused("place the tss"))?;
        enable(&vm, KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS, "keep local APICs in the kernel")?;
        // A value that the kernel does not take for an MSR it knows is the guest's mistake.
        let reasons = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
        enable(&vm, KVM_CAP_X86_USER_SPACE_MSR, reasons.into(), "answer msrs")?;
        msrs::filter(&vm)?;
        map_ram(&vm, &config.ram)?;
        let vm = Arc::new(vm);
        let apics = Arc::new(Apics::new(vm.clone(), config.vcpu_count));
        Ok(Self { vm, config, apics, shape: OnceLock::new() })
    }

    fn model(&self) -> &CpuModel {
        &self.config.cpu_model
    }

    fn set_up(&self, vcpu: &VcpuFd, index: u32) -> Result<Arc<Shape>, Error> {
        let context = CpuidContext {
            apic_id: index,
            vcpu_count: self.config.vcpu_count,
            tsc_khz: self.config.tsc_khz,
            cr4: 0,
            xcr0: 1,
        };
        let table = cpuid::table(self.model(), &context)?;
        vcpu.set_cpuid2(&table).map_err(refused("set a vcpu's cpuid"))?;
        if self.model().has(Feature::ArchCapabilities) {
            // The kernel gives a new vCPU what is true of this host's processor; the guest's branches and loads are that
            // one's, so the model may only claim less.
            for (index, host) in read_msrs(vcpu, &[msr::ARCH_CAPABILITIES])? {
                write_msrs(vcpu, &[(index, host & self.model().arch_capabilities())])?;
            }
        }
        let shape = || Arc::new(Shape::of(vcpu, self.model().xcr0_supported()));
        Ok(self.shape.get_or_init(shape).clone())
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, index: u32, signal: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, Error> {
        if index >= self.config.vcpu_count {
            return Err(no_such_vcpu(index, self.config.vcpu_count));
        }
        let fd = self.vm.create_vcpu(index.into()).map_err(refused(format!("create vcpu {index}")))?;
        let shape = self.set_up(&fd, index)?;
        let failed = |source| Error::Host { engine: NAME, act: format!("create vcpu {index}"), source };
        let page = Arc::new(RunPage::map(&fd, self.vm.run_size()).map_err(failed)?);
        let kick = Kick::new(page.clone(), &signal).map_err(failed)?;
        let fd = Arc::new(fd);
        self.apics.add(index, fd.clone());
        Ok(Box::new(KvmVcpu::new(Parts {
            index,
            fd,
            page,
            kick,
            signal,
            bus: self.config.bus.clone(),
            ram: self.config.ram.clone(),
            shape,
        })))
    }

    fn local_apics(&self) -> Option<Arc<dyn LocalApics>> {
        Some(self.apics.clone())
    }

    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        Some(Arc::new(IoEvents(self.vm.clone())))
    }
}

/// Enables a capability that takes one argument.
pub fn enable(vm: &VmFd, cap: u32, argument: u64, act: &str) -> Result<(), Error> {
    let mut enable = kvm_enable_cap { cap, ..Default::default() };
    enable.args[0] = argument;
    vm.enable_cap(&enable).map_err(refused(act))
}

/// Makes all of `ram` the guest's.
pub fn map_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), Error> {
    for (slot, (gpa, len)) in (0..).zip(ram.ranges()) {
        let host = ram.host(gpa).expect("a range of RAM starts with RAM");
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: host.addr().get() as u64,
        };
        let act = format!("give the guest memory at gpa {gpa:#x} (len {len:#x})");
        // SAFETY: the range is one mapping of `ram`, to whose bytes nobody holds a Rust reference. Each vCPU keeps `ram`,
        // so it stays mapped as long as a guest can run.
        unsafe { vm.set_user_memory_region(region) }.map_err(refused(act))?;
    }
    Ok(())
}
