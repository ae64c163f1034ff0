//! What this process gives up before a guest's first instruction, so that whoever breaks out of the guest into it finds
//! little: [`drop_privileges`] takes its capabilities and the way to new ones, [`forbid_system_calls`] leaves it the few
//! system calls a running machine makes, [`give_back_memory`] returns what only its start needed.
//!
//! Reading order: `memory`, `privileges`, `calls` (the allow-list, each with its reason), `violation` (what a forbidden call ends in).
//!
//! Deliberately absent: landlock, as no path can be opened at all any more; another user id, as a process of the owner's
//! name can be seen and ended by him, and nothing that a user id allows is left; name spaces, which need files under other
//! names before they are opened.
#![deny(unsafe_code)]

mod calls;
mod folders;
mod memory;
mod names;
mod privileges;
mod violation;

pub use folders::{Folders, confine_names, confine_server};
pub use memory::{give_back_memory, use_one_heap};
pub use privileges::drop_privileges;
pub use violation::{Violation, on_lost_memory};

use std::io;

/// Why the process could not give something up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Capabilities or `no_new_privs`.
    #[error("{act}")]
    Privileges {
        /// What was tried.
        act: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A root of its own for a server of folders.
    #[error("{act}")]
    Root {
        /// What was tried.
        act: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The filter of system calls is not to be had on this processor.
    #[error("make a filter of system calls for {arch}")]
    Filter {
        /// The host's processor.
        arch: &'static str,
        /// Why not.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The host took no filter.
    #[error("filter system calls")]
    Install(#[source] seccompiler::Error),
    /// No handler for what a forbidden call raises.
    #[error("handle forbidden system calls")]
    Handler(#[source] io::Error),
}

/// What a machine's network asks of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nothing: it has none.
    None,
    /// Sockets over IPv4, which connect to wherever the host's user may.
    Sockets,
    /// This request of an interface that is open.
    Interface(u64),
}

/// From now on a system call that no running machine makes ends the process, in all its threads: `on_violation` says so, and
/// what it returns is the exit code. There is no way back. Everything the machine needs must be open, and executable memory
/// mapped.
///
/// `requests` are those of `ioctl` that the machine's engine makes beside the ones every machine makes: on a file that is
/// open, such as a virtual machine of the host's kernel, and without making another. `network` is what the guest's needs.
///
/// `on_violation` runs in a signal handler, in whatever that interrupted: it must not allocate and not wait for a lock.
///
/// # Errors
/// The host has no such filter.
pub fn forbid_system_calls(
    requests: &[u64],
    network: Network,
    on_violation: fn(&Violation) -> i32,
) -> Result<(), Error> {
    let filters = calls::filters(requests, network)?;
    violation::handle(on_violation).map_err(Error::Handler)?;
    for filter in &filters {
        seccompiler::apply_filter_all_threads(filter).map_err(Error::Install)?;
    }
    Ok(())
}
