//! What a machine's network card is told.

use alloc::string::String;

use crate::Error;
use crate::wire::{Decoder, Encoder};

/// What [`HostMessage::Network`](crate::HostMessage::Network) carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The interface, e.g. `eth0`.
    pub interface: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Bytes of a packet at most.
    pub mtu: u32,
    /// Its IPv4 address.
    pub address: [u8; 4],
    /// How many bits of it are the network's, at most 32.
    pub prefix: u8,
    /// Who carries packets to other networks, if anybody does.
    pub gateway: Option<[u8; 4]>,
    /// The same over IPv6, where the network has that.
    pub six: Option<SixNetwork>,
    /// The whole of `/etc/resolv.conf`: who is asked for the addresses of names.
    pub resolv_conf: String,
}

/// Of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SixNetwork {
    /// The interface's address.
    pub address: [u8; 16],
    /// How many bits of it are the network's, at most 128.
    pub prefix: u8,
    /// Who carries packets to other networks, if anybody does.
    pub gateway: Option<[u8; 16]>,
}

impl Network {
    pub(crate) fn encode(&self, to: &mut Encoder) {
        let Self { interface, mac, mtu, address, prefix, gateway, six, resolv_conf } = self;
        to.string(interface);
        bytes(mac, to);
        to.u32(*mtu);
        bytes(address, to);
        to.u8(*prefix);
        optional(gateway.as_ref(), to);
        to.bool(six.is_some());
        if let Some(SixNetwork { address, prefix, gateway }) = six {
            bytes(address, to);
            to.u8(*prefix);
            optional(gateway.as_ref(), to);
        }
        to.string(resolv_conf);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Error> {
        Ok(Self {
            interface: from.string("interface")?,
            mac: array(from, "mac")?,
            mtu: from.u32("mtu")?,
            address: array(from, "address")?,
            prefix: bits(from, 32)?,
            gateway: perhaps(from, "gateway")?,
            six: if from.bool("six")? {
                Some(SixNetwork {
                    address: array(from, "address")?,
                    prefix: bits(from, 128)?,
                    gateway: perhaps(from, "gateway")?,
                })
            } else {
                None
            },
            resolv_conf: from.string("resolv_conf")?,
        })
    }
}

fn bytes<const N: usize>(bytes: &[u8; N], to: &mut Encoder) {
    bytes.iter().for_each(|byte| to.u8(*byte));
}

fn optional<const N: usize>(address: Option<&[u8; N]>, to: &mut Encoder) {
    to.bool(address.is_some());
    address.into_iter().for_each(|address| bytes(address, to));
}

fn array<const N: usize>(from: &mut Decoder<'_>, field: &'static str) -> Result<[u8; N], Error> {
    let mut array = [0; N];
    for byte in &mut array {
        *byte = from.u8(field)?;
    }
    Ok(array)
}

fn perhaps<const N: usize>(from: &mut Decoder<'_>, field: &'static str) -> Result<Option<[u8; N]>, Error> {
    from.bool(field)?.then(|| array(from, field)).transpose()
}

fn bits(from: &mut Decoder<'_>, most: u8) -> Result<u8, Error> {
    let fault = "more bits than an address has";
    Some(from.u8("prefix")?).filter(|bits| *bits <= most).ok_or(Error::Malformed { field: "prefix", fault })
}
