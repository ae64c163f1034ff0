//! What is known of a file beside its content.

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fstat,
    fstatvfs, ftruncate, getxattr, getxattr_query, listxattr, listxattr_query, removexattr, setxattr,
    utimensat,
};
use rustix::io::Errno;

use super::nodes::Node;
use super::{Owner, Server, VALID_SECONDS};
use crate::wire::{Body, Header, ROOT_NODE, Reply};

/// `FATTR_*`: which fields of `fuse_setattr_in` count.
mod fields {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const HANDLE: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;
const MODE_BITS: u32 = 0o7777;
const SET_USER_ID: u32 = 0o4000;
/// Without the second the first is no privilege.
const SET_GROUP_ID: [u32; 2] = [0o2000, 0o0010];
/// As `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const MAX_ATTRIBUTE: usize = 64 << 10;
const S_IFDIR: u32 = 0o040_000;

impl Server {
    pub(super) fn getattr(&self, header: &Header) -> Result<Reply, Errno> {
        let mut reply = Reply::new();
        reply.u64(VALID_SECONDS).u32(0).u32(0);
        if header.node == ROOT_NODE {
            root_attributes(&mut reply);
        } else {
            let node = self.node(header.node)?;
            self.attributes(&mut reply, node.export(), &fstat(&node.file)?);
        }
        Ok(reply)
    }

    /// Puts `fuse_attr` into an answer. Numbers of files are made unlike those of other exports, for the guest takes all of
    /// them for one file system.
    pub(super) fn attributes(&self, reply: &mut Reply, export: usize, stat: &Stat) {
        let (uid, gid) = self.seen(stat);
        reply.u64(inode(export, stat.st_ino)).u64(stat.st_size as u64).u64(stat.st_blocks as u64);
        reply.u64(stat.st_atime as u64).u64(stat.st_mtime as u64).u64(stat.st_ctime as u64);
        reply.u32(stat.st_atime_nsec as u32).u32(stat.st_mtime_nsec as u32).u32(stat.st_ctime_nsec as u32);
        reply.u32(stat.st_mode).u32(stat.st_nlink as u32).u32(uid).u32(gid);
        reply.u32(device(stat.st_rdev)).u32(stat.st_blksize as u32).u32(0);
    }

