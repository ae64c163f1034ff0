//! Block device (virtio 1.2, section 5.2) on a [`disk::Disk`].
//!
//! Reads that the host has in its page cache are served on the notifying vCPU: a copy of a few microseconds
//! against some fifty to wake another core. Everything else is done in order by the device's thread.
//!
//! With a rate limit ([`crate::rate`]) a request that has to wait stays the next one, and those behind it stay in the ring; the
//! thread sleeps until its time has come. Requests of every kind are operations; what is read and written are bytes.
//!
//! A drive without a medium, saved, may come back with one: a disk of no bytes is exchanged for any other of the same access,
//! and the driver is told of the new size by a configuration change.
//!
//! Known omissions: multiple queues, geometry, VIRTIO_BLK_F_CONFIG_WCE, secure erase, zoned devices, lifetime.

mod request;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use disk::{Access, Disk, SECTOR_SIZE};
use serde::{Deserialize, Serialize};
use state::Section;
use virtio_bindings::virtio_blk as blk;

use self::request::{Outcome, Request};
use super::doorbell::Doorbell;
use super::worker::Worker;
use super::{Chain, DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue, read_config_bytes};
use crate::rate::{LevelsState, RateLimiter};

const KIND: &str = "virtio-blk";
/// Version 1 had no levels of a rate limit.
const VERSION: u32 = 2;

const QUEUE_SIZE: u16 = 256;
/// Data segments per request: the ring less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes per segment.
const SIZE_MAX: u32 = 4 << 20;
/// Sectors per discard or write-zeroes segment: 1 GiB, so that one request stays short.
const RANGE_SECTORS_MAX: u32 = 2 << 20;
/// Segments per discard or write-zeroes request.
const RANGE_SEGMENTS_MAX: u32 = 64;
/// Bytes moved by the thread before the driver hears of finished requests.
const SIGNAL_BYTES: usize = 256 << 10;

/// Length of the identity the driver reads with VIRTIO_BLK_T_GET_ID.
const ID_BYTES: usize = 20;
const CONFIG_BYTES: usize = 60;

/// The device.
pub struct Block {
    shared: Arc<Shared>,
    worker: Worker,
}

struct Shared {
    disk: Box<dyn Disk>,
    id: [u8; ID_BYTES],
    core: Mutex<Core>,
    doorbell: Doorbell,
    /// Asks whoever holds `core` to let go of it after the request at hand.
    yield_core: AtomicBool,
}

#[derive(Default)]
struct Core {
    signals: Option<Arc<Signals>>,
    queue: Option<Virtqueue>,
    /// A request that was taken but has to wait, for the thread or for its time.
    parked: Option<Taken>,
    limiter: Option<RateLimiter>,
    /// Without VIRTIO_BLK_F_FLUSH a completed write is durable (section 5.2.6.2).
    write_through: bool,
    buffer: Vec<u8>,
    /// The driver knows another size and has to hear of this one.
    resized: bool,
}

/// A request that was taken from the ring.
struct Taken {
    chain: Chain,
    /// It has cost what the rate limit makes it cost.
    is_paid: bool,
}

/// What became of it.
enum Served {
    Done,
    /// It needs the thread.
    Parked,
    /// Its time comes then.
    Limited(Duration),
}

/// Whether whoever processes the queue may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Wait,
    DoNotWait,
}

/// Saved form: what the guest knows about the disk must still be true.
#[derive(Serialize, Deserialize)]
struct BlockState {
    size_bytes: u64,
    read_only: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<LevelsState>,
}

