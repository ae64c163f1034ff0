//! The machine's network card: its addresses, and the file that says whom to ask for names.

use alloc::format;
use core::time::Duration;

use protocol::{Network, SixNetwork};
use rustix::fs;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use crate::fault::Fault;
use crate::{files, sys};

/// How long a card may take to appear after its driver was loaded.
const CARD_PATIENCE_MS: u32 = 2000;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Gives the card its addresses and the way to other networks, instead of those of `before`.
///
/// # Errors
/// The kernel's: it has no such card or no IPv4.
pub fn configure(network: &Network, before: Option<&Network>) -> Result<(), Fault> {
    let name = &*network.interface;
    let fault = |act| move |errno| Fault::os(act, name, errno);
    let socket =
        socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(fault("configure interface"))?;
    if before.is_some() {
        // The kernel is to tell the network at once: whoever has something for this machine may have heard nothing of it yet.
        files::write(&format!("/proc/sys/net/ipv4/conf/{name}/arp_notify"), "1\n")?;
    }
    let mut waited = 0;
    while let Err(errno) = sys::set_hardware_address(&socket, name, network.mac) {
        if errno != Errno::NODEV || waited >= CARD_PATIENCE_MS {
            return Err(fault("set address of interface")(errno));
        }
        files::sleep(Duration::from_millis(1));
        waited += 1;
    }
    sys::set_mtu(&socket, name, network.mtu).map_err(fault("set mtu of interface"))?;
    // What a program in the machine has set up stays where nothing else is new.
    if before.is_some_and(|before| Network { mac: network.mac, ..before.clone() } == *network) {
        return Ok(());
    }
    let six_setting = |setting: &str| format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
    let had_six = before.is_some_and(|before| before.six.is_some());
    if had_six {
        // Takes all addresses away; those made of the hardware address come back as of the new one.
        files::write(&six_setting("disable_ipv6"), "1\n")?;
        files::write(&six_setting("disable_ipv6"), "0\n")?;
    }
    if network.six.is_some() {
        // The host gives each address to one machine, and none of the others has a say in where the rest of the world is.
        files::write(&six_setting("accept_dad"), "0\n")?;
        files::write(&six_setting("accept_ra"), "0\n")?;
    }
    sys::set_address(&socket, name, network.address, mask(network.prefix))
        .map_err(fault("configure interface"))?;
    sys::interface_up(&socket, name).map_err(fault("bring up interface"))?;
    if let Some(gateway) = network.gateway {
        sys::add_default_route(&socket, gateway).map_err(fault("add default route of interface"))?;
    }
    network.six.as_ref().map_or(Ok(()), |six| configure_six(name, six))
}

fn configure_six(name: &str, network: &SixNetwork) -> Result<(), Fault> {
    let fault = |act| move |errno| Fault::os(act, name, errno);
    let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None)
        .map_err(fault("configure IPv6 of interface"))?;
    sys::add_address6(&socket, name, network.address, network.prefix)
        .map_err(fault("add IPv6 address of interface"))?;
    match network.gateway {
        Some(gateway) => sys::add_default_route6(&socket, name, gateway)
            .map_err(fault("add default IPv6 route of interface")),
        None => Ok(()),
    }
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
    files::write(RESOLV_CONF, &network.resolv_conf)
}

fn mask(prefix: u8) -> [u8; 4] {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_as_many_bits_as_its_prefix_says() {
        assert_eq!([mask(0), mask(24), mask(32)], [[0; 4], [255, 255, 255, 0], [255; 4]]);
    }
}
