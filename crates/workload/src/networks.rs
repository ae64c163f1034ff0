//! Networks: objects of the store that workloads are connected to by name.
//!
//! ```text
//! ROOT/networks/
//!   lock               held while a network, or an address of one, is given or taken away
//!   <name>/
//!     network.json     what it is: a NetworkInfo, written once
//!     connected.json   all that are connected, with their names and addresses: for the server of names
//!     leases/ADDRESS   a Lease, locked by the process that runs the workload as long as that lives
//!     users            locked, shared, by the same; alone by the server of names when it ends
//!     names            locked by the server of names
//! ```
//!
//! Nobody counts addresses. One is taken while a process holds the lock of its file, so that it is free again whatever was
//! killed, and when. What the host's kernel has of a network (a bridge, a table of rules) can be made anew from these files.
//!
//! Deliberately not here: bridges, rules, and the server of names.

mod lease;
mod pool;
mod subnet;
mod subnet6;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::files::{self, Durable};
use crate::folder::{self, Workloads, new_id, open_lock};
use crate::state::now_ms;

pub use lease::{CONNECTED, Connected, Endpoint, Lease, LeaseInfo, Link, NewLease, Published, mac_text};
pub use pool::Pool;
pub use subnet::Subnet;
pub use subnet6::Subnet6;

/// The version of [`NetworkInfo`] that this build writes and reads.
const VERSION: u32 = 1;
/// Folders that are being made or removed begin so.
const UNFINISHED: &str = ".";
/// Words that mean something else where a network is asked for.
const RESERVED: [&str; 6] = ["bridge", "container", "default", "host", "none", "user"];
/// Least that IPv4 must be carried with (RFC 791), and what an Ethernet interface of Linux has at most.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
/// Least that IPv6 must be carried with (RFC 8200).
const MIN_MTU6: u32 = 1280;

/// What a network is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Of this very type: 1.
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among the networks of a store.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Its addresses.
    pub subnet: Subnet,
    /// The host's own of them.
    pub gateway: Ipv4Addr,
    /// Its IPv6 addresses, if it has any, and the host's own of them.
    #[serde(default)]
    pub six: Option<(Subnet6, Ipv6Addr)>,
    /// Which addresses it gives away.
    #[serde(default)]
    pub pool: Pool,
    /// Bytes of a packet at most.
    pub mtu: u32,
    /// Nothing leads out of it.
    pub internal: bool,
    /// What leaves it keeps its sender's address, for which somebody else has a way back.
    #[serde(default)]
    pub routed: bool,
    /// Free text by key, for those who look for it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What a client of the API asked for beside all that, in its words: it is told them back.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// What its bridge is called, if somebody wanted that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

impl NetworkInfo {
    /// The bridge of the host, and the name of its table of rules: no two networks have the same.
    #[must_use]
    pub fn bridge(&self) -> String {
        self.bridge.clone().unwrap_or_else(|| format!("st-{}", &self.id[..12]))
    }

    /// The bridge's hardware address: without one of its own it would change with who is connected.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        let [.., a, b, c, d] = self.random().to_be_bytes();
        [2, 0x53, a, b, c, d]
    }

    /// Bits that no other network has.
    fn random(&self) -> u64 {
        u64::from_str_radix(&self.id[..16], 16).unwrap_or_default()
    }

    fn check(&self, path: &Path) -> Result<()> {
        if self.version != VERSION {
            return Err(Error::Version { path: path.to_path_buf(), found: self.version });
        }
        let six = self.six.is_none_or(|(subnet, gateway)| subnet.is_host(gateway) && self.mtu >= MIN_MTU6);
        let bridge = self.bridge.as_deref().is_none_or(is_interface);
        let is_right = self.subnet.is_host(self.gateway) && MTU.contains(&self.mtu) && six && bridge;
        if !folder::is_id(&self.id) || !is_right {
            return Err(Error::Refused(format!("{} makes no sense", path.display())));
        }
        Ok(())
    }
}

/// What a new network is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// A free one, unless given.
    pub subnet: Option<Subnet>,
    /// The first address of the subnet, unless given.
    pub gateway: Option<Ipv4Addr>,
    /// It has IPv6 addresses too.
    pub ipv6: bool,
    /// Which ones: some that nobody has, unless given.
    pub subnet6: Option<Subnet6>,
    /// The first address of those, unless given.
    pub gateway6: Option<Ipv6Addr>,
    /// Which addresses it gives away.
    pub pool: Pool,
    /// Bytes of a packet at most; as Ethernet has them, unless given.
    pub mtu: Option<u32>,
    /// Nothing leads out of it.
    pub internal: bool,
    /// What leaves it keeps its sender's address.
    pub routed: bool,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// What else a client asked for.
    pub options: BTreeMap<String, String>,
    /// What its bridge is called, if not as any.
    pub bridge: Option<String>,
}

