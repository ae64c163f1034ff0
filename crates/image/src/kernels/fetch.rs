//! A kernel from the distribution, through the host's own package manager, without installing it.

use std::path::PathBuf;
use std::process::Command;

use super::add::{AddKernel, Unpack};
use super::bundle::KernelBundle;
use crate::bootstrap::{check_word, find_program, run, with_death_signal};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::store::Store;

/// The package taken when nobody says which: Debian's kernel for virtual machines.
pub const DEFAULT_PACKAGE: &str = "linux-image-cloud-amd64";
/// Meta packages that depend on meta packages.
const MAX_META: usize = 4;

impl Store {
    /// Downloads the kernel that `package` is or depends on (`apt-get download`, no root needed) and adds it. If the store has
    /// that very package already, nothing is downloaded.
    ///
    /// # Errors
    /// apt is not here, knows no such package or cannot download it; then as [`Store::add_kernel`].
    pub fn fetch_kernel(
        &self,
        package: Option<&str>,
        unpack: &Unpack<'_>,
        make_default: bool,
        progress: &dyn Progress,
    ) -> Result<KernelBundle> {
        if find_program("apt-get").is_none() {
            return Err(Error::NoTool { act: "fetch a kernel", program: "apt-get", package: "apt" });
        }
        let package = package.unwrap_or(DEFAULT_PACKAGE);
        check_word(package)?;
        progress.step(&format!("look up {package}"));
        let packages = real_packages(package, progress)?;
        let version = candidate_version(&packages[0], progress)?;
        let origin = format!("{} {version}", packages[0]);
        if let Some(have) = self.kernels()?.into_iter().find(|kernel| kernel.info().origin == origin) {
            if make_default {
                self.set_default_kernel(&have.info().id)?;
                return self.kernel(Some(&have.info().id));
            }
            return Ok(have);
        }
        let folder = self.scratch.folder()?;
        progress.step(&format!("download {}", packages.join(" and ")));
        let mut command = with_death_signal("apt-get");
        if rustix::process::geteuid().is_root() {
            // Its own user may not write into our folder; saying so keeps it from warning.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command.args(["-q", "download"]).args(&packages).current_dir(folder.path());
        run(command, "apt-get", progress)?;
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder.path()).map_err(Error::file("list", folder.path()))? {
            files.push(entry.map_err(Error::file("list", folder.path()))?.path());
        }
        files.retain(|path| path.extension().is_some_and(|ext| ext == "deb"));
        files.sort();
        if files.is_empty() {
            return Err(Error::invalid(package, "apt-get downloaded no package"));
        }
        self.add_kernel(&AddKernel { files, modules: None, unpack, make_default }, progress)
    }
}

/// The package with the kernel, then those with more of its modules (Ubuntu splits them).
fn real_packages(package: &str, progress: &dyn Progress) -> Result<Vec<String>> {
    let mut kernel = package.to_string();
    for _ in 0..MAX_META {
        let depends = depends(&kernel, progress)?;
        let next = depends.iter().find(|name| name.starts_with("linux-image-") && **name != kernel);
        match next {
            Some(next) => kernel = next.clone(),
            None => {
                let modules = depends.into_iter().filter(|name| name.starts_with("linux-modules-"));
                return Ok([kernel].into_iter().chain(modules).collect());
            }
        }
    }
    Err(Error::invalid(package, "it depends on itself"))
}

fn depends(package: &str, progress: &dyn Progress) -> Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--important", package]);
    let out = run(command, "apt-cache", progress).map_err(|e| match e {
        Error::Tool { .. } => Error::invalid(
            format!("package {package}"),
            "apt knows no such package; try apt-get update, or name another package",
        ),
        other => other,
    })?;
    let text = String::from_utf8_lossy(&out).into_owned();
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.filter(|name| check_word(name).is_ok()).map(str::to_string).collect())
}

fn candidate_version(package: &str, progress: &dyn Progress) -> Result<String> {
    let mut command = Command::new("apt-cache");
    command.args(["policy", package]);
    let out = run(command, "apt-cache", progress)?;
    let text = String::from_utf8_lossy(&out).into_owned();
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    match version {
        Some(version) if version != "(none)" => Ok(version.to_string()),
        _ => Err(Error::invalid(format!("package {package}"), "apt has no candidate for it")),
    }
}
