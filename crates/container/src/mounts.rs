//! Mounts by descriptor: what is mounted and where are both held open, so that no path of the container is ever
//! walked by the kernel on our behalf after it was checked (CVE-2021-30465).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Error, Result, While};
use crate::options::{Bind, MountOptions};
use crate::paths::{self, Missing};
use crate::spec::Mount;
use crate::sys;

/// File systems that show the kernel, each with its number of `statfs`.
const PROC_MAGIC: i64 = 0x9fa0;

/// Under `/proc` only these may be covered by something of the bundle's (lxcfs does so).
const COVERABLE: [&str; 9] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
];

/// Attaches a detached mount to a place that is held open.
pub fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}

/// A detached copy of a mount, with those below or without.
pub fn clone(source: BorrowedFd<'_>, bind: Bind) -> rustix::io::Result<OwnedFd> {
    open_tree(source, "", clone_flags(bind) | OpenTreeFlags::AT_EMPTY_PATH)
}

/// A detached copy of what is at a path of the host, with those below or without.
pub fn detached(source: &std::path::Path, bind: Bind) -> rustix::io::Result<OwnedFd> {
    open_tree(CWD, source, clone_flags(bind))
}

fn clone_flags(bind: Bind) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind == Bind::Tree { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Sets and clears attributes of a mount.
pub fn set_attributes(mount: BorrowedFd<'_>, set: u64, clear: u64, below: bool) -> std::io::Result<()> {
    if set == 0 && clear == 0 {
        return Ok(());
    }
    let mut attr = sys::mount_attr();
    attr.attr_set = set;
    attr.attr_clr = clear;
    // Times of access are one field of several bits: to set one value all of it is cleared.
    let times = MountAttrFlags::MOUNT_ATTR__ATIME.bits() as u64;
    if (set | clear) & times != 0 {
        attr.attr_clr |= times;
    }
    sys::mount_setattr(mount, below, &attr)
}

/// Sets how a mount is told of changes elsewhere.
pub fn set_propagation(mount: BorrowedFd<'_>, kind: u64, below: bool) -> std::io::Result<()> {
    let mut attr = sys::mount_attr();
    attr.propagation = kind;
    sys::mount_setattr(mount, below, &attr)
}

/// A detached new file system.
pub fn file_system(kind: &str, source: Option<&str>, options: &MountOptions) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(source) = source {
        fsconfig_set_string(context.as_fd(), "source", source)?;
    }
    // The read-only flag of a disk's file system is its own; that of a mount does not keep a journal from replaying.
    if source.is_some_and(|s| s.starts_with("/dev/")) && options.set & 1 != 0 {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    for flag in &options.flags {
        fsconfig_set_flag(context.as_fd(), flag.as_str())?;
    }
    for (name, value) in &options.values {
        fsconfig_set_string(context.as_fd(), name.as_str(), value.as_str())?;
    }
    fsconfig_create(context.as_fd())?;
    // Bits of `linux/mount.h` that rustix has no names for are handed on as they are.
    let attributes = MountAttrFlags::from_bits_retain(options.set as u32);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// What the mounts of a container are made in.
#[derive(Debug)]
pub struct Target<'a> {
    /// Its root.
    pub root: BorrowedFd<'a>,
    /// SELinux label for mounts that take one.
    pub label: Option<&'a str>,
    /// Folders of its control group, by the name they have in `/sys/fs/cgroup`; the empty name is the v2 hierarchy
    /// alone.
    pub cgroups: &'a [(String, std::path::PathBuf)],
}

impl Target<'_> {
    /// Makes one mount of the bundle. `prepared` is what it mounts, if that was made beforehand.
    ///
    /// # Errors
    /// It leads out of the root, covers what must not be covered, or the kernel refuses it.
    pub fn mount(&self, mount: &Mount, prepared: Option<&OwnedFd>) -> Result<()> {
        let options = MountOptions::parse(&mount.options);
        let kind = mount.kind.as_deref().unwrap_or_default();
        let act = || format!("mount {:?}", mount.destination);
        if kind == "cgroup" || kind == "cgroup2" && options.bind.is_none() {
            return self.mount_cgroups(mount, &options);
        }
        let (made, is_folder) = if options.bind.is_some() || kind == "bind" {
            self.bind(mount, &options, prepared)?
        } else {
            let mut options = options.clone();
            if let (Some(label), "tmpfs" | "mqueue" | "devpts") = (self.label, kind) {
                options.values.push(("context".to_owned(), label.to_owned()));
            }
            let source = mount.source.as_deref();
            (
                file_system(kind, source, &options)
                    .during(|| format!("mount {kind} on {:?}", mount.destination))?,
                true,
            )
        };
        set_attributes(made.as_fd(), options.set_below, options.clear_below, true).during(act)?;
        let place = self.place(mount, kind, if is_folder { Missing::Folder } else { Missing::File })?;
        let copied = (options.copy_up && kind == "tmpfs").then(|| crate::copy::Tree::read(place.as_fd()));
        attach(made.as_fd(), place.as_fd()).during(act)?;
        for (kind, below) in &options.propagation {
            set_propagation(made.as_fd(), *kind, *below).during(act)?;
        }
        copied.map_or(Ok(()), |tree| tree.and_then(|tree| tree.write(made.as_fd())).during(act))
    }

    /// A detached copy of what is at the source on the host, and whether it is a folder.
    fn bind(
        &self,
        mount: &Mount,
        options: &MountOptions,
        prepared: Option<&OwnedFd>,
    ) -> Result<(OwnedFd, bool)> {
        let source = mount.source.as_deref().unwrap_or_default();
        let act = || format!("bind {source:?} on {:?}", mount.destination);
        if source.is_empty() {
            return Err(Error::refused(act(), "it has no source"));
        }
        let made = match prepared {
            Some(prepared) => prepared.try_clone().during(act)?,
            None => detached(source.as_ref(), options.bind.unwrap_or(Bind::Tree)).during(act)?,
        };
        set_attributes(made.as_fd(), options.set, options.clear, false).during(act)?;
        let is_folder = paths::file_type(made.as_fd()).during(act)? == FileType::Directory;
        Ok((made, is_folder))
    }

    /// Opens the place of a mount, made if it is missing, after checking that nothing of the kernel's is covered.
    fn place(&self, mount: &Mount, kind: &str, missing: Missing) -> Result<OwnedFd> {
        let path = mount.destination.as_str();
        let what = || format!("mount {path:?}");
        let place = paths::find_or_make(self.root, path, missing)?;
        if matches!(kind, "proc" | "sysfs") {
            // A link there would put the real one elsewhere, and leave a forged one where it is looked for
            // (CVE-2019-16884, CVE-2019-19921).
            let plain = paths::find_plain(self.root, path.trim_start_matches('/')).map_err(|_| {
                Error::refused(what(), format!("{kind} is mounted on a folder that is no link, this is one"))
            })?;
            return Ok(plain);
        }
        let covers_root = same(place.as_fd(), self.root).during(what)?;
        if covers_root {
            return Err(Error::refused(what(), "it would cover the root"));
        }
        check_proc(place.as_fd(), mount).map(|()| place)
    }

    /// The control groups of this container, each where programs look for it: bound, so that v1, v2 and hosts with both
    /// look inside as they do outside.
    fn mount_cgroups(&self, mount: &Mount, options: &MountOptions) -> Result<()> {
        let act = || format!("mount {:?}", mount.destination);
        let place = self.place(mount, "", Missing::Folder)?;
        let bind = |source: &std::path::Path, place: BorrowedFd<'_>| -> Result<()> {
            let made = open_tree(CWD, source, clone_flags(Bind::One)).during(act)?;
            set_attributes(made.as_fd(), options.set, options.clear, false).during(act)?;
            attach(made.as_fd(), place).during(act)
        };
        if let [(name, path)] = self.cgroups
            && name.is_empty()
        {
            return bind(path, place.as_fd());
        }
        let plain = MountOptions { values: vec![("mode".into(), "755".into())], ..MountOptions::default() };
        let tmpfs = file_system("tmpfs", Some("cgroup"), &plain).during(act)?;
        attach(tmpfs.as_fd(), place.as_fd()).during(act)?;
        for (name, path) in self.cgroups {
            let place = paths::find_or_make(tmpfs.as_fd(), name, Missing::Folder)?;
            bind(path, place.as_fd())?;
        }
        set_attributes(tmpfs.as_fd(), options.set, options.clear, false).during(act)
    }
}

