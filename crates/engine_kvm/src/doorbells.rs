//! Doorbells by ioeventfd: the vCPU goes on in the guest, and the device's work begins on another processor.
//!
//! Interrupts take no such way: by an irqfd a message took 1.5 µs where KVM_SIGNAL_MSI takes 1.0, and the registers of the I/O
//! APIC, which are the board's, would have to be copied to the kernel at each change of a level-triggered line.
// UNSAFETY: one ioctl whose argument is a pointer.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use engine::Error;
use kvm_bindings::{kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch};
use kvm_ioctls::VmFd;

use crate::refused;
use crate::requests::KVM_IOEVENTFD;

/// Of one virtual machine.
pub struct IoEvents(pub Arc<VmFd>);

impl engine::Doorbells for IoEvents {
    fn add(&self, gpa: u64, value: u32, event: BorrowedFd<'_>) -> Result<(), Error> {
        let argument = kvm_ioeventfd {
            datamatch: value.into(),
            addr: gpa,
            len: size_of_val(&value) as u32,
            fd: event.as_raw_fd(),
            flags: 1 << kvm_ioeventfd_flag_nr_datamatch,
            ..Default::default()
        };
        // SAFETY: the request takes a `struct kvm_ioeventfd`, which is read before the call returns. The kernel holds the
        // eventfd itself from then on.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), KVM_IOEVENTFD, &raw const argument) };
        if result == 0 {
            return Ok(());
        }
        Err(refused(format!("watch for stores at gpa {gpa:#x}"))(kvm_ioctls::Error::last()))
    }
}
