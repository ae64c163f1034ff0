//! Network card (virtio 1.2, section 5.1) on a [`net::Port`]: queue pairs, one for each vCPU that wants its own, and a control
//! queue.
//!
//! Frames are sent on the notifying vCPU, and by several at once where they use several pairs. Received frames are placed by
//! the device's thread, which waits for the port, or by the vCPU that gives buffers, each in the ring of the pair that its
//! flow is sent from ([`steering`]). A frame for which the guest has no buffers is held until it has.
//!
//! Checksums and the segmentation of TCP over IPv4 are offered whatever the cable ends in, so that a saved card fits any
//! port: ports take unfinished frames, and are told what the guest takes.
//!
//! With rate limits ([`crate::rate`]), one for each direction, a frame that has to wait stays where it is, the guest's in its
//! ring and one for it held, with what the port has behind it; the thread sleeps until its time has come.
//!
//! Reading order: this file, `sender`, `receiver`, `steering`, `filter`, `header`. Lock order: the control queue, then the
//! receiver; a sender alone.
//!
//! Known omissions: segmentation of IPv6 and UDP, VLAN filter, announcements, RSS.

mod filter;
mod header;
mod receiver;
mod sender;
mod steering;

use std::io;
use std::iter::once_with;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use net::{Link, Offloads, Port};
use serde::{Deserialize, Serialize};
use state::Section;
use virtio_bindings::virtio_net as vnet;

use self::filter::{Filter, MAX_TABLE};
use self::receiver::Receiver;
use self::sender::Sender;
use self::steering::Steering;
use super::poller::{Interest, Poller};
use super::worker::Worker;
use super::{Chain, DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue, read_config_bytes};
use crate::rate::{LevelsState, RateLimiter};

pub use self::filter::Mac;

/// Most queue pairs that a card can have.
pub const MAX_PAIRS: u16 = 8;

const KIND: &str = "virtio-net";
/// Version 1 was the filter alone, version 2 had one queue pair.
const VERSION: u32 = 3;

/// Descriptors of a ring for frames, and of the control queue.
const RING_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// Destination, source and type: nothing shorter is a frame.
const MIN_FRAME: usize = 14;
const PORT_TOKEN: u64 = 0;
/// Rounds of a ring on a vCPU before the thread goes on; see [`Net::notify`].
const ROUNDS: u16 = 2;

/// The device.
pub struct Net {
    shared: Arc<Shared>,
    worker: Worker,
    permanent_mac: Mac,
    queue_sizes: Vec<u16>,
    /// Whether the driver knows of more pairs than one, which decides where it has its control queue.
    is_multiqueue: bool,
}

struct Shared {
    port: Box<dyn Port>,
    poller: Poller,
    signals: OnceLock<Arc<Signals>>,
    link: Mutex<Link>,
    steering: Steering,
    senders: Vec<Mutex<Sender>>,
    tx_limiter: OnceLock<Mutex<RateLimiter>>,
    receiver: Mutex<Receiver>,
    control: Mutex<Option<Virtqueue>>,
}

/// What a queue is for; the number is that of its pair.
#[derive(Clone, Copy)]
enum Role {
    Receive(usize),
    Send(usize),
    Control,
}

/// How a round of a ring ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// There is nothing to do until somebody says so.
    Idle,
    /// There may be more.
    More,
    /// The next frame's time comes then.
    Limited(Duration),
}

/// Saved form.
#[derive(Serialize, Deserialize)]
struct NetState {
    filter: Filter,
    #[serde(default = "one")]
    pairs_in_use: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rx_rate: Option<LevelsState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tx_rate: Option<LevelsState>,
}

impl From<Filter> for NetState {
    fn from(filter: Filter) -> Self {
        Self { filter, pairs_in_use: 1, rx_rate: None, tx_rate: None }
    }
}

/// What a state of version 2 means.
fn one() -> u16 {
    1
}

