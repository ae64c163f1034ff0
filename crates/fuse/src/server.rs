//! The server: takes one request after the other, and does what it asks to the folders.
//!
//! Every node the guest knows is an open file of this process (`O_PATH`), so that no path is ever followed: names are single
//! parts, looked up in a node's own file and never through links. What is to be read or written is opened anew through
//! `/proc/self/fd`.
//!
//! Ids of users: a server that is root gives files the owner the guest says. Any other makes them its own user's, who is
//! root for the guest.

mod attributes;
mod change;
mod content;
mod folder;
mod nodes;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use self::nodes::{Node, Nodes};
use crate::wire::{Body, Header, IN_HEADER, MAX_IO, Opcode, ROOT_NODE, Reply, failed};

/// Seconds for which the guest may believe what it was told of names and attributes.
const VALID_SECONDS: u64 = 1;
/// Of the protocol; what came later is not spoken here.
const MAJOR: u32 = 7;
const MINOR: u32 = 33;

/// `FUSE_*` flags of INIT.
mod init {
    pub const ASYNC_READ: u32 = 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    /// Set-user-id bits go when a file is written: by this host's kernel, as who writes has no capabilities. It also keeps
    /// the guest from asking for `security.capability` before each write.
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const ALL: u32 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | AUTO_INVAL_DATA
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | MAX_PAGES
        | HANDLE_KILLPRIV_V2;
}

/// A folder or file of the host.
#[derive(Debug)]
pub struct Export {
    /// What it is: opened with `O_PATH`.
    pub file: OwnedFd,
    /// Whether the guest may change it.
    pub access: Access,
}

/// What a guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look.
    ReadOnly,
    /// Look and change.
    ReadWrite,
}

/// Whose files the guest's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whose the guest says.
    AsTheGuestSays,
    /// This user's and group's, who are root for the guest.
    Always(u32, u32),
}

/// Where files are opened anew by the number of their descriptor.
#[derive(Debug)]
pub struct Descriptors {
    /// `/proc/self/fd`.
    pub folder: OwnedFd,
    /// The path of that folder with a slash at its end; empty if it is the working directory.
    pub prefix: &'static str,
}

impl Descriptors {
    /// Those of this process, whatever its working directory is.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn new() -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        Ok(Self { folder, prefix: "/proc/self/fd/" })
    }
}

