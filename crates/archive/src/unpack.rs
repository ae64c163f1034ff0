//! Tar to files.
//!
//! Every name is one below the folder the archive is put into, whatever it says, and every path to it is resolved in the root
//! while it is used: a link that the archive or somebody else makes leads nowhere else. Modes are set on what is held open.

use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::changes;
use crate::error::{Cause, Error, Result};
use crate::header::{self, Header, Kind, padding};
use crate::place::{self, Named};
use crate::stream::{Source, cut_short};

/// Whether a folder may become a file, and a file a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It may.
    Anything,
    /// It may not.
    SameKind,
}

/// How an archive is put somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// What may be replaced.
    pub overwrite: Overwrite,
    /// User and group, instead of those in the archive.
    pub owner: Option<(u32, u32)>,
    /// Marks of a layer take away what is there.
    pub is_layer: bool,
}

struct Unpacker<'r> {
    root: BorrowedFd<'r>,
    /// Where it goes: from the root, without a slash at either end.
    base: Vec<u8>,
    put: Put,
    /// The folder that was used last.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Times of folders, which change while files are made in them.
    times: Vec<(Vec<u8>, i64)>,
}

/// Puts an archive into the folder at `path`, which is there.
pub(crate) fn unpack(root: BorrowedFd<'_>, path: &[u8], put: Put, archive: BorrowedFd<'_>) -> Result<()> {
    let named = Named { follow: true, ..Named::new(path) };
    named.open(root)?;
    let mut unpacker = Unpacker { root, base: named.path, put, last: None, times: Vec::new() };
    let mut source = Source::new(archive);
    while let Some(header) = header::read(&mut source)? {
        let left = unpacker.entry(&header, &mut source)?;
        source.skip(left)?;
    }
    unpacker.set_times();
    // What stands behind the end is read, so that whoever writes it sees no broken pipe.
    source.drain()
}

