//! Roots without a container: what its processes would see, without what is mounted for them, and where what they write may be.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result, While};
use crate::mounts::Target;
use crate::options::{Bind, MountOptions};
use crate::rootfs::{self, Root};
use crate::spec::Mount;
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

/// As [`mount`], with more mounted in it; of what is named in `held`, which no path leads to, that is mounted.
///
/// # Errors
/// As [`mount`]'s, or one of them cannot be mounted.
pub fn mount_with(
    root: &Root,
    scratch: &Path,
    more: &[Mount],
    held: &[(String, Arc<OwnedFd>)],
) -> Result<OwnedFd> {
    let made = mount(root, scratch)?;
    let act = || format!("attach the root at {}", scratch.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let place = rustix::fs::open(scratch, flags, Mode::empty()).during(act)?;
    mounts::attach(made.as_fd(), place.as_fd()).during(act)?;
    let target = Target { root: made.as_fd(), label: None, cgroups: &[] };
    for one in more {
        let prepared = held.iter().find(|(place, _)| *place == one.destination);
        target.mount(one, prepared.map(|(_, held)| &**held))?;
    }
    Ok(made)
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

/// A copy, attached nowhere, of what is held open in this mount namespace, with what is mounted below.
///
/// # Errors
/// This process may not mount.
pub fn copy(place: BorrowedFd<'_>) -> Result<OwnedFd> {
    mounts::clone(place, Bind::Tree).during(|| "copy a mount".to_owned())
}

/// A copy, attached nowhere, of what is at `path` below `root` in another mount namespace, if that is of the file system with this
/// number of `statfs`. The kernel copies mounts only for those who are in their namespace: a thread is, for that long.
///
/// # Errors
/// There is none, it is of another file system, or the kernel refuses.
pub(crate) fn clone_of(root: OwnedFd, namespace: OwnedFd, path: &'static str, magic: i64) -> Result<OwnedFd> {
    let act = move || format!("share /{path} of another container");
    let work = move || {
        sys::enter_mounts(namespace.as_fd()).during(act)?;
        // Whoever is in there may have put anything in its place.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let found = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve).during(act)?;
        if rustix::fs::fstatfs(&found).during(act)?.f_type != magic {
            return Err(Error::refused(act(), "it is of another file system"));
        }
        mounts::clone(found.as_fd(), Bind::One).during(act)
    };
    let thread = std::thread::Builder::new().name("mounts".into()).spawn(work).during(act)?;
    thread.join().unwrap_or_else(|_| Err(Error::refused(act(), "the thread failed")))
}
