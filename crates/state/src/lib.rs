//! Saved state: what a device or a vCPU hands over when a machine is put to rest.
//!
//! A [`Section`] is `{kind, version, bytes}`; the bytes are CBOR, so that a field can be added with a default.
//! Saved types are separate from the live ones, named `…State`, and versioned: a change that old bytes cannot
//! express is a new version with a `From` the old one.
//!
//! [`archive`] puts many of them into one file.
//!
//! Deliberately absent: what a machine is, and guest RAM.
#![forbid(unsafe_code)]

pub mod archive;

use std::ops::RangeInclusive;

pub use archive::{Archive, ArchiveError, Header};
use serde::{Serialize, de::DeserializeOwned};

/// Sections larger than this are refused: no device has that much state, so it is nonsense or an attack.
pub const MAX_SECTION_BYTES: usize = 64 << 20;

/// Why a section could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The section belongs to something else.
    #[error("section is of kind {found:?}, expected {expected:?}")]
    Kind {
        /// What the section says.
        found: String,
        /// What the reader takes.
        expected: &'static str,
    },
    /// The section was written by a newer or unknown version.
    #[error("section {kind:?} has version {found}, this build reads up to {newest}")]
    Version {
        /// The section's kind.
        kind: &'static str,
        /// What the section says.
        found: u32,
        /// The newest version this build knows.
        newest: u32,
    },
    /// The bytes do not decode, or hold values that make no sense.
    #[error("decode section {kind:?}: {reason}")]
    Malformed {
        /// The section's kind.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The state could not be encoded.
    #[error("encode section {kind:?}: {reason}")]
    Encode {
        /// The section's kind.
        kind: &'static str,
        /// What went wrong.
        reason: String,
    },
}

/// One saved piece of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What the bytes describe, e.g. `ioapic`.
    pub kind: String,
    /// Version of the saved type.
    pub version: u32,
    /// CBOR.
    pub bytes: Vec<u8>,
}

impl Section {
    /// Encodes `value` as a section of `kind` and `version`.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode<T: Serialize>(kind: &'static str, version: u32, value: &T) -> Result<Self, Error> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes)
            .map_err(|e| Error::Encode { kind, reason: e.to_string() })?;
        Ok(Self { kind: kind.to_owned(), version, bytes })
    }

    /// Decodes a section that must be of `kind` and exactly `version`.
    ///
    /// # Errors
    /// [`Error::Kind`], [`Error::Version`] and [`Error::Malformed`].
    pub fn decode<T: DeserializeOwned>(&self, kind: &'static str, version: u32) -> Result<T, Error> {
        self.decode_any(kind, version..=version)
    }

    /// Decodes a section that must be of `kind` and of one of `versions`, which `T` reads all: what an older one lacks
    /// has a default in it.
    ///
    /// # Errors
    /// [`Error::Kind`], [`Error::Version`] and [`Error::Malformed`].
    pub fn decode_any<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        versions: RangeInclusive<u32>,
    ) -> Result<T, Error> {
        if self.kind != kind {
            return Err(Error::Kind { found: self.kind.clone(), expected: kind });
        }
        if !versions.contains(&self.version) {
            return Err(Error::Version { kind, found: self.version, newest: *versions.end() });
        }
        if self.bytes.len() > MAX_SECTION_BYTES {
            return Err(Error::Malformed { kind, reason: format!("{} bytes long", self.bytes.len()) });
        }
        let mut rest = self.bytes.as_slice();
        let value =
            ciborium::from_reader(&mut rest).map_err(|e| Error::Malformed { kind, reason: e.to_string() })?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(Error::Malformed { kind, reason: "trailing bytes".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_comes_back_as_it_was() {
        let section = Section::encode("pit", 1, &(7u8, "x")).unwrap();
        assert_eq!(section.decode::<(u8, String)>("pit", 1).unwrap(), (7, "x".to_owned()));
    }

    #[test]
    fn another_kind_another_version_and_damage_are_told_apart() {
        let mut section = Section::encode("pit", 1, &7u8).unwrap();
        assert!(matches!(section.decode::<u8>("pic", 1), Err(Error::Kind { .. })));
        assert!(matches!(section.decode::<u8>("pit", 2), Err(Error::Version { .. })));
        section.bytes.push(0);
        assert!(matches!(section.decode::<u8>("pit", 1), Err(Error::Malformed { .. })));
        section.bytes.clear();
        assert!(matches!(section.decode::<u8>("pit", 1), Err(Error::Malformed { .. })));
    }
}
