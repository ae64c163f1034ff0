//! Images and kernels in one content-addressed store, and the root file systems made of them.
//!
//! [`Store::open`] gives the store. Images come in by [`Store::import`], [`Store::load`], [`Store::bootstrap`] and piece by
//! piece by [`Store::incoming`], which also makes new ones of layers, go out by [`Store::save`], and become one squashfs file for a machine by
//! [`Store::root_for_vm`]. Kernels are in [`kernels`]; [`cpio`] writes the initramfs a caller puts together.
//!
//! Reading order: `files` (what crash-safe means here), `store` (layout, locks, collector), `tar`, `layers` (archives become a
//! tree), `squashfs` (the tree becomes a file), `root` (joins them), then `archive`, `bootstrap`, `kernels`.
//!
//! Deliberately not here: registries (see the crate `registry`), anything about machines, decompressing kernels (the caller
//! does that through a closure), printing (see [`Progress`]), and unpacking onto the host's file system: nothing in an image is
//! ever a path of the host.
#![forbid(unsafe_code)]

mod archive;
mod bootstrap;
mod compression;
pub mod cpio;
mod diff;
mod digest;
pub mod document;
mod error;
mod files;
mod history;
mod image;
pub mod kernels;
mod layers;
pub mod media;
pub mod path;
mod platform;
mod progress;
mod reference;
mod root;
mod seal;
mod squashfs;
mod store;
mod tar;
#[cfg(test)]
mod testing;
mod view;

pub use archive::{SaveFormat, rfc3339, source_date};
pub use bootstrap::Bootstrap;
pub use compression::decompress;
pub use diff::{Change, ChangeKind};
pub use digest::Digest;
pub use error::{Error, Result};
pub use history::HistoryStep;
pub use image::{Config, Healthcheck, Image, ImageSummary};
pub use layers::{LayerPart, LayerWriter};
pub use platform::Platform;
pub use progress::{NoProgress, Part, Progress};
pub use reference::Reference;
pub use root::{RootFile, SQUASHFS};
pub use store::{Checked, Collected, Incoming, Keeper, PartialBlob, Problem, Pruned, ScratchFolder, Store};
pub use tar::TarError;
pub use view::{Missing, NodeInfo, NodeKind, View};

pub(crate) use store::{MAX_DOCUMENT_BYTES, digest_of};

/// Bytes of one uncompressed layer. Attack: a small archive that expands without end.
const MAX_LAYER_BYTES: u64 = 512 << 30;