impl Net {
    /// A card with address `mac` and one queue pair, whose cable ends in `port`.
    ///
    /// # Errors
    /// The host gives no epoll or eventfd descriptor, or the port's cannot be waited for.
    pub fn new(port: Box<dyn Port>, mac: Mac) -> io::Result<Self> {
        Self::with_pairs(port, mac, 1)
    }

    /// The same with `pairs` queue pairs, of which the driver uses as many as it likes: one at least, [`MAX_PAIRS`] at most.
    ///
    /// # Errors
    /// The host gives no epoll or eventfd descriptor, or the port's cannot be waited for.
    pub fn with_pairs(port: Box<dyn Port>, mac: Mac, pairs: u16) -> io::Result<Self> {
        let pairs = pairs.clamp(1, MAX_PAIRS);
        let poller = Poller::new()?;
        if let Some(readiness) = port.readiness() {
            poller.add(readiness, PORT_TOKEN, Interest::IN | Interest::ET)?;
        }
        let shared = Shared {
            link: Mutex::new(port.link()),
            port,
            poller,
            signals: OnceLock::new(),
            steering: Steering::new(),
            senders: (0..pairs).map(|pair| Mutex::new(Sender::new(pair))).collect(),
            tx_limiter: OnceLock::new(),
            receiver: Mutex::new(Receiver::new(pairs, Filter::new(mac))),
            control: Mutex::new(None),
        };
        let mut queue_sizes = vec![RING_SIZE; 2 * usize::from(pairs)];
        queue_sizes.push(CONTROL_SIZE);
        let (shared, worker) = (Arc::new(shared), Worker::default());
        Ok(Self { shared, worker, permanent_mac: mac, queue_sizes, is_multiqueue: false })
    }

    /// The same, held to what the limiters allow: `rx` what the guest receives, `tx` what it sends.
    #[must_use]
    pub fn limited(self, rx: Option<RateLimiter>, tx: Option<RateLimiter>) -> Self {
        lock(&self.shared.receiver).limiter = rx;
        if let Some(limiter) = tx {
            self.shared.tx_limiter.get_or_init(|| Mutex::new(limiter));
        }
        self
    }

    fn pairs(&self) -> u16 {
        self.shared.senders.len() as u16
    }

    /// What queue `index` is for (section 5.1.2). To a driver that knows of one pair alone, those behind its control queue are
    /// for nothing.
    fn role(&self, index: usize) -> Option<Role> {
        let pairs = if self.is_multiqueue { self.shared.senders.len() } else { 1 };
        match index {
            index if index == 2 * pairs => Some(Role::Control),
            index if index > 2 * pairs => None,
            index if index.is_multiple_of(2) => Some(Role::Receive(index / 2)),
            index => Some(Role::Send(index / 2)),
        }
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let mut ready = Vec::new();
            let mut patience = None;
            while shared.poller.wait(&mut ready, patience) {
                shared.check_link();
                patience = shared.carry_on();
            }
        };
        self.worker.start("virtio-net", work);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.shared.poller.close();
        self.worker.join();
    }
}

