//! What can be wrong with bytes from the other end. Written out by hand rather than with a derive
//! macro for the reason `Cargo.toml` gives.

use core::fmt;
#[cfg(feature = "std")]
use std::io;

/// Why a message could not be read or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The connection itself failed.
    #[cfg(feature = "std")]
    Io {
        /// What was being done: "read frame", "write frame".
        act: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The connection ended inside a frame.
    Truncated,
    /// A frame says it is, or would have to be, longer than its kind may be.
    TooLong {
        /// The length in bytes.
        len: u64,
        /// The most it may be, in bytes.
        max: u32,
    },
    /// A frame of length zero: it has not even a kind.
    Empty,
    /// A kind of message this build doesn't know. The frame was consumed; the next can be read.
    UnknownKind(u8),
    /// The body of a known kind is not what its kind requires. The frame was consumed.
    Malformed {
        /// The field, e.g. "argv".
        field: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The other end speaks another version.
    Version {
        /// The agent's.
        theirs: u16,
        /// This build's.
        ours: u16,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "std")]
            Error::Io { act, .. } => f.write_str(act),
            Error::Truncated => f.write_str("read frame: the connection ended inside it"),
            Error::TooLong { len, max } => write!(f, "frame of {len} bytes, at most {max} are allowed"),
            Error::Empty => f.write_str("read frame: its length is 0"),
            Error::UnknownKind(kind) => write!(f, "message of unknown kind {kind:#04x}"),
            Error::Malformed { field, fault } => write!(f, "decode message: {field}: {fault}"),
            Error::Version { theirs, ours } => {
                write!(f, "the agent speaks protocol version {theirs}, this program {ours}")
            }
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            #[cfg(feature = "std")]
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
