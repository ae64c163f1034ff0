//! The engine on KVM: guest instructions run on the host's processor, local APICs are the host kernel's.
//!
//! Reading order: [`Kvm`] here, `host` (what this host offers), `vm` (one machine), `vcpu` (the run loop and what ends
//! a run of it), `kick` (how other threads get in), `state` (registers to and from the kernel), `apics`, and [`probe`],
//! which finds out whether a host's KVM runs guests or only emulates them.
//!
//! I/O APIC, 8259A, 8254 and kvm-clock stay the board's, reached through the bus, so their state is the board's too.
//!
//! Deliberately absent: irqfd (`doorbells` says why), dirty logging, SMM, nested virtualisation, any device.
// UNSAFETY: ioctls whose arguments are pointers, the page shared with the kernel, and the signal that leaves KVM_RUN;
// each file says which.
#![deny(unsafe_op_in_unsafe_fn)]

mod apics;
mod cpuid;
mod doorbells;
mod host;
mod internal_error;
mod kick;
mod msrs;
pub mod probe;
mod requests;
mod run_page;
mod state;
mod vcpu;
mod vm;

use std::sync::Arc;

use arch::x86::cpuid::{CpuModel, FeatureSet};
use engine::{Engine, Error, Vm, VmConfig};

use host::Host;

/// The name users type.
pub const NAME: &str = "kvm";

/// KVM on this host.
pub struct Kvm {
    host: Arc<Host>,
}

impl Kvm {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`Error::Host`] if it does not open, [`Error::Unsupported`] if it lacks something the engine needs.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { host: Arc::new(Host::open()?) })
    }

    /// Whether this host runs guests or only emulates them; takes some milliseconds.
    ///
    /// # Errors
    /// The host refused the scratch machine.
    pub fn probe(&self) -> Result<probe::Pace, Error> {
        probe::measure(&self.host)
    }
}

impl Engine for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vm(&self, config: VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(vm::KvmVm::create(&self.host, config)?))
    }

    fn missing_for(&self, model: &CpuModel) -> FeatureSet {
        cpuid::fitted(model, self.host.features).lacking_on(self.host.features)
    }

    fn apic_timer_hz(&self) -> Option<u64> {
        Some(cpuid::APIC_TIMER_HZ)
    }

    fn host_requests(&self) -> &'static [u64] {
        requests::WHILE_RUNNING
    }
}

/// What the host refused.
fn refused(act: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Host { engine: NAME, act: act.into(), source: error.into() }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { engine: NAME, what: what.into() }
}
