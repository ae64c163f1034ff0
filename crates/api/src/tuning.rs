//! What only containers can have of the kernel, which machines have one of their own of.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What stands in front of the name of a container whose namespace another one has.
pub const OTHER: &str = "container:";

/// Whether a text can be the name or the number of a group.
#[must_use]
pub fn is_group(text: &str) -> bool {
    !text.is_empty() && !text.contains([':', ',', '\n', '\0'])
}

/// What a container has beside its limits; what is empty is as ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Parameters of the kernel, of the container's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Bytes of `/dev/shm` at most.
    pub shm_bytes: Option<u64>,
    /// How soon it is killed where memory is short.
    pub oom_score_adj: Option<i32>,
    /// Its part of the processors where others want them too; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Processors that it may use: `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that it may use.
    pub cpuset_mems: Option<String>,
    /// Bytes that are left to it where memory is short.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together.
    pub memory_swap: Option<i64>,
    /// How readily its memory is swapped out, from 0 to 100.
    pub swappiness: Option<u64>,
    /// Its part of disks where others want them too, from 10 to 1000; 500 is usual.
    pub blkio_weight: Option<u16>,
    /// Further groups of its first process, by their numbers or by the names that the container has for them.
    pub groups: Vec<String>,
    /// Devices of the host: `HOST:INSIDE:ACCESS`.
    pub devices: Vec<String>,
    /// What it may do with devices beside those: `KIND MAJOR:MINOR ACCESS`.
    pub device_rules: Vec<String>,
    /// Names that it knows without asking.
    pub hosts: Vec<HostName>,
    /// Whose processes it sees, if not only its own: `host`, or `container:ID`.
    pub pid: Option<String>,
    /// Whose shared memory it has, if not its own: `host`, `container:ID`, or `none`; `shareable` is its own that others may have.
    pub ipc: Option<String>,
    /// What its host name is said to be of.
    pub domainname: Option<String>,
    /// Whose host name it has, if not its own: `host`.
    pub uts: Option<String>,
    /// Its first process waits for all that have lost their parents, and hands signals on to the command.
    pub init: bool,
}

/// In place of an address: the host's own.
const GATEWAY: &str = "host-gateway";

/// A name and its address.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HostName {
    /// The name.
    pub name: String,
    /// Its address; the host's own on the first network of the container, if none is said.
    pub address: Option<IpAddr>,
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}={address}", self.name),
            None => write!(f, "{}={GATEWAY}", self.name),
        }
    }
}

impl FromStr for HostName {
    type Err = String;

    /// `NAME:ADDRESS` or `NAME=ADDRESS`; `host-gateway` is the host's own.
    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['=', ':']).ok_or("it is not NAME:ADDRESS")?;
        let (name, address) = (&text[..at], text[at + 1..].trim_matches(['[', ']']));
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(format!("{name:?} is no name"));
        }
        let address = match address {
            GATEWAY => None,
            address => Some(address.parse().map_err(|_| format!("{address:?} is no address"))?),
        };
        Ok(Self { name: name.to_owned(), address })
    }
}
