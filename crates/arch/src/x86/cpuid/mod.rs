//! CPUID leaves and CPU models (SDM vol. 2, CPUID; KVM: Documentation/virt/kvm/x86/cpuid.rst).
//!
//! Reading order: [`features`] (the table), [`model`] (which of them), then [`CpuModel::cpuid`] here.

pub mod features;
pub mod model;
#[cfg(test)]
mod tests;

use super::registers::{Cr4, Xcr0};

pub use features::{CpuidRegister, FEATURES, Feature, FeatureBit, FeatureSet};
pub use model::CpuModel;

/// What CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl CpuidResult {
    const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self { eax, ebx, ecx, edx }
    }
}

/// What a CPUID answer depends on beside the model.
#[derive(Clone, Copy, Debug)]
pub struct CpuidContext {
    /// The vCPU's APIC id.
    pub apic_id: u32,
    /// How many vCPUs the machine has.
    pub vcpu_count: u32,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u32,
    /// CR4 of the vCPU (OSXSAVE is mirrored).
    pub cr4: u64,
    /// XCR0 of the vCPU (the size of the XSAVE area depends on it).
    pub xcr0: u64,
}

/// Highest basic leaf.
pub const MAX_BASIC_LEAF: u32 = 0x1f;
/// Highest extended leaf.
pub const MAX_EXTENDED_LEAF: u32 = 0x8000_0008;
/// First leaf of the hypervisor.
pub const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// Highest leaf of the hypervisor.
pub const MAX_HYPERVISOR_LEAF: u32 = 0x4000_0010;
/// Frequency of the local APIC's timer before its divider, in kHz: what KVM uses and leaf 0x40000010 reports.
pub const APIC_TIMER_KHZ: u32 = 1_000_000;

/// Bytes of the legacy region and header of an XSAVE area.
pub const XSAVE_HEADER_END: u32 = 576;
/// Bytes of the AVX component of an XSAVE area, which stands at [`XSAVE_HEADER_END`].
pub const XSAVE_AVX_BYTES: u32 = 256;

/// KVM_FEATURE_CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2 and CLOCKSOURCE_STABLE_BIT.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

/// Bytes of an XSAVE area, standard or compacted, that holds the components `xcr0`.
///
/// With AVX as the only extended component the two formats have the same size.
pub const fn xsave_area_bytes(xcr0: u64) -> u32 {
    if xcr0 & Xcr0::AVX.bits() != 0 { XSAVE_HEADER_END + XSAVE_AVX_BYTES } else { XSAVE_HEADER_END }
}

impl CpuModel {
    /// What CPUID returns for `leaf` and `subleaf`. Beyond the highest leaf it answers like Intel's processors:
    /// as for the highest basic one; zeros in the hypervisor's range.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> CpuidResult {
        match leaf {
            0..=MAX_BASIC_LEAF => self.basic(leaf, subleaf, context),
            HYPERVISOR_LEAF..=0x4fff_ffff => self.hypervisor(leaf, context),
            0x8000_0000..=MAX_EXTENDED_LEAF => self.extended(leaf),
            _ => self.basic(MAX_BASIC_LEAF, subleaf, context),
        }
    }

    fn basic(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> CpuidResult {
        // Only these leaves look at ECX; software leaves anything there for the others.
        let subleaf = if matches!(leaf, 4 | 7 | 0xb | 0xd | 0x1f) { subleaf } else { 0 };
        let mut result = self.features().bits(leaf, subleaf);
        match leaf {
            0 => result = vendor(MAX_BASIC_LEAF),
            1 => self.version(&mut result, context),
            // "Use leaf 4."
            2 => result = CpuidResult::new(0x00fe_ff01, 0, 0, 0),
            4 => result = cache(subleaf, context),
            7 if subleaf == 0 => result.eax = self.max_feature_subleaf(),
            0xb | 0x1f => result = topology(subleaf, context),
            0xd => self.xsave(&mut result, subleaf, context),
            0x15 => result = tsc_ratio(context.tsc_khz),
            0x16 => result = CpuidResult::new(mhz(context.tsc_khz), mhz(context.tsc_khz), 100, 0),
            _ => {}
        }
        result
    }

    /// Leaf 7 sub-leaf 0 EAX: its highest sub-leaf.
    fn max_feature_subleaf(&self) -> u32 {
        self.features().iter().filter(|row| row.leaf == 7).map(|row| row.subleaf).max().unwrap_or(0)
    }

    /// Leaf 1: signature, APIC id, CLFLUSH line, and the bits that mirror state.
    fn version(&self, result: &mut CpuidResult, context: &CpuidContext) {
        let ids = 1u32.checked_shl(core_bits(context)).unwrap_or(u32::MAX).min(255);
        result.eax = self.signature;
        result.ebx = (context.apic_id & 0xff) << 24 | ids << 16 | 8 << 8;
        if context.cr4 & Cr4::OSXSAVE.bits() != 0 {
            result.ecx |= 1 << 27;
        }
        if context.vcpu_count > 1 {
            result.edx |= 1 << 28; // HTT: EBX[23:16] is meaningful
        }
    }

    fn xsave(&self, result: &mut CpuidResult, subleaf: u32, context: &CpuidContext) {
        let supported = self.xcr0_supported();
        if supported == 0 {
            *result = CpuidResult::default();
            return;
        }
        match subleaf {
            0 => {
                let (now, most) = (xsave_area_bytes(context.xcr0), xsave_area_bytes(supported));
                *result = CpuidResult::new(supported as u32, now, most, 0);
            }
            1 if self.has(Feature::Xsavec) => result.ebx = xsave_area_bytes(context.xcr0),
            2 if supported & Xcr0::AVX.bits() != 0 => {
                *result = CpuidResult::new(XSAVE_AVX_BYTES, XSAVE_HEADER_END, 0, 0);
            }
            _ => {}
        }
    }

    fn hypervisor(&self, leaf: u32, context: &CpuidContext) -> CpuidResult {
        if !self.has(Feature::Hypervisor) {
            return CpuidResult::default();
        }
        match leaf {
            HYPERVISOR_LEAF => {
                let [b, c, d] = words(b"KVMKVMKVM\0\0\0");
                CpuidResult::new(MAX_HYPERVISOR_LEAF, b, c, d)
            }
            0x4000_0001 => CpuidResult::new(KVM_FEATURES, 0, 0, 0),
            MAX_HYPERVISOR_LEAF => CpuidResult::new(context.tsc_khz, APIC_TIMER_KHZ, 0, 0),
            _ => CpuidResult::default(),
        }
    }

    fn extended(&self, leaf: u32) -> CpuidResult {
        let mut result = self.features().bits(leaf, 0);
        match leaf {
            0x8000_0000 => result.eax = MAX_EXTENDED_LEAF,
            0x8000_0002..=0x8000_0004 => result = self.brand_words(leaf - 0x8000_0002),
            // L2: 2 MiB, 16 ways (code 8), 64-byte lines.
            0x8000_0006 => result.ecx = 2048 << 16 | 8 << 12 | 64,
            0x8000_0008 => result.eax = 48 << 8 | u32::from(self.physical_bits),
            _ => {}
        }
        result
    }

    /// 16 of the 48 bytes of the zero-terminated brand string.
    fn brand_words(&self, part: u32) -> CpuidResult {
        let mut text = [0u8; 48];
        for (to, from) in text[..47].iter_mut().zip(self.brand.bytes()) {
            *to = from;
        }
        let word = |i: usize| {
            let at = part as usize * 16 + i * 4;
            u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
        };
        CpuidResult::new(word(0), word(1), word(2), word(3))
    }
}