/// Whether an interface of Linux may be called so, and a table of rules too.
fn is_interface(name: &str) -> bool {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=15).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphabetic() && name.bytes().all(ok)
}

/// Addresses that this host has routes for already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Of IPv4.
    pub four: Vec<Subnet>,
    /// Of IPv6.
    pub six: Vec<Subnet6>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    path: PathBuf,
    info: NetworkInfo,
}

impl Network {
    /// What it is.
    #[must_use]
    pub fn info(&self) -> &NetworkInfo {
        &self.info
    }

    /// The file whose lock the server of names holds.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn names_lock(&self) -> Result<File> {
        open_lock(&self.path.join("names"))
    }

    /// The file of which everybody who is connected holds a shared lock.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn users_lock(&self) -> Result<File> {
        open_lock(&self.path.join("users"))
    }
}

/// All networks of a store.
#[derive(Clone, Debug)]
pub struct Networks {
    dir: PathBuf,
}

/// Nobody else gives or takes away networks or addresses as long as this lives.
#[derive(Debug)]
pub struct Locked {
    _lock: File,
}

impl Workloads {
    /// The networks of the same store.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn networks(&self) -> Result<Networks> {
        Networks::open(self.dir.parent().unwrap_or(&self.dir))
    }
}

impl Networks {
    /// The networks of the store at `root`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Path) -> Result<Networks> {
        let dir = root.join("networks");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(Error::file("create", &dir))?;
        Ok(Networks { dir })
    }

    /// Waits until nobody else gives or takes away anything. What changes wants to see it, so nothing changes without.
    ///
    /// # Errors
    /// The file of the lock cannot be opened.
    pub fn lock(&self) -> Result<Locked> {
        let path = self.dir.join("lock");
        let file = open_lock(&path)?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(Locked { _lock: file })
    }

    /// Makes a network. `taken` are addresses which this host has routes for.
    ///
    /// # Errors
    /// The name is none or taken, the subnet overlaps with another, other addresses are not in it, or the folder cannot be written.
    pub fn create(&self, _locked: &Locked, new: NewNetwork, taken: &Taken) -> Result<Network> {
        let name = folder::parse_name(&new.name)
            .map_err(|reason| Error::BadName { name: new.name.clone(), reason })?;
        if RESERVED.contains(&&*name) {
            return Err(Error::Refused(format!("network {name:?}: the word means something else already")));
        }
        let others = self.list()?;
        if others.iter().any(|other| other.info.name == name) {
            return Err(Error::NetworkTaken { name });
        }
        let info = settle(new, new_id()?, &others, taken)?;
        let (temp, path) = (self.dir.join(format!("{UNFINISHED}{name}")), self.dir.join(&name));
        let _ = fs::remove_dir_all(&temp);
        let leases = temp.join("leases");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&leases);
        made.map_err(Error::file("create", &leases))?;
        files::replace(&temp.join("network.json"), &info, Durable::Now)?;
        fs::rename(&temp, &path).map_err(Error::file("create", &path))?;
        files::sync_parent(&path)?;
        self.tell(&info, "create", None);
        Ok(Network { path, info })
    }

    /// Notes what happens to a network, or to a workload on it.
    pub fn tell(&self, network: &NetworkInfo, action: &str, workload: Option<&str>) {
        if let Some(all) = self.dir.parent().and_then(|root| Workloads::open(root).ok()) {
            Event::of_network(network, action, workload).add_to(&all.dir);
        }
    }

    /// The network of this name, or whose id begins so.
    ///
    /// # Errors
    /// There is none or there are several, or it cannot be read.
    pub fn find(&self, name: &str) -> Result<Network> {
        let missing = || Error::NoNetwork { name: name.to_owned() };
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(missing());
        }
        let path = self.dir.join(name);
        if path.join("network.json").exists() {
            return read(path);
        }
        let mut found = self.list()?.into_iter().filter(|network| network.info.id.starts_with(name));
        let network = found.next().ok_or_else(missing)?;
        if found.next().is_some() {
            return Err(Error::Ambiguous { name: name.to_owned() });
        }
        Ok(network)
    }

    /// All of them, by name. One that cannot be read hides no other.
    ///
    /// # Errors
    /// The folder of them all cannot be read.
    pub fn list(&self) -> Result<Vec<Network>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::file("list", &self.dir))? {
            let entry = entry.map_err(Error::file("list", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "lock" || name.starts_with(UNFINISHED) {
                continue;
            }
            match read(entry.path()) {
                Ok(network) => found.push(network),
                Err(error) => tracing::warn!("network {name:?} is left out: {error}"),
            }
        }
        found.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        Ok(found)
    }

    /// Forgets a network that nobody is connected to.
    ///
    /// # Errors
    /// Somebody is connected, or the folder cannot be removed. Waits for a server of names that is just ending.
    pub fn remove(&self, locked: &Locked, network: &Network) -> Result<()> {
        let users = network.leases(locked)?;
        if !users.is_empty() {
            let users = users.into_iter().map(|lease| lease.workload).collect();
            return Err(Error::NetworkInUse { name: network.info.name.clone(), users });
        }
        // Its addresses may be another network's in a moment.
        let names = network.path.join("names");
        network.names_lock()?.lock().map_err(Error::file("lock", names))?;
        let temp = self.dir.join(format!("{UNFINISHED}{}", network.info.name));
        let _ = fs::remove_dir_all(&temp);
        fs::rename(&network.path, &temp).map_err(Error::file("remove", &network.path))?;
        self.tell(&network.info, "destroy", None);
        fs::remove_dir_all(&temp).map_err(Error::file("remove", &temp))
    }
}

