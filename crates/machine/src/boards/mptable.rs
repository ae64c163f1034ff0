//! The MP table (Intel MultiProcessor Specification 1.4): processors, the I/O APIC and its inputs, for kernels
//! without ACPI.

use devices::chipset::ioapic;

const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const LAPIC_VERSION: u8 = 0x14;
const FEATURES_FPU_APIC: u32 = 0x201;
/// Polarity active high, trigger level.
const HIGH_LEVEL: u16 = 0x000d;
const CONFORMS: u16 = 0;

/// Types of entries.
mod entry {
    pub const PROCESSOR: u8 = 0;
    pub const BUS: u8 = 1;
    pub const IOAPIC: u8 = 2;
    pub const IO_INTERRUPT: u8 = 3;
    pub const LOCAL_INTERRUPT: u8 = 4;
}

/// The floating pointer and the configuration table behind it, for a guest that finds them at `gpa`. `level`
/// says which lines are level-triggered.
pub fn build(gpa: u64, cpus: u32, level: impl Fn(u32) -> bool) -> Vec<u8> {
    let (body, count) = entries(cpus, level);
    let mut pointer = b"_MP_".to_vec();
    pointer.extend_from_slice(&(gpa as u32 + 16).to_le_bytes());
    pointer.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]); // 16 bytes, 1.4, checksum, features
    pointer[10] = checksum(&pointer);

    let mut table = b"PCMP".to_vec();
    table.extend_from_slice(&(44 + body.len() as u16).to_le_bytes());
    table.extend_from_slice(&[4, 0]); // 1.4, checksum
    table.extend_from_slice(b"STRATA  MICROVM     ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&LAPIC_ADDRESS.to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended table
    table.extend_from_slice(&body);
    table[7] = checksum(&table);
    pointer.extend_from_slice(&table);
    pointer
}

fn entries(cpus: u32, level: impl Fn(u32) -> bool) -> (Vec<u8>, u16) {
    let mut body = Vec::new();
    let mut count = 0;
    let mut add = |bytes: &[u8]| {
        body.extend_from_slice(bytes);
        count += 1;
    };
    let ioapic_id = cpus as u8;
    for cpu in 0..cpus as u8 {
        let flags = if cpu == 0 { 3 } else { 1 }; // enabled, boot processor
        let mut bytes = vec![entry::PROCESSOR, cpu, LAPIC_VERSION, flags, 0x00, 0x06, 0, 0];
        bytes.extend_from_slice(&FEATURES_FPU_APIC.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        add(&bytes);
    }
    add(&[entry::BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut bytes = vec![entry::IOAPIC, ioapic_id, 0x20, 1];
    bytes.extend_from_slice(&(ioapic::DEFAULT_ADDRESS as u32).to_le_bytes());
    add(&bytes);
    for line in (0..ioapic::PINS).filter(|&line| line != 2) {
        // The timer's line goes to pin 2, as in ACPI's interrupt source override.
        let pin = if line == 0 { 2 } else { line as u8 };
        let [low, high] = if level(line) { HIGH_LEVEL } else { CONFORMS }.to_le_bytes();
        add(&[entry::IO_INTERRUPT, 0, low, high, 0, line as u8, ioapic_id, pin]);
    }
    add(&[entry::LOCAL_INTERRUPT, 3, 0, 0, 0, 0, 0xff, 0]); // ExtINT on LINT0
    add(&[entry::LOCAL_INTERRUPT, 1, 0, 0, 0, 0, 0xff, 1]); // NMI on LINT1
    (body, count)
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_it_holds_and_sums_to_zero() {
        let bytes = build(0x9_fc00, 4, |line| line >= 5);
        let sum = |b: &[u8]| b.iter().fold(0u8, |s, x| s.wrapping_add(*x));
        assert_eq!((&bytes[..4], sum(&bytes[..16])), (&b"_MP_"[..], 0));
        let table = &bytes[16..];
        assert_eq!(u16::from_le_bytes([table[4], table[5]]) as usize, table.len());
        assert_eq!(sum(table), 0);
        let (mut at, mut count) = (44, 0);
        while at < table.len() {
            at += if table[at] == 0 { 20 } else { 8 };
            count += 1;
        }
        assert_eq!((at, count), (table.len(), u16::from_le_bytes([table[34], table[35]])));
    }

    #[test]
    fn the_largest_machine_fits_below_the_acpi_tables() {
        assert!(build(0, crate::config::MAX_CPUS, |_| true).len() < 0x4_0000);
    }
}
