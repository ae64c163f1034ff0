//! Namespaces: which are new, which are joined.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::thread::ThreadNameSpaceType;

use crate::error::{Error, Result, While};
use crate::spec;

/// Name in the specification, name under `/proc/PID/ns`, flag. In the order they are joined: a user namespace first,
/// for it gives the right to join the others.
pub const KINDS: [(&str, &str, u64); 8] = [
    ("user", "user", libc::CLONE_NEWUSER as u64),
    ("pid", "pid", libc::CLONE_NEWPID as u64),
    ("network", "net", libc::CLONE_NEWNET as u64),
    ("ipc", "ipc", libc::CLONE_NEWIPC as u64),
    ("uts", "uts", libc::CLONE_NEWUTS as u64),
    ("cgroup", "cgroup", libc::CLONE_NEWCGROUP as u64),
    ("time", "time", crate::sys::NEWTIME),
    ("mount", "mnt", libc::CLONE_NEWNS as u64),
];

/// A namespace that exists, held open.
#[derive(Debug)]
pub struct Join {
    file: OwnedFd,
    flag: u64,
    path: PathBuf,
}

/// What a container's processes get.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Flags of those made anew.
    pub new: u64,
    /// Those that are joined, in order.
    pub join: Vec<Join>,
}

impl Namespaces {
    /// From the bundle.
    ///
    /// # Errors
    /// A kind that does not exist or comes twice, or a path that is no such namespace.
    pub fn new(wanted: &[spec::Namespace]) -> Result<Self> {
        let mut result = Self::default();
        for (name, _, flag) in KINDS {
            let mut of_kind = wanted.iter().filter(|n| n.kind == name);
            let Some(namespace) = of_kind.next() else { continue };
            if of_kind.next().is_some() {
                return Err(Error::refused("namespaces", format!("{name} comes twice")));
            }
            match &namespace.path {
                Some(path) if !path.as_os_str().is_empty() => {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                    let file = rustix::fs::open(path, flags, Mode::empty())
                        .during(|| format!("open {name} namespace {}", path.display()))?;
                    result.join.push(Join { file, flag, path: path.clone() });
                }
                _ => result.new |= flag,
            }
        }
        if let Some(other) = wanted.iter().find(|n| KINDS.iter().all(|kind| kind.0 != n.kind)) {
            return Err(Error::refused("namespaces", format!("no namespace is called {:?}", other.kind)));
        }
        Ok(result)
    }

    /// Whether this kind is new.
    #[must_use]
    pub fn is_new(&self, flag: i32) -> bool {
        self.new & flag as u64 != 0
    }

    /// Joins all that are to be joined.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn enter(&self) -> Result<()> {
        for join in &self.join {
            let kind = ThreadNameSpaceType::from_bits_retain(join.flag as u32);
            rustix::thread::move_into_thread_name_spaces(join.file.as_fd(), kind)
                .during(|| format!("join namespace {}", join.path.display()))?;
        }
        Ok(())
    }
}

/// Flags of the namespaces in which process `pid` differs from this one.
pub fn different(pid: i32) -> Result<u64> {
    let mut flags = 0;
    for (_, name, flag) in KINDS {
        let stat = |who: &str| rustix::fs::stat(format!("/proc/{who}/ns/{name}"));
        // A kernel without this kind has no such file.
        let (Ok(ours), theirs) = (stat("self"), stat(&pid.to_string())) else { continue };
        let theirs = theirs.during(|| format!("look at the {name} namespace of process {pid}"))?;
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino) {
            flags |= flag;
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(kind: &str) -> spec::Namespace {
        spec::Namespace { kind: kind.to_owned(), path: None }
    }

    #[test]
    fn kinds_must_exist_and_come_once() {
        let both = Namespaces::new(&[namespace("pid"), namespace("mount")]).unwrap();
        assert_eq!(both.new, (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64);
        assert!(Namespaces::new(&[namespace("pid"), namespace("pid")]).is_err());
        assert!(Namespaces::new(&[namespace("imaginary")]).is_err());
    }

    #[test]
    fn nothing_differs_from_itself() {
        assert_eq!(different(std::process::id() as i32).unwrap(), 0);
    }
}
