//! What a network is made of, and why it cannot be had.

use std::io;
use std::net::SocketAddrV4;

/// Whether the guest reaches servers on this host's loopback, at the gateway's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// It does not.
    #[default]
    Refused,
    /// It does.
    Allowed,
}

/// What a published port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host's that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where the host takes connections.
    pub host: SocketAddrV4,
    /// The guest's port.
    pub guest: u16,
    /// What it carries.
    pub transport: Transport,
}

/// What a [`super::Nat`] is made of.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The address of the guest's card: a guest takes no TCP that is sent to all, and may not have spoken yet.
    pub guest_mac: [u8; 6],
    /// Ports of the host's that lead to the guest.
    pub publish: Vec<Publish>,
    /// Who answers what is asked of [`super::RESOLVER`].
    pub resolver: Option<SocketAddrV4>,
    /// Whether the host's loopback can be reached.
    pub loopback: Loopback,
}

/// Why a [`super::Nat`] cannot be had.
#[derive(Debug)]
pub enum Error {
    /// A published port is taken, or its address is not this host's.
    Publish(Publish, io::Error),
    /// The host gives no epoll or timer descriptor.
    Host(io::Error),
}