/// Whether two descriptors are of the same file on the same mount's file system.
fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// Nothing may be mounted over what a mounted procfs shows, but for a few files, and a procfs itself.
fn check_proc(place: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
    let what = || format!("mount {:?}", mount.destination);
    if rustix::fs::fstatfs(place).during(what)?.f_type != PROC_MAGIC {
        return Ok(());
    }
    let inside = mount.destination.trim_start_matches('/').strip_prefix("proc/").unwrap_or_default();
    if COVERABLE.contains(&inside) {
        return Ok(());
    }
    Err(Error::refused(what(), "it would cover a part of /proc"))
}

/// Whether an open file is on procfs.
pub fn is_proc(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == PROC_MAGIC)
}

/// Makes paths unreadable: files show `/dev/null`, folders an empty one.
///
/// `null` is the host's, opened before the container's root was touched and known to be the null device: the one in the
/// container may be a link to anything by now (CVE-2025-31133).
pub fn mask(root: BorrowedFd<'_>, path: &str, null: BorrowedFd<'_>) -> Result<()> {
    let act = || format!("mask {path:?}");
    let place = match paths::find(root, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        found => found.during(act)?,
    };
    let cover = if paths::file_type(place.as_fd()).during(act)? == FileType::Directory {
        let read_only = MountOptions {
            set: 1,
            values: vec![("size".into(), "0k".into()), ("mode".into(), "0555".into())],
            ..MountOptions::default()
        };
        file_system("tmpfs", Some("tmpfs"), &read_only).during(act)?
    } else {
        clone(null, Bind::One).during(act)?
    };
    attach(cover.as_fd(), place.as_fd()).during(act)
}

