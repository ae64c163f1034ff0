//! Files to tar.
//!
//! A folder is read name by name, and each name is opened as a place first: what it is is decided from what is held open, and no
//! fifo or device is ever opened. Files that grow while they are read are cut, those that shrink are filled with zeros.

use alloc::collections::BTreeMap;
use alloc::vec::{self, Vec};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::changes;
use crate::error::{Error, Result};
use crate::header::{Header, Kind, padding};
use crate::place::{self, Named};
use crate::stream::{PIECE_BYTES, Sink};

/// Folders in folders. Attack: a tree that is deeper than there are descriptors.
const MAX_DEPTH: usize = 400;
/// Files with several names that are remembered; later ones are told as files of their own. Attack: links without number.
const MAX_LINKS: usize = 1 << 18;
/// Extended attributes of one file.
const MAX_XATTR_BYTES: usize = 64 << 10;
/// The kernel's own file systems, and memory: procfs, sysfs, devpts, cgroup, cgroup2, mqueue, devtmpfs and tmpfs, securityfs,
/// debugfs, tracefs, bpf.
const NOT_ENTERED: [u32; 11] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x0027_e0eb,
    0x6367_7270,
    0x1980_0202,
    0x0102_1994,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
];

/// What is told of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Other file systems too, but those that are the kernel's own.
    Mounts,
    /// One file system.
    One,
    /// An overlay's upper folder, as the changes that it is.
    Upper,
}

struct Level {
    folder: OwnedFd,
    names: vec::IntoIter<Vec<u8>>,
    /// Bytes of the path above.
    len: usize,
    device: u64,
    /// Its header, which is written once there is something in it.
    pending: Option<Header>,
}

struct Packer<'f> {
    sink: Sink<'f>,
    scope: Scope,
    links: BTreeMap<(u64, u64), Vec<u8>>,
    /// The name of what is looked at.
    path: Vec<u8>,
    levels: Vec<Level>,
}

/// Writes what lies at `path` with all below it. The names begin with `name`, or the last part of `path`.
pub(crate) fn pack(
    root: BorrowedFd<'_>,
    path: &[u8],
    name: Option<&[u8]>,
    scope: Scope,
    out: BorrowedFd<'_>,
) -> Result<()> {
    let named = Named::new(path);
    let place = named.open(root)?;
    let base = name.map_or(named.base, <[u8]>::to_vec);
    write(place, if base == b"/" { Vec::new() } else { base }, scope, out)
}

/// Writes an open folder with all below it. The names begin below it.
pub(crate) fn pack_folder(folder: OwnedFd, scope: Scope, out: BorrowedFd<'_>) -> Result<()> {
    write(folder, Vec::new(), scope, out)
}

fn write(place: OwnedFd, base: Vec<u8>, scope: Scope, out: BorrowedFd<'_>) -> Result<()> {
    let mut packer =
        Packer { sink: Sink::new(out), scope, links: BTreeMap::new(), path: base, levels: Vec::new() };
    packer.add(place, None)?;
    packer.walk()?;
    packer.sink.zeros(1024)?;
    packer.sink.flush()
}

