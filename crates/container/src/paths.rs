//! Paths inside a root that somebody else filled: none may lead out of it.
//!
//! Everything is resolved by `openat2` with RESOLVE_IN_ROOT, which makes `..` and absolute links stay inside, and
//! RESOLVE_NO_MAGICLINKS, which makes links of `/proc/PID/fd` and its like lead nowhere. What is opened stays open and
//! is used by descriptor, so that nothing can be exchanged between a check and its use.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, While};

/// Opens `path` inside `root`.
pub fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlags::empty())
}

fn open_with(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    further: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | further;
    let path = if path.is_empty() { "." } else { path };
    // The kernel answers EAGAIN when something was renamed meanwhile and it cannot tell whether that led out.
    let mut tries = 0;
    loop {
        let result = rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        match result {
            Err(Errno::AGAIN | Errno::INTR) if tries < 128 => tries += 1,
            other => return other,
        }
    }
}

/// Opens `path` as a place to be mounted on or looked at, not to be read.
pub fn find(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    open(root, path, OFlags::PATH)
}

/// Like [`find`], but no component may be a link.
pub fn find_plain(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
}

/// What a missing path becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A folder.
    Folder,
    /// An empty file.
    File,
}

/// Opens `path`, making what is missing of it.
///
/// # Errors
/// A component is a file or a dangling link, or cannot be made.
pub fn find_or_make(root: BorrowedFd<'_>, path: &str, missing: Missing) -> Result<OwnedFd> {
    match find(root, path) {
        Err(Errno::NOENT) => {}
        found => return found.during(|| format!("open {path:?} in the root")),
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(Error::refused(format!("path {path:?}"), "it goes up, and does not exist"));
    }
    let mut folder = find(root, ".").during(|| "open the root".to_owned())?;
    let mut so_far = String::new();
    for (number, part) in parts.iter().enumerate() {
        so_far.push('/');
        so_far.push_str(part);
        let is_last = number + 1 == parts.len();
        folder = match find(root, &so_far) {
            Err(Errno::NOENT) => {
                let kind = if is_last { missing } else { Missing::Folder };
                make(folder.as_fd(), part, kind).during(|| format!("make {so_far:?} in the root"))?
            }
            found => found.during(|| format!("open {so_far:?} in the root"))?,
        };
    }
    Ok(folder)
}

/// Makes one entry of a folder that is held open, and opens it without following anything.
fn make(folder: BorrowedFd<'_>, name: &str, kind: Missing) -> rustix::io::Result<OwnedFd> {
    match kind {
        Missing::Folder => match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        },
        Missing::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o644)) {
                Ok(_) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }
    // A link that leads nowhere exists, and is not what was asked for.
    let opened =
        rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    match file_type(opened.as_fd())? {
        FileType::Symlink => Err(Errno::LOOP),
        _ => Ok(opened),
    }
}

/// What an open file is.
pub fn file_type(file: BorrowedFd<'_>) -> rustix::io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// Opens the folder above `path`, made if it is missing, and returns the last name.
pub fn parent<'p>(root: BorrowedFd<'_>, path: &'p str) -> Result<(OwnedFd, &'p str)> {
    let trimmed = path.trim_end_matches('/');
    let (folder, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    if matches!(name, "" | "." | "..") {
        return Err(Error::refused(format!("path {path:?}"), "it ends in no name"));
    }
    Ok((find_or_make(root, folder, Missing::Folder)?, name))
}

/// Reads a small file inside the root; nothing if it is not there.
pub fn read_small(root: BorrowedFd<'_>, path: &str, most_bytes: usize) -> Option<String> {
    let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).ok()?;
    if file_type(file.as_fd()).ok()? != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    let limit = most_bytes as u64;
    std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), limit), &mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(folder: &std::path::Path) -> OwnedFd {
        rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, inside) = (folder.path().join("outside"), folder.path().join("inside"));
        std::fs::create_dir_all(inside.join("outside")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink("../outside", inside.join("up")).unwrap();
        symlink("/outside", inside.join("absolute")).unwrap();
        let root = root(&inside);
        for path in ["up/a", "absolute/b", "../outside/c"] {
            if path.starts_with("..") {
                assert!(find_or_make(root.as_fd(), path, Missing::File).is_err());
            } else {
                find_or_make(root.as_fd(), path, Missing::File).unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(inside.join("outside")).unwrap().count(), 2);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_place_to_make_things() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/gone", folder.path().join("link")).unwrap();
        let root = root(folder.path());
        assert!(find_or_make(root.as_fd(), "link", Missing::Folder).is_err());
        assert!(!folder.path().join("gone").exists());
    }

    #[test]
    fn links_of_the_kernel_lead_nowhere() {
        let root = root("/".as_ref());
        assert_eq!(find(root.as_fd(), "/proc/self/cwd").unwrap_err(), Errno::LOOP);
        assert_eq!(find(root.as_fd(), "/proc/self/root/etc").unwrap_err(), Errno::LOOP);
        assert_eq!(find_plain(root.as_fd(), "/proc/self").unwrap_err(), Errno::LOOP);
    }
}
