//! The reader: headers with their extensions, and the contents of the current entry.

use std::io::{self, Read};

use super::header::Header;
use super::pax::Pax;
use super::sparse::{self, Expand};
use super::{MAX_ENTRIES, MAX_PATH_BYTES, MAX_PAX_BYTES, TarError};

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
}

/// One entry of an archive, with all extensions applied.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// As the archive has it: may be absolute, hold `..`, or end in `/`.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    /// Bytes of the file with its holes.
    pub(crate) size: u64,
    /// Target of a symlink or hard link.
    pub(crate) link: Vec<u8>,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the header begins in the archive.
    pub(crate) offset: u64,
    /// Where the stored data begin in the archive.
    pub(crate) data_offset: u64,
    sparse: Option<sparse::Map>,
}

impl Entry {
    /// The error `reason` about this entry.
    pub(crate) fn error(&self, reason: impl Into<String>) -> TarError {
        entry_error(&self.path, self.offset, reason)
    }

    /// True when the file is stored with holes left out.
    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }
}

fn entry_error(path: &[u8], offset: u64, reason: impl Into<String>) -> TarError {
    let path: String = String::from_utf8_lossy(path).chars().take(200).collect();
    TarError::Entry { path, offset, reason: reason.into() }
}

/// How an archive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With a block of zeros, as the format wants.
    Mark,
    /// The bytes ended after an entry.
    Bare,
}

