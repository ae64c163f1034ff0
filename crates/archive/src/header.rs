//! Blocks of a tar archive: POSIX ustar and pax (IEEE Std 1003.1-2008, "pax"), and GNU's long names when reading.
//!
//! Omissions: sparse files are refused, global pax records are passed over.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, Result};
use crate::stream::{Sink, Source, cut_short};

/// The size of everything.
pub(crate) const BLOCK: usize = 512;
/// Bytes of the records before an entry. Attack: an archive whose names do not fit into memory.
const MAX_RECORDS_BYTES: u64 = 1 << 20;
/// The largest number of seven octal digits.
const MAX_OCTAL: u64 = 0o777_7777;
/// The largest number of eleven.
const MAX_LONG_OCTAL: u64 = 0o777_7777_7777;
/// What an extended attribute's record begins with.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// Everything that stands before the bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Header {
    pub(crate) fn new(kind: Kind, name: Vec<u8>) -> Header {
        Header {
            kind,
            name,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    /// Writes it; `size` bytes and [`padding`] follow.
    pub(crate) fn write(&self, sink: &mut Sink<'_>) -> Result<()> {
        let mut name = self.name.clone();
        if self.kind == Kind::Dir && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let records = self.records(&name);
        if !records.is_empty() {
            let mut head = Header::new(Kind::File, b"pax".to_vec());
            (head.mode, head.size) = (0o644, records.len() as u64);
            sink.write(&head.block(b"pax", b'x'))?;
            sink.write(&records)?;
            sink.zeros(padding(records.len() as u64))?;
        }
        let flag = match self.kind {
            Kind::File => b'0',
            Kind::Link => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
        };
        sink.write(&self.block(&name, flag))
    }

    /// The pax records for what has no room in a block.
    fn records(&self, name: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &[u8], value: &[u8]| {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            for part in [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"] {
                records.extend_from_slice(part);
            }
        };
        if name.len() > 100 || !name.is_ascii() {
            add(b"path", name);
        }
        if self.link.len() > 100 || !self.link.is_ascii() {
            add(b"linkpath", &self.link);
        }
        let numbers = [
            (&b"size"[..], self.size, MAX_LONG_OCTAL),
            (b"uid", self.uid.into(), MAX_OCTAL),
            (b"gid", self.gid.into(), MAX_OCTAL),
        ];
        for (key, value, most) in numbers {
            if value > most {
                add(key, value.to_string().as_bytes());
            }
        }
        if !(0..=MAX_LONG_OCTAL as i64).contains(&self.mtime) {
            add(b"mtime", self.mtime.to_string().as_bytes());
        }
        for (key, value) in &self.xattrs {
            add(&[XATTR, key].concat(), value);
        }
        records
    }

    fn block(&self, name: &[u8], flag: u8) -> [u8; BLOCK] {
        let mut block = [0u8; BLOCK];
        let mut put = |at: usize, room: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(room)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, 100, name);
        // What does not fit stands in the records before, which count.
        let mtime = u64::try_from(self.mtime).unwrap_or_default();
        for (at, digits, value) in [
            (100, 7, u64::from(self.mode & 0o7777)),
            (108, 7, u64::from(self.uid).min(MAX_OCTAL)),
            (116, 7, u64::from(self.gid).min(MAX_OCTAL)),
            (124, 11, self.size.min(MAX_LONG_OCTAL)),
            (136, 11, mtime.min(MAX_LONG_OCTAL)),
            (329, 7, u64::from(self.device.0).min(MAX_OCTAL)),
            (337, 7, u64::from(self.device.1).min(MAX_OCTAL)),
        ] {
            put(at, digits, &octal(value, digits));
        }
        put(156, 1, &[flag]);
        put(157, 100, &self.link);
        put(257, 8, b"ustar\x0000");
        put(148, 8, b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..154].copy_from_slice(&octal(sum.into(), 6));
        block[154..156].copy_from_slice(b"\0 ");
        block
    }
}

fn octal(value: u64, digits: usize) -> Vec<u8> {
    let mut text = vec![b'0'; digits];
    let mut rest = value;
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    text
}

