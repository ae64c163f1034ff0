//! Everything that can go wrong in this crate.

use std::io;
use std::path::{Path, PathBuf};

/// The result of an operation on workloads.
pub type Result<T> = std::result::Result<T, Error>;

/// One act on one object that did not work; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file of the host.
    #[error("{act} {}", path.display())]
    File {
        /// What was tried.
        act: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of a workload that does not parse.
    #[error("parse {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A file of a version that this build does not know.
    #[error("{} has version {found}, this build knows 1", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// No workload of this name or id.
    #[error("no workload {name:?}")]
    NotFound {
        /// As given.
        name: String,
    },
    /// The beginning of several ids.
    #[error("{name:?} is the beginning of several ids")]
    Ambiguous {
        /// As given.
        name: String,
    },
    /// A name that is none, or another's.
    #[error("bad name {name:?}: {reason}")]
    BadName {
        /// As given.
        name: String,
        /// The rule it breaks.
        reason: String,
    },
    /// A name that another workload has.
    #[error("bad name {name:?}: another workload has it")]
    NameTaken {
        /// The name.
        name: String,
        /// The other one's id.
        id: String,
    },
    /// A workload that runs where it must not.
    #[error("{name} is {status}")]
    Busy {
        /// Its name.
        name: String,
        /// How it is.
        status: crate::Status,
    },
    /// No volume of this name.
    #[error("no volume {name:?}")]
    NoVolume {
        /// As given.
        name: String,
    },
    /// A volume that is used where it must not be.
    #[error("volume {name} is used by {}", users.join(", "))]
    VolumeInUse {
        /// Its name.
        name: String,
        /// Names of workloads.
        users: Vec<String>,
    },
    /// No network of this name or id.
    #[error("no network {name:?}")]
    NoNetwork {
        /// As given.
        name: String,
    },
    /// A name that another network has.
    #[error("network {name} is there already")]
    NetworkTaken {
        /// The name.
        name: String,
    },
    /// Addresses that are somebody else's.
    #[error("{subnet} overlaps with {other}")]
    Overlap {
        /// Those that were asked for.
        subnet: String,
        /// Whose they are.
        other: String,
    },
    /// A network that somebody is connected to.
    #[error("network {name} is in use by {}", users.join(", "))]
    NetworkInUse {
        /// Its name.
        name: String,
        /// Names of workloads.
        users: Vec<String>,
    },
    /// An option of a volume that means nothing here.
    #[error("bad option of a volume: {reason}")]
    BadOption {
        /// What it is, and what would be right.
        reason: String,
    },
    /// Nobody watches the workload, so nobody answers.
    #[error("{name} is not running: nobody watches it")]
    NotWatched {
        /// Its name.
        name: String,
    },
    /// The socket between monitor, worker and commands.
    #[error("talk to {peer}")]
    Socket {
        /// Who is at the other end.
        peer: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A message that makes no sense.
    #[error("talk to {peer}: {reason}")]
    Message {
        /// Who sent it.
        peer: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The other end did not do what it was asked.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// True when the workload, volume or network is not there (as opposed to broken).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. } | Error::NoVolume { .. } | Error::NoNetwork { .. })
    }

    /// True when nothing came for as long as was to be waited.
    pub fn is_timeout(&self) -> bool {
        let late = |kind| matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        matches!(self, Error::Socket { source, .. } if late(source.kind()))
    }

    pub(crate) fn file(act: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::File { act, path, source }
    }
}
