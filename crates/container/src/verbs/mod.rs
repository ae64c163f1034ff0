//! What can be done with containers: a file per verb, all methods of [`Runtime`].

mod create;
mod delete;
mod exec;
mod features;
mod kill;
mod list;
mod orphans;
mod pause;
mod run;
mod start;
mod update;

use std::path::{Path, PathBuf};

pub use create::{CreateOptions, Source};
pub use exec::ExecOptions;
pub use features::features;
pub use orphans::{id_of, own_id};
pub use run::{Exit, Running};

use crate::error::{Error, Result};
use crate::state::{Folder, Lock, Record, State, Status};

/// The folder that states of containers are kept in, and how they are made.
#[derive(Clone, Debug)]
pub struct Runtime {
    root: PathBuf,
    systemd_cgroup: bool,
}

impl Runtime {
    /// A runtime whose containers have their folders in `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), systemd_cgroup: false }
    }

    /// Takes `slice:prefix:name` for a path of control groups, as systemd has it.
    #[must_use]
    pub fn systemd_cgroup(self, yes: bool) -> Self {
        Self { systemd_cgroup: yes, ..self }
    }

    /// Where states are kept.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, id: &str) -> Result<Folder> {
        Folder::new(&self.root, id)
    }

    /// A container and its record, kept from changing while the lock lives.
    fn open(&self, id: &str) -> Result<(Folder, Record, Lock)> {
        let folder = self.folder(id)?;
        let lock = folder.lock()?;
        let record = folder.read()?;
        Ok((folder, record, lock))
    }

    /// What is known about a container.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn state(&self, id: &str) -> Result<State> {
        let folder = self.folder(id)?;
        Ok(folder.read()?.state(&folder))
    }

    /// The config of a container's first process: what later ones start from.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn process_of(&self, id: &str) -> Result<crate::spec::Process> {
        Ok(self.folder(id)?.read()?.spec.process.unwrap_or_default())
    }
}

/// Refuses `act` unless the container is in one of these states.
fn require(act: &'static str, id: &str, status: Status, allowed: &[Status]) -> Result<()> {
    if allowed.contains(&status) {
        return Ok(());
    }
    Err(Error::Status { act, id: id.to_owned(), status })
}
