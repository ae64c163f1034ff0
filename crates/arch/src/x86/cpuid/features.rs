//! Every processor feature a model may show, as one table: where CPUID reports it and what it is called.
//!
//! A feature that is not in this table is never shown to a guest. Names are those of Linux's `/proc/cpuinfo`.

use super::CpuidResult;

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl CpuidRegister {
    /// This register of `result`.
    pub const fn of(self, result: &CpuidResult) -> u32 {
        match self {
            Self::Eax => result.eax,
            Self::Ebx => result.ebx,
            Self::Ecx => result.ecx,
            Self::Edx => result.edx,
        }
    }

    /// This register of `result`, to change it.
    pub const fn of_mut(self, result: &mut CpuidResult) -> &mut u32 {
        match self {
            Self::Eax => &mut result.eax,
            Self::Ebx => &mut result.ebx,
            Self::Ecx => &mut result.ecx,
            Self::Edx => &mut result.edx,
        }
    }
}

/// Where CPUID reports a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureBit {
    /// The feature.
    pub feature: Feature,
    /// Its name, as in `/proc/cpuinfo`.
    pub name: &'static str,
    /// EAX before CPUID.
    pub leaf: u32,
    /// ECX before CPUID.
    pub subleaf: u32,
    /// The output register.
    pub register: CpuidRegister,
    /// The bit in it.
    pub bit: u8,
}

macro_rules! features {
    ($($feature:ident $name:literal $leaf:literal . $subleaf:literal $register:ident $bit:literal)*) => {
        /// A processor feature.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Feature { $($feature),* }

        /// All features, in the order of [`Feature`].
        pub const FEATURES: &[FeatureBit] = &[$(FeatureBit {
            feature: Feature::$feature,
            name: $name,
            leaf: $leaf,
            subleaf: $subleaf,
            register: CpuidRegister::$register,
            bit: $bit,
        }),*];
    };
}

features! {
    Fpu               "fpu"               0x1 . 0 Edx 0
    Vme               "vme"               0x1 . 0 Edx 1
    De                "de"                0x1 . 0 Edx 2
    Pse               "pse"               0x1 . 0 Edx 3
    Tsc               "tsc"               0x1 . 0 Edx 4
    Msr               "msr"               0x1 . 0 Edx 5
    Pae               "pae"               0x1 . 0 Edx 6
    Mce               "mce"               0x1 . 0 Edx 7
    Cx8               "cx8"               0x1 . 0 Edx 8
    Apic              "apic"              0x1 . 0 Edx 9
    Sep               "sep"               0x1 . 0 Edx 11
    Mtrr              "mtrr"              0x1 . 0 Edx 12
    Pge               "pge"               0x1 . 0 Edx 13
    Mca               "mca"               0x1 . 0 Edx 14
    Cmov              "cmov"              0x1 . 0 Edx 15
    Pat               "pat"               0x1 . 0 Edx 16
    Pse36             "pse36"             0x1 . 0 Edx 17
    Clflush           "clflush"           0x1 . 0 Edx 19
    Mmx               "mmx"               0x1 . 0 Edx 23
    Fxsr              "fxsr"              0x1 . 0 Edx 24
    Sse               "sse"               0x1 . 0 Edx 25
    Sse2              "sse2"              0x1 . 0 Edx 26
    SelfSnoop         "ss"                0x1 . 0 Edx 27

    Sse3              "pni"               0x1 . 0 Ecx 0
    Pclmulqdq         "pclmulqdq"         0x1 . 0 Ecx 1
    Monitor           "monitor"           0x1 . 0 Ecx 3
    Ssse3             "ssse3"             0x1 . 0 Ecx 9
    Fma               "fma"               0x1 . 0 Ecx 12
    Cx16              "cx16"              0x1 . 0 Ecx 13
    Pcid              "pcid"              0x1 . 0 Ecx 17
    Sse41             "sse4_1"            0x1 . 0 Ecx 19
    Sse42             "sse4_2"            0x1 . 0 Ecx 20
    X2apic            "x2apic"            0x1 . 0 Ecx 21
    Movbe             "movbe"             0x1 . 0 Ecx 22
    Popcnt            "popcnt"            0x1 . 0 Ecx 23
    TscDeadline       "tsc_deadline_timer" 0x1 . 0 Ecx 24
    Aes               "aes"               0x1 . 0 Ecx 25
    Xsave             "xsave"             0x1 . 0 Ecx 26
    Avx               "avx"               0x1 . 0 Ecx 28
    F16c              "f16c"              0x1 . 0 Ecx 29
    Rdrand            "rdrand"            0x1 . 0 Ecx 30
    Hypervisor        "hypervisor"        0x1 . 0 Ecx 31

    Arat              "arat"              0x6 . 0 Eax 2

    Fsgsbase          "fsgsbase"          0x7 . 0 Ebx 0
    TscAdjust         "tsc_adjust"        0x7 . 0 Ebx 1
    Bmi1              "bmi1"              0x7 . 0 Ebx 3
    Avx2              "avx2"              0x7 . 0 Ebx 5
    Smep              "smep"              0x7 . 0 Ebx 7
    Bmi2              "bmi2"              0x7 . 0 Ebx 8
    Erms              "erms"              0x7 . 0 Ebx 9
    Invpcid           "invpcid"           0x7 . 0 Ebx 10
    ZeroFcsFds        "zero_fcs_fds"      0x7 . 0 Ebx 13
    Rdseed            "rdseed"            0x7 . 0 Ebx 18
    Adx               "adx"               0x7 . 0 Ebx 19
    Smap              "smap"              0x7 . 0 Ebx 20
    Clflushopt        "clflushopt"        0x7 . 0 Ebx 23
    Clwb              "clwb"              0x7 . 0 Ebx 24
    Sha               "sha_ni"            0x7 . 0 Ebx 29

    Umip              "umip"              0x7 . 0 Ecx 2
    Gfni              "gfni"              0x7 . 0 Ecx 8
    Vaes              "vaes"              0x7 . 0 Ecx 9
    Vpclmulqdq        "vpclmulqdq"        0x7 . 0 Ecx 10
    Rdpid             "rdpid"             0x7 . 0 Ecx 22

    Fsrm              "fsrm"              0x7 . 0 Edx 4
    SpecCtrl          "spec_ctrl"         0x7 . 0 Edx 26
    ArchCapabilities  "arch_capabilities" 0x7 . 0 Edx 29
    BhiCtrl           "bhi_ctrl"          0x7 . 2 Edx 4

    Xsaveopt          "xsaveopt"          0xd . 1 Eax 0
    Xsavec            "xsavec"            0xd . 1 Eax 1
    Xgetbv1           "xgetbv1"           0xd . 1 Eax 2
    Xsaves            "xsaves"            0xd . 1 Eax 3

    Lahf              "lahf_lm"           0x8000_0001 . 0 Ecx 0
    Lzcnt             "abm"               0x8000_0001 . 0 Ecx 5
    Prefetchw         "3dnowprefetch"     0x8000_0001 . 0 Ecx 8
    Syscall           "syscall"           0x8000_0001 . 0 Edx 11
    Nx                "nx"                0x8000_0001 . 0 Edx 20
    Pdpe1gb           "pdpe1gb"           0x8000_0001 . 0 Edx 26
    Rdtscp            "rdtscp"            0x8000_0001 . 0 Edx 27
    LongMode          "lm"                0x8000_0001 . 0 Edx 29

    InvariantTsc      "nonstop_tsc"       0x8000_0007 . 0 Edx 8
}

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FeatureSet(u128);

