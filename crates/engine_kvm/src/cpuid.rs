//! What CPUID says to a guest: the model's answers, as far as they are true on this host.

use arch::x86::cpuid::{
    CpuModel, CpuidContext, HYPERVISOR_LEAF, MAX_BASIC_LEAF, MAX_EXTENDED_LEAF, MAX_HYPERVISOR_LEAF,
};
use engine::Error;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::host::Host;
use crate::unsupported;

/// Frequency of the timers of KVM's local APICs.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;

/// Leaf 0x15: the crystal, in Hz, in ECX. Guests take it for the APIC timer's clock.
const CRYSTAL_LEAF: u32 = 0x15;

/// (leaf, how many sub-leaves are different). The last stands for those behind it, as KVM answers zeros for them.
const WITH_SUBLEAVES: &[(u32, u32)] = &[(0x4, 5), (0x7, 3), (0xb, 3), (0xd, 3), (0x1f, 3)];

/// The model without what this host lacks and no level promises.
pub fn fitted(model: &CpuModel, host: &Host) -> CpuModel {
    model.clone().fitted_to(host.features).limited_to(host.features)
}

/// The model with what this host can give.
///
/// # Errors
/// [`Error::Unsupported`] that names what the model promises and the host lacks.
pub fn fit(model: &CpuModel, host: &Host) -> Result<CpuModel, Error> {
    let mut fitted = fitted(model, host);
    let lacking: Vec<_> = fitted.lacking_on(host.features).iter().map(|feature| feature.name).collect();
    if !lacking.is_empty() {
        let what = format!("cpu model {} needs {} of the host's processor", model.name, lacking.join(", "));
        return Err(unsupported(what));
    }
    fitted.physical_bits = fitted.physical_bits.min(host.physical_bits);
    Ok(fitted)
}

/// The table for one vCPU.
///
/// # Errors
/// [`Error::Unsupported`] if it does not fit KVM's.
pub fn table(model: &CpuModel, context: &CpuidContext) -> Result<CpuId, Error> {
    let mut entries = Vec::new();
    let ranges = [0..=MAX_BASIC_LEAF, HYPERVISOR_LEAF..=MAX_HYPERVISOR_LEAF, 0x8000_0000..=MAX_EXTENDED_LEAF];
    for leaf in ranges.into_iter().flatten() {
        let subleaves = WITH_SUBLEAVES.iter().find(|row| row.0 == leaf).map(|row| row.1);
        for index in 0..subleaves.unwrap_or(1) {
            let mut answer = model.cpuid(leaf, index, context);
            if leaf == CRYSTAL_LEAF && u64::from(answer.ecx) != APIC_TIMER_HZ {
                // Nothing, rather than a clock that the timer does not have.
                answer = Default::default();
            }
            entries.push(kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags: if subleaves.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
                eax: answer.eax,
                ebx: answer.ebx,
                ecx: answer.ecx,
                edx: answer.edx,
                ..Default::default()
            });
        }
    }
    CpuId::from_entries(&entries).map_err(|_| unsupported(format!("{} cpuid leaves", entries.len())))
}
