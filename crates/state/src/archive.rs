//! Many sections as one row of bytes: the file `state` of a snapshot.
//!
//! ```text
//! strata snapshot 1\n          format version
//! board microvm\n              the header: one `name value` a line, readable with `head`
//! …
//! \n
//! u32 count, then for each section, little endian:
//!   u16 length, path │ u16 length, kind │ u32 version │ u32 length, bytes │ u32 CRC-32C of all that
//! u32 CRC-32C of everything before
//! ```
//! Read as input from a stranger: nothing is allocated by its own word, and whatever is wrong is named. The last four
//! bytes are written last, so half a file is never taken for a whole one.

use std::collections::BTreeMap;

use crate::{MAX_SECTION_BYTES, Section};

/// The format this build writes, and the only one it reads.
pub const FORMAT: u32 = 1;
/// The file's first bytes, before the format's number.
const MAGIC: &str = "strata snapshot ";
/// Longest header, path and kind: a name is a line, not a book.
const MAX_HEADER_BYTES: usize = 4096;
const MAX_NAME_BYTES: usize = 256;
/// Most sections: two for each of 64 vCPUs and 64 devices are far below.
const MAX_SECTIONS: u32 = 4096;

/// Why an archive could not be read or is not what the machine needs.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArchiveError {
    /// These bytes are no archive at all.
    #[error("not a snapshot: it does not begin with {:?}", MAGIC.trim_end())]
    NotOne,
    /// Another version of the format.
    #[error("snapshot format {found:?}, this build reads format {FORMAT}")]
    Format {
        /// What the file says.
        found: String,
    },
    /// It ends too early.
    #[error("truncated in {what}")]
    Truncated {
        /// Where.
        what: String,
    },
    /// Bytes changed since it was written.
    #[error("damaged: checksum of {what} does not match")]
    Checksum {
        /// Where.
        what: String,
    },
    /// It says something that cannot be.
    #[error("{what}: {fault}")]
    Malformed {
        /// Where.
        what: String,
        /// What is wrong.
        fault: &'static str,
    },
    /// A section that the machine needs is not there.
    #[error("section {path:?} is missing")]
    Missing {
        /// Its path.
        path: String,
    },
    /// Sections that nobody knows.
    #[error("unknown sections: {}", paths.join(", "))]
    Unknown {
        /// Their paths.
        paths: Vec<String>,
    },
}

/// What can be known of a snapshot without decoding it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The kind of machine, e.g. `microvm`.
    pub board: String,
    /// The processor its guest sees, by name.
    pub cpu_model: String,
    /// The program that wrote it.
    pub build: String,
}

/// Sections by path, to be taken one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    /// The header.
    pub header: Header,
    sections: BTreeMap<String, Section>,
}

impl Archive {
    /// With no sections yet.
    pub fn new(header: Header) -> Self {
        Self { header, sections: BTreeMap::new() }
    }

    /// Adds a section; one of the same path is replaced.
    pub fn put(&mut self, path: impl Into<String>, section: Section) {
        self.sections.insert(path.into(), section);
    }

    /// Takes the section at `path` out.
    ///
    /// # Errors
    /// [`ArchiveError::Missing`].
    pub fn take(&mut self, path: &str) -> Result<Section, ArchiveError> {
        self.sections.remove(path).ok_or_else(|| ArchiveError::Missing { path: path.to_owned() })
    }

    /// The paths and sections that are there.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.sections.iter().map(|(path, section)| (path.as_str(), section))
    }

    /// Says that everything was taken that anybody knows.
    ///
    /// # Errors
    /// [`ArchiveError::Unknown`] with what is left.
    pub fn finish(self) -> Result<(), ArchiveError> {
        if self.sections.is_empty() {
            return Ok(());
        }
        Err(ArchiveError::Unknown { paths: self.sections.into_keys().collect() })
    }

    /// The bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Header { board, cpu_model, build } = &self.header;
        let mut bytes =
            format!("{MAGIC}{FORMAT}\nboard {board}\ncpu {cpu_model}\nbuild {build}\n\n").into_bytes();
        bytes.extend((self.sections.len() as u32).to_le_bytes());
        for (path, Section { kind, version, bytes: content }) in &self.sections {
            let start = bytes.len();
            for name in [path, kind] {
                bytes.extend((name.len() as u16).to_le_bytes());
                bytes.extend(name.as_bytes());
            }
            bytes.extend(version.to_le_bytes());
            bytes.extend((content.len() as u32).to_le_bytes());
            bytes.extend(content);
            let sum = crc32c::crc32c(&bytes[start..]);
            bytes.extend(sum.to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// All of [`ArchiveError`] but [`ArchiveError::Missing`] and [`ArchiveError::Unknown`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let (header, rest) = split_header(bytes)?;
        let mut from = Reader { bytes: rest };
        let count = from.u32("number of sections")?;
        if count > MAX_SECTIONS {
            return Err(malformed("number of sections", "more than any machine has"));
        }
        let mut archive = Self::new(header);
        for index in 0..count {
            let (path, section) = from.section(index)?;
            if archive.sections.contains_key(&path) {
                return Err(malformed(&format!("section {path:?}"), "is there twice"));
            }
            archive.sections.insert(path, section);
        }
        let body = bytes.len() - from.bytes.len();
        let sum = from.u32("checksum of the file")?;
        if !from.bytes.is_empty() {
            return Err(malformed("end of the file", "something comes after it"));
        }
        if sum != crc32c::crc32c(&bytes[..body]) {
            return Err(ArchiveError::Checksum { what: "the file".to_owned() });
        }
        Ok(archive)
    }
}

