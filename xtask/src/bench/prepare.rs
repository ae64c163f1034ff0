//! The guest of the benchmarks: a kernel of the store, and an initial RAM disk of busybox and the workloads.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::Store;
use image::cpio::{Cpio, Device};

use crate::Outcome;

/// What contenders run.
pub struct Guest {
    pub kernel: PathBuf,
    /// Its name in the store.
    pub kernel_id: String,
    pub initrd: PathBuf,
    /// The same programs for the host.
    pub workloads: PathBuf,
    pub busybox: PathBuf,
    /// A program that does nothing, the same as in the guest.
    pub nothing: PathBuf,
    /// Scratch folder.
    pub folder: PathBuf,
}

/// Builds everything under `target/bench`.
pub fn guest(top: &Path, store: &Path) -> Outcome<Guest> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from);
    let folder = target.join("bench");
    fs::create_dir_all(&folder)?;
    let workloads = folder.join("workloads");
    let status = Command::new("gcc")
        .args(["-O2", "-static", "-o"])
        .arg(&workloads)
        .arg(top.join("bench/workloads.c"))
        .arg("-lm")
        .status()
        .map_err(|error| format!("run gcc: {error}"))?;
    if !status.success() {
        return Err(format!("gcc: {status}").into());
    }
    let busybox = folder.join("busybox");
    fs::copy("/bin/busybox", &busybox)
        .map_err(|error| format!("copy /bin/busybox (package busybox-static): {error}"))?;
    let nothing = folder.join("true");
    match std::os::unix::fs::symlink("busybox", &nothing) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    let bundle = Store::open(store)?.kernel(None)?;
    let kernel = bundle.vmlinux_path().ok_or("the kernel of the store has no ELF form")?;
    let initrd = folder.join("init.cpio");
    pack(top, &workloads, &busybox, &initrd)?;
    let kernel_id = bundle.info().id.clone();
    Ok(Guest { kernel, kernel_id, initrd, workloads, busybox, nothing, folder })
}

fn pack(top: &Path, workloads: &Path, busybox: &Path, to: &Path) -> Outcome {
    let mut archive = Cpio::new(io::BufWriter::new(File::create(to)?));
    for dir in ["bin", "dev", "proc", "tmp"] {
        archive.dir(dir, 0o755)?;
    }
    archive.device("dev/console", 0o600, Device::Char(5, 1))?;
    archive.file("init", 0o755, &fs::read(top.join("bench/init.sh"))?)?;
    archive.file("bin/busybox", 0o755, &fs::read(busybox)?)?;
    for name in ["sh", "gzip", "gunzip", "sha256sum", "true"] {
        archive.symlink(&format!("bin/{name}"), "busybox")?;
    }
    archive.file("bin/workloads", 0o755, &fs::read(workloads)?)?;
    archive.finish()?;
    Ok(())
}
