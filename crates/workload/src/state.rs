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
    /// The kernel killed a process of it for want of memory, of those that it may take, since it was last started.
    #[serde(default)]
    pub oom_killed: bool,
    /// What its checks say, if it has any and runs.
    #[serde(default)]
    pub health: Option<Health>,
}

/// What the checks of a workload say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How it is.
    pub status: HealthStatus,
    /// Checks that failed in a row.
    pub failing: u32,
    /// When the last check ended, in milliseconds since 1970.
    pub checked_ms: Option<u64>,
    /// Its exit code; none if it took too long or could not be run.
    pub exit_code: Option<u8>,
    /// The beginning of what it wrote, or why it could not be run.
    pub output: String,
}

/// How a workload is that is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded yet, and not enough have failed.
    #[default]
    Starting,
    /// The last checks succeeded, or not enough failed.
    Healthy,
    /// As many checks in a row failed as count.
    Unhealthy,
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        })
    }
}

impl Health {
    /// What is known after one more check: its exit code, unless it took too long, and what it wrote. `early` failures do
    /// not count until one has succeeded.
    pub(crate) fn after(self, code: Option<u8>, output: String, early: bool, retries: u32) -> Health {
        let well = code == Some(0);
        let counts = !(early && self.status == HealthStatus::Starting);
        let failing = match (well, counts) {
            (true, _) => 0,
            (false, true) => self.failing.saturating_add(1),
            (false, false) => self.failing,
        };
        let status = match self.status {
            _ if well => HealthStatus::Healthy,
            _ if failing >= retries.max(1) => HealthStatus::Unhealthy,
            before => before,
        };
        Health { status, failing, checked_ms: Some(now_ms()), exit_code: code, output }
    }
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
            oom_killed: false,
            health: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_failures_in_a_row_as_count_make_it_unhealthy() {
        let after = |health: Health, code, early| health.after(code, String::new(), early, 2);
        let early = after(Health::default(), Some(1), true);
        assert_eq!((early.status, early.failing), (HealthStatus::Starting, 0));
        let one = after(early, None, false);
        assert_eq!((one.status, one.failing, one.exit_code), (HealthStatus::Starting, 1, None));
        let two = after(one, Some(3), false);
        assert_eq!((two.status, two.failing), (HealthStatus::Unhealthy, 2));
        let well = after(two, Some(0), false);
        assert_eq!((well.status, well.failing), (HealthStatus::Healthy, 0));
        // Once it was well, failures count at any time.
        let again = after(well, Some(1), true);
        assert_eq!((again.status, again.failing), (HealthStatus::Healthy, 1));
    }
}
