//! One command in the root of an image, and what it writes there: what building images needs.

use std::path::PathBuf;

use crate::error::Result;
use crate::rootfs::Root;
use crate::seccomp::profile;
use crate::spec::{Linux, Memory, Process, Resources, Rlimit, Spec};
use crate::state::OCI_VERSION;
use crate::verbs::{CreateOptions, Exit, Runtime, Source};
use crate::{spec, template};

/// What the command sees of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Loopback alone.
    None,
    /// The host's.
    Host,
}

/// A command to run in a root file system. Standard streams are those of this process: whoever wants others puts them
/// there, or runs this in a process that has them.
#[derive(Clone, Debug)]
pub struct Command {
    /// What becomes `/`.
    pub root: Root,
    /// The command and its arguments.
    pub args: Vec<String>,
    /// Its whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// Its working directory, made if it is missing.
    pub cwd: String,
    /// `USER[:GROUP]`, by names of the root's own files or numbers; empty is root.
    pub user: String,
    /// Its network.
    pub network: Network,
    /// Its host name.
    pub hostname: String,
    /// Further mounts.
    pub mounts: Vec<spec::Mount>,
    /// Bytes of `/dev/shm` at most, if not the usual 64 MiB.
    pub shm_bytes: Option<u64>,
    /// Bytes of memory at most.
    pub memory_bytes: Option<i64>,
    /// Further limits of its processes.
    pub rlimits: Vec<Rlimit>,
    /// Where the container's state is kept meanwhile.
    pub state: PathBuf,
    /// Its name, which nobody else may use meanwhile.
    pub id: String,
}

impl Command {
    /// Runs it to its end, with the capabilities and the filter of system calls that containers have by default, and
    /// removes all that was made for it. Signals are not passed on: those of a terminal reach it by themselves only if
    /// it is in the foreground. It is killed if the calling thread ends before it.
    ///
    /// # Errors
    /// It cannot be run; [`crate::Error::Command`] if that is the command's own fault.
    pub fn run(&self) -> Result<Exit> {
        let options = CreateOptions { tied: true, ..CreateOptions::new(&self.id, self.source()) };
        let running = Runtime::new(&self.state).run(&options)?;
        let exit = running.wait();
        running.delete()?;
        exit
    }

    fn source(&self) -> Source {
        let names = template::default_capabilities();
        let mut kinds = vec!["pid", "ipc", "uts", "mount", "cgroup"];
        if self.network == Network::None {
            kinds.push("network");
        }
        let mut mounts = template::mounts();
        if let Some(bytes) = self.shm_bytes {
            template::limit_shm(&mut mounts, bytes);
        }
        mounts.extend(self.mounts.iter().cloned());
        let spec = Spec {
            oci_version: OCI_VERSION.to_owned(),
            process: Some(Process {
                args: self.args.clone(),
                env: self.env.clone(),
                cwd: if self.cwd.is_empty() { "/".to_owned() } else { self.cwd.clone() },
                capabilities: Some(template::capabilities(&names)),
                rlimits: self.rlimits.clone(),
                ..Process::default()
            }),
            root: Some(spec::Root::default()),
            hostname: Some(self.hostname.clone()).filter(|name| !name.is_empty()),
            mounts,
            linux: Some(Linux {
                resources: Some(Resources {
                    devices: vec![template::deny_all()],
                    memory: self.memory_bytes.map(|limit| Memory { limit: Some(limit), ..Memory::default() }),
                    ..Resources::default()
                }),
                namespaces: template::namespaces(&kinds),
                seccomp: Some(profile::default_rules(&names)),
                masked_paths: template::MASKED.map(str::to_owned).to_vec(),
                readonly_paths: template::READ_ONLY.map(str::to_owned).to_vec(),
                ..Linux::default()
            }),
            ..Spec::default()
        };
        Source::Config {
            spec: Box::new(spec),
            root: self.root.clone(),
            user: Some(self.user.clone()),
            groups: Vec::new(),
        }
    }
}
