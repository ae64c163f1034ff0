//! What the process that serves folders to a guest gives up: it sees nothing but those folders, as mounts that are attached
//! nowhere, has the capabilities that other people's files need and no more, and makes the system calls that files need. One
//! that serves names sees the folder where they are written down, has no capability, and makes those that sockets need.
// UNSAFETY: leaves the mount name space of its parent, which has no safe name.
#![expect(
    unsafe_code,
    reason = "rustix gives unshare no safe name, as it can take a thread's descriptors away"
)]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, open_tree, unmount,
};
use rustix::process::{Resource, Rlimit, chdir, fchdir, getegid, geteuid, getrlimit, pivot_root, setrlimit};
use rustix::thread::{CapabilitySet, UnshareFlags, unshare_unsafe};

use crate::{Error, Violation, calls, privileges, violation};

/// What files of any owner need: nothing that leads out of a folder.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);
/// Every file that the guest knows is an open one.
const OPEN_FILES: u64 = 1 << 20;
/// Something that is a folder wherever this runs, to mount an empty one over.
const PLACE: &str = "/proc";

/// Where they are opened anew by their numbers.
const DESCRIPTORS: &str = "/proc/self/fd";

/// What is left to see.
#[derive(Debug)]
pub struct Folders {
    /// Each of the folders or files, opened with `O_PATH`.
    pub files: Vec<OwnedFd>,
    /// `/proc/self/fd`, which is the working directory now.
    pub descriptors: OwnedFd,
}

/// Confines this process, which has one thread, to `paths`. `changing` is whether any of them is to be changed. What is left
/// to do calls no more than files need; anything else is told to `on_violation`, as in
/// [`forbid_system_calls`](crate::forbid_system_calls).
///
/// Where a host lets no user but root make name spaces, any other user's process sees all that the user sees: then only
/// descriptors and the filter stand between the folders and the rest.
///
/// # Errors
/// A folder is not there, or the host refuses.
pub fn confine_server(
    paths: &[PathBuf],
    changing: bool,
    on_violation: fn(&Violation) -> i32,
) -> Result<Folders, Error> {
    raise_limit();
    let paths = paths.iter().map(fs::canonicalize).collect::<io::Result<Vec<_>>>();
    let paths = paths.map_err(|source| Error::Root { act: "find the folders".to_owned(), source })?;
    let (descriptors, files) = match leave() {
        Ok(()) => in_a_root_of_its_own(&paths)?,
        Err(_) if !geteuid().is_root() => {
            (plain(DESCRIPTORS.as_ref())?, paths.iter().map(|path| plain(path)).collect::<Result<_, _>>()?)
        }
        Err(error) => return Err(error),
    };
    fchdir(&descriptors).map_err(failed("enter /proc/self/fd"))?;
    rustix::process::umask(Mode::empty());
    let kept = if geteuid().is_root() { KEPT } else { CapabilitySet::empty() };
    give_up(kept, &[calls::folders(changing)?], on_violation)?;
    Ok(Folders { files, descriptors })
}

/// Confines this process, which is root's and has one thread, to reading below `folder` and to sockets over IP: a server of
/// names. Anything else is told to `on_violation`, as in [`forbid_system_calls`](crate::forbid_system_calls).
///
/// # Errors
/// The folder is not there, or the host refuses.
pub fn confine_names(folder: &Path, on_violation: fn(&Violation) -> i32) -> Result<OwnedFd, Error> {
    let path = fs::canonicalize(folder).map_err(|source| {
        let act = format!("find {}", folder.display());
        Error::Root { act, source }
    })?;
    leave()?;
    let (_, mut files) = in_a_root_of_its_own(std::slice::from_ref(&path))?;
    give_up(CapabilitySet::empty(), &calls::names()?, on_violation)?;
    Ok(files.remove(0))
}

fn give_up(
    kept: CapabilitySet,
    filters: &[seccompiler::BpfProgram],
    on_violation: fn(&Violation) -> i32,
) -> Result<(), Error> {
    privileges::keep_privileges(kept)?;
    violation::handle(on_violation).map_err(Error::Handler)?;
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)).map_err(Error::Install)
}

/// A mount name space of its own, in a user name space where that needs one.
fn leave() -> Result<(), Error> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let flags = if uid == 0 { UnshareFlags::NEWNS } else { UnshareFlags::NEWNS | UnshareFlags::NEWUSER };
    // SAFETY: neither flag takes descriptors away from this thread, nor from another, of which there is none.
    unsafe { unshare_unsafe(flags) }.map_err(failed("leave the mount name space"))?;
    if uid != 0 {
        let write = |path: &str, text: String| {
            fs::write(path, text).map_err(|source| Error::Root { act: format!("write {path}"), source })
        };
        write("/proc/self/setgroups", "deny".to_owned())?;
        write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("make mounts private"))
}

/// Takes the folders as mounts of their own, and everything else away.
///
/// So is the folder of descriptors: from one that is merely open, `..` would lead to other processes, and to their roots.
fn in_a_root_of_its_own(paths: &[PathBuf]) -> Result<(OwnedFd, Vec<OwnedFd>), Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let clone = |path: &PathBuf| open_tree(CWD, path, flags).map_err(|errno| failed_on("open", path)(errno));
    let files = paths.iter().map(clone).collect::<Result<_, _>>()?;
    let alone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let descriptors = open_tree(CWD, DESCRIPTORS, alone).map_err(failed("open /proc/self/fd"))?;
    let nothing = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    let error = failed("make an empty root");
    mount("tmpfs", PLACE, "tmpfs", nothing, c"size=4k,mode=0555").map_err(&error)?;
    chdir(PLACE).map_err(&error)?;
    pivot_root(".", ".").map_err(&error)?;
    unmount(".", UnmountFlags::DETACH).map_err(&error)?;
    chdir("/").map_err(&error)?;
    Ok((descriptors, files))
}

fn plain(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(failed_on("open", path))
}

fn raise_limit() {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.map_or(OPEN_FILES, |maximum| maximum.max(OPEN_FILES));
    let wide = Rlimit { current: Some(most), maximum: Some(most) };
    // Not everybody may have more than now; then the guest may know fewer files at a time.
    if setrlimit(Resource::Nofile, wide).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
    }
}

fn failed(act: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Root { act: act.to_owned(), source: errno.into() }
}

fn failed_on(act: &'static str, path: &Path) -> impl Fn(Errno) -> Error {
    let act = format!("{act} {}", path.display());
    move |errno| Error::Root { act: act.clone(), source: errno.into() }
}
