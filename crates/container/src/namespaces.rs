//! Namespaces: which are new, which are joined.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

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

/// The number `statfs` has for namespaces.
const NAMESPACES_MAGIC: i64 = 0x6e73_6673;

/// The one to join, if it is not to be a new one.
fn path(namespace: &spec::Namespace) -> Option<&Path> {
    namespace.path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

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
    /// Whether each kind exists, comes once, and has an absolute path if it has one.
    ///
    /// # Errors
    /// One does not.
    pub fn check(wanted: &[spec::Namespace]) -> Result<()> {
        for (number, namespace) in wanted.iter().enumerate() {
            let kind = namespace.kind.as_str();
            if KINDS.iter().all(|known| known.0 != kind) {
                return Err(Error::refused("namespaces", format!("no namespace is called {kind:?}")));
            }
            if wanted[..number].iter().any(|before| before.kind == kind) {
                return Err(Error::refused("namespaces", format!("{kind} comes twice")));
            }
            if let Some(path) = path(namespace).filter(|path| !path.is_absolute()) {
                let fault = format!("path {} of {kind} is not absolute", path.display());
                return Err(Error::refused("namespaces", fault));
            }
        }
        Ok(())
    }

    /// From the bundle.
    ///
    /// # Errors
    /// A kind that does not exist or comes twice, or a path that is no namespace.
    pub fn new(wanted: &[spec::Namespace]) -> Result<Self> {
        Self::check(wanted)?;
        let mut result = Self::default();
        for (name, _, flag) in KINDS {
            let Some(namespace) = wanted.iter().find(|n| n.kind == name) else { continue };
            match path(namespace) {
                Some(path) => {
                    let act = || format!("open {name} namespace {}", path.display());
                    // A pipe in its place would be waited for.
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                    let file = rustix::fs::open(path, flags, Mode::empty()).during(act)?;
                    if rustix::fs::fstatfs(&file).during(act)?.f_type != NAMESPACES_MAGIC {
                        return Err(Error::refused(act(), "it is no namespace"));
                    }
                    result.join.push(Join { file, flag, path: path.to_owned() });
                }
                _ => result.new |= flag,
            }
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
        let at = |path: &str| [spec::Namespace { kind: "uts".into(), path: Some(path.into()) }];
        assert!(Namespaces::new(&at("/proc/self/ns/uts")).unwrap().join.len() == 1);
        assert!(Namespaces::new(&at("proc/self/ns/uts")).unwrap_err().to_string().contains("absolute"));
        assert!(Namespaces::new(&at("/dev/null")).unwrap_err().to_string().contains("no namespace"));
    }

    #[test]
    fn nothing_differs_from_itself() {
        assert_eq!(different(std::process::id() as i32).unwrap(), 0);
    }
}
