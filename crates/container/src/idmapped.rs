//! Id-mapped mounts (`config.md`, `uidMappings` and `gidMappings` of a mount, its options `idmap` and `ridmap`): files show other
//! owners than their file system has.
//!
//! The kernel takes the mapping of a user namespace. One is made for it, with a process that does nothing, and gone when the
//! mount has it. All of it is the runtime's doing, before the container's process exists: that one, in a user namespace of its
//! own, has no right over the file system.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::cgroups::Entry;
use crate::error::{Error, Result, While};
use crate::options::{Bind, MountOptions};
use crate::spec::{IdMapping, Mount, Spec};
use crate::{channel, ids, launch, mounts, sys};

/// What is mounted with other ids, by the number of the mount in the config: attached nowhere yet.
pub type Prepared = BTreeMap<usize, OwnedFd>;

/// Makes all such mounts of a config. Relative sources start in `bundle`.
///
/// # Errors
/// A mapping is missing, the file system cannot be mapped, or the kernel refuses.
pub fn prepare(spec: &Spec, bundle: &Path) -> Result<Prepared> {
    let mut prepared = Prepared::new();
    for (number, mount) in spec.mounts.iter().enumerate() {
        let options = MountOptions::parse(&mount.options);
        let mapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
        if !mapped && options.mapped.is_none() {
            continue;
        }
        prepared.insert(number, make(spec, mount, &options, bundle)?);
    }
    Ok(prepared)
}

fn make(spec: &Spec, mount: &Mount, options: &MountOptions, bundle: &Path) -> Result<OwnedFd> {
    let act = || format!("map ids of mount {:?}", mount.destination);
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return Err(Error::refused(act(), "uidMappings and gidMappings come together"));
    }
    if options.bind.is_none() && mount.kind.as_deref() != Some("bind") {
        return Err(Error::refused(act(), "only what is bound can have other ids"));
    }
    let source = mount.source.as_deref().filter(|source| !source.is_empty());
    let source = bundle.join(source.ok_or_else(|| Error::refused(act(), "it has no source"))?);
    let made = mounts::detached(&source, options.bind.unwrap_or(Bind::Tree))
        .during(|| format!("bind {}", source.display()))?;
    let namespace = namespace(spec, mount)?;
    let below = options.mapped == Some(Bind::Tree);
    match sys::map_ids(made.as_fd(), namespace.as_fd(), below) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let fault = "the kernel does not let the file system be mapped, or it is mapped already";
            Err(Error::refused(act(), fault))
        }
        done => done.during(act).map(|()| made),
    }
}

/// A user namespace with the mapping of a mount: its own, else the container's.
fn namespace(spec: &Spec, mount: &Mount) -> Result<OwnedFd> {
    let linux = spec.linux();
    if !mount.uid_mappings.is_empty() {
        return with(&mount.uid_mappings, &mount.gid_mappings);
    }
    let user = linux.namespaces.iter().find(|namespace| namespace.kind == "user");
    match user.map(|namespace| namespace.path.clone().filter(|path| !path.as_os_str().is_empty())) {
        Some(Some(path)) => open(&path),
        Some(None) => with(&linux.uid_mappings, &linux.gid_mappings),
        None => {
            let fault = "idmap without uidMappings and gidMappings takes those of a user namespace, and there is none";
            Err(Error::refused(format!("map ids of mount {:?}", mount.destination), fault))
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .during(|| format!("open user namespace {}", path.display()))
}

/// A new user namespace that maps ids like this.
fn with(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let (ours, theirs) = channel::pair()?;
    let child = launch::spawn(libc::CLONE_NEWUSER as u64, &Entry::default(), None, || {
        // Or it would wait for itself.
        sys::close_copy(std::os::fd::AsRawFd::as_raw_fd(&ours.as_fd()));
        i32::from(theirs.receive().is_err())
    })?;
    let made = ids::map(child.pid, uids, gids)
        .and_then(|()| open(&PathBuf::from(format!("/proc/{}/ns/user", child.pid))));
    // Its end of the connection is what it waits for.
    drop(ours);
    let pid = rustix::process::Pid::from_raw(child.pid);
    let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
    made
}
