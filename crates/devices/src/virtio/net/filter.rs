//! Which frames the guest wants (virtio 1.2, sections 5.1.6.5.1 and 5.1.6.5.2).

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net as vnet;

use super::super::Chain;

/// Bytes of an Ethernet address.
pub(super) const MAC_BYTES: usize = 6;
/// Addresses per table; with more, the device takes all frames of that kind, which a driver expects.
pub(super) const MAX_TABLE: usize = 64;

/// An Ethernet address.
pub type Mac = [u8; MAC_BYTES];

/// What the driver has set through the control queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filter {
    pub mac: Mac,
    promiscuous: bool,
    all_unicast: bool,
    all_multicast: bool,
    no_unicast: bool,
    no_multicast: bool,
    no_broadcast: bool,
    pub unicast: Table,
    pub multicast: Table,
}

/// A list of addresses, or all of them if it was too long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    pub addresses: Vec<Mac>,
    overflow: bool,
}

impl Filter {
    /// After a reset everything is taken, for drivers that never say what they want.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_unicast: false,
            all_multicast: false,
            no_unicast: false,
            no_multicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
        }
    }

    /// Whether a frame to `destination` is for the guest.
    pub fn accepts(&self, destination: &Mac) -> bool {
        let is_group = destination[0] & 1 != 0;
        if *destination == [0xff; MAC_BYTES] {
            return self.promiscuous || !self.no_broadcast;
        }
        if is_group {
            return self.promiscuous
                || (!self.no_multicast && (self.all_multicast || self.multicast.contains(destination)));
        }
        self.promiscuous
            || (!self.no_unicast
                && (self.all_unicast || self.mac == *destination || self.unicast.contains(destination)))
    }

    /// Does one command whose arguments are next in `chain`. Whether it was one.
    pub fn command(&mut self, class: u8, command: u8, chain: &mut Chain) -> bool {
        match (u32::from(class), u32::from(command)) {
            (vnet::VIRTIO_NET_CTRL_RX, command) => self.set_mode(command, chain),
            (vnet::VIRTIO_NET_CTRL_MAC, vnet::VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let Some(mac) = chain.read_array() else { return false };
                self.mac = mac;
                true
            }
            (vnet::VIRTIO_NET_CTRL_MAC, vnet::VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let Some(unicast) = Table::read(chain) else { return false };
                let Some(multicast) = Table::read(chain) else { return false };
                (self.unicast, self.multicast) = (unicast, multicast);
                true
            }
            _ => false,
        }
    }

    fn set_mode(&mut self, command: u32, chain: &mut Chain) -> bool {
        let mode = match command {
            vnet::VIRTIO_NET_CTRL_RX_PROMISC => &mut self.promiscuous,
            vnet::VIRTIO_NET_CTRL_RX_ALLMULTI => &mut self.all_multicast,
            vnet::VIRTIO_NET_CTRL_RX_ALLUNI => &mut self.all_unicast,
            vnet::VIRTIO_NET_CTRL_RX_NOMULTI => &mut self.no_multicast,
            vnet::VIRTIO_NET_CTRL_RX_NOUNI => &mut self.no_unicast,
            vnet::VIRTIO_NET_CTRL_RX_NOBCAST => &mut self.no_broadcast,
            _ => return false,
        };
        let Some([on]) = chain.read_array() else { return false };
        *mode = on != 0;
        true
    }
}

impl Table {
    fn contains(&self, mac: &Mac) -> bool {
        self.overflow || self.addresses.contains(mac)
    }

    /// `None` if the chain is shorter than the table says.
    fn read(chain: &mut Chain) -> Option<Self> {
        let entries = u32::from_le_bytes(chain.read_array()?) as usize;
        let bytes = entries.checked_mul(MAC_BYTES).filter(|&bytes| bytes <= chain.readable())?;
        if entries > MAX_TABLE {
            chain.skip_readable(bytes);
            return Some(Self { addresses: Vec::new(), overflow: true });
        }
        let addresses = (0..entries).map(|_| chain.read_array()).collect::<Option<_>>()?;
        Some(Self { addresses, overflow: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn a_filtering_card_takes_its_own_address_broadcasts_and_its_tables() {
        let mut filter = Filter::new(MAC);
        assert!(filter.accepts(&[2, 9, 9, 9, 9, 9]), "promiscuous after reset");
        filter.promiscuous = false;
        filter.multicast.addresses = vec![[1, 0, 0x5e, 0, 0, 1]];
        assert!(filter.accepts(&MAC) && filter.accepts(&[0xff; 6]) && filter.accepts(&[1, 0, 0x5e, 0, 0, 1]));
        assert!(!filter.accepts(&[2, 9, 9, 9, 9, 9]) && !filter.accepts(&[1, 0, 0x5e, 0, 0, 2]));
        filter.no_broadcast = true;
        assert!(!filter.accepts(&[0xff; 6]));
    }
}
