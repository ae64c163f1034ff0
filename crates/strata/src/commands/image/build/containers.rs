//! What runs the commands of a build: containers on this host's kernel and network.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use archive::{Request, Roots};
use build::{Ended, Run, Runner};
use container::command::{Command, Network};
use container::{Exit, Root, Runtime, Upper, rest, template};

use crate::commands::files;
use crate::commands::run::resolving::{self, HOSTS, RESOLV_CONF};

/// Where containers of builds have their states.
const STATES: &str = "/run/strata/build";

/// Containers of builds.
pub fn runtime() -> Runtime {
    Runtime::new(STATES)
}

/// Commands run in containers; what they say goes to standard error, for the digest goes to standard output.
pub struct InContainers<'a> {
    pub network: super::Network,
    pub around: &'a super::Around,
}

impl Runner for InContainers<'_> {
    fn run(&self, run: &Run<'_>) -> Result<Ended, Box<dyn Error + Send + Sync>> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                "RUN needs root on this host: commands run in a container, as the image's own users".into()
            );
        }
        runtime().bury_orphans();
        if files::is_overlay(run.space) {
            rest::memory(run.space).map_err(|error| error.chain())?;
        }
        let upper = run.space.join(run.below.len().to_string());
        std::fs::create_dir(&upper)?;
        let code = self.command(run, &upper)?.shell_code();
        let written = upper.join("upper");
        if code == 0 {
            write_changes(&written, run.changes)?;
        }
        Ok(Ended { code, written: Some(written) })
    }
}

impl InContainers<'_> {
    /// Runs the command with our standard error for its output.
    fn command(&self, run: &Run<'_>, upper: &Path) -> Result<Exit, Box<dyn Error + Send + Sync>> {
        let around = self.around;
        let resolver = template::mount(RESOLV_CONF, "bind", RESOLV_CONF, "bind,ro");
        let mut mounts: Vec<_> = Path::new(RESOLV_CONF).exists().then_some(resolver).into_iter().collect();
        let network = match self.network {
            super::Network::Host => Network::Host,
            super::Network::None => Network::None,
        };
        // There as long as the command runs.
        let hosts = || resolving::hosts_file(&around.hosts, network == Network::Host);
        let hosts =
            (!around.hosts.is_empty()).then(hosts).transpose().map_err(|failure| failure.to_string())?;
        mounts.extend(hosts.iter().map(|file| resolving::mount(HOSTS, file)));
        let command = Command {
            root: Root::Image {
                file: run.file.to_owned(),
                fs_type: run.fs_type.to_owned(),
                below: run.below.to_vec(),
                upper: Upper::Folder(upper.to_owned()),
            },
            args: run.argv.to_vec(),
            env: run.env.to_vec(),
            cwd: run.cwd.to_owned(),
            user: run.user.to_owned(),
            network,
            hostname: String::new(),
            mounts,
            shm_bytes: around.shm_size,
            memory_bytes: around.memory.and_then(|bytes| i64::try_from(bytes).ok()),
            rlimits: around.ulimit.clone(),
            state: PathBuf::from(STATES),
            id: container::own_id("build"),
        };
        let (input, output) =
            (File::open("/dev/null")?, rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
        rustix::stdio::dup2_stdin(&input)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        let ended = command.run();
        rustix::stdio::dup2_stdout(&output)?;
        Ok(ended.map_err(|error| error.chain())?)
    }
}

/// What an upper folder says, as the archive of a layer.
fn write_changes(upper: &Path, changes: &File) -> Result<(), Box<dyn Error + Send + Sync>> {
    let folder: OwnedFd = File::open(upper)?.into();
    let upper = || folder.try_clone().ok();
    let roots = Roots { root: folder.as_fd(), upper: &upper, user: &|_| None };
    let null = File::open("/dev/null")?;
    let text = |error: archive::Error| error.line(|errno| io::Error::from(errno).to_string());
    Request::Changes.run(&roots, null.as_fd(), changes.as_fd()).map_err(|error| text(error).into())
}
