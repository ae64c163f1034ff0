//! CPUID leaves and CPU models (SDM vol. 2, CPUID; KVM: Documentation/virt/kvm/x86/cpuid.rst).

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

/// A CPU model: which features a guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// The name users type, e.g. `x86-64-v3`.
    pub name: &'static str,
}

impl CpuModel {
    /// The model called `name`, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        let _ = name;
        Some(Self { name: "x86-64-v3" })
    }

    /// What CPUID returns for `leaf` and `subleaf`.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> CpuidResult {
        let _ = (leaf, subleaf, context);
        CpuidResult::default()
    }
}
