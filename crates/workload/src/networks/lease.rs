//! The addresses that a workload has on a network.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Locked, Network, Networks};
use crate::error::{Error, Result};
use crate::files::{self, Durable};
use crate::folder::{is_id, open_lock, parse_name};

/// Leases are some hundred bytes, and a few for each published port.
const MAX_BYTES: u64 = 1 << 20;
/// Addresses of IPv6 that are tried for one workload.
const TRIES: u128 = 1 << 16;

/// A port of the host that leads to one of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Of the host; all its addresses, also those of IPv6, if it is 0.0.0.0.
    pub host: SocketAddrV4,
    /// Of the workload.
    pub port: u16,
    /// `tcp` or `udp`.
    pub transport: String,
}

/// How a workload is to be connected to a network, in its description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network's name.
    pub network: String,
    /// What others on it call the workload too.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its address, if not any.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// The same of IPv6.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Its hardware address, if not any.
    #[serde(default)]
    pub mac: Option<[u8; 6]>,
    /// Of several networks the one with the highest leads out, of several such the first.
    #[serde(default)]
    pub priority: i64,
    /// What it alone calls others on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
}

/// What a workload calls another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The other's name, or its id.
    pub workload: String,
    /// What it calls it.
    pub alias: String,
}

impl FromStr for Link {
    type Err = String;

    /// `NAME[:ALIAS]`
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (workload, alias) = text.split_once(':').unwrap_or((text, text));
        // Docker's clients write names so.
        let (workload, alias) = (workload.trim_start_matches('/'), alias.trim_start_matches('/'));
        if !is_id(workload) {
            parse_name(workload)?;
        }
        Ok(Self { workload: workload.to_owned(), alias: parse_name(alias)? })
    }
}

/// What a workload wants of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewLease {
    /// The workload's id; of one in the foreground nothing.
    pub id: String,
    /// Its name.
    pub workload: String,
    /// What it is called on the network.
    pub names: Vec<String>,
    /// The address, if not any.
    pub address: Option<Ipv4Addr>,
    /// The same of IPv6.
    pub address6: Option<Ipv6Addr>,
    /// Its hardware address, if not any.
    pub mac: Option<[u8; 6]>,
    /// Who is asked for names that are none of the network; whom this host asks, if it says nothing.
    pub dns: Vec<IpAddr>,
    /// Domains in which names are looked for; this host's, if it says nothing.
    #[serde(default)]
    pub search: Vec<String>,
    /// Options of its resolver; this host's, if it says nothing.
    #[serde(default)]
    pub dns_options: Vec<String>,
    /// Ports of the host that lead to it.
    pub publish: Vec<Published>,
    /// What it calls others.
    #[serde(default)]
    pub links: Vec<Link>,
}

/// What a workload has of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, on a network that has such.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// Its hardware address.
    #[serde(default)]
    pub mac: [u8; 6],
    /// The workload's id; of one in the foreground nothing.
    #[serde(default)]
    pub id: String,
    /// Its name.
    pub workload: String,
    /// What it is called on the network.
    pub names: Vec<String>,
    /// Who is asked for names that are none of the network.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// The host's end of its cable.
    pub interface: String,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub publish: Vec<Published>,
    /// What it calls others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
}

/// The addresses of a workload, which no other gets as long as a process has the files.
#[derive(Debug)]
pub struct Lease {
    /// What the workload has.
    pub info: LeaseInfo,
    /// Locked: that of the lease, and that of all who are connected.
    pub files: [File; 2],
}

/// Who is connected to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// What each has, by address.
    pub leases: Vec<LeaseInfo>,
    /// Some that were gone are forgotten only now: what the host's kernel has for them is still there.
    pub has_lost: bool,
}

/// A hardware address as it is written.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Networks {
    /// Gives addresses of `network` to a workload: those it wants, or the first that are free. Waits for a server of names that is
    /// just ending.
    ///
    /// # Errors
    /// One is another's or not of this network, none is free, or a file cannot be written.
    pub fn lease(&self, locked: &Locked, network: &Network, new: NewLease) -> Result<Lease> {
        let others = network.leases(locked)?;
        let address = address(network, &others, new.address)?;
        let interface = format!("sv{:08x}{}", address.to_bits(), &network.info().id[..5]);
        let info = LeaseInfo {
            address,
            address6: address6(network, &others, new.address6, address)?,
            mac: new.mac.unwrap_or_else(|| mac(address)),
            id: new.id,
            workload: new.workload,
            names: new.names,
            dns: new.dns,
            interface,
            publish: new.publish,
            links: new.links,
        };
        let users = network.users_lock()?;
        users.lock_shared().map_err(Error::file("lock", network.path.join("users")))?;
        let path = network.path.join("leases").join(address.to_string());
        let mut file = open_lock(&path)?;
        file.lock().map_err(Error::file("lock", &path))?;
        let bytes = serde_json::to_vec(&info).map_err(|source| Error::Json { path: path.clone(), source })?;
        let written = file.set_len(0).and_then(|()| file.write_all(&bytes));
        written.map_err(Error::file("write", &path))?;
        network.settle(locked)?;
        self.tell(network.info(), "connect", Some(&info.id));
        Ok(Lease { info, files: [file, users] })
    }
}

