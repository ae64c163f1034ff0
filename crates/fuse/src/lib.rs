//! Folders and files of this host for a guest, by the FUSE protocol (Linux `include/uapi/linux/fuse.h`, version 7.33).
//!
//! ```text
//! machine's process                     a process of its own, which sees nothing but the folders
//!   virtio-fs device ── link::Client ═══ SOCK_SEQPACKET ═══ link::serve ── server::Server
//!     reads and writes open files ◄──── descriptors of what the guest opened
//! ```
//! What names files goes to the server, a packet for a request. What moves bytes does not: with the answer to an open comes
//! the open file, with the rights that the guest asked for, and the machine's process reads and writes it itself.
//!
//! Own code rather than `fuse-backend-rs`: its passthrough keeps the files it opened to itself, so every byte read or written
//! would cross to the server and back; it wants guest memory of another version of `vm-memory` than ours; and it keeps the
//! user ids of a thread, where here owners are set after files are made and the process never changes its own.
//!
//! Reading order: [`wire`], [`link`], [`server`].
//!
//! Deliberately absent: DAX, locks (without them the guest's kernel has its own, which all of the guest sees), notifications
//! of what others change (names and attributes are looked at again after a second), POSIX ACLs, device nodes.
#![forbid(unsafe_code)]

pub mod link;
pub mod server;
pub mod wire;
