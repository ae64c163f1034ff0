//! A whole machine: what it is made of, how it is built, run and stopped, and the workload inside it.
//!
//! Reading order: [`config`] (a machine as data), [`loader`] (kernels into memory), `boards` (which devices
//! sit where), `vcpu` and `timers` (who runs), [`machine`] (the life of it all), [`snapshot`], [`workload`].
//!
//! Deliberately absent: any concrete engine (a machine takes `&dyn engine::Engine`), flags, printing, images
//! and root file systems, containers.
#![deny(unsafe_code)]

pub mod boards;
pub mod clock;
pub mod config;
pub mod console;
mod doorbells;
pub mod error;
pub mod event;
mod idle;
pub mod kvmclock;
pub mod loader;
pub mod machine;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod timers;
pub mod tsc;
pub mod vcpu;
pub mod workload;

pub use config::MachineConfig;
pub use error::Error;
pub use event::MachineEvent;
pub use machine::{Backends, ConsoleInput, Machine};
