//! Names: looking one up, and listing all of a folder.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Stat, fstat, openat2, seek};
use rustix::io::Errno;

use super::attributes::inode;
use super::{Access, Server, VALID_SECONDS};
use crate::wire::{Body, Header, MAX_PACKET, OUT_HEADER, ROOT_NODE, Reply};

/// Bytes of `fuse_entry_out` and of `fuse_dirent` without its name.
const ENTRY: usize = 128;
const DIRENT: usize = 24;
/// What a folder's listing is read into at once.
const LISTING: usize = 16 << 10;

/// How much a listing says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    Names,
    Attributes,
}

impl Server {
    pub(super) fn lookup(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let name = body.name()?;
        self.look_up(header.node, name).map(|(reply, _)| reply)
    }

    /// The entry for `name` in a folder, and its node, which is known once more.
    pub(super) fn look_up(&mut self, folder: u64, name: &[u8]) -> Result<(Reply, u64), Errno> {
        let (export, file) = self.find(folder, name)?;
        let stat = fstat(&file)?;
        let id = self.nodes.add(export, file, &stat);
        Ok((self.entry(id, export, &stat), id))
    }

    fn find(&self, folder: u64, name: &[u8]) -> Result<(usize, OwnedFd), Errno> {
        if folder == ROOT_NODE {
            let number = std::str::from_utf8(name).ok().and_then(|name| name.parse::<usize>().ok());
            let number = number.filter(|number| number.to_string().as_bytes() == name).ok_or(Errno::NOENT)?;
            let export = self.exports.get(number).ok_or(Errno::NOENT)?;
            return Ok((number, rustix::io::fcntl_dupfd_cloexec(&export.file, 0)?));
        }
        let folder = self.node(folder)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        Ok((folder.export(), openat2(&folder.file, name, flags, Mode::empty(), resolve)?))
    }

    /// `fuse_entry_out`.
    pub(super) fn entry(&self, id: u64, export: usize, stat: &Stat) -> Reply {
        let mut reply = Reply::new();
        reply.u64(id).u64(0).u64(VALID_SECONDS).u64(VALID_SECONDS).u32(0).u32(0);
        self.attributes(&mut reply, export, stat);
        reply
    }

    pub(super) fn opendir(&mut self, header: &Header) -> Result<Reply, Errno> {
        let mut reply = Reply::new();
        if header.node == ROOT_NODE {
            // No handle has this number; the list is empty.
            reply.u64(0).u32(0).u32(0);
            return Ok(reply);
        }
        let node = self.node(header.node)?;
        if !node.is_folder() {
            return Err(Errno::NOTDIR);
        }
        let file = self.reopen(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = self.add_handle(file, header.node, Access::ReadOnly);
        reply.u64(handle).u32(0).u32(0);
        Ok(reply)
    }

    pub(super) fn readdir(
        &mut self,
        header: &Header,
        body: &mut Body<'_>,
        detail: Detail,
    ) -> Result<Reply, Errno> {
        let (number, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let mut reply = Reply::new();
        if header.node == ROOT_NODE {
            return Ok(reply);
        }
        let room = (size as usize).min(MAX_PACKET - OUT_HEADER);
        let handle = self.handle(number)?;
        if handle.node != header.node {
            return Err(Errno::BADF);
        }
        let export = self.node(header.node)?.export();
        // Its own, so that `self` can be changed meanwhile; both have the same position.
        let file = rustix::io::fcntl_dupfd_cloexec(&handle.file, 0)?;
        seek(&file, SeekFrom::Start(offset))?;
        let mut space = [MaybeUninit::uninit(); LISTING];
        let mut entries = RawDir::new(&file, &mut space);
        while let Some(found) = entries.next() {
            let found = found?;
            let name = found.file_name().to_bytes();
            let padded = name.len().next_multiple_of(8);
            let needed = DIRENT + padded + if detail == Detail::Attributes { ENTRY } else { 0 };
            if reply.len() + needed > room {
                break;
            }
            if detail == Detail::Attributes {
                self.listed(&mut reply, header.node, name);
            }
            reply.u64(inode(export, found.ino())).u64(found.next_entry_cookie());
            reply.u32(name.len() as u32).u32(kind(found.file_type()));
            reply.bytes(name).bytes(&[0; 8][..padded - name.len()]);
        }
        Ok(reply)
    }

    /// The entry of a name in a listing; zeros where the guest has to look it up itself.
    fn listed(&mut self, reply: &mut Reply, folder: u64, name: &[u8]) {
        let entry = match name {
            b"." | b".." => None,
            _ => self.look_up(folder, name).ok(),
        };
        match entry {
            Some((entry, _)) => reply.bytes(&entry.finish(0)[OUT_HEADER..]),
            None => reply.bytes(&[0; ENTRY]),
        };
    }
}

/// As in `d_type` of dirent(3).
fn kind(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        known => known.as_raw_mode() >> 12,
    }
}
