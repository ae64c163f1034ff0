//! The root file system of a container: what is mounted, made and hidden in it before it becomes `/`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Result, While};
use crate::idmapped::Prepared;
use crate::mounts::{self, Target};
use crate::options::MountOptions;
use crate::paths::{self, Missing};
use crate::spec::{Device, Spec};
use crate::sys;

/// Where a root comes from.
#[derive(Clone, Debug)]
pub enum Root {
    /// The bundle's folder.
    Folder,
    /// A file system in a file, read-only, under an overlay. Mounted by the container's process in its own mount
    /// namespace: the host never sees it, and nothing of it is left when the container is gone.
    Image {
        /// The file.
        file: PathBuf,
        /// Its file system.
        fs_type: String,
        /// What earlier containers wrote to it: their upper folders, the lowest first, which stay as they are.
        below: Vec<PathBuf>,
        /// Where what is written goes.
        upper: Upper,
    },
}

/// Where what a container writes to an image's root goes.
#[derive(Clone, Debug)]
pub enum Upper {
    /// Into memory, gone with the container.
    Memory,
    /// Into this folder, which the caller made and keeps; it gets `upper` and `work`.
    Folder(PathBuf),
}

/// Devices every container has in its `/dev`: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links every container has there.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// `rootfsPropagation` by its name.
pub fn propagation(spec: &Spec) -> Result<Option<u64>> {
    let linux = spec.linux.as_ref();
    let Some(name) = linux.and_then(|l| l.rootfs_propagation.as_deref()).filter(|name| !name.is_empty())
    else {
        return Ok(None);
    };
    Ok(Some(match name.strip_prefix('r').unwrap_or(name) {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return Err(Error::refused("rootfsPropagation", format!("{name:?} is none"))),
    }))
}

/// Mounts the root where it can become `/`, and returns it held open. `path` is the bundle's folder, or a scratch
/// folder for an image, whose [`lower`] comes with it.
///
/// # Errors
/// It does not exist or cannot be mounted.
pub fn open(root: &Root, lower: Option<&OwnedFd>, path: &Path, propagation: Option<u64>) -> Result<OwnedFd> {
    let act = || format!("open root {}", path.display());
    // What is mounted from here on stays in this namespace; what the host mounts may come in, unless told otherwise.
    let all = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(act)?;
    if propagation != Some(libc::MS_SHARED) {
        let kind = if propagation == Some(libc::MS_PRIVATE) { libc::MS_PRIVATE } else { libc::MS_SLAVE };
        mounts::set_propagation(all.as_fd(), kind, true).during(|| "keep mounts from the host".to_owned())?;
    }
    let made = match root {
        Root::Folder => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            open_tree(CWD, path, flags).during(act)?
        }
        Root::Image { upper, below, .. } => {
            let lower = lower.ok_or_else(|| Error::refused("root", "its image is not mounted"))?;
            overlay(lower, below, upper, path)?
        }
    };
    if paths::file_type(made.as_fd()).during(act)? != FileType::Directory {
        return Err(Error::refused(format!("root {}", path.display()), "it is no folder"));
    }
    mounts::make_parent_private(path)?;
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())
        .during(act)?;
    mounts::attach(made.as_fd(), place.as_fd()).during(act)?;
    Ok(made)
}

/// The file system of an image, mounted but attached nowhere. Made before the container's process is: that one may not
/// use the block device, and needs not.
///
/// # Errors
/// There is no loop device, or the kernel does not know the file system.
pub fn lower(root: &Root) -> Result<Option<OwnedFd>> {
    let Root::Image { file, fs_type, .. } = root else { return Ok(None) };
    let act = || format!("mount {}", file.display());
    let open = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).during(act)?;
    let attached = sys::loop_device(open.as_fd());
    let what = || format!("attach {} to a loop device", file.display());
    let (_device, device) = attached.map_err(|error| Error::host(what(), error.to_string()))?;
    let read_only = MountOptions { set: 1, ..MountOptions::default() };
    mounts::file_system(fs_type, Some(&device), &read_only).during(act).map(Some)
}

