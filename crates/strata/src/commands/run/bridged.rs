//! A container on networks with a name: a network namespace of its own, and a cable to each of them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use api::HostName;
use container::network::Namespace;
use container::spec::{Mount, Spec};
use container::template;
use net::nat::{Publish, Transport};
use rustix::net::{AddressFamily, SocketType};
use workload::networks::{Endpoint, NewLease, Published};

use super::cable::{Cable, End, Place};
use super::container::explain;
use super::resolving::{Files, HOSTS, RESOLV_CONF};
use crate::bridge;
use crate::failure::{Failure, Outcome};

/// What a workload wants of all its networks.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The networks, the first of which leads out.
    pub endpoints: Vec<Endpoint>,
    /// What is the same on each: the workload and whom it asks for names.
    pub common: NewLease,
    /// Ports of the host that lead to it, by the first.
    pub publish: Vec<Publish>,
    /// What it calls itself.
    pub hostname: String,
    /// Names that it knows without asking.
    pub hosts: Vec<HostName>,
}

impl Wanted {
    /// What is wanted of `endpoint`, to which the published ports lead if it is the `first`.
    pub fn lease(&self, endpoint: &Endpoint, first: bool) -> NewLease {
        let mut lease = NewLease {
            address: endpoint.ip,
            address6: endpoint.ip6,
            mac: endpoint.mac,
            links: endpoint.links.clone(),
            ..self.common.clone()
        };
        for alias in endpoint.aliases.iter().rev() {
            if !lease.names.contains(alias) {
                lease.names.insert(0, alias.clone());
            }
        }
        if first {
            lease.publish = self.publish.iter().map(published).collect();
        }
        lease
    }
}

fn published(publish: &Publish) -> Published {
    let transport = match publish.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    Published { host: publish.host, port: publish.guest, transport: transport.to_owned() }
}

/// Sockets that have the ports and do nothing with them, so that nobody else takes them: rules lead packets elsewhere before
/// a socket sees them.
///
/// # Errors
/// One is taken.
pub fn reserve(publish: &[Publish]) -> Outcome<Vec<OwnedFd>> {
    publish.iter().map(reserve_one).collect()
}

