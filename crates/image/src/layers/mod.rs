//! Layers put on top of each other, in memory: one tree of names and inodes; file contents go elsewhere as they stream by.
//!
//! Source: OCI image specification 1.1, `layer.md` (changesets, whiteouts). Every path of an archive is a name inside the
//! image: `..` stops at the image's root, absolute paths and symlinks in a path start from it, as in a chroot.

mod apply;
mod changes;
#[cfg(test)]
mod tests;
mod tree;
mod write;

pub(crate) use apply::{ApplyError, Contents, apply};
pub use write::{LayerPart, LayerWriter};

pub(crate) use tree::{Body, Meta, Node, NodeId, ROOT, Tree, Xattr, XattrKind};
