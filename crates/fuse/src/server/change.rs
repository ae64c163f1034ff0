//! What makes, renames and removes.

use std::os::fd::AsRawFd;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, linkat, mkdirat, mknodat, openat, readlinkat,
    renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::set_owner;
use super::content::open_flags;
use super::{Access, Done, Flags, Kind, Server};
use crate::wire::{Body, Header, Reply};

/// The bits a file is made with; others come when it has its owner.
const PERMISSIONS: u32 = 0o777;
const SET_GROUP_ID: u32 = 0o2000;
const PATH_MAX: usize = 4096;

impl Server {
    pub(super) fn create(&mut self, header: &Header, body: &mut Body<'_>) -> Done {
        let (flags, mode, _, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let name = body.name()?;
        let folder = self.changeable(header.node)?;
        let wanted = open_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&folder.file, name, wanted, Mode::from_raw_mode(mode & PERMISSIONS)) {
            // The guest did not know that it is there.
            Err(Errno::EXIST) if !OFlags::from_bits_retain(flags).contains(OFlags::EXCL) => {
                let (mut reply, node) = self.look_up(header.node, name)?;
                let handle = self.open_node(node, flags).inspect_err(|_| self.nodes.forget(node, 1))?;
                reply.u64(handle).u32(0).u32(0);
                return Ok((reply, Some(handle)));
            }
            opened => opened?,
        };
        let (mut reply, node) = self.made(header, name, mode)?;
        let handle = self.add_handle(file, node, Access::ReadWrite);
        reply.u64(handle).u32(0).u32(0);
        Ok((reply, Some(handle)))
    }

    pub(super) fn mkdir(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (mode, _, name) = (body.u32()?, body.u32()?, body.name()?);
        let folder = self.changeable(header.node)?;
        mkdirat(&folder.file, name, Mode::from_raw_mode(mode & PERMISSIONS))?;
        self.made(header, name, mode).map(|(reply, _)| reply)
    }

    /// Files, named pipes and sockets. Device nodes are not for a guest to make on its host.
    pub(super) fn mknod(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (mode, _, _, _, name) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?, body.name()?);
        let folder = self.changeable(header.node)?;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        mknodat(&folder.file, name, kind, Mode::from_raw_mode(mode & PERMISSIONS), 0)?;
        self.made(header, name, mode).map(|(reply, _)| reply)
    }

    pub(super) fn symlink(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (name, target) = (body.name()?, body.text()?);
        let folder = self.changeable(header.node)?;
        if target.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        // Where it leads is the guest's affair: no link is ever followed here.
        symlinkat(target, &folder.file, name)?;
        self.made(header, name, 0).map(|(reply, _)| reply)
    }

    /// Gives what was just made its owner and the rest of its mode.
    fn made(&mut self, header: &Header, name: &[u8], mode: u32) -> Result<(Reply, u64), Errno> {
        let (_, id) = self.look_up(header.node, name)?;
        let given = self.give(header, id, mode);
        let stat = given.and_then(|()| fstat(&self.node(id)?.file));
        match stat {
            Ok(stat) => {
                let export = self.node(id)?.export();
                Ok((self.entry(id, export, &stat), id))
            }
            Err(errno) => {
                self.nodes.forget(id, 1);
                Err(errno)
            }
        }
    }

    fn give(&self, header: &Header, id: u64, mode: u32) -> Result<(), Errno> {
        let node = self.node(id)?;
        let stat = fstat(&node.file)?;
        let (uid, gid) = self.meant(header.uid, header.gid);
        // A folder with this bit has given its group already, and the bit to folders.
        let inherits = fstat(&self.node(header.node)?.file)?.st_mode & SET_GROUP_ID != 0;
        let gid = if inherits { stat.st_gid } else { gid };
        if matches!(self.owner, super::Owner::AsTheGuestSays) && (stat.st_uid, stat.st_gid) != (uid, gid) {
            set_owner(node, Some(uid), Some(gid))?;
        }
        let wanted = mode & 0o7777 | if node.is_folder() { stat.st_mode & SET_GROUP_ID } else { 0 };
        // A default ACL of the folder may have taken some of the lower bits; those stay as they are.
        if !node.is_link() && wanted & !PERMISSIONS & !stat.st_mode != 0 {
            self.set_mode(node, wanted & !PERMISSIONS | stat.st_mode & PERMISSIONS)?;
        }
        Ok(())
    }

    pub(super) fn unlink(&self, header: &Header, body: &mut Body<'_>, kind: Kind) -> Result<Reply, Errno> {
        let folder = self.changeable(header.node)?;
        let flags = if kind == Kind::Folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(&folder.file, body.name()?, flags)?;
        Ok(Reply::new())
    }

    pub(super) fn rename(
        &self,
        header: &Header,
        body: &mut Body<'_>,
        has_flags: Flags,
    ) -> Result<Reply, Errno> {
        let to = body.u64()?;
        let flags = if has_flags == Flags::Yes { (body.u32()?, body.u32()?).0 } else { 0 };
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits(flags).filter(|f| known.contains(*f)).ok_or(Errno::INVAL)?;
        let (from, to) = (self.changeable(header.node)?, self.changeable(to)?);
        if from.export() != to.export() {
            return Err(Errno::XDEV);
        }
        let (old, new) = (body.name()?, body.name()?);
        renameat_with(&from.file, old, &to.file, new, flags)?;
        Ok(Reply::new())
    }

    pub(super) fn link(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (old, name) = (self.changeable(body.u64()?)?, body.name()?);
        let folder = self.changeable(header.node)?;
        if old.export() != folder.export() {
            return Err(Errno::XDEV);
        }
        let number = old.file.as_raw_fd().to_string();
        linkat(&self.descriptors.folder, number, &folder.file, name, AtFlags::SYMLINK_FOLLOW)?;
        self.look_up(header.node, name).map(|(reply, _)| reply)
    }

    pub(super) fn readlink(&self, header: &Header) -> Result<Reply, Errno> {
        let target = readlinkat(&self.node(header.node)?.file, "", Vec::new())?;
        let mut reply = Reply::new();
        reply.bytes(target.as_bytes());
        Ok(reply)
    }
}