/// What is behind a lock; a thread that panicked with it left nothing half done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn check_link(&self) {
        let link = self.port.link();
        if std::mem::replace(&mut *lock(&self.link), link) != link
            && let Some(signals) = self.signals.get()
        {
            signals.config_changed();
        }
    }

    /// One bounded round of everything, on the device's thread. How long the next frame has to wait, if a rate limit says so.
    fn carry_on(&self) -> Option<Duration> {
        let sent = self.senders.iter().map(|sender| lock(sender).send_frames(self));
        let received = once_with(|| lock(&self.receiver).receive_frames(self));
        let served = once_with(|| self.serve_control(&mut lock(&self.control)));
        let (mut is_more, mut patience) = (false, None);
        for round in sent.chain(received).chain(served) {
            match round {
                Round::Idle => {}
                Round::More => is_more = true,
                Round::Limited(wait) => patience = Some(patience.map_or(wait, |least| wait.min(least))),
            }
        }
        if is_more {
            self.poller.wake();
        }
        patience
    }

    /// One bounded round of what queue of role `role` needs, on a vCPU. The thread does what is left, and what others are at.
    fn carry_on_here(&self, role: Role) {
        match role {
            Role::Send(pair) => {
                self.here(&self.senders[pair], |sender| sender.send_frames(self));
                // The port may have answered at once.
                self.here(&self.receiver, |receiver| receiver.receive_frames(self));
            }
            Role::Receive(_) => self.here(&self.receiver, |receiver| receiver.receive_frames(self)),
            Role::Control => self.here(&self.control, |control| self.serve_control(control)),
        }
    }

    fn here<T>(&self, mutex: &Mutex<T>, round: impl FnOnce(&mut T) -> Round) {
        if mutex.try_lock().map_or(Round::More, |mut guard| round(&mut guard)) != Round::Idle {
            self.poller.wake();
        }
    }

    /// What a frame of `len` bytes costs that the guest sends.
    fn pay_for_sent(&self, len: usize) -> Result<(), Duration> {
        self.tx_limiter.get().map_or(Ok(()), |limiter| lock(limiter).pay(len))
    }

    fn serve_control(&self, control: &mut Option<Virtqueue>) -> Round {
        let Some(control) = control else { return Round::Idle };
        let mut round = Round::More;
        for _ in 0..control.size() {
            let Some(mut chain) = control.pop() else {
                if control.enable_notifications() {
                    continue;
                }
                round = Round::Idle;
                break;
            };
            let acknowledge =
                if self.command(&mut chain) { vnet::VIRTIO_NET_OK } else { vnet::VIRTIO_NET_ERR };
            let written = chain.write(&[acknowledge as u8]);
            control.complete(&chain, written as u32);
        }
        control.signal();
        round
    }

    /// Does what the driver asks for. Whether it was something that can be done.
    fn command(&self, chain: &mut Chain) -> bool {
        let Some([class, command]) = chain.read_array() else { return false };
        if u32::from(class) != vnet::VIRTIO_NET_CTRL_MQ {
            return lock(&self.receiver).filter.command(class, command, chain);
        }
        let pairs = chain.read_array().map_or(0, u16::from_le_bytes);
        let is_known = u32::from(command) == vnet::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
        let can_be = is_known && (1..=self.senders.len()).contains(&usize::from(pairs));
        if can_be {
            self.steering.use_pairs(pairs);
        }
        can_be
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let several = if self.pairs() > 1 { 1 << vnet::VIRTIO_NET_F_MQ } else { 0 };
        [
            vnet::VIRTIO_NET_F_CSUM,
            vnet::VIRTIO_NET_F_GUEST_CSUM,
            vnet::VIRTIO_NET_F_GUEST_TSO4,
            vnet::VIRTIO_NET_F_HOST_TSO4,
            vnet::VIRTIO_NET_F_MAC,
            vnet::VIRTIO_NET_F_STATUS,
            vnet::VIRTIO_NET_F_MRG_RXBUF,
            vnet::VIRTIO_NET_F_CTRL_VQ,
            vnet::VIRTIO_NET_F_CTRL_RX,
            vnet::VIRTIO_NET_F_CTRL_RX_EXTRA,
            vnet::VIRTIO_NET_F_CTRL_MAC_ADDR,
        ]
        .iter()
        .fold(several, |bits, bit| bits | 1 << bit)
    }

    fn attach(&mut self, signals: Arc<Signals>) {
        self.shared.signals.get_or_init(|| signals);
    }

    fn accept_features(&mut self, features: u64) {
        let has = |bit: u32| features & (1 << bit) != 0;
        // Several pairs need the control queue, through which they come into use (section 5.1.3.1).
        self.is_multiqueue = has(vnet::VIRTIO_NET_F_MQ) && has(vnet::VIRTIO_NET_F_CTRL_VQ);
        if !self.is_multiqueue {
            self.shared.steering.use_pairs(1);
        }
        lock(&self.shared.receiver).mergeable = has(vnet::VIRTIO_NET_F_MRG_RXBUF);
        // Segmentation needs checksums; a driver that asks for one alone gets none.
        let both = |checksum: bool, segmentation: bool| Offloads {
            checksum,
            segmentation: checksum && segmentation,
        };
        let sent = both(has(vnet::VIRTIO_NET_F_CSUM), has(vnet::VIRTIO_NET_F_HOST_TSO4));
        self.shared.senders.iter().for_each(|sender| lock(sender).offloads = sent);
        let received = both(has(vnet::VIRTIO_NET_F_GUEST_CSUM), has(vnet::VIRTIO_NET_F_GUEST_TSO4));
        self.shared.port.accept(received);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let is_up = *lock(&self.shared.link) == Link::Up;
        let status = if is_up { vnet::VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [0; 10];
        config[..6].copy_from_slice(&lock(&self.shared.receiver).filter.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..].copy_from_slice(&self.pairs().to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        let Some(role) = self.role(index) else { return };
        self.start_thread();
        match role {
            Role::Receive(pair) => lock(&self.shared.receiver).rings[pair] = Some(queue),
            Role::Send(pair) => lock(&self.shared.senders[pair]).ring = Some(queue),
            Role::Control => *lock(&self.shared.control) = Some(queue),
        }
        self.shared.carry_on_here(role);
    }

    fn stop_queue(&mut self, index: usize) -> Option<QueueProgress> {
        let queue = match self.role(index)? {
            Role::Receive(pair) => lock(&self.shared.receiver).rings[pair].take(),
            Role::Send(pair) => lock(&self.shared.senders[pair]).ring.take(),
            Role::Control => lock(&self.shared.control).take(),
        };
        queue.map(Virtqueue::stop)
    }

    fn notify(&mut self, index: usize) {
        if let Some(role) = self.role(index) {
            self.shared.carry_on_here(role);
        }
    }

    fn reset(&mut self) {
        let mut receiver = lock(&self.shared.receiver);
        receiver.filter = Filter::new(self.permanent_mac);
        receiver.forget();
        self.shared.steering.use_pairs(1);
        self.shared.port.reset();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let mut receiver = lock(&self.shared.receiver);
        let state = NetState {
            filter: receiver.filter.clone(),
            pairs_in_use: self.shared.steering.pairs(),
            rx_rate: receiver.limiter.as_mut().map(RateLimiter::save),
            tx_rate: self.shared.tx_limiter.get().map(|limiter| lock(limiter).save()),
        };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let NetState { filter, pairs_in_use, rx_rate, tx_rate } = match section.version {
            1 => section.decode::<Filter>(KIND, 1)?.into(),
            _ => section.decode_any(KIND, 2..=VERSION)?,
        };
        let malformed = |reason: &str| state::Error::Malformed { kind: KIND, reason: reason.into() };
        if filter.unicast.addresses.len() > MAX_TABLE || filter.multicast.addresses.len() > MAX_TABLE {
            return Err(malformed("address table is too long"));
        }
        if !(1..=self.pairs()).contains(&pairs_in_use) {
            return Err(malformed("more queue pairs in use than there are"));
        }
        let mut receiver = lock(&self.shared.receiver);
        receiver.filter = filter;
        receiver.forget();
        self.shared.steering.use_pairs(pairs_in_use);
        if let (Some(limiter), Some(levels)) = (&mut receiver.limiter, rx_rate) {
            limiter.restore(levels);
        }
        if let (Some(limiter), Some(levels)) = (self.shared.tx_limiter.get(), tx_rate) {
            lock(limiter).restore(levels);
        }
        Ok(())
    }
}

#[cfg(test)]
mod rate_tests;
#[cfg(test)]
mod tests;
