//! Frames on the control connection: u32 length of what follows (little endian), u8 kind, body.
//!
//! [`read_message`] and [`write_message`] are for a connection that blocks; [`FrameBuffer`] is for
//! one that doesn't, and for a fuzzer.

use alloc::vec;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::io::{ErrorKind, Read, Write};

use crate::Error;
use crate::wire::{Decoder, Encoder};

/// The bytes of a frame's length.
const HEADER: usize = 4;

/// One direction of the control connection.
pub trait Message: Sized {
    /// The most a frame of this direction may hold (kind and body), in bytes. For what the guest
    /// sends this bounds what a hostile one can make the host keep.
    const MAX_LEN: u32;

    /// Appends the fields and returns the kind.
    fn encode(&self, to: &mut Encoder) -> u8;

    /// Reads the fields of a message of this kind.
    ///
    /// # Errors
    /// [`Error::UnknownKind`] or [`Error::Malformed`].
    fn decode_fields(kind: u8, from: &mut Decoder<'_>) -> Result<Self, Error>;

    /// Understands the inside of one frame: kind and body. Any bytes may be given.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::UnknownKind`] or [`Error::Malformed`].
    fn decode(frame: &[u8]) -> Result<Self, Error> {
        let (&kind, body) = frame.split_first().ok_or(Error::Empty)?;
        let mut decoder = Decoder::new(body);
        let message = Self::decode_fields(kind, &mut decoder)?;
        decoder.finish()?;
        Ok(message)
    }

    /// The whole frame, with its length.
    ///
    /// # Errors
    /// [`Error::TooLong`] beyond [`Message::MAX_LEN`].
    fn to_frame(&self) -> Result<Vec<u8>, Error> {
        let mut encoder = Encoder::new(vec![0; HEADER + 1]);
        let kind = self.encode(&mut encoder);
        let mut bytes = encoder.finish();
        let len = check_len::<Self>((bytes.len() - HEADER) as u64)?;
        bytes[..HEADER].copy_from_slice(&len.to_le_bytes());
        bytes[HEADER] = kind;
        Ok(bytes)
    }
}

fn check_len<M: Message>(len: u64) -> Result<u32, Error> {
    match u32::try_from(len) {
        Ok(0) => Err(Error::Empty),
        Ok(len) if len <= M::MAX_LEN => Ok(len),
        _ => Err(Error::TooLong { len, max: M::MAX_LEN }),
    }
}

/// Sends one message as one frame, in one write where the connection takes it.
///
/// # Errors
/// [`Error::TooLong`] before anything is sent, [`Error::Io`] of the connection.
#[cfg(feature = "std")]
pub fn write_message<M: Message>(to: &mut impl Write, message: &M) -> Result<(), Error> {
    let frame = message.to_frame()?;
    to.write_all(&frame).map_err(|source| Error::Io { act: "write frame", source })
}

/// Waits for one message. `None` is the orderly end of the connection, between two frames.
///
/// After [`Error::UnknownKind`] and [`Error::Malformed`] the next message can be read; after any
/// other error the connection is of no use.
///
/// # Errors
/// Any but [`Error::Version`].
#[cfg(feature = "std")]
pub fn read_message<M: Message>(from: &mut impl Read) -> Result<Option<M>, Error> {
    let io = |source| Error::Io { act: "read frame", source };
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match from.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(Error::Truncated),
            Ok(count) => have += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(io(e)),
        }
    }
    let len = check_len::<M>(u64::from(u32::from_le_bytes(header)))?;
    // Grows as bytes arrive: a length alone makes nobody allocate.
    let mut frame = Vec::new();
    from.take(u64::from(len)).read_to_end(&mut frame).map_err(io)?;
    if frame.len() < len as usize {
        return Err(Error::Truncated);
    }
    M::decode(&frame).map(Some)
}

/// Collects bytes as they come and gives out the messages they complete.
///
/// It holds at most what was pushed since the last [`FrameBuffer::take`] returned nothing, and a
/// frame of at most [`Message::MAX_LEN`].
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether the connection may end here: no frame is half received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// How many bytes were pushed and are not part of a message taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Takes the next complete message, if there is one.
    ///
    /// # Errors
    /// As [`Message::decode`], after which the next can be taken; [`Error::TooLong`] and
    /// [`Error::Empty`], after which nothing can.
    pub fn take<M: Message>(&mut self) -> Result<Option<M>, Error> {
        let rest = &self.bytes[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let len = check_len::<M>(u64::from(u32::from_le_bytes(*header)))? as usize;
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        let message = M::decode(frame);
        self.start += HEADER + len;
        message.map(Some)
    }
}
