//! The FUSE protocol's numbers, and careful reading and writing of its little structures. All fields are in the processor's
//! order of bytes, which for the guests there are is little endian.

use rustix::io::Errno;

/// Bytes of `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Most bytes that one read or write moves.
pub const MAX_IO: usize = 1 << 20;
/// Most bytes of a request or an answer that goes to the server: names, attributes and listings.
pub const MAX_PACKET: usize = 80 << 10;
/// The node that everything hangs from.
pub const ROOT_NODE: u64 = 1;

macro_rules! opcodes {
    ($($name:ident = $number:literal,)*) => {
        /// What a request asks for (`enum fuse_opcode`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the names are the protocol's")]
        pub enum Opcode { $($name = $number,)* }

        impl Opcode {
            /// The one with this number, if it is served here.
            pub fn new(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1, Forget = 2, Getattr = 3, Setattr = 4, Readlink = 5, Symlink = 6, Mknod = 8, Mkdir = 9, Unlink = 10,
    Rmdir = 11, Rename = 12, Link = 13, Open = 14, Read = 15, Write = 16, Statfs = 17, Release = 18, Fsync = 20,
    Setxattr = 21, Getxattr = 22, Listxattr = 23, Removexattr = 24, Flush = 25, Init = 26, Opendir = 27, Readdir = 28,
    Releasedir = 29, Fsyncdir = 30, Create = 35, Interrupt = 36, Destroy = 38, BatchForget = 42, Fallocate = 43,
    Readdirplus = 44, Rename2 = 45, Lseek = 46, CopyFileRange = 47, Syncfs = 50,
}

impl Opcode {
    /// Whether nobody waits for an answer.
    pub fn is_unanswered(self) -> bool {
        matches!(self, Self::Forget | Self::BatchForget | Self::Interrupt)
    }

    /// Whether the answer may take as long as a disk does, on a host that has all of a folder in memory.
    pub fn may_wait_for_disk(self) -> bool {
        matches!(self, Self::Fsync | Self::Fsyncdir | Self::Syncfs | Self::Fallocate | Self::CopyFileRange)
    }
}

/// `fuse_in_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the request, this header among them.
    pub len: u32,
    /// Not each is an [`Opcode`].
    pub opcode: u32,
    /// The answer carries it too.
    pub unique: u64,
    /// What the request is about.
    pub node: u64,
    /// Who asks, in the guest.
    pub uid: u32,
    /// Who asks, in the guest.
    pub gid: u32,
}

impl Header {
    /// The header that `bytes` begin with.
    pub fn read(bytes: &[u8; IN_HEADER]) -> Self {
        let mut body = Body(bytes);
        let mut u32 = || body.u32().unwrap_or(0);
        let (len, opcode) = (u32(), u32());
        let mut body = Body(&bytes[8..]);
        let mut u64 = || body.u64().unwrap_or(0);
        let (unique, node) = (u64(), u64());
        let mut body = Body(&bytes[24..]);
        let mut u32 = || body.u32().unwrap_or(0);
        Self { len, opcode, unique, node, uid: u32(), gid: u32() }
    }
}

/// What follows the header of a request, read from its front. What is cut short is EINVAL.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*array)
    }

    /// The next 32 bits.
    ///
    /// # Errors
    /// EINVAL where the request has ended.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The next 64 bits.
    ///
    /// # Errors
    /// EINVAL where the request has ended.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// EINVAL where the request has ended.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Text up to a zero byte.
    ///
    /// # Errors
    /// EINVAL where there is no zero byte.
    pub fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    /// The name of something in a folder: one part of a path, and none that leads elsewhere.
    ///
    /// # Errors
    /// EINVAL, or ENAMETOOLONG.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        let name = self.text()?;
        match name {
            b"" | b"." | b".." => Err(Errno::INVAL),
            _ if name.contains(&b'/') => Err(Errno::INVAL),
            _ if name.len() > 255 => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }
}

/// An answer being written: room for the header, then fields.
#[derive(Debug, Default)]
pub struct Reply(Vec<u8>);

impl Reply {
    /// Without fields.
    pub fn new() -> Self {
        Self(vec![0; OUT_HEADER])
    }

    /// 16 bits.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// As they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes after the header.
    pub fn len(&self) -> usize {
        self.0.len() - OUT_HEADER
    }

    /// Whether nothing follows the header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes back all but the first `len` bytes after the header.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(OUT_HEADER + len);
    }

    /// The answer to request `unique`.
    pub fn finish(mut self, unique: u64) -> Vec<u8> {
        let header = out_header(self.0.len(), 0, unique);
        self.0[..OUT_HEADER].copy_from_slice(&header);
        self.0
    }
}

/// `fuse_out_header` of an answer of `len` bytes, itself among them; `errno` 0 is success.
pub fn out_header(len: usize, errno: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&(len as u32).to_le_bytes());
    header[4..8].copy_from_slice(&(-errno).to_le_bytes());
    header[8..].copy_from_slice(&unique.to_le_bytes());
    header
}

/// The whole answer to a request that went wrong.
pub fn failed(errno: Errno, unique: u64) -> [u8; OUT_HEADER] {
    out_header(OUT_HEADER, errno.raw_os_error(), unique)
}

/// `fuse_read_in` and `fuse_write_in`, which agree in these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The open file.
    pub handle: u64,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes to move.
    pub size: u32,
}

impl Transfer {
    /// Bytes of either structure.
    pub const BYTES: usize = 40;

    /// The one that `bytes` hold.
    pub fn read(bytes: &[u8; Self::BYTES]) -> Self {
        let mut body = Body(bytes);
        let (handle, offset) = (body.u64().unwrap_or(0), body.u64().unwrap_or(0));
        Self { handle, offset, size: body.u32().unwrap_or(0) }
    }
}
