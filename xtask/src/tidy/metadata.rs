//! What cargo and git know about the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::Outcome;

/// One crate of the workspace.
pub struct Package {
    pub name: String,
    /// Its folder, relative to the top.
    pub folder: PathBuf,
    /// Crates of the workspace it depends on.
    pub dependencies: Vec<String>,
    /// Crates of the workspace only its tests depend on.
    pub test_dependencies: Vec<String>,
}

/// The crates of the workspace, from `cargo metadata`.
pub fn packages(top: &Path) -> Outcome<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let json = output(
        Command::new(cargo)
            .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
            .current_dir(top),
    )?;
    let metadata: Value = serde_json::from_slice(&json)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    packages.iter().map(|package| read_package(top, package)).collect()
}

fn read_package(top: &Path, package: &Value) -> Outcome<Package> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or("cargo metadata: not a text");
    let manifest = PathBuf::from(text(&package["manifest_path"])?);
    let folder = manifest.parent().and_then(|f| f.strip_prefix(top).ok()).ok_or("a crate outside the top")?;
    let mut found = Package {
        name: text(&package["name"])?,
        folder: folder.to_owned(),
        dependencies: Vec::new(),
        test_dependencies: Vec::new(),
    };
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        if dependency["path"].is_null() {
            continue;
        }
        let name = text(&dependency["name"])?;
        match dependency["kind"].as_str() {
            Some("dev") => found.test_dependencies.push(name),
            _ => found.dependencies.push(name),
        }
    }
    Ok(found)
}

/// Every file git tracks or would track, relative to the top.
pub fn tracked_files(top: &Path) -> Outcome<Vec<PathBuf>> {
    let list = output(
        Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(top),
    )?;
    let list = String::from_utf8(list)?;
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

fn output(command: &mut Command) -> Outcome<Vec<u8>> {
    let output = command.output().map_err(|error| format!("run {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}
