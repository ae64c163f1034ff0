//! A container on networks with a name: a network namespace of its own, and a cable to each of them.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use container::network::Namespace;
use container::spec::{Mount, Spec};
use container::template;
use net::nat::{Publish, Transport};
use rustix::net::{AddressFamily, SocketType};
use workload::networks::{Endpoint, NewLease, Published};

use super::cable::{Cable, End};
use super::container::explain;
use super::resolving::{Files, HOSTS, RESOLV_CONF};
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
}

impl Wanted {
    /// What is wanted of `endpoint`, to which the published ports lead if it is the `first`.
    pub fn lease(&self, endpoint: &Endpoint, first: bool) -> NewLease {
        let mut lease = NewLease {
            address: endpoint.ip,
            address6: endpoint.ip6,
            mac: endpoint.mac,
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
    plugged: Mutex<Vec<Cable>>,
    /// What changes with them; nothing, if the container has those of its image.
    files: Option<Files>,
}

/// Connects a namespace for the container.
///
/// # Errors
/// There is no such network, an address or a port is taken, or the host is not as it should be.
pub fn prepare(root: &Path, wanted: &Wanted) -> Outcome<Bridged> {
    let ports = reserve(&wanted.publish)?;
    let (namespace, ()) = Namespace::new(|| Ok(())).map_err(explain)?;
    let mut cables = Vec::new();
    for endpoint in &wanted.endpoints {
        let first = cables.is_empty();
        let end = End::Interface { is_way_out: first };
        let lease = wanted.lease(endpoint, first);
        let cable = Cable::plug(root, &endpoint.network, lease, end, Some(namespace.as_fd()))?;
        cables.push(cable);
    }
    if cables.is_empty() {
        return Err(Failure::new("connect a container to no network"));
    }
    let places: Vec<_> = cables.iter().map(Cable::place).collect();
    let files = Some(Files::of_networks(&wanted.hostname, &places)?);
    let cables = Cables { plugged: Mutex::new(cables), files };
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
    /// None yet, of a container with these files.
    pub fn none(files: Option<Files>) -> Self {
        Self { plugged: Mutex::default(), files }
    }

    /// Connects the container whose first process is `pid` to another network.
    ///
    /// # Errors
    /// It is connected already, or as [`prepare`].
    pub fn connect(&self, root: &Path, wanted: &Wanted, endpoint: &Endpoint, pid: u32) -> Outcome<()> {
        let mut cables = self.plugged.lock().unwrap_or_else(PoisonError::into_inner);
        if cables.iter().any(|cable| cable.place().network.name == endpoint.network) {
            return Err(Failure::new(format!("it is connected to network {} already", endpoint.network)));
        }
        let namespace = Namespace::of(pid).map_err(explain)?;
        let end = End::Interface { is_way_out: cables.is_empty() };
        let lease = wanted.lease(endpoint, false);
        let cable = Cable::plug(root, &endpoint.network, lease, end, Some(namespace.as_fd()))?;
        cables.push(cable);
        self.tell(&cables)
    }

    /// Takes the container off a network.
    ///
    /// # Errors
    /// It is not on it.
    pub fn disconnect(&self, network: &str) -> Outcome<()> {
        let mut cables = self.plugged.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cables.iter().position(|cable| cable.place().network.name == network);
        let found = found.ok_or_else(|| Failure::new(format!("it is not connected to network {network}")))?;
        drop(cables.remove(found));
        self.tell(&cables)
    }

    /// Has the container ask those whom it can reach.
    fn tell(&self, cables: &[Cable]) -> Outcome<()> {
        let places: Vec<_> = cables.iter().map(Cable::place).collect();
        self.files.as_ref().map_or(Ok(()), |files| files.update(&places))
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
