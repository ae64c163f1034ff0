//! Pax extended headers: records `length key=value\n` that override what the next header says.

use super::{MAX_PATH_BYTES, MAX_SEGMENTS, MAX_XATTR_BYTES};

/// What extended headers say about the next entry, or (global) about all that follow.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<i64>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_major: u64,
    pub(super) sparse_map: Option<Vec<(u64, u64)>>,
    pending_offset: Option<u64>,
}

impl Pax {
    /// Takes the records of one header block; the error says what is wrong.
    pub(super) fn add_records(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            // Some writers pad with NULs.
            if bytes.iter().all(|&b| b == 0) {
                return Ok(());
            }
            let malformed = || "malformed pax record".to_string();
            let space = bytes.iter().take(20).position(|&b| b == b' ').ok_or_else(malformed)?;
            let len = decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(malformed)?;
            if len <= space + 1 || len > bytes.len() || bytes[len - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &bytes[space + 1..len - 1];
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
            self.add(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number =
            || decimal(value).ok_or_else(|| format!("pax {}: not a number", String::from_utf8_lossy(key)));
        match key {
            b"path" => self.path = Some(path(value)?),
            b"linkpath" => self.link = Some(path(value)?),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(seconds(value).ok_or("pax mtime: not a number")?),
            b"GNU.sparse.name" => self.sparse_name = Some(path(value)?),
            b"GNU.sparse.major" => self.sparse_major = number()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(number()?),
            b"GNU.sparse.offset" => self.pending_offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = self.pending_offset.take().ok_or("sparse length without offset")?;
                self.push_segment(offset, number()?)?;
            }
            b"GNU.sparse.map" => self.add_map(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.add_xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        if name.is_empty() || name.len() > 255 || value.len() > MAX_XATTR_BYTES {
            return Err("an extended attribute is larger than Linux allows".to_string());
        }
        self.xattrs.retain(|(have, _)| have != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    fn add_map(&mut self, value: &[u8]) -> Result<(), String> {
        self.sparse_map = None;
        let mut numbers = value.split(|&b| b == b',').map(decimal);
        while let Some(offset) = numbers.next() {
            match (offset, numbers.next()) {
                (Some(offset), Some(Some(len))) => self.push_segment(offset, len)?,
                _ => return Err("malformed sparse map".to_string()),
            }
        }
        Ok(())
    }

    fn push_segment(&mut self, offset: u64, len: u64) -> Result<(), String> {
        let map = self.sparse_map.get_or_insert_with(Vec::new);
        if map.len() >= MAX_SEGMENTS {
            return Err(format!("a sparse file of more than {MAX_SEGMENTS} segments"));
        }
        map.push((offset, len));
        Ok(())
    }
}

fn path(value: &[u8]) -> Result<Vec<u8>, String> {
    if value.len() > MAX_PATH_BYTES {
        return Err(format!("a path longer than {MAX_PATH_BYTES} bytes"));
    }
    Ok(value.to_vec())
}

/// An unsigned decimal number and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds of a decimal time such as `-12.75`, rounded down.
fn seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: i64 = whole.parse().ok()?;
    let below = text.starts_with('-') && fraction.bytes().any(|b| b != b'0');
    value.checked_sub(i64::from(below))
}
