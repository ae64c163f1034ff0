//! An address of a network that a workload has.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Locked, Network, Networks};
use crate::error::{Error, Result};
use crate::folder::open_lock;

/// Leases are some hundred bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A port of the host that leads to one of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Of the host; all its addresses if it is 0.0.0.0.
    pub host: SocketAddrV4,
    /// Of the workload.
    pub port: u16,
    /// `tcp` or `udp`.
    pub transport: String,
}

/// What a workload has of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its name.
    pub workload: String,
    /// What it is called on the network.
    pub names: Vec<String>,
    /// The host's end of its cable.
    pub interface: String,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub publish: Vec<Published>,
}

/// The address of a workload, which no other gets as long as this lives.
#[derive(Debug)]
pub struct Lease {
    networks: Networks,
    network: Network,
    info: LeaseInfo,
    path: PathBuf,
    /// Locked.
    _file: File,
}

impl Lease {
    /// What the workload has.
    #[must_use]
    pub fn info(&self) -> &LeaseInfo {
        &self.info
    }

    /// Of which network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Where the network is.
    #[must_use]
    pub fn networks(&self) -> &Networks {
        &self.networks
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What is not removed here is by whoever looks next.
        if let Ok(locked) = self.networks.lock() {
            let _ = fs::remove_file(&self.path);
            let _ = self.network.write_hosts(&locked);
        }
    }
}

impl Networks {
    /// Gives an address of `network` to a workload: `wanted`, or the first that is free.
    ///
    /// # Errors
    /// It is another's or not of this network, no address is free, or a file cannot be written.
    pub fn lease(
        &self,
        locked: &Locked,
        network: &Network,
        wanted: Option<Ipv4Addr>,
        (workload, names): (&str, &[String]),
        publish: &[Published],
    ) -> Result<Lease> {
        let info = network.info();
        let taken: Vec<_> = network.leases(locked)?.into_iter().map(|lease| lease.address).collect();
        let is_free = |address: Ipv4Addr| address != info.gateway && !taken.contains(&address);
        let address = match wanted {
            Some(address) if !info.subnet.is_host(address) => {
                let text = format!("{address} is no address of network {} ({})", info.name, info.subnet);
                return Err(Error::Refused(text));
            }
            Some(address) if !is_free(address) => {
                return Err(Error::Refused(format!("{address} of network {} is taken", info.name)));
            }
            Some(address) => address,
            None => info.subnet.hosts().find(|address| is_free(*address)).ok_or_else(|| {
                Error::Refused(format!("network {} ({}) has no free address", info.name, info.subnet))
            })?,
        };
        let lease = LeaseInfo {
            address,
            workload: workload.to_owned(),
            names: names.to_vec(),
            interface: format!("sv{:08x}{}", address.to_bits(), &info.id[..5]),
            publish: publish.to_vec(),
        };
        let path = network.path.join("leases").join(address.to_string());
        let mut file = open_lock(&path)?;
        file.lock().map_err(Error::file("lock", &path))?;
        let bytes =
            serde_json::to_vec(&lease).map_err(|source| Error::Json { path: path.clone(), source })?;
        let written = file.set_len(0).and_then(|()| file.write_all(&bytes));
        written.map_err(Error::file("write", &path))?;
        network.write_hosts(locked)?;
        Ok(Lease { networks: self.clone(), network: network.clone(), info: lease, path, _file: file })
    }
}

impl Network {
    /// What workloads have of it, by address. Forgets what those had that are no more.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn leases(&self, _locked: &Locked) -> Result<Vec<LeaseInfo>> {
        let dir = self.path.join("leases");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::file("list", &dir))? {
            let path = entry.map_err(Error::file("list", &dir))?.path();
            let file = open_lock(&path)?;
            match file.try_lock() {
                Ok(()) => fs::remove_file(&path).map_err(Error::file("remove", &path))?,
                Err(TryLockError::WouldBlock) => {
                    let mut bytes = Vec::new();
                    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Error::file("read", &path))?;
                    let parsed = serde_json::from_slice(&bytes);
                    found.push(parsed.map_err(|source| Error::Json { path, source })?);
                }
                Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
            }
        }
        found.sort_by_key(|lease: &LeaseInfo| lease.address);
        Ok(found)
    }

    /// Workloads see this very file, so that it is written anew in its place. It is longer for a moment rather than shorter.
    fn write_hosts(&self, locked: &Locked) -> Result<()> {
        let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for lease in self.leases(locked)? {
            text.push_str(&format!("{} {}\n", lease.address, lease.names.join(" ")));
        }
        let path = self.hosts();
        let file = open_lock(&path)?;
        let written = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.set_len(text.len() as u64));
        written.map_err(Error::file("write", &path))
    }
}
