//! A bundle: a folder with `config.json` and a root file system, checked before anything is made of it.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result, While};
use crate::namespaces::Namespaces;
use crate::options::MountOptions;
use crate::process::Plan;
use crate::spec::Spec;
use crate::{cgroups, hooks, rootfs};

/// The longest `config.json` that is read.
const MOST_BYTES: u64 = 16 << 20;

/// What is there where SELinux is.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// Reads the config of the bundle in `folder`.
///
/// # Errors
/// It is not there, or no config.
pub fn read(folder: &Path) -> Result<Spec> {
    use std::io::Read;
    let path = folder.join("config.json");
    let act = || format!("read {}", path.display());
    // A pipe in its place would be waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = std::fs::File::from(rustix::fs::open(&path, flags, Mode::empty()).during(act)?);
    let metadata = file.metadata().during(act)?;
    if !metadata.is_file() {
        return Err(Error::refused(act(), "it is no file"));
    }
    let mut text = Vec::with_capacity(metadata.len().min(MOST_BYTES) as usize + 1);
    file.take(MOST_BYTES + 1).read_to_end(&mut text).during(act)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(Error::refused(path.display().to_string(), format!("longer than {MOST_BYTES} bytes")));
    }
    parse(&text, &path)
}

fn parse(text: &[u8], path: &Path) -> Result<Spec> {
    serde_json::from_slice(text).map_err(|source| Error::Json { what: path.display().to_string(), source })
}

/// Reads a config and checks all of it that can be checked without making anything of it or looking at the host: nothing
/// that a stranger may write there may take long or much memory, or worse.
///
/// # Errors
/// It makes no sense.
pub fn examine(text: &[u8]) -> Result<()> {
    let spec = parse(text, Path::new("config.json"))?;
    check(&spec)?;
    let linux = spec.linux();
    Plan::new(&spec.process.clone().unwrap_or_default(), linux.seccomp.as_ref(), spec.has_namespace("user"))?;
    Namespaces::check(&linux.namespaces)?;
    cgroups::check(linux.cgroups_path.as_deref(), &linux.resources.clone().unwrap_or_default())?;
    for mount in &spec.mounts {
        let _ = MountOptions::parse(&mount.options);
    }
    Ok(())
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
    let maps = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if maps && !spec.has_namespace("user") {
        return refuse("uidMappings and gidMappings without a user namespace".to_owned());
    }
    if let Some(part) = unsupported(spec) {
        return refuse(format!("{part} is not supported"));
    }
    let label = spec.process.as_ref().and_then(|process| process.selinux_label.as_deref());
    let labels = [label, linux.mount_label.as_deref()];
    if labels.into_iter().flatten().any(|label| !label.is_empty()) && !Path::new(SELINUX).exists() {
        return refuse("selinuxLabel or mountLabel, and this host has no SELinux".to_owned());
    }
    if linux.personality.as_ref().is_some_and(|personality| !personality.flags.is_empty()) {
        return refuse("personality: no flags are defined".to_owned());
    }
    rootfs::propagation(spec)?;
    hooks::check(spec)
}

/// A part of the config that asks for what this runtime cannot do: passing it over would not be what was asked for.
fn unsupported(spec: &Spec) -> Option<&'static str> {
    let linux = spec.linux.as_ref();
    let resources = linux.and_then(|linux| linux.resources.as_ref());
    let parts = [
        ("linux.intelRdt", linux.and_then(|linux| linux.intel_rdt.as_ref())),
        ("linux.netDevices", linux.and_then(|linux| linux.net_devices.as_ref())),
        ("linux.memoryPolicy", linux.and_then(|linux| linux.memory_policy.as_ref())),
        ("linux.resources.network", resources.and_then(|resources| resources.network.as_ref())),
        ("linux.resources.rdma", resources.and_then(|resources| resources.rdma.as_ref())),
    ];
    let asks = |value: &serde_json::Value| match value {
        serde_json::Value::Null => false,
        serde_json::Value::Object(fields) => !fields.is_empty(),
        serde_json::Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    parts.into_iter().find(|(_, value)| value.is_some_and(asks)).map(|(name, _)| name)
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