/// Reads an archive front to back.
pub(crate) struct Reader<R> {
    inner: R,
    /// Bytes of the archive read so far.
    pos: u64,
    /// Stored bytes of the current entry not read yet, and the padding after them.
    remaining: u64,
    padding: u64,
    global: Pax,
    entries: u64,
    end: Option<End>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Reader { inner, pos: 0, remaining: 0, padding: 0, global: Pax::default(), entries: 0, end: None }
    }

    /// How the archive ended; `None` before `next_entry` said so.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// The bytes after the archive.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// Skips what is left of the current entry and reads the next header.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let mut pax = self.global.clone();
        let mut long_path = None;
        let mut long_link = None;
        let first_offset = self.pos + self.remaining + self.padding;
        loop {
            let Some((header, offset)) = self.next_header()? else {
                return if self.pos_is_inside(first_offset) { Err(self.truncated()) } else { Ok(None) };
            };
            let path = header.path();
            let size = header.number(124, 12).and_then(|n| u64::try_from(n).ok());
            let size = size.ok_or_else(|| entry_error(&path, offset, "bad size"))?;
            match header.typeflag() {
                flag @ (b'x' | b'g' | b'X') => {
                    let records = self.extension(&path, offset, size, MAX_PAX_BYTES)?;
                    let target = if flag == b'g' { &mut self.global } else { &mut pax };
                    target.add_records(&records).map_err(|reason| entry_error(&path, offset, reason))?;
                    if flag == b'g' {
                        pax = self.global.clone();
                    }
                }
                flag @ (b'L' | b'K') => {
                    let mut name = self.extension(&path, offset, size, MAX_PATH_BYTES as u64 + 1)?;
                    name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
                    *(if flag == b'L' { &mut long_path } else { &mut long_link }) = Some(name);
                }
                // A volume label.
                b'V' => self.begin_data(&path, offset, size)?,
                _ => return self.entry(&header, offset, size, pax, long_path, long_link).map(Some),
            }
            self.count_entry(&path, offset)?;
        }
    }

    /// True when extension headers were read after `first_offset`: an entry must follow them.
    fn pos_is_inside(&self, first_offset: u64) -> bool {
        self.end == Some(End::Bare) && self.pos > first_offset
    }

    fn count_entry(&mut self, path: &[u8], offset: u64) -> Result<(), TarError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(entry_error(
                path,
                offset,
                format!("the archive has more than {MAX_ENTRIES} entries"),
            ));
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        offset: u64,
        size: u64,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let header_path = header.path();
        let path = pax.sparse_name.clone().or(pax.path.clone()).or(long_path).unwrap_or(header_path);
        self.count_entry(&path, offset)?;
        let bad = |reason: &str| entry_error(&path, offset, reason);
        let kind = match header.typeflag() {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(bad(&format!("unknown type {:?}", other as char))),
        };
        if path.len() > MAX_PATH_BYTES {
            return Err(bad("the path is too long"));
        }
        let number = |at, len, name: &str| header.number(at, len).ok_or_else(|| bad(&format!("bad {name}")));
        let id = |over: Option<u64>, at, name: &str| -> Result<u32, TarError> {
            let value =
                over.map_or_else(|| number(at, 8, name), |v| Ok(i64::try_from(v).unwrap_or(i64::MAX)))?;
            u32::try_from(value).map_err(|_| bad(&format!("bad {name}")))
        };
        let device = header.device().ok_or_else(|| bad("bad device number"))?;
        let device = match (u32::try_from(device.0), u32::try_from(device.1)) {
            (Ok(major), Ok(minor)) => (major, minor),
            _ => return Err(bad("bad device number")),
        };
        let mut entry = Entry {
            kind,
            mode: (number(100, 8, "mode")? & 0o7777) as u16,
            uid: id(pax.uid, 108, "uid")?,
            gid: id(pax.gid, 116, "gid")?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => number(136, 12, "mtime")?,
            },
            link: pax.link.clone().or(long_link).unwrap_or_else(|| header.link()),
            device,
            xattrs: pax.xattrs.clone(),
            offset,
            data_offset: 0,
            size: 0,
            sparse: None,
            path,
        };
        self.begin_contents(header, &mut entry, pax.size.unwrap_or(size), pax)?;
        Ok(entry)
    }

    /// Sets out the stored data of the entry: how much, and with which holes.
    fn begin_contents(
        &mut self,
        header: &Header,
        entry: &mut Entry,
        stored: u64,
        pax: Pax,
    ) -> Result<(), TarError> {
        let mut map = None;
        let mut size = stored;
        if header.typeflag() == b'S' {
            let mut rows = sparse::Map::new();
            let (real, mut more) = sparse::old_gnu(header).map_err(|e| entry.error(e))?;
            sparse::add_rows(&mut rows, &header.0[386..482]).map_err(|e| entry.error(e))?;
            while more {
                let block = self.block()?.ok_or_else(|| self.truncated())?;
                sparse::add_rows(&mut rows, &block[..504]).map_err(|e| entry.error(e))?;
                more = block[504] != 0;
            }
            (map, size) = (Some(rows), real);
        }
        self.begin_data(&entry.path, entry.offset, stored)?;
        if entry.kind == Kind::File && pax.sparse_major == 1 {
            let real = pax.sparse_size.ok_or_else(|| entry.error("a sparse file without its size"))?;
            let end = self.pos + self.remaining;
            let read = sparse::read_v1(&mut *self).map_err(|source| self.io_error(source, end))?;
            let (rows, _) = read.map_err(|e| entry.error(e))?;
            (map, size) = (Some(rows), real);
        } else if entry.kind == Kind::File && pax.sparse_map.is_some() {
            let real = pax.sparse_size.ok_or_else(|| entry.error("a sparse file without its size"))?;
            let mut rows = pax.sparse_map.unwrap_or_default();
            rows.retain(|&(_, len)| len > 0);
            (map, size) = (Some(rows), real);
        }
        if let Some(rows) = &map {
            sparse::check(rows, size, self.remaining).map_err(|e| entry.error(e))?;
        }
        entry.size = if entry.kind == Kind::File { size } else { 0 };
        entry.data_offset = self.pos;
        entry.sparse = map;
        Ok(())
    }

    fn begin_data(&mut self, path: &[u8], offset: u64, size: u64) -> Result<(), TarError> {
        if size > i64::MAX as u64 - 512 {
            return Err(entry_error(path, offset, "bad size"));
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(512) - size;
        Ok(())
    }

    fn extension(&mut self, path: &[u8], offset: u64, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(entry_error(path, offset, format!("an extension header of {size:#x} bytes")));
        }
        self.begin_data(path, offset, size)?;
        let mut bytes = Vec::with_capacity(size as usize);
        let end = self.pos + size;
        let read = self.by_ref().read_to_end(&mut bytes);
        read.map_err(|source| self.io_error(source, end))?;
        Ok(bytes)
    }

    /// The next header block and its offset, after what is left of the entry before it.
    fn next_header(&mut self) -> Result<Option<(Header, u64)>, TarError> {
        self.skip()?;
        let offset = self.pos;
        let Some(block) = self.block()? else {
            self.end = Some(End::Bare);
            return if offset == 0 { Err(TarError::NotTar) } else { Ok(None) };
        };
        let header = Header(block);
        if header.is_zero() {
            self.end = Some(End::Mark);
            return Ok(None);
        }
        if !header.checksum_ok() {
            return Err(if offset == 0 {
                TarError::NotTar
            } else {
                entry_error(&[], offset, "the header's checksum is wrong")
            });
        }
        Ok(Some((header, offset)))
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let left = self.remaining + self.padding;
        let end = self.pos + left;
        let skipped = io::copy(&mut (&mut self.inner).take(left), &mut io::sink());
        let skipped = skipped.map_err(|source| self.io_error(source, end))?;
        self.pos += skipped;
        if skipped < left {
            return Err(self.truncated());
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// One block, or `None` at the end of the bytes.
    fn block(&mut self) -> Result<Option<[u8; 512]>, TarError> {
        let mut block = [0; 512];
        let mut have = 0;
        while have < 512 {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => {
                    self.pos += have as u64;
                    return Err(if self.pos < 512 { TarError::NotTar } else { self.truncated() });
                }
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Io { offset: self.pos, source }),
            }
        }
        self.pos += 512;
        Ok(Some(block))
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated { offset: self.pos }
    }

    fn io_error(&self, source: io::Error, _end: u64) -> TarError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof if source.get_ref().is_some_and(|e| e.is::<EndsEarly>()) => {
                self.truncated()
            }
            _ => TarError::Io { offset: self.pos, source },
        }
    }

    /// The contents of `entry`, which must be the current one and not read yet.
    pub(crate) fn contents<'a>(&'a mut self, entry: &'a Entry) -> Contents<'a, R> {
        let expand = entry.sparse.as_ref().map(|map| Expand::new(map, entry.size));
        Contents { reader: self, expand, left: entry.size }
    }

    /// Turns an error of reading contents into one about the archive.
    pub(crate) fn contents_error(&self, source: io::Error) -> TarError {
        self.io_error(source, 0)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the archive ends inside an entry")]
struct EndsEarly;

/// Stored bytes of the current entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, EndsEarly));
        }
        self.remaining -= n as u64;
        self.pos += n as u64;
        Ok(n)
    }
}

/// The contents of one file, holes filled with zeros: exactly as many bytes as the entry's size.
pub(crate) struct Contents<'a, R> {
    reader: &'a mut Reader<R>,
    expand: Option<Expand<'a>>,
    left: u64,
}

impl<R: Read> Contents<'_, R> {
    /// Bytes of the hole that the next byte lies in; 0 where bytes are stored.
    pub(crate) fn hole(&self) -> u64 {
        self.expand.as_ref().map_or(0, Expand::hole)
    }

    /// Leaves out `len` bytes of that hole: what a hole costs must not grow with its size.
    pub(crate) fn skip_hole(&mut self, len: u64) {
        assert!(len <= self.hole(), "no more than the hole is left out");
        if let Some(expand) = &mut self.expand {
            expand.skip(len);
        }
        self.left -= len;
    }
}

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = match &mut self.expand {
            Some(expand) => expand.read(self.reader, &mut buf[..want])?,
            None => self.reader.read(&mut buf[..want])?,
        };
        self.left -= n as u64;
        Ok(n)
    }
}
