//! Open files. Their bytes are read and written by the machine's process.

use rustix::fs::{
    FallocateFlags, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, seek, syncfs,
};
use rustix::io::Errno;

use super::{Access, Done, Server};
use crate::wire::{Body, Header, MAX_IO, Reply};

/// `FUSE_OPEN_KILL_SUIDGID`.
const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`.
const FSYNC_DATA: u32 = 1;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// What of a guest's flags is done for it. O_DIRECT is not: guest memory is not aligned for it.
pub(super) fn open_flags(flags: u32) -> OFlags {
    let kept = OFlags::ACCMODE | OFlags::APPEND | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
    OFlags::from_bits_retain(flags) & kept
}

impl Server {
    pub(super) fn open(&mut self, header: &Header, body: &mut Body<'_>) -> Done {
        let (flags, open_flags) = (body.u32()?, body.u32()?);
        let handle = self.open_node(header.node, flags)?;
        if open_flags & OPEN_KILL_SUIDGID != 0 {
            self.take_privileges(self.node(header.node)?)?;
        }
        let mut reply = Reply::new();
        reply.u64(handle).u32(0).u32(0);
        Ok((reply, Some(handle)))
    }

    pub(super) fn open_node(&mut self, id: u64, flags: u32) -> Result<u64, Errno> {
        let flags = open_flags(flags);
        let changes = flags & OFlags::ACCMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC);
        let node = if changes { self.changeable(id)? } else { self.node(id)? };
        if !node.is_file() {
            return Err(if node.is_folder() { Errno::ISDIR } else { Errno::NXIO });
        }
        let file = self.reopen(node, flags)?;
        let access = if changes { Access::ReadWrite } else { Access::ReadOnly };
        Ok(self.add_handle(file, id, access))
    }

    pub(super) fn release(&mut self, body: &mut Body<'_>) -> Result<Reply, Errno> {
        self.handles.remove(&body.u64()?).ok_or(Errno::BADF)?;
        Ok(Reply::new())
    }

    pub(super) fn fsync(&self, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (handle, flags) = (self.handle(body.u64()?)?, body.u32()?);
        if flags & FSYNC_DATA != 0 { fdatasync(&handle.file) } else { fsync(&handle.file) }?;
        Ok(Reply::new())
    }

    pub(super) fn syncfs(&self, header: &Header) -> Result<Reply, Errno> {
        // Of the root, so of all; a descriptor with O_PATH cannot be asked.
        let exports: Vec<_> = match self.nodes.find(header.node) {
            Ok(node) => vec![self.reopen(node, OFlags::RDONLY)?],
            Err(_) => return Ok(Reply::new()),
        };
        exports.iter().try_for_each(syncfs)?;
        Ok(Reply::new())
    }

    pub(super) fn fallocate(&self, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (handle, offset, len, mode) = (body.u64()?, body.u64()?, body.u64()?, body.u32()?);
        let handle = self.changeable_handle(handle)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        fallocate(&handle.file, mode, offset, len)?;
        Ok(Reply::new())
    }

    pub(super) fn lseek(&self, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (handle, offset, whence) = (self.handle(body.u64()?)?, body.u64()?, body.u32()?);
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let mut reply = Reply::new();
        reply.u64(seek(&handle.file, to)?);
        Ok(reply)
    }

    pub(super) fn copy_file_range(&self, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (from, mut from_offset, _) = (self.handle(body.u64()?)?, body.u64()?, body.u64()?);
        let (to, mut to_offset, len, flags) =
            (self.changeable_handle(body.u64()?)?, body.u64()?, body.u64()?, body.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        // In pieces, for others wait meanwhile; who asked goes on where this ends.
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(64 * MAX_IO);
        let copied =
            copy_file_range(&from.file, Some(&mut from_offset), &to.file, Some(&mut to_offset), len)?;
        let mut reply = Reply::new();
        reply.u32(copied as u32).u32(0);
        Ok(reply)
    }
}
