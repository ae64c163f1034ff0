//! Network card (virtio 1.2, section 5.1) on a [`net::Port`]: one queue pair and a control queue.
//!
//! Frames are sent on the notifying vCPU, as ports never block; received frames are placed by the device's
//! thread, which waits for the port, or by the vCPU that gives buffers. A frame for which the guest has no
//! buffers is held until it has.
//!
//! Checksums and the segmentation of TCP over IPv4 are offered whatever the cable ends in, so that a saved card fits any
//! port: ports take unfinished frames, and are told what the guest takes.
//!
//! With rate limits ([`crate::rate`]), one for each direction, a frame that has to wait stays where it is, the guest's in its
//! ring and one for it held, with what the port has behind it; the thread sleeps until its time has come.
//!
//! Known omissions: segmentation of IPv6 and UDP, VLAN filter, multiple queues, announcements, RSS.

mod filter;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use net::{Checksum, Link, MAX_FRAME, Offloads, Port, Received, Unfinished};
use serde::{Deserialize, Serialize};
use state::Section;
use virtio_bindings::virtio_net as vnet;

use self::filter::{Filter, MAX_TABLE};
use super::poller::{Interest, Poller};
use super::worker::Worker;
use super::{Chain, DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue, read_config_bytes};
use crate::rate::{LevelsState, RateLimiter};

pub use self::filter::Mac;

const KIND: &str = "virtio-net";
/// Version 1 was the filter alone.
const VERSION: u32 = 2;

const RX: usize = 0;
const TX: usize = 1;

/// `struct virtio_net_hdr` with its number of buffers, which is always there in version 1.
const HEADER_BYTES: usize = 12;
const GSO_TYPE_OFFSET: usize = 1;
const HEADER_LEN_OFFSET: usize = 2;
const GSO_SIZE_OFFSET: usize = 4;
const CSUM_START_OFFSET: usize = 6;
const CSUM_OFFSET_OFFSET: usize = 8;
const NUM_BUFFERS_OFFSET: usize = 10;
const NEEDS_CSUM: u8 = vnet::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = vnet::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = vnet::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
/// Ethernet, IPv4 and TCP without options: what each segment of a large frame begins with.
const SEGMENT_HEADERS: u16 = 14 + 20 + 20;
/// Destination, source and type: nothing shorter is a frame.
const MIN_FRAME: usize = 14;
const PORT_TOKEN: u64 = 0;
/// Rounds of a ring on a vCPU before the thread goes on; see [`Net::notify`].
const ROUNDS: u16 = 2;

/// The device.
pub struct Net {
    shared: Arc<Shared>,
    worker: Worker,
}

struct Shared {
    core: Mutex<Core>,
    poller: Poller,
}

struct Core {
    port: Box<dyn Port>,
    permanent_mac: Mac,
    link: Link,
    filter: Filter,
    mergeable: bool,
    /// What the guest may leave to us in frames it sends.
    outgoing_offloads: Offloads,
    signals: Option<Arc<Signals>>,
    rx: Option<Virtqueue>,
    tx: Option<Virtqueue>,
    control: Option<Virtqueue>,
    /// A received frame: the first bytes of `frame`, if there is one.
    frame: Vec<u8>,
    held: Option<Received>,
    /// It has cost what the rate limit makes it cost.
    held_is_paid: bool,
    outgoing: Vec<u8>,
    rx_limiter: Option<RateLimiter>,
    tx_limiter: Option<RateLimiter>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rx_rate: Option<LevelsState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tx_rate: Option<LevelsState>,
}

impl From<Filter> for NetState {
    fn from(filter: Filter) -> Self {
        Self { filter, rx_rate: None, tx_rate: None }
    }
}

