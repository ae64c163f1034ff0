//! A network namespace that is there before its container, with one Ethernet interface whose other end is a descriptor.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result, While};
use crate::sys;

/// The interface's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its own.
    pub own: Ipv4Addr,
    /// Which of its bits all in the network have in common.
    pub mask: Ipv4Addr,
    /// Where to send what is for others.
    pub gateway: Ipv4Addr,
}

/// The namespace, which lives as long as this or a process in it.
#[derive(Debug)]
pub struct Network {
    namespace: OwnedFd,
    tap: OwnedFd,
}

impl Network {
    /// Makes one with the interface `name`.
    ///
    /// # Errors
    /// The host has no `/dev/net/tun`, or this process may not.
    pub fn new(name: &str, addresses: Addresses) -> Result<Self> {
        let name = name.to_owned();
        // A thread is in a network namespace for itself alone; this one ends there.
        let made = std::thread::Builder::new().name("network".into()).spawn(move || make(&name, addresses));
        let made = made.during(|| "start a thread".to_owned())?;
        made.join().unwrap_or_else(|_| Err(Error::refused("network", "the thread that makes it failed")))
    }

    /// The path of the namespace in this process, for a bundle.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.namespace.as_raw_fd()).into()
    }

    /// The other end of the interface: frames behind a virtio card's header of 10 bytes. Without it the interface is gone.
    #[must_use]
    pub fn into_tap(self) -> OwnedFd {
        self.tap
    }
}

fn make(name: &str, addresses: Addresses) -> Result<Network> {
    sys::unshare(libc::CLONE_NEWNET as u64).during(|| "make a network namespace".to_owned())?;
    sys::interface_up("lo").during(|| "bring up the loopback interface".to_owned())?;
    let tap = sys::tap(name).during(|| format!("make the interface {name} by /dev/net/tun"))?;
    let set = || format!("set up the interface {name}");
    sys::interface_mac(name, addresses.mac).during(set)?;
    sys::interface_address(name, addresses.own, addresses.mask).during(set)?;
    sys::interface_up(name).during(set)?;
    sys::default_route(addresses.gateway).during(|| format!("set the route to {}", addresses.gateway))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
        .during(|| "open the network namespace".to_owned())?;
    Ok(Network { namespace, tap })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_out_of_an_interface_that_is_no_interface_of_ours() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let addresses = Addresses {
            mac: [2, 0, 0, 0, 0, 1],
            own: Ipv4Addr::new(10, 0, 2, 15),
            mask: Ipv4Addr::new(255, 255, 255, 0),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
        };
        let network = Network::new("eth0", addresses).unwrap();
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = rustix::fs::stat(network.path()).unwrap().st_ino;
        assert!(!ours.to_string_lossy().contains(&theirs.to_string()));
        // The kernel of a new interface looks for neighbours by itself.
        let tap = network.into_tap();
        let mut wait = [rustix::event::PollFd::new(&tap, rustix::event::PollFlags::IN)];
        let patience = rustix::time::Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut wait, Some(&patience)).unwrap(), 1);
        assert!(rustix::io::read(&tap, &mut [0; 2048]).unwrap() > 10 + 14);
    }
}
