//! The microvm board's address map and interrupt lines.
//!
//! | from | what |
//! |---|---|
//! | 0x500 | GDT of the 64-bit protocol |
//! | 0x6000 | PVH start info; 0x7000 boot_params; 0x9000 page tables; 0x2_0000 command line |
//! | 0x9_fc00 | MP table; to 1 MiB reserved, with ACPI tables from 0xe_0000, the generation ID at 0xf_f000 |
//! | 0x10_0000 | RAM to 3 GiB at most: kernel at its own addresses, initial RAM disk as high as possible |
//! | 0xd000_0000 | virtio-mmio, 4 KiB each |
//! | 0xfec0_0000 | I/O APIC; 0xfee0_0000 local APICs |
//! | 0x1_0000_0000 | the rest of RAM |

use devices::virtio::MmioSlot;

use crate::loader::linux64::Places;
use crate::loader::{MemoryKind, MemoryRange};

/// End of the RAM below 4 GiB.
pub const LOW_RAM_END: u64 = 3 << 30;
/// Start of the RAM above.
pub const HIGH_RAM_START: u64 = 4 << 30;
/// PVH start info, memory map and modules.
pub const START_INFO: u64 = 0x6000;
/// The Linux 64-bit protocol's structures.
pub const LINUX_PLACES: Places = Places { zero_page: 0x7000, page_tables: 0x9000, gdt: 0x500 };
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// End of the low memory a guest may use; the MP table lies in the last KiB of "base memory" behind it.
pub const MP_TABLE: u64 = 0x9_fc00;
/// ACPI tables and, first, the RSDP, where a guest that scans the BIOS area finds it.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The generation ID: the last page of the BIOS area.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Its line.
pub const GENERATION_ID_LINE: u32 = 23;
/// End of the BIOS area.
pub const ONE_MIB: u64 = 0x10_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// First virtio-mmio device.
const VIRTIO_MMIO: u64 = 0xd000_0000;

/// Lines of virtio devices: those no PC device has by tradition (0 timer, 1 keyboard, 2 cascade, 3 and 4 serial,
/// 8 clock, 9 ACPI). One line each: two devices would have to agree on its level.
const VIRTIO_LINES: [u32; 16] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22];
/// Most virtio devices.
pub const MAX_VIRTIO: usize = VIRTIO_LINES.len();

/// Where virtio device number `index` sits; `None` if there are no lines left.
pub fn virtio_slot(index: usize) -> Option<MmioSlot> {
    let gsi = *VIRTIO_LINES.get(index)?;
    Some(MmioSlot { gpa: VIRTIO_MMIO + 0x1000 * index as u64, size: 0x1000, gsi })
}

/// The RAM of a machine with `bytes` of it: below 3 GiB, and the rest from 4 GiB.
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM_START, bytes - low));
    }
    ranges
}

/// What the guest is told about memory.
pub fn memory_map(bytes: u64) -> Vec<MemoryRange> {
    let mut map = vec![
        MemoryRange::new(0, MP_TABLE, MemoryKind::Ram),
        MemoryRange::new(MP_TABLE, ONE_MIB - MP_TABLE, MemoryKind::Reserved),
    ];
    for (start, len) in ram_ranges(bytes) {
        let from = start.max(ONE_MIB);
        map.push(MemoryRange::new(from, start + len - from, MemoryKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_device_hole_free() {
        assert_eq!(ram_ranges(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ram_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn the_map_tells_of_all_ram_but_the_bios_area() {
        for mib in [16u64, 256, 3072, 3073, 8192] {
            let bytes = mib << 20;
            let told: u64 = memory_map(bytes).iter().map(|r| r.len).sum();
            assert_eq!(told, bytes);
            assert!(memory_map(bytes).windows(2).all(|w| w[0].start + w[0].len <= w[1].start));
        }
    }

    #[test]
    fn every_virtio_device_has_its_own_page_and_line() {
        let slots: Vec<_> = (0..MAX_VIRTIO).map(|i| virtio_slot(i).unwrap()).collect();
        assert!(slots.windows(2).all(|w| w[0].gpa + w[0].size <= w[1].gpa && w[0].gsi < w[1].gsi));
        assert!(virtio_slot(MAX_VIRTIO).is_none());
    }
}