fn words(text: &[u8; 12]) -> [u32; 3] {
    [0, 4, 8].map(|i| u32::from_le_bytes([text[i], text[i + 1], text[i + 2], text[i + 3]]))
}

fn vendor(max_leaf: u32) -> CpuidResult {
    let [b, d, c] = words(b"GenuineIntel");
    CpuidResult::new(max_leaf, b, c, d)
}

fn mhz(khz: u32) -> u32 {
    khz / 1000
}

/// Bits of an APIC id that number the cores of the one package; every core has one thread.
fn core_bits(context: &CpuidContext) -> u32 {
    context.vcpu_count.max(1).next_power_of_two().trailing_zeros()
}

/// Leaf 4: 32 KiB L1 data and code, 2 MiB L2 per core, 16 MiB L3 for all.
fn cache(subleaf: u32, context: &CpuidContext) -> CpuidResult {
    /// (type, level, ways, sets, shared by all cores)
    const CACHES: &[(u32, u32, u32, u32, bool)] =
        &[(1, 1, 8, 64, false), (2, 1, 8, 64, false), (3, 2, 16, 2048, false), (3, 3, 16, 16384, true)];
    let Some(&(kind, level, ways, sets, shared)) = CACHES.get(subleaf as usize) else {
        return CpuidResult::default();
    };
    let ids = ((1u64 << core_bits(context)) - 1) as u32;
    let sharing = if shared { ids.min(0xfff) } else { 0 };
    let self_initializing = 1 << 8;
    let eax = kind | level << 5 | self_initializing | sharing << 14 | ids.min(0x3f) << 26;
    CpuidResult::new(eax, (ways - 1) << 22 | (64 - 1), sets - 1, 0)
}

/// Leaves 0xb and 0x1f: level 0 threads (one per core), level 1 cores.
fn topology(subleaf: u32, context: &CpuidContext) -> CpuidResult {
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    match subleaf {
        0 => CpuidResult::new(0, 1, THREAD, context.apic_id),
        1 => CpuidResult::new(core_bits(context), context.vcpu_count.min(0xffff), CORE | 1, context.apic_id),
        _ => CpuidResult::new(0, 0, subleaf & 0xff, context.apic_id),
    }
}

/// Leaf 0x15: TSC = crystal (ECX, Hz) * EBX / EAX.
///
/// Guests take the crystal for the APIC timer's clock too, so it is that if the ratio is exact and Linux's
/// 32-bit product of crystal kHz and numerator does not overflow; otherwise the TSC itself is the crystal.
fn tsc_ratio(tsc_khz: u32) -> CpuidResult {
    if tsc_khz == 0 {
        return CpuidResult::default();
    }
    let divisor = gcd(tsc_khz, APIC_TIMER_KHZ);
    let (numerator, denominator) = (tsc_khz / divisor, APIC_TIMER_KHZ / divisor);
    match (APIC_TIMER_KHZ.checked_mul(numerator), tsc_khz.checked_mul(1000)) {
        (Some(_), _) => CpuidResult::new(denominator, numerator, APIC_TIMER_KHZ * 1000, 0),
        (None, Some(hz)) => CpuidResult::new(1, 1, hz, 0),
        (None, None) => CpuidResult::default(),
    }
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