impl Block {
    /// A block device on `disk` that calls itself `id` (its first 20 bytes; Linux shows it as the serial).
    pub fn new(disk: Box<dyn Disk>, id: &str) -> Self {
        let mut id_bytes = [0; ID_BYTES];
        let len = id.len().min(ID_BYTES);
        id_bytes[..len].copy_from_slice(&id.as_bytes()[..len]);
        let shared = Shared {
            disk,
            id: id_bytes,
            core: Mutex::default(),
            doorbell: Doorbell::default(),
            yield_core: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), worker: Worker::default() }
    }

    /// The same, held to what `limiter` allows.
    #[must_use]
    pub fn limited(self, limiter: Option<RateLimiter>) -> Self {
        self.shared.lock().limiter = limiter;
        self
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let mut patience = None;
            while shared.doorbell.wait(patience) {
                patience = shared.lock().process(&shared, Patience::Wait);
            }
        };
        self.worker.start("virtio-blk", work);
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let disk = &self.shared.disk;
        let sectors = disk.size_bytes() / SECTOR_SIZE;
        let block_exponent = (disk.block_size() / SECTOR_SIZE as u32).checked_ilog2().unwrap_or(0);
        let block_sectors = 1u32 << block_exponent;
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &sectors.to_le_bytes()); // capacity
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR_SIZE as u32).to_le_bytes()); // blk_size
        put(24, &[block_exponent as u8, 0]); // topology: physical_block_exp, alignment_offset
        put(26, &(block_sectors as u16).to_le_bytes()); // min_io_size
        put(28, &block_sectors.to_le_bytes()); // opt_io_size
        put(34, &1u16.to_le_bytes()); // num_queues
        put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // max_discard_sectors
        put(40, &RANGE_SEGMENTS_MAX.to_le_bytes()); // max_discard_seg
        put(44, &block_sectors.to_le_bytes()); // discard_sector_alignment
        put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &RANGE_SEGMENTS_MAX.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
        config
    }

    fn state(&self) -> BlockState {
        let disk = &self.shared.disk;
        let rate = self.shared.lock().limiter.as_mut().map(RateLimiter::save);
        BlockState { size_bytes: disk.size_bytes(), read_only: disk.access() == Access::ReadOnly, rate }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.shared.doorbell.close();
        self.worker.join();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the core from a thread that may be in the middle of a long queue.
    fn lock_soon(&self) -> MutexGuard<'_, Core> {
        self.yield_core.store(true, Ordering::SeqCst);
        let core = self.lock();
        self.yield_core.store(false, Ordering::SeqCst);
        core
    }
}

impl Core {
    /// Serves requests until none are left, `patience` is at its end, or someone else wants the queue. How long the next one
    /// has to wait, if the rate limit says so.
    fn process(&mut self, shared: &Shared, patience: Patience) -> Option<Duration> {
        let mut queue = self.queue.take()?;
        queue.disable_notifications();
        let mut unsignalled_bytes = 0;
        let mut served = 0;
        let mut wait = None;
        loop {
            let popped = || queue.pop().map(|chain| Taken { chain, is_paid: false });
            let Some(taken) = self.parked.take().or_else(popped) else {
                if queue.enable_notifications() {
                    continue;
                }
                break;
            };
            // A vCPU serves one round; a ring that other vCPUs refill without end is the thread's affair.
            let patience_left = patience == Patience::Wait || served < queue.size();
            if !patience_left || (shared.yield_core.load(Ordering::Relaxed) && patience == Patience::Wait) {
                self.parked = Some(taken);
                shared.doorbell.ring();
                break;
            }
            if unsignalled_bytes >= SIGNAL_BYTES {
                queue.signal();
                unsignalled_bytes = 0;
            }
            unsignalled_bytes += taken.chain.readable() + taken.chain.writable();
            served += 1;
            match self.serve(shared, &mut queue, taken, patience) {
                Served::Done => continue,
                Served::Parked => shared.doorbell.ring(),
                Served::Limited(time) => wait = Some(time),
            }
            break;
        }
        queue.signal();
        self.queue = Some(queue);
        wait
    }

