//! A bare guest for `strata boot`: the kernel of the assets with busybox and a script as PID 1.

use std::path::{Path, PathBuf};
use std::process::Command;

use image::Store;
use image::cpio::{Cpio, Device};
use image::kernels::KernelBundle;

use super::{assets, file, strata};

const MODULES: [&str; 3] = ["virtio_mmio", "virtio_blk", "virtio_console"];

/// The kernel of the assets, held open; or nothing if there are none, or busybox is not installed.
pub fn kernel() -> Option<KernelBundle> {
    let store = Store::open(assets()?.join("store")).unwrap();
    if !Path::new("/bin/busybox").exists() {
        println!("skipped: /bin/busybox is not installed (package busybox-static)");
        return None;
    }
    Some(store.kernel(None).unwrap())
}

/// An initial RAM disk in `folder` whose PID 1 mounts `/proc` and `/dev`, loads modules for disks, and runs `script`.
pub fn initrd(folder: &Path, kernel: &KernelBundle, script: &str) -> PathBuf {
    let mut archive = Cpio::new(Vec::new());
    for dir in ["bin", "dev", "proc", "modules"] {
        archive.dir(dir, 0o755).unwrap();
    }
    archive.device("dev/console", 0o600, Device::Char(5, 1)).unwrap();
    archive.file("bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap()).unwrap();
    let mut init = String::from(
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\nmount -t proc proc /proc\n\
         mount -t devtmpfs dev /dev\n",
    );
    for module in kernel.modules_for(&MODULES) {
        archive
            .file(&format!("modules/{}.ko", module.name), 0o644, &kernel.read_module(module).unwrap())
            .unwrap();
        init.push_str(&format!("insmod /modules/{}.ko\n", module.name));
    }
    init.push_str(script);
    archive.file("init", 0o755, init.as_bytes()).unwrap();
    file(folder, "init.cpio", &archive.finish().unwrap())
}

/// `strata boot` of that kernel with this initial RAM disk.
pub fn boot(kernel: &KernelBundle, initrd: Option<&Path>) -> Command {
    let mut command = strata();
    command.args(["boot", "--append", "quiet panic=-1 reboot=k", "--kernel"]);
    command.arg(kernel.vmlinux_path().unwrap_or_else(|| kernel.kernel_path()));
    if let Some(initrd) = initrd {
        command.arg("--initrd").arg(initrd);
    }
    command
}
