//! What the card of a machine is connected to, from before the machine is built until its process ends.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use container::network::{SET_OFFLOADS, set_offloads};
use net::nat::{self, Config};
use net::{Offloads, Port, Tap};

use super::bridged;
use super::cable::{Cable, End};
use super::network::{self, Flags, INTERFACE, Who};
use super::resolving;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};

/// A machine's network. On one with a name its place there is another's once this is gone.
pub enum Connected {
    /// There is no card.
    None,
    /// A card, and nothing at the other end of its cable.
    Unplugged,
    /// Sockets of this process, and what the machine's `/etc/resolv.conf` says.
    User(Config, String),
    /// A bridge of this host; the published ports, so that nobody else takes them.
    Cable { cable: Box<Cable>, _ports: Vec<OwnedFd> },
}

impl Connected {
    /// Connects the card of the machine `who`, if it `has_card`.
    ///
    /// # Errors
    /// There is no such network, an address or a port is taken, or what is asked for needs a card.
    pub fn open(root: &Path, flags: &Flags, who: Who<'_>, has_card: bool) -> Outcome<Self> {
        let wanted = flags.wanted(who)?;
        if !has_card {
            if wanted.is_some() || flags.is_user()? {
                return Err(Failure::new("connect the machine: it has no network card").exit(Exit::Usage));
            }
            return Ok(Self::None);
        }
        let Some(wanted) = wanted else {
            return Ok(if flags.is_none() {
                Self::Unplugged
            } else {
                Self::User(flags.user_config()?, flags.user_resolv_conf())
            });
        };
        let [endpoint] = wanted.endpoints.as_slice() else {
            let text = "connect the machine to several networks: it has one card";
            return Err(Failure::new(text).exit(Exit::Usage).hint("--isolation container can be on several"));
        };
        let ports = bridged::reserve(&wanted.publish)?;
        let cable = Cable::plug(root, &endpoint.network, wanted.lease(endpoint, true), End::Tap, None)?;
        Ok(Self::Cable { cable: Box::new(cable), _ports: ports })
    }

    /// Where the cable of the card ends, once.
    ///
    /// # Errors
    /// A published port is taken.
    pub fn ports(&mut self) -> Outcome<Vec<Box<dyn Port>>> {
        Ok(match self {
            Self::None => Vec::new(),
            Self::Unplugged => vec![Box::new(net::Unplugged)],
            Self::User(config, _) => vec![network::open(config)?],
            Self::Cable { cable, .. } => {
                let tap = cable.take_tap().ok_or_else(|| Failure::new("the cable is in use already"))?;
                let set = |tap: BorrowedFd<'_>, Offloads { checksum, segmentation }| {
                    set_offloads(tap, checksum, segmentation)
                };
                vec![Box::new(Tap::new(tap, Box::new(set)))]
            }
        })
    }

    /// What the sandbox must leave to the machine's process.
    pub fn calls(&self) -> sandbox::Network {
        match self {
            Self::None | Self::Unplugged => sandbox::Network::None,
            Self::User(..) => sandbox::Network::Sockets,
            Self::Cable { .. } => sandbox::Network::Interface(SET_OFFLOADS),
        }
    }

    /// This host's address on it, if that is known there.
    pub fn gateway(&self) -> Option<IpAddr> {
        match self {
            Self::Cable { cable, .. } => Some(cable.place().network.gateway.into()),
            Self::None | Self::Unplugged | Self::User(..) => None,
        }
    }

    /// What the agent is told of it.
    pub fn of_guest(&self) -> Option<protocol::Network> {
        let interface = INTERFACE.to_owned();
        match self {
            Self::None | Self::Unplugged => None,
            Self::User(config, resolv_conf) => Some(protocol::Network {
                interface,
                mac: config.guest_mac,
                mtu: network::MTU,
                address: nat::GUEST.octets(),
                prefix: nat::PREFIX,
                gateway: Some(nat::GATEWAY.octets()),
                six: None,
                resolv_conf: resolv_conf.clone(),
            }),
            Self::Cable { cable, .. } => {
                let place = cable.place();
                let (info, lease) = (&place.network, &place.lease);
                let leads_out = |address: Ipv4Addr| (!info.internal).then(|| address.octets());
                let six =
                    info.six.zip(lease.address6).map(|((subnet, gateway), address)| protocol::SixNetwork {
                        address: address.octets(),
                        prefix: subnet.prefix(),
                        gateway: (!info.internal).then(|| gateway.octets()),
                    });
                Some(protocol::Network {
                    interface,
                    mac: lease.mac,
                    mtu: info.mtu,
                    address: lease.address.octets(),
                    prefix: info.subnet.prefix(),
                    gateway: leads_out(info.gateway),
                    six,
                    resolv_conf: resolving::resolv_conf(&[place]),
                })
            }
        }
    }
}
