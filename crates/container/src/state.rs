//! What is kept of a container between commands: a folder per container with `state.json`, `process.json` once its process
//! exists, and `start.sock` while that waits to be started.
//!
//! No file is ever put in the place of another: file systems write such a one to their disk at once, and wait for the disk
//! again when it goes.
//!
//! ```text
//! creating ──► created ──start──► running ◄──► paused
//!                 │                  │
//!                 └──────► stopped ◄─┘          delete: the folder goes
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cgroups::Cgroups;
use crate::error::{Error, Result, While};
use crate::spec::Spec;

/// The version of the runtime specification this follows.
pub const OCI_VERSION: &str = "1.2.1";

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its folder exists, its process not yet.
    Creating,
    /// Its process waits to be started.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// `process.json`: a container's first process. All zeroes before there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// Its id as the host sees it.
    pub pid: i32,
    /// When it began, in clock ticks since boot: with its id it names a process for ever.
    pub started: u64,
}

/// `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its name.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system; empty if it is an image's.
    pub rootfs: PathBuf,
    /// Its first process.
    #[serde(skip)]
    pub process: First,
    /// Seconds since 1970.
    pub created: u64,
    /// Who made it.
    pub owner: u32,
    /// Its control groups.
    pub cgroups: Cgroups,
    /// The bundle's config, for exec, delete and update.
    pub spec: Spec,
}

/// What `state` tells: the shape the specification gives.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// Id of its process as the host sees it; 0 if there is none.
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Who made it.
    pub owner: String,
    /// The bundle's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The folder of one container.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    id: String,
}

/// Held while a container is changed; others wait.
#[derive(Debug)]
pub struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: the container's process has a copy until it executes its command.
        let _ = rustix::fs::flock(self.0.as_fd(), rustix::fs::FlockOperation::Unlock);
    }
}

impl Folder {
    /// The folder of container `id` under `root`, which need not exist.
    ///
    /// # Errors
    /// The name is no name of a file.
    pub fn new(root: &Path, id: &str) -> Result<Self> {
        let is_plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b));
        if id.is_empty() || id.len() > 1024 || !is_plain || matches!(id, "." | "..") {
            return Err(Error::refused(
                format!("container id {id:?}"),
                "it has letters, digits and _+-. only",
            ));
        }
        Ok(Self { path: root.join(id), id: id.to_owned() })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn create(&self) -> Result<()> {
        let act = || format!("make {}", self.path.display());
        if let Some(root) = self.path.parent() {
            std::fs::create_dir_all(root).during(act)?;
        }
        let mode = rustix::fs::Mode::from_raw_mode(0o711);
        match rustix::fs::mkdir(&self.path, mode) {
            Err(rustix::io::Errno::EXIST) => Err(Error::Exists(self.id.clone())),
            result => result.during(act),
        }
    }

    /// Keeps others from changing the container meanwhile.
    ///
    /// # Errors
    /// There is no such container.
    pub fn lock(&self) -> Result<Lock> {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let folder = match rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Err(Error::Unknown(self.id.clone())),
            opened => opened.during(|| format!("open {}", self.path.display()))?,
        };
        rustix::fs::flock(folder.as_fd(), rustix::fs::FlockOperation::LockExclusive)
            .during(|| format!("lock {}", self.path.display()))?;
        Ok(Lock(folder))
    }

    /// Writes the record, but for its process: whole or not at all. It need not survive the host, so it is not synced.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, record: &Record) -> Result<()> {
        self.write_file("state.json", serde_json::to_vec(record))
    }

    /// Writes which process its first one is.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_process(&self, process: First) -> Result<()> {
        self.write_file("process.json", serde_json::to_vec(&process))
    }

    fn write_file(&self, name: &str, text: serde_json::Result<Vec<u8>>) -> Result<()> {
        let file = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let act = || format!("write {}", file.display());
        let text = text.map_err(std::io::Error::from).during(act)?;
        File::create(&new).and_then(|mut file| file.write_all(&text)).during(act)?;
        std::fs::rename(&new, &file).during(act)
    }

    /// Reads the record.
    ///
    /// # Errors
    /// There is no such container, or its record is broken.
    pub fn read(&self) -> Result<Record> {
        let unknown = || Error::Unknown(self.id.clone());
        // The process first: whatever has one has a record.
        let process = self.read_file("process.json")?.unwrap_or_default();
        let record: Record = self.read_file("state.json")?.ok_or_else(unknown)?;
        Ok(Record { process, ..record })
    }

    fn read_file<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let file = self.path.join(name);
        let text = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.during(|| format!("read {}", file.display()))?,
        };
        let broken = |source| Error::Json { what: file.display().to_string(), source };
        serde_json::from_slice(&text).map(Some).map_err(broken)
    }

    /// Where its process waits to be started.
    #[must_use]
    pub fn start_socket(&self) -> PathBuf {
        self.path.join("start.sock")
    }

    /// Removes it with all that is in it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.during(|| format!("remove {}", self.path.display())),
        }
    }
}

