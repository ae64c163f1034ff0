//! Files of a root that somebody hostile filled, as tar streams and back.
//!
//! One implementation for containers, whose root the host holds open, and for machines, where the agent does the same in
//! the guest. [`Request`] is what can be asked, as the words of a command line, for it is done by a process of its own:
//! tar comes from its standard input or goes to its standard output.
//!
//! Nothing leads out of the root: every path is resolved by `openat2` with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS, what is
//! found is held open and used by descriptor, and names in an archive are names below the folder it is put into.
//!
//! Reading order: `request` (what can be asked), `place` (paths), `header` (tar's blocks: POSIX pax and ustar, GNU's long
//! names), `pack` (files to tar), `unpack` (tar to files), `changes` (what an overlay's upper folder says).
//!
//! Deliberately not here: where a root comes from, compression, sparse archives, the standard library.
#![forbid(unsafe_code)]
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod changes;
mod error;
mod header;
mod pack;
mod place;
mod request;
mod stream;
#[cfg(test)]
mod tests;
mod unpack;

pub use error::{Cause, Error, Result};
pub use place::Stat;
pub use request::{Owner, Request, Roots};
pub use unpack::{Overwrite, Put};

/// Files that belong to a workload's start and not to what was done in it: they are written anew each time.
pub const OWN_FILES: [&[u8]; 3] = [b"etc/hostname", b"etc/hosts", b"etc/resolv.conf"];
