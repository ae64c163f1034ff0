//! UDP and ICMP echo: a socket of the host's for each pair of guest's port (or echo's identifier) and peer.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send, sendto};

use super::host;
use super::packet::{self, MAX_PACKET, Macs};
use crate::Received;

/// How long a pair that says nothing is remembered (RFC 4787, section 4.3, asks for two minutes).
const IDLE: Duration = Duration::from_secs(120);
/// ICMP: type, code, checksum, identifier, sequence number.
const ECHO_HEADER: usize = 8;
const ECHO_REPLY: u8 = 0;
pub const ECHO_REQUEST: u8 = 8;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Udp,
    /// The guest's port is the identifier of its echo requests, the peer's is 0.
    Echo,
}

/// A pair.
pub struct Exchange {
    kind: Kind,
    socket: Socket,
    guest: SocketAddrV4,
    /// Who the guest thinks it speaks to.
    peer: SocketAddrV4,
    used: Instant,
}

enum Socket {
    /// To the peer alone.
    Connected(OwnedFd),
    /// That of a published port, and whom it answers.
    Published(Arc<OwnedFd>, SocketAddrV4),
}

impl Exchange {
    /// The guest speaks to `peer`, which is at `address` for the host.
    ///
    /// # Errors
    /// The host gives no such socket.
    pub fn open(
        kind: Kind,
        guest: SocketAddrV4,
        peer: SocketAddrV4,
        address: SocketAddrV4,
    ) -> io::Result<Self> {
        let socket = match kind {
            Kind::Udp => host::udp(address)?,
            Kind::Echo => host::ping(*address.ip())?,
        };
        Ok(Self { kind, socket: Socket::Connected(socket), guest, peer, used: Instant::now() })
    }

    /// Somebody at `client` has sent to the published port of `socket`; the guest knows him as `peer`.
    pub fn published(
        socket: Arc<OwnedFd>,
        client: SocketAddrV4,
        guest: SocketAddrV4,
        peer: SocketAddrV4,
    ) -> Self {
        let socket = Socket::Published(socket, client);
        Self { kind: Kind::Udp, socket, guest, peer, used: Instant::now() }
    }

    /// The socket to wait for, if it is this pair's own.
    pub fn socket(&self) -> Option<&OwnedFd> {
        match &self.socket {
            Socket::Connected(socket) => Some(socket),
            Socket::Published(..) => None,
        }
    }

    /// When it last said something.
    pub fn used(&self) -> Instant {
        self.used
    }

    /// Whether it can be forgotten.
    pub fn is_idle(&self, now: Instant) -> bool {
        now.duration_since(self.used) >= IDLE
    }

    /// Carries what the guest sends. What the host does not take is lost, as datagrams are.
    pub fn send(&mut self, payload: &[u8]) {
        self.used = Instant::now();
        let sent = match &self.socket {
            Socket::Connected(socket) => send(socket, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Socket::Published(socket, client) => {
                sendto(socket, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, client)
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, peer = %self.peer, "send datagram");
        }
    }

    /// Receives one datagram for the guest. An error of an earlier one is taken and forgotten.
    pub fn emit(&mut self, frame: &mut [u8], macs: Macs) -> Option<Received> {
        let Socket::Connected(socket) = &self.socket else { return None };
        let start = match self.kind {
            Kind::Udp => packet::UDP,
            Kind::Echo => packet::IP,
        };
        let limit = frame.len().min(MAX_PACKET + packet::ETHERNET);
        let len = loop {
            match recv(socket, &mut frame[start..limit], RecvFlags::DONTWAIT) {
                Ok((_, len)) if len <= limit - start => break len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                _ => {}
            }
        };
        self.used = Instant::now();
        match self.kind {
            Kind::Udp => Some(Received::plain(packet::write_udp(frame, macs, self.peer, self.guest, len))),
            Kind::Echo if len >= ECHO_HEADER && frame[start] == ECHO_REPLY => {
                // The host's kernel has put an identifier of its own there.
                frame[start + 4..start + 6].copy_from_slice(&self.guest.port().to_be_bytes());
                let (from, to) = (*self.peer.ip(), *self.guest.ip());
                Some(Received::plain(packet::write_icmp(frame, macs, from, to, len)))
            }
            Kind::Echo => None,
        }
    }
}

/// The identifier of an echo request; `None` if it is something else.
pub fn echo_identifier(message: &[u8]) -> Option<u16> {
    match message {
        [ECHO_REQUEST, 0, _, _, high, low, _, _, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

/// The gateway's own answer to an echo request.
pub fn echo_reply(message: &[u8], macs: Macs, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; packet::IP + message.len()];
    frame[packet::IP..].copy_from_slice(message);
    frame[packet::IP] = ECHO_REPLY;
    packet::write_icmp(&mut frame, macs, from, to, message.len());
    frame
}
