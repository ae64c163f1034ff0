//! Segment registers with their hidden parts, and descriptor formats (SDM vol. 3 ch. 3 and 5).

use serde::{Deserialize, Serialize};

/// A segment register, numbered as in instruction encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// A segment register: its visible selector and its hidden descriptor cache.
///
/// `access` holds descriptor bits 8..=15 and 20..=23 in the layout VMX and KVM use:
/// bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, and bit 16 = unusable (null).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct Segment {
    /// Linear address of the first byte.
    pub base: u64,
    /// Highest valid offset in bytes, already scaled by the granularity bit.
    pub limit: u32,
    /// Type and attributes; see the type's documentation.
    pub access: u32,
    /// The visible selector.
    pub selector: u16,
    /// Keeps the layout free of undefined bytes; always zero.
    pub reserved: [u16; 3],
}

impl Segment {
    /// The null mark in `access`.
    pub const UNUSABLE: u32 = 1 << 16;
    /// Present.
    pub const PRESENT: u32 = 1 << 7;
    /// Code or data, as opposed to a system descriptor.
    pub const CODE_OR_DATA: u32 = 1 << 4;
    /// Type bit: code (for code/data descriptors).
    pub const CODE: u32 = 1 << 3;
    /// Type bit: conforming code, or expand-down data.
    pub const CONFORMING: u32 = 1 << 2;
    /// Type bit: readable code, or writable data.
    pub const WRITABLE: u32 = 1 << 1;
    /// Type bit: accessed.
    pub const ACCESSED: u32 = 1 << 0;
    /// 64-bit code.
    pub const LONG: u32 = 1 << 13;
    /// Default operand size 32 (code) or 32-bit stack pointer (stack).
    pub const BIG: u32 = 1 << 14;
    /// Limit counts pages.
    pub const GRANULAR: u32 = 1 << 15;

    /// A segment with the given parts; `access` in the layout of the type's documentation.
    pub const fn new(selector: u16, base: u64, limit: u32, access: u32) -> Self {
        Self { base, limit, access, selector, reserved: [0; 3] }
    }

    /// A real-mode segment: base is selector * 16, limit 64 KiB.
    pub const fn real_mode(selector: u16, access: u32) -> Self {
        Self::new(selector, (selector as u64) << 4, 0xffff, access)
    }

    /// Decodes the 8 bytes of a descriptor as they stand in a GDT or LDT.
    pub const fn from_descriptor(selector: u16, raw: u64) -> Self {
        let base = ((raw >> 16) & 0xff_ffff) | ((raw >> 56) << 24);
        let mut limit = ((raw & 0xffff) | ((raw >> 32) & 0xf_0000)) as u32;
        let access = (((raw >> 40) & 0xff) | (((raw >> 52) & 0xf) << 12)) as u32;
        if access & Self::GRANULAR != 0 {
            limit = (limit << 12) | 0xfff;
        }
        Self::new(selector, base, limit, access)
    }

    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        ((self.access >> 5) & 3) as u8
    }

    /// The four type bits.
    pub const fn kind(&self) -> u8 {
        (self.access & 0xf) as u8
    }

    /// Whether the present bit is set.
    pub const fn is_present(&self) -> bool {
        self.access & Self::PRESENT != 0
    }

    /// Whether this is a code or data (not a system) descriptor.
    pub const fn is_code_or_data(&self) -> bool {
        self.access & Self::CODE_OR_DATA != 0
    }

    /// Whether this is a code descriptor.
    pub const fn is_code(&self) -> bool {
        self.is_code_or_data() && self.access & Self::CODE != 0
    }

    /// Whether the register holds the null selector's descriptor.
    pub const fn is_unusable(&self) -> bool {
        self.access & Self::UNUSABLE != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Highest valid offset in bytes.
    pub limit: u16,
    /// Keeps the layout free of undefined bytes; always zero.
    pub reserved: [u16; 3],
}

/// System descriptor types (SDM vol. 3 table 3-2).
#[allow(missing_docs)]
pub mod system_type {
    pub const TSS16_AVAILABLE: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    pub const TSS_AVAILABLE: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL_GATE: u8 = 12;
    pub const INTERRUPT_GATE: u8 = 14;
    pub const TRAP_GATE: u8 = 15;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_code_descriptor_decodes_to_four_gibibytes() {
        let s = Segment::from_descriptor(0x10, 0x00cf_9b00_0000_ffff);
        assert_eq!((s.base, s.limit), (0, 0xffff_ffff));
        assert!(s.is_code() && s.is_present());
        assert_eq!(s.access & Segment::BIG, Segment::BIG);
        assert_eq!(s.dpl(), 0);
    }

    #[test]
    fn base_is_gathered_from_its_three_places() {
        let s = Segment::from_descriptor(0x28, 0x1240_8934_5678_0067);
        assert_eq!(s.base, 0x1234_5678);
        assert_eq!(s.limit, 0x67);
        assert_eq!(s.kind(), system_type::TSS_AVAILABLE);
    }
}
