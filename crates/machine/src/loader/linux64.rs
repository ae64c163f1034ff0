//! Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst` "64-bit Boot Protocol", `zero-page.rst`):
//! boot_params, identity page tables for the first 4 GiB, a GDT, and the registers.

use arch::x86::{CpuState, Cr0, Cr4, Efer, Gpr, Segment, TableRegister};
use memory::GuestRam;

use super::{Error, MemoryRange};

/// Offsets in `struct boot_params`, named as in `zero-page.rst` and `boot.rst`.
mod field {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const E820_TABLE: usize = 0x2d0;
}

/// Most entries the zero page has room for.
pub const MAX_E820_ENTRIES: usize = 128;
const E820_ENTRY_BYTES: usize = 20;
const ZERO_PAGE_BYTES: usize = 4096;

/// Selectors the protocol asks for.
pub(super) const BOOT_CS: u16 = 0x10;
pub(super) const BOOT_DS: u16 = 0x18;
const CODE64: u64 = 0x00af_9b00_0000_ffff;
pub(super) const DATA: u64 = 0x00cf_9300_0000_ffff;

const PTE_PRESENT_WRITE: u64 = 3;
const PTE_LARGE: u64 = 1 << 7;

/// Where the protocol's structures go; each address is page aligned.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// `boot_params`, one page.
    pub zero_page: u64,
    /// Page tables: six pages.
    pub page_tables: u64,
    /// The GDT.
    pub gdt: u64,
}

/// Pages of [`Places::page_tables`]: a PML4, a PDPT and four page directories.
pub const PAGE_TABLE_PAGES: u64 = 6;

/// What boot_params say.
#[derive(Clone, Copy, Debug)]
pub struct BootParams<'a> {
    /// Guest physical address of the zero-terminated command line, below 4 GiB.
    pub cmdline: u64,
    /// Its length without the zero.
    pub cmdline_len: u32,
    /// Guest physical address and bytes of the initial RAM disk, below 4 GiB.
    pub initrd: Option<(u64, u64)>,
    /// Guest physical address of the ACPI RSDP, or 0.
    pub rsdp: u64,
    /// All of physical memory, at most [`MAX_E820_ENTRIES`].
    pub memory: &'a [MemoryRange],
}

impl BootParams<'_> {
    /// The zero page.
    pub fn to_zero_page(&self) -> Vec<u8> {
        let mut page = vec![0; ZERO_PAGE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(field::BOOT_FLAG, &0xaa55u16.to_le_bytes());
        put(field::HEADER, b"HdrS");
        put(field::VERSION, &0x020fu16.to_le_bytes());
        put(field::TYPE_OF_LOADER, &[0xff]); // no assigned id
        put(field::LOADFLAGS, &[1]); // loaded high
        put(field::KERNEL_ALIGNMENT, &0x0100_0000u32.to_le_bytes());
        put(field::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(field::CMD_LINE_PTR, &(self.cmdline as u32).to_le_bytes());
        put(field::CMDLINE_SIZE, &self.cmdline_len.to_le_bytes());
        put(field::ACPI_RSDP_ADDR, &self.rsdp.to_le_bytes());
        if let Some((start, len)) = self.initrd {
            put(field::RAMDISK_IMAGE, &(start as u32).to_le_bytes());
            put(field::RAMDISK_SIZE, &(len as u32).to_le_bytes());
            put(field::EXT_RAMDISK_IMAGE, &((start >> 32) as u32).to_le_bytes());
            put(field::EXT_RAMDISK_SIZE, &((len >> 32) as u32).to_le_bytes());
        }
        let ranges = &self.memory[..self.memory.len().min(MAX_E820_ENTRIES)];
        put(field::E820_ENTRIES, &[ranges.len() as u8]);
        for (index, range) in ranges.iter().enumerate() {
            let at = field::E820_TABLE + index * E820_ENTRY_BYTES;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &range.len.to_le_bytes());
            put(at + 16, &(range.kind as u32).to_le_bytes());
        }
        page
    }
}

/// Writes boot_params, page tables and the GDT.
///
/// # Errors
/// [`Error::Memory`].
pub fn write(ram: &GuestRam, places: &Places, params: &BootParams<'_>) -> Result<(), Error> {
    ram.write(places.zero_page, &params.to_zero_page())?;
    ram.write(places.page_tables, &page_tables(places.page_tables))?;
    write_gdt(ram, places, CODE64)
}

/// A GDT with this code segment at [`BOOT_CS`].
pub(super) fn write_gdt(ram: &GuestRam, places: &Places, code: u64) -> Result<(), Error> {
    let gdt: Vec<u8> = [0, 0, code, DATA].iter().flat_map(|d: &u64| d.to_le_bytes()).collect();
    ram.write(places.gdt, &gdt)?;
    Ok(())
}

/// Six pages that map the first 4 GiB one to one with 2 MiB pages.
fn page_tables(at: u64) -> Vec<u8> {
    let table = |entries: &mut dyn Iterator<Item = u64>| -> Vec<u8> {
        let mut page: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        page.resize(4096, 0);
        page
    };
    let mut bytes = table(&mut std::iter::once((at + 0x1000) | PTE_PRESENT_WRITE));
    bytes.extend(table(&mut (0..4).map(|i| (at + 0x2000 + i * 0x1000) | PTE_PRESENT_WRITE)));
    bytes.extend((0..2048u64).flat_map(|i| ((i << 21) | PTE_PRESENT_WRITE | PTE_LARGE).to_le_bytes()));
    bytes
}

/// The registers a kernel is entered with: long mode, RSI = boot_params, interrupts off.
pub fn entry_state(entry: u64, places: &Places) -> CpuState {
    let mut state = CpuState::power_up();
    let data = Segment::from_descriptor(BOOT_DS, DATA);
    let code = Segment::from_descriptor(BOOT_CS, CODE64);
    state.segments = [data, code, data, data, data, data];
    state.tr = Segment::new(0, 0, 0x67, Segment::PRESENT | 0xb);
    state.gdtr = TableRegister { base: places.gdt, limit: 4 * 8 - 1, reserved: [0; 3] };
    state.idtr = TableRegister::default();
    state.cr0 = (Cr0::PE | Cr0::ET | Cr0::NE | Cr0::PG).bits();
    state.cr3 = places.page_tables;
    state.cr4 = Cr4::PAE.bits();
    state.msrs.efer = (Efer::LME | Efer::LMA).bits();
    state.rip = entry;
    state.gpr[Gpr::Rsi as usize] = places.zero_page;
    state
}
