//! ACPI tables (ACPI 6.5) that describe a board to its guest.
//!
//! The board has fixed hardware ([`crate::chipset::pm`]), not the hardware-reduced model: kernels that know only
//! the old way find power button, soft-off and timer, and keep the 8259A and 8254 they expect. FADT says that
//! there is no keyboard controller unless told otherwise, so that nobody searches for one.
//!
//! Reading order: [`build`], `tables` (fixed tables), `dsdt` (the AML).
//!
//! Omitted: processor objects (MADT lists processors; there are no C-states), GPEs, PCI, SRAT.

mod dsdt;
mod tables;
#[cfg(test)]
mod tests;

pub use crate::chipset::lapic::message::Trigger;

/// What a board has. Where nothing is said, the constants of [`crate::chipset`] hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Where the tables are to lie: 16-byte aligned, below 4 GiB. The RSDP comes first.
    pub gpa: u64,
    /// How much room there is.
    pub len: u64,
    /// vCPUs; APIC ids are 0 and up.
    pub vcpu_count: u32,
    /// Address of local APICs.
    pub lapic_gpa: u32,
    /// Address of the I/O APIC, which has lines 0..=23.
    pub ioapic_gpa: u32,
    /// Whether there is a keyboard controller worth searching for.
    pub keyboard: Presence,
    /// Serial ports.
    pub serial: Vec<SerialPort>,
    /// virtio devices over MMIO.
    pub virtio: Vec<VirtioMmio>,
    /// The generation ID ([`crate::chipset::generation`]), if there is one.
    pub generation_id: Option<GenerationIdAt>,
}

/// Where a generation ID lies, and which line's edge says that it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationIdAt {
    /// Where its 16 bytes are.
    pub gpa: u32,
    /// Line; edge-triggered.
    pub gsi: u32,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There.
    Present,
    /// Not there.
    Absent,
}

/// A serial port of 8 I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First I/O port.
    pub port: u16,
    /// Line; edge-triggered.
    pub gsi: u32,
}

/// A virtio-mmio transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Where it is.
    pub gpa: u32,
    /// Bytes.
    pub len: u32,
    /// Line, active high.
    pub gsi: u32,
    /// Edge or level.
    pub trigger: Trigger,
}

/// The tables, ready to be written to guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// Where the RSDP is.
    pub rsdp_gpa: u64,
    /// Addresses and contents, in ascending order, without overlap.
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// Not enough room.
    #[error("place acpi tables at gpa {gpa:#x}: {needed:#x} bytes do not fit into {len:#x}")]
    DoesNotFit {
        /// Where they should lie.
        gpa: u64,
        /// How many bytes they take.
        needed: u64,
        /// How many there are.
        len: u64,
    },
    /// A place the tables cannot have.
    #[error("place acpi tables at gpa {gpa:#x}: not a multiple of 16 below 4 GiB")]
    BadPlace {
        /// Where they should lie.
        gpa: u64,
    },
    /// More devices than there are names for.
    #[error("describe {count} devices: there are names for {max} of a kind")]
    TooManyDevices {
        /// How many there are.
        count: usize,
        /// How many there can be.
        max: usize,
    },
}

/// Lays tables out one after the other.
struct Layout {
    next: u64,
    blobs: Vec<(u64, Vec<u8>)>,
}

impl Layout {
    /// Places `bytes` at the next multiple of `align`, a power of two.
    fn place(&mut self, bytes: Vec<u8>, align: u64) -> u64 {
        let gpa = self.next.next_multiple_of(align);
        self.next = gpa + bytes.len() as u64;
        self.blobs.push((gpa, bytes));
        gpa
    }
}

/// The tables for a board.
///
/// # Errors
/// [`AcpiError`].
pub fn build(config: &AcpiConfig) -> Result<AcpiTables, AcpiError> {
    let (gpa, len) = (config.gpa, config.len);
    if gpa % 16 != 0 || gpa.checked_add(len).is_none_or(|end| end > 1 << 32) {
        return Err(AcpiError::BadPlace { gpa });
    }
    let mut layout = Layout { next: gpa + tables::RSDP_LEN, blobs: Vec::new() };
    let facs = layout.place(tables::facs(), 64);
    let dsdt = layout.place(dsdt::dsdt(config)?, 16);
    // Checked below: addresses are under 4 GiB if all tables fit.
    let fadt = layout.place(tables::fadt(config, dsdt as u32, facs as u32), 16);
    let madt = layout.place(tables::madt(config), 16);
    let xsdt = layout.place(tables::xsdt(&[fadt, madt]), 16);
    let needed = layout.next - gpa;
    if needed > len {
        return Err(AcpiError::DoesNotFit { gpa, needed, len });
    }
    let mut blobs = vec![(gpa, tables::rsdp(xsdt))];
    blobs.append(&mut layout.blobs);
    Ok(AcpiTables { rsdp_gpa: gpa, blobs })
}