impl Record {
    /// Where it is in its life now.
    #[must_use]
    pub fn status(&self, folder: &Folder) -> Status {
        if self.process.pid == 0 {
            return Status::Creating;
        }
        if !self.is_alive() {
            return Status::Stopped;
        }
        if folder.start_socket().exists() {
            return Status::Created;
        }
        if self.cgroups.is_frozen() { Status::Paused } else { Status::Running }
    }

    /// Whether its first process is there and is no zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let First { pid, started } = self.process;
        pid > 0 && process_start(pid).is_some_and(|(start, alive)| alive && start == started)
    }

    /// Its first process, held: whoever gets the same id later is another.
    ///
    /// # Errors
    /// It has ended.
    pub fn hold(&self) -> Result<OwnedFd> {
        let gone = || Error::Status { act: "reach", id: self.id.clone(), status: Status::Stopped };
        let pid = rustix::process::Pid::from_raw(self.process.pid).ok_or_else(gone)?;
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(pid, flags).map_err(|_| gone())?;
        if self.is_alive() { Ok(pidfd) } else { Err(gone()) }
    }

    /// What `state` tells.
    #[must_use]
    pub fn state(&self, folder: &Folder) -> State {
        self.state_as(folder, self.status(folder))
    }

    /// What hooks are told, each at a point where the container counts as being in this state.
    #[must_use]
    pub fn state_as(&self, folder: &Folder, status: Status) -> State {
        debug_assert_eq!(folder.id, self.id);
        State {
            oci_version: OCI_VERSION.to_owned(),
            id: self.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.process.pid },
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: rfc3339(self.created),
            owner: if self.owner == 0 { "root".to_owned() } else { self.owner.to_string() },
            annotations: self.spec.annotations.clone(),
        }
    }
}

/// When process `pid` began, and whether it is more than a zombie.
#[must_use]
pub fn process_start(pid: i32) -> Option<(u64, bool)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses too; the last one ends it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let alive = !matches!(fields.next()?, "Z" | "X");
    Some((fields.nth(18)?.parse().ok()?, alive))
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time in UTC as RFC 3339 has it; the end of the year 9999 for any later one.
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.unwrap_or(Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_files() {
        for good in ["a", "web-1", "A_b.c+d", "0"] {
            Folder::new("/run/x".as_ref(), good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\0b", "ä"] {
            assert!(Folder::new("/run/x".as_ref(), bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_told_as_the_calendar_has_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_764_157_455), "2025-11-26T11:44:15Z");
    }

    #[test]
    fn a_process_is_named_by_when_it_began() {
        let (start, alive) = process_start(std::process::id() as i32).unwrap();
        assert!(start > 0 && alive);
        assert_eq!(process_start(i32::MAX), None);
    }
}
