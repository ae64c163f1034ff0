//! The runtime's own program file, kept from containers that get at it (CVE-2019-5736).
//!
//! Whatever a container's command is called, it may turn out to be `/proc/self/exe`, which is this program: root inside
//! could then write to the host's file as soon as nobody executes it. So before it enters anything, this program runs on
//! from a copy of its mount that is read-only and that belongs to no mount namespace: nobody can make it writable again,
//! and no byte of the file is copied. Where the kernel does not let it exchange its file while it runs, it executes itself
//! again from there; without the right to mount it executes a sealed copy in memory. Where the file cannot be written
//! anyway, nothing is done.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{Access, AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Result, While};
use crate::{mounts, remap, sys};

/// Returns when this program is out of reach, perhaps in a new life: the caller must have done nothing yet that a second
/// start would do twice.
///
/// # Errors
/// Neither way is open.
pub fn protect() -> Result<()> {
    let act = || "protect the program file".to_owned();
    let open = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/self/exe", open, Mode::empty()).during(act)?;
    if is_out_of_reach(&own)? {
        return Ok(());
    }
    let program = match read_only(&own) {
        Ok(program) => match exchange(&program) {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::debug!("run on from a read-only mount: {error}");
                program
            }
        },
        Err(error) => {
            tracing::debug!("{}", error.chain());
            let from = std::fs::File::from(own.try_clone().during(act)?);
            sealed(from).during(act)?
        }
    };
    let args: Vec<CString> = std::env::args_os().filter_map(|a| CString::new(a.into_vec()).ok()).collect();
    let env: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            let entry = [name.into_vec(), b"=".to_vec(), value.into_vec()].concat();
            CString::new(entry).ok()
        })
        .collect();
    Err(sys::exec_fd(program.as_fd(), &args, &env)).during(act)
}

fn is_out_of_reach(own: &OwnedFd) -> Result<bool> {
    let act = || "look at the program file".to_owned();
    let seals = rustix::fs::fcntl_get_seals(own).unwrap_or(SealFlags::empty());
    if seals.contains(SealFlags::WRITE) {
        return Ok(true);
    }
    if rustix::fs::fstatvfs(own).during(act)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    // An ordinary user's containers can do no more to a file than the user.
    let root = rustix::process::geteuid().is_root();
    Ok(!root && rustix::fs::accessat(CWD, "/proc/self/exe", Access::WRITE_OK, AtFlags::EACCESS).is_err())
}

/// The file on a read-only mount of its own.
fn read_only(own: &OwnedFd) -> Result<OwnedFd> {
    let act = || "mount the program file read-only".to_owned();
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(own, "", flags).during(act)?;
    mounts::set_attributes(mount.as_fd(), 1, 0, false).during(act)?;
    Ok(mount)
}

/// Lets this program run on from a file that is open without the right to read it.
fn exchange(program: &OwnedFd) -> std::io::Result<()> {
    if !sys::is_alone() {
        return Err(std::io::Error::other("it has other threads"));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let program = rustix::fs::open(mounts::by_descriptor(program.as_fd()), flags, Mode::empty())?;
    remap::run_from(program.as_fd())
}

/// A program in memory that nobody can change.
pub(crate) fn sealed(mut program: impl std::io::Read) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = rustix::fs::memfd_create("strata", flags)?;
    let mut target = std::fs::File::from(copy);
    std::io::copy(&mut program, &mut target)?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&target, all)?;
    Ok(target.into())
}
