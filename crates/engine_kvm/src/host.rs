//! What this host's KVM offers.

use arch::x86::cpuid::{CpuidResult, Feature, FeatureSet};
use engine::Error;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Cap;

use crate::{refused, unsupported};

/// KVM's API has had this version since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Without these there is no engine: (capability, what it is called in an error, since when Linux has it).
const NEEDED: &[(Cap, &str, &str)] = &[
    (Cap::SplitIrqchip, "local APICs without the other interrupt chips", "4.5"),
    (Cap::ImmediateExit, "a way to leave a vCPU at once", "4.13"),
    (Cap::X86UserSpaceMsr, "MSRs answered by the machine", "5.10"),
    (Cap::X86MsrFilter, "a choice of such MSRs", "5.10"),
    (Cap::Xsave, "vector registers", "2.6.36"),
    (Cap::VcpuEvents, "pending events", "2.6.33"),
    (Cap::Debugregs, "debug registers", "2.6.35"),
];

/// `/dev/kvm`, open.
pub struct Host {
    kvm: kvm_ioctls::Kvm,
    /// Features a guest can have.
    pub features: FeatureSet,
    /// Bits of a physical address.
    pub physical_bits: u8,
}

impl Host {
    /// Opens the device and asks what it can do.
    pub fn open() -> Result<Self, Error> {
        let kvm = kvm_ioctls::Kvm::new().map_err(refused("open /dev/kvm"))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(unsupported(format!("api version {version}, not {API_VERSION}")));
        }
        if let Some((_, what, since)) = NEEDED.iter().find(|row| !kvm.check_extension(row.0)) {
            return Err(unsupported(format!("this host's kernel lacks {what}, which Linux {since} has")));
        }
        let supported: CpuId =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("ask for cpuid leaves"))?;
        let cpuid = supported.as_slice();
        let mut features = FeatureSet::from_cpuid(|leaf, subleaf| lookup(cpuid, leaf, subleaf));
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            // Reported by capability alone before Linux 6.
            features = features.union(FeatureSet::of(&[Feature::TscDeadline]));
        }
        let address_sizes = lookup(cpuid, 0x8000_0008, 0).eax;
        let physical_bits = if address_sizes == 0 { 36 } else { address_sizes as u8 };
        Ok(Self { kvm, features, physical_bits })
    }

    /// The device.
    pub fn kvm(&self) -> &kvm_ioctls::Kvm {
        &self.kvm
    }
}

fn lookup(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> CpuidResult {
    const SIGNIFICANT: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let fits =
        |e: &&kvm_cpuid_entry2| e.function == leaf && (e.flags & SIGNIFICANT == 0 || e.index == subleaf);
    entries.iter().find(fits).map_or(CpuidResult::default(), |e| CpuidResult {
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    })
}
