//! Where files are copied from: the context, which is a folder of the host, or the files of an image.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use image::path::{Step, components};
use image::{NodeInfo, NodeKind, View};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result};
use crate::pattern::{Ignore, fits_name, is_pattern};

/// Names of extended attributes of one file.
const MAX_XATTR_NAMES: usize = 64 << 10;

/// A tree of files. Paths are relative to its root, without `..`, and name no symbolic link but perhaps at their end.
pub trait Files {
    /// What lies there; nothing if nothing does, or it is left out.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn stat(&self, path: &[u8]) -> Result<Option<NodeInfo>>;

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// It cannot be read.
    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// The contents of a regular file.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&self, path: &[u8]) -> Result<Box<dyn Read + '_>>;

    /// What the names of one file share, where it has several.
    fn shared(&self, path: &[u8]) -> Option<(u64, u64)>;

    /// The path without symbolic links that `path` leads to, never out of the root. Nothing when there is nothing.
    ///
    /// # Errors
    /// Links in circles, or a folder that cannot be read.
    fn resolve(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let too_many = || {
            let path = String::from_utf8_lossy(path);
            Error::Invalid(format!("{path}: too many symbolic links"))
        };
        image::path::resolve(path, too_many, |here, rest| {
            let Some(info) = self.stat(here)? else { return Ok(Step::Nowhere) };
            Ok(match info.kind {
                NodeKind::Symlink(target) => Step::Follow(target),
                NodeKind::Dir => Step::On,
                _ if rest.is_empty() => Step::On,
                _ => Step::Nowhere,
            })
        })
    }

    /// The paths that a pattern fits, sorted; a name without a pattern gives itself if it is there.
    ///
    /// # Errors
    /// A folder cannot be read.
    fn glob(&self, pattern: &str) -> Result<Vec<Vec<u8>>> {
        let mut found = vec![Vec::new()];
        let parts: Vec<&str> = clean(pattern);
        for (number, part) in parts.iter().enumerate() {
            let mut next = Vec::new();
            for base in found {
                // What is not at the end may be a link to a folder.
                let Some(folder) = self.resolve(&base)? else { continue };
                if !matches!(self.stat(&folder)?, Some(NodeInfo { kind: NodeKind::Dir, .. })) {
                    continue;
                }
                let names = if is_pattern(part) {
                    let fits = |name: &Vec<u8>| fits_name(part.as_bytes(), name);
                    self.list(&folder)?.into_iter().filter(fits).collect()
                } else {
                    vec![part.as_bytes().to_vec()]
                };
                for name in names {
                    let path = join(&folder, &name);
                    if self.stat(&path)?.is_some() {
                        next.push(path);
                    }
                }
            }
            found = next;
            if found.is_empty() || number + 1 == parts.len() {
                break;
            }
        }
        Ok(found)
    }
}

