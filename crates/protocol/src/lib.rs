//! The wire format between the host and the agent (PID 1 inside a microVM).
//!
//! The agent opens every connection, as a virtio-vsock stream to [`HOST_CID`]: one to
//! [`CONTROL_PORT`], which carries [`HostMessage`]s down and [`AgentMessage`]s up as frames, and one
//! to [`STREAM_PORT`] for each of a process's stdin, stdout and stderr, which opens with a [`Hello`]
//! and is raw bytes from there on (so that vsock credit is the back-pressure of that stream alone).
//!
//! ```text
//! agent                      host
//!   | -- Ready ---------------> |   before any root is mounted: a machine may be saved here
//!   | <----------------- Start  |   root, host name, first process
//!   | == Hello on 1025 =======> |   once per stream the process has
//!   | -- Started or Failed ---> |
//!   | <- Signal, Resize, ...    |
//!   | -- Exited --------------> |   all output was written to its streams, which then end
//!   | <-------------- Shutdown  |   the machine powers off
//! ```
//!
//! The guest is hostile to the host: every length is checked before anything is allocated, and
//! nothing decoded here panics. Read in order: [`message`], [`stream`], [`frame`], [`wire`].
//!
//! Deliberately absent: sockets, threads, and any knowledge of what a machine is.
//!
//! Without the feature `std` (the agent is built so) the helpers on `std::io` are absent.
#![forbid(unsafe_code)]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

pub mod error;
pub mod frame;
pub mod identity;
mod message;
pub mod network;
pub mod stream;
pub mod volume;
pub mod wire;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use frame::{FrameBuffer, Message};
#[cfg(feature = "std")]
pub use frame::{read_message, write_message};
pub use identity::{Identity, Renew};
pub use message::{
    AgentMessage, Exit, Failure, HostMessage, Level, Log, ModuleFailure, Process, Ready, Root, Start,
    WinSize, Writable,
};
pub use network::{Network, SixNetwork};
pub use stream::{Hello, Stream};
pub use volume::Volume;

/// The version of everything in this crate. It rises when a message changes its fields; a new kind of
/// message leaves it alone, because a peer that doesn't know the kind says so ([`Error::UnknownKind`]).
pub const VERSION: u16 = 2;

/// The context id of the host in virtio-vsock (`VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;

/// The vsock port on which the host waits for the agent's one control connection.
pub const CONTROL_PORT: u32 = 1024;

/// The vsock port on which the host waits for stream connections, each opening with a [`Hello`].
pub const STREAM_PORT: u32 = 1025;

/// Says whether this build can talk to an agent that announced `version` in [`Ready`].
///
/// # Errors
/// [`Error::Version`] with both numbers when it can't.
pub fn check_version(version: u16) -> Result<(), Error> {
    if version == VERSION { Ok(()) } else { Err(Error::Version { theirs: version, ours: VERSION }) }
}