/// The layers of an image's root, attached nowhere.
pub(crate) fn detached(root: &Root, lower: Option<&OwnedFd>, scratch: &Path) -> Result<OwnedFd> {
    match (root, lower) {
        (Root::Image { upper, below, .. }, Some(lower)) => overlay(lower, below, upper, scratch),
        _ => Err(Error::refused("root", "it is no image's")),
    }
}

/// A detached overlay over an image's file system, and over what was written to it before.
fn overlay(lower: &OwnedFd, below: &[PathBuf], upper: &Upper, scratch: &Path) -> Result<OwnedFd> {
    let act = || "mount the layers of the root".to_owned();
    let place = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())
            .during(|| format!("open {}", path.display()))
    };
    let make = |path: &Path, mode: u32| match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).during(|| format!("make {}", path.display())),
    };
    // Both layers below the overlay are mounted on the scratch folder, one over the other, by names no other process
    // sees.
    let (lower_path, memory_path) = (scratch.join("lower"), scratch.join("memory"));
    let tmpfs = MountOptions { values: vec![("mode".into(), "700".into())], ..MountOptions::default() };
    let tmpfs = mounts::file_system("tmpfs", Some("strata"), &tmpfs).during(act)?;
    mounts::attach(tmpfs.as_fd(), place(scratch)?.as_fd()).during(act)?;
    make(&lower_path, 0o755)?;
    make(&memory_path, 0o755)?;
    mounts::attach(lower.as_fd(), place(&lower_path)?.as_fd()).during(act)?;
    let writable = match upper {
        Upper::Memory => memory_path,
        Upper::Folder(folder) => folder.clone(),
    };
    let (upper_path, work_path) = (writable.join("upper"), writable.join("work"));
    make(&upper_path, 0o755)?;
    make(&work_path, 0o755)?;
    like_root(lower, &upper_path).during(act)?;
    // An option has 255 bytes at most: names that are short, and seen from the scratch folder.
    let mut layers = String::new();
    for (number, folder) in below.iter().enumerate() {
        rustix::fs::symlink(folder, scratch.join(number.to_string())).during(act)?;
        layers.insert_str(0, &format!("{number}:"));
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let options = MountOptions {
        values: vec![
            ("lowerdir".into(), layers + "lower"),
            ("upperdir".into(), text(&upper_path)),
            ("workdir".into(), text(&work_path)),
            // What is written must mean something by itself.
            ("redirect_dir".into(), "off".into()),
            ("metacopy".into(), "off".into()),
        ],
        ..MountOptions::default()
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let here = rustix::fs::open(".", flags, Mode::empty()).during(act)?;
    rustix::process::chdir(scratch).during(act)?;
    let made = mounts::file_system("overlay", Some("strata"), &options);
    rustix::process::fchdir(&here).during(act)?;
    made.during(|| "mount the overlay".to_owned())
}

/// The overlay's root looks as its upper folder does: owner and mode are those of the image's root.
fn like_root(lower: &OwnedFd, upper: &Path) -> std::io::Result<()> {
    let stat = rustix::fs::fstat(lower)?;
    let folder =
        rustix::fs::open(upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchown(&folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&folder, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds, nanos| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
    let times = rustix::fs::Timestamps {
        last_access: time(stat.st_atime as _, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime as _, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(&folder, &times)?;
    Ok(())
}

/// Makes mounts, devices and links of the bundle.
///
/// # Errors
/// One cannot be made, or leads out.
pub fn furnish(target: &Target<'_>, spec: &Spec, mapped: &Prepared, new_user: bool) -> Result<()> {
    for (number, mount) in spec.mounts.iter().enumerate() {
        target.mount(mount, mapped.get(&number))?;
    }
    // A bundle that binds a /dev of its own knows what is in it.
    let has_dev = spec.mounts.iter().any(|mount| {
        mount.destination.trim_end_matches('/') == "/dev"
            && MountOptions::parse(&mount.options).bind.is_some()
    });
    if has_dev {
        return Ok(());
    }
    let dev = paths::find_or_make(target.root, "dev", Missing::Folder)?;
    for (name, major, minor) in DEVICES {
        let device = Device {
            path: format!("/dev/{name}"),
            kind: "c".to_owned(),
            major: i64::from(major),
            minor: i64::from(minor),
            file_mode: Some(0o666),
            ..Device::default()
        };
        make_device_in(dev.as_fd(), name, target.root, &device, new_user)?;
    }
    for device in spec.linux.iter().flat_map(|linux| &linux.devices) {
        let (folder, name) = paths::parent(target.root, &device.path)?;
        make_device_in(folder.as_fd(), name, target.root, device, new_user)?;
    }
    for (name, to) in LINKS {
        make_link(dev.as_fd(), name, to)?;
    }
    Ok(())
}

fn make_link(dev: BorrowedFd<'_>, name: &str, to: &str) -> Result<()> {
    let act = || format!("link /dev/{name} to {to}");
    match rustix::fs::symlinkat(to, dev, name) {
        // The image's /dev, without a tmpfs over it, may have one of its own. Only /dev/ptmx must be ours.
        Err(Errno::EXIST) if name == "ptmx" => {
            rustix::fs::unlinkat(dev, name, AtFlags::empty()).during(act)?;
            rustix::fs::symlinkat(to, dev, name).during(act)
        }
        Err(Errno::EXIST) => Ok(()),
        result => result.during(act),
    }
}

/// `folder` and `name` are where the path of the device leads.
fn make_device_in(
    folder: BorrowedFd<'_>,
    name: &str,
    root: BorrowedFd<'_>,
    device: &Device,
    new_user: bool,
) -> Result<()> {
    let act = || format!("make device {:?}", device.path);
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(Error::refused(act(), format!("no kind of device is called {other:?}"))),
    };
    let number =
        |n: i64| u32::try_from(n).map_err(|_| Error::refused(act(), format!("{n} is no number of one")));
    let pipe = kind == FileType::Fifo;
    let number = if pipe { 0 } else { rustix::fs::makedev(number(device.major)?, number(device.minor)?) };
    if new_user && !pipe {
        return bind_device(root, device);
    }
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(folder, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).during(act)?;
            if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
                return Err(Error::refused(act(), "something else is there"));
            }
        }
        Err(Errno::PERM) => return bind_device(root, device),
        Err(error) => return Err(error).during(act),
    }
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    rustix::fs::chownat(
        folder,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .during(act)
}

/// Without the right to make devices the host's are bound.
fn bind_device(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let act = || format!("bind device {:?}", device.path);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(CWD, device.path.as_str(), flags).during(act)?;
    let stat = rustix::fs::fstat(&copy).during(act)?;
    let wanted = rustix::fs::makedev(device.major as u32, device.minor as u32);
    if stat.st_rdev != wanted {
        return Err(Error::refused(act(), "the host has another device there"));
    }
    let place = paths::find_or_make(root, &device.path, Missing::File)?;
    mounts::attach(copy.as_fd(), place.as_fd()).during(act)
}

/// Hides what is to be hidden, and makes read-only what is to be.
///
/// # Errors
/// Something cannot be hidden.
pub fn hide(root: BorrowedFd<'_>, spec: &Spec, null: BorrowedFd<'_>) -> Result<()> {
    let linux = spec.linux();
    for path in &linux.readonly_paths {
        mounts::make_read_only(root, path)?;
    }
    for path in &linux.masked_paths {
        mounts::mask(root, path, null)?;
    }
    Ok(())
}

/// Sets the root's own attributes. Called when the root is `/` already.
///
/// # Errors
/// The kernel refuses.
pub fn finish(root: BorrowedFd<'_>, spec: &Spec) -> Result<()> {
    if spec.root.as_ref().is_some_and(|root| root.readonly) {
        mounts::set_attributes(root, 1, 0, false).during(|| "make the root read-only".to_owned())?;
    }
    if let Some(kind) = propagation(spec)? {
        mounts::set_propagation(root, kind, false).during(|| "set the root's propagation".to_owned())?;
    }
    Ok(())
}
