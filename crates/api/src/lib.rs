//! HTTP faces of Strata: the Docker Engine API, for the stock `docker` command and its SDKs; what it has no words for; metrics; and
//! the web console, which is a client of these.
//!
//! ```text
//! server      connections, limits                       backend     what the program does for us: the one seam
//! listen tls  where, and with which certificates        machines    its part that docker knows nothing of
//! access      tokens, and pages of other sites          bodies      bodies that never come
//! docker/     a router table, then a file per concern   error       docker's status codes and error bodies
//! strata      snapshots, forks, templates               terminal    a command on a terminal, over a WebSocket
//! metrics     for Prometheus                            console     the files of the web console
//! images      which images may go, and what is told of them, for the command line too
//! ```
//!
//! Nothing is known here that is not in the files of the store: workloads and images are read from there for each request, so
//! what the command line does is seen at once, and the other way round, and a server that is killed takes nothing with it but
//! the connections it had. What lives in memory is who waits for the end of what ([`docker`]'s `exits`), and the commands that
//! `exec` announced (`exec`).
//!
//! Deliberately not here: what a workload's options are, how one is started or built (`backend`), flags.
#![forbid(unsafe_code)]
// `info` is one value of many fields.
#![recursion_limit = "256"]

mod access;
mod backend;
mod bodies;
mod console;
pub mod docker;
mod error;
mod images;
mod listen;
mod machines;
mod metrics;
mod scratch;
mod server;
mod strata;
mod terminal;
mod tls;
mod tuning;
mod unnamed;

pub use backend::{
    Backend, BuildOptions, CommandOptions, CommitOptions, Creation, Limit, Limits, Network, Process, Refusal,
    RefusalKind, Resolving, Throttle, Throttled, Usage,
};
pub use error::ApiError;
pub use images::{
    CHANGES, ImageFilters, RemovedImage, is_change, prune_images, remove_image, tag_image, tell_image,
};
pub use listen::Listen;
pub use machines::{AfterSnapshot, BlockTraffic, Machines, NetworkTraffic, SavedWorkload, Traffic};
pub use server::{End, Service, end, serve};
pub use tls::{Tls, TlsError};
pub use tuning::{HostName, OTHER, Tuning, is_group};
pub use unnamed::is_unnamed;
