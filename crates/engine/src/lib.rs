//! What executes guest instructions, seen from outside: the traits an engine implements, how its vCPUs stop,
//! and how other threads get their attention.
//!
//! Reading order: [`Engine`] makes a [`Vm`], which makes [`Vcpu`]s; [`Vcpu::run`] returns an [`Exit`]; devices
//! are reached through the [`Bus`]; any thread reaches a vCPU through its [`VcpuSignal`].
//!
//! Deliberately absent: any concrete engine, any device, and threads: the machine owns those.
#![forbid(unsafe_code)]

pub mod apics;
pub mod bus;
pub mod doorbells;
pub mod signal;

use std::sync::Arc;
use std::time::Duration;

use arch::x86::CpuState;
use arch::x86::cpuid::{CpuModel, FeatureSet};
use memory::GuestRam;

pub use apics::{ApicRegisters, LevelRoute, LocalApics};
pub use bus::{Bus, BusResult, MsrResult, NoDevices};
pub use doorbells::Doorbells;
pub use signal::{Request, VcpuSignal};

/// Why an engine cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine or this host cannot offer something the machine needs.
    #[error("engine {engine}: {what}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// What is missing, and if known what to do about it.
        what: String,
    },
    /// The host refused memory, a thread, a device node or the like.
    #[error("engine {engine}: {act}")]
    Host {
        /// The engine's name.
        engine: &'static str,
        /// What was tried.
        act: String,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
}

/// Something that can execute guest instructions on this host.
pub trait Engine: Send + Sync {
    /// The name users type, e.g. `interp`.
    fn name(&self) -> &'static str;

    /// Makes the engine's part of one machine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the CPU model asks for more than the engine has on this host.
    fn create_vm(&self, config: VmConfig) -> Result<Box<dyn Vm>, Error>;

    /// What of the host's processor the engine needs for `model` and does not find: then [`Self::create_vm`] refuses it.
    fn missing_for(&self, _model: &CpuModel) -> FeatureSet {
        FeatureSet::EMPTY
    }

    /// Input frequency in Hz of the timers of local APICs that are the engine's own; none if those are the board's.
    fn apic_timer_hz(&self) -> Option<u64> {
        None
    }

    /// Requests of `ioctl` that its machines make while they run; a sandbox must let them through.
    fn host_requests(&self) -> &'static [u64] {
        &[]
    }
}

/// What an engine is told about a machine.
#[derive(Clone)]
pub struct VmConfig {
    /// The guest's memory.
    pub ram: Arc<GuestRam>,
    /// Where port I/O, MMIO, device MSRs and interrupt acknowledgement go.
    pub bus: Arc<dyn Bus>,
    /// What CPUID says.
    pub cpu_model: Arc<CpuModel>,
    /// How many vCPUs the machine will have.
    pub vcpu_count: u32,
    /// Frequency of the guest's TSC in kHz.
    pub tsc_khz: u32,
}

/// An engine's part of one machine.
pub trait Vm: Send + Sync {
    /// Makes vCPU number `index` (also its APIC id), in power-up state. Called once for each index.
    ///
    /// # Errors
    /// [`Error::Host`] if the host has no memory for it.
    fn create_vcpu(&self, index: u32, signal: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, Error>;

    /// The local APICs, if the engine has its own. Then it never asks the bus for accesses to them, and the bus's
    /// `interrupt_pending` and `acknowledge_interrupt` are about the 8259A alone.
    fn local_apics(&self) -> Option<Arc<dyn LocalApics>> {
        None
    }

    /// What tells of stores to device memory without asking the bus, if the engine has it.
    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        None
    }
}

/// One virtual CPU. Owned by the one thread that runs it; others use its [`VcpuSignal`].
pub trait Vcpu: Send {
    /// Runs until one of the [`Exit`] reasons. A vCPU whose state is halted returns [`Exit::Halt`] at once
    /// unless an interrupt can be delivered.
    fn run(&mut self) -> Exit;

    /// The architectural state; complete and canonical whenever `run` is not running. An engine may have to fetch it.
    fn state(&mut self) -> &CpuState;

    /// The architectural state, to change it. The engine drops whatever it derived from the old state
    /// (translations are kept only if the changed fields cannot affect them).
    fn state_mut(&mut self) -> &mut CpuState;

    /// Gives memory back to the host that is kept for speed alone: the vCPU has little to do. What it needs of it is made anew
    /// when it has more.
    fn give_back(&mut self) {}

    /// What the engine has counted so far.
    fn statistics(&self) -> Statistics;
}

/// Counters of one vCPU since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Guest instructions completed; string instructions count once a `rep`. Zero if the engine cannot know.
    pub instructions: u64,
    /// Blocks decoded or translated.
    pub blocks: u64,
    /// Exceptions and interrupts delivered to the guest.
    pub events: u64,
    /// Accesses that went to the bus.
    pub bus_accesses: u64,
    /// What a translator did; all zero for an engine that does not translate.
    pub translation: Translation,
}

/// Counters of a translator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// Of the completed guest instructions, those that translated code executed, handlers it called included.
    pub instructions: u64,
    /// Handlers called for single instructions: misses of the TLB, devices, what has no translation.
    pub handlers: u64,
    /// Times translated code was left after a handler: faults, system calls, mode changes.
    pub events: u64,
    /// Times it was left because the code that follows was not known.
    pub unknown: u64,
    /// Times it was left because somebody wanted the vCPU's attention.
    pub attention: u64,
    /// How often all translations were thrown away.
    pub clears: u64,
    /// How long the longest of these stopped the vCPU.
    pub longest_clear: Duration,
    /// Executions of blocks that were repeated another way and compared, where that was asked for.
    pub compared: u64,
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug)]
pub enum Exit {
    /// HLT (or MWAIT) with nothing to deliver: call `run` again once [`VcpuSignal::wait`] returned.
    Halt,
    /// Somebody called [`VcpuSignal::kick`]; nothing else happened. The request stays set: the caller of `run`
    /// clears it, then looks why.
    Kicked,
    /// Triple fault, or what the architecture calls shutdown: only a reset helps.
    Shutdown {
        /// What led there, for the error message.
        reason: String,
    },
    /// The engine met something it cannot go on from. The state is that before the offending instruction.
    Fatal {
        /// What and where.
        reason: String,
    },
}
