//! The time stamp counter: the host's plus an offset, if the host's KVM can do that.
// UNSAFETY: reads the host's counter, and makes an ioctl without a wrapper.

use std::os::fd::AsRawFd;

use arch::x86::msr;
use engine::Error;
use kvm_bindings::kvm_device_attr;
use kvm_ioctls::VcpuFd;

use super::{read_msrs, write_msrs};
use crate::requests::KVM_SET_DEVICE_ATTR;
use crate::{refused, unsupported};

/// How a vCPU's TSC is set on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscControl {
    /// By its offset (Linux 5.16).
    Offset,
    /// By its value, off by what passes until the kernel does it.
    Value,
    /// Not at all: guests have the host's. So it is where guests run without the processor's help.
    Fixed,
}

/// An offset that nothing else is near, and what two readings may be apart.
const TRIAL: u64 = 1 << 50;
const NEAR: u64 = 1 << 40;

impl TscControl {
    /// Tries it out, and leaves the vCPU with the host's TSC.
    pub fn of(vcpu: &VcpuFd) -> Self {
        let works = |control: Self| {
            let moved =
                control.set(vcpu, TRIAL).is_ok() && offset(vcpu).is_some_and(|o| o.abs_diff(TRIAL) < NEAR);
            control.set(vcpu, 0).is_ok() && moved
        };
        [Self::Offset, Self::Value].into_iter().find(|control| works(*control)).unwrap_or(Self::Fixed)
    }

    /// Makes the vCPU's TSC the host's plus `offset`.
    ///
    /// # Errors
    /// The host has only its own.
    pub fn give(self, vcpu: &VcpuFd, offset: u64) -> Result<(), Error> {
        if self == Self::Fixed && offset != 0 {
            return Err(unsupported(
                "this host's kvm gives guests its own time stamp counter, which is behind the one they had",
            ));
        }
        self.set(vcpu, offset)
    }

    fn set(self, vcpu: &VcpuFd, offset: u64) -> Result<(), Error> {
        match self {
            Self::Offset => set_offset(vcpu, offset).map_err(refused("set a vcpu's tsc offset")),
            Self::Value => write_msrs(vcpu, &[(msr::TSC, host_tsc().wrapping_add(offset))]),
            Self::Fixed => Ok(()),
        }
    }
}

/// How far the vCPU's TSC is from the host's now.
fn offset(vcpu: &VcpuFd) -> Option<u64> {
    let (_, value) = *read_msrs(vcpu, &[msr::TSC]).ok()?.first()?;
    Some(value.wrapping_sub(host_tsc()))
}

fn set_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), kvm_ioctls::Error> {
    let attribute = kvm_device_attr {
        group: kvm_bindings::KVM_VCPU_TSC_CTRL,
        attr: kvm_bindings::KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_ref(&offset) as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the attribute and the eight bytes of `offset` behind its address; both outlive the call.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) };
    if result == 0 { Ok(()) } else { Err(kvm_ioctls::Error::last()) }
}

/// The host's time stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC has no precondition but CR4.TSD being clear, which Linux sees to unless a process asks for the
    // opposite; we don't.
    unsafe { core::arch::x86_64::_rdtsc() }
}