fn reserve_one(publish: &Publish) -> Outcome<OwnedFd> {
    let kind = match publish.transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
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

/// A container's places on its networks, which are others' once this is gone.
pub struct Bridged {
    namespace: Namespace,
    cables: Cables,
    _ports: Vec<OwnedFd>,
}

/// The cables of a container, which come and go while it runs.
#[derive(Default)]
pub struct Cables {
    plugged: Mutex<Vec<Plugged>>,
    /// What changes with them; nothing, if the container has those of its image.
    files: Option<Files>,
    /// The way out of a network that is none of these.
    own: Option<Ipv4Addr>,
}

struct Plugged {
    cable: Cable,
    priority: i64,
}

/// Where what is for nobody on a container's networks goes.
type WayOut = (Ipv4Addr, Option<Ipv6Addr>);

/// That of the network with the highest priority, of several such of the first, among those that something leads out of.
fn way_out(plugged: &[Plugged], own: Option<Ipv4Addr>) -> Option<WayOut> {
    let mut best = own.map(|gateway| (0, (gateway, None)));
    for Plugged { cable, priority } in plugged {
        let info = &cable.place().network;
        if !info.internal && best.is_none_or(|(highest, _)| *priority > highest) {
            best = Some((*priority, (info.gateway, info.six.map(|(_, gateway)| gateway))));
        }
    }
    best.map(|(_, way)| way)
}

/// Has the namespace's packets leave there.
fn lead_out(namespace: Namespace, way: WayOut) -> Outcome<()> {
    Namespace::enter(namespace.into(), move || bridge::lead_out(way.0, way.1)).map_err(explain)
}

/// Connects a namespace for the container.
///
/// # Errors
/// There is no such network, an address or a port is taken, or the host is not as it should be.
pub fn prepare(root: &Path, wanted: &Wanted) -> Outcome<Bridged> {
    let ports = reserve(&wanted.publish)?;
    let (namespace, ()) = Namespace::new(|| Ok(())).map_err(explain)?;
    let mut cables = Vec::new();
    let is_alone = wanted.endpoints.len() == 1;
    for endpoint in &wanted.endpoints {
        let end = End::Interface { is_way_out: is_alone };
        let lease = wanted.lease(endpoint, cables.is_empty());
        let cable = Cable::plug(root, &endpoint.network, lease, end, Some(namespace.as_fd()))?;
        cables.push(Plugged { cable, priority: endpoint.priority });
    }
    if cables.is_empty() {
        return Err(Failure::new("connect a container to no network"));
    }
    if let Some(way) = way_out(&cables, None).filter(|_| !is_alone) {
        lead_out(namespace.try_clone().map_err(explain)?, way)?;
    }
    let files = Some(Files::of_networks(&wanted.hostname, &wanted.hosts, &places(&cables))?);
    let cables = Cables { plugged: Mutex::new(cables), files, own: None };
    Ok(Bridged { namespace, cables, _ports: ports })
}

impl Bridged {
    /// Puts it into a container's bundle.
    pub fn add_to(&self, spec: &mut Spec) {
        for namespace in spec.linux.iter_mut().flat_map(|linux| &mut linux.namespaces) {
            if namespace.kind == "network" {
                namespace.path = Some(self.namespace.path());
            }
        }
        spec.mounts.extend(self.cables.files.iter().flat_map(Files::mounts));
    }

    /// Its cables.
    pub fn cables(&self) -> &Cables {
        &self.cables
    }
}

impl Cables {
    /// None yet, of a container with these files and this way out.
    pub fn none(files: Option<Files>, own: Option<Ipv4Addr>) -> Self {
        Self { plugged: Mutex::default(), files, own }
    }

    /// Connects the container whose first process is `pid` to another network.
    ///
    /// # Errors
    /// It is connected already, or as [`prepare`].
    pub fn connect(&self, root: &Path, wanted: &Wanted, endpoint: &Endpoint, pid: u32) -> Outcome<()> {
        let mut cables = self.plugged.lock().unwrap_or_else(PoisonError::into_inner);
        if cables.iter().any(|plugged| plugged.cable.place().network.name == endpoint.network) {
            return Err(Failure::new(format!("it is connected to network {} already", endpoint.network)));
        }
        let namespace = Namespace::of(pid).map_err(explain)?;
        let before = way_out(&cables, self.own);
        let lease = wanted.lease(endpoint, false);
        let end = End::Interface { is_way_out: false };
        let cable = Cable::plug(root, &endpoint.network, lease, end, Some(namespace.as_fd()))?;
        cables.push(Plugged { cable, priority: endpoint.priority });
        self.changed(&cables, before, namespace)
    }

    /// Takes the container off a network.
    ///
    /// # Errors
    /// It is not on it.
    pub fn disconnect(&self, network: &str, pid: u32) -> Outcome<()> {
        let mut cables = self.plugged.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cables.iter().position(|plugged| plugged.cable.place().network.name == network);
        let found = found.ok_or_else(|| Failure::new(format!("it is not connected to network {network}")))?;
        let namespace = Namespace::of(pid).map_err(explain)?;
        let before = way_out(&cables, self.own);
        drop(cables.remove(found));
        self.changed(&cables, before, namespace)
    }

    /// Has the container send what is for others where it leads out now, and ask those whom it can reach.
    fn changed(&self, cables: &[Plugged], before: Option<WayOut>, namespace: Namespace) -> Outcome<()> {
        match way_out(cables, self.own) {
            Some(way) if Some(way) != before => lead_out(namespace, way)?,
            _ => {}
        }
        self.files.as_ref().map_or(Ok(()), |files| files.update(&places(cables)))
    }
}

fn places(cables: &[Plugged]) -> Vec<&Place> {
    cables.iter().map(|plugged| plugged.cable.place()).collect()
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
