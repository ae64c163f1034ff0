//! Where a virtio-mmio device sits: what ACPI tables and the kernel command line say about it.

/// Bytes of address space a virtio-mmio device takes.
pub const SLOT_SIZE: u64 = 0x1000;

/// One place for a virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest physical address of the first register.
    pub gpa: u64,
    /// Bytes of address space.
    pub size: u64,
    /// Interrupt line.
    pub gsi: u32,
}

impl MmioSlot {
    /// Slot number `index` of a row of slots that starts at `base` with line `first_gsi`.
    pub fn nth(base: u64, first_gsi: u32, index: u32) -> Self {
        Self { gpa: base + u64::from(index) * SLOT_SIZE, size: SLOT_SIZE, gsi: first_gsi + index }
    }

    /// Address of the register by which a driver notifies a queue of the device, whose number it stores there.
    pub fn notify_register(&self) -> u64 {
        self.gpa + u64::from(virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY)
    }

    /// The parameter that tells a kernel without ACPI about the device
    /// (Linux `drivers/virtio/virtio_mmio.c`): `virtio_mmio.device=4K@0xd0000000:5`.
    pub fn kernel_parameter(&self) -> String {
        format!("virtio_mmio.device={}K@{:#x}:{}", self.size / 1024, self.gpa, self.gsi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_described_the_way_linux_reads_it() {
        let slot = MmioSlot::nth(0xd000_0000, 5, 1);
        assert_eq!(slot.kernel_parameter(), "virtio_mmio.device=4K@0xd0001000:6");
    }
}
