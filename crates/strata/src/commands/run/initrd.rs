//! The initial RAM disk of a workload's machine: the agent, and the modules that get it to its root and its host.

use std::io;
use std::sync::Arc;

use image::cpio::Cpio;
use image::kernels::KernelBundle;

use super::network;

use crate::failure::{Failure, Outcome, While};

/// What a guest needs before the root is mounted. Those built into the kernel are no files, and no loss.
const MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "squashfs",
    "overlay",
    "virtio_rng",
    "virtio_balloon",
    network::MODULE,
];
/// A guest does without randomness from its host, without giving memory back, and without a network.
const OPTIONAL: [&str; 3] = ["virtio_rng", "virtio_balloon", network::MODULE];

/// Modules that [`build()`] would have taken and that came neither with the kernel nor, as far as anybody can tell,
/// inside it, but for [`OPTIONAL`] ones.
pub fn absent(kernel: &KernelBundle) -> Vec<&'static str> {
    let absent = &kernel.info().absent;
    MODULES
        .into_iter()
        .filter(|name| !OPTIONAL.contains(name) && absent.iter().any(|other| other == name))
        .collect()
}

/// The kernel's modules that [`build()`] takes, by the checksums of their files.
pub fn module_checksums(kernel: &KernelBundle, with_folders: bool) -> impl Iterator<Item = &str> {
    kernel.modules_for(&wanted(with_folders)).into_iter().map(|module| module.file.sha256.as_str())
}

fn wanted(with_folders: bool) -> Vec<&'static str> {
    MODULES.into_iter().chain(with_folders.then_some(super::folders::MODULE)).collect()
}

/// Builds it as one newc archive.
///
/// # Errors
/// A module of the kernel cannot be read, or is not what was stored: `explain` says what that means.
pub fn build(
    kernel: &KernelBundle,
    with_folders: bool,
    explain: impl Fn(image::Error) -> Failure,
) -> Outcome<Arc<[u8]>> {
    let mut modules = Vec::new();
    for module in kernel.modules_for(&wanted(with_folders)) {
        let bytes = kernel.read_module(module).map_err(&explain)?;
        modules.push((format!("{}.ko", module.name), bytes));
    }
    let archive = write(&modules).while_trying(|| "build the initial ram disk".to_owned())?;
    Ok(archive.into())
}

fn write(modules: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let files: usize = modules.iter().map(|(_, bytes)| bytes.len()).sum();
    // With room for headers, so that it does not grow by copies.
    let mut archive = Cpio::new(Vec::with_capacity(agent::AGENT.len() + files + (16 << 10)));
    archive.dir("dev", 0o755)?;
    archive.file("init", 0o755, agent::AGENT)?;
    archive.dir("modules", 0o755)?;
    for (name, bytes) in modules {
        archive.file(&format!("modules/{name}"), 0o644, bytes)?;
    }
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_agent_and_the_order_of_its_modules() {
        let modules = [("b.ko".to_owned(), b"BB".to_vec()), ("a.ko".to_owned(), b"AA".to_vec())];
        let archive = write(&modules).unwrap();
        let holds = |needle: &[u8]| archive.windows(needle.len()).any(|window| window == needle);
        assert!(holds(b"init\0") && holds(b"modules/order\0") && holds(b"b.ko\na.ko\n"));
        assert!(archive.len().is_multiple_of(512));
    }
}
