//! Folders and files of the host, mounted where the processes see them.
//!
//! The file system that has them all is mounted in the initramfs, out of which each is taken as a mount of its own, attached
//! nowhere. That is put in its place once the root is there: whatever the image has at that place, nobody sees the others.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use protocol::Volume;
use protocol::volume::TAG;
use rustix::fd::OwnedFd;
use rustix::fs::{self, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_remount, move_mount, open_tree, unmount,
};

use crate::fault::Fault;
use crate::{files, mounts};

/// Where all of them are for a moment.
const ALL: &str = "/volumes";
/// How long the device may take to appear after its driver was loaded.
const PATIENCE_MS: u32 = 2000;

/// A volume that is mounted nowhere yet.
#[derive(Debug)]
pub struct Detached {
    volume: Volume,
    /// Nothing for memory, which is there when it is mounted.
    tree: Option<OwnedFd>,
}

/// Takes the host's volumes, in their order.
///
/// # Errors
/// The kernel's: it has no virtio-fs, or the host has no such volume.
pub fn open(volumes: Vec<Volume>) -> Result<Vec<Detached>, Fault> {
    if volumes.iter().all(|volume| volume.memory.is_some()) {
        return Ok(volumes.into_iter().map(|volume| Detached { volume, tree: None }).collect());
    }
    let mut waited = 0;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    // No file system with this tag is EINVAL.
    while let Err(fault) = mounts::mount_at(TAG, ALL, "virtiofs", flags, "") {
        if waited >= PATIENCE_MS {
            return Err(fault);
        }
        files::sleep(Duration::from_millis(10));
        waited += 10;
    }
    let mut number = 0;
    let take = |volume: Volume| {
        if volume.memory.is_some() {
            return Ok(Detached { volume, tree: None });
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let opened = open_tree(CWD, format!("{ALL}/{number}"), flags);
        number += 1;
        match opened {
            Ok(tree) => Ok(Detached { volume, tree: Some(tree) }),
            Err(errno) => Err(Fault::os("open volume", &volume.target, errno)),
        }
    };
    let taken = volumes.into_iter().map(take).collect();
    unmount(ALL, UnmountFlags::DETACH).map_err(|errno| Fault::os("unmount", ALL, errno))?;
    taken
}

/// Puts a volume in its place in the root of the processes, making the place.
///
/// # Errors
/// The kernel's: something else is in the place.
pub fn attach(volume: &Detached) -> Result<(), Fault> {
    let Detached { volume: Volume { target, read_only, memory }, tree } = volume;
    let fault = |errno| Fault::os("mount volume at", target, errno);
    let Some(tree) = tree else {
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        flags.set(MountFlags::RDONLY, *read_only);
        return mounts::mount_at("tmpfs", target, "tmpfs", flags, memory.as_deref().unwrap_or_default());
    };
    let stat = fs::fstat(tree).map_err(fault)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        files::make_dirs(target, 0o755)?;
    } else {
        make_file(target)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(tree, "", CWD, &**target, flags).map_err(fault)?;
    if *read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        mount_remount(&**target, flags, c"").map_err(fault)?;
    }
    Ok(())
}

/// Makes the place of a file, unless something is there.
fn make_file(path: &str) -> Result<(), Fault> {
    if let Some((folder, _)) = path.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
        files::make_dirs(folder, 0o755)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match fs::open(path, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Fault::os("make", path.to_string(), errno)),
    }
}
