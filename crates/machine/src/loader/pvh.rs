//! The PVH boot protocol: start info, memory map and modules in guest memory (Xen's
//! `public/arch-x86/hvm/start_info.h`, version 1) and the registers the kernel is entered with
//! (`docs/misc/pvh.pandoc`: 32-bit protected mode, flat segments, no paging, EBX = start info).

use arch::x86::{CpuState, Cr0, Gpr, Segment, TableRegister};
use memory::GuestRam;

use super::{Error, MemoryRange};

const MAGIC: u32 = 0x336e_c578; // "xEn3" with bit 7 of the E set
const VERSION: u32 = 1;
const START_INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;
const MAP_ENTRY_BYTES: u64 = 24;

/// What the start info says.
#[derive(Clone, Copy, Debug)]
pub struct StartInfo<'a> {
    /// Guest physical address of the zero-terminated command line.
    pub cmdline: u64,
    /// Guest physical address and bytes of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// Guest physical address of the ACPI RSDP, or 0.
    pub rsdp: u64,
    /// All of physical memory.
    pub memory: &'a [MemoryRange],
}

impl StartInfo<'_> {
    /// Writes the structures at `gpa`, one after the other, and returns the first address after them.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn write(&self, ram: &GuestRam, gpa: u64) -> Result<u64, Error> {
        let modules = gpa + START_INFO_BYTES;
        let map = modules + if self.initrd.is_some() { MODULE_BYTES } else { 0 };
        let mut bytes = Vec::new();
        let words32 = |bytes: &mut Vec<u8>, words: &[u32]| {
            words.iter().for_each(|w| bytes.extend_from_slice(&w.to_le_bytes()));
        };
        let words64 = |bytes: &mut Vec<u8>, words: &[u64]| {
            words.iter().for_each(|w| bytes.extend_from_slice(&w.to_le_bytes()));
        };
        words32(&mut bytes, &[MAGIC, VERSION, 0, u32::from(self.initrd.is_some())]);
        let module_list = if self.initrd.is_some() { modules } else { 0 };
        words64(&mut bytes, &[module_list, self.cmdline, self.rsdp, map]);
        words32(&mut bytes, &[self.memory.len() as u32, 0]);
        if let Some((start, len)) = self.initrd {
            words64(&mut bytes, &[start, len, 0, 0]);
        }
        for range in self.memory {
            words64(&mut bytes, &[range.start, range.len]);
            words32(&mut bytes, &[range.kind as u32, 0]);
        }
        debug_assert_eq!(bytes.len() as u64, map - gpa + MAP_ENTRY_BYTES * self.memory.len() as u64);
        ram.write(gpa, &bytes)?;
        Ok(gpa + bytes.len() as u64)
    }
}

/// The registers a PVH kernel is entered with. The GDT the descriptors could come from does not exist: the
/// protocol says a kernel loads its own before it touches a segment register.
pub fn entry_state(entry: u32, start_info: u64) -> CpuState {
    let mut state = CpuState::power_up();
    let flat = |kind| {
        let access = kind | Segment::PRESENT | Segment::CODE_OR_DATA | Segment::BIG | Segment::GRANULAR;
        Segment::new(0, 0, u32::MAX, access)
    };
    let data = flat(Segment::WRITABLE | Segment::ACCESSED);
    let code = flat(Segment::CODE | Segment::WRITABLE | Segment::ACCESSED);
    state.segments = [data, code, data, data, data, data];
    state.tr = Segment::new(0, 0, 0x67, Segment::PRESENT | 0xb); // a busy 32-bit TSS
    state.gdtr = TableRegister::default();
    state.idtr = TableRegister::default();
    state.cr0 = (Cr0::PE | Cr0::ET).bits();
    state.rip = u64::from(entry);
    state.gpr[Gpr::Rbx as usize] = start_info;
    state
}

/// Bytes the structures take at most with `ranges` memory ranges.
pub const fn max_bytes(ranges: usize) -> u64 {
    START_INFO_BYTES + MODULE_BYTES + MAP_ENTRY_BYTES * ranges as u64
}