impl Net {
    /// A card with address `mac` whose cable ends in `port`.
    ///
    /// # Errors
    /// The host gives no epoll or eventfd descriptor, or the port's cannot be waited for.
    pub fn new(port: Box<dyn Port>, mac: Mac) -> io::Result<Self> {
        let poller = Poller::new()?;
        if let Some(readiness) = port.readiness() {
            poller.add(readiness, PORT_TOKEN, Interest::IN | Interest::ET)?;
        }
        let core = Core {
            link: port.link(),
            port,
            permanent_mac: mac,
            filter: Filter::new(mac),
            mergeable: false,
            outgoing_offloads: Offloads::default(),
            signals: None,
            rx: None,
            tx: None,
            control: None,
            frame: vec![0; MAX_FRAME],
            held: None,
            held_is_paid: false,
            outgoing: vec![0; MAX_FRAME],
            rx_limiter: None,
            tx_limiter: None,
        };
        Ok(Self { shared: Arc::new(Shared { core: Mutex::new(core), poller }), worker: Worker::default() })
    }

    /// The same, held to what the limiters allow: `rx` what the guest receives, `tx` what it sends.
    #[must_use]
    pub fn limited(self, rx: Option<RateLimiter>, tx: Option<RateLimiter>) -> Self {
        let mut core = self.shared.lock();
        (core.rx_limiter, core.tx_limiter) = (rx, tx);
        drop(core);
        self
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let mut ready = Vec::new();
            let mut patience = None;
            while shared.poller.wait(&mut ready, patience) {
                let mut core = shared.lock();
                core.check_link();
                patience = shared.carry_on(&mut core);
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One bounded round; what is left is the thread's. How long the next frame has to wait, if a rate limit says so.
    fn carry_on(&self, core: &mut Core) -> Option<Duration> {
        let rounds = [core.send_frames(), core.receive_frames(), core.serve_control()];
        if rounds.contains(&Round::More) {
            self.poller.wake();
        }
        let wait = |round| if let Round::Limited(time) = round { Some(time) } else { None };
        rounds.into_iter().filter_map(wait).min()
    }

    /// The same on another thread than the device's, which then learns when to go on.
    fn carry_on_here(&self, core: &mut Core) {
        if self.carry_on(core).is_some() {
            self.poller.wake();
        }
    }
}

impl Core {
    fn check_link(&mut self) {
        let link = self.port.link();
        if std::mem::replace(&mut self.link, link) != link
            && let Some(signals) = &self.signals
        {
            signals.config_changed();
        }
    }

    fn send_frames(&mut self) -> Round {
        let Some(mut tx) = self.tx.take() else { return Round::Idle };
        tx.disable_notifications();
        let mut round = Round::More;
        for _ in 0..tx.size() * ROUNDS {
            let Some(mut chain) = tx.pop() else {
                if tx.enable_notifications() {
                    continue;
                }
                round = Round::Idle;
                break;
            };
            let len = chain.readable().saturating_sub(HEADER_BYTES);
            if let Some(Err(wait)) = self.tx_limiter.as_mut().map(|limiter| limiter.pay(len)) {
                tx.undo_pop();
                round = Round::Limited(wait);
                break;
            }
            self.send(&mut chain);
            tx.complete(&chain, 0);
        }
        tx.signal();
        self.tx = Some(tx);
        round
    }

    /// Sends one frame. One that no frame can be, or that asks for an offload we do not offer, is dropped.
    fn send(&mut self, chain: &mut Chain) {
        let Some(header) = chain.read_array::<HEADER_BYTES>() else { return };
        let Offloads { checksum, segmentation } = self.outgoing_offloads;
        let is_ours = match (header[0], header[GSO_TYPE_OFFSET]) {
            (0, GSO_NONE) => true,
            (NEEDS_CSUM, GSO_NONE) => checksum,
            (NEEDS_CSUM, GSO_TCPV4) => segmentation,
            _ => false,
        };
        let len = chain.readable();
        if !is_ours || !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return;
        }
        let frame = &mut self.outgoing[..len];
        chain.read(frame);
        if let Err(error) = self.port.send(frame, unfinished(&header)) {
            tracing::debug!(%error, "send frame");
        }
    }

    fn receive_frames(&mut self) -> Round {
        let Some(mut rx) = self.rx.take() else { return Round::Idle };
        rx.disable_notifications();
        let mut round = Round::More;
        for _ in 0..rx.size() * ROUNDS {
            if !self.hold_frame() {
                round = Round::Idle;
                break;
            }
            if let Err(wait) = self.pay_for_held() {
                round = Round::Limited(wait);
                break;
            }
            if !self.deliver(&mut rx) {
                round = Round::Idle;
                break;
            }
            self.held = None;
        }
        rx.signal();
        self.rx = Some(rx);
        round
    }

    /// Once for each frame, however often it is tried to deliver it.
    fn pay_for_held(&mut self) -> Result<(), Duration> {
        if let (Some(held), Some(limiter), false) = (self.held, &mut self.rx_limiter, self.held_is_paid) {
            limiter.pay(held.len)?;
        }
        self.held_is_paid = true;
        Ok(())
    }

    /// Makes sure that a frame for the guest is held, if the port has one.
    fn hold_frame(&mut self) -> bool {
        while self.held.is_none() {
            let received = match self.port.receive(&mut self.frame) {
                Ok(Some(received)) if received.len <= self.frame.len() => received,
                Ok(Some(_)) => continue,
                Ok(None) => return false,
                Err(error) => {
                    tracing::debug!(%error, "receive frame");
                    return false;
                }
            };
            let destination = self.frame[..received.len].first_chunk();
            if received.len >= MIN_FRAME && destination.is_some_and(|mac| self.filter.accepts(mac)) {
                self.held = Some(received);
                self.held_is_paid = false;
            }
        }
        true
    }

    /// Places the held frame. `false` if the guest has not enough buffers; then none is used.
    fn deliver(&mut self, rx: &mut Virtqueue) -> bool {
        let Some(held) = self.held else { return true };
        let total = HEADER_BYTES + held.len;
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < total {
            let Some(chain) = rx.pop() else {
                // Asked for while all buffers are taken, so that the next one given is notified.
                if rx.enable_notifications() {
                    continue;
                }
                chains.iter().for_each(|_| rx.undo_pop());
                return false;
            };
            room += chain.writable();
            chains.push(chain);
            if !self.mergeable || chains.len() == usize::from(rx.size()) {
                break;
            }
        }
        if room < total {
            // A buffer that cannot take a frame takes none: the frame is lost, as on a full card.
            chains.iter().for_each(|chain| rx.complete(chain, 0));
            return true;
        }
        let header = header(held, chains.len() as u16);
        let (mut header, mut frame) = (&header[..], &self.frame[..held.len]);
        for chain in &mut chains {
            let from_header = chain.write(header);
            let from_frame = if from_header == header.len() { chain.write(frame) } else { 0 };
            header = &header[from_header..];
            frame = &frame[from_frame..];
            rx.complete(chain, (from_header + from_frame) as u32);
        }
        true
    }

    fn serve_control(&mut self) -> Round {
        let Some(mut control) = self.control.take() else { return Round::Idle };
        let mut round = Round::More;
        for _ in 0..control.size() {
            let Some(mut chain) = control.pop() else {
                if control.enable_notifications() {
                    continue;
                }
                round = Round::Idle;
                break;
            };
            let done = match chain.read_array() {
                Some([class, command]) => self.filter.command(class, command, &mut chain),
                None => false,
            };
            let acknowledge = if done { vnet::VIRTIO_NET_OK } else { vnet::VIRTIO_NET_ERR };
            let written = chain.write(&[acknowledge as u8]);
            control.complete(&chain, written as u32);
        }
        control.signal();
        self.control = Some(control);
        round
    }
}

/// What the guest says of a frame that it sends. It is the port's to doubt it.
fn unfinished(header: &[u8; HEADER_BYTES]) -> Unfinished {
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let checksum = match header[0] {
        NEEDS_CSUM => Checksum::Partial { start: word(CSUM_START_OFFSET), offset: word(CSUM_OFFSET_OFFSET) },
        _ => Checksum::Complete,
    };
    let segment_bytes = (header[GSO_TYPE_OFFSET] == GSO_TCPV4).then(|| word(GSO_SIZE_OFFSET));
    Unfinished { checksum, segment_bytes }
}

/// What stands before a received frame in the first of `buffers` buffers.
fn header(received: Received, buffers: u16) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    put(NUM_BUFFERS_OFFSET, buffers);
    if let Checksum::Partial { start, offset } = received.checksum {
        put(CSUM_START_OFFSET, start);
        put(CSUM_OFFSET_OFFSET, offset);
        header[0] = NEEDS_CSUM;
    }
    if let Some(segment_bytes) = received.segment_bytes {
        let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        put(HEADER_LEN_OFFSET, SEGMENT_HEADERS);
        put(GSO_SIZE_OFFSET, segment_bytes);
        header[GSO_TYPE_OFFSET] = GSO_TCPV4;
    }
    header
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256, 64]
    }

    fn features(&self) -> u64 {
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
        .fold(0, |bits, bit| bits | 1 << bit)
    }

    fn attach(&mut self, signals: Arc<Signals>) {
        self.shared.lock().signals = Some(signals);
    }

    fn accept_features(&mut self, features: u64) {
        let has = |bit: u32| features & (1 << bit) != 0;
        let mut core = self.shared.lock();
        core.mergeable = has(vnet::VIRTIO_NET_F_MRG_RXBUF);
        // Segmentation needs checksums (section 5.1.3.1); a driver that asks for one alone gets none.
        let both = |checksum: bool, segmentation: bool| Offloads {
            checksum,
            segmentation: checksum && segmentation,
        };
        core.outgoing_offloads = both(has(vnet::VIRTIO_NET_F_CSUM), has(vnet::VIRTIO_NET_F_HOST_TSO4));
        let received = both(has(vnet::VIRTIO_NET_F_GUEST_CSUM), has(vnet::VIRTIO_NET_F_GUEST_TSO4));
        core.port.accept(received);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let core = self.shared.lock();
        let status = if core.link == Link::Up { vnet::VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [0; 8];
        config[..6].copy_from_slice(&core.filter.mac);
        config[6..].copy_from_slice(&status.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        self.start_thread();
        let mut core = self.shared.lock();
        match index {
            RX => core.rx = Some(queue),
            TX => core.tx = Some(queue),
            _ => core.control = Some(queue),
        }
        self.shared.carry_on_here(&mut core);
    }

    fn stop_queue(&mut self, index: usize) -> Option<QueueProgress> {
        let mut core = self.shared.lock();
        let queue = match index {
            RX => core.rx.take(),
            TX => core.tx.take(),
            _ => core.control.take(),
        };
        queue.map(Virtqueue::stop)
    }

    fn notify(&mut self, _index: usize) {
        match self.shared.core.try_lock() {
            Ok(mut core) => self.shared.carry_on_here(&mut core),
            Err(_) => self.shared.poller.wake(),
        }
    }

    fn reset(&mut self) {
        let mut core = self.shared.lock();
        core.filter = Filter::new(core.permanent_mac);
        core.held = None;
        core.port.reset();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let mut core = self.shared.lock();
        let filter = core.filter.clone();
        let rx_rate = core.rx_limiter.as_mut().map(RateLimiter::save);
        let tx_rate = core.tx_limiter.as_mut().map(RateLimiter::save);
        Section::encode(KIND, VERSION, &NetState { filter, rx_rate, tx_rate })
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let NetState { filter, rx_rate, tx_rate } = match section.version {
            1 => section.decode::<Filter>(KIND, 1)?.into(),
            _ => section.decode(KIND, VERSION)?,
        };
        if filter.unicast.addresses.len() > MAX_TABLE || filter.multicast.addresses.len() > MAX_TABLE {
            return Err(state::Error::Malformed { kind: KIND, reason: "address table is too long".into() });
        }
        let mut core = self.shared.lock();
        core.filter = filter;
        core.held = None;
        let Core { rx_limiter, tx_limiter, .. } = &mut *core;
        for (limiter, levels) in [(rx_limiter, rx_rate), (tx_limiter, tx_rate)] {
            if let (Some(limiter), Some(levels)) = (limiter, levels) {
                limiter.restore(levels);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod rate_tests;
#[cfg(test)]
mod tests;
