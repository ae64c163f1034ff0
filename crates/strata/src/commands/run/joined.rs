//! A container in the network of another: the same interfaces, addresses and ports, and the same files that names are found by.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use container::network::Namespace;
use container::spec::Spec;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use workload::{Folder, Isolation, Status, Workloads};

use super::Options;
use super::container::{explain, runtime};
use super::resolving::{Files, HOSTS, RESOLV_CONF};
use crate::failure::{Failure, Outcome, While};

/// Bytes of a file that names are found by. Attack: a container whose file has no end.
const MAX_BYTES: u64 = 1 << 20;

/// The network of a container that runs. It stays as long as a process is in it, though what carries its packets ends with the
/// container that has it.
pub struct Joined {
    namespace: Namespace,
    files: Files,
}

/// Opens the network of the workload `name`.
///
/// # Errors
/// There is none, it is no container, or it does not run.
pub fn prepare(root: &Path, name: &str) -> Outcome<Joined> {
    let folder = running(root, name, "network")?;
    let id = &folder.description().id;
    let (namespace, inside) =
        runtime().namespace_of(id, "net").and_then(|n| Ok((n, runtime().root_of(id)?))).map_err(explain)?;
    let resolv_conf = read(&inside, RESOLV_CONF).unwrap_or_default();
    Ok(Joined { namespace, files: Files::copies(&resolv_conf, read(&inside, HOSTS).as_deref())? })
}

/// The workload `name`, of which another is to have the namespace of this kind.
///
/// # Errors
/// There is none, it is no container, or it does not run.
pub fn running(root: &Path, name: &str, kind: &str) -> Outcome<Folder> {
    let act = || format!("join the {kind} namespace of {name:?}");
    let folder = Workloads::open(root).and_then(|all| all.find(name)).while_trying(act)?;
    if folder.description().wanted.isolation == Isolation::Vm {
        let text = format!("{}: a microVM's is its own kernel's", act());
        return Err(Failure::new(text).hint("workloads on one network with a name find each other"));
    }
    let status = folder.state().while_trying(act)?.status;
    if !matches!(status, Status::Running | Status::Paused) {
        let id = &folder.description().id;
        let text = format!("{}: cannot join {kind} of a non running container: {id}", act());
        return Err(Failure::new(text).hint("strata start starts it"));
    }
    Ok(folder)
}

/// What a workload was started with.
///
/// # Errors
/// Another build wrote it.
pub fn options(folder: &Folder) -> Outcome<Options> {
    let options = serde_json::from_value(folder.description().wanted.options.clone());
    options.while_trying(|| format!("read how {} was started", folder.description().name))
}

/// A file of a container, which may have put anything in its place.
fn read(root: &OwnedFd, path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let mode = rustix::fs::fstat(&file).ok()?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    std::fs::File::from(file).take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

impl Joined {
    /// Puts it into a container's bundle.
    pub fn add_to(&self, spec: &mut Spec) {
        for namespace in spec.linux.iter_mut().flat_map(|linux| &mut linux.namespaces) {
            if namespace.kind == "network" {
                namespace.path = Some(self.namespace.path());
            }
        }
        spec.mounts.extend(self.files.mounts());
    }
}
