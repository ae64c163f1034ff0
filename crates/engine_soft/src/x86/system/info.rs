//! CPUID, the time-stamp counter, RDPMC, RDPID (SDM vol. 2).

use arch::x86::cpuid::Feature;
use arch::x86::{CpuState, Cr4, Exception, Gpr};

use super::Core;

/// CPUID: answers in EAX, EBX, ECX, EDX.
pub(crate) fn cpuid(core: &mut dyn Core) {
    let gpr = &core.state().gpr;
    let (leaf, subleaf) = (gpr[Gpr::Rax as usize] as u32, gpr[Gpr::Rcx as usize] as u32);
    let result = core.model().cpuid(leaf, subleaf, &core.cpuid_context());
    let gpr = &mut core.state_mut().gpr;
    gpr[Gpr::Rax as usize] = u64::from(result.eax);
    gpr[Gpr::Rbx as usize] = u64::from(result.ebx);
    gpr[Gpr::Rcx as usize] = u64::from(result.ecx);
    gpr[Gpr::Rdx as usize] = u64::from(result.edx);
}

/// RDTSC: the counter, for EDX:EAX.
pub(crate) fn rdtsc(core: &mut dyn Core) -> Result<u64, Exception> {
    let state = core.state();
    if state.cr4 & Cr4::TSD.bits() != 0 && state.cpl() != 0 {
        return Err(Exception::GP0);
    }
    Ok(core.tsc())
}

/// RDTSCP: the counter for EDX:EAX, and TSC_AUX for ECX.
pub(crate) fn rdtscp(core: &mut dyn Core) -> Result<(u64, u32), Exception> {
    if !core.model().has(Feature::Rdtscp) {
        return Err(Exception::UD);
    }
    Ok((rdtsc(core)?, tsc_aux(core.state())))
}

/// RDPID: TSC_AUX.
pub(crate) fn rdpid(core: &mut dyn Core) -> Result<u64, Exception> {
    if !core.model().has(Feature::Rdpid) {
        return Err(Exception::UD);
    }
    Ok(u64::from(tsc_aux(core.state())))
}

fn tsc_aux(state: &CpuState) -> u32 {
    state.msrs.tsc_aux as u32
}

/// RDPMC: no model has counters, so every index is out of range.
pub(crate) fn rdpmc(_core: &mut dyn Core) -> Result<u64, Exception> {
    Err(Exception::GP0)
}
