//! What an overlay's upper folder says: files that are new or changed, and marks for what is gone.
//!
//! Source: Documentation/filesystems/overlayfs.rst ("whiteouts and opaque directories"), and for what is written OCI image
//! specification 1.1, `layer.md`. An upper folder that refers to what lies below it (`redirect_dir`, `metacopy`) is refused.

use alloc::vec::Vec;

use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, Stat};

use crate::error::{Error, Result};

/// What stands in a folder of which nothing below is to be seen.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// What the name of something that is gone begins with.
pub(crate) const GONE: &[u8] = b".wh.";

/// Whether it stands for something that is gone.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
}

/// The name of the mark for `path`.
pub(crate) fn whiteout(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..at], GONE, &path[at..]].concat()
}

/// Whether nothing below this folder is to be seen in it.
pub(crate) fn is_opaque(folder: BorrowedFd<'_>) -> bool {
    let mut value = [0; 1];
    rustix::fs::fgetxattr(folder, "trusted.overlay.opaque", &mut value[..]).is_ok() && value == *b"y"
}

/// Refuses what means something only above the same layers.
pub(crate) fn check(file: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    for name in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        // An empty buffer asks for the length alone.
        if rustix::fs::fgetxattr(file, name, &mut [0u8; 0][..]).is_ok() {
            return Err(Error::invalid("read", path, "the overlay says where it was instead of what it is"));
        }
    }
    Ok(())
}
