//! The encoding of a message's fields: little endian, one after the other, no tags.
//!
//! | type | bytes |
//! |---|---|
//! | `u8 u16 u32 u64` | 1, 2, 4, 8 |
//! | `bool` | 1: 0 or 1, nothing else |
//! | `String` | u32 length, UTF-8 |
//! | list | u32 count, the items |
//! | `Option` | a `bool`, then the value if it is 1 |
//! | choice | u8, then the fields of that choice |
//!
//! A reader never allocates more than a small multiple of the bytes it was given: each item of a
//! list takes at least four of them.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use crate::Error;

/// Appends fields to a message body.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Continues after `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The bytes so far.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends one byte, 0 or 1.
    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// Appends a length and the text. A text of 4 GiB saturates the length; such a message is far
    /// beyond any frame and is refused when it is framed.
    pub fn string(&mut self, value: &str) {
        self.count(value.len());
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// Appends the number of items that follow.
    pub fn count(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    /// Appends a list of texts.
    pub fn strings(&mut self, values: &[String]) {
        self.count(values.len());
        for value in values {
            self.string(value);
        }
    }
}

/// Takes fields off a message body. Every method names the field it reads, for the error.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads from the start of `body`.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Error::Malformed { field, fault: "the message ends in it" })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the body ends first; so for all that follow.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, Error> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    /// Reads two bytes.
    ///
    /// # Errors
    /// As [`Decoder::u8`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, Error> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// Reads four bytes.
    ///
    /// # Errors
    /// As [`Decoder::u8`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// Reads eight bytes.
    ///
    /// # Errors
    /// As [`Decoder::u8`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// Reads one byte that is 0 or 1.
    ///
    /// # Errors
    /// As [`Decoder::u8`], and when the byte is anything else.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, Error> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Malformed { field, fault: "neither 0 nor 1" }),
        }
    }

    /// Reads a length and that many bytes of UTF-8.
    ///
    /// # Errors
    /// As [`Decoder::u8`], and when the bytes are not UTF-8.
    pub fn string(&mut self, field: &'static str) -> Result<String, Error> {
        let len = self.u32(field)? as usize;
        let bytes = self.take(field, len)?;
        let text = core::str::from_utf8(bytes).map_err(|_| Error::Malformed { field, fault: "not UTF-8" })?;
        Ok(text.to_owned())
    }

    /// Reads a count and that many items, each of which must take at least four bytes: a count
    /// that cannot be true is refused before the first item.
    ///
    /// # Errors
    /// As [`Decoder::u8`], and whatever `item` returns.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        item: impl Fn(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let count = self.u32(field)? as usize;
        if count > self.rest.len() / 4 {
            return Err(Error::Malformed { field, fault: "more items than bytes for them" });
        }
        (0..count).map(|_| item(self)).collect()
    }

    /// Reads a list of texts.
    ///
    /// # Errors
    /// As [`Decoder::list`].
    pub fn strings(&mut self, field: &'static str) -> Result<Vec<String>, Error> {
        self.list(field, |d| d.string(field))
    }

    /// Leaves what follows unread.
    pub fn skip_rest(&mut self) {
        self.rest = &[];
    }

    /// Ends the message.
    ///
    /// # Errors
    /// [`Error::Malformed`] when bytes are left over.
    pub fn finish(self) -> Result<(), Error> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Error::Malformed { field: "end", fault: "bytes left over" })
        }
    }
}
