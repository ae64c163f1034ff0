//! Detached workloads, whatever their isolation: a folder for each, a process that watches it, and a socket to reach it.
//!
//! ```text
//! ROOT/workloads/
//!   lock                 held while a name is given or taken away
//!   events.json, .1      what happened to workloads: see `events`
//!   <id>/                64 hexadecimal digits
//!     workload.json      what it is: a Description, written once
//!     state.json         how it is: a State, replaced whole (write, fsync, rename)
//!     monitor.lock       locked by the monitor as long as it lives: who finds it free knows that nobody watches
//!     control.sock       where the monitor answers: see `control`
//!     log.json, .1, …    what the workload wrote, in docker's json-file format: see `log`
//! ```
//!
//! The monitor is a process of its own, started by whoever starts the workload and outliving it. It starts the *worker*, which
//! runs the machine or the container, keeps what it writes, notes how it ended, and starts it again where the restart policy
//! says so. A worker whose monitor is killed dies with it: the state then says that it ran, the lock that nobody watches, and
//! together they are [`Status::Lost`].
//!
//! Reading order: `description`, `state`, `folder`, `control`, `log`, `events`, `monitor`, `foreground`, `volumes`.
//!
//! Deliberately not here: what a machine or a container is, flags, printing.
#![forbid(unsafe_code)]

pub mod control;
mod description;
mod error;
mod events;
mod files;
mod folder;
mod foreground;
mod known;
mod listing;
pub mod log;
pub mod monitor;
mod mount;
pub mod networks;
mod removal;
mod signal;
mod state;
mod volumes;

pub use description::{Description, HealthCheck, HealthTest, Isolation, LogLimits, Restart, Wanted};
pub use error::{Error, Result};
pub use events::{Event, EventKind};
pub use folder::{Folder, Workloads, parse_name};
pub use foreground::Foreground;
pub use listing::in_parallel;
pub use mount::{Mount, MountSource, Propagation};
pub use removal::Running;
pub use signal::signal_number;
pub use state::{Health, HealthStatus, State, Status, now_ms};
pub use volumes::{Fill, Held, NewVolume, Volume, VolumeInfo, Volumes};