fn stamp(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

impl Unpacker<'_> {
    /// Makes one entry; gives how many bytes of it are not read yet.
    fn entry(&mut self, header: &Header, source: &mut Source<'_>) -> Result<u64> {
        let size = if header.kind == Kind::File { header.size } else { 0 };
        let whole = header.size.checked_add(padding(header.size));
        let whole = whole.ok_or_else(|| Error::invalid("read the archive", &header.name, "it has no end"))?;
        let parts = place::parts(&header.name);
        // The folder itself is as it is.
        let Some((name, above)) = parts.split_last() else { return Ok(whole) };
        let above = above.join(&b'/');
        if self.put.is_layer
            && let Some(gone) = name.strip_prefix(changes::GONE)
        {
            self.take_away(&above, name, gone)?;
            return Ok(whole);
        }
        let folder = self.folder(&above)?;
        let fault = |act| Error::os(act, &header.name);
        self.clear(folder.as_fd(), name, header)?;
        match header.kind {
            Kind::Dir => self.make_folder(folder.as_fd(), name, header)?,
            Kind::File => self.make_file(folder.as_fd(), name, header, source)?,
            Kind::Link => {
                let target = place::parts(&header.link);
                let Some((last, above)) = target.split_last() else {
                    return Err(Error::invalid("link", &header.name, "it is to be another name of nothing"));
                };
                let from = self.folder(&above.join(&b'/'))?;
                rustix::fs::linkat(&from, *last, &folder, *name, AtFlags::empty()).map_err(fault("link"))?;
            }
            Kind::Symlink => {
                rustix::fs::symlinkat(&header.link[..], &folder, *name).map_err(fault("make link"))?;
                self.finish_plain(folder.as_fd(), name, header)?;
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                let kind = match header.kind {
                    Kind::Char => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(header.device.0, header.device.1);
                let mode = Mode::from_raw_mode(header.mode);
                rustix::fs::mknodat(&folder, *name, kind, mode, device).map_err(fault("make"))?;
                self.finish_plain(folder.as_fd(), name, header)?;
            }
        }
        self.last = Some((above, folder));
        Ok(whole - size)
    }

    /// The folder at `path` below where the archive goes; what is missing of it is made.
    fn folder(&mut self, path: &[u8]) -> Result<OwnedFd> {
        if let Some((last, folder)) = self.last.take_if(|last| last.0 == path) {
            let _ = last;
            return Ok(folder);
        }
        let full = self.full(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match place::open(self.root, &full, flags) {
            Err(Errno::NOENT) => {}
            found => return found.map_err(Error::os("open", &full)),
        }
        let mut here = self.base.clone();
        let mut folder = place::open(self.root, &here, flags).map_err(Error::os("open", &here))?;
        for part in place::parts(path) {
            here.push(b'/');
            here.extend_from_slice(part);
            folder = match place::open(self.root, &here, flags) {
                Err(Errno::NOENT) => {
                    let made = rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755));
                    made.map_err(Error::os("make folder", &here))?;
                    place::open(self.root, &here, flags)
                }
                found => found,
            }
            .map_err(Error::os("open", &here))?;
        }
        Ok(folder)
    }

    fn full(&self, path: &[u8]) -> Vec<u8> {
        let parts = [&self.base[..], path];
        let parts: Vec<&[u8]> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(&b'/')
    }

    /// What a layer says is gone goes.
    fn take_away(&mut self, above: &[u8], name: &[u8], gone: &[u8]) -> Result<()> {
        self.last = None;
        let fault = Error::os("remove", name);
        match place::open(self.root, &self.full(above), OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => Ok(()),
            Ok(folder) if name == changes::OPAQUE => place::empty(folder).map_err(fault),
            Ok(folder) if !gone.is_empty() && gone != b"." && gone != b".." => {
                place::remove(folder.as_fd(), gone).map_err(fault)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(fault(error)),
        }
    }

    /// Takes away what stands where the entry goes, but a folder that stays one.
    fn clear(&self, folder: BorrowedFd<'_>, name: &[u8], header: &Header) -> Result<()> {
        let fault = |act| Error::os(act, &header.name);
        let place = match place::entry(folder, name) {
            Err(Errno::NOENT) => return Ok(()),
            place => place.map_err(fault("open"))?,
        };
        let found = rustix::fs::fstat(&place).map_err(fault("look at"))?;
        let is_folder = FileType::from_raw_mode(found.st_mode).is_dir();
        let becomes_folder = header.kind == Kind::Dir;
        if self.put.overwrite == Overwrite::SameKind && is_folder != becomes_folder {
            let reason = if is_folder {
                "cannot overwrite directory with non-directory"
            } else {
                "cannot overwrite non-directory with directory"
            };
            return Err(Error::invalid("replace", &header.name, reason));
        }
        if is_folder && becomes_folder {
            return Ok(());
        }
        place::remove(folder, name).map_err(fault("replace"))
    }

    fn owner(&self, header: &Header) -> (Option<Uid>, Option<Gid>) {
        let (uid, gid) = self.put.owner.unwrap_or((header.uid, header.gid));
        // The kernel takes the last number of all for "as it is".
        (Some(Uid::from_raw(uid.min(u32::MAX - 1))), Some(Gid::from_raw(gid.min(u32::MAX - 1))))
    }

    fn make_folder(&mut self, above: BorrowedFd<'_>, name: &[u8], header: &Header) -> Result<()> {
        let fault = |act| Error::os(act, &header.name);
        match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(fault("make folder")(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(above, name, flags, Mode::empty()).map_err(fault("open"))?;
        self.finish(folder.as_fd(), header)?;
        self.times.push((place::parts(&header.name).join(&b'/'), header.mtime));
        Ok(())
    }

    fn make_file(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        header: &Header,
        source: &mut Source<'_>,
    ) -> Result<()> {
        let fault = |act| Error::os(act, &header.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600));
        let file = file.map_err(fault("make"))?;
        let mut left = header.size;
        while left > 0 {
            let mut piece = source.next(left)?;
            if piece.is_empty() {
                return Err(cut_short());
            }
            left -= piece.len() as u64;
            while !piece.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, piece));
                piece = &piece[written.map_err(fault("write"))?..];
            }
        }
        self.finish(file.as_fd(), header)?;
        rustix::fs::futimens(&file, &stamp(header.mtime)).map_err(fault("set the time of"))
    }

    /// Owner, mode and attributes of what is held open, in this order: a new owner takes away what the others give.
    fn finish(&self, file: BorrowedFd<'_>, header: &Header) -> Result<()> {
        let fault = |act| Error::os(act, &header.name);
        let (uid, gid) = self.owner(header);
        rustix::fs::fchown(file, uid, gid).map_err(fault("set the owner of"))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(header.mode)).map_err(fault("set the mode of"))?;
        for (name, value) in &header.xattrs {
            match rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty()) {
                // Not every file system has them, and not every one may be set.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
                Err(error) => return Err(fault("set an attribute of")(error)),
            }
        }
        Ok(())
    }

    /// Owner and time of what is never opened.
    fn finish_plain(&self, folder: BorrowedFd<'_>, name: &[u8], header: &Header) -> Result<()> {
        let fault = |act| Error::os(act, &header.name);
        let (uid, gid) = self.owner(header);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(folder, name, uid, gid, flags).map_err(fault("set the owner of"))?;
        let set = rustix::fs::utimensat(folder, name, &stamp(header.mtime), flags);
        set.map_err(fault("set the time of"))
    }

    /// Folders get their times once nothing is made in them any more. One that is gone again needs none.
    fn set_times(&mut self) {
        for (path, mtime) in self.times.drain(..).rev() {
            let full = [&self.base[..], b"/", &path[..]].concat();
            if let Ok(folder) =
                place::open(self.root, &full, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
            {
                let _ = rustix::fs::futimens(&folder, &stamp(mtime));
            }
        }
    }
}

/// Whether something was refused because of what the archive wants to replace.
impl Error {
    /// It was refused because a folder would become a file, or the other way round.
    pub fn is_other_kind(&self) -> bool {
        self.act == "replace" && matches!(self.cause, Cause::Invalid(_))
    }
}
