//! Debian packages (deb(5)): an `ar` archive of `control.tar.*` and `data.tar.*`.
//!
//! `data.tar` is decompressed to a temporary file once and then read by offset, because a module is only known to be needed
//! after another has been read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::compression::{self, read_limited};
use crate::error::{Error, Result};
use crate::files::TempFile;
use crate::progress::Progress;
use crate::store::Store;
use crate::tar::{Kind, Reader, TarError};

/// The uncompressed `data.tar`. Attack: a small package that expands without end.
const MAX_DATA_BYTES: u64 = 8 << 30;
const MAX_CONTROL_BYTES: u64 = 1 << 20;
const MAX_MEMBERS: usize = 16;

/// An opened package.
pub(super) struct Deb {
    pub(super) package: String,
    pub(super) version: String,
    pub(super) arch: String,
    spool: TempFile,
    /// Regular files by path without the leading `./`: offset and size in the spool.
    files: BTreeMap<String, (u64, u64)>,
    what: String,
}

/// True for files that begin like a package.
pub(super) fn is_deb(head: &[u8]) -> bool {
    head.starts_with(b"!<arch>\n")
}

impl Deb {
    pub(super) fn open(store: &Store, path: &Path, progress: &dyn Progress) -> Result<Deb> {
        let what = path.display().to_string();
        progress.step(&format!("unpack {what}"));
        let mut file = File::open(path).map_err(Error::file("open", path))?;
        let len = file.metadata().map_err(Error::file("stat", path))?.len();
        let members = members(&file, len).map_err(|reason| Error::invalid(&what, reason))?;
        let mut member = |prefix: &str| -> Result<io::Take<File>> {
            let found = members.iter().find(|(name, ..)| name.starts_with(prefix));
            let (_, offset, size) =
                found.ok_or_else(|| Error::invalid(&what, format!("it has no {prefix}*")))?;
            file.seek(io::SeekFrom::Start(*offset)).map_err(Error::file("read", path))?;
            Ok(file.try_clone().map_err(Error::file("read", path))?.take(*size))
        };
        let fields = control(member("control.tar")?, &what)?;
        let field = |key: &str| {
            let value = fields.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let value = value.map(|v| v.trim().to_string());
            value.ok_or_else(|| Error::invalid(&what, format!("its control file has no {key}")))
        };
        let (package, version, arch) = (field("Package")?, field("Version")?, field("Architecture")?);
        let spool = spool(store, member("data.tar")?, &what)?;
        let files = list(&spool, &what)?;
        Ok(Deb { package, version, arch, spool, files, what })
    }

    /// The paths of all regular files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The bytes of a file, at most `limit`.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let found = self.files.get(path);
        let &(offset, size) = found.ok_or_else(|| Error::invalid(&self.what, format!("it has no {path}")))?;
        if size > limit {
            return Err(Error::invalid(&self.what, format!("{path} has {size} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        self.spool.file.read_exact_at(&mut bytes, offset).map_err(Error::file("read", self.spool.path()))?;
        Ok(bytes)
    }
}

/// Name, offset and size of each member of the `ar` archive.
fn members(file: &File, len: u64) -> std::result::Result<Vec<(String, u64, u64)>, String> {
    let read =
        |buf: &mut [u8], at| file.read_exact_at(buf, at).map_err(|e| format!("truncated package: {e}"));
    let mut magic = [0; 8];
    read(&mut magic, 0)?;
    if !is_deb(&magic) {
        return Err("not a Debian package".to_string());
    }
    let mut found = Vec::new();
    let mut at = 8;
    while at < len && found.len() < MAX_MEMBERS {
        let mut header = [0; 60];
        read(&mut header, at)?;
        let text = |range| std::str::from_utf8(&header[range]).map(str::trim).unwrap_or_default();
        let size: u64 = text(48..58).parse().map_err(|_| "a member without a size".to_string())?;
        let end = (at + 60).checked_add(size).filter(|&end| end <= len).ok_or("truncated package")?;
        if &header[58..] != b"`\n" {
            return Err("a malformed member".to_string());
        }
        found.push((text(0..16).trim_end_matches('/').to_string(), at + 60, size));
        at = end.next_multiple_of(2);
    }
    Ok(found)
}

fn control(member: impl Read, what: &str) -> Result<String> {
    let what = format!("control.tar of {what}");
    let error = |source| Error::Archive { what: what.clone(), source };
    let (_, decoded) =
        compression::decode(member).map_err(|source| error(TarError::Io { offset: 0, source }))?;
    let mut archive = Reader::new(decoded.take(16 * MAX_CONTROL_BYTES));
    while let Some(entry) = archive.next_entry().map_err(&error)? {
        if entry.kind == Kind::File && entry.path.strip_prefix(b"./").unwrap_or(&entry.path) == b"control" {
            let bytes = read_limited(archive.contents(&entry), MAX_CONTROL_BYTES);
            let bytes = bytes.map_err(|e| error(archive.contents_error(e)))?;
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Err(Error::invalid(what, "it has no control file"))
}

fn spool(store: &Store, member: impl Read, what: &str) -> Result<TempFile> {
    let read_error = |source| Error::Archive {
        what: format!("data.tar of {what}"),
        source: TarError::Io { offset: 0, source },
    };
    let (_, decoded) = compression::decode(member).map_err(read_error)?;
    let mut decoded = decoded.take(MAX_DATA_BYTES);
    let mut temp = store.scratch.file()?;
    let mut buf = vec![0; 1 << 18];
    loop {
        let n = decoded.read(&mut buf).map_err(read_error)?;
        if n == 0 {
            break;
        }
        temp.file.write_all(&buf[..n]).map_err(Error::file("write", temp.path()))?;
    }
    if decoded.limit() == 0 {
        return Err(Error::invalid(what, "its contents are too large"));
    }
    Ok(temp)
}

fn list(spool: &TempFile, what: &str) -> Result<BTreeMap<String, (u64, u64)>> {
    let mut file = spool.file.try_clone().map_err(Error::file("read", spool.path()))?;
    file.rewind().map_err(Error::file("read", spool.path()))?;
    let error = |source| Error::Archive { what: format!("data.tar of {what}"), source };
    let mut archive = Reader::new(BufReader::with_capacity(1 << 18, file));
    let mut files = BTreeMap::new();
    while let Some(entry) = archive.next_entry().map_err(error)? {
        // Packages have no sparse files; one here would not be where its offset says.
        if entry.kind == Kind::File && !entry.is_sparse() {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let path = path.trim_start_matches("./").trim_start_matches('/').to_string();
            files.insert(path, (entry.data_offset, entry.size));
        }
    }
    Ok(files)
}
