//! Virtio 1.2 devices.
//!
//! ```text
//! vCPU ── bus ── mmio::MmioTransport ── VirtioDevice (balloon, block, console, fs, net, rng, vsock)
//!                     │ registers             │ start_queue / stop_queue / notify
//!                     │                       ▼
//!                Signals (status, line) ◄── Virtqueue ── Chain ── guest RAM
//! ```
//!
//! A device is started and stopped queue by queue: [`VirtioDevice::start_queue`] hands it a [`Virtqueue`],
//! [`VirtioDevice::stop_queue`] takes back its [`QueueProgress`] once every request taken from the ring is
//! completed. Reset, save, restore, and moving a device to another process are made of those two.
//!
//! Work that is short and cannot block is done on the vCPU thread that notifies, because waking another core
//! costs more than the work; everything else is done on a thread the device owns. Which is which stands at
//! each device. Lock order: transport, then the device's own lock, then [`Signals`], then the interrupt
//! controller.
//!
//! Reading order: this file, [`mmio`], [`queue`], [`chain`], then the devices from [`rng`] (the simplest) on.
//!
//! Deliberately absent: legacy (version 1) devices, packed rings, PCI attachment, `VIRTIO_F_RING_RESET`.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
mod doorbell;
pub mod fs;
pub mod mmio;
pub mod net;
mod poller;
pub mod queue;
pub mod rng;
mod saved;
pub mod signals;
pub mod slot;
#[cfg(test)]
mod testing;
pub mod vsock;
mod worker;

pub use balloon::{Balloon, BalloonHandle};
pub use block::Block;
pub use chain::Chain;
pub use console::{Console, ConsoleHandle};
pub use fs::Fs;
pub use mmio::MmioTransport;
pub use net::Net;
pub use queue::{QueueProgress, Virtqueue};
pub use rng::Rng;
pub use signals::Signals;
pub use slot::MmioSlot;
pub use vsock::{Vsock, VsockHandle, VsockHost};

use std::sync::Arc;

use state::Section;

/// Feature bits that belong to the ring and the transport; the transport offers them for every device.
pub(crate) mod features {
    use virtio_bindings::{virtio_config, virtio_ring};

    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}

/// Device types (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket device.
    Vsock = 19,
    /// File system.
    Fs = 26,
}

/// What a virtio device is, apart from how it is attached.
///
/// Who calls: the transport, one call at a time. Order: [`attach`](Self::attach) once;
/// [`accept_features`](Self::accept_features); [`start_queue`](Self::start_queue) for each queue the driver
/// made ready; [`notify`](Self::notify) any number of times; [`stop_queue`](Self::stop_queue). `reset`, `save`
/// and `restore` only while no queue is started.
pub trait VirtioDevice: Send {
    /// What kind of device this is.
    fn device_type(&self) -> DeviceType;

    /// The largest size of each queue, in descriptors: powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// The device's own feature bits; ring and transport bits are added by the transport.
    fn features(&self) -> u64;

    /// Hands over what the device interrupts the driver through.
    fn attach(&mut self, signals: Arc<Signals>);

    /// The driver's choice: a subset of what was offered, 0 after a reset.
    fn accept_features(&mut self, features: u64);

    /// Fills `data` from the configuration space. Bytes beyond its end read 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space; read-only fields ignore it.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Starts queue `index`, and processes what is already in it.
    fn start_queue(&mut self, index: usize, queue: Virtqueue);

    /// Stops queue `index` after completing every request taken from it, and says how far it got.
    /// `None` if the queue was not started.
    fn stop_queue(&mut self, index: usize) -> Option<QueueProgress>;

    /// The driver says that there is something new in queue `index`. Must not wait for anything slow.
    fn notify(&mut self, index: usize);

    /// Returns to the state after power-up.
    fn reset(&mut self);

    /// The device's own state, without queues and negotiated features (the transport saves those).
    ///
    /// # Errors
    /// Whatever `state` says of values that cannot be encoded.
    fn save(&self) -> Result<Section, state::Error>;

    /// Takes over a saved state, checked as input from a stranger: on error nothing has changed.
    ///
    /// # Errors
    /// A section of another kind or version, or with values the device could never have had.
    fn restore(&mut self, section: &Section) -> Result<(), state::Error>;
}

/// Fills `data` from `config` at `offset`, with zeros beyond its end.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|start| config.get(start..)) else { return };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}
