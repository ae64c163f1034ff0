//! Published ports: who comes to the host's is taken to the guest's.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recvfrom};

use super::config::{Error, Publish, Transport};
use super::datagram::{Exchange, Kind};
use super::tcp::Connection;
use super::{Flow, GATEWAY, GUEST, Key, LISTENER, MAX_CONNECTIONS, Network, host, packet};
use crate::Received;

/// A published port.
pub struct Listener {
    pub socket: Arc<OwnedFd>,
    pub publish: Publish,
    pub is_pending: bool,
}

/// Opens the ports `published`, which are waited for by `epoll` from now on.
pub fn open(epoll: &OwnedFd, published: &[Publish]) -> Result<Vec<Listener>, Error> {
    let mut listeners = Vec::new();
    for (number, publish) in (0..).zip(published) {
        let opened = match publish.transport {
            Transport::Tcp => host::listen_tcp(publish.host),
            Transport::Udp => host::bind_udp(publish.host),
        };
        let socket = Arc::new(opened.map_err(|error| Error::Publish(*publish, error))?);
        let (token, edge) = (epoll::EventData::new_u64(LISTENER | number), epoll::EventFlags::ET);
        epoll::add(epoll, &socket, token, epoll::EventFlags::IN | edge)
            .map_err(|error| Error::Host(error.into()))?;
        listeners.push(Listener { socket, publish: *publish, is_pending: false });
    }
    Ok(listeners)
}

impl Network {
    /// As whom the guest knows a client of the host's; one on the loopback, as the gateway.
    fn peer_of(client: SocketAddrV4) -> SocketAddrV4 {
        if client.ip().is_loopback() { SocketAddrV4::new(GATEWAY, client.port()) } else { client }
    }

    pub(super) fn take_connection(&mut self, number: usize) -> Option<Received> {
        let listener = &self.listeners[number];
        let guest = SocketAddrV4::new(GUEST, listener.publish.guest);
        let accepted = acceptfrom_with(&listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        let (socket, client) = match accepted {
            Ok((socket, client)) => (socket, client.and_then(|client| SocketAddrV4::try_from(client).ok())?),
            Err(Errno::WOULDBLOCK) => return None,
            Err(error) => {
                tracing::debug!(%error, "accept connection to published port");
                return None;
            }
        };
        self.queue_listener(number);
        let peer = Self::peer_of(client);
        let key = Key { kind: None, port: guest.port(), peer };
        if self.connections < MAX_CONNECTIONS && !self.index.contains_key(&key) {
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            let first = self.first_number(&key);
            let connection = Connection::from_host(socket.into(), guest, peer, first);
            if let Some(slot) = self.add(key, Flow::Connection(Box::new(connection))) {
                self.queue(slot);
            }
        }
        None
    }

    pub(super) fn take_datagram(&mut self, number: usize, frame: &mut [u8]) -> Option<Received> {
        let listener = &self.listeners[number];
        let guest = SocketAddrV4::new(GUEST, listener.publish.guest);
        let socket = listener.socket.clone();
        let limit = frame.len().min(packet::MAX_PACKET + packet::ETHERNET);
        let received = recvfrom(&socket, &mut frame[packet::UDP..limit], RecvFlags::DONTWAIT);
        let (_, len, client) = received.ok()?;
        self.queue_listener(number);
        let client = client.and_then(|client| SocketAddrV4::try_from(client).ok())?;
        let peer = Self::peer_of(client);
        let key = Key { kind: Some(Kind::Udp), port: guest.port(), peer };
        if !self.index.contains_key(&key) {
            self.make_room();
            self.add(key, Flow::Exchange(Exchange::published(socket, client, guest, peer)))?;
        }
        Some(Received::plain(packet::write_udp(frame, self.macs, peer, guest, len)))
    }
}
