//! What a device tells its driver through: used-buffer and configuration interrupts, and "I need a reset".
//!
//! Virtio 1.2, sections 4.2.2 (InterruptStatus, InterruptACK) and 2.1.2 (DEVICE_NEEDS_RESET). The line is
//! level-triggered: high while InterruptStatus is not 0.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::irq::IrqLine;

/// Shared by the transport and the device's threads.
pub struct Signals {
    line: IrqLine,
    /// InterruptStatus. The line is driven under this lock, so that the two never disagree.
    status: Mutex<u32>,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
}

impl Signals {
    /// Drives `line`, which is low now.
    pub fn new(line: IrqLine) -> Self {
        Self {
            line,
            status: Mutex::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
        }
    }

    /// Buffers were used in some queue.
    pub fn used_buffers(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space has changed.
    pub fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The driver did something no driver may do; nothing but a reset leads out.
    pub fn needs_reset(&self, reason: &str) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            tracing::warn!(gsi = self.line.gsi(), reason, "virtio device needs a reset");
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Whether [`Self::needs_reset`] was called since the last [`Self::reset`].
    pub fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        *self.lock()
    }

    /// InterruptACK: clears `bits`.
    pub fn acknowledge(&self, bits: u32) {
        let mut status = self.lock();
        *status &= !bits;
        // Where the line is taken for edge-triggered (Linux does for devices named on its command line), what
        // is left needs an edge of its own.
        self.line.set(false);
        self.line.set(*status != 0);
    }

    /// ConfigGeneration.
    pub fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// Back to quiet. The generation keeps counting, as the driver may compare across a reset.
    pub fn reset(&self) {
        self.set(0, false);
    }

    /// Takes over a saved InterruptStatus.
    pub(crate) fn set(&self, status: u32, needs_reset: bool) {
        let mut current = self.lock();
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        *current = status & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
        self.line.set(*current != 0);
    }

    fn raise(&self, bit: u32) {
        let mut status = self.lock();
        if *status & bit == 0 {
            *status |= bit;
            self.line.set(true);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u32> {
        self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
