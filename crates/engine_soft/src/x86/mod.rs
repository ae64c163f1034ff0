//! x86 guests.
//!
//! Reading order: [`mmu`] and `walk` (linear to physical), [`interp`] (decode and execute), [`system`] (what only an
//! operating system does), [`hostexec`] (vector and x87 by the host's own CPU), [`jit`] (hot code as host code).

mod code;
pub mod hostexec;
pub mod interp;
pub mod jit;
mod known;
mod listed;
pub mod mmu;
mod parked;
mod regions;
pub mod system;
mod walk;
pub mod width;
mod zeroed;
