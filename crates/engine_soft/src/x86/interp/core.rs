//! The execution core as the system half sees it.

use arch::x86::cpuid::{CpuModel, CpuidContext};
use arch::x86::paging::PAGE_SHIFT;
use arch::x86::{CpuState, Cr4, Exception};
use engine::Bus;

use super::cpu::{Cpu, Fault};
use crate::x86::mmu::View;
use crate::x86::system::{Access, Core, Flush, Privilege};

fn view_of(cpu: &Cpu, access: Access) -> View {
    match access {
        Access { privilege: Privilege::User, .. } => View::User,
        Access { implicit: true, .. } => View::Kernel,
        _ if cpu.state.rflags & arch::x86::Rflags::AC.bits() != 0 && cpu.state.cpl() != 3 => View::KernelAc,
        _ => View::Kernel,
    }
}

impl Cpu {
    /// #AC for accesses an instruction at privilege level 3 makes on its own behalf.
    fn check_stack_alignment(&mut self, linear: u64, size: usize, access: Access) -> Result<(), Exception> {
        if access.implicit || !self.alignment_checks || !matches!(size, 2 | 4 | 8) {
            return Ok(());
        }
        self.check_alignment_of(linear, size).map_err(|Fault| self.fault)
    }
}

impl Cpu {
    /// What is cached of the address space of `pcid` ends, or only begins to count again, as CR3 says.
    fn flush_pcid(&mut self, pcid: u16, keep: bool) {
        let current = self.pcid();
        if pcid == current {
            self.mmu.switch(current, keep);
            if let Some(jit) = self.jit.as_mut() {
                jit.switch_jumps(current, keep);
            }
            return self.new_local_epoch();
        }
        self.mmu.flush_other(pcid);
        if let Some(jit) = self.jit.as_mut() {
            jit.forget_other_jumps(pcid);
        }
    }

    /// The current address space's.
    fn pcid(&self) -> u16 {
        if self.state.cr4 & Cr4::PCIDE.bits() != 0 { (self.state.cr3 & 0xfff) as u16 } else { 0 }
    }

    fn flush_page(&mut self, linear: u64) {
        let page = linear & !((1 << PAGE_SHIFT) - 1);
        let bits = self.mmu.flush_page(page);
        if let Some(jit) = self.jit.as_mut() {
            jit.forget_jumps_into(page, bits);
        }
        if linear >> 63 == 0 { self.new_local_epoch() } else { self.new_epoch() }
    }
}

impl Core for Cpu {
    fn state(&self) -> &CpuState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }

    fn read_linear(&mut self, linear: u64, data: &mut [u8], access: Access) -> Result<(), Exception> {
        let view = view_of(self, access);
        self.check_stack_alignment(linear, data.len(), access)?;
        self.load_bytes_as(linear, data, view).map_err(|Fault| self.fault)
    }

    fn write_linear(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Exception> {
        let view = view_of(self, access);
        self.check_stack_alignment(linear, data.len(), access)?;
        self.store_bytes_as(linear, data, view).map_err(|Fault| self.fault)
    }

    fn read_physical_u64(&mut self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        match self.guest_ram().read(gpa, &mut bytes) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => u64::MAX,
        }
    }

    fn bus(&self) -> &dyn Bus {
        &*self.bus
    }

    fn vcpu_index(&self) -> u32 {
        self.index
    }

    fn model(&self) -> &CpuModel {
        &self.model
    }

    fn cpuid_context(&self) -> CpuidContext {
        Cpu::cpuid_context(self)
    }

    fn tsc(&self) -> u64 {
        Cpu::tsc(self)
    }

    fn flush_tlb(&mut self, what: Flush) {
        match what {
            Flush::All => {
                self.mmu.flush_all();
                if let Some(jit) = self.jit.as_mut() {
                    jit.forget_jumps();
                }
                self.new_epoch();
            }
            Flush::NonGlobal => {
                self.mmu.flush_non_global();
                if let Some(jit) = self.jit.as_mut() {
                    jit.forget_local_jumps();
                }
                self.new_local_epoch();
            }
            Flush::Nothing => self.flush_pcid(self.pcid(), true),
            Flush::Pcid(pcid) => self.flush_pcid(pcid, false),
            Flush::PcidPage { pcid, .. } if pcid != self.pcid() => self.flush_pcid(pcid, false),
            Flush::Page(linear) | Flush::PcidPage { linear, .. } => self.flush_page(linear),
        }
    }

    fn mode_changed(&mut self) {
        Cpu::mode_changed(self);
    }
}
