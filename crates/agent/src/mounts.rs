//! The file systems of the kernel's own that every process expects, and the files that go with them.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;

use rustix::fs::{self, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::fault::Fault;
use crate::{files, sys};

/// Mounts, making the directory where it can be made.
///
/// # Errors
/// The kernel's.
pub fn mount_at(
    source: &str,
    target: &str,
    fs_type: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), Fault> {
    let _ = files::make_dirs(target, 0o755);
    let options = CString::new(data).map_err(|_| Fault::new("mount", target, "options with a zero byte"))?;
    match mount(source, target, fs_type, flags, options.as_c_str()) {
        Ok(()) => Ok(()),
        Err(errno) => Err(Fault::os("mount", format!("{fs_type} at {target}"), errno)),
    }
}

/// Mounts one of the kernel's own, of which one that is there already is as good.
fn mount_own(fs_type: &str, target: &str, flags: MountFlags, data: &str) -> Result<(), Fault> {
    match mount_at(fs_type, target, fs_type, flags, data) {
        Err(fault) if fault.cause == sys::errno_text(Errno::BUSY) => Ok(()),
        result => result,
    }
}

/// What the agent itself needs: the device nodes.
///
/// # Errors
/// The kernel's.
pub fn devices() -> Result<(), Fault> {
    mount_own("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0755")
}

/// Where the kernel's own file systems are that the processes' root gets beside `/dev`.
pub const OWN: [&str; 2] = ["/proc", "/sys"];

/// The kernel's own file systems that processes expect, in `/dev` and in [`OWN`], where they wait for the root: none of
/// them depends on it, and what is done before the host is told that the agent is ready is done once for all machines
/// that come from one that was saved then. Only `/proc` and `/dev/pts` are indispensable; what else a kernel lacks is absent.
///
/// # Errors
/// The kernel's, for those two.
pub fn for_processes() -> Result<(), Fault> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_own("proc", "/proc", quiet, "")?;
    let pts = "gid=5,mode=620,ptmxmode=666";
    mount_own("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, pts)?;
    let _ = mount_own("sysfs", "/sys", quiet, "");
    let _ = mount_own("cgroup2", "/sys/fs/cgroup", quiet, "");
    let shm = MountFlags::NOSUID | MountFlags::NODEV;
    let _ = mount_own("tmpfs", "/dev/shm", shm, "mode=1777");
    let _ = mount_own("mqueue", "/dev/mqueue", quiet, "");
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = fs::symlink(target, link);
    }
    Ok(())
}

/// Directories that programs can't do without, and their modes.
pub const DIRECTORIES: [(&str, u32); 2] = [("/tmp", 0o1777), ("/run", 0o755)];

/// Makes them in the root that programs see.
pub fn directories() {
    for (dir, mode) in DIRECTORIES {
        if fs::mkdir(dir, Mode::from_raw_mode(mode)).is_ok() {
            // mkdir takes the umask and drops the sticky bit of some file systems.
            let _ = fs::chmod(dir, Mode::from_raw_mode(mode));
        }
    }
}

/// The machine's name, where the C library and others look for it. The image may have brought
/// another machine's name in `/etc/hostname`; its `/etc/hosts` is kept unless it is empty.
pub fn name_files(hostname: &str) {
    if hostname.is_empty() || fs::stat("/etc").is_err() {
        return;
    }
    let _ = files::write("/etc/hostname", &format!("{hostname}\n"));
    if files::read("/etc/hosts").map_or(true, |text| text.trim().is_empty()) {
        let own = own_host(hostname);
        let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}");
        let _ = files::write("/etc/hosts", &hosts);
    }
}

/// Adds lines to `/etc/hosts`.
pub fn add_hosts(lines: &str) {
    if !lines.is_empty() {
        let text = files::read("/etc/hosts").unwrap_or_default();
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let _ = files::write("/etc/hosts", &format!("{text}{end}{lines}"));
    }
}

/// The line of `/etc/hosts` that [`name_files`] writes for the machine itself.
fn own_host(hostname: &str) -> String {
    format!("127.0.1.1\t{hostname}\n")
}

/// The machine that was called `old` is now `new`.
pub fn rename(old: &str, new: &str) {
    if let Ok(hosts) = files::read("/etc/hosts")
        && hosts.contains(&own_host(old))
    {
        let _ = files::write("/etc/hosts", &hosts.replace(&own_host(old), &own_host(new)));
    }
    name_files(new);
}

/// Brings up `lo`: what listens on localhost must be reachable there in a machine without networks too.
///
/// # Errors
/// The kernel's; one without IPv4 is fine.
pub fn loopback() -> Result<(), Fault> {
    let fault = |errno| Fault::os("bring up interface", "lo", errno);
    match socket(AddressFamily::INET, SocketType::DGRAM, None) {
        Err(Errno::AFNOSUPPORT) => Ok(()),
        Err(errno) => Err(fault(errno)),
        Ok(socket) => sys::interface_up(socket, "lo").map_err(fault),
    }
}
