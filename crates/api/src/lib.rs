//! HTTP faces of Strata. One so far: the Docker Engine API, for the stock `docker` command and its SDKs.
//!
//! ```text
//! server      sockets, connections, limits             backend     what the program does for us: the one seam
//! docker/     a router table, then a file per concern   error       docker's status codes and error bodies
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

mod backend;
pub mod docker;
mod error;
mod server;

pub use backend::{
    Backend, Bind, BuildOptions, CommandOptions, Creation, Limit, Network, Process, Refusal, RefusalKind,
    Usage,
};
pub use error::ApiError;
pub use server::{End, Listen, end, serve};
