//! Virtio over MMIO: the register file between a driver and a device.
//!
//! Virtio 1.2, section 4.2 (version 2 only). Status rules: sections 2.1 and 3.1; a driver that breaks them
//! finds DEVICE_NEEDS_RESET. Known omissions: legacy registers, shared memory regions (length reads all ones,
//! as the standard says of an absent one), QueueReset. Registers are 32 bits wide; other widths read 0 and
//! write nothing, except in configuration space.

use std::sync::Arc;

use memory::GuestRam;
use state::Section;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio as reg;

use super::queue::{QueueProgress, QueueSetup, Virtqueue};
use super::saved::{self, MmioState, QueueSavedState};
use super::signals::Signals;
use super::{VirtioDevice, features};
use crate::device::{Device, MmioDevice, Queued};
use crate::irq::IrqLine;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
const DEVICE_VERSION: u32 = 2;
/// "STRA", little endian.
const VENDOR: u32 = 0x4152_5453;
/// QueueReset: read by drivers only with VIRTIO_F_RING_RESET, which is not offered.
const QUEUE_RESET: u32 = 0x0c0;

const DRIVER_STATUS_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;

/// A virtio device on the MMIO bus.
pub struct MmioTransport {
    // Glue.
    name: String,
    device: Box<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    signals: Arc<Signals>,
    // Bookkeeping.
    offered: u64,
    resting: bool,
    // Saved.
    registers: Registers,
    queues: Vec<QueueSlot>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
}

#[derive(Clone, Copy, Debug)]
struct QueueSlot {
    max_size: u16,
    setup: QueueSetup,
    progress: QueueProgress,
    started: bool,
}

impl QueueSlot {
    fn new(max_size: u16) -> Self {
        let setup = QueueSetup { size: max_size, ..QueueSetup::default() };
        Self { max_size, setup, progress: QueueProgress::default(), started: false }
    }
}

impl MmioTransport {
    /// Puts `device` on the bus as `name`; it interrupts through `line`, which must be low, level-triggered
    /// and active high.
    pub fn new(
        name: impl Into<String>,
        mut device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        line: IrqLine,
    ) -> Self {
        let signals = Arc::new(Signals::new(line));
        device.attach(Arc::clone(&signals));
        let offered = device.features() | features::VERSION_1 | features::EVENT_IDX | features::INDIRECT_DESC;
        let queues = device.queue_sizes().iter().map(|&size| QueueSlot::new(size)).collect();
        Self {
            name: name.into(),
            device,
            ram,
            signals,
            offered,
            resting: false,
            registers: Registers::default(),
            queues,
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        let queue = self.queues.get(self.registers.queue_sel as usize);
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => DEVICE_VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.device_type() as u32,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, self.registers.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |q| q.max_size.into()),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |q| q.setup.ready.into()),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.status(),
            reg::VIRTIO_MMIO_STATUS => self.status(),
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.signals.config_generation(),
            QUEUE_RESET => 0,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            reg::VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.signals.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    /// Registers of the selected queue, which the driver may only write while the queue is not ready.
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.queues.get_mut(self.registers.queue_sel as usize) else { return };
        let setup = &mut queue.setup;
        if setup.ready {
            return;
        }
        match offset {
            // A size that does not fit is kept as 0, with which the queue cannot become ready.
            reg::VIRTIO_MMIO_QUEUE_NUM => setup.size = u16::try_from(value).unwrap_or(0),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut setup.desc_table, 0, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut setup.desc_table, 1, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut setup.avail_ring, 0, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut setup.avail_ring, 1, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut setup.used_ring, 0, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut setup.used_ring, 1, value),
            _ => {}
        }
    }

    fn status(&self) -> u32 {
        let broken = if self.signals.is_broken() { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        self.registers.status | broken
    }

    fn is_live(&self) -> bool {
        self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.resting
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            set_half(&mut self.registers.driver_features, self.registers.driver_features_sel, value);
            // Bits beyond the second half do not exist, so choosing one cannot be accepted.
            if self.registers.driver_features_sel > 1 && value != 0 {
                self.registers.driver_features = u64::MAX;
            }
        }
    }

    fn features_acceptable(&self, chosen: u64) -> bool {
        chosen & !self.offered == 0 && chosen & features::VERSION_1 != 0
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut set = value & DRIVER_STATUS_BITS & !self.registers.status;
        if set & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            if self.features_acceptable(self.registers.driver_features) {
                self.device.accept_features(self.registers.driver_features);
            } else {
                // The driver reads back and sees that its choice was not accepted (section 3.1.1, step 6).
                set &= !VIRTIO_CONFIG_S_FEATURES_OK;
            }
        }
        let features_ok = (self.registers.status | set) & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if set & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !features_ok {
            set &= !VIRTIO_CONFIG_S_DRIVER_OK;
            self.signals.needs_reset("driver ok before features ok");
        }
        self.registers.status |= set;
        if set & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.start_ready_queues();
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        let index = self.registers.queue_sel as usize;
        if index >= self.queues.len() {
            return;
        }
        if value & 1 == 0 {
            self.stop_queue(index);
            self.queues[index].setup.ready = false;
            self.queues[index].progress = QueueProgress::default();
        } else if !self.queues[index].setup.ready {
            if self.make_queue(index).is_none() {
                return self.signals.needs_reset("queue set up outside of ram or with a bad size");
            }
            self.queues[index].setup.ready = true;
            if self.is_live() {
                self.start_queue(index);
            }
        }
    }

    fn make_queue(&self, index: usize) -> Option<Virtqueue> {
        let QueueSlot { max_size, setup, progress, started: _ } = self.queues[index];
        let event_idx = self.registers.driver_features & features::EVENT_IDX != 0;
        let (ram, signals) = (Arc::clone(&self.ram), Arc::clone(&self.signals));
        Virtqueue::new(max_size, setup, progress, event_idx, ram, signals)
    }

    fn start_ready_queues(&mut self) {
        for index in 0..self.queues.len() {
            if self.queues[index].setup.ready && self.is_live() {
                self.start_queue(index);
            }
        }
    }

    fn start_queue(&mut self, index: usize) {
        if self.queues[index].started {
            return;
        }
        if let Some(queue) = self.make_queue(index) {
            self.queues[index].started = true;
            self.device.start_queue(index, queue);
        }
    }

    fn stop_queue(&mut self, index: usize) {
        if std::mem::take(&mut self.queues[index].started)
            && let Some(progress) = self.device.stop_queue(index)
        {
            self.queues[index].progress = progress;
        }
    }

    fn stop_all_queues(&mut self) {
        for index in 0..self.queues.len() {
            self.stop_queue(index);
        }
    }

    fn notify(&mut self, index: u32) {
        let index = index as usize;
        if self.queues.get(index).is_some_and(|queue| queue.started) {
            self.device.notify(index);
        }
    }

    fn check_saved(&self, saved: &MmioState) -> Result<(), String> {
        let features_ok = saved.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if saved.device_type != self.device.device_type() as u32 {
            return Err(format!("device type {}", saved.device_type));
        }
        if saved.status & !DRIVER_STATUS_BITS != 0 {
            return Err(format!("status {:#x}", saved.status));
        }
        if features_ok && !self.features_acceptable(saved.driver_features) {
            return Err(format!(
                "features {:#x}, this device offers {:#x}",
                saved.driver_features, self.offered
            ));
        }
        if saved.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !features_ok {
            return Err("driver ok without features ok".into());
        }
        if saved.queues.len() != self.queues.len() {
            return Err(format!("{} queues, this device has {}", saved.queues.len(), self.queues.len()));
        }
        for (index, (queue, slot)) in saved.queues.iter().zip(&self.queues).enumerate() {
            let (ram, signals) = (Arc::clone(&self.ram), Arc::clone(&self.signals));
            let QueueSavedState { setup, progress } = *queue;
            if setup.ready && Virtqueue::new(slot.max_size, setup, progress, false, ram, signals).is_none() {
                return Err(format!("queue {index} is set up where no queue can be"));
            }
        }
        Ok(())
    }
}

