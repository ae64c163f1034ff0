//! A network of one guest that needs no privilege: what the guest sends leaves through ordinary sockets of this process.
//!
//! ```text
//! guest 10.0.2.15 ─── gateway 10.0.2.2 ─── sockets ─── wherever this process may connect to
//!                  ╰─ resolver 10.0.2.3 ── the host's own name server
//! ```
//! It has no thread and no queue between guest and sockets. A frame of the guest is dealt with where it is sent; a frame for
//! the guest is made when its card has room for it, from what the sockets hold then, so that a slow guest slows its peers
//! down. Whoever has something to say has a turn after everybody else ([`Network::pending`]): one frame each.
//!
//! What a guest must not reach: this host's loopback, unless that is allowed, as the gateway's address; link-local addresses
//! (where clouds keep their credentials), multicast and broadcast. Tables are bounded, so that a flood takes descriptors and
//! memory of no one else.
//!
//! The agent configures a guest of ours; one that knows no agent asks for its address (`dhcp`).
//!
//! Reading order: `config`, this file, `tcp`, `datagram`, `publish`, `dhcp`, `packet`, `host`.
//!
//! Known omissions: IPv6, fragments, ICMP other than echo.

mod config;
mod datagram;
mod dhcp;
mod host;
mod packet;
mod publish;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use self::datagram::{Exchange, Kind};
use self::packet::{Frame, Ipv4, Macs, Tcp, Udp, flag, protocol};
use self::publish::Listener;
use self::tcp::{Connection, Fate};
use crate::{Link, MAX_FRAME, Offloads, Port, Received, Unfinished};

pub use self::config::{Config, Error, Loopback, Publish, Transport};
pub use self::host::resolver;

/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway's.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// That of the name server.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Bits of these addresses that all have in common.
pub const PREFIX: u8 = 24;

const OUR_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
/// Connections and pairs at most: together fewer than the 1024 files a process usually may have open, because the
/// guest's streams need some too.
const MAX_CONNECTIONS: usize = 512;
const MAX_EXCHANGES: usize = 256;
/// Answers to what needs no state, which wait for the guest to have room.
const MAX_REPLIES: usize = 256;
/// Longest echo request that the gateway answers: an answer waits in memory.
const MAX_ECHO: usize = 2048;
/// Frames for the guest after which sockets are asked again though others have more to say.
const ASK_AFTER: u32 = 16;
const TICK: Duration = Duration::from_millis(250);

const EVENTS_AT_ONCE: usize = 64;
/// Tokens of epoll: of slots, whose index is below, and of others.
const TIMER: u64 = u64::MAX;
const LISTENER: u64 = 1 << 63;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// Without one it is TCP.
    kind: Option<Kind>,
    port: u16,
    peer: SocketAddrV4,
}

enum Flow {
    Connection(Box<Connection>),
    Exchange(Exchange),
}

/// A place in the table; `generation` tells its tenants apart.
#[derive(Default)]
struct Slot {
    generation: u32,
    is_pending: bool,
    flow: Option<(Key, Flow)>,
}

/// Who may have something for the guest.
#[derive(Clone, Copy)]
enum Turn {
    Slot(usize),
    Listener(usize),
}

/// The network, as a port: whoever uses it takes turns.
pub struct Nat {
    epoll: Arc<OwnedFd>,
    network: Mutex<Network>,
}

struct Network {
    epoll: Arc<OwnedFd>,
    timer: OwnedFd,
    timer_is_on: bool,
    resolver: Option<SocketAddrV4>,
    loopback: Loopback,
    offloads: Offloads,
    macs: Macs,
    slots: Vec<Slot>,
    free: Vec<usize>,
    index: HashMap<Key, usize>,
    connections: usize,
    listeners: Vec<Listener>,
    pending: VecDeque<Turn>,
    replies: VecDeque<Vec<u8>>,
    since_asked: u32,
    numbers: RandomState,
    started: Instant,
}

