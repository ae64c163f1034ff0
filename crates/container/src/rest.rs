//! Roots without a container: what its processes would see, without what is mounted for them, and where what they write may be.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::{Result, While};
use crate::options::MountOptions;
use crate::rootfs::{self, Root};
use crate::{mounts, sys};

/// Mounts `root` for the calling thread alone, attached nowhere; it goes with its descriptor and the thread. `scratch` is a
/// folder that is there and stays empty. Nobody else may have the same upper folder mounted meanwhile.
///
/// # Errors
/// It cannot be mounted, or is no image's.
pub fn mount(root: &Root, scratch: &Path) -> Result<OwnedFd> {
    let lower = rootfs::lower(root)?;
    leave_hosts_mounts()?;
    rootfs::detached(root, lower.as_ref(), scratch)
}

/// Mounts memory on `folder`, for the calling thread and the containers it makes alone: for upper folders, which cannot be on
/// another overlay. It goes with the thread.
///
/// # Errors
/// It cannot be mounted.
pub fn memory(folder: &Path) -> Result<()> {
    let act = || format!("mount memory on {}", folder.display());
    leave_hosts_mounts()?;
    let options = MountOptions { values: vec![("mode".into(), "700".into())], ..MountOptions::default() };
    let made = mounts::file_system("tmpfs", Some("strata"), &options).during(act)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let place = rustix::fs::open(folder, flags, Mode::empty()).during(act)?;
    mounts::attach(made.as_fd(), place.as_fd()).during(act)
}

/// The calling thread gets a mount namespace of its own.
fn leave_hosts_mounts() -> Result<()> {
    sys::unshare(libc::CLONE_NEWNS as u64).during(|| "make a mount namespace".to_owned())?;
    let all = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let all = all.during(|| "open /".to_owned())?;
    let private = mounts::set_propagation(all.as_fd(), libc::MS_PRIVATE, true);
    private.during(|| "keep mounts from the host".to_owned())
}
