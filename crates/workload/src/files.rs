//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// A description or state; ours are some kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// When what was written is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Before the call returns.
    Now,
    /// When the host likes. A crash of the host may leave an empty file: for what such a crash ends anyway.
    Later,
}

/// Writes `value` to `path` so that a reader sees the old or the new file, also after a crash of this process.
pub(crate) fn replace(path: &Path, value: &impl Serialize, durable: Durable) -> Result<()> {
    let json = |source| Error::Json { path: path.to_path_buf(), source };
    let mut bytes = serde_json::to_vec_pretty(value).map_err(json)?;
    bytes.push(b'\n');
    let temp = path.with_extension("json.new");
    let mut file = File::create(&temp).map_err(Error::file("create", &temp))?;
    let written = file.write_all(&bytes).and_then(|()| match durable {
        Durable::Now => file.sync_all(),
        Durable::Later => Ok(()),
    });
    written.map_err(Error::file("write", &temp))?;
    let placed = match durable {
        Durable::Now => fs::rename(&temp, path),
        Durable::Later => exchange(&temp, path),
    };
    placed.map_err(Error::file("create", path))?;
    if durable == Durable::Now { sync_parent(path) } else { Ok(()) }
}

/// As [`replace`]; where the disk is full, `value` takes the place of what the file has, which is there ([`overwrite`]).
pub(crate) fn replace_or_overwrite(path: &Path, value: &impl Serialize, durable: Durable) -> Result<()> {
    let failed = match replace(path, value, durable) {
        Err(failed) if is_full(&failed) => failed,
        done => return done,
    };
    let _ = fs::remove_file(path.with_extension("json.new"));
    let open = File::options().write(true).open(path).map_err(Error::file("open", path));
    let overwritten = open.and_then(|file| {
        overwrite(&file, path, value)?;
        file.sync_data().map_err(Error::file("sync", path))
    });
    overwritten.map_err(|_| failed)
}

fn is_full(error: &Error) -> bool {
    let full = |source: &io::Error| {
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    };
    matches!(error, Error::File { source, .. } if full(source))
}

/// Writes `value` over what `file`, which is at `path`, has. In one piece: whoever is killed meanwhile leaves the old or the new, and
/// readers see one of them; only a crash of the host in this moment leaves neither.
pub(crate) fn overwrite(file: &File, path: &Path, value: &impl Serialize) -> Result<()> {
    let json = |source| Error::Json { path: path.to_path_buf(), source };
    let mut bytes = serde_json::to_vec(value).map_err(json)?;
    let length = file.metadata().map_err(Error::file("look at", path))?.len();
    // White space at the end is none of it.
    bytes.resize(bytes.len().max(usize::try_from(length).unwrap_or_default()), b' ');
    file.write_all_at(&bytes, 0).map_err(Error::file("write", path))
}

/// Gives `temp` the name `path` without a wait for the disk, which a rename over a file is on some file systems (ext4,
/// `auto_da_alloc`): tens of milliseconds. What is exchanged for another is not written out first.
fn exchange(temp: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, temp, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_file(temp),
        // There is none yet, or the file system knows no exchange.
        Err(_) => fs::rename(temp, path),
    }
}

/// Whether the file is there and empty, as [`Durable::Later`] leaves it where the host crashed.
pub(crate) fn is_lost(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() == 0)
}

/// Reads what [`replace`] wrote.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_open(File::open(path).map_err(Error::file("open", path))?, path)
}

/// Reads what [`replace`] wrote to `path`, which is open.
pub(crate) fn read_open<T: DeserializeOwned>(file: File, path: &Path) -> Result<T> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

/// Makes the entry of `path` in its folder durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let dir = File::open(parent).map_err(Error::file("open", parent))?;
    dir.sync_all().map_err(Error::file("sync", parent))
}
