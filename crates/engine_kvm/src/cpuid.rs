//! What CPUID says to a guest: the model's answers, as far as they are true on this host.

use arch::x86::cpuid::{
    CpuModel, CpuidContext, FeatureSet, HYPERVISOR_LEAF, MAX_BASIC_LEAF, MAX_EXTENDED_LEAF,
    MAX_HYPERVISOR_LEAF,
};
use engine::Error;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::unsupported;

/// Frequency of the timers of KVM's local APICs.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;

/// Leaf 0x15: the crystal, in Hz, in ECX. Guests take it for the APIC timer's clock.
const CRYSTAL_LEAF: u32 = 0x15;

/// (leaf, how many sub-leaves are different). The last stands for those behind it, as KVM answers zeros for them.
const WITH_SUBLEAVES: &[(u32, u32)] = &[(0x4, 5), (0x7, 3), (0xb, 3), (0xd, 3), (0x1f, 3)];

/// The model without what this host lacks and no level promises.
pub fn fitted(model: &CpuModel, host: FeatureSet) -> CpuModel {
    model.clone().fitted_to(host).limited_to(host)
}

/// The model with what this host can give.
///
/// # Errors
/// [`Error::Unsupported`] that names what the model promises and the host lacks.
pub fn fit(model: &CpuModel, host: FeatureSet, physical_bits: u8) -> Result<CpuModel, Error> {
    let mut fitted = fitted(model, host);
    let lacking: Vec<_> = fitted.lacking_on(host).iter().map(|feature| feature.name).collect();
    if !lacking.is_empty() {
        let what = format!("cpu model {} needs {} of the host's processor", model.name, lacking.join(", "));
        return Err(unsupported(what));
    }
    fitted.physical_bits = fitted.physical_bits.min(physical_bits);
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

#[cfg(test)]
mod tests {
    use arch::x86::cpuid::{CpuidResult, FEATURES, Feature};

    use super::*;
    use crate::host::Host;
    use crate::probe::Pace;

    const CONTEXT: CpuidContext =
        CpuidContext { apic_id: 1, vcpu_count: 2, tsc_khz: 2_596_152, cr4: 0, xcr0: 1 };

    fn model(name: &str) -> CpuModel {
        CpuModel::named(name).unwrap()
    }

    fn answer(table: &CpuId, leaf: u32, subleaf: u32) -> CpuidResult {
        let entry = table.as_slice().iter().find(|e| e.function == leaf && e.index == subleaf);
        entry.map_or(CpuidResult::default(), |e| CpuidResult {
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        })
    }

    fn shown(table: &CpuId) -> FeatureSet {
        FeatureSet::from_cpuid(|leaf, subleaf| answer(table, leaf, subleaf))
    }

    #[test]
    fn no_guest_sees_a_feature_that_its_host_lacks() {
        for name in CpuModel::names() {
            let all =
                FEATURES.iter().fold(FeatureSet::EMPTY, |all, row| all.union(FeatureSet::of(&[row.feature])));
            for row in FEATURES {
                let host = all.difference(FeatureSet::of(&[row.feature]));
                match fit(&model(name), host, 48) {
                    Ok(fitted) => {
                        let shown = shown(&table(&fitted, &CONTEXT).unwrap());
                        assert!(shown.difference(host).is_empty(), "{name} without {}", row.name);
                        assert!(!shown.has(row.feature));
                    }
                    Err(error) => {
                        let text = error.to_string();
                        assert!(text.contains(name) && text.contains(row.name), "{text}");
                        assert!(model(name).has(row.feature));
                    }
                }
            }
        }
    }

    #[test]
    fn what_only_kernels_use_is_left_out_and_what_programs_use_is_refused() {
        let v3 = model("x86-64-v3");
        let without = |features: &[Feature]| v3.features().difference(FeatureSet::of(features));
        let fitted = fit(&v3, without(&[Feature::BhiCtrl, Feature::Pcid, Feature::TscDeadline]), 39).unwrap();
        let table = table(&fitted, &CONTEXT).unwrap();
        assert_eq!(
            (answer(&table, 7, 0).eax, answer(&table, 7, 2).edx),
            (0, 0),
            "bhi_ctrl was all of sub-leaf 2"
        );
        assert_eq!(answer(&table, 0x8000_0008, 0).eax & 0xff, 39);
        let error =
            fit(&v3, without(&[Feature::Avx2, Feature::Movbe, Feature::Smep]), 48).unwrap_err().to_string();
        assert_eq!(error, "engine kvm: cpu model x86-64-v3 needs movbe, avx2 of the host's processor");
    }

    #[test]
    fn a_crystal_is_told_only_if_it_is_the_apic_timers_clock() {
        let odd = table(&model("x86-64"), &CONTEXT).unwrap();
        assert_eq!(answer(&odd, CRYSTAL_LEAF, 0), CpuidResult::default());
        let even = table(&model("x86-64"), &CpuidContext { tsc_khz: 2_500_000, ..CONTEXT }).unwrap();
        let crystal = answer(&even, CRYSTAL_LEAF, 0);
        assert_eq!((u64::from(crystal.ecx), crystal.ebx * 2 / crystal.eax), (APIC_TIMER_HZ, 5));
    }

    #[test]
    fn this_host_shows_nothing_it_does_not_have_and_takes_the_table() {
        let host = match Host::open() {
            Ok(host) => host,
            Err(error) => return println!("skipped: {error}"),
        };
        let best = CpuModel::best(|model| !fitted(model, host.features).lacking_on(host.features).is_empty());
        let table = table(&fit(&model(best), host.features, host.physical_bits).unwrap(), &CONTEXT).unwrap();
        assert!(shown(&table).difference(host.features).is_empty());
        let vcpu = host.kvm().create_vm().unwrap().create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&table).unwrap();
        let kept = vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
        for leaf in [0, 1, 7] {
            if crate::probe::measure(&host).is_ok_and(|pace| matches!(pace, Pace::Emulated { .. })) {
                println!(
                    "skipped: leaf {leaf:#x}: a kvm that emulates may show its own processor whatever it is told"
                );
            } else {
                assert_eq!(answer(&kept, leaf, 0), answer(&table, leaf, 0), "{leaf:#x}");
            }
        }
        assert_eq!(answer(&kept, HYPERVISOR_LEAF, 0), answer(&table, HYPERVISOR_LEAF, 0));
    }
}
