//! Why a machine could not be built or kept running.

use std::path::PathBuf;

use crate::loader;

/// Why a machine could not be built or kept running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the configuration makes no sense.
    #[error("machine configuration: {field}: {reason}")]
    Config {
        /// Which value.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the guest's could not be read.
    #[error("read {what} {}", path.display())]
    Read {
        /// What the file is for, e.g. `kernel`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel, initial RAM disk or command line cannot be booted.
    #[error("load {what}")]
    Load {
        /// The file, or what stands for it.
        what: String,
        /// Why not.
        #[source]
        source: loader::Error,
    },
    /// A disk could not be opened.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A device could not be put on the bus.
    #[error("build bus")]
    Bus(#[from] devices::BusError),
    /// A device could not be made.
    #[error("make device {name}")]
    Device {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Guest memory could not be had or written.
    #[error("guest memory")]
    Memory(#[from] memory::Error),
    /// The engine refused.
    #[error("create virtual machine")]
    Engine(#[from] engine::Error),
    /// Interrupt controllers could not be handed to the engine or taken back.
    #[error("move interrupt controllers")]
    Apics(#[from] devices::chipset::ForeignError),
    /// A snapshot could not be made or used.
    #[error("snapshot")]
    Snapshot(#[from] crate::snapshot::Error),
    /// The owner could not give up what it means to ([`crate::Backends::confine`]).
    #[error("confine the machine")]
    Confine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host gave no thread.
    #[error("start thread {name}")]
    Thread {
        /// The thread's name.
        name: String,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
}
