//! The distribution's own registry on this host, in a folder that vanishes with it.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// What `htpasswd -B` makes of the user `me` with the password `secret`.
const HTPASSWD: &str = "me:$2y$05$s6CyK49icBLPrAAkN4BECOHoGPNRohMCWFj6R2DegdYqbjNVavIAW\n";

/// A registry that runs.
pub struct DockerRegistry {
    pub domain: String,
    child: Child,
    _folder: tempfile::TempDir,
}

/// Whether a program can be run; a line that says so if not.
pub fn has(program: &str, package: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("skipped: {program} is not installed (package {package})");
    }
    found.is_ok()
}

/// Writes the configuration of a registry that keeps its files in `folder` and listens at `address`.
pub fn configure(folder: &Path, address: &str, more: &str) {
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: '{address}'{more}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n",
        folder.join("data").display()
    );
    std::fs::write(folder.join("config.yml"), text).unwrap();
}

impl DockerRegistry {
    /// Starts one that everybody may use; nothing if the package is not installed.
    pub fn start() -> Option<DockerRegistry> {
        DockerRegistry::with("")
    }

    /// Starts one for `me` with the password `secret`.
    pub fn with_password() -> Option<DockerRegistry> {
        DockerRegistry::with("auth: {htpasswd: {realm: r, path: HTPASSWD}}\n")
    }

    fn with(more: &str) -> Option<DockerRegistry> {
        if !has("docker-registry", "docker-registry") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        // Somebody else may take the port between our asking for one and its use.
        for _ in 0..5 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let domain = listener.local_addr().unwrap().to_string();
            drop(listener);
            configure(folder.path(), &domain, "");
            let config = folder.path().join("config.yml");
            let htpasswd = folder.path().join("htpasswd");
            std::fs::write(&htpasswd, HTPASSWD).unwrap();
            let text = std::fs::read_to_string(&config).unwrap();
            let more = more.replace("HTPASSWD", &htpasswd.display().to_string());
            std::fs::write(&config, text + &more).unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if TcpStream::connect(&domain).is_ok() {
                    return Some(DockerRegistry { domain, child, _folder: folder });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start");
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