    /// Serves one request, or parks it.
    fn serve(&mut self, shared: &Shared, queue: &mut Virtqueue, taken: Taken, patience: Patience) -> Served {
        let Taken { mut chain, mut is_paid } = taken;
        let writable = chain.writable() as u32;
        let Some(mut request) = Request::parse(&mut chain) else {
            if let Some(signals) = &self.signals {
                signals.needs_reset("block request without header or status");
            }
            return Served::Done;
        };
        if let (false, Some(limiter)) = (is_paid, &mut self.limiter) {
            if let Err(wait) = limiter.pay(request.data_bytes(&chain)) {
                chain.rewind();
                self.parked = Some(Taken { chain, is_paid });
                return Served::Limited(wait);
            }
            is_paid = true;
        }
        request.write_through = self.write_through;
        match request.run_cached(shared, &mut chain, &mut self.buffer) {
            Outcome::Done(status) => request.finish(&mut chain, status),
            Outcome::WouldWait if patience == Patience::DoNotWait => {
                chain.rewind();
                self.parked = Some(Taken { chain, is_paid });
                return Served::Parked;
            }
            Outcome::WouldWait => {
                queue.signal();
                let status = request.run(shared, &mut chain, &mut self.buffer);
                request.finish(&mut chain, status);
            }
        }
        queue.complete(&chain, writable);
        Served::Done
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let common = [
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_TOPOLOGY,
        ];
        let by_access: &[u32] = match self.shared.disk.access() {
            Access::ReadOnly => &[blk::VIRTIO_BLK_F_RO],
            Access::ReadWrite => &[blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES],
        };
        common.iter().chain(by_access).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn attach(&mut self, signals: Arc<Signals>) {
        self.shared.lock().signals = Some(signals);
    }

    fn accept_features(&mut self, features: u64) {
        self.shared.lock_soon().write_through = features & (1 << blk::VIRTIO_BLK_F_FLUSH) == 0;
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn start_queue(&mut self, _index: usize, queue: Virtqueue) {
        self.start_thread();
        let mut core = self.shared.lock_soon();
        core.queue = Some(queue);
        if let (true, Some(signals)) = (std::mem::take(&mut core.resized), &core.signals) {
            signals.config_changed();
        }
        drop(core);
        self.shared.doorbell.ring();
    }

    fn stop_queue(&mut self, _index: usize) -> Option<QueueProgress> {
        let mut core = self.shared.lock_soon();
        let mut queue = core.queue.take()?;
        if let Some(taken) = core.parked.take()
            && let Served::Limited(_) = core.serve(&self.shared, &mut queue, taken, Patience::Wait)
        {
            // It was not begun, and whoever goes on with the queue finds it where it was.
            core.parked = None;
            queue.undo_pop();
        }
        Some(queue.stop())
    }

    fn notify(&mut self, _index: usize) {
        match self.shared.core.try_lock() {
            Ok(mut core) => {
                if core.process(&self.shared, Patience::DoNotWait).is_some() {
                    // So that the thread learns when to go on.
                    self.shared.doorbell.ring();
                }
            }
            // Busy: whoever holds it may have looked at the ring before this request came.
            Err(_) => self.shared.doorbell.ring(),
        }
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<Section, state::Error> {
        Section::encode(KIND, VERSION, &self.state())
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let saved: BlockState = section.decode_any(KIND, 1..=VERSION)?;
        let BlockState { size_bytes, read_only, rate: _ } = self.state();
        let inserted = saved.size_bytes == 0 && size_bytes != 0;
        if (saved.size_bytes != size_bytes && !inserted) || saved.read_only != read_only {
            let reason = format!(
                "disk of {:#x} bytes (read-only: {}), this one has {size_bytes:#x} (read-only: {read_only})",
                saved.size_bytes, saved.read_only
            );
            return Err(state::Error::Malformed { kind: KIND, reason });
        }
        let mut core = self.shared.lock_soon();
        core.resized = inserted;
        if let (Some(limiter), Some(levels)) = (&mut core.limiter, saved.rate) {
            limiter.restore(levels);
        }
        Ok(())
    }
}

#[cfg(test)]
mod rate_tests;
#[cfg(test)]
mod tests;
