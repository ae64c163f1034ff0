//! A container on a network with a name: a cable to the network's bridge, and an address that goes with the container.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use container::network::Namespace;
use container::spec::{Mount, Spec};
use container::template;
use net::nat::Publish;
use rustix::net::{AddressFamily, SocketType};
use workload::networks::{Lease, Published};

use super::container::explain;
use super::container_network::{INTERFACE, RESOLV_CONF};
use crate::bridge;
use crate::cli::Global;
use crate::commands::network as networks;
use crate::failure::{Failure, Outcome, While};

const HOSTS: &str = "/etc/hosts";

/// What a container wants of its network.
pub struct Wanted<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The address, if not any.
    pub address: Option<Ipv4Addr>,
    /// Servers of names, if not the host's.
    pub dns: &'a [Ipv4Addr],
    /// Ports of the host that lead to it.
    pub publish: Vec<Publish>,
    /// The workload.
    pub workload: &'a str,
    /// What others call it.
    pub names: Vec<String>,
}

/// A container's place on its network, which is another's once this is gone.
pub struct Bridged {
    namespace: Namespace,
    resolv_conf: tempfile::NamedTempFile,
    lease: Lease,
    /// Ports of the host, so that nobody else takes them.
    _ports: Vec<std::os::fd::OwnedFd>,
}

/// Connects a namespace for the container.
///
/// # Errors
/// There is no such network, the address or a port is taken, or the host is not as it should be.
pub fn prepare(global: &Global, wanted: &Wanted<'_>) -> Outcome<Bridged> {
    let all = networks::open(global)?;
    let act = || format!("connect to network {:?}", wanted.network);
    let ports = wanted.publish.iter().map(reserve).collect::<Outcome<_>>()?;
    let published = |publish: &Publish| Published {
        host: publish.host,
        port: publish.guest,
        transport: transport(publish).to_owned(),
    };
    let publish: Vec<_> = wanted.publish.iter().map(published).collect();
    let mut resolv_conf = tempfile::NamedTempFile::new().while_trying(act)?;
    resolv_conf.write_all(resolvers(wanted.dns).as_bytes()).while_trying(act)?;

    let locked = all.lock().while_trying(act)?;
    let network = networks::find(&all, wanted.network)?;
    let who = (wanted.workload, &*wanted.names);
    let lease = all.lease(&locked, &network, wanted.address, who, &publish).while_trying(act)?;
    let cleared = bridge::clear(lease.info()).while_trying(act);
    let made = cleared.and_then(|()| cable(&lease)).and_then(|namespace| {
        bridge::restore(network.info(), &network.leases(&locked).while_trying(act)?)?;
        Ok(namespace)
    });
    // Giving the address back takes the lock.
    drop(locked);
    Ok(Bridged { namespace: made?, resolv_conf, lease, _ports: ports })
}

fn cable(lease: &Lease) -> Outcome<Namespace> {
    let (info, lease) = (lease.network().info().clone(), lease.info().clone());
    let made = Namespace::new(move || bridge::connect(INTERFACE, &info, &lease));
    Ok(made.map_err(explain)?.0)
}

fn transport(publish: &Publish) -> &'static str {
    match publish.transport {
        net::nat::Transport::Tcp => "tcp",
        net::nat::Transport::Udp => "udp",
    }
}

/// A socket that has the port and does nothing with it: rules lead packets elsewhere before it sees them.
fn reserve(publish: &Publish) -> Outcome<std::os::fd::OwnedFd> {
    let kind = match publish.transport {
        net::nat::Transport::Tcp => SocketType::STREAM,
        net::nat::Transport::Udp => SocketType::DGRAM,
    };
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let host: SocketAddrV4 = publish.host;
    let bound = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)
        .and_then(|socket| rustix::net::bind(&socket, &host).map(|()| socket));
    bound.map_err(|error| {
        let hint = "another port of this host: -p HOSTPORT:PORT; ss -lnp shows who has this one";
        Failure::because(format!("publish port {host}"), error).hint(hint)
    })
}

/// The text of a `resolv.conf`. What this host reaches on its loopback a container does not.
fn resolvers(dns: &[Ipv4Addr]) -> String {
    if !dns.is_empty() {
        return dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    }
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let is_for_us = |line: &&str| !line.trim_start().strip_prefix("nameserver").is_some_and(is_loopback);
    text.lines().filter(is_for_us).map(|line| format!("{line}\n")).collect()
}

fn is_loopback(server: &str) -> bool {
    server.trim().parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Bridged {
    /// Puts it into a container's bundle.
    pub fn add_to(&self, spec: &mut Spec) {
        for namespace in spec.linux.iter_mut().flat_map(|linux| &mut linux.namespaces) {
            if namespace.kind == "network" {
                namespace.path = Some(self.namespace.path());
            }
        }
        spec.mounts.push(file(RESOLV_CONF, self.resolv_conf.path()));
        spec.mounts.push(file(HOSTS, &self.lease.network().hosts()));
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        // The next who looks does it, if this does not.
        let network = self.lease.network();
        let Ok(locked) = self.lease.networks().lock() else { return };
        let Ok(mut leases) = network.leases(&locked) else { return };
        leases.retain(|lease| lease != self.lease.info());
        if let Err(failure) = bridge::restore(network.info(), &leases) {
            tracing::warn!("{failure}");
        }
    }
}

/// Gives a container all of the host's network.
pub fn share_host(spec: &mut Spec) {
    if let Some(linux) = &mut spec.linux {
        linux.namespaces.retain(|namespace| namespace.kind != "network");
    }
    for path in [RESOLV_CONF, HOSTS].map(Path::new).into_iter().filter(|path| path.exists()) {
        spec.mounts.push(file(&path.to_string_lossy(), path));
    }
}

/// A file of the host in the place of one of the image.
fn file(at: &str, source: &Path) -> Mount {
    template::mount(at, "bind", &source.to_string_lossy(), "bind,ro,nosuid,nodev,noexec")
}
