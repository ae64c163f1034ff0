//! What a stream connection says first: eight bytes, then the stream's own bytes until it ends.
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 2 | `"st"` |
//! | 2 | 1 | low byte of [`VERSION`] |
//! | 3 | 1 | which: 0 stdin, 1 stdout, 2 stderr |
//! | 4 | 4 | exec id, little endian |
//!
//! stdin flows to the agent: the host ends it by shutting down its sending half. stdout and stderr
//! flow to the host: the agent ends them by closing. A process on a terminal has no stderr.

#[cfg(feature = "std")]
use std::io::{Read, Write};

use crate::{Error, VERSION};

const MAGIC: [u8; 2] = *b"st";

/// Which of a process's standard streams a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Host to process.
    Stdin,
    /// Process to host; with a terminal, all it shows.
    Stdout,
    /// Process to host.
    Stderr,
}

/// The first bytes of a stream connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The process, by the id the host gave it.
    pub exec: u32,
    /// Which of its streams.
    pub stream: Stream,
}

impl Hello {
    /// Its length in bytes.
    pub const LEN: usize = 8;

    /// The bytes to send.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        let stream = match self.stream {
            Stream::Stdin => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        let [a, b, c, d] = self.exec.to_le_bytes();
        [MAGIC[0], MAGIC[1], VERSION as u8, stream, a, b, c, d]
    }

    /// Understands what was received.
    ///
    /// # Errors
    /// [`Error::Version`] for another version, [`Error::Malformed`] for anything else.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, Error> {
        let [m0, m1, version, stream, a, b, c, d] = bytes;
        if [m0, m1] != MAGIC {
            return Err(Error::Malformed { field: "hello", fault: "it does not start with \"st\"" });
        }
        if version != VERSION as u8 {
            return Err(Error::Version { theirs: u16::from(version), ours: VERSION });
        }
        let stream = match stream {
            0 => Stream::Stdin,
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return Err(Error::Malformed { field: "hello", fault: "a stream that is none of 0, 1, 2" }),
        };
        Ok(Self { exec: u32::from_le_bytes([a, b, c, d]), stream })
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Io`] of the connection.
    #[cfg(feature = "std")]
    pub fn write(self, to: &mut impl Write) -> Result<(), Error> {
        to.write_all(&self.encode()).map_err(|source| Error::Io { act: "write hello", source })
    }

    /// Waits for it and understands it.
    ///
    /// # Errors
    /// [`Error::Io`] of the connection, [`Error::Truncated`], or as [`Hello::decode`].
    #[cfg(feature = "std")]
    pub fn read(from: &mut impl Read) -> Result<Self, Error> {
        let mut bytes = [0; Self::LEN];
        from.read_exact(&mut bytes).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::Io { act: "read hello", source },
        })?;
        Self::decode(bytes)
    }
}