/// The header at the start of `bytes`, which may be no more than the first 4 KiB of a file.
///
/// # Errors
/// As [`Archive::parse`].
pub fn read_header(bytes: &[u8]) -> Result<Header, ArchiveError> {
    split_header(bytes).map(|(header, _)| header)
}

fn malformed(what: &str, fault: &'static str) -> ArchiveError {
    ArchiveError::Malformed { what: what.to_owned(), fault }
}

fn split_header(bytes: &[u8]) -> Result<(Header, &[u8]), ArchiveError> {
    let after = bytes.strip_prefix(MAGIC.as_bytes()).ok_or(ArchiveError::NotOne)?;
    let head = &after[..after.len().min(MAX_HEADER_BYTES)];
    let line_end = head.iter().position(|b| *b == b'\n');
    let line_end = line_end.ok_or_else(|| ArchiveError::Truncated { what: "the header".to_owned() })?;
    let version = String::from_utf8_lossy(&head[..line_end.min(20)]);
    // Whatever follows in another format is not ours to read.
    if version != FORMAT.to_string() {
        return Err(ArchiveError::Format { found: version.into_owned() });
    }
    let end = head.windows(2).position(|pair| pair == b"\n\n");
    let end = end.ok_or_else(|| ArchiveError::Truncated { what: "the header".to_owned() })?;
    let text = std::str::from_utf8(&head[line_end..end]).map_err(|_| malformed("the header", "not text"))?;
    let mut header = Header::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (name, value) =
            line.split_once(' ').ok_or_else(|| malformed("the header", "a line without value"))?;
        match name {
            "board" => header.board = value.to_owned(),
            "cpu" => header.cpu_model = value.to_owned(),
            "build" => header.build = value.to_owned(),
            _ => return Err(malformed("the header", "an unknown line")),
        }
    }
    Ok((header, &after[end + 2..]))
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], ArchiveError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(len)
            .ok_or_else(|| ArchiveError::Truncated { what: what.to_owned() })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, ArchiveError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn name(&mut self, what: &str) -> Result<String, ArchiveError> {
        let len = self.take(2, what)?;
        let len = usize::from(u16::from_le_bytes(len.try_into().expect("two bytes were taken")));
        if len > MAX_NAME_BYTES {
            return Err(malformed(what, "a name longer than 256 bytes"));
        }
        let text = std::str::from_utf8(self.take(len, what)?)
            .map_err(|_| malformed(what, "a name that is no text"))?;
        Ok(text.to_owned())
    }

    fn section(&mut self, index: u32) -> Result<(String, Section), ArchiveError> {
        let start = self.bytes;
        let path = self.name(&format!("section {index}"))?;
        let what = format!("section {path:?}");
        let kind = self.name(&what)?;
        let version = self.u32(&what)?;
        let len = self.u32(&what)? as usize;
        if len > MAX_SECTION_BYTES {
            return Err(malformed(&what, "larger than any section is"));
        }
        let bytes = self.take(len, &what)?.to_vec();
        let read = &start[..start.len() - self.bytes.len()];
        if self.u32(&what)? != crc32c::crc32c(read) {
            return Err(ArchiveError::Checksum { what });
        }
        Ok((path, Section { kind, version, bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Archive {
        let header =
            Header { board: "microvm".into(), cpu_model: "x86-64-v3".into(), build: "strata 0.1.0".into() };
        let mut archive = Archive::new(header);
        archive.put("serial0", Section::encode("uart", 1, &(1u8, "x")).unwrap());
        archive.put("pit", Section::encode("pit", 7, &[0u64; 9]).unwrap());
        archive
    }

    #[test]
    fn an_archive_comes_back_as_it_was_and_its_header_alone_too() {
        let bytes = archive().to_bytes();
        assert_eq!(Archive::parse(&bytes).unwrap(), archive());
        assert_eq!(read_header(&bytes[..100]).unwrap(), archive().header);
        assert!(
            bytes.starts_with(b"strata snapshot 1\nboard microvm\ncpu x86-64-v3\nbuild strata 0.1.0\n\n")
        );
    }

    #[test]
    fn no_prefix_is_taken_for_the_whole() {
        let bytes = archive().to_bytes();
        for len in 0..bytes.len() {
            let error = Archive::parse(&bytes[..len]).unwrap_err();
            let told = matches!(error, ArchiveError::Truncated { .. } | ArchiveError::NotOne);
            assert!(told, "{len}: {error}");
        }
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let bytes = archive().to_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Archive::parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_missing_and_what_nobody_knows_is_named() {
        let mut archive = archive();
        assert_eq!(archive.take("rtc").unwrap_err().to_string(), "section \"rtc\" is missing");
        archive.take("pit").unwrap();
        assert_eq!(archive.finish().unwrap_err().to_string(), "unknown sections: serial0");
    }

    #[test]
    fn another_format_is_told_and_not_read() {
        let text = b"strata snapshot 2\nfoo\n\n";
        assert_eq!(Archive::parse(text).unwrap_err(), ArchiveError::Format { found: "2".into() });
        assert_eq!(Archive::parse(b"PK\x03\x04").unwrap_err(), ArchiveError::NotOne);
    }
}
