//! One split virtqueue in use (virtio 1.2, section 2.7).
//!
//! `virtio-queue` walks the rings; what it leaves to its caller is done here: chains cut short by a loop or a
//! bad index are told from good ones, NO_INTERRUPT is honoured without EVENT_IDX, and a ring that makes no
//! sense stops the queue and asks for a reset instead of being read again for ever.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use memory::GuestRam;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::Chain;
use super::signals::Signals;

/// Where the driver put a queue: the transport's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Whether the driver has finished setting up.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest physical address of the available ring.
    pub avail_ring: u64,
    /// Guest physical address of the used ring.
    pub used_ring: u64,
}

/// How far a device got in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueProgress {
    /// The next entry of the available ring to take.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

/// A started queue. Whoever holds it is the only one who works on the rings.
pub struct Virtqueue {
    queue: Queue,
    ram: Arc<GuestRam>,
    signals: Arc<Signals>,
    /// Chains completed since the driver was last told.
    unsignalled: bool,
}

impl Virtqueue {
    /// The queue at `setup`, continued at `progress`. `None` if no queue can be there: bad size or alignment,
    /// or a ring that is not in RAM.
    pub(crate) fn new(
        max_size: u16,
        setup: QueueSetup,
        progress: QueueProgress,
        event_idx: bool,
        ram: Arc<GuestRam>,
        signals: Arc<Signals>,
    ) -> Option<Self> {
        let state = QueueState {
            max_size,
            next_avail: progress.next_avail,
            next_used: progress.next_used,
            event_idx_enabled: event_idx,
            size: setup.size,
            ready: true,
            desc_table: setup.desc_table,
            avail_ring: setup.avail_ring,
            used_ring: setup.used_ring,
        };
        let queue = Queue::try_from(state).ok()?;
        queue.is_valid(ram.backend()).then_some(Self { queue, ram, signals, unsignalled: false })
    }

    /// Takes the next request, if there is one.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.signals.is_broken() {
            return None;
        }
        let limit = self.queue.size();
        let next = match self.queue.iter(self.ram.backend()) {
            Ok(mut iter) => iter.next(),
            Err(error) => {
                self.signals.needs_reset(&error.to_string());
                return None;
            }
        };
        match Chain::collect(next?, limit, &self.ram) {
            Ok(chain) => Some(chain),
            Err(reason) => {
                self.signals.needs_reset(reason);
                None
            }
        }
    }

    /// Gives the last popped request back to the ring, untouched.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Completes a request: `written` bytes of its writable part were filled. The driver hears of it at the
    /// next [`Self::signal`].
    pub fn complete(&mut self, chain: &Chain, written: u32) {
        match self.queue.add_used(self.ram.backend(), chain.head(), written) {
            Ok(()) => self.unsignalled = true,
            Err(error) => self.signals.needs_reset(&error.to_string()),
        }
    }

    /// Interrupts the driver if requests were completed and it wants to know.
    pub fn signal(&mut self) {
        if std::mem::take(&mut self.unsignalled) && self.driver_wants_interrupt() {
            self.signals.used_buffers();
        }
    }

    /// Asks the driver to notify again, and says whether something arrived meanwhile (the caller then goes on).
    pub fn enable_notifications(&mut self) -> bool {
        self.queue.enable_notification(self.ram.backend()).unwrap_or(false) && !self.signals.is_broken()
    }

    /// Asks the driver not to notify while the device is busy with the queue anyway.
    pub fn disable_notifications(&mut self) {
        // A ring that cannot be written is found out by the next pop or complete.
        let _ = self.queue.disable_notification(self.ram.backend());
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Tells the driver what is still to be told and says how far the queue got.
    pub fn stop(mut self) -> QueueProgress {
        self.signal();
        // The next device to run this queue must hear of new requests.
        let _ = self.queue.enable_notification(self.ram.backend());
        QueueProgress { next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    fn driver_wants_interrupt(&mut self) -> bool {
        if self.queue.event_idx_enabled() {
            return self.queue.needs_notification(self.ram.backend()).unwrap_or(false);
        }
        fence(Ordering::SeqCst);
        let flags: Result<u16, _> =
            self.ram.backend().load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        flags.is_ok_and(|flags| u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }
}
