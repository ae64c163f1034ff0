//! Contents of a folder, copied into the tmpfs that is about to cover it (`tmpcopyup`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

/// What a tmpfs takes at most this way: it is memory.
const MOST_BYTES: u64 = 256 << 20;

/// Folders inside each other at most.
const MOST_DEPTH: usize = 64;

/// A folder held open from before it was covered.
#[derive(Debug)]
pub struct Tree {
    folder: OwnedFd,
}

impl Tree {
    /// Holds the folder open.
    pub fn read(folder: BorrowedFd<'_>) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::openat(folder, ".", flags, Mode::empty())? })
    }

    /// Copies its files, folders and links into another. Devices, sockets and pipes are left out.
    pub fn write(&self, to: BorrowedFd<'_>) -> std::io::Result<()> {
        let mut left = MOST_BYTES;
        let to =
            rustix::fs::openat(to, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        owner_and_mode(self.folder.as_fd(), to.as_fd())?;
        copy(self.folder.as_fd(), to.as_fd(), &mut left, MOST_DEPTH)
    }
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, left: &mut u64, depth: usize) -> std::io::Result<()> {
    if depth == 0 {
        return Err(std::io::Error::from_raw_os_error(libc::ELOOP));
    }
    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    for entry in rustix::fs::Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let source = rustix::fs::openat(from, name, nofollow | OFlags::DIRECTORY, Mode::empty())?;
                rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let made = rustix::fs::openat(to, name, nofollow | OFlags::DIRECTORY, Mode::empty())?;
                owner_and_mode(source.as_fd(), made.as_fd())?;
                copy(source.as_fd(), made.as_fd(), left, depth - 1)?;
            }
            FileType::RegularFile => {
                let source = rustix::fs::openat(from, name, nofollow, Mode::empty())?;
                let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let made = rustix::fs::openat(to, name, create, Mode::from_raw_mode(0o600))?;
                owner_and_mode(source.as_fd(), made.as_fd())?;
                let mut limited = std::io::Read::take(std::fs::File::from(source), left.saturating_add(1));
                let copied = std::io::copy(&mut limited, &mut std::fs::File::from(made))?;
                *left = left.checked_sub(copied).ok_or(std::io::ErrorKind::FileTooLarge)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&target, to, name)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn owner_and_mode(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> std::io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(())
}
