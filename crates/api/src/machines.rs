//! What Strata does for workloads that Docker's API has no words for: part of what the program that serves does for this crate.

use serde::Serialize;
use serde_json::Value;
use workload::Folder;

use crate::backend::Refusal;

/// What is asked of the program, beside [`crate::Backend`]. Calls may wait.
pub trait Machines {
    /// What this host offers for each layer of isolation: what `strata check --json` writes.
    ///
    /// # Errors
    /// This program is gone.
    fn check(&self) -> Result<Value, Refusal>;

    /// The saved machines that new ones start from: what `strata templates ls --json` writes.
    ///
    /// # Errors
    /// The store is not as it should be.
    fn templates(&self) -> Result<Value, Refusal>;

    /// Removes a template; machines that came from it run on.
    ///
    /// # Errors
    /// There is none of this id.
    fn remove_template(&self, id: &str) -> Result<(), Refusal>;

    /// The snapshots in the store, the newest first.
    ///
    /// # Errors
    /// Their folder cannot be read.
    fn snapshots(&self) -> Result<Vec<SavedWorkload>, Refusal>;

    /// Saves a running workload to a snapshot of the store, which it replaces if there is one of this name.
    ///
    /// # Errors
    /// It does not run, it is none that can be saved, or there is no space.
    fn snapshot(&self, folder: &Folder, name: &str, after: AfterSnapshot) -> Result<(), Refusal>;

    /// Goes on, in the background, with what was saved. The id of the new workload.
    ///
    /// # Errors
    /// There is no such snapshot, what it needs is not here, or the name is taken.
    fn restore(&self, snapshot: &str, name: Option<&str>) -> Result<String, Refusal>;

    /// Removes a snapshot; workloads that came from it run on.
    ///
    /// # Errors
    /// There is none of this name.
    fn remove_snapshot(&self, name: &str) -> Result<(), Refusal>;

    /// Makes running copies of a workload: their names and ids, what `strata fork --json` writes.
    ///
    /// # Errors
    /// It does not run, or is none that can be copied.
    fn fork(&self, folder: &Folder, count: u32) -> Result<Value, Refusal>;

    /// What went in and out of a workload since it was started; what cannot be told is nothing.
    fn traffic(&self, folder: &Folder) -> Option<Traffic>;
}

/// What becomes of a workload when it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterSnapshot {
    /// It goes on.
    GoOn,
    /// It ends.
    Stop,
}

/// A workload that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SavedWorkload {
    /// Its name in the store.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// When it was saved, in milliseconds since 1970.
    pub created_ms: u64,
    /// Its command.
    pub command: Vec<String>,
    /// Virtual processors.
    pub cpus: Option<u32>,
    /// Bytes of memory of its machine.
    pub memory_bytes: Option<u64>,
    /// Bytes that it takes on disk.
    pub size_bytes: u64,
    /// Why it cannot be restored, if so.
    pub broken: Option<String>,
}

/// What went in and out of a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Through its network cards.
    pub network: Option<NetworkTraffic>,
    /// To and from disks of the host.
    pub block: Option<BlockTraffic>,
}

/// What went through network cards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkTraffic {
    /// Bytes that came to the workload.
    pub received_bytes: u64,
    /// Bytes that it sent.
    pub sent_bytes: u64,
}

/// What went to and from disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockTraffic {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}
