//! A bundle: a folder with `config.json` and a root file system, checked before anything is made of it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result, While};
use crate::hooks;
use crate::rootfs;
use crate::spec::Spec;

/// The longest `config.json` that is read.
const MOST_BYTES: u64 = 16 << 20;

/// Reads the config of the bundle in `folder`.
///
/// # Errors
/// It is not there, or no config.
pub fn read(folder: &Path) -> Result<Spec> {
    use std::io::Read;
    let path = folder.join("config.json");
    let act = || format!("read {}", path.display());
    let mut text = Vec::new();
    std::fs::File::open(&path).during(act)?.take(MOST_BYTES + 1).read_to_end(&mut text).during(act)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(Error::refused(path.display().to_string(), format!("longer than {MOST_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|source| Error::Json { what: path.display().to_string(), source })
}

/// The folder of the root, absolute and without links.
///
/// # Errors
/// It is not there, or no folder.
pub fn root(bundle: &Path, spec: &Spec) -> Result<PathBuf> {
    let Some(root) = &spec.root else { return Err(Error::refused("config", "it has no root")) };
    let path = bundle.join(&root.path);
    let act = || format!("find the root {}", path.display());
    let real = path.canonicalize().during(act)?;
    if !real.is_dir() {
        return Err(Error::refused(act(), "it is no folder"));
    }
    Ok(real)
}

/// Whether the config makes sense as a whole. What belongs to one part only is checked where that is made.
///
/// # Errors
/// It does not.
pub fn check(spec: &Spec) -> Result<()> {
    let refuse = |fault: String| Err(Error::refused("config", fault));
    if !spec.oci_version.starts_with("1.") {
        return refuse(format!("ociVersion {:?}, this is for 1.x", spec.oci_version));
    }
    if spec.process.is_none() {
        return refuse("it has no process".to_owned());
    }
    let names = [("hostname", &spec.hostname), ("domainname", &spec.domainname)];
    for (field, name) in names {
        if name.as_ref().is_some_and(|name| !name.is_empty()) && !spec.has_namespace("uts") {
            return refuse(format!("{field} without a uts namespace would be the host's"));
        }
    }
    let linux = spec.linux();
    if !linux.time_offsets.is_empty() && !spec.has_namespace("time") {
        return refuse("timeOffsets without a time namespace".to_owned());
    }
    if !spec.has_namespace("mount") && (!spec.mounts.is_empty() || !linux.masked_paths.is_empty()) {
        return refuse("mounts without a mount namespace would be the host's".to_owned());
    }
    if let Some(mount) = spec.mounts.iter().find(|mount| mount.destination.is_empty()) {
        return refuse(format!("a mount of {:?} without a destination", mount.source));
    }
    if linux.masked_paths.iter().chain(&linux.readonly_paths).any(|path| !path.starts_with('/')) {
        return refuse("maskedPaths and readonlyPaths are absolute".to_owned());
    }
    rootfs::propagation(spec)?;
    hooks::check(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(change: impl FnOnce(&mut Spec)) -> Option<String> {
        let mut spec = crate::template::spec(false);
        change(&mut spec);
        check(&spec).err().map(|error| error.to_string())
    }

    #[test]
    fn what_would_touch_the_host_is_refused() {
        assert_eq!(fault(|_| {}), None);
        let without = |spec: &mut Spec, kind: &str| {
            spec.linux.as_mut().unwrap().namespaces.retain(|n| n.kind != kind);
        };
        assert!(fault(|spec| without(spec, "uts")).unwrap().contains("hostname"));
        assert!(fault(|spec| without(spec, "mount")).unwrap().contains("mount namespace"));
        assert!(fault(|spec| spec.oci_version = "2.0".into()).unwrap().contains("2.0"));
        assert!(fault(|spec| spec.process = None).unwrap().contains("process"));
    }
}
