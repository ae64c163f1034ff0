//! The network of a container: a namespace of its own, whose one interface ends in what a machine's card would.

use std::io::{PipeReader, PipeWriter};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use container::network::{Addresses, Network};
use container::spec::Spec;
use net::nat::{self, Config};

use super::container::explain;
use super::network;
use super::resolving::Files;
use crate::failure::{Outcome, While};

/// As in a machine.
pub(super) const INTERFACE: &str = "eth0";

/// A network that its container does not use yet.
pub struct Prepared {
    network: Network,
    port: Box<dyn net::Port>,
    files: Files,
}

/// Makes the network of `config`, where `resolv_conf` says whom to ask for names; its published ports are open then.
///
/// # Errors
/// A port is taken, or the host has no tun devices.
pub fn prepare(config: &Config, resolv_conf: &str) -> Outcome<Prepared> {
    let port = network::open(config)?;
    let mask = u32::MAX << (32 - u32::from(nat::PREFIX));
    let addresses = Addresses {
        mac: config.guest_mac,
        own: nat::GUEST,
        mask: Ipv4Addr::from_bits(mask),
        gateway: nat::GATEWAY,
    };
    let network = Network::new(INTERFACE, addresses).map_err(explain)?;
    let files = Files::new(resolv_conf)?;
    Ok(Prepared { network, port, files })
}

impl Prepared {
    /// Puts it into a container's bundle.
    pub fn add_to(&self, spec: &mut Spec) {
        for namespace in spec.linux.iter_mut().flat_map(|linux| &mut linux.namespaces) {
            if namespace.kind == "network" {
                namespace.path = Some(self.network.path());
            }
        }
        spec.mounts.extend(self.files.mounts());
    }

    /// Carries its frames from now on, while the container runs, whose processes hold the namespace. The files are its own, to be
    /// changed when it joins other networks.
    ///
    /// # Errors
    /// The host has no thread.
    pub fn carry(self) -> Outcome<(Carrying, Files)> {
        let act = || "carry the network".to_owned();
        let (end, ending) = std::io::pipe().while_trying(act)?;
        let Prepared { network, port, files } = self;
        let tap = network.into_tap();
        let work = move || carry(&tap, port.as_ref(), &end);
        let thread = std::thread::Builder::new().name("network".into()).spawn(work).while_trying(act)?;
        Ok((Carrying { ending: Some(ending), thread: Some(thread) }, files))
    }
}

fn carry(tap: &OwnedFd, port: &dyn net::Port, end: &PipeReader) {
    if let Err(error) = net::tap::join(tap.as_fd(), port, end.as_fd()) {
        tracing::error!("the network of the container has failed: {error}");
    }
}

/// Frames are carried as long as this lives.
pub struct Carrying {
    ending: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Carrying {
    fn drop(&mut self) {
        drop(self.ending.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the hook.
            let _ = thread.join();
        }
    }
}
