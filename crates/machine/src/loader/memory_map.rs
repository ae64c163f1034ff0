//! What the guest is told about its physical memory, in the terms e820 and PVH share.

/// What a range of guest physical addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM the guest may use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables; usable once they were read.
    Acpi = 3,
}

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

impl MemoryRange {
    /// A range.
    pub const fn new(start: u64, len: u64, kind: MemoryKind) -> Self {
        Self { start, len, kind }
    }
}
