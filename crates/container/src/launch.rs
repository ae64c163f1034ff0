//! Making processes: straight away where nothing stands against it, else through one in between that joins namespaces
//! or, beside other threads, is forked by the C library.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, waitpid};

use crate::cgroups::Entry;
use crate::channel::{self, Channel, Message};
use crate::error::{Error, Result, While};
use crate::namespaces;
use crate::process;
use crate::sys::{self, Child};

/// Starts `child` with new namespaces `flags`, in the groups of `entry`, after `join` in a process before it.
///
/// # Errors
/// The kernel refuses, or `join` fails.
pub fn spawn(
    flags: u64,
    entry: &Entry,
    join: Option<&dyn Fn() -> Result<()>>,
    child: impl FnOnce() -> i32,
) -> Result<Child> {
    let alone = sys::is_alone();
    let v2 = entry.v2.as_ref().map(AsFd::as_fd);
    let act = || "make a process".to_owned();
    if alone && join.is_none() {
        return sys::clone3(flags, v2, child).map_err(|error| refusal(flags, error));
    }
    let (ours, theirs) = channel::pair()?;
    let between = move || {
        let made = between(flags, entry, alone, join, child);
        let told = match made {
            Ok(pid) => theirs.send(&Message::Go(pid)),
            Err(error) => theirs.send(&process::failure(&error)),
        };
        i32::from(told.is_err())
    };
    let pid =
        if alone { sys::clone3(0, v2, between).during(act)?.pid } else { sys::fork(between).during(act)? };
    hear(&ours, pid)
}

/// What the process in between does; what it makes is its parent's child.
fn between(
    flags: u64,
    entry: &Entry,
    alone: bool,
    join: Option<&dyn Fn() -> Result<()>>,
    child: impl FnOnce() -> i32,
) -> Result<i32> {
    let is_last = join.is_none();
    if let Some(join) = join {
        if !alone {
            enter_v2(entry)?;
        }
        // Before namespaces are joined in which the groups look different.
        entry.enter()?;
        join()?;
    }
    let v2 = entry.v2.as_ref().map(AsFd::as_fd).filter(|_| is_last);
    let made = sys::clone3(flags | libc::CLONE_PARENT as u64, v2, child);
    Ok(made.map_err(|error| refusal(flags, error))?.pid)
}

/// What the kernel means by not making a process with new namespaces.
fn refusal(flags: u64, error: std::io::Error) -> Error {
    let kinds: Vec<&str> =
        namespaces::KINDS.iter().filter(|kind| flags & kind.2 != 0).map(|kind| kind.0).collect();
    let act = format!("make a process with new namespaces ({})", kinds.join(", "));
    match error.raw_os_error() {
        _ if kinds.is_empty() => Error::Os { act: "make a process".to_owned(), source: error },
        Some(libc::ENOSPC) => {
            Error::host(act, "the host allows no more of a kind: see /proc/sys/user/max_*_namespaces")
        }
        Some(libc::EINVAL | libc::ENOSYS) => Error::host(act, "this kernel lacks one of them"),
        Some(libc::EPERM) if !rustix::process::geteuid().is_root() => {
            Error::host(act, "the host does not let this user: an ordinary one needs a user namespace")
        }
        _ => Error::Os { act, source: error },
    }
}

/// Moves this process into its v2 group, the slow way.
fn enter_v2(entry: &Entry) -> Result<()> {
    let Some(folder) = &entry.v2 else { return Ok(()) };
    let act = || "enter the control group".to_owned();
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::openat(folder, "cgroup.procs", flags, Mode::empty()).during(act)?;
    rustix::io::write(&file, b"0").during(act).map(drop)
}

fn hear(channel: &Channel, between: i32) -> Result<Child> {
    let heard = channel.receive();
    let pid = Pid::from_raw(between);
    // Its exit code says nothing the message does not.
    let _ = waitpid(pid, WaitOptions::empty());
    match heard? {
        Some(Message::Go(pid)) => {
            let act = || format!("hold process {pid}");
            let process = Pid::from_raw(pid).ok_or_else(|| Error::refused(act(), "it is no process"))?;
            let pidfd = rustix::process::pidfd_open(process, PidfdFlags::empty()).during(act)?;
            Ok(Child { pid, pidfd })
        }
        Some(Message::Failed(_, text)) => Err(Error::Inside(text)),
        _ => Err(Error::refused("make a process", "the one in between ended")),
    }
}