impl Device for MmioTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&mut self) {
        self.stop_all_queues();
        self.registers = Registers::default();
        for queue in &mut self.queues {
            *queue = QueueSlot::new(queue.max_size);
        }
        self.device.accept_features(0);
        self.device.reset();
        self.signals.reset();
    }

    fn save(&self) -> Result<Section, state::Error> {
        if self.queues.iter().any(|queue| queue.started) {
            return Err(state::Error::Encode { kind: saved::KIND, reason: "queues are running".into() });
        }
        let Self { name: _, device, ram: _, signals, offered: _, resting: _, registers, queues } = self;
        let Registers { status, device_features_sel, driver_features_sel, driver_features, queue_sel } =
            *registers;
        let state = MmioState {
            device_type: device.device_type() as u32,
            status,
            needs_reset: signals.is_broken(),
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            interrupt_status: signals.status(),
            queues: queues
                .iter()
                .map(|&QueueSlot { max_size: _, setup, progress, started: _ }| QueueSavedState {
                    setup,
                    progress,
                })
                .collect(),
            device: device.save()?.into(),
        };
        Section::encode(saved::KIND, saved::VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let malformed = |reason| state::Error::Malformed { kind: saved::KIND, reason };
        if self.queues.iter().any(|queue| queue.started) {
            return Err(malformed("restored onto a device with running queues".into()));
        }
        let saved: MmioState = section.decode(saved::KIND, saved::VERSION)?;
        self.check_saved(&saved).map_err(malformed)?;
        self.device.restore(&saved.device.into())?;

        self.resting = true;
        self.registers = Registers {
            status: saved.status,
            device_features_sel: saved.device_features_sel,
            driver_features_sel: saved.driver_features_sel,
            driver_features: saved.driver_features,
            queue_sel: saved.queue_sel,
        };
        for (slot, queue) in self.queues.iter_mut().zip(saved.queues) {
            slot.setup = queue.setup;
            slot.progress = queue.progress;
        }
        let features_ok = saved.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        self.device.accept_features(if features_ok { saved.driver_features } else { 0 });
        self.signals.set(saved.interrupt_status, saved.needs_reset);
        Ok(())
    }

    fn as_mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        Some(self)
    }

    fn as_queued(&mut self) -> Option<&mut dyn Queued> {
        Some(self)
    }
}

impl Queued for MmioTransport {
    fn stop_queues(&mut self) {
        self.resting = true;
        self.stop_all_queues();
    }

    fn start_queues(&mut self) {
        self.resting = false;
        self.start_ready_queues();
    }
}

impl MmioDevice for MmioTransport {
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        let config = u64::from(reg::VIRTIO_MMIO_CONFIG);
        if let Some(offset) = offset.checked_sub(config) {
            return self.device.read_config(offset, data);
        }
        data.fill(0);
        if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        let config = u64::from(reg::VIRTIO_MMIO_CONFIG);
        if let Some(offset) = offset.checked_sub(config) {
            return self.device.write_config(offset, data);
        }
        if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }
}

/// The low (`select` 0) or high (1) half of `value`; 0 for any other.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Replaces the low (`select` 0) or high (1) half of `value`; nothing for any other.
fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = (*value & !0xffff_ffff) | u64::from(half),
        1 => *value = (*value & 0xffff_ffff) | (u64::from(half) << 32),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
