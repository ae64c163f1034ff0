//! The saved form of a connection.

use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use rustix::io::ioctl_fionread;
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};

use super::super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::{Connection, Fate, MAX_CONNECTIONS, MAX_RESETS, Pending, Ports, State};

/// A connection that was open, saved. What the guest has sent counts as read: the original's host reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::virtio::vsock) struct SavedConnection {
    pub host: u32,
    pub guest: u32,
    response: bool,
    credit_request: bool,
    received: u32,
    guest_sends: bool,
    host_receives: bool,
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    host_sends: bool,
    guest_receives: bool,
    told_shutdown: u32,
    credit_requested: bool,
    /// What the host has sent and the guest was not given yet.
    pub unread: Vec<u8>,
}

/// Whether saved connections can be those of one device.
pub(in crate::virtio::vsock) fn check(
    connections: &[SavedConnection],
    resets: &[(u32, u32)],
) -> Result<(), &'static str> {
    if connections.len() > MAX_CONNECTIONS || resets.len() > MAX_CONNECTIONS + MAX_RESETS {
        return Err("more connections than a device has");
    }
    let mut ports: Vec<_> = connections.iter().map(|saved| (saved.host, saved.guest)).collect();
    ports.sort_unstable();
    if ports.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("two connections between the same ports");
    }
    if connections.iter().any(|saved| saved.told_shutdown & !(SHUTDOWN_SEND | SHUTDOWN_RECEIVE) != 0) {
        return Err("unknown shutdown flags");
    }
    Ok(())
}

impl Connection {
    /// Its saved form; nothing for one that the guest has not agreed to.
    pub fn save(&self) -> Option<SavedConnection> {
        if self.state != State::Open {
            return None;
        }
        let Pending { request: _, response, credit_update: _, credit_request } = self.pending;
        Some(SavedConnection {
            host: self.ports.host,
            guest: self.ports.guest,
            response,
            credit_request,
            received: self.received.0,
            guest_sends: self.guest_sends,
            host_receives: self.host_receives,
            sent: self.sent.0,
            guest_buffer: self.guest_buffer,
            guest_forwarded: self.guest_forwarded.0,
            host_sends: self.host_sends,
            guest_receives: self.guest_receives,
            told_shutdown: self.told_shutdown,
            credit_requested: self.credit_requested,
            unread: if self.host_sends { self.peek() } else { Vec::new() },
        })
    }

    /// What the socket holds for the guest, which stays there.
    fn peek(&self) -> Vec<u8> {
        let held = ioctl_fionread(&self.stream).unwrap_or(0);
        let mut bytes = vec![0; usize::try_from(held).unwrap_or(0)];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let count = if bytes.is_empty() {
            0
        } else {
            recv(&self.stream, &mut bytes[..], flags).map_or(0, |(count, _)| count)
        };
        bytes.truncate(count);
        bytes
    }

    /// The connection that was saved, carried by `stream` from now on.
    pub fn resumed(saved: &SavedConnection, stream: UnixStream) -> Self {
        let mut connection = Self::new(Ports { host: saved.host, guest: saved.guest }, stream, State::Open);
        connection.pending = Pending {
            request: false,
            response: saved.response,
            // Its buffer is empty now.
            credit_update: true,
            credit_request: saved.credit_request,
        };
        connection.received = Wrapping(saved.received);
        connection.forwarded = Wrapping(saved.received);
        connection.guest_sends = saved.guest_sends;
        connection.host_receives = saved.host_receives;
        connection.sent = Wrapping(saved.sent);
        connection.guest_buffer = saved.guest_buffer;
        connection.guest_forwarded = Wrapping(saved.guest_forwarded);
        connection.host_sends = saved.host_sends;
        connection.guest_receives = saved.guest_receives;
        connection.told_shutdown = saved.told_shutdown;
        connection.credit_requested = saved.credit_requested;
        connection.readable = true;
        connection
    }

    /// Does to the new socket of a connection that was resumed what had been done to the old one.
    pub fn settle_resumed(&mut self) -> Fate {
        if !self.guest_receives {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.after_drain()
    }
}
