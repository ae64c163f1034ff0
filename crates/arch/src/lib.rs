//! What the processor manuals define, and nothing else: registers, descriptor formats, paging bits,
//! exceptions, MSR numbers, CPU models, and the one [`x86::CpuState`] every engine works on.
//!
//! Reading order: [`x86::state`] (the architectural state of a vCPU), [`x86::registers`], [`x86::segment`],
//! [`x86::paging`], [`x86::exception`], [`x86::msr`], [`x86::cpuid`].
//!
//! Deliberately absent: I/O, host CPU access, `unsafe`, and any notion of a machine, a device or an engine.
#![forbid(unsafe_code)]

pub mod x86;