/// Bytes between the end of a file of `size` bytes and the next block.
pub(crate) fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// What the records before an entry say instead of its block.
#[derive(Default)]
struct Records {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Records {
    /// Pax records: `LENGTH KEY=VALUE\n` each.
    fn add(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let len = text_number::<usize>(&bytes[..space])?;
            let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
            bytes = &bytes[len..];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(text_number(value)?),
                b"uid" => self.uid = Some(text_number(value)?),
                b"gid" => self.gid = Some(text_number(value)?),
                b"mtime" => {
                    let whole = value.split(|byte| *byte == b'.').next()?;
                    self.mtime = Some(text_number(whole)?);
                }
                key if key.starts_with(b"GNU.sparse") => return None,
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Some(())
    }
}

fn text_number<T: core::str::FromStr>(text: &[u8]) -> Option<T> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// Octal digits, or GNU's and star's binary number.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // Negative ones, and those of more than 64 bits, name nothing.
        let mut value = u64::from(first & 0x7f);
        for byte in rest {
            value = value.checked_mul(256)? | u64::from(*byte);
        }
        return Some(value);
    }
    let digits = field.iter().copied().skip_while(|byte| *byte == b' ');
    let mut value: u64 = 0;
    for digit in digits.take_while(|byte| !matches!(byte, 0 | b' ')) {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)? + u64::from(digit - b'0');
    }
    Some(value)
}

fn until_zero(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

fn wrong(reason: &'static str) -> Error {
    Error::invalid("read the archive", b"", reason)
}

/// The next entry; its bytes and its padding are the caller's to read. Nothing at the end of the archive.
pub(crate) fn read(source: &mut Source<'_>) -> Result<Option<Header>> {
    let mut records = Records::default();
    let mut block = [0u8; BLOCK];
    loop {
        if !source.fill(&mut block)? || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        let stored: u64 = block[148..156].iter().map(|&byte| u64::from(byte)).sum();
        if number(&block[148..156]) != Some(sum - stored + 8 * u64::from(b' ')) {
            return Err(wrong("it is no tar archive"));
        }
        let size = number(&block[124..136]).ok_or_else(|| wrong("a size is no number"))?;
        let flag = block[156];
        if !matches!(flag, b'x' | b'g' | b'L' | b'K') {
            return entry(&block, flag, size, records);
        }
        if size > MAX_RECORDS_BYTES {
            return Err(wrong("the records before an entry are too long"));
        }
        let mut bytes = vec![0; size as usize];
        if size > 0 && !source.fill(&mut bytes)? {
            return Err(cut_short());
        }
        source.skip(padding(size))?;
        match flag {
            b'x' => records.add(&bytes).ok_or_else(|| wrong("a pax record makes no sense"))?,
            b'L' => records.name = Some(until_zero(&bytes).to_vec()),
            b'K' => records.link = Some(until_zero(&bytes).to_vec()),
            _ => {}
        }
    }
}

fn entry(block: &[u8; BLOCK], flag: u8, size: u64, records: Records) -> Result<Option<Header>> {
    let word = |field: &[u8]| number(field).ok_or_else(|| wrong("a field is no number"));
    let narrow = |field: &[u8]| word(field).map(|value| value as u32);
    let mut name = until_zero(&block[..100]).to_vec();
    let prefix = until_zero(&block[345..500]);
    // GNU's old format has other things there.
    if block[257..263] == *b"ustar\0" && !prefix.is_empty() {
        name = [prefix, b"/", &name[..]].concat();
    }
    let name = records.name.unwrap_or(name);
    let kind = match flag {
        b'0' | 0 if name.ends_with(b"/") => Kind::Dir,
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::Link,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        b'S' => return Err(wrong("sparse files are not read")),
        _ => return Err(wrong("an entry is of no known kind")),
    };
    Ok(Some(Header {
        kind,
        name,
        link: records.link.unwrap_or_else(|| until_zero(&block[157..257]).to_vec()),
        mode: narrow(&block[100..108])? & 0o7777,
        uid: records.uid.map_or_else(|| narrow(&block[108..116]), Ok)?,
        gid: records.gid.map_or_else(|| narrow(&block[116..124]), Ok)?,
        size: records.size.unwrap_or(size),
        mtime: records.mtime.map_or_else(|| word(&block[136..148]).map(|time| time as i64), Ok)?,
        device: match kind {
            Kind::Char | Kind::Block => (narrow(&block[329..337])?, narrow(&block[337..345])?),
            _ => (0, 0),
        },
        xattrs: records.xattrs,
    }))
}
