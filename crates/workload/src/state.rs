//! How a workload is.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The version of [`State`] that this build writes and reads.
pub(crate) const VERSION: u32 = 1;

/// How a workload is, as its monitor noted last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Of this very type: 1.
    pub version: u32,
    /// What it does.
    pub status: Status,
    /// The process that watches it; only true while `monitor.lock` is held.
    pub monitor_pid: Option<u32>,
    /// The process that runs it; only true while `monitor.lock` is held.
    pub worker_pid: Option<u32>,
    /// When its command was last started, in milliseconds since 1970.
    pub started_ms: Option<u64>,
    /// When it last ended.
    pub finished_ms: Option<u64>,
    /// How its command last ended: its code, or 128 + the signal's number.
    pub exit_code: Option<u8>,
    /// Why it could not be run, or ended for another reason than its command's end.
    pub error: Option<String>,
    /// How many times it was started again.
    pub restarts: u32,
}

impl State {
    /// Of a workload that was never started.
    pub fn new() -> State {
        State {
            version: VERSION,
            status: Status::Created,
            monitor_pid: None,
            worker_pid: None,
            started_ms: None,
            finished_ms: None,
            exit_code: None,
            error: None,
            restarts: 0,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        State::new()
    }
}

/// What a workload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing yet.
    Created,
    /// Its guest comes up.
    Starting,
    /// Its command runs.
    Running,
    /// It stands still until it is resumed.
    Paused,
    /// It ended, and will be started again.
    Restarting,
    /// It ended.
    Exited,
    /// It ran when its monitor was killed. Never written: it is what is read when nobody holds the lock.
    Lost,
}

impl Status {
    /// Whether somebody must be watching it.
    pub fn is_active(self) -> bool {
        matches!(self, Status::Starting | Status::Running | Status::Paused | Status::Restarting)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Created => "created",
            Status::Starting => "starting",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Exited => "exited",
            Status::Lost => "lost",
        })
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
