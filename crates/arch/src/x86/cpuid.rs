//! CPUID leaves and CPU models (SDM vol. 2, CPUID; KVM: Documentation/virt/kvm/x86/cpuid.rst).
