//! One translation as it is kept.

use std::ops::Range;

use super::super::relocation::Relocation;
use super::super::{Kind, Site};
use super::Place;

/// Pieces that a unit may have and be kept.
pub(in super::super) const MAX_PIECES: usize = 16;

/// A piece of a kept unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct KeptPiece {
    /// Offset in the page.
    pub(in super::super) start: u16,
    /// Bytes of guest code.
    pub(in super::super) len: u16,
    /// Operations.
    pub(in super::super) count: u16,
}

impl KeptPiece {
    /// Bytes in a file.
    pub(in super::super) const BYTES: usize = 6;

    pub(in super::super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let ([a, b], [c, d], [e, f]) =
            (self.start.to_le_bytes(), self.len.to_le_bytes(), self.count.to_le_bytes());
        [a, b, c, d, e, f]
    }

    fn from_bytes([a, b, c, d, e, f]: [u8; Self::BYTES]) -> Self {
        let [start, len, count] = [[a, b], [c, d], [e, f]].map(u16::from_le_bytes);
        Self { start, len, count }
    }

    /// Where in the page it is.
    pub(in super::super) fn range(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.start) + usize::from(self.len)
    }
}

/// A translation as it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Entry<'a> {
    pub(in super::super) user: bool,
    pub(in super::super) narrow: bool,
    pub(in super::super) vectors: u8,
    pub(in super::super) inner: u16,
    pub(in super::super) ready: u16,
    /// Where the second part of the code begins.
    pub(in super::super) second: u16,
    /// What of the page was looked at beyond the pieces.
    pub(in super::super) seen: (u16, u16),
    /// Of [`KeptPiece::BYTES`] each; one at least.
    pub(in super::super) pieces: &'a [u8],
    /// The bytes of the pieces, then those that were seen.
    pub(in super::super) guest: &'a [u8],
    pub(in super::super) code: &'a [u8],
    /// Of [`Relocation::BYTES`] each.
    pub(in super::super) relocations: &'a [u8],
    /// Of [`KeptSite::BYTES`] each.
    pub(in super::super) sites: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The parts of the page that it depends on: its pieces, and what was seen beyond them.
    pub(in super::super) fn ranges(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let (from, to) = (usize::from(self.seen.0), usize::from(self.seen.1));
        self.pieces().map(KeptPiece::range).chain((from < to).then_some(from..to))
    }

    /// The same with the bytes that are to be there; `None` if that is not so many bytes, or none, all in a page.
    pub(in super::super) fn parts(&self) -> impl Iterator<Item = Option<(Range<usize>, &'a [u8])>> + use<'a> {
        let mut rest = self.guest;
        self.ranges().map(move |range| {
            let (bytes, behind) =
                rest.split_at_checked(range.len()).filter(|_| !range.is_empty() && range.end <= 4096)?;
            rest = behind;
            Some((range, bytes))
        })
    }

    /// What it depends on, out of `page`; `None` if that is not all in it.
    pub(in super::super) fn guest_of(&self, page: &[u8]) -> Option<Vec<u8>> {
        let mut guest = Vec::new();
        for range in self.ranges() {
            guest.extend_from_slice(page.get(range)?);
        }
        Some(guest)
    }

    /// Its pieces.
    pub(in super::super) fn pieces(&self) -> impl ExactSizeIterator<Item = KeptPiece> + use<'a> {
        self.pieces.as_chunks().0.iter().map(|bytes| KeptPiece::from_bytes(*bytes))
    }

    /// The place of its first piece.
    pub(in super::super) fn place(&self) -> Place {
        let start = self.pieces().next().map_or(0, |piece| piece.start);
        Place { start, user: self.user, narrow: self.narrow }
    }

    /// As bytes; `None` if it is larger than what is kept.
    pub(in super::super) fn to_bytes(self) -> Option<Vec<u8>> {
        let short = |part: &[u8]| u16::try_from(part.len()).ok();
        let mut bytes = vec![u8::from(self.user), u8::from(self.narrow), self.vectors, 0];
        let parts = [self.pieces, self.guest, self.code, self.relocations, self.sites];
        for number in [self.inner, self.ready, self.second, self.seen.0, self.seen.1] {
            bytes.extend(number.to_le_bytes());
        }
        for part in parts {
            bytes.extend(short(part)?.to_le_bytes());
        }
        parts.into_iter().for_each(|part| bytes.extend_from_slice(part));
        Some(bytes)
    }

    /// What [`Self::to_bytes`] made.
    pub(in super::super) fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let (&[user, narrow, vectors, _], rest) = bytes.split_first_chunk()?;
        let mut cursor = Cursor(rest);
        let (inner, ready, second) = (cursor.number()?, cursor.number()?, cursor.number()?);
        let seen = (cursor.number()?, cursor.number()?);
        let mut lengths = [0; 5];
        for length in &mut lengths {
            *length = usize::from(cursor.number()?);
        }
        let [pieces, guest, code, relocations, sites] = lengths;
        let (user, narrow) = (user != 0, narrow != 0);
        Some(Self {
            user,
            narrow,
            vectors,
            inner,
            ready,
            second,
            seen,
            pieces: cursor
                .take(pieces)
                .filter(|pieces| (1..=MAX_PIECES).contains(&(pieces.len() / KeptPiece::BYTES)))?,
            guest: cursor.take(guest)?,
            code: cursor.take(code)?,
            relocations: cursor.take(relocations)?,
            sites: cursor.take(sites)?,
        })
    }

    /// Where its code has addresses.
    pub(in super::super) fn relocations(&self) -> impl Iterator<Item = Relocation> + use<'a> {
        self.relocations.as_chunks().0.iter().map(|bytes| Relocation::from_bytes(*bytes))
    }

    /// Its sites; nothing where there is none.
    pub(in super::super) fn sites(&self) -> impl ExactSizeIterator<Item = Option<KeptSite>> + use<'a> {
        self.sites.as_chunks().0.iter().map(|bytes| KeptSite::from_bytes(*bytes))
    }
}