/// The components of a source: `..` never leads out of the root.
fn clean(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// A name in a folder.
pub(crate) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// The folder and the name of a path.
pub(crate) fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The context of a build: a folder of the host. It may be a stranger's, so no link in it leads out of it.
pub struct Context {
    root: PathBuf,
    handle: File,
    ignore: Ignore,
}

impl Context {
    /// Opens the folder and reads its `.dockerignore`; `beside` is the name of a Containerfile that may have its own.
    ///
    /// # Errors
    /// It is no folder, or cannot be read.
    pub fn open(root: &Path, beside: Option<&Path>) -> Result<Context> {
        let handle = File::open(root).map_err(Error::file("open", root))?;
        if !handle.metadata().map_err(Error::file("open", root))?.is_dir() {
            return Err(Error::Invalid(format!("the context {} is no folder", root.display())));
        }
        let own =
            beside.map(|file| PathBuf::from([file.as_os_str(), OsStr::new(".dockerignore")].concat_os()));
        let candidates = own.into_iter().chain([root.join(".containerignore"), root.join(".dockerignore")]);
        let mut ignore = Ignore::default();
        for path in candidates {
            match fs::read(&path) {
                Ok(bytes) => {
                    ignore = Ignore::parse(&String::from_utf8_lossy(&bytes));
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::file("read", path)(e)),
            }
        }
        Ok(Context { root: root.to_path_buf(), handle, ignore })
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        // Whatever becomes of the context meanwhile: nothing outside of it is opened.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let name: &[u8] = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.handle, name, flags, Mode::empty(), resolve)?.into())
    }
}

trait ConcatOs {
    fn concat_os(&self) -> std::ffi::OsString;
}

impl ConcatOs for [&OsStr; 2] {
    fn concat_os(&self) -> std::ffi::OsString {
        let mut joined = self[0].to_os_string();
        joined.push(self[1]);
        joined
    }
}

impl Files for Context {
    fn stat(&self, path: &[u8]) -> Result<Option<NodeInfo>> {
        let full = self.path(path);
        let meta = match fs::symlink_metadata(&full) {
            Ok(meta) => meta,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(Error::file("look at", full)(e)),
        };
        let parts: Vec<&[u8]> = components(path).collect();
        if !parts.is_empty()
            && self.ignore.ignores(&parts)
            && !(meta.is_dir() && self.ignore.has_exceptions())
        {
            return Ok(None);
        }
        host_info(&full, &meta).map_err(Error::file("look at", full)).map(|info| {
            // What the host's users own means nothing in an image.
            info.map(|info| NodeInfo { uid: 0, gid: 0, ..info })
        })
    }

    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let full = self.path(path);
        let mut names = Vec::new();
        for entry in fs::read_dir(&full).map_err(Error::file("list", &full))? {
            names.push(entry.map_err(Error::file("list", &full))?.file_name().into_vec());
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &[u8]) -> Result<Box<dyn Read + '_>> {
        let file = self.open_at(path, OFlags::RDONLY).map_err(Error::file("open", self.path(path)))?;
        Ok(Box::new(io::BufReader::with_capacity(128 << 10, file)))
    }

    fn shared(&self, path: &[u8]) -> Option<(u64, u64)> {
        let meta = fs::symlink_metadata(self.path(path)).ok()?;
        (meta.is_file() && meta.nlink() > 1).then(|| (meta.dev(), meta.ino()))
    }
}

/// What a file of the host is; nothing for a socket, which no image holds.
pub(crate) fn host_info(path: &Path, meta: &fs::Metadata) -> io::Result<Option<NodeInfo>> {
    let kind = meta.file_type();
    let device = |dev: u64| (rustix::fs::major(dev), rustix::fs::minor(dev));
    let kind = if kind.is_dir() {
        NodeKind::Dir
    } else if kind.is_file() {
        NodeKind::File(meta.len())
    } else if kind.is_symlink() {
        NodeKind::Symlink(fs::read_link(path)?.into_os_string().into_vec())
    } else if kind.is_char_device() {
        let (major, minor) = device(meta.rdev());
        NodeKind::Char(major, minor)
    } else if kind.is_block_device() {
        let (major, minor) = device(meta.rdev());
        NodeKind::Block(major, minor)
    } else if kind.is_fifo() {
        NodeKind::Fifo
    } else {
        return Ok(None);
    };
    Ok(Some(NodeInfo {
        xattrs: if matches!(kind, NodeKind::File(_) | NodeKind::Dir) { xattrs(path)? } else { Vec::new() },
        kind,
        mode: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: meta.mtime().max(0) as u64,
    }))
}

/// The attributes an image keeps: the user's own, and the capabilities of programs.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0u8; MAX_XATTR_NAMES];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if !(name.starts_with(b"user.") || name == b"security.capability") {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(length) => found.push((name.to_vec(), value[..length].to_vec())),
            Err(rustix::io::Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    found.sort();
    Ok(found)
}

impl Files for View {
    fn stat(&self, path: &[u8]) -> Result<Option<NodeInfo>> {
        Ok(View::stat(self, path))
    }

    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(View::list(self, path).unwrap_or_default())
    }

    fn open(&self, path: &[u8]) -> Result<Box<dyn Read + '_>> {
        let none = || Error::Invalid(format!("/{} is no regular file", String::from_utf8_lossy(path)));
        Ok(Box::new(View::open(self, path).ok_or_else(none)?))
    }

    fn shared(&self, path: &[u8]) -> Option<(u64, u64)> {
        self.shared_inode(path).map(|inode| (0, inode.into()))
    }
}
