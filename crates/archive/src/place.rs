//! Paths in a root.

use alloc::format;
use alloc::vec::Vec;

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Links that one path may lead through: as the kernel has it.
const MAX_LINKS: usize = 40;

/// Opens what `path` leads to from `root`, which it cannot leave; a last component that is a link stays one with
/// [`OFlags::NOFOLLOW`].
pub(crate) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { b"." } else { path };
    // The kernel answers EAGAIN when something was renamed meanwhile and it cannot tell whether that led out.
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 128 => tries += 1,
            other => return other,
        }
    }
}

/// Opens an entry of a folder that is held open, as a place.
pub(crate) fn entry(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens for reading exactly the file that is held open as a place: nothing can be put in its stead.
pub(crate) fn readable(place: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(rustix::fs::CWD, path.as_str(), flags, Mode::empty())
}

/// Opens a folder that is held open as a place for reading.
pub(crate) fn folder(place: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(place, ".", flags, Mode::empty())
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

/// The parts of a path, without those that say nothing; `..` takes one away, as docker has it.
pub(crate) fn parts(path: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// A path as somebody names it: absolute in the root, and whether a link at its end is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its parts joined; empty is the root.
    pub(crate) path: Vec<u8>,
    /// It ends in `/` or `/.`
    pub(crate) follow: bool,
    /// What docker calls its last part: `.` if it ends so, `/` for the root.
    pub(crate) base: Vec<u8>,
}

impl Named {
    pub(crate) fn new(path: &[u8]) -> Named {
        let dot = path.ends_with(b"/.") || path == b".";
        let parts = parts(path);
        let base = match parts.last() {
            None => b"/".to_vec(),
            Some(_) if dot => b".".to_vec(),
            Some(last) => last.to_vec(),
        };
        Named { path: parts.join(&b'/'), follow: dot || path.ends_with(b"/"), base }
    }

    /// Opens it as a place.
    pub(crate) fn open(&self, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        let flags = if self.follow { OFlags::DIRECTORY } else { OFlags::NOFOLLOW };
        open(root, &self.path, OFlags::PATH | flags).map_err(Error::os("open", &self.shown()))
    }

    pub(crate) fn shown(&self) -> Vec<u8> {
        [b"/", &self.path[..]].concat()
    }
}

/// What lies at a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The last part of its name.
    pub name: Vec<u8>,
    /// Type and permissions, as `st_mode` has them.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Where a link leads: an absolute path in the root.
    pub link: Vec<u8>,
}

impl Stat {
    /// As a process writes it to its standard output.
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = format!("{:o} {} {} {} ", self.mode, self.size, self.mtime, self.mtime_ns);
        [numbers.as_bytes(), &self.name, b"\0", &self.link].concat()
    }

    /// Reads that; nothing if it makes no sense.
    pub fn parse(bytes: &[u8]) -> Option<Stat> {
        let mut words = bytes.splitn(5, |byte| *byte == b' ');
        let mut number = || core::str::from_utf8(words.next()?).ok();
        let mode = u32::from_str_radix(number()?, 8).ok()?;
        let (size, mtime) = (number()?.parse().ok()?, number()?.parse().ok()?);
        let mtime_ns = number()?.parse().ok()?;
        let rest = words.next()?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(Stat { name: rest[..end].to_vec(), mode, size, mtime, mtime_ns, link: rest[end + 1..].to_vec() })
    }
}

/// What lies at `path`.
pub(crate) fn stat(root: BorrowedFd<'_>, path: &[u8]) -> Result<Stat> {
    let named = Named::new(path);
    let place = named.open(root)?;
    let found = rustix::fs::fstat(&place).map_err(Error::os("look at", path))?;
    let is_link = FileType::from_raw_mode(found.st_mode).is_symlink();
    let link = if is_link { resolve(root, &named.path)? } else { Vec::new() };
    Ok(Stat {
        name: named.base,
        mode: found.st_mode,
        size: u64::try_from(found.st_size).unwrap_or_default(),
        mtime: found.st_mtime,
        mtime_ns: u32::try_from(found.st_mtime_nsec).unwrap_or_default(),
        link,
    })
}

/// The path without links that `path` leads to; what is not there stays as it is. For being told: nothing is opened by it.
fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>> {
    let mut todo: Vec<Vec<u8>> = parts(path).into_iter().rev().map(<[u8]>::to_vec).collect();
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == b".." {
            done.pop();
            continue;
        }
        done.push(part);
        let here = done.join(&b'/');
        let target = open(root, &here, OFlags::PATH | OFlags::NOFOLLOW)
            .and_then(|place| rustix::fs::readlinkat(&place, "", Vec::new()));
        let Ok(target) = target else { continue };
        links += 1;
        if links > MAX_LINKS {
            return Err(Error::os("open", path)(Errno::LOOP));
        }
        done.pop();
        let target = target.to_bytes();
        if target.starts_with(b"/") {
            done.clear();
        }
        let further = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        todo.extend(further.rev().map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
    Ok([b"/", &done.join(&b'/')[..]].concat())
}

/// Removes an entry of a folder, with all below it. What is not there is gone.
pub(crate) fn remove(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    empty(entry(folder, name)?)?;
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// Removes all that is in a folder. One descriptor for each level.
pub(crate) fn empty(place: OwnedFd) -> rustix::io::Result<()> {
    use rustix::fd::AsFd;
    struct Level {
        folder: OwnedFd,
        names: Vec<Vec<u8>>,
    }
    let level = |place: OwnedFd| {
        let folder = folder(place.as_fd())?;
        let names = names(folder.as_fd())?;
        Ok(Level { folder, names })
    };
    let mut levels = Vec::from([level(place)?]);
    while let Some(last) = levels.last_mut() {
        let Some(name) = last.names.last() else {
            levels.pop();
            if let Some(above) = levels.last_mut()
                && let Some(name) = above.names.pop()
            {
                rustix::fs::unlinkat(&above.folder, &name[..], AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        match rustix::fs::unlinkat(&last.folder, &name[..], AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => drop(last.names.pop()),
            Err(Errno::ISDIR | Errno::PERM) => {
                let below = level(entry(last.folder.as_fd(), name)?)?;
                levels.push(below);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
