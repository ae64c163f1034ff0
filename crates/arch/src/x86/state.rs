//! The architectural state of one vCPU.
//!
//! It belongs to no engine: between two calls of `Vcpu::run` it is complete and canonical (flags computed,
//! `rip` exact), so engines can take turns on it and a snapshot made under one resumes under another.
//! The layout is `repr(C)` because generated code addresses its fields by offset.

use super::registers::{Cr0, Rflags, Xcr0};
use super::segment::{Segment, SegmentRegister, TableRegister};

/// One 256-bit vector register; the low half is the XMM register of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C, align(32))]
pub struct Ymm(pub [u8; 32]);

/// x87 and MXCSR state, laid out as the FXSAVE64 image so that a host can load and store it directly.
///
/// The XMM part of the image is scratch: [`CpuState::ymm`] is authoritative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FxImage {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// Abridged tag word: bit i is set if physical register i is not empty.
    pub ftw: u8,
    /// Always zero.
    pub reserved: u8,
    /// Last x87 opcode.
    pub fop: u16,
    /// Last x87 instruction pointer.
    pub fip: u64,
    /// Last x87 data pointer.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// Bits of MXCSR that may be written.
    pub mxcsr_mask: u32,
    /// ST(0)..ST(7), 80 bits each in 16 bytes.
    pub st: [[u8; 16]; 8],
    /// Where FXSAVE puts XMM0-15: scratch.
    pub xmm_scratch: [u8; 256],
    /// Reserved and software-available bytes of the image: scratch.
    pub tail: [u8; 96],
}

impl FxImage {
    /// MXCSR after reset: all exceptions masked, round to nearest.
    pub const MXCSR_RESET: u32 = 0x1f80;
    /// The MXCSR bits we offer (denormals-are-zero included).
    pub const MXCSR_MASK: u32 = 0xffff;
}

impl Default for FxImage {
    /// The state after power-up (SDM vol. 3 table 9-1): FCW 0x40, all registers zero and, by tags, valid.
    fn default() -> Self {
        Self {
            fcw: 0x40,
            fsw: 0,
            ftw: 0,
            reserved: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: Self::MXCSR_RESET,
            mxcsr_mask: Self::MXCSR_MASK,
            st: [[0; 16]; 8],
            xmm_scratch: [0; 256],
            tail: [0; 96],
        }
    }
}

/// What is pending or blocked at an instruction boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Events {
    /// A non-maskable interrupt waits to be delivered.
    pub nmi_pending: bool,
    /// An NMI is being handled: further ones wait for IRET.
    pub nmi_blocked: bool,
    /// The next instruction is in the shadow of STI, MOV SS or POP SS: no interrupt before it.
    pub interrupt_shadow: bool,
    /// HLT was executed and nothing has woken the vCPU yet.
    pub halted: bool,
    /// INIT was received: nothing but a start-up IPI gets the vCPU going. `halted` is set too, and interrupts are off.
    pub waits_for_start_up: bool,
    /// What was taken from where it came from but has not reached the guest's handler yet: it comes before the next
    /// instruction, whatever is blocked.
    pub undelivered: Option<Undelivered>,
}

/// An event between being accepted and being delivered. Engines that deliver in one go leave none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// A maskable interrupt of this vector, already in service at its controller.
    Interrupt(u8),
    /// A debug trap; DR6 says which.
    DebugTrap,
}

/// Model-specific registers that are part of the processor proper (not of the local APIC or the board).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub tsc_adjust: u64,
    pub debugctl: u64,
    pub xss: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
}

/// The architectural state of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct CpuState {
    /// General purpose registers in encoding order; index with [`super::Gpr`].
    pub gpr: [u64; 16],
    /// Address of the next instruction, an offset into CS.
    pub rip: u64,
    /// RFLAGS, canonical.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS; index with [`SegmentRegister`].
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2: linear address of the last page fault.
    pub cr2: u64,
    /// CR3: root of the page tables, PCID in bits 0..=11.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0-DR3, (unused), (unused), DR6, DR7.
    pub dr: [u64; 8],
    /// The four page-directory-pointer entries PAE paging loads with CR3.
    pub pdpte: [u64; 4],
    /// Guest TSC = host TSC + this, wrapping.
    pub tsc_offset: u64,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// What is pending or blocked.
    pub events: Events,
    /// YMM0-15.
    pub ymm: [Ymm; 16],
    /// x87 state and MXCSR.
    pub fx: FxImage,
}