/// Opens what an [`Export`] is.
///
/// # Errors
/// The kernel's.
pub fn open_path(path: impl AsRef<std::path::Path>) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path.as_ref(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// The folders, and what a guest knows of them.
#[derive(Debug)]
pub struct Server {
    exports: Vec<Export>,
    owner: Owner,
    descriptors: Descriptors,
    nodes: Nodes,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
}

/// An open file or folder.
#[derive(Debug)]
struct Handle {
    file: OwnedFd,
    node: u64,
    access: Access,
}

/// What a request comes to: an answer, and maybe the handle whose file goes with it.
type Done = Result<(Reply, Option<u64>), Errno>;

impl Server {
    /// Serves `exports`, which the guest finds as `0`, `1` and so on in the root.
    pub fn new(exports: Vec<Export>, owner: Owner, descriptors: Descriptors) -> Self {
        let (nodes, handles) = (Nodes::default(), HashMap::new());
        Self { exports, owner, descriptors, nodes, handles, next_handle: 1 }
    }

    /// The answer to a request, with the file it opened, or `None` if it gets none.
    pub fn answer(
        &mut self,
        header: &[u8; IN_HEADER],
        body: &[u8],
    ) -> Option<(Vec<u8>, Option<BorrowedFd<'_>>)> {
        let header = Header::read(header);
        let opcode = Opcode::new(header.opcode);
        let done = if header.len as usize == IN_HEADER + body.len() {
            opcode.ok_or(Errno::NOSYS).and_then(|opcode| self.serve(opcode, &header, Body(body)))
        } else {
            Err(Errno::INVAL)
        };
        if opcode.is_some_and(Opcode::is_unanswered) {
            return None;
        }
        match done {
            Ok((reply, handle)) => {
                let file = handle.and_then(|handle| self.handles.get(&handle));
                Some((reply.finish(header.unique), file.map(|handle| handle.file.as_fd())))
            }
            Err(errno) => Some((failed(errno, header.unique).to_vec(), None)),
        }
    }

    fn serve(&mut self, opcode: Opcode, header: &Header, mut body: Body<'_>) -> Done {
        let body = &mut body;
        let reply = match opcode {
            Opcode::Init => self.init(body)?,
            Opcode::Destroy => {
                self.forget_all();
                Reply::new()
            }
            Opcode::Forget => self.forget(header.node, body.u64()?),
            Opcode::BatchForget => self.batch_forget(body)?,
            Opcode::Interrupt => Reply::new(),
            Opcode::Open => return self.open(header, body),
            Opcode::Create => return self.create(header, body),
            Opcode::Lookup => self.lookup(header, body)?,
            Opcode::Getattr => self.getattr(header)?,
            Opcode::Setattr => self.setattr(header, body)?,
            Opcode::Statfs => self.statfs(header)?,
            Opcode::Getxattr => self.getxattr(header, body)?,
            Opcode::Listxattr => self.listxattr(header, body)?,
            Opcode::Setxattr => self.setxattr(header, body)?,
            Opcode::Removexattr => self.removexattr(header, body)?,
            Opcode::Readlink => self.readlink(header)?,
            Opcode::Symlink => self.symlink(header, body)?,
            Opcode::Mknod => self.mknod(header, body)?,
            Opcode::Mkdir => self.mkdir(header, body)?,
            Opcode::Unlink => self.unlink(header, body, Kind::Other)?,
            Opcode::Rmdir => self.unlink(header, body, Kind::Folder)?,
            Opcode::Rename => self.rename(header, body, Flags::No)?,
            Opcode::Rename2 => self.rename(header, body, Flags::Yes)?,
            Opcode::Link => self.link(header, body)?,
            Opcode::Opendir => self.opendir(header)?,
            Opcode::Readdir => self.readdir(header, body, folder::Detail::Names)?,
            Opcode::Readdirplus => self.readdir(header, body, folder::Detail::Attributes)?,
            Opcode::Release | Opcode::Releasedir => self.release(body)?,
            Opcode::Fsync | Opcode::Fsyncdir => self.fsync(body)?,
            Opcode::Syncfs => self.syncfs(header)?,
            Opcode::Fallocate => self.fallocate(body)?,
            Opcode::Lseek => self.lseek(body)?,
            Opcode::CopyFileRange => self.copy_file_range(body)?,
            // The device does these itself. Nothing waits here to be written when a file is closed: the guest, told so once, asks
            // no more.
            Opcode::Read | Opcode::Write | Opcode::Flush => return Err(Errno::NOSYS),
        };
        Ok((reply, None))
    }

    fn init(&mut self, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (major, minor, max_readahead, offered) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        self.forget_all();
        let mut reply = Reply::new();
        if major < MAJOR || (major == MAJOR && minor < MINOR) {
            return Err(Errno::PROTO);
        }
        // Of a guest that speaks a later one: it says again what it can do, in this one.
        let flags = if major == MAJOR { offered & init::ALL } else { 0 };
        reply.u32(MAJOR).u32(MINOR).u32(max_readahead).u32(flags);
        // max_background and congestion_threshold as the kernel would have them, max_write, time_gran.
        reply.u16(64).u16(48).u32(MAX_IO as u32).u32(1);
        // max_pages, map_alignment, flags2, unused.
        reply.u16((MAX_IO / 4096) as u16).u16(0).u32(0).bytes(&[0; 28]);
        Ok(reply)
    }

    fn forget_all(&mut self) {
        self.nodes = Nodes::default();
        self.handles.clear();
    }

    fn forget(&mut self, node: u64, count: u64) -> Reply {
        self.nodes.forget(node, count);
        Reply::new()
    }

    fn batch_forget(&mut self, body: &mut Body<'_>) -> Result<Reply, Errno> {
        let (count, _) = (body.u32()?, body.u32()?);
        for _ in 0..count {
            let (node, lookups) = (body.u64()?, body.u64()?);
            self.nodes.forget(node, lookups);
        }
        Ok(Reply::new())
    }

    fn node(&self, id: u64) -> Result<&Node, Errno> {
        // The root holds nothing but the exports.
        if id == ROOT_NODE { Err(Errno::PERM) } else { self.nodes.find(id) }
    }

    /// A node whose export may be changed.
    fn changeable(&self, id: u64) -> Result<&Node, Errno> {
        let node = if id == ROOT_NODE { Err(Errno::ROFS) } else { self.nodes.find(id) }?;
        match self.access(node) {
            Access::ReadWrite => Ok(node),
            Access::ReadOnly => Err(Errno::ROFS),
        }
    }

    fn access(&self, node: &Node) -> Access {
        self.exports.get(node.export()).map_or(Access::ReadOnly, |export| export.access)
    }

    fn handle(&self, handle: u64) -> Result<&Handle, Errno> {
        self.handles.get(&handle).ok_or(Errno::BADF)
    }

    fn changeable_handle(&self, handle: u64) -> Result<&Handle, Errno> {
        let handle = self.handle(handle)?;
        if handle.access == Access::ReadWrite { Ok(handle) } else { Err(Errno::BADF) }
    }

    fn add_handle(&mut self, file: OwnedFd, node: u64, access: Access) -> u64 {
        let number = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(number, Handle { file, node, access });
        number
    }

    /// Opens what a node is; it is a file or a folder, as nothing else is opened on the host.
    fn reopen(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        if !node.is_file() && !node.is_folder() {
            return Err(Errno::NXIO);
        }
        let name = node.file.as_raw_fd().to_string();
        rustix::fs::openat(&self.descriptors.folder, name, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// A path to a node, for calls that take nothing else.
    fn path(&self, node: &Node) -> String {
        format!("{}{}", self.descriptors.prefix, node.file.as_raw_fd())
    }

    /// Owner and group as the guest sees them.
    fn seen(&self, stat: &Stat) -> (u32, u32) {
        match self.owner {
            Owner::AsTheGuestSays => (stat.st_uid, stat.st_gid),
            Owner::Always(uid, gid) => (
                if stat.st_uid == uid { 0 } else { stat.st_uid },
                if stat.st_gid == gid { 0 } else { stat.st_gid },
            ),
        }
    }

    /// An id of the guest's on this host.
    fn meant(&self, uid: u32, gid: u32) -> (u32, u32) {
        match self.owner {
            Owner::AsTheGuestSays => (uid, gid),
            Owner::Always(user, group) => {
                (if uid == 0 { user } else { uid }, if gid == 0 { group } else { gid })
            }
        }
    }
}

/// What is removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    Other,
}

/// Whether a request to rename has flags.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    Yes,
    No,
}

#[cfg(test)]
mod tests;
