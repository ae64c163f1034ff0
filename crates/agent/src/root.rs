//! The root the processes see.
//!
//! ```text
//! initramfs /            the agent's own root: /init, /modules
//!   ├─ /dev /proc /sys   the kernel's own, moved into the new root
//!   ├─ /lower            the device, read-only
//!   ├─ /upper            tmpfs: /upper/data, /upper/work
//!   └─ /newroot          overlay of the two (or the device itself), moved over / and chrooted into
//! ```
//! An initramfs can't be unmounted or pivoted away (Documentation/filesystems/ramfs-rootfs-initramfs.rst):
//! the new root is moved on top of it.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use protocol::{Level, Log, Root, Start, Writable};
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::sethostname;

use crate::fault::Fault;
use crate::{files, mounts, sys};

const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
const NEW_ROOT: &str = "/newroot";

/// Where PID 1 holds the overlay's upper folder open, which no path leads to any more: [`service`](crate::service) reads it.
pub const UPPER_FD: i32 = 100;

/// How long a disk may take to appear after its driver was loaded.
const DEVICE_PATIENCE_MS: u32 = 5000;

/// Mounts the root, makes it this process's `/`, and completes it. What is worth a line goes to `log`.
///
/// # Errors
/// What was being mounted, with the kernel's cause.
pub fn enter(start: &Start, log: &mut dyn FnMut(Log)) -> Result<(), Fault> {
    if !start.hostname.is_empty() {
        sethostname(start.hostname.as_bytes())
            .map_err(|errno| Fault::os("set host name", &start.hostname, errno))?;
    }
    if let Root::Device { device, fs_type, writable } = &start.root {
        wait_for_device(device)?;
        mount_device(device, fs_type, *writable, log)?;
        switch()?;
    }
    mounts::directories();
    mounts::name_files(&start.hostname);
    mounts::add_hosts(&start.hosts);
    Ok(())
}

fn warning(text: String) -> Log {
    Log { level: Level::Warning, text }
}

fn wait_for_device(device: &str) -> Result<(), Fault> {
    let mut waited = 0;
    loop {
        let errno = match has_medium(device) {
            Ok(true) => return Ok(()),
            Ok(false) => Errno::NOMEDIUM,
            Err(errno) => errno,
        };
        if waited >= DEVICE_PATIENCE_MS {
            return Err(Fault::os("mount root", device, errno));
        }
        files::sleep(Duration::from_millis(1));
        waited += 1;
    }
}

/// Whether there are bytes on it. A machine that was saved before it had a root is given one when it is restored; its
/// kernel hears of it beside everything else.
fn has_medium(device: &str) -> Result<bool, Errno> {
    let file = fs::open(device, OFlags::RDONLY | OFlags::CLOEXEC, fs::Mode::empty())?;
    Ok(fs::seek(&file, fs::SeekFrom::End(0))? != 0)
}

fn mount_device(
    device: &str,
    fs_type: &str,
    writable: Writable,
    log: &mut dyn FnMut(Log),
) -> Result<(), Fault> {
    let read_only = MountFlags::RDONLY;
    match writable {
        Writable::No => mount_root(device, NEW_ROOT, fs_type, read_only),
        Writable::Device => mount_root(device, NEW_ROOT, fs_type, MountFlags::empty()),
        Writable::Overlay { size_bytes } => {
            mount_root(device, LOWER, fs_type, read_only)?;
            overlay(size_bytes).or_else(|fault| without_overlay(&fault, log))
        }
    }
}

fn mount_root(device: &str, target: &str, fs_type: &str, flags: MountFlags) -> Result<(), Fault> {
    mounts::mount_at(device, target, fs_type, flags, "")
        .map_err(|fault| Fault::new("mount root", format!("{device} ({fs_type})"), fault.cause))
}

fn overlay(size_bytes: u64) -> Result<(), Fault> {
    let size = if size_bytes == 0 { String::new() } else { format!(",size={size_bytes}") };
    let flags = MountFlags::empty();
    mounts::mount_at("tmpfs", UPPER, "tmpfs", flags, &format!("mode=0755{size}"))?;
    files::make_dirs("/upper/data", 0o755)?;
    files::make_dirs("/upper/work", 0o755)?;
    // What is written must mean something by itself: it may become a layer of an image.
    let layers = "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work,redirect_dir=off";
    mounts::mount_at("overlay", NEW_ROOT, "overlay", flags, layers)?;
    hold_upper()
}

fn hold_upper() -> Result<(), Fault> {
    let fault = |errno| Fault::os("open", "/upper/data", errno);
    let folder = files::open("/upper/data", OFlags::PATH | OFlags::DIRECTORY)?;
    // For as long as there is a machine.
    core::mem::forget(rustix::io::fcntl_dupfd_cloexec(&folder, UPPER_FD).map_err(fault)?);
    Ok(())
}

/// For a kernel without overlay: the device alone, read-only, with room to write where programs
/// can't do without.
fn without_overlay(fault: &Fault, log: &mut dyn FnMut(Log)) -> Result<(), Fault> {
    if fault.cause != sys::errno_text(rustix::io::Errno::NODEV) {
        return Err(fault.clone());
    }
    log(warning(format!("{fault}; the root is read-only but for /tmp, /run and /var/tmp")));
    let _ = files::make_dirs(NEW_ROOT, 0o755);
    move_mount(LOWER, NEW_ROOT)?;
    for (dir, mode) in
        [("/newroot/tmp", "mode=1777"), ("/newroot/run", "mode=0755"), ("/newroot/var/tmp", "mode=1777")]
    {
        let _ = mounts::mount_at("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, mode);
    }
    Ok(())
}

fn move_mount(from: &str, to: &str) -> Result<(), Fault> {
    mount_move(from, to).map_err(|errno| Fault::os("move mount", format!("{from} to {to}"), errno))
}

fn switch() -> Result<(), Fault> {
    for own in mounts::OWN.iter().chain(&["/dev"]) {
        let place = format!("{NEW_ROOT}{own}");
        let _ = files::make_dirs(&place, 0o755);
        match move_mount(own, &place) {
            // A kernel without it, or a root without a place for it.
            Err(_) if *own == "/sys" => {}
            moved => moved?,
        }
    }
    let step = |errno| Fault::os("switch root", NEW_ROOT, errno);
    chdir(NEW_ROOT).map_err(step)?;
    move_mount(".", "/")?;
    chroot(".").map_err(step)?;
    chdir("/").map_err(step)
}
