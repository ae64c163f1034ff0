//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// A description or state; ours are some kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// Writes `value` to `path` so that a reader sees the old or the new file, also after a crash.
pub(crate) fn replace(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = |source| Error::Json { path: path.to_path_buf(), source };
    let mut bytes = serde_json::to_vec_pretty(value).map_err(json)?;
    bytes.push(b'\n');
    let temp = path.with_extension("json.new");
    let mut file = File::create(&temp).map_err(Error::file("create", &temp))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(Error::file("write", &temp))?;
    fs::rename(&temp, path).map_err(Error::file("create", path))?;
    sync_parent(path)
}

/// Reads what [`replace`] wrote.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file = File::open(path).map_err(Error::file("open", path))?;
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