fn read(path: PathBuf) -> Result<Network> {
    let file = path.join("network.json");
    let info: NetworkInfo = files::read(&file)?;
    info.check(&file)?;
    Ok(Network { path, info })
}

/// Decides what was left open.
fn settle(new: NewNetwork, id: String, others: &[Network], taken: &Taken) -> Result<NetworkInfo> {
    let subnet = match new.subnet {
        Some(subnet) => free(subnet, others, taken)?,
        None => Subnet::defaults()
            .find(|subnet| free(*subnet, others, taken).is_ok())
            .ok_or_else(|| Error::Refused("no subnet is free: give one".to_owned()))?,
    };
    let gateway = new.gateway.unwrap_or_else(|| subnet.first());
    if !subnet.is_host(gateway) {
        return Err(Error::Refused(format!("gateway {gateway} is no address of {subnet}")));
    }
    let mtu = new.mtu.unwrap_or(1500);
    if !MTU.contains(&mtu) {
        let text = format!("mtu {mtu} is not from {} to {}", MTU.start(), MTU.end());
        return Err(Error::Refused(text));
    }
    let mut info = NetworkInfo {
        version: VERSION,
        id,
        name: new.name,
        created_ms: now_ms(),
        subnet,
        gateway,
        six: None,
        pool: new.pool,
        mtu,
        internal: new.internal,
        routed: new.routed,
        labels: new.labels,
        options: new.options,
        bridge: new.bridge,
    };
    let bridge = info.bridge();
    if !is_interface(&bridge) || others.iter().any(|other| other.info.bridge() == bridge) {
        return Err(Error::Refused(format!("bridge {bridge:?}: it is another network's, or no name of one")));
    }
    if new.ipv6 || new.subnet6.is_some() {
        let subnet = free6(new.subnet6.unwrap_or_else(|| Subnet6::unique(info.random())), others, taken)?;
        let gateway = new.gateway6.unwrap_or_else(|| subnet.first());
        if !subnet.is_host(gateway) {
            return Err(Error::Refused(format!("gateway {gateway} is no address of {subnet}")));
        }
        if mtu < MIN_MTU6 {
            return Err(Error::Refused(format!("mtu {mtu} is less than the {MIN_MTU6} that IPv6 needs")));
        }
        info.six = Some((subnet, gateway));
    }
    info.pool.check(info.subnet, info.six.map(|(subnet, _)| subnet))?;
    Ok(info)
}

fn overlap(subnet: impl ToString, other: String) -> Error {
    Error::Overlap { subnet: subnet.to_string(), other }
}

fn free(subnet: Subnet, others: &[Network], taken: &Taken) -> Result<Subnet> {
    if let Some(other) = others.iter().find(|other| other.info.subnet.overlaps(subnet)) {
        return Err(overlap(subnet, format!("{} of network {}", other.info.subnet, other.info.name)));
    }
    match taken.four.iter().find(|route| route.overlaps(subnet)) {
        Some(route) => Err(overlap(subnet, format!("this host's route to {route}"))),
        None => Ok(subnet),
    }
}

fn free6(subnet: Subnet6, others: &[Network], taken: &Taken) -> Result<Subnet6> {
    let theirs = |other: &Network| other.info.six.map(|(subnet, _)| (subnet, other.info.name.clone()));
    if let Some((other, name)) = others.iter().filter_map(theirs).find(|(other, _)| other.overlaps(subnet)) {
        return Err(overlap(subnet, format!("{other} of network {name}")));
    }
    match taken.six.iter().find(|route| route.overlaps(subnet)) {
        Some(route) => Err(overlap(subnet, format!("this host's route to {route}"))),
        None => Ok(subnet),
    }
}

#[cfg(test)]
mod tests;