impl CpuState {
    /// The state after RESET or power-up (SDM vol. 3 table 9-1); CS:IP is F000:FFF0 with base 0xffff0000.
    pub fn power_up() -> Self {
        let data = Segment::real_mode(0, 0x93);
        let mut cs = Segment::real_mode(0xf000, 0x9b);
        cs.base = 0xffff_0000;
        let mut gpr = [0; 16];
        gpr[2] = 0x600; // RDX: family and model; the engine's CPU model may refine it
        let mut dr = [0; 8];
        dr[6] = 0xffff_0ff0;
        dr[7] = 0x400;
        Self {
            gpr,
            rip: 0xfff0,
            rflags: Rflags::FIXED.bits(),
            segments: [data, cs, data, data, data, data],
            ldtr: Segment::new(0, 0, 0xffff, 0x82),
            tr: Segment::new(0, 0, 0xffff, 0x8b),
            gdtr: TableRegister { base: 0, limit: 0xffff, reserved: [0; 3] },
            idtr: TableRegister { base: 0, limit: 0xffff, reserved: [0; 3] },
            cr0: (Cr0::CD | Cr0::NW | Cr0::ET).bits(),
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: Xcr0::X87.bits(),
            dr,
            pdpte: [0; 4],
            tsc_offset: 0,
            msrs: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            events: Events::default(),
            ymm: [Ymm::default(); 16],
            fx: FxImage::default(),
        }
    }

    /// The segment register `register`.
    pub fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }

    /// The segment register `register`, to change it.
    pub fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        &mut self.segments[register as usize]
    }

    /// Current privilege level: the DPL of SS, which is how hardware keeps it.
    pub fn cpl(&self) -> u8 {
        self.segment(SegmentRegister::Ss).dpl()
    }

    /// Whether protected mode (of any width) is on.
    pub fn is_protected(&self) -> bool {
        self.cr0 & Cr0::PE.bits() != 0
    }

    /// Whether virtual-8086 mode is on.
    pub fn is_vm86(&self) -> bool {
        self.rflags & Rflags::VM.bits() != 0
    }

    /// Whether paging is on.
    pub fn is_paging(&self) -> bool {
        self.cr0 & Cr0::PG.bits() != 0
    }

    /// Whether long mode is active (compatibility mode included).
    pub fn is_long_mode(&self) -> bool {
        self.msrs.efer & super::Efer::LMA.bits() != 0
    }

    /// Whether 64-bit code runs: long mode and a 64-bit code segment.
    pub fn is_64bit_code(&self) -> bool {
        self.is_long_mode() && self.segment(SegmentRegister::Cs).access & Segment::LONG != 0
    }

    /// Default operand and address width of the running code: 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        if self.is_64bit_code() {
            64
        } else if self.segment(SegmentRegister::Cs).access & Segment::BIG != 0 {
            32
        } else {
            16
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_up_starts_at_the_reset_vector_in_real_mode() {
        let s = CpuState::power_up();
        assert_eq!(s.segment(SegmentRegister::Cs).base + s.rip, 0xffff_fff0);
        assert_eq!(s.code_bits(), 16);
        assert!(!s.is_protected() && !s.is_paging() && !s.is_long_mode());
        assert_eq!(s.cpl(), 0);
    }

    #[test]
    fn the_fx_image_is_the_512_bytes_fxsave_writes() {
        assert_eq!(size_of::<FxImage>(), 512);
        assert_eq!(core::mem::offset_of!(FxImage, mxcsr), 24);
        assert_eq!(core::mem::offset_of!(FxImage, st), 32);
        assert_eq!(core::mem::offset_of!(FxImage, xmm_scratch), 160);
    }
}
