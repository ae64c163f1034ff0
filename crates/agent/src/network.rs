//! The machine's network card: its address, and the files that say whom to ask for names.

use alloc::format;
use alloc::string::ToString;
use core::time::Duration;

use protocol::Network;
use rustix::fs;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use crate::fault::Fault;
use crate::{files, sys};

/// How long a card may take to appear after its driver was loaded.
const CARD_PATIENCE_MS: u32 = 2000;
/// As the kernel calls the only card.
const CARD: &str = "eth0";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Gives the card its address and the way to other networks.
///
/// # Errors
/// The kernel's: it has no such card or no IPv4.
pub fn configure(network: &Network) -> Result<(), Fault> {
    let name = &*network.interface;
    let fault = |act| move |errno| Fault::os(act, name, errno);
    let socket =
        socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(fault("configure interface"))?;
    let mut waited = 0;
    while let Err(errno) = sys::set_address(&socket, name, network.address, mask(network.prefix)) {
        if errno != Errno::NODEV || waited >= CARD_PATIENCE_MS {
            return Err(fault("configure interface")(errno));
        }
        files::sleep(Duration::from_millis(1));
        waited += 1;
    }
    sys::interface_up(&socket, name).map_err(fault("bring up interface"))?;
    sys::add_default_route(&socket, network.gateway).map_err(fault("add default route of interface"))
}

/// Gives the first card, if there is one, an address of its own: locally administered, made from the machine's id.
///
/// # Errors
/// The kernel's.
pub fn own_address(machine_id: [u64; 2]) -> Result<(), Fault> {
    // Asked for a card that is not there, the kernel would start a program to look for its driver.
    if fs::stat(format!("/sys/class/net/{CARD}")).is_err() {
        return Ok(());
    }
    // The kernel is to tell the network at once: whoever has something for this machine may have heard nothing of it yet.
    files::write(&format!("/proc/sys/net/ipv4/conf/{CARD}/arp_notify"), "1\n")?;
    let fault = |errno| Fault::os("set address of interface", CARD, errno);
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(fault)?;
    sys::set_hardware_address(&socket, CARD, hardware_address(machine_id)).map_err(fault)
}

fn hardware_address([_, low]: [u64; 2]) -> [u8; 6] {
    let [.., a, b, c, d, e] = low.to_be_bytes();
    [2, a, b, c, d, e]
}

/// Says in the root of the processes whom to ask for names. The image may have brought another machine's file, or a
/// link to one that a service would write.
///
/// # Errors
/// The kernel's.
pub fn name_server(network: &Network) -> Result<(), Fault> {
    let _ = files::make_dirs("/etc", 0o755);
    match fs::unlink(RESOLV_CONF) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(Fault::os("replace", RESOLV_CONF, errno)),
    }
    let [a, b, c, d] = network.resolver.map(|byte| byte.to_string());
    files::write(RESOLV_CONF, &format!("nameserver {a}.{b}.{c}.{d}\n"))
}

fn mask(prefix: u8) -> [u8; 4] {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_a_local_address_of_one_station_whatever_the_id() {
        assert_eq!(hardware_address([7, 0xffff_ff01_0203_0405]), [2, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_mask_has_as_many_bits_as_its_prefix_says() {
        assert_eq!([mask(0), mask(24), mask(32)], [[0; 4], [255, 255, 255, 0], [255; 4]]);
    }
}
