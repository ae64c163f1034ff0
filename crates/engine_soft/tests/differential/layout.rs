//! Where things are, on both sides: the same addresses, descriptors and selectors.
//!
//! Four pages exist, each at two places: high, for 64-bit code, and below 4 GiB, for all code.
//!
//! ```text
//!   code      read, execute          (nothing mapped on either side)
//!   data + 0  read, write
//!   data + 1  read, write
//!   data + 2  read                   (nothing mapped on either side of the three)
//! ```

pub const PAGE: u64 = 4096;
pub const CODE64: u64 = 0x1234_5000_0000;
pub const DATA64: u64 = CODE64 + 0x1_0000;
pub const CODE32: u64 = 0x4000_0000;
pub const DATA32: u64 = CODE32 + 0x1_0000;
/// Pages of data, of which the last is read-only.
pub const DATA_PAGES: u64 = 3;

/// Selectors Linux gives every process: 32-bit code, data, 64-bit code.
pub const USER_CS32: u16 = 0x23;
pub const USER_DS: u16 = 0x2b;
pub const USER_CS64: u16 = 0x33;

/// What `modify_ldt` is told about a segment.
#[derive(Clone, Copy)]
pub struct Entry {
    pub base: u32,
    /// As it stands in the descriptor.
    pub limit: u32,
    pub big: bool,
    /// 0 data, 1 expand-down data, 2 code.
    pub contents: u32,
    /// Read-only data, or code that cannot be read.
    pub restricted: bool,
    pub pages: bool,
    pub absent: bool,
}

const fn segment(base: u64, limit: u32, big: bool, contents: u32) -> Entry {
    Entry { base: base as u32, limit, big, contents, restricted: false, pages: false, absent: false }
}

const fn restricted(entry: Entry) -> Entry {
    Entry { restricted: true, ..entry }
}

/// The local descriptor table.
pub const LDT: [Entry; 12] = [
    segment(CODE32, 0xffff, false, 2),
    segment(DATA32 - 0x4000, 0xffff, false, 0),
    segment(DATA32, 0x2fff, true, 0),
    segment(DATA32 - 0xd000, 0xd7ff, false, 1),
    restricted(segment(DATA32, 0x2fff, true, 0)),
    segment(CODE32, 0xfff, true, 2),
    Entry { absent: true, ..segment(DATA32, 0x2fff, true, 0) },
    segment(CODE32, 0xfff, false, 2),
    restricted(segment(CODE32, 0xffff, true, 2)),
    Entry { pages: true, ..segment(0x1000_0000, 0xf_ffff, true, 0) },
    segment(DATA32, 0x7ff, true, 1),
    segment(DATA32, 0x1fff, false, 0),
];

/// Selector of entry `index` of the local descriptor table.
pub const fn ldt(index: u16) -> u16 {
    index * 8 + 7
}

impl Entry {
    /// The descriptor Linux makes of it.
    pub const fn descriptor(&self) -> u64 {
        let base = self.base as u64;
        let limit = self.limit as u64;
        let kind = 1 | (!self.restricted as u64) << 1 | (self.contents as u64) << 2;
        let low = limit & 0xffff | (base & 0xff_ffff) << 16;
        let access = kind | 1 << 4 | 3 << 5 | (!self.absent as u64) << 7;
        let high = limit >> 16 & 0xf | (self.big as u64) << 6 | (self.pages as u64) << 7;
        low | access << 40 | high << 48 | (base >> 24) << 56
    }

    /// The same as `struct user_desc` of `modify_ldt`.
    pub const fn user_desc(&self, index: u32) -> [u32; 4] {
        let flags = self.big as u32
            | self.contents << 1
            | (self.restricted as u32) << 3
            | (self.pages as u32) << 4
            | (self.absent as u32) << 5;
        [index, self.base, self.limit, flags]
    }
}

/// Linux's global descriptor table as far as user mode can use it or tell its entries apart. The system
/// descriptors (8 to 11) are filled in by the guest.
pub const GDT: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    // Says which processor this is in its limit.
    0x0040_f500_0000_0000,
];

/// The descriptor `selector` names, zero if none.
pub fn descriptor(selector: u16) -> u64 {
    let index = usize::from(selector >> 3);
    if selector & 4 != 0 {
        LDT.get(index).map_or(0, Entry::descriptor)
    } else {
        GDT.get(index).copied().unwrap_or(0)
    }
}

/// The base of the segment `selector` names.
pub fn base_of(selector: u16) -> u64 {
    let raw = descriptor(selector);
    raw >> 16 & 0xff_ffff | raw >> 56 << 24
}
