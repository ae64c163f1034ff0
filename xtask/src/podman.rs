//! podman with a store of its own, for comparison.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;
use crate::peers;

/// podman, and the image `box` with the files of [`peers::IMAGE`]. Containers and networks go with it.
pub struct Podman {
    folder: PathBuf,
}

impl Podman {
    /// Beside what [`peers::Peers`] has put into `folder`.
    pub fn make(folder: &Path) -> Outcome<Self> {
        let podman = Self { folder: folder.join("podman") };
        std::fs::create_dir_all(&podman.folder)?;
        // For hosts where limits cannot be raised.
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
                    [network]\nnetwork_backend = \"netavark\"\n";
        std::fs::write(podman.folder.join("containers.conf"), conf)?;
        let root = folder.join("root.tar").display().to_string();
        peers::run(&mut podman.command(&["import", &root, "box"]))?;
        Ok(podman)
    }

    /// What runs it with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command.arg("--root").arg(self.folder.join("storage")).arg("--runroot").arg(self.folder.join("run"));
        command.arg("--network-config-dir").arg(self.folder.join("networks"));
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]).args(arguments);
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for arguments in [&["rm", "-fa", "-t", "0"][..], &["network", "prune", "-f"]] {
            let _ = self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}
