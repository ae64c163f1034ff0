//! Paging structure entries (SDM vol. 3 ch. 4).

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Bits of a paging-structure entry.
#[derive(Clone, Copy, Debug)]
pub struct Pte;

impl Pte {
    /// The entry is valid.
    pub const PRESENT: u64 = 1 << 0;
    /// Writes are allowed.
    pub const WRITE: u64 = 1 << 1;
    /// Privilege level 3 may access.
    pub const USER: u64 = 1 << 2;
    /// Page-level write-through.
    pub const PWT: u64 = 1 << 3;
    /// Page-level cache disable.
    pub const PCD: u64 = 1 << 4;
    /// Set by the processor at the first use.
    pub const ACCESSED: u64 = 1 << 5;
    /// Set by the processor at the first write (leaf entries).
    pub const DIRTY: u64 = 1 << 6;
    /// The entry maps a large page (not in the last level).
    pub const LARGE: u64 = 1 << 7;
    /// The translation survives a CR3 write (leaf entries, CR4.PGE).
    pub const GLOBAL: u64 = 1 << 8;
    /// No execution (EFER.NXE).
    pub const NX: u64 = 1 << 63;
    /// Bits 51..12: the physical address of the next table or page.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Whether `address` is canonical with 48 bits of virtual address.
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

#[cfg(test)]
mod tests {
    use super::is_canonical;

    #[test]
    fn the_canonical_hole_is_excluded() {
        assert!(is_canonical(0x7fff_ffff_ffff));
        assert!(!is_canonical(0x8000_0000_0000));
        assert!(!is_canonical(0xffff_7fff_ffff_ffff));
        assert!(is_canonical(0xffff_8000_0000_0000));
    }
}
