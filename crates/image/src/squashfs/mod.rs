//! A writer of squashfs 4.0 file systems (Linux `Documentation/filesystems/squashfs.rst`, `fs/squashfs/squashfs_fs.h`).
//!
//! Everything is stored uncompressed: the reader is a guest whose every instruction is expensive, and the file is cached and
//! read through the page cache of the host. Blocks of zeros are holes. Inodes carry xattrs and hard links, folders an index.
//! Why not the crate `backhand`: its writer stores no xattrs (file capabilities would be lost) and no hard links.
//! Known omissions: compression, fragments (the last block of a file is stored short), the NFS export table, sockets.

mod data;
mod dir;
mod metadata;
#[cfg(test)]
mod tests;
mod writer;
mod xattr;

pub(crate) use data::{DataWriter, FileData};
pub(crate) use writer::{finish, is_whole};

const MAGIC: u32 = 0x7371_7368;
const SUPERBLOCK_BYTES: u64 = 96;
/// Bytes of a data block.
pub(crate) const BLOCK_BYTES: usize = 128 << 10;
const BLOCK_LOG: u16 = 17;
/// In the size of a data block: it is stored uncompressed.
const BLOCK_UNCOMPRESSED: u32 = 1 << 24;
/// Never used, but a reader must know it: every kernel with squashfs has zlib by default.
const COMPRESSION_ZLIB: u16 = 1;
/// A table that is not there.
const NO_TABLE: u64 = u64::MAX;
/// An inode without fragment, without xattrs.
const NONE: u32 = u32::MAX;
/// The file is padded to this, as a block device wants.
const PAD_BYTES: u64 = 4096;
