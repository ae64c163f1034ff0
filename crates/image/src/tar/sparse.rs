//! Sparse files: a map of the segments that are stored, and a reader that fills in the holes.

use std::io::{self, Read};

use super::header::{Header, number};
use super::{MAX_SEGMENTS, pax};

/// The segments of a file that are stored, as (offset, length), ordered and apart.
pub(super) type Map = Vec<(u64, u64)>;

/// Checks the map against the size of the file and the bytes stored for it.
pub(super) fn check(map: &Map, size: u64, stored: u64) -> Result<(), String> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for &(offset, len) in map {
        let next = offset.checked_add(len).filter(|&next| offset >= end && next <= size);
        end = next.ok_or("sparse segments overlap or lie past the end of the file")?;
        sum += len; // Ordered and apart: the sum is at most `size`.
    }
    if sum != stored {
        return Err(format!("sparse segments of {sum:#x} bytes with {stored:#x} bytes stored"));
    }
    Ok(())
}

/// Adds the segments of a table of 24-byte rows: four in an old GNU header, 21 in each extension block.
pub(super) fn add_rows(map: &mut Map, rows: &[u8]) -> Result<(), String> {
    for row in rows.chunks_exact(24) {
        if row[0] == 0 {
            break;
        }
        let value =
            |field| number(field).and_then(|n| u64::try_from(n).ok()).ok_or("bad number in sparse map");
        let (offset, len) = (value(&row[..12])?, value(&row[12..])?);
        if map.len() >= MAX_SEGMENTS {
            return Err(format!("a sparse file of more than {MAX_SEGMENTS} segments"));
        }
        // The last row is often (size, 0), to say how long the file is.
        if len > 0 {
            map.push((offset, len));
        }
    }
    Ok(())
}

/// The real size of an old GNU sparse file, and whether extension blocks follow.
pub(super) fn old_gnu(header: &Header) -> Result<(u64, bool), String> {
    let size = header.number(483, 12).and_then(|n| u64::try_from(n).ok()).ok_or("bad sparse size")?;
    Ok((size, header.0[482] != 0))
}

/// Reads the map that pax format 1.0 stores before the data: decimal lines, padded to 512 bytes.
/// Gives the map and the number of bytes taken.
pub(super) fn read_v1(mut reader: impl Read) -> io::Result<Result<(Map, u64), String>> {
    let mut taken = 0u64;
    let mut block = [0u8; 512];
    let mut numbers: Vec<u64> = Vec::new();
    let mut text: Vec<u8> = Vec::new();
    let malformed = || Ok(Err("malformed sparse map".to_string()));
    loop {
        reader.read_exact(&mut block)?;
        taken += 512;
        for &byte in &block {
            if byte != b'\n' {
                text.push(byte);
                if text.len() > 20 {
                    return malformed();
                }
                continue;
            }
            let Some(n) = pax::decimal(&text) else { return malformed() };
            text.clear();
            numbers.push(n);
            let count = numbers[0];
            if count > MAX_SEGMENTS as u64 {
                return Ok(Err(format!("a sparse file of more than {MAX_SEGMENTS} segments")));
            }
            if numbers.len() as u64 == 1 + 2 * count {
                let map = numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1]));
                return Ok(Ok((map.filter(|&(_, len)| len > 0).collect(), taken)));
            }
        }
    }
}

/// The contents of a file as its reader would see it: stored segments with zeros between them.
pub(super) struct Expand<'m> {
    map: &'m [(u64, u64)],
    size: u64,
    at: u64,
}

impl<'m> Expand<'m> {
    pub(super) fn new(map: &'m [(u64, u64)], size: u64) -> Self {
        Expand { map, size, at: 0 }
    }

    /// Bytes from here to the next stored segment, or to the end of the file.
    pub(super) fn hole(&self) -> u64 {
        let next = self.map.iter().find(|&&(offset, len)| offset + len > self.at);
        next.map_or(self.size, |&(offset, _)| offset).saturating_sub(self.at)
    }

    /// Goes on `len` bytes later; all of them lie in a hole.
    pub(super) fn skip(&mut self, len: u64) {
        self.at += len;
    }

    pub(super) fn read(&mut self, stored: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
        while self.map.first().is_some_and(|&(offset, len)| offset + len <= self.at) {
            self.map = &self.map[1..];
        }
        let fit = |n: u64| buf.len().min(usize::try_from(n).unwrap_or(usize::MAX));
        let n = match self.map.first() {
            Some(&(offset, len)) if offset <= self.at => {
                let n = fit(offset + len - self.at);
                stored.read(&mut buf[..n])?
            }
            next => {
                let n = fit(next.map_or(self.size, |&(offset, _)| offset) - self.at);
                buf[..n].fill(0);
                n
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}
