//! Numbers of ioctls (`include/uapi/linux/kvm.h`): those we make ourselves, and the list of all that a running machine
//! makes, for whoever filters system calls.

/// KVM's ioctl type.
const KVMIO: u64 = 0xae;
const WRITE: u64 = 1 << 30;
const READ: u64 = 2 << 30;

const fn request<T>(direction: u64, number: u64) -> u64 {
    direction | (size_of::<T>() as u64) << 16 | KVMIO << 8 | number
}

/// Runs the vCPU.
pub const KVM_RUN: u64 = KVMIO << 8 | 0x80;
/// Watches for stores to device memory; when a machine is made.
pub const KVM_IOEVENTFD: u64 = request::<kvm_bindings::kvm_ioeventfd>(WRITE, 0x79);
/// Sets an attribute, here the TSC's offset.
pub const KVM_SET_DEVICE_ATTR: u64 = request::<kvm_bindings::kvm_device_attr>(WRITE, 0xe1);

/// What is called after the machine was made. Everything that makes machines, vCPUs and memory is absent.
pub const WHILE_RUNNING: &[u64] = {
    use kvm_bindings as kvm;
    &[
        KVM_RUN,
        // The state of a vCPU: taken when it stops, given when it goes on.
        request::<kvm::kvm_regs>(READ, 0x81),
        request::<kvm::kvm_regs>(WRITE, 0x82),
        request::<kvm::kvm_sregs>(READ, 0x83),
        request::<kvm::kvm_sregs>(WRITE, 0x84),
        request::<kvm::kvm_msrs>(READ | WRITE, 0x88),
        request::<kvm::kvm_msrs>(WRITE, 0x89),
        request::<kvm::kvm_lapic_state>(READ, 0x8e),
        request::<kvm::kvm_lapic_state>(WRITE, 0x8f),
        request::<kvm::kvm_mp_state>(READ, 0x98),
        request::<kvm::kvm_mp_state>(WRITE, 0x99),
        request::<kvm::kvm_vcpu_events>(READ, 0x9f),
        request::<kvm::kvm_vcpu_events>(WRITE, 0xa0),
        request::<kvm::kvm_debugregs>(READ, 0xa1),
        request::<kvm::kvm_debugregs>(WRITE, 0xa2),
        request::<kvm::kvm_xsave>(READ, 0xa4),
        request::<kvm::kvm_xsave>(WRITE, 0xa5),
        request::<kvm::kvm_xcrs>(READ, 0xa6),
        request::<kvm::kvm_xcrs>(WRITE, 0xa7),
        // The guest writes its TSC.
        KVM_SET_DEVICE_ATTR,
        // Interrupts of devices.
        request::<kvm::kvm_msi>(WRITE, 0xa5),
        request::<kvm::kvm_irq_routing>(WRITE, 0x6a),
        // Where a guest's instruction is that KVM cannot go on from.
        request::<kvm::kvm_translation>(READ | WRITE, 0x85),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_header() {
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(KVM_SET_DEVICE_ATTR, 0x4018_aee1);
        assert_eq!(KVM_IOEVENTFD, 0x4040_ae79);
        assert!(WHILE_RUNNING.contains(&0x8090_ae81), "KVM_GET_REGS");
        assert!(WHILE_RUNNING.contains(&0x4138_ae84), "KVM_SET_SREGS");
        assert!(WHILE_RUNNING.contains(&0x4008_ae6a), "KVM_SET_GSI_ROUTING");
        assert!(WHILE_RUNNING.contains(&0x4020_aea5), "KVM_SIGNAL_MSI");
        assert!(WHILE_RUNNING.contains(&0x9000_aea4), "KVM_GET_XSAVE");
    }

    #[test]
    fn nothing_that_makes_something_is_allowed() {
        for number in [0x00, 0x01, 0x41, 0x46, 0x47, 0x79, 0xe0] {
            assert!(WHILE_RUNNING.iter().all(|r| r & 0xff != number), "{number:#x}");
        }
    }
}
