//! CPU models: which features, which identity.
//!
//! Levels are those of the x86-64 psABI. Everything only a kernel uses (PCID, SMEP, x2APIC, ...) is the same
//! in all of them: it costs an engine nothing, and the levels speak of user code only.
//!
//! Identity: family 6 model 0x8f (Sapphire Rapids), because Linux lists older models as vulnerable whatever
//! `ARCH_CAPABILITIES` says (Retbleed, GDS, ITS, RFDS) and would then run retpolines and thunks, which cost
//! an engine in software dearly and protect nothing: the guest's branches are predicted by no hardware.
//! Since 2025 Linux takes BHI_NO for no answer and clears the branch history by a loop at every system call,
//! unless SPEC_CTRL has BHI_DIS_S (`bhi_ctrl`), which it then sets once.
//!
//! Never shown, by not being in the feature table: AMX, AVX-512, TSX, CET, LA57, PKU, MPX, MONITOR in the
//! named models, VMX, performance counters.

use super::features::{Feature, FeatureSet};
use crate::x86::registers::{Cr4, Efer, Xcr0};

/// A CPU model: which features a guest sees, and what the processor calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// The name users type, e.g. `x86-64-v3`.
    pub name: &'static str,
    /// CPUID leaf 1 EAX: family, model, stepping.
    pub signature: u32,
    /// The brand string, at most 47 ASCII characters.
    pub brand: &'static str,
    /// Bits of a physical address.
    pub physical_bits: u8,
    features: FeatureSet,
}

/// What every model has: what a 64-bit kernel uses, and the instruction set of x86-64 itself.
const BASE: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[
        Fpu,
        Vme,
        De,
        Pse,
        Tsc,
        Msr,
        Pae,
        Mce,
        Cx8,
        Apic,
        Sep,
        Mtrr,
        Pge,
        Mca,
        Cmov,
        Pat,
        Pse36,
        Clflush,
        Mmx,
        Fxsr,
        Sse,
        Sse2,
        SelfSnoop,
        Pcid,
        X2apic,
        TscDeadline,
        Hypervisor,
        Arat,
        Fsgsbase,
        TscAdjust,
        Smep,
        Smap,
        Erms,
        Fsrm,
        Invpcid,
        ZeroFcsFds,
        Umip,
        SpecCtrl,
        ArchCapabilities,
        BhiCtrl,
        Prefetchw,
        Syscall,
        Nx,
        Pdpe1gb,
        Rdtscp,
        LongMode,
        InvariantTsc,
    ])
};

/// What x86-64-v2 adds.
const V2: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[Cx16, Lahf, Popcnt, Sse3, Ssse3, Sse41, Sse42])
};

/// What x86-64-v3 adds, with the XSAVE family its registers need.
const V3: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[
        Avx, Avx2, Bmi1, Bmi2, F16c, Fma, Lzcnt, Movbe, Xsave, Xsaveopt, Xsavec, Xgetbv1, Xsaves,
    ])
};

/// What `host-like` adds if the host has it: a software engine runs these by the host's own instruction, or
/// (CLFLUSHOPT, CLWB, ADX, RDPID) needs nothing special but shows them only where migration to a like host works.
const FROM_HOST: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[
        Aes, Pclmulqdq, Rdrand, Rdseed, Adx, Sha, Gfni, Vaes, Vpclmulqdq, Clflushopt, Clwb, Rdpid,
    ])
};

/// Features whose instructions a software engine may execute by running the same instruction on the host.
const RUN_BY_HOST: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[
        Mmx, Sse, Sse2, Sse3, Ssse3, Sse41, Sse42, Avx, Avx2, F16c, Fma, Bmi1, Bmi2, Lzcnt, Popcnt, Aes,
        Pclmulqdq, Rdrand, Rdseed, Sha, Gfni, Vaes, Vpclmulqdq,
    ])
};

/// What only an operating system's kernel uses, or what says how fast something is: no level promises these to programs,
/// so an engine that cannot have them on its host leaves them out.
const OPTIONAL: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[
        Vme,
        SelfSnoop,
        Pcid,
        X2apic,
        TscDeadline,
        Arat,
        Fsgsbase,
        TscAdjust,
        Smep,
        Smap,
        Erms,
        Fsrm,
        Invpcid,
        ZeroFcsFds,
        Umip,
        SpecCtrl,
        ArchCapabilities,
        BhiCtrl,
        Prefetchw,
        Pdpe1gb,
        Rdtscp,
        InvariantTsc,
        Xsaveopt,
        Xsavec,
        Xgetbv1,
        Xsaves,
    ])
};

/// Family 6, model 0x8f, stepping 8; see the module.
const SIGNATURE: u32 = 0x0008_06f8;

/// (name, brand, features without knowledge of the host).
const MODELS: &[(&str, &str, FeatureSet)] = &[
    ("x86-64", "Strata Virtual Processor (x86-64)", BASE),
    ("x86-64-v2", "Strata Virtual Processor (x86-64-v2)", BASE.union(V2)),
    ("x86-64-v3", "Strata Virtual Processor (x86-64-v3)", BASE.union(V2).union(V3)),
    (HOST_LIKE, "Strata Virtual Processor", BASE.union(V2).union(V3)),
];

const HOST_LIKE: &str = "host-like";

impl CpuModel {
    /// The model called `name`, if there is one. `host-like` is x86-64-v3 until [`Self::fitted_to`] is called.
    pub fn named(name: &str) -> Option<Self> {
        MODELS.iter().find(|row| row.0 == name).map(|&(name, brand, features)| Self {
            name,
            signature: SIGNATURE,
            brand,
            physical_bits: 46,
            features,
        })
    }