impl FeatureSet {
    /// No feature.
    pub const EMPTY: Self = Self(0);

    /// The features in `list`.
    pub const fn of(list: &[Feature]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < list.len() {
            bits |= 1 << list[i] as u8;
            i += 1;
        }
        Self(bits)
    }

    /// The features some processor reports; `cpuid` answers for a leaf and sub-leaf.
    pub fn from_cpuid(mut cpuid: impl FnMut(u32, u32) -> CpuidResult) -> Self {
        let mut set = Self::EMPTY;
        for row in FEATURES {
            let limit = cpuid(row.leaf & 0x8000_0000, 0).eax;
            if row.leaf <= limit && row.register.of(&cpuid(row.leaf, row.subleaf)) >> row.bit & 1 != 0 {
                set.0 |= 1 << row.feature as u8;
            }
        }
        set
    }

    /// Whether `feature` is in the set.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    /// The set with the features of `other` added.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The features in both sets.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The set without the features of `other`.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The rows of the features in the set, in table order.
    pub fn iter(self) -> impl Iterator<Item = &'static FeatureBit> {
        FEATURES.iter().filter(move |row| self.has(row.feature))
    }

    /// What CPUID reports in `leaf` and `subleaf` for the features in the set: their bits and nothing else.
    pub(super) fn bits(self, leaf: u32, subleaf: u32) -> CpuidResult {
        let mut result = CpuidResult::default();
        for row in self.iter().filter(|row| row.leaf == leaf && row.subleaf == subleaf) {
            *row.register.of_mut(&mut result) |= 1 << row.bit;
        }
        result
    }
}

impl Feature {
    /// The feature called `name` in `/proc/cpuinfo`.
    pub fn named(name: &str) -> Option<Self> {
        FEATURES.iter().find(|row| row.name == name).map(|row| row.feature)
    }

    /// The row of this feature.
    pub const fn bit(self) -> &'static FeatureBit {
        &FEATURES[self as usize]
    }
}

const _: () = assert!(FEATURES.len() <= 128, "FeatureSet holds 128 features");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_features_share_a_bit_or_a_name() {
        for (i, a) in FEATURES.iter().enumerate() {
            assert_eq!(a.feature as usize, i);
            for b in &FEATURES[i + 1..] {
                assert_ne!((a.leaf, a.subleaf, a.register, a.bit), (b.leaf, b.subleaf, b.register, b.bit));
                assert_ne!(a.name, b.name);
            }
        }
    }

    #[test]
    fn a_leaf_beyond_the_limit_gives_no_features() {
        let set = FeatureSet::from_cpuid(|leaf, _| match leaf {
            0 => CpuidResult { eax: 1, ..CpuidResult::default() },
            0x8000_0000 => CpuidResult { eax: 0x8000_0000, ..CpuidResult::default() },
            _ => CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 },
        });
        assert!(set.has(Feature::Fpu) && set.has(Feature::Avx));
        assert!(!set.has(Feature::Bmi1) && !set.has(Feature::Nx) && !set.has(Feature::Xsavec));
    }
}
