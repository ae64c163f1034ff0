//! Boards: which devices a machine is made of, where they sit, and how it starts.

pub mod apics;
pub mod boot;
pub mod bus;
pub mod layout;
pub mod microvm;
pub mod mptable;

use std::sync::Arc;

use arch::x86::CpuState;
use devices::chipset::lapic::Events;
use state::Archive;

use crate::Error;
use crate::snapshot::{self, ClockState};
use crate::timers::{Expiry, MachineTimers};
use crate::vcpu::Saved;

/// What the machine and its vCPU threads need of a board. `rest`, `resume` and `load` are called while every
/// vCPU is stopped.
pub trait Board: Expiry {
    /// What engines call.
    fn bus(&self) -> Arc<dyn engine::Bus>;
    /// All deadlines.
    fn timers(&self) -> &Arc<MachineTimers>;
    /// INIT, start-up and NMI requests for `vcpu` since the last call. The vCPU's thread only.
    fn take_events(&self, vcpu: u32) -> Events;
    /// Returns the local APIC of `vcpu` to its state after INIT. The vCPU's thread only.
    ///
    /// # Errors
    /// [`Error::Apics`].
    fn init_apic(&self, vcpu: u32) -> Result<(), Error>;
    /// What the engine's part of the machine has of its own is used: local APICs instead of the board's while vCPUs run, and
    /// doorbells. Once, before the first `load`.
    ///
    /// # Errors
    /// The engine's, and the host's.
    fn join(&self, vm: &dyn engine::Vm) -> Result<(), Error>;
    /// Resets every device, puts the kernel into memory, and returns the state the first vCPU starts in.
    ///
    /// # Errors
    /// [`Error::Load`] and [`Error::Memory`].
    fn load(&self) -> Result<CpuState, Error>;
    /// Stops the clock and everything that works on its own. From here on all state is the board's.
    ///
    /// # Errors
    /// [`Error::Apics`]; all the rest rests.
    fn rest(&self) -> Result<(), Error>;
    /// Lets it go on.
    ///
    /// # Errors
    /// [`Error::Apics`]; nothing goes on.
    fn resume(&self) -> Result<(), Error>;
    /// Puts everything but vCPUs and memory into `archive`, while at rest.
    ///
    /// # Errors
    /// Values that cannot be encoded.
    fn save(&self, archive: &mut Archive, vcpus: &[Saved]) -> Result<(), snapshot::Error>;
    /// Takes over what [`Self::save`] saved, instead of [`Self::load`], and gives `vcpus` the clocks of this host.
    ///
    /// # Errors
    /// A section is missing or not this board's. The machine is not to be run then.
    fn restore(
        &self,
        archive: &mut Archive,
        clocks: &ClockState,
        vcpus: &mut [Saved],
    ) -> Result<(), snapshot::Error>;
    /// Whether a reset or power-off was asked for and not yet carried out: no vCPU is to go on until told.
    fn is_stopping(&self) -> bool;
    /// Lets nobody wait for anything outside of the machine any more: it is ending.
    fn release(&self);
}