    pub(super) fn setattr(&self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let node = self.changeable(header.node)?;
        let (valid, _, handle, size) = (body.u32()?, body.u32()?, body.u64()?, body.u64()?);
        let (_, atime, mtime, _) = (body.u64()?, body.u64()?, body.u64()?, body.u64()?);
        let (atime_nsec, mtime_nsec, _) = (body.u32()?, body.u32()?, body.u32()?);
        let (mode, _, uid, gid) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let has = |field| valid & field != 0;
        if has(fields::UID | fields::GID) {
            let (uid, gid) = self.meant(uid, gid);
            // In a name space of users others have no number at all; the guest is told as outside of one.
            if let Owner::Always(user, group) = self.owner
                && (has(fields::UID) && uid != user || has(fields::GID) && gid != group)
            {
                return Err(Errno::PERM);
            }
            set_owner(node, has(fields::UID).then_some(uid), has(fields::GID).then_some(gid))?;
        }
        if has(fields::MODE) {
            self.set_mode(node, mode)?;
        }
        if has(fields::SIZE) {
            if has(fields::HANDLE) {
                ftruncate(&self.changeable_handle(handle)?.file, size)?;
            } else if node.is_file() {
                ftruncate(self.reopen(node, OFlags::WRONLY)?, size)?;
            } else {
                return Err(Errno::INVAL);
            }
            if has(fields::KILL_SUIDGID) {
                self.take_privileges(node)?;
            }
        }
        let time = |set, now, seconds: u64, nanoseconds: u32| match (has(set), has(now)) {
            (_, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            (true, _) => Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.into() },
            _ => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        if has(fields::ATIME | fields::MTIME | fields::ATIME_NOW | fields::MTIME_NOW) {
            let times = Timestamps {
                last_access: time(fields::ATIME, fields::ATIME_NOW, atime, atime_nsec),
                last_modification: time(fields::MTIME, fields::MTIME_NOW, mtime, mtime_nsec),
            };
            utimensat(&node.file, "", &times, AtFlags::EMPTY_PATH)?;
        }
        self.getattr(header)
    }

    pub(super) fn set_mode(&self, node: &Node, mode: u32) -> Result<(), Errno> {
        if node.is_link() {
            return Err(Errno::OPNOTSUPP);
        }
        chmodat(rustix::fs::CWD, self.path(node), Mode::from_raw_mode(mode & MODE_BITS), AtFlags::empty())
    }

    /// What a file that somebody else changes must not keep.
    pub(super) fn take_privileges(&self, node: &Node) -> Result<(), Errno> {
        let mode = fstat(&node.file)?.st_mode;
        let group: u32 = SET_GROUP_ID.iter().sum();
        let mut without = mode & !SET_USER_ID;
        if mode & group == group {
            without &= !SET_GROUP_ID[0];
        }
        if without == mode { Ok(()) } else { self.set_mode(node, without) }
    }

    pub(super) fn statfs(&self, header: &Header) -> Result<Reply, Errno> {
        let mut reply = Reply::new();
        if header.node == ROOT_NODE {
            reply.bytes(&[0; 40]).u32(4096).u32(255).u32(4096).u32(0).bytes(&[0; 24]);
            return Ok(reply);
        }
        let found = fstatvfs(&self.node(header.node)?.file)?;
        reply
            .u64(found.f_blocks)
            .u64(found.f_bfree)
            .u64(found.f_bavail)
            .u64(found.f_files)
            .u64(found.f_ffree);
        reply.u32(found.f_bsize as u32).u32(found.f_namemax as u32).u32(found.f_frsize as u32).u32(0);
        reply.bytes(&[0; 24]);
        Ok(reply)
    }

    pub(super) fn getxattr(&self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (size, _, name) = (body.u32()?, body.u32()?, body.text()?);
        let path = self.path(self.node(header.node).map_err(|_| Errno::NODATA)?);
        if size == 0 {
            return Ok(size_alone(getxattr_query(path, name)?));
        }
        let mut value = vec![0; MAX_ATTRIBUTE.min(size as usize)];
        let len = getxattr(path, name, &mut value)?;
        let mut reply = Reply::new();
        reply.bytes(&value[..len]);
        Ok(reply)
    }

    pub(super) fn listxattr(&self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (size, _) = (body.u32()?, body.u32()?);
        if header.node == ROOT_NODE {
            return Ok(if size == 0 { size_alone(0) } else { Reply::new() });
        }
        let path = self.path(self.node(header.node)?);
        if size == 0 {
            return Ok(size_alone(listxattr_query(path)?));
        }
        let mut names = vec![0; MAX_ATTRIBUTE.min(size as usize)];
        let len = listxattr(path, &mut names)?;
        let mut reply = Reply::new();
        reply.bytes(&names[..len]);
        Ok(reply)
    }

    pub(super) fn setxattr(&self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let node = self.changeable(header.node)?;
        let (size, flags, name) = (body.u32()?, body.u32()?, body.text()?);
        let value = body.bytes(size as usize)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        setxattr(self.path(node), name, value, flags)?;
        Ok(Reply::new())
    }

    pub(super) fn removexattr(&self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let node = self.changeable(header.node)?;
        removexattr(self.path(node), body.text()?)?;
        Ok(Reply::new())
    }
}

/// Gives a node to a user and a group of the host.
pub(super) fn set_owner(node: &Node, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    // All ones mean nobody: the kernel's way to say "as it is".
    let is_id = |id: &u32| *id != u32::MAX;
    let uid = uid.filter(is_id).map(Uid::from_raw);
    let gid = gid.filter(is_id).map(Gid::from_raw);
    chownat(&node.file, "", uid, gid, AtFlags::EMPTY_PATH)
}

pub(super) fn root_attributes(reply: &mut Reply) {
    reply.u64(ROOT_NODE).bytes(&[0; 52]).u32(S_IFDIR | 0o755).u32(2).bytes(&[0; 12]).u32(4096).u32(0);
}

pub(super) fn inode(export: usize, inode: u64) -> u64 {
    inode ^ ((export as u64 + 1) << 48)
}

/// As the guest's `new_decode_dev` reads it.
fn device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// `fuse_getxattr_out`.
fn size_alone(size: usize) -> Reply {
    let mut reply = Reply::new();
    reply.u32(size as u32).u32(0);
    reply
}
