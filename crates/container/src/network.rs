//! Network namespaces that are there before their container, and Ethernet interfaces whose other end is a descriptor.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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

/// A network namespace, which lives as long as this or a process in it.
#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
}

impl Namespace {
    /// Makes one that has nothing but a loopback interface, and has `set_up` done in it, by a thread of its own: programs
    /// which that starts are in it too.
    ///
    /// # Errors
    /// This process may not, or what `set_up` says.
    pub fn new<T: Send + 'static>(
        set_up: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<(Self, T)> {
        Self::with(move || set_up().during(|| "set up a network namespace".to_owned()))
    }

    fn with<T: Send + 'static>(set_up: impl FnOnce() -> Result<T> + Send + 'static) -> Result<(Self, T)> {
        let work = move || {
            sys::unshare(libc::CLONE_NEWNET as u64).during(|| "make a network namespace".to_owned())?;
            sys::interface_up("lo").during(|| "bring up the loopback interface".to_owned())?;
            let done = set_up()?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
                .during(|| "open the network namespace".to_owned())?;
            Ok((Self { file }, done))
        };
        in_a_thread(work)
    }

    /// That of a process.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty()).during(|| format!("open {path}"))?;
        Ok(Self { file })
    }

    /// Has `act` done in the one that `file` is, by a thread of its own: programs which that starts are in it too.
    ///
    /// # Errors
    /// This process may not, or what `act` says.
    pub fn enter<T: Send + 'static>(
        file: OwnedFd,
        act: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let work = move || {
            sys::enter_network(file.as_fd()).during(|| "enter a network namespace".to_owned())?;
            act().during(|| "set up an interface".to_owned())
        };
        in_a_thread(work)
    }

    /// The same once more.
    ///
    /// # Errors
    /// This process has no descriptor left.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone().during(|| "hold a network namespace".to_owned())?;
        Ok(Self { file })
    }

    /// Its path in this process, for a bundle.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

impl From<Namespace> for OwnedFd {
    fn from(namespace: Namespace) -> Self {
        namespace.file
    }
}

impl From<OwnedFd> for Namespace {
    /// One that is open already.
    fn from(file: OwnedFd) -> Self {
        Self { file }
    }
}

/// A thread is in a network namespace for itself alone; this one ends there.
fn in_a_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = std::thread::Builder::new().name("network".into()).spawn(work);
    let thread = thread.during(|| "start a thread".to_owned())?;
    thread.join().unwrap_or_else(|_| Err(Error::refused("network", "the thread that makes it failed")))
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// An interface of this process's network namespace, and its other end: frames behind a virtio card's header of 10 bytes. The
/// interface goes with the last copy of that.
///
/// # Errors
/// The host has no `/dev/net/tun`, the name is taken, or this process may not.
pub fn tap(name: &str) -> Result<OwnedFd> {
    sys::tap(name).during(|| format!("make the interface {name} by /dev/net/tun"))
}

/// The request that [`set_offloads`] makes, for a filter of system calls.
pub const SET_OFFLOADS: u64 = sys::SET_OFFLOAD;

/// Says what the kernel may leave undone in frames that the other end of an interface gets: checksums, and the segmentation of
/// TCP over IPv4.
///
/// # Errors
/// It is none.
pub fn set_offloads(tap: BorrowedFd<'_>, checksum: bool, segmentation: bool) -> io::Result<()> {
    sys::tap_offloads(tap, checksum, segmentation)
}

/// A namespace whose interface ends in this process.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    tap: OwnedFd,
}

impl Network {
    /// Makes one with the interface `name`.
    ///
    /// # Errors
    /// The host has no `/dev/net/tun`, or this process may not.
    pub fn new(name: &str, addresses: Addresses) -> Result<Self> {
        let name = name.to_owned();
        let (namespace, tap) = Namespace::with(move || make(&name, addresses))?;
        Ok(Self { namespace, tap })
    }

    /// The path of the namespace in this process, for a bundle.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.namespace.path()
    }

    /// The other end of the interface: frames behind a virtio card's header of 10 bytes. Without it the interface is gone.
    #[must_use]
    pub fn into_tap(self) -> OwnedFd {
        self.tap
    }
}

fn make(name: &str, addresses: Addresses) -> Result<OwnedFd> {
    let tap = tap(name)?;
    let set = || format!("set up the interface {name}");
    set_offloads(tap.as_fd(), true, true).during(set)?;
    sys::interface_mac(name, addresses.mac).during(set)?;
    sys::interface_address(name, addresses.own, addresses.mask).during(set)?;
    sys::interface_up(name).during(set)?;
    sys::default_route(addresses.gateway).during(|| format!("set the route to {}", addresses.gateway))?;
    Ok(tap)
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