impl Packer<'_> {
    fn walk(&mut self) -> Result<()> {
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.next() else {
                self.path.truncate(level.len);
                self.levels.pop();
                continue;
            };
            let (len, device) = (self.path.len(), level.device);
            let place = match place::entry(level.folder.as_fd(), &name) {
                // It was removed meanwhile.
                Err(Errno::NOENT) => continue,
                place => place,
            };
            if self.levels.len() > 1 || !self.path.is_empty() || self.scope == Scope::Mounts {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            let place = place.map_err(Error::os("open", &self.path))?;
            let depth = self.levels.len();
            self.add(place, Some(device))?;
            if self.levels.len() == depth {
                self.path.truncate(len);
            } else if let Some(level) = self.levels.last_mut() {
                level.len = len;
            }
        }
        Ok(())
    }

    /// Writes what is held open; a folder becomes one more level.
    fn add(&mut self, place: OwnedFd, above: Option<u64>) -> Result<()> {
        let stat = rustix::fs::fstat(&place).map_err(Error::os("look at", &self.path))?;
        if self.scope == Scope::Upper {
            if crate::OWN_FILES.contains(&&self.path[..]) {
                return Ok(());
            }
            if changes::is_whiteout(&stat) {
                return self.write_header(&Header::new(Kind::File, changes::whiteout(&self.path)));
            }
        }
        let name = if self.path.is_empty() { b"/".to_vec() } else { self.path.clone() };
        let mut header = Header::new(Kind::File, name);
        (header.mode, header.uid, header.gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
        header.mtime = stat.st_mtime;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                header.kind = Kind::Dir;
                return self.add_folder(place, &stat, header, above);
            }
            FileType::RegularFile => return self.add_file(place, &stat, header),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&place, "", Vec::new());
                header.link = target.map_err(Error::os("read link", &self.path))?.into_bytes();
                header.kind = Kind::Symlink;
            }
            FileType::Fifo => header.kind = Kind::Fifo,
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                header.kind = if kind == FileType::CharacterDevice { Kind::Char } else { Kind::Block };
                header.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            }
            // Sockets are of no use elsewhere.
            _ => return Ok(()),
        }
        match self.known_link(&stat) {
            Some(first) if header.kind != Kind::Symlink => {
                (header.kind, header.link) = (Kind::Link, first);
                self.write_header(&header)
            }
            _ => self.write_header(&header),
        }
    }

    /// The name under which the same file was written before.
    fn known_link(&mut self, stat: &Stat) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let key = (stat.st_dev, stat.st_ino);
        let known = self.links.get(&key).cloned();
        if known.is_none() && self.links.len() < MAX_LINKS {
            self.links.insert(key, self.path.clone());
        }
        known
    }

    fn add_folder(
        &mut self,
        place: OwnedFd,
        stat: &Stat,
        mut header: Header,
        above: Option<u64>,
    ) -> Result<()> {
        let folder = place::folder(place.as_fd()).map_err(Error::os("open", &self.path))?;
        header.xattrs = xattrs(folder.as_fd());
        let enters = above.is_none_or(|device| device == stat.st_dev)
            || self.scope == Scope::Mounts && !is_the_kernels(folder.as_fd());
        let names = if enters {
            place::names(folder.as_fd()).map_err(Error::os("read", &self.path))?
        } else {
            Vec::new()
        };
        if self.levels.len() >= MAX_DEPTH {
            return Err(Error::invalid("read", &self.path, "folders in folders without end"));
        }
        let mut pending = None;
        if self.scope == Scope::Upper {
            changes::check(folder.as_fd(), &self.path)?;
            let is_root = self.path.is_empty();
            let holds_own = crate::OWN_FILES
                .iter()
                .any(|own| own.strip_prefix(&self.path[..]).is_some_and(|rest| rest.starts_with(b"/")));
            if is_root {
                // Its owner and mode are the image's.
            } else if holds_own {
                pending = Some(header);
            } else {
                self.write_header(&header)?;
            }
            if changes::is_opaque(folder.as_fd()) {
                let mark = Header::new(Kind::File, [&self.path[..], b"/", changes::OPAQUE].concat());
                self.write_header(&mark)?;
            }
        } else {
            self.write_header(&header)?;
        }
        let len = self.path.len();
        self.levels.push(Level { folder, names: names.into_iter(), len, device: stat.st_dev, pending });
        Ok(())
    }

    fn write_header(&mut self, header: &Header) -> Result<()> {
        for level in &mut self.levels {
            if let Some(folder) = level.pending.take() {
                folder.write(&mut self.sink)?;
            }
        }
        header.write(&mut self.sink)
    }

    fn add_file(&mut self, place: OwnedFd, stat: &Stat, mut header: Header) -> Result<()> {
        if let Some(first) = self.known_link(stat) {
            (header.kind, header.link) = (Kind::Link, first);
            return self.write_header(&header);
        }
        let file = place::readable(place.as_fd()).map_err(Error::os("open", &self.path))?;
        if self.scope == Scope::Upper {
            changes::check(file.as_fd(), &self.path)?;
        }
        header.size = u64::try_from(stat.st_size).unwrap_or_default();
        header.xattrs = xattrs(file.as_fd());
        self.write_header(&header)?;
        let mut left = header.size;
        let mut piece = alloc::vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        while left > 0 {
            let most = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut piece[..most]));
            match read.map_err(Error::os("read", &self.path))? {
                0 => break,
                count => {
                    self.sink.write(&piece[..count])?;
                    left -= count as u64;
                }
            }
        }
        self.sink.zeros(left + padding(header.size))
    }
}

fn is_the_kernels(folder: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(folder).is_ok_and(|found| NOT_ENTERED.contains(&(found.f_type as u32)))
}

/// The attributes that mean something elsewhere: the user's, and capabilities of programs.
fn xattrs(file: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = Vec::with_capacity(MAX_XATTR_BYTES);
    // File systems without them are fine.
    if rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut names)).is_err() {
        return Vec::new();
    }
    let wanted = |name: &&[u8]| name.starts_with(b"user.") || **name == *b"security.capability";
    let mut all = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(wanted) {
        let mut value = Vec::with_capacity(MAX_XATTR_BYTES);
        if rustix::fs::fgetxattr(file, name, rustix::buffer::spare_capacity(&mut value)).is_ok() {
            all.push((name.to_vec(), value));
        }
    }
    all
}
