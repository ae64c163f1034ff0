//! A container's processes, shared memory and host name, where they are not its own alone (`--pid`, `--ipc`, `--uts`).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use api::OTHER;
use container::network::Namespace;
use container::spec::Spec;

use super::container::{explain, runtime};
use super::joined;
use super::tuning::Flags;
use crate::failure::{Failure, Outcome};

/// Where shared memory is.
const SHM: &str = "/dev/shm";

/// Namespaces of others that are held open, and what is to be done to a bundle.
#[derive(Default)]
pub struct Shared {
    /// Kinds that it has none of its own of.
    hosts: Vec<&'static str>,
    /// Kinds that another container has.
    joined: Vec<(&'static str, Namespace)>,
    /// The other's shared memory.
    memory: Option<Arc<OwnedFd>>,
    /// There is none.
    has_no_memory: bool,
}

/// Opens what `flags` ask for.
///
/// # Errors
/// There is no such container, it does not run, or it keeps its shared memory for itself.
pub fn prepare(root: &Path, flags: &Flags) -> Outcome<Shared> {
    let mut shared = Shared::default();
    for (kind, mode) in [("pid", &flags.pid), ("ipc", &flags.ipc), ("uts", &flags.uts)] {
        let mode = mode.as_deref().unwrap_or_default();
        match mode.strip_prefix(OTHER) {
            Some(name) => shared.join(root, kind, name)?,
            None if mode == "host" => shared.hosts.push(kind),
            None => {}
        }
    }
    shared.has_no_memory = flags.ipc.as_deref() == Some("none");
    Ok(shared)
}

impl Shared {
    fn join(&mut self, root: &Path, kind: &'static str, name: &str) -> Outcome<()> {
        let folder = joined::running(root, name, kind)?;
        let (id, options) = (&folder.description().id, joined::options(&folder)?);
        let theirs = &options.container.tuning;
        let theirs = if kind == "pid" { &theirs.pid } else { &theirs.ipc };
        match theirs.as_deref() {
            // What the other has of the host, or of a third one, this one has too.
            Some("host") => self.hosts.push(kind),
            Some("shareable") if kind == "ipc" => {
                self.joined.push((kind, runtime().namespace_of(id, kind).map_err(explain)?));
                self.memory = Some(Arc::new(runtime().shared_memory_of(id).map_err(explain)?));
            }
            _ if kind == "ipc" => {
                let text = format!("join the ipc namespace of {name:?}: non-shareable IPC");
                return Err(Failure::new(text).hint(format!("run {name} with --ipc shareable")));
            }
            _ => self.joined.push((kind, runtime().namespace_of(id, kind).map_err(explain)?)),
        }
        Ok(())
    }

    /// Puts it into a container's bundle. Gives what is mounted that is no path of this host.
    pub fn add_to(&self, spec: &mut Spec) -> Vec<(String, Arc<OwnedFd>)> {
        if self.hosts.contains(&"uts") {
            spec.hostname = None;
        }
        if self.has_no_memory {
            spec.mounts.retain(|mount| mount.destination != SHM);
        }
        if let Some(linux) = &mut spec.linux {
            linux.namespaces.retain(|namespace| !self.hosts.contains(&&*namespace.kind));
            for (kind, theirs) in &self.joined {
                let own = linux.namespaces.iter_mut().filter(|namespace| namespace.kind == *kind);
                own.for_each(|namespace| namespace.path = Some(theirs.path()));
            }
        }
        let Some(memory) = &self.memory else { return Vec::new() };
        for mount in spec.mounts.iter_mut().filter(|mount| mount.destination == SHM) {
            (mount.kind, mount.source) = (Some("bind".to_owned()), Some(SHM.to_owned()));
            mount.options = ["bind", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
        }
        vec![(SHM.to_owned(), memory.clone())]
    }
}