fn address(network: &Network, others: &[LeaseInfo], wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
    let info = network.info();
    let is_free = |address: Ipv4Addr| {
        address != info.gateway
            && !info.pool.is_reserved(address.into())
            && others.iter().all(|lease| lease.address != address)
    };
    match wanted {
        Some(address) if !info.subnet.is_host(address) => {
            let text = format!("{address} is no address of network {} ({})", info.name, info.subnet);
            Err(Error::Refused(text))
        }
        Some(address) if !is_free(address) => {
            Err(Error::Refused(format!("{address} of network {} is taken", info.name)))
        }
        Some(address) => Ok(address),
        None => {
            let range = info.pool.range.unwrap_or(info.subnet);
            let found = range.all().find(|address| info.subnet.is_host(*address) && is_free(*address));
            found
                .ok_or_else(|| Error::Refused(format!("network {} ({range}) has no free address", info.name)))
        }
    }
}

/// As far behind the block's first as `four` is behind that of IPv4, unless somebody wanted that for himself.
fn address6(
    network: &Network,
    others: &[LeaseInfo],
    wanted: Option<Ipv6Addr>,
    four: Ipv4Addr,
) -> Result<Option<Ipv6Addr>> {
    let info = network.info();
    let Some((subnet, gateway)) = info.six else {
        return match wanted {
            None => Ok(None),
            Some(address) => {
                Err(Error::Refused(format!("{address}: network {} has no IPv6 addresses", info.name)))
            }
        };
    };
    let is_free = |address: Ipv6Addr| {
        address != gateway
            && !info.pool.is_reserved(address.into())
            && others.iter().all(|lease| lease.address6 != Some(address))
    };
    match wanted {
        Some(address) if !subnet.is_host(address) => {
            Err(Error::Refused(format!("{address} is no address of network {} ({subnet})", info.name)))
        }
        Some(address) if !is_free(address) => {
            Err(Error::Refused(format!("{address} of network {} is taken", info.name)))
        }
        Some(address) => Ok(Some(address)),
        None => {
            let offset = u128::from(four.to_bits() & !info.subnet.mask());
            let range = info.pool.range6.unwrap_or(subnet);
            let mut tries = (0..TRIES).map(|more| range.at(offset + more));
            tries
                .find(|address| range.is_host(*address) && is_free(*address))
                .map(Some)
                .ok_or_else(|| Error::Refused(format!("network {} ({range}) has no free address", info.name)))
        }
    }
}

/// Locally administered, of one station, and different for each address of a network.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0x54, a, b, c, d]
}

impl Networks {
    /// Has a workload that was given another name called so on all its networks. Its other names stay.
    ///
    /// # Errors
    /// The folder of a network cannot be written.
    pub fn rename(&self, id: &str, old: &str, new: &str) -> Result<()> {
        let locked = self.lock()?;
        for network in self.list()? {
            let leases = network.leases(&locked)?;
            let Some(mut lease) = leases.into_iter().find(|lease| lease.id == id) else { continue };
            lease.workload = new.to_owned();
            lease.names.retain(|name| name != old && name != new);
            lease.names.push(new.to_owned());
            let path = network.path.join("leases").join(lease.address.to_string());
            files::overwrite(&open_lock(&path)?, &path, &lease)?;
            network.settle(&locked)?;
        }
        Ok(())
    }
}

impl Network {
    /// What workloads have of it, by address. Forgets what those had that are no more.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn leases(&self, locked: &Locked) -> Result<Vec<LeaseInfo>> {
        Ok(self.look(locked)?.leases)
    }

    /// As [`Self::leases`]; says whether there was something to forget.
    ///
    /// # Errors
    /// As [`Self::leases`].
    pub fn look(&self, _locked: &Locked) -> Result<Connected> {
        let dir = self.path.join("leases");
        let (mut leases, mut has_lost) = (Vec::new(), false);
        for entry in fs::read_dir(&dir).map_err(Error::file("list", &dir))? {
            let path = entry.map_err(Error::file("list", &dir))?.path();
            let file = open_lock(&path)?;
            // Shared, as servers of names look: who holds it has it for himself, and those who look are in nobody's way.
            match file.try_lock_shared() {
                Ok(()) => {
                    fs::remove_file(&path).map_err(Error::file("remove", &path))?;
                    has_lost = true;
                }
                Err(TryLockError::WouldBlock) => {
                    let mut bytes = Vec::new();
                    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Error::file("read", &path))?;
                    let parsed = serde_json::from_slice(&bytes);
                    leases.push(parsed.map_err(|source| Error::Json { path, source })?);
                }
                Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
            }
        }
        leases.sort_by_key(|lease: &LeaseInfo| lease.address);
        if has_lost {
            self.note(&leases)?;
        }
        Ok(Connected { leases, has_lost })
    }

    /// As [`Self::leases`], and writes down for those who are connected who they are.
    ///
    /// # Errors
    /// As [`Self::leases`], or the folder cannot be written.
    pub fn settle(&self, locked: &Locked) -> Result<Vec<LeaseInfo>> {
        let leases = self.leases(locked)?;
        self.note(&leases)?;
        Ok(leases)
    }

    fn note(&self, leases: &[LeaseInfo]) -> Result<()> {
        files::replace(&self.path.join(CONNECTED), &leases, Durable::Later)
    }
}

/// The file with all leases of a network, in its folder.
pub const CONNECTED: &str = "connected.json";
