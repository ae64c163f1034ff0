//! Carries packets between the device's queues and its connections.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::super::poller::{Interest, Poller, Ready};
use super::super::{Chain, Signals, Virtqueue};
use super::VsockHost;
use super::connection::{Connection, Fate, MAX_CONNECTIONS, MAX_RESETS, Ports, SavedConnection};
use super::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};

/// Ports the host's side of a connection it asks for is given.
pub(super) const FIRST_EPHEMERAL_PORT: u32 = 1 << 30;

/// How long the end of the device waits for a host that does not read.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

const READ_INTEREST: Interest = Interest::IN.union(Interest::RDHUP).union(Interest::ET);

/// Queues, connections, and what waits to be sent.
pub(super) struct Muxer {
    guest_cid: u64,
    host: Box<dyn VsockHost>,
    poller: Arc<Poller>,
    pub signals: Option<Arc<Signals>>,
    pub rx: Option<Virtqueue>,
    pub tx: Option<Virtqueue>,
    pub event: Option<Virtqueue>,
    /// By the token the poller knows them by, which is never used again.
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    /// Connections that have something to send, in turn.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_token: u64,
    pub next_port: u32,
    /// The guest has to be told that its connections are gone (section 5.10.6.7).
    pub transport_reset: bool,
}

impl Muxer {
    pub fn new(guest_cid: u64, host: Box<dyn VsockHost>, poller: Arc<Poller>) -> Self {
        Self {
            guest_cid,
            host,
            poller,
            signals: None,
            rx: None,
            tx: None,
            event: None,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: 0,
            next_port: FIRST_EPHEMERAL_PORT,
            transport_reset: false,
        }
    }

    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// Ends every connection the guest knows of; what it had sent is still delivered.
    pub fn forget_connections(&mut self) {
        let known: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| !connection.is_unasked() && !connection.lingering)
            .map(|(&token, _)| token)
            .collect();
        for token in known {
            let fate = self.connections.get_mut(&token).map_or(Fate::Gone, Connection::guest_is_gone);
            self.settle(token, fate);
        }
        self.resets.clear();
    }

    /// The connections that can be carried on elsewhere, and the ports of those that the guest is to be told the end of.
    pub fn saved_connections(&self) -> (Vec<SavedConnection>, Vec<(u32, u32)>) {
        let known = self.connections.values().filter(|c| !c.is_unasked() && !c.lingering);
        let (mut saved, mut resets) = (Vec::new(), Vec::new());
        for connection in known {
            match connection.save() {
                Some(connection) => saved.push(connection),
                // Whoever waits for the guest's answer waits here.
                None => resets.push((connection.ports.host, connection.ports.guest)),
            }
        }
        saved.sort_by_key(|connection| (connection.guest, connection.host));
        let waiting = self.resets.iter().filter(|reset| reset.src_cid == HOST_CID);
        resets.extend(waiting.map(|reset| (reset.src_port, reset.dst_port)));
        (saved, resets)
    }

    /// Carries on what was saved. `false` if the host does not: then nothing is.
    pub fn resume(&mut self, saved: Vec<SavedConnection>, resets: &[(u32, u32)]) -> bool {
        for connection in saved {
            let resumed = self
                .host
                .resume(connection.host, connection.guest, &connection.unread)
                .and_then(|stream| self.insert(Connection::resumed(&connection, stream)));
            match resumed {
                Ok(token) => {
                    let fate =
                        self.connections.get_mut(&token).map_or(Fate::Gone, Connection::settle_resumed);
                    self.settle(token, fate);
                }
                Err(error) => {
                    tracing::debug!(port = connection.host, %error, "resume vsock connection");
                    self.forget_connections();
                    return false;
                }
            }
        }
        for &(host, guest) in resets {
            let reset = Header { op: op::RST, src_port: host, dst_port: guest, ..self.host_header() };
            self.resets.push_back(reset);
        }
        true
    }

    /// The device is gone: delivers what the guest had sent to whoever still reads, and drops everything.
    pub fn close(&mut self) {
        for connection in self.connections.values_mut() {
            connection.flush(CLOSE_TIMEOUT);
        }
        self.connections.clear();
        self.by_ports.clear();
    }

    /// Asks the guest for a connection to `port`, carried by `stream`.
    pub fn request(
        &mut self,
        port: u32,
        stream: UnixStream,
        waiter: Sender<io::Result<()>>,
    ) -> io::Result<u64> {
        let ports = loop {
            let ports = Ports { host: self.next_port, guest: port };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
            if !self.by_ports.contains_key(&ports) {
                break ports;
            }
        };
        self.insert(Connection::requested(ports, stream, waiter))
    }

    /// Gives up on a connection the host asked for.
    pub fn abandon(&mut self, token: u64) {
        if let Some(connection) = self.connections.get(&token) {
            let asked = !connection.is_unasked();
            self.settle(token, if asked { Fate::Reset } else { Fate::Gone });
        }
    }

    fn insert(&mut self, connection: Connection) -> io::Result<u64> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return Err(io::Error::other("too many vsock connections"));
        }
        let token = self.next_token;
        self.next_token += 1;
        connection.stream().set_nonblocking(true)?;
        self.poller.add(connection.stream(), token, READ_INTEREST)?;
        self.by_ports.insert(connection.ports, token);
        self.connections.insert(token, connection);
        self.queue(token);
        Ok(token)
    }

    fn remove(&mut self, token: u64, reason: ErrorKind) {
        if let Some(mut connection) = self.connections.remove(&token) {
            connection.answer_waiter(Err(reason.into()));
            if !connection.lingering {
                self.by_ports.remove(&connection.ports);
            }
        }
    }

    /// Puts a connection in line if it has something to send.
    fn queue(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.queued
            && !connection.lingering
            && connection.has_packet()
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Does what has become of a connection, and keeps the poller and the line of senders up to date.
    fn settle(&mut self, token: u64, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match fate {
            Fate::Keep => {}
            Fate::Linger => {
                connection.lingering = true;
                let ports = connection.ports;
                self.by_ports.remove(&ports);
            }
            Fate::Reset => {
                let ports = connection.ports;
                let reset =
                    Header { op: op::RST, src_port: ports.host, dst_port: ports.guest, ..self.host_header() };
                self.resets.push_back(reset);
                return self.remove(token, ErrorKind::ConnectionReset);
            }
            Fate::Gone => return self.remove(token, ErrorKind::ConnectionReset),
        }
        self.watch(token);
        self.queue(token);
    }

    fn watch(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let writable = connection.has_backlog();
        if connection.watches_writable == writable {
            return;
        }
        connection.watches_writable = writable;
        let interest = if writable { READ_INTEREST | Interest::OUT } else { READ_INTEREST };
        if let Err(error) = self.poller.modify(connection.stream(), token, interest) {
            tracing::error!(%error, "watch vsock connection");
        }
    }

    fn host_header(&self) -> Header {
        Header { src_cid: HOST_CID, dst_cid: self.guest_cid, kind: TYPE_STREAM, ..Header::default() }
    }

    /// A socket is ready.
    pub fn socket_ready(&mut self, ready: Ready) {
        let Some(connection) = self.connections.get_mut(&ready.token) else { return };
        if ready.flags.intersects(Interest::IN | Interest::RDHUP | Interest::HUP | Interest::ERR) {
            connection.socket_readable();
        }
        let mut fate = Fate::Keep;
        if ready.flags.intersects(Interest::HUP | Interest::ERR) {
            fate = connection.socket_closed();
        } else if ready.flags.contains(Interest::OUT) {
            fate = connection.socket_writable();
        }
        self.settle(ready.token, fate);
    }

    /// Carries packets in both directions as far as possible without waiting. Whether more can be done at
    /// once: a round is bounded, so that no vCPU is kept by others that refill the rings.
    pub fn process(&mut self) -> bool {
        let more_tx = self.process_tx();
        let more_rx = self.process_rx();
        self.process_event();
        // A full list of resets holds up the guest's packets until there are buffers for the resets.
        more_rx || (more_tx && self.resets.len() < MAX_RESETS)
    }

    /// Takes the guest's packets. Whether a round was not enough.
    fn process_tx(&mut self) -> bool {
        let Some(mut tx) = self.tx.take() else { return false };
        tx.disable_notifications();
        let mut more = true;
        for _ in 0..tx.size() {
            if self.resets.len() >= MAX_RESETS {
                break;
            }
            let Some(mut chain) = tx.pop() else {
                if tx.enable_notifications() {
                    continue;
                }
                more = false;
                break;
            };
            self.packet(&mut chain);
            tx.complete(&chain, 0);
        }
        tx.signal();
        self.tx = Some(tx);
        more
    }

    fn packet(&mut self, chain: &mut Chain) {
        let Some(header) = chain.read_array::<HEADER_BYTES>() else {
            return self.broken("vsock packet without a header");
        };
        let header = Header::parse(&header);
        if header.len as usize > chain.readable() {
            return self.broken("vsock packet shorter than its header says");
        }
        if header.src_cid != self.guest_cid {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let is_ours = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        match self.by_ports.get(&ports).copied().filter(|_| is_ours) {
            Some(token) => {
                let connection = self.connections.get_mut(&token);
                let fate = connection.map_or(Fate::Gone, |connection| connection.packet(&header, chain));
                self.settle(token, fate);
            }
            None if is_ours && header.op == op::REQUEST => self.accept(ports, &header),
            None if header.op == op::RST => {}
            None => self.resets.push_back(header.reset_reply()),
        }
    }

    fn accept(&mut self, ports: Ports, request: &Header) {
        let accepted = self
            .host
            .accept(ports.host, ports.guest)
            .and_then(|stream| self.insert(Connection::accepted(ports, stream, request)));
        if let Err(error) = accepted {
            tracing::debug!(port = ports.host, %error, "refuse vsock connection");
            self.resets.push_back(request.reset_reply());
        }
    }

    fn broken(&self, reason: &str) {
        if let Some(signals) = &self.signals {
            signals.needs_reset(reason);
        }
    }

    /// Fills the guest's buffers. Whether a round was not enough.
    fn process_rx(&mut self) -> bool {
        let Some(mut rx) = self.rx.take() else { return false };
        let mut more = true;
        rx.disable_notifications();
        for _ in 0..rx.size() {
            if self.resets.is_empty() && self.ready.is_empty() {
                more = false;
                break;
            }
            let Some(mut chain) = rx.pop() else {
                if rx.enable_notifications() {
                    continue;
                }
                more = false;
                break;
            };
            if chain.writable() <= HEADER_BYTES {
                self.broken("vsock receive buffer without room for data");
                more = false;
                break;
            }
            match self.next_packet(&mut chain) {
                Some(header) => {
                    chain.write(&header.to_bytes());
                    rx.complete(&chain, HEADER_BYTES as u32 + header.len);
                }
                None => rx.undo_pop(),
            }
        }
        rx.signal();
        self.rx = Some(rx);
        more
    }

    /// The next packet for the guest, its data already in `chain`.
    fn next_packet(&mut self, chain: &mut Chain) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.queued = false;
            let packet = connection.next_packet(chain);
            self.queue(token);
            if let Some(packet) = packet {
                let Header { src_cid, dst_cid, kind, .. } = self.host_header();
                return Some(Header { src_cid, dst_cid, kind, ..packet });
            }
        }
        None
    }

    fn process_event(&mut self) {
        const TRANSPORT_RESET: u32 = 0;
        let Some(event) = self.event.as_mut().filter(|_| self.transport_reset) else { return };
        if let Some(mut chain) = event.pop() {
            let written = chain.write(&TRANSPORT_RESET.to_le_bytes());
            event.complete(&chain, written as u32);
            self.transport_reset = false;
        } else {
            // The event queue's driver notifies whenever it adds buffers.
            let _ = event.enable_notifications();
        }
        event.signal();
    }
}
