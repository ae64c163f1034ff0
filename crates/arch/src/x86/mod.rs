//! The x86 architecture, 16-, 32- and 64-bit.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), AMD64 Architecture
//! Programmer's Manual (APM) where they agree; notes say where we follow one of them.

pub mod cpuid;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod registers;
pub mod saved;
pub mod segment;
pub mod state;

pub use exception::{Exception, Vector};
pub use registers::{Cr0, Cr4, Efer, Gpr, Rflags, Xcr0};
pub use segment::{Segment, SegmentRegister, TableRegister};
pub use state::{CpuState, Undelivered};
