//! What a case is made of, and what came of it. Plain data: it lives in memory shared with the native worker.

use crate::layout::PAGE;

/// Bytes of code a case may have.
pub const CODE_BYTES: usize = 160;
/// Instructions a case may have.
pub const MAX_INSTRUCTIONS: usize = 8;
/// Vector of a case that did not end in time.
pub const TIMEOUT: u32 = 255;

/// The width of code a case begins in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bits {
    B16,
    B32,
    B64,
}

impl Bits {
    pub const ALL: [Self; 3] = [Self::B64, Self::B32, Self::B16];

    pub const fn count(self) -> u32 {
        16 << self as u32
    }
}

/// Registers as user mode sees them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 6],
    pub fs_base: u64,
    pub gs_base: u64,
    /// The first 416 bytes of an FXSAVE image: x87, MXCSR, XMM.
    pub fx: [u8; 416],
    /// Upper halves of YMM0-15.
    pub ymm_high: [u8; 256],
}

/// A case.
#[derive(Clone)]
#[repr(C)]
pub struct Input {
    pub registers: Registers,
    pub code: [u8; CODE_BYTES],
    pub code_len: usize,
    /// Where in the code page it begins.
    pub code_offset: usize,
    /// Which pages of the pool the data pages are filled with.
    pub pages: [u16; 3],
    pub bits: Bits,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fault {
    pub vector: u32,
    /// Zero where the processor has none.
    pub code: u32,
    /// CR2, zero unless a page fault.
    pub address: u64,
}

/// What came of a case.
#[derive(Clone)]
#[repr(C)]
pub struct Output {
    pub registers: Registers,
    pub fault: Fault,
    /// The two data pages that can be written.
    pub memory: [u8; 2 * PAGE as usize],
}

/// Where in `Registers::fx` things are.
pub mod fx {
    pub const FTW: usize = 4;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
}
