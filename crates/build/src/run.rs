//! RUN: the files of a stage in a folder of the host, a command in it, and what the command changed.
//!
//! The folder is made from the layers alone and belongs to this process. What changed is seen by comparing what the host's file
//! system says of every file before and after; a file's change time cannot be set back by who runs in the folder.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use image::{LayerWriter, NodeInfo, NodeKind, View};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::copy::Sink;
use crate::error::{Error, Result};
use crate::files::join;

/// A command of RUN.
#[derive(Debug)]
pub struct Run<'a> {
    /// The folder that is its root.
    pub root: &'a Path,
    /// The command and its arguments.
    pub argv: &'a [String],
    /// `NAME=value` each.
    pub env: &'a [String],
    /// Where it starts, inside the root.
    pub cwd: &'a str,
    /// As in an image's config; empty is root.
    pub user: &'a str,
}

/// Whoever can run a command in a folder as if that were all there is: a container, or a machine.
pub trait Runner {
    /// Runs the command to its end, its output going where ours goes, and gives its exit code. Nothing of it runs or is mounted
    /// in the root afterwards.
    ///
    /// # Errors
    /// It could not be run.
    fn run(&self, run: &Run<'_>) -> std::result::Result<u8, Box<dyn std::error::Error + Send + Sync>>;
}

/// What whoever runs commands puts into a root, and no image has: those folders are the host's kernel's, those files say where
/// the host is.
const NOT_OF_IMAGE: [&[u8]; 3] = [b"dev", b"proc", b"sys"];
const MOUNTED_OVER: [&[u8]; 3] = [b"etc/hostname", b"etc/hosts", b"etc/resolv.conf"];

/// Writes all files of `view` into the empty folder `root`.
///
/// # Errors
/// This process may not make them, or the disk is full.
pub fn unpack(view: &View, root: &Path) -> Result<()> {
    let mut first_names = BTreeMap::new();
    let mut folders = Vec::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let Some(info) = view.stat(&path) else { continue };
        let full = root.join(OsStr::from_bytes(&path));
        if info.kind == NodeKind::Dir {
            if !path.is_empty() {
                fs::create_dir(&full).map_err(Error::file("create", &full))?;
            }
            let names = view.list(&path).unwrap_or_default();
            todo.extend(names.iter().rev().map(|name| join(&path, name)));
            // Its times last, for what is put into it changes them; its owner too, who might be nobody here.
            folders.push((full, info));
            continue;
        }
        if let Some(inode) = view.shared_inode(&path) {
            if let Some(first) = first_names.get(&inode) {
                fs::hard_link(first, &full).map_err(Error::file("link", &full))?;
                continue;
            }
            first_names.insert(inode, full.clone());
        }
        make(view, &path, &info, &full)?;
        dress(&full, &info)?;
    }
    folders.iter().rev().try_for_each(|(full, info)| dress(full, info))
}

fn make(view: &View, path: &[u8], info: &NodeInfo, full: &Path) -> Result<()> {
    let node = |kind: FileType, major: u32, minor: u32| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, full, kind, Mode::from_raw_mode(0o600), device).map_err(io::Error::from)
    };
    let made = match &info.kind {
        NodeKind::Dir => Ok(()),
        NodeKind::File(_) => File::create_new(full).and_then(|mut file| {
            let mut contents = view.open(path).ok_or(io::ErrorKind::NotFound)?;
            io::copy(&mut contents, &mut file).map(drop)
        }),
        NodeKind::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), full),
        NodeKind::Char(major, minor) => node(FileType::CharacterDevice, *major, *minor),
        NodeKind::Block(major, minor) => node(FileType::BlockDevice, *major, *minor),
        NodeKind::Fifo => node(FileType::Fifo, 0, 0),
    };
    made.map_err(Error::file("create", full))
}

/// Owner, mode, attributes and time.
fn dress(full: &Path, info: &NodeInfo) -> Result<()> {
    let owner = std::os::unix::fs::lchown(full, Some(info.uid), Some(info.gid));
    owner.map_err(Error::file("give an owner to", full))?;
    if !matches!(info.kind, NodeKind::Symlink(_)) {
        let mode = fs::Permissions::from_mode(info.mode.into());
        fs::set_permissions(full, mode).map_err(Error::file("change the mode of", full))?;
    }
    for (name, value) in &info.xattrs {
        let set = rustix::fs::lsetxattr(full, OsStr::from_bytes(name), value, XattrFlags::empty());
        set.map_err(|errno| Error::file("set an attribute of", full)(errno.into()))?;
    }
    let time = Timespec { tv_sec: info.mtime as i64, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, full, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| Error::file("set the time of", full)(errno.into()))
}

