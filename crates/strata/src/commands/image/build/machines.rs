//! What runs the commands of a build: a machine for each, which needs no right on this host.
//!
//! The machine is `strata run` in a process of its own, for a process that runs a machine gives up what a build needs. Its command
//! is the agent's own program, which runs the build's and writes what that changed to standard output.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use build::{Ended, Run, Runner};
use image::Store;

/// The agent's own program in a machine, by a name that no image has in its hands.
const AGENT: &str = "/proc/1/exe";
/// The config of an image without files: what a machine is told stands on its command line.
const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","config":{}}"#;

/// Bytes of memory that a machine has unless more or less is said.
const MEMORY: u64 = 1 << 30;

/// Commands run in machines.
pub struct InMachines<'s> {
    pub store: &'s Store,
    pub network: super::Network,
    pub around: &'s super::Around,
}

impl Runner for InMachines<'_> {
    fn run(&self, run: &Run<'_>) -> Result<Ended, Box<dyn Error + Send + Sync>> {
        let incoming = self.store.incoming()?;
        let digest = incoming.add_image(CONFIG, &[])?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("--root").arg(self.store.root()).args(["run", "--pull", "never"]);
        if self.network == super::Network::Host {
            command.args(["--network", "user"]);
        }
        command.args(self.around.hosts.iter().map(|host| format!("--add-host={host}")));
        command
            .arg(format!("--memory={}", self.around.memory.unwrap_or(MEMORY)))
            .arg("--image-digest")
            .arg(digest.to_string());
        command.arg("--root-file").arg(run.file).args(["--user", "0:0", "--workdir", "/"]);
        command.args(["--hostname", "build", "--entrypoint", AGENT, "build", "--", "change"]);
        command.args([run.user, run.cwd, &run.env.len().to_string()]).args(run.env).args(run.argv);
        command.stdin(Stdio::null()).stdout(run.changes.try_clone()?);
        let ended =
            command.status().map_err(|error| io::Error::other(format!("start a machine: {error}")))?;
        let code = ended.code().and_then(|code| u8::try_from(code).ok());
        Ok(Ended { code: code.ok_or("the process of its machine was killed")?, written: None::<PathBuf> })
    }
}