/// Bytes that are read from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_le_bytes(*bytes))
    }
}

/// A site as it is kept: everything but what depends on where things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct KeptSite {
    /// Its `resume` and `patch` are offsets in the code, and it has no block.
    pub(in super::super) site: Site,
    /// The piece it is about.
    pub(in super::super) piece: u8,
}

impl KeptSite {
    /// Bytes in a file.
    pub(in super::super) const BYTES: usize = 24;

    /// As bytes.
    pub(in super::super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let Self { site, piece } = self;
        let mut bytes = [0; Self::BYTES];
        let flags = u8::from(site.outer) | u8::from(site.keeps_x87) << 1;
        bytes[..6].copy_from_slice(&[site.kind as u8, site.link, flags, site.register, site.vectors, piece]);
        bytes[6..8].copy_from_slice(&site.op.to_le_bytes());
        bytes[8..12].copy_from_slice(&site.distance.to_le_bytes());
        bytes[12..16].copy_from_slice(&site.ip.to_le_bytes());
        bytes[16..20].copy_from_slice(&site.patch.to_le_bytes());
        bytes[20..].copy_from_slice(&(site.resume as u32).to_le_bytes());
        bytes
    }

    /// What [`Self::to_bytes`] made; `None` if it is no site.
    fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let word = |at: usize| -> [u8; 4] { bytes[at..at + 4].try_into().expect("four bytes") };
        let site = Site {
            kind: Kind::from_number(bytes[0])?,
            link: bytes[1],
            outer: bytes[2] & 1 != 0,
            register: bytes[3],
            vectors: bytes[4],
            keeps_x87: bytes[2] & 2 != 0,
            op: u16::from_le_bytes([bytes[6], bytes[7]]),
            distance: i32::from_le_bytes(word(8)),
            ip: i32::from_le_bytes(word(12)),
            patch: u32::from_le_bytes(word(16)),
            resume: u32::from_le_bytes(word(20)).into(),
            ..Site::lost()
        };
        let in_bounds = site.link < 2 && site.register < 16;
        in_bounds.then_some(Self { site, piece: bytes[5] })
    }
}