/// Makes paths unwritable.
pub fn make_read_only(root: BorrowedFd<'_>, path: &str) -> Result<()> {
    let act = || format!("make {path:?} read-only");
    let place = match paths::find(root, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        found => found.during(act)?,
    };
    let copy = clone(place.as_fd(), Bind::Tree).during(act)?;
    set_attributes(copy.as_fd(), 1, 0, true).during(act)?;
    attach(copy.as_fd(), place.as_fd()).during(act)
}

/// The host's null device, held open and checked.
pub fn null_device() -> Result<OwnedFd> {
    let act = || "open /dev/null".to_owned();
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(act)?;
    let stat = rustix::fs::fstat(&null).during(act)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { Ok(null) } else { Err(Error::refused("/dev/null", "it is not the null device")) }
}

/// Makes the root of the container `/` and lets go of everything else.
pub fn enter_root(root: BorrowedFd<'_>, pivot: bool) -> Result<()> {
    let act = || "enter the root".to_owned();
    rustix::process::fchdir(root).during(act)?;
    if pivot {
        let old = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(act)?;
        // The old root is stacked on the new one, and taken off again: no folder for it is needed.
        rustix::process::pivot_root(".", ".").during(|| "pivot into the root".to_owned())?;
        rustix::process::fchdir(&old).during(act)?;
        // Unmounting must not reach the host through shared mounts.
        set_propagation(old.as_fd(), libc::MS_SLAVE, true).during(act)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).during(|| "let go of the old root".to_owned())?;
    } else {
        let to = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(act)?;
        attach(root, to.as_fd()).during(|| "move the root to /".to_owned())?;
        rustix::process::chroot(".").during(act)?;
    }
    rustix::process::chdir("/").during(act)
}

/// Makes the mount that holds `path` private, so that `pivot_root` takes what is on it.
pub fn make_parent_private(path: &std::path::Path) -> Result<()> {
    for folder in path.ancestors() {
        let open = open_tree(CWD, folder, OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .during(|| format!("open {}", folder.display()))?;
        match set_propagation(open.as_fd(), libc::MS_PRIVATE, false) {
            // No mount begins here.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result.during(|| format!("make mount {} private", folder.display())),
        }
    }
    Ok(())
}

/// The descriptor's path in this process, for calls that take nothing else.
pub fn by_descriptor(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
