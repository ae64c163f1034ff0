//! `list`, `ps` and `stats`.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::{Runtime, require};
use crate::cgroups::Usage;
use crate::error::{Result, While};
use crate::network::Namespace;
use crate::rest;
use crate::state::{State, Status};

/// The number `statfs` has for memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;

impl Runtime {
    /// All containers, by name. Those that go away meanwhile are left out.
    ///
    /// # Errors
    /// The folder of states cannot be read.
    pub fn list(&self) -> Result<Vec<State>> {
        let entries = match std::fs::read_dir(self.root()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.during(|| format!("read {}", self.root().display()))?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut states: Vec<State> = names.filter_map(|id| self.state(&id).ok()).collect();
        states.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(states)
    }

    /// Ids of all processes of a container, as the host sees them.
    ///
    /// # Errors
    /// There is no such container, or its control groups cannot be read.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>> {
        let record = self.folder(id)?.read()?;
        record.cgroups.processes()
    }

    /// The root of a container that runs, as its first process sees it. What is in it is the container's to change at any time.
    ///
    /// # Errors
    /// There is no such container, or it does not run.
    pub fn root_of(&self, id: &str) -> Result<OwnedFd> {
        self.open_of(id, "root", OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The namespace of this kind (`net`, `pid`, `ipc`: a name of `/proc/PID/ns`) of a container that runs.
    ///
    /// # Errors
    /// There is no such container, or it does not run.
    pub fn namespace_of(&self, id: &str, kind: &str) -> Result<Namespace> {
        self.open_of(id, &format!("ns/{kind}"), OFlags::RDONLY).map(Namespace::from)
    }

    /// What a container that runs has at `/dev/shm`, as a mount that is attached nowhere.
    ///
    /// # Errors
    /// There is no such container, it does not run, or has no memory there.
    pub fn shared_memory_of(&self, id: &str) -> Result<OwnedFd> {
        let (root, namespace) = (self.root_of(id)?, self.open_of(id, "ns/mnt", OFlags::RDONLY)?);
        rest::clone_of(root, namespace, "dev/shm", TMPFS_MAGIC)
    }

    /// Opens what the kernel tells of the first process of a container that runs.
    fn open_of(&self, id: &str, what: &str, flags: OFlags) -> Result<OwnedFd> {
        let folder = self.folder(id)?;
        let record = folder.read()?;
        let held = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Its number may be another's by the time the status is known; what is held open is not.
        let process = rustix::fs::open(format!("/proc/{}", record.process.pid), held, Mode::empty());
        require("look into", id, record.status(&folder), &[Status::Running, Status::Paused])?;
        let flags = flags | OFlags::CLOEXEC;
        let opened = process.and_then(|process| rustix::fs::openat(process, what, flags, Mode::empty()));
        opened.during(|| format!("open {what} of container {id:?}"))
    }

    /// What the processes of a container take of the host.
    ///
    /// # Errors
    /// There is no such container.
    pub fn usage(&self, id: &str) -> Result<Usage> {
        Ok(self.folder(id)?.read()?.cgroups.usage())
    }
}