impl Nat {
    /// The network of `config`, whose published ports are open from now on.
    ///
    /// # Errors
    /// A port is taken, or the host has no descriptors left.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let host = |error: rustix::io::Errno| Error::Host(error.into());
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(host)?);
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).map_err(host)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN).map_err(host)?;
        let listeners = publish::open(&epoll, &config.publish)?;
        let network = Network {
            epoll: epoll.clone(),
            timer,
            timer_is_on: false,
            resolver: config.resolver,
            loopback: config.loopback,
            offloads: Offloads::default(),
            macs: Macs { guest: config.guest_mac, ours: OUR_MAC },
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            connections: 0,
            listeners,
            pending: VecDeque::new(),
            replies: VecDeque::new(),
            since_asked: 0,
            numbers: RandomState::new(),
            started: Instant::now(),
        };
        Ok(Self { epoll, network: Mutex::new(network) })
    }

    fn lock(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// Where the host finds what the guest calls `peer`; `None` if the guest must not reach it.
    fn address(&self, peer: SocketAddrV4) -> Option<SocketAddrV4> {
        let ip = *peer.ip();
        if ip == RESOLVER {
            return self.resolver.filter(|_| peer.port() == 53);
        }
        if ip == GATEWAY {
            let allowed = self.loopback == Loopback::Allowed;
            return allowed.then(|| SocketAddrV4::new(Ipv4Addr::LOCALHOST, peer.port()));
        }
        // 0.0.0.0/8 is another name of this host for Linux; 240.0.0.0/4 ends in the broadcast address.
        let is_ours = ip.octets()[..3] == GUEST.octets()[..3];
        let first = ip.octets()[0];
        let refused = is_ours || ip.is_loopback() || ip.is_link_local() || first == 0 || first >= 224;
        (!refused).then_some(peer)
    }

    fn reply(&mut self, frame: Vec<u8>) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(frame);
        }
    }

    fn handle(&mut self, frame: &[u8]) {
        match Frame::parse(frame) {
            Some(Frame::ArpRequest { sender_mac, sender, target }) => {
                self.macs.guest = sender_mac;
                if target == GATEWAY || target == RESOLVER {
                    self.reply(packet::arp_reply(self.macs, sender, target));
                }
            }
            Some(Frame::Ipv4 { packet, .. }) if dhcp::is_asked(&packet) => {
                if let Some(frame) = dhcp::answer(&packet, self.resolver.is_some(), self.macs.ours) {
                    self.reply(frame);
                }
            }
            Some(Frame::Ipv4 { source_mac, packet }) if packet.source == GUEST => {
                self.macs.guest = source_mac;
                match packet.protocol {
                    protocol::TCP => self.handle_tcp(&packet),
                    protocol::UDP => self.handle_udp(&packet),
                    protocol::ICMP => self.handle_icmp(&packet),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn handle_tcp(&mut self, packet: &Ipv4) {
        let Some(segment) = Tcp::parse(packet.payload) else { return };
        let guest = SocketAddrV4::new(GUEST, segment.source);
        let peer = SocketAddrV4::new(packet.destination, segment.destination);
        let key = Key { kind: None, port: segment.source, peer };
        if let Some(&slot) = self.index.get(&key) {
            let Some((_, Flow::Connection(connection))) = &mut self.slots[slot].flow else { return };
            let fate = connection.segment(&segment);
            return self.settle(slot, fate);
        }
        let asks = segment.has(flag::SYN) && !segment.has(flag::ACK) && !segment.has(flag::RST);
        if !(asks && self.connect(key, guest, &segment))
            && let Some(frame) = tcp::refuse(guest, peer, &segment, self.macs)
        {
            self.reply(frame);
        }
    }

    /// Whether the host tries to connect where the guest wants to.
    fn connect(&mut self, key: Key, guest: SocketAddrV4, syn: &Tcp) -> bool {
        if self.connections == MAX_CONNECTIONS {
            return false;
        }
        let Some(address) = self.address(key.peer) else { return false };
        match host::tcp(address) {
            Ok(socket) => {
                let first = self.first_number(&key);
                let socket = TcpStream::from(socket);
                let connection = Connection::from_guest(socket, guest, key.peer, first, syn);
                self.add(key, Flow::Connection(Box::new(connection))).is_some()
            }
            Err(error) => {
                tracing::debug!(%error, peer = %key.peer, "connect");
                false
            }
        }
    }

    /// The first sequence number of a connection (RFC 6528).
    fn first_number(&self, key: &Key) -> u32 {
        let clock = self.started.elapsed().as_micros() / 4;
        (self.numbers.hash_one(key) as u32).wrapping_add(clock as u32)
    }

    fn handle_udp(&mut self, packet: &Ipv4) {
        let Some(datagram) = Udp::parse(packet.payload) else { return };
        let peer = SocketAddrV4::new(packet.destination, datagram.destination);
        self.exchange(Kind::Udp, datagram.source, peer, datagram.payload);
    }

    fn handle_icmp(&mut self, packet: &Ipv4) {
        let Some(identifier) = datagram::echo_identifier(packet.payload) else { return };
        if packet.destination == GATEWAY {
            if packet.payload.len() <= MAX_ECHO {
                self.reply(datagram::echo_reply(packet.payload, self.macs, GATEWAY, GUEST));
            }
            return;
        }
        self.exchange(Kind::Echo, identifier, SocketAddrV4::new(packet.destination, 0), packet.payload);
    }

    fn exchange(&mut self, kind: Kind, port: u16, peer: SocketAddrV4, payload: &[u8]) {
        let key = Key { kind: Some(kind), port, peer };
        let slot = match self.index.get(&key) {
            Some(slot) => Some(*slot),
            None => self.address(peer).and_then(|address| {
                self.make_room();
                match Exchange::open(kind, SocketAddrV4::new(GUEST, port), peer, address) {
                    Ok(exchange) => self.add(key, Flow::Exchange(exchange)),
                    Err(error) => {
                        tracing::debug!(%error, %peer, "open datagram socket");
                        None
                    }
                }
            }),
        };
        if let Some(slot) = slot
            && let Some((_, Flow::Exchange(exchange))) = &mut self.slots[slot].flow
        {
            exchange.send(payload);
        }
    }

    /// Forgets the pair that has been silent for longest if there are too many.
    fn make_room(&mut self) {
        if self.index.len() - self.connections < MAX_EXCHANGES {
            return;
        }
        let used = self.slots.iter().enumerate().filter_map(|(slot, entry)| match &entry.flow {
            Some((_, Flow::Exchange(exchange))) => Some((exchange.used(), slot)),
            _ => None,
        });
        if let Some((_, slot)) = used.min() {
            self.remove(slot);
        }
    }

    /// Puts a flow into the table and its socket among those that are waited for.
    fn add(&mut self, key: Key, flow: Flow) -> Option<usize> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let entry = &mut self.slots[slot];
        entry.generation = (entry.generation + 1) & 0x3fff_ffff;
        let token = u64::from(entry.generation) << 32 | slot as u64;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let socket = match &flow {
            Flow::Connection(connection) => Some(connection.socket()),
            Flow::Exchange(exchange) => exchange.socket().map(AsFd::as_fd),
        };
        if let Some(socket) = socket
            && let Err(error) = epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags)
        {
            tracing::debug!(%error, "wait for socket");
            self.free.push(slot);
            return None;
        }
        self.connections += usize::from(matches!(flow, Flow::Connection(_)));
        entry.flow = Some((key, flow));
        self.index.insert(key, slot);
        self.run_timer(true);
        Some(slot)
    }

    /// Closing the socket ends the waiting for it.
    fn remove(&mut self, slot: usize) {
        if let Some((key, flow)) = self.slots[slot].flow.take() {
            self.index.remove(&key);
            self.connections -= usize::from(matches!(flow, Flow::Connection(_)));
            self.free.push(slot);
        }
    }

    fn run_timer(&mut self, on: bool) {
        if std::mem::replace(&mut self.timer_is_on, on) == on {
            return;
        }
        let every = if on { TICK } else { Duration::ZERO };
        let every = Timespec { tv_sec: 0, tv_nsec: every.subsec_nanos().into() };
        let when = Itimerspec { it_interval: every, it_value: every };
        if let Err(error) = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &when) {
            tracing::error!(%error, "set timer of network");
        }
    }

    /// Lets a flow have a turn, or ends it.
    fn settle(&mut self, slot: usize, fate: Fate) {
        match fate {
            Fate::Lives => self.queue(slot),
            Fate::Over => self.remove(slot),
            Fate::Reset => {
                if let Some((_, Flow::Connection(connection))) = &self.slots[slot].flow {
                    let mut frame = vec![0; packet::TCP];
                    connection.reset(&mut frame, self.macs);
                    self.reply(frame);
                }
                self.remove(slot);
            }
        }
    }

    fn queue(&mut self, slot: usize) {
        if !std::mem::replace(&mut self.slots[slot].is_pending, true) {
            self.pending.push_back(Turn::Slot(slot));
        }
    }

    /// Asks which sockets have something. Whether any had.
    fn ask(&mut self) -> bool {
        self.since_asked = 0;
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "wait for sockets of network"),
        }
        for event in &events {
            match event.data.u64() {
                TIMER => self.tick(),
                token if token & LISTENER != 0 => self.queue_listener((token & !LISTENER) as usize),
                token => self.moved(token as u32 as usize, (token >> 32) as u32),
            }
        }
        !events.is_empty()
    }

    fn queue_listener(&mut self, number: usize) {
        if let Some(listener) = self.listeners.get_mut(number)
            && !std::mem::replace(&mut listener.is_pending, true)
        {
            self.pending.push_back(Turn::Listener(number));
        }
    }

    fn moved(&mut self, slot: usize, generation: u32) {
        let Some(entry) = self.slots.get_mut(slot).filter(|entry| entry.generation == generation) else {
            return;
        };
        let fate = match &mut entry.flow {
            Some((_, Flow::Connection(connection))) => connection.host_moved(),
            Some((_, Flow::Exchange(_))) => Fate::Lives,
            None => return,
        };
        self.settle(slot, fate);
    }

    fn tick(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let now = Instant::now();
        for slot in 0..self.slots.len() {
            match &mut self.slots[slot].flow {
                Some((_, Flow::Connection(connection))) => {
                    let fate = connection.tick(now);
                    self.settle(slot, fate);
                }
                Some((_, Flow::Exchange(exchange))) if exchange.is_idle(now) => self.remove(slot),
                _ => {}
            }
        }
        if self.index.is_empty() {
            self.run_timer(false);
        }
    }

    /// Ends everything that goes on.
    fn forget(&mut self) {
        (0..self.slots.len()).for_each(|slot| self.remove(slot));
        self.replies.clear();
    }

    /// The next frame for the guest, into `frame`, which has room for [`MAX_FRAME`] bytes.
    fn next_frame(&mut self, frame: &mut [u8]) -> Option<Received> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                frame[..reply.len()].copy_from_slice(&reply);
                return Some(Received::plain(reply.len()));
            }
            if self.since_asked >= ASK_AFTER {
                self.ask();
            }
            while let Some(turn) = self.pending.pop_front() {
                let received = self.serve(turn, frame);
                if received.is_some() {
                    self.since_asked += 1;
                    return received;
                }
            }
            if self.replies.is_empty() && !self.ask() {
                return None;
            }
        }
    }

    fn serve(&mut self, turn: Turn, frame: &mut [u8]) -> Option<Received> {
        match turn {
            Turn::Listener(number) => {
                self.listeners[number].is_pending = false;
                match self.listeners[number].publish.transport {
                    Transport::Tcp => self.take_connection(number),
                    Transport::Udp => self.take_datagram(number, frame),
                }
            }
            Turn::Slot(slot) => {
                let entry = &mut self.slots[slot];
                entry.is_pending = false;
                let (received, fate) = match &mut entry.flow {
                    None => return None,
                    Some((_, Flow::Connection(connection))) => {
                        connection.emit(frame, self.macs, self.offloads)
                    }
                    Some((_, Flow::Exchange(exchange))) => (exchange.emit(frame, self.macs), Fate::Lives),
                };
                if received.is_some() || fate != Fate::Lives {
                    self.settle(slot, fate);
                }
                received
            }
        }
    }
}

impl Port for Nat {
    fn link(&self) -> Link {
        Link::Up
    }

    fn accept(&self, offloads: Offloads) {
        self.lock().offloads = offloads;
    }

    fn reset(&self) {
        self.lock().forget();
    }

    fn send(&self, frame: &[u8], _left: Unfinished) -> io::Result<()> {
        self.lock().handle(frame);
        Ok(())
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<Received>> {
        if frame.len() < MAX_FRAME {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.lock().next_frame(frame))
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}
