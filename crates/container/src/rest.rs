//! The root of a container that does not run: what its processes would see, without what is mounted for them.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Result, While};
use crate::rootfs::{self, Root};
use crate::{mounts, sys};

/// Mounts `root` for the calling thread alone, attached nowhere; it goes with its descriptor and the thread. `scratch` is a
/// folder that is there and stays empty. Nobody else may have the same upper folder mounted meanwhile.
///
/// # Errors
/// It cannot be mounted, or is no image's.
pub fn mount(root: &Root, scratch: &Path) -> Result<OwnedFd> {
    let lower = rootfs::lower(root)?;
    sys::unshare(libc::CLONE_NEWNS as u64).during(|| "make a mount namespace".to_owned())?;
    let all = rustix::fs::open(
        "/",
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let all = all.during(|| "open /".to_owned())?;
    let private = mounts::set_propagation(std::os::fd::AsFd::as_fd(&all), libc::MS_PRIVATE, true);
    private.during(|| "keep mounts from the host".to_owned())?;
    rootfs::detached(root, lower.as_ref(), scratch)
}
