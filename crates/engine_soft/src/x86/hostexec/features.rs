//! Which processor features an instruction needs, whether the guest is shown them and the host has them.
//!
//! An instruction whose feature is not in the table is never run on the host.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use arch::x86::cpuid::{CpuidResult, Feature, FeatureSet};
use iced_x86::{Code, CpuidFeature};

/// The decoder's name for a feature and ours; `None` where every x86-64 processor has it and no model hides it.
const TABLE: &[(CpuidFeature, Option<Feature>)] = &[
    (CpuidFeature::INTEL8086, None),
    (CpuidFeature::INTEL186, None),
    (CpuidFeature::INTEL286, None),
    (CpuidFeature::INTEL386, None),
    (CpuidFeature::INTEL486, None),
    (CpuidFeature::MULTIBYTENOP, None),
    (CpuidFeature::PAUSE, None),
    (CpuidFeature::X64, None),
    (CpuidFeature::FPU, Some(Feature::Fpu)),
    (CpuidFeature::FPU287, Some(Feature::Fpu)),
    (CpuidFeature::FPU387, Some(Feature::Fpu)),
    (CpuidFeature::CMOV, Some(Feature::Cmov)),
    (CpuidFeature::CX8, Some(Feature::Cx8)),
    (CpuidFeature::CLFSH, Some(Feature::Clflush)),
    (CpuidFeature::MMX, Some(Feature::Mmx)),
    (CpuidFeature::SSE, Some(Feature::Sse)),
    (CpuidFeature::SSE2, Some(Feature::Sse2)),
    (CpuidFeature::SSE3, Some(Feature::Sse3)),
    (CpuidFeature::SSSE3, Some(Feature::Ssse3)),
    (CpuidFeature::SSE4_1, Some(Feature::Sse41)),
    (CpuidFeature::SSE4_2, Some(Feature::Sse42)),
    (CpuidFeature::PCLMULQDQ, Some(Feature::Pclmulqdq)),
    (CpuidFeature::AES, Some(Feature::Aes)),
    (CpuidFeature::SHA, Some(Feature::Sha)),
    (CpuidFeature::GFNI, Some(Feature::Gfni)),
    (CpuidFeature::VAES, Some(Feature::Vaes)),
    (CpuidFeature::VPCLMULQDQ, Some(Feature::Vpclmulqdq)),
    (CpuidFeature::AVX, Some(Feature::Avx)),
    (CpuidFeature::AVX2, Some(Feature::Avx2)),
    (CpuidFeature::FMA, Some(Feature::Fma)),
    (CpuidFeature::F16C, Some(Feature::F16c)),
    (CpuidFeature::BMI1, Some(Feature::Bmi1)),
    (CpuidFeature::BMI2, Some(Feature::Bmi2)),
    (CpuidFeature::LZCNT, Some(Feature::Lzcnt)),
    (CpuidFeature::POPCNT, Some(Feature::Popcnt)),
    (CpuidFeature::MOVBE, Some(Feature::Movbe)),
    (CpuidFeature::ADX, Some(Feature::Adx)),
    (CpuidFeature::RDRAND, Some(Feature::Rdrand)),
    (CpuidFeature::RDSEED, Some(Feature::Rdseed)),
    (CpuidFeature::CLFLUSHOPT, Some(Feature::Clflushopt)),
    (CpuidFeature::CLWB, Some(Feature::Clwb)),
];

/// Hints that older processors execute as NOP, so that they need no feature at all.
const NOP_WITHOUT: &[CpuidFeature] = &[
    CpuidFeature::CET_IBT,
    CpuidFeature::CET_SS,
    CpuidFeature::CLDEMOTE,
    CpuidFeature::PREFETCHITI,
    CpuidFeature::PREFETCHW,
    CpuidFeature::PREFETCHWT1,
];

/// Features that need the operating system to save the YMM registers.
const NEEDS_AVX: FeatureSet = FeatureSet::of(&[
    Feature::Avx,
    Feature::Avx2,
    Feature::Fma,
    Feature::F16c,
    Feature::Vaes,
    Feature::Vpclmulqdq,
]);

/// Two sets of features, by row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    offered: u64,
    on_host: u64,
}

/// Why a feature does not allow an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// The guest's CPU model does not show it.
    NotOffered,
    /// The host has not got it, or we know nothing of it.
    NotOnHost,
}

impl Features {
    /// The features of a guest for whose CPU model `offered` answers, on this host.
    pub(super) fn new(offered: impl Fn(Feature) -> bool) -> Self {
        let set = |test: &dyn Fn(Feature) -> bool| {
            TABLE.iter().enumerate().fold(0, |set, (i, row)| set | u64::from(row.1.is_none_or(test)) << i)
        };
        Self { offered: set(&offered), on_host: set(&host_has) }
    }

    /// Whether the guest is shown `feature`.
    pub(super) fn offers(&self, feature: CpuidFeature) -> bool {
        TABLE.iter().position(|row| row.0 == feature).is_some_and(|i| self.offered >> i & 1 != 0)
    }

    /// Whether the guest has all that `code` needs, and, if it is to be `run_on_host`, the host too.
    pub(super) fn allow(&self, code: Code, run_on_host: bool) -> Result<(), Lack> {
        for feature in code.cpuid_features() {
            if NOP_WITHOUT.contains(feature) {
                continue;
            }
            let row = TABLE.iter().position(|row| row.0 == *feature).ok_or(Lack::NotOnHost)?;
            if self.offered >> row & 1 == 0 {
                return Err(Lack::NotOffered);
            }
            if run_on_host && self.on_host >> row & 1 == 0 {
                return Err(Lack::NotOnHost);
            }
        }
        Ok(())
    }
}

/// Whether the host's processor, and for AVX its operating system, have `feature`.
pub(super) fn host_has(feature: Feature) -> bool {
    host_features().has(feature)
}

/// What the host's CPUID reports, without what its operating system does not let us use.
pub fn host_features() -> FeatureSet {
    static HOST: OnceLock<FeatureSet> = OnceLock::new();
    *HOST.get_or_init(ask_host)
}

fn ask_host() -> FeatureSet {
    // Under a hypervisor each CPUID is an exit that takes microseconds, so ask once a leaf.
    let mut seen: Vec<((u32, u32), CpuidResult)> = Vec::new();
    let reported = FeatureSet::from_cpuid(|leaf, subleaf| {
        if let Some(known) = seen.iter().find(|known| known.0 == (leaf, subleaf)) {
            return known.1;
        }
        let raw = __cpuid_count(leaf, subleaf);
        let result = CpuidResult { eax: raw.eax, ebx: raw.ebx, ecx: raw.ecx, edx: raw.edx };
        seen.push(((leaf, subleaf), result));
        result
    });
    if std::arch::is_x86_feature_detected!("avx") { reported } else { reported.difference(NEEDS_AVX) }
}