/// What tells that a file has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trace {
    inode: u64,
    changed: (i64, i64),
    mode: u32,
    is_dir: bool,
}

/// How a folder was.
#[derive(Debug)]
pub struct Snapshot(BTreeMap<Vec<u8>, Trace>);

impl Snapshot {
    /// Looks at every file below `root`.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn take(root: &Path) -> Result<Snapshot> {
        let mut found = BTreeMap::new();
        let mut todo = vec![Vec::new()];
        while let Some(folder) = todo.pop() {
            let full = root.join(OsStr::from_bytes(&folder));
            for entry in fs::read_dir(&full).map_err(Error::file("list", &full))? {
                let entry = entry.map_err(Error::file("list", &full))?;
                let path = join(&folder, &entry.file_name().into_vec());
                let meta =
                    fs::symlink_metadata(entry.path()).map_err(Error::file("look at", entry.path()))?;
                let changed = (meta.ctime(), meta.ctime_nsec());
                let trace = Trace { inode: meta.ino(), changed, mode: meta.mode(), is_dir: meta.is_dir() };
                if meta.is_dir() {
                    todo.push(path.clone());
                }
                found.insert(path, trace);
            }
        }
        Ok(Snapshot(found))
    }

    /// Writes what is different now into a layer.
    ///
    /// # Errors
    /// Files cannot be read, or the store cannot be written.
    pub fn write_changes(&self, root: &Path, latest: Option<u64>, layer: &mut LayerWriter) -> Result<()> {
        let now = Snapshot::take(root)?;
        let mut links: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        let mut gone: Option<&Vec<u8>> = None;
        for (path, before) in &self.0 {
            // What lies in a folder that is gone goes with it.
            let inside =
                gone.is_some_and(|gone| path.starts_with(gone) && path.get(gone.len()) == Some(&b'/'));
            let after = now.0.get(path);
            let replaced = after.is_some_and(|after| before.is_dir && !after.is_dir);
            if !inside && after.is_none() && !is_of_host(path) {
                layer.whiteout(path).map_err(Error::layer(path))?;
            }
            if !inside && (after.is_none() || replaced) {
                gone = Some(path);
            }
        }
        for (path, after) in &now.0 {
            if self.0.get(path) == Some(after) || is_of_host(path) {
                continue;
            }
            let full: PathBuf = root.join(OsStr::from_bytes(path));
            let meta = fs::symlink_metadata(&full).map_err(Error::file("look at", &full))?;
            if !self.0.contains_key(path) && MOUNTED_OVER.contains(&path.as_slice()) && meta.len() == 0 {
                continue;
            }
            let info = crate::files::host_info(&full, &meta).map_err(Error::file("look at", &full))?;
            let Some(mut info) = info else { continue };
            info.mtime = info.mtime.min(latest.unwrap_or(u64::MAX));
            write(path, &full, &meta, &info, layer, &mut links)?;
        }
        Ok(())
    }
}

fn write(
    path: &[u8],
    full: &Path,
    meta: &fs::Metadata,
    info: &NodeInfo,
    layer: &mut LayerWriter,
    links: &mut BTreeMap<(u64, u64), Vec<u8>>,
) -> Result<()> {
    if meta.is_file() && meta.nlink() > 1 {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            return layer.hard_link(path, first, info).map_err(Error::layer(path));
        }
        links.insert((meta.dev(), meta.ino()), path.to_vec());
    }
    if meta.is_file() {
        let mut file = File::open(full).map_err(Error::file("open", full))?;
        return Sink::add(layer, path, info, &mut file).map_err(Error::layer(path));
    }
    Sink::add(layer, path, info, &mut io::empty()).map_err(Error::layer(path))
}

fn is_of_host(path: &[u8]) -> bool {
    NOT_OF_IMAGE
        .iter()
        .any(|top| path == *top || (path.starts_with(top) && path.get(top.len()) == Some(&b'/')))
}