    /// The names [`Self::named`] knows, plainest first.
    pub fn names() -> impl DoubleEndedIterator<Item = &'static str> {
        MODELS.iter().map(|row| row.0)
    }

    /// The best model of a fixed set of features of which `lacks` says that nothing is missing, else the plainest.
    pub fn best(lacks: impl Fn(&Self) -> bool) -> &'static str {
        let fixed = || Self::names().filter(|name| *name != HOST_LIKE);
        let fits = |name: &&str| Self::named(name).is_some_and(|model| !lacks(&model));
        fixed().rev().find(fits).unwrap_or(MODELS[0].0)
    }

    /// The model on a host with the features `host`: `host-like` takes what a software engine can run there
    /// and drops what it cannot; the others promise a fixed set and do not change ([`Self::missing_on`]).
    pub fn fitted_to(mut self, host: FeatureSet) -> Self {
        if self.name == HOST_LIKE {
            let lacking = RUN_BY_HOST.difference(host);
            self.features = self.features.union(FROM_HOST.intersection(host)).difference(lacking);
            if !self.has(Feature::Avx) {
                let needs_avx = FeatureSet::of(&[Feature::Avx2, Feature::F16c, Feature::Fma]);
                self.features = self.features.difference(needs_avx);
            }
        }
        self
    }

    /// What the model promises and a software engine could run only with the host's help, which this one lacks.
    pub fn missing_on(&self, host: FeatureSet) -> FeatureSet {
        self.features.intersection(RUN_BY_HOST).difference(host)
    }

    /// The model where the host's processor executes everything itself and offers `host`: without what it lacks and no
    /// level promises. What else it lacks, [`Self::lacking_on`] tells.
    pub fn limited_to(mut self, host: FeatureSet) -> Self {
        self.features = self.features.difference(OPTIONAL.difference(host));
        self
    }

    /// What the model shows and `host` does not have.
    pub fn lacking_on(&self, host: FeatureSet) -> FeatureSet {
        self.features.difference(host)
    }

    /// Whether the guest sees `feature`.
    pub const fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// All features the guest sees.
    pub const fn features(&self) -> FeatureSet {
        self.features
    }

    /// The model with `feature` added.
    pub fn with(mut self, feature: Feature) -> Self {
        self.features = self.features.union(FeatureSet::of(&[feature]));
        self
    }

    /// The model without `feature`.
    pub fn without(mut self, feature: Feature) -> Self {
        self.features = self.features.difference(FeatureSet::of(&[feature]));
        self
    }

    /// The bits of XCR0 that may be set; zero without XSAVE.
    pub fn xcr0_supported(&self) -> u64 {
        let mut supported = Xcr0::empty();
        if self.has(Feature::Xsave) {
            supported |= Xcr0::X87 | Xcr0::SSE;
            if self.has(Feature::Avx) {
                supported |= Xcr0::AVX;
            }
        }
        supported.bits()
    }

    /// The bits of CR4 that may be set.
    pub fn cr4_supported(&self) -> u64 {
        const BY_FEATURE: &[(Feature, Cr4)] = &[
            (Feature::Vme, Cr4::VME.union(Cr4::PVI)),
            (Feature::Tsc, Cr4::TSD),
            (Feature::De, Cr4::DE),
            (Feature::Pse, Cr4::PSE),
            (Feature::Pae, Cr4::PAE),
            (Feature::Mce, Cr4::MCE),
            (Feature::Pge, Cr4::PGE),
            (Feature::Fxsr, Cr4::OSFXSR),
            (Feature::Sse, Cr4::OSXMMEXCPT),
            (Feature::Umip, Cr4::UMIP),
            (Feature::Fsgsbase, Cr4::FSGSBASE),
            (Feature::Pcid, Cr4::PCIDE),
            (Feature::Xsave, Cr4::OSXSAVE),
            (Feature::Smep, Cr4::SMEP),
            (Feature::Smap, Cr4::SMAP),
        ];
        let allowed = BY_FEATURE.iter().filter(|row| self.has(row.0)).fold(Cr4::PCE, |all, row| all | row.1);
        allowed.bits()
    }

    /// The bits of EFER that may be set.
    pub fn efer_supported(&self) -> u64 {
        let mut supported = Efer::empty();
        supported.set(Efer::SCE, self.has(Feature::Syscall));
        supported.set(Efer::LME | Efer::LMA, self.has(Feature::LongMode));
        supported.set(Efer::NXE, self.has(Feature::Nx));
        supported.bits()
    }

    /// MSR IA32_ARCH_CAPABILITIES: everything a guest could mitigate is reported as not needing it (see the
    /// module). Bits: RDCL_NO 0, IBRS_ALL 1, SKIP_L1DFL_VMENTRY 3, SSB_NO 4, MDS_NO 5, IF_PSCHANGE_MC_NO 6,
    /// TAA_NO 8, SBDR_SSDP_NO 13, FBSDP_NO 14, PSDP_NO 15, BHI_NO 20, PBRSB_NO 24, GDS_NO 26, RFDS_NO 27,
    /// ITS_NO 62.
    pub const fn arch_capabilities(&self) -> u64 {
        const BITS: [u32; 15] = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62];
        let mut value = 0;
        let mut i = 0;
        while i < BITS.len() {
            value |= 1 << BITS[i];
            i += 1;
        }
        value
    }
}
