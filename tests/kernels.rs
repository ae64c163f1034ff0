//! Kernels that nobody made for Strata. `make test-kernels` fetches them and runs these tests; elsewhere each says that it
//! is skipped, so that `make test` stays short.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::cpio::{Cpio, Device};

use crate::support::{Ended, file, finish, strata};

/// The folder with the kernels, or a line that says why the test is skipped.
fn fetched() -> Option<PathBuf> {
    let folder = std::env::var_os("STRATA_TEST_KERNELS").map(PathBuf::from).filter(|folder| folder.is_dir());
    if folder.is_none() {
        println!("skipped: STRATA_TEST_KERNELS is not set; run `make test-kernels`");
    }
    folder
}

/// One of the files that were fetched.
fn fetched_file(name: &str) -> Option<PathBuf> {
    let path = fetched()?.join("files").join(name);
    if !path.exists() {
        println!("skipped: {name} could not be fetched");
        return None;
    }
    Some(path)
}

/// The id in the store of a kernel that was fetched.
fn id(name: &str) -> Option<String> {
    let text = fs::read_to_string(fetched_file(&format!("{name}.id"))?).unwrap();
    Some(text.trim().to_owned())
}

fn with_store(arguments: &[&str]) -> Option<Command> {
    let mut command = strata();
    command.env("STRATA_ROOT", fetched()?.join("store")).args(arguments);
    Some(command)
}

/// A workload on a Debian kernel: it says which, and its code comes back.
fn runs_a_workload(name: &str) {
    let Some(id) = id(name) else { return };
    let script = "uname -r; nproc; exit 7";
    let run = ["run", "--cpus", "2", "--kernel", &id, "debian", "--", "sh", "-c", script];
    let ended = finish(with_store(&run).unwrap());
    assert_eq!((ended.code(), ended.stdout), (7, format!("{id}\n2\n")), "{}", ended.stderr);
}

#[test]
fn the_generic_kernel_runs_a_workload() {
    runs_a_workload("generic");
}

#[test]
fn the_newer_cloud_kernel_runs_a_workload() {
    runs_a_workload("cloud-backports");
}

#[test]
fn the_newer_generic_kernel_runs_a_workload() {
    runs_a_workload("generic-backports");
}

const SCRIPT: &str = "#!/bin/busybox sh\n/bin/busybox --install -s /bin 2>/dev/null\nexport PATH=/bin\n\
    mount -t proc proc /proc\necho I am $(uname -m) with $(grep -c ^processor /proc/cpuinfo) on \
    $(grep ' / ' /proc/mounts | cut -d' ' -f3 | tail -n 1)\n";

/// Checks what [`SCRIPT`] says.
fn says(ended: &Ended, text: &str) {
    assert!(ended.stdout.lines().any(|line| line.trim_end() == text), "no {text:?}: {ended:?}");
}

#[test]
fn an_i386_kernel_boots_on_two_processors_and_runs_no_workload() {
    let (Some(id), Some(busybox)) = (id("i386"), fetched_file("busybox-i386")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Cpio::new(Vec::new());
    for dir in ["bin", "dev", "proc"] {
        archive.dir(dir, 0o755).unwrap();
    }
    archive.device("dev/console", 0o600, Device::Char(5, 1)).unwrap();
    archive.file("bin/busybox", 0o755, &fs::read(busybox).unwrap()).unwrap();
    archive.file("init", 0o755, format!("{SCRIPT}poweroff -f\n").as_bytes()).unwrap();
    let initrd = file(folder.path(), "init.cpio", &archive.finish().unwrap());
    let mut command = strata();
    command.args(["boot", "--cpus", "2", "--append", "quiet panic=-1 reboot=k", "--initrd"]).arg(initrd);
    command.arg("--kernel").arg(fetched().unwrap().join("store/kernels").join(&id).join("vmlinux"));
    let ended = finish(command);
    assert_eq!(ended.code(), 0, "{ended:?}");
    says(&ended, "I am i686 with 2 on rootfs");
    let run = with_store(&["run", "--kernel", &id, "debian", "--", "true"]).unwrap();
    finish(run).expect_failure(125, &[&id, "i386", "amd64"]);
}

/// A disk with an ext4 file system whose init is [`SCRIPT`] and a reset; none where it cannot be made.
fn ext4(folder: &Path) -> Option<PathBuf> {
    if !Path::new("/bin/busybox").exists() {
        println!("skipped: /bin/busybox is not installed (package busybox-static)");
        return None;
    }
    let root = folder.join("root");
    for dir in ["bin", "dev", "proc", "sys", "sbin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let init = file(&root.join("sbin"), "init", format!("{SCRIPT}reboot -f\n").as_bytes());
    fs::set_permissions(init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let disk = folder.join("root.img");
    fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let path = std::env::var("PATH").unwrap_or_default() + ":/sbin:/usr/sbin";
    let mut make = Command::new("mke2fs");
    make.env("PATH", path).args(["-q", "-t", "ext4", "-d"]).arg(root).arg(&disk);
    match make.status() {
        Ok(status) => assert!(status.success()),
        Err(_) => {
            println!("skipped: mke2fs is not installed (package e2fsprogs)");
            return None;
        }
    }
    Some(disk)
}

fn boot_from_disk(kernel: &Path, initrd: Option<&Path>, append: &str) {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = ext4(folder.path()) else { return };
    let mut command = strata();
    command.args(["boot", "--cpus", "2", "--kernel"]).arg(kernel).arg("--disk").arg(disk);
    if let Some(initrd) = initrd {
        command.arg("--initrd").arg(initrd);
    }
    command.args(["--append", &format!("root=/dev/vda rw panic=-1 reboot=k {append}")]);
    let ended = finish(command);
    says(&ended, "I am x86_64 with 2 on ext4");
    ended.expect_failure(3, &["reset"]);
}

/// It was built without ACPI, PCI, a serial driver and initial RAM disks.
#[test]
fn a_libkrunfw_kernel_boots_from_a_disk() {
    let Some(kernel) = fetched_file("libkrunfw.so") else { return };
    boot_from_disk(&kernel, None, "console=hvc0 init=/sbin/init");
}

const ALPINE: &str = "quiet rootfstype=ext4 modules=virtio_mmio,virtio_blk,ext4";

#[test]
fn an_alpine_kernel_boots_with_its_own_initial_ram_disk() {
    let (Some(kernel), Some(initrd)) = (fetched_file("alpine.kernel"), fetched_file("alpine.initrd")) else {
        return;
    };
    boot_from_disk(&kernel, Some(&initrd), ALPINE);
}

/// Its devices are on its command line, its processors in an MP table.
#[test]
fn an_alpine_kernel_boots_without_acpi() {
    let (Some(kernel), Some(initrd)) = (fetched_file("alpine.kernel"), fetched_file("alpine.initrd")) else {
        return;
    };
    boot_from_disk(&kernel, Some(&initrd), &format!("{ALPINE} acpi=off"));
}
