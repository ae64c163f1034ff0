//! Files, directories and waiting, without the standard library.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::nanosleep;
use rustix::time::Timespec;

use crate::fault::Fault;

/// Far above any file the agent reads; an image can hold anything under any name.
const MAX_FILE: usize = 4 << 20;

/// Waits.
pub fn sleep(time: Duration) {
    let secs = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let _ = nanosleep(&Timespec { tv_sec: secs, tv_nsec: i64::from(time.subsec_nanos()) });
}

/// Reads a small text file; bytes that are not UTF-8 become U+FFFD.
///
/// # Errors
/// The kernel's, or that the file is larger than 4 MiB.
pub fn read(path: &str) -> Result<String, Fault> {
    read_bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a small file.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(path: &str) -> Result<Vec<u8>, Fault> {
    let fault = |errno| Fault::os("read", path, errno);
    let file =
        fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).map_err(fault)?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match rustix::io::read(&file, &mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(_) if bytes.len() > MAX_FILE => return Err(Fault::new("read", path, "larger than 4 MiB")),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fault(errno)),
        }
    }
}

/// Creates or replaces a small file.
///
/// # Errors
/// The kernel's.
pub fn write(path: &str, text: &str) -> Result<(), Fault> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file =
        fs::open(path, flags, Mode::from_raw_mode(0o644)).map_err(|errno| Fault::os("write", path, errno))?;
    write_all(&file, text.as_bytes()).map_err(|errno| Fault::os("write", path, errno))
}

/// Writes everything to a descriptor that blocks.
///
/// # Errors
/// The kernel's.
pub fn write_all(file: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Makes a directory and all above it, where absent.
///
/// # Errors
/// The kernel's, with the directory it was about.
pub fn make_dirs(path: &str, mode: u32) -> Result<(), Fault> {
    let mut at = 0;
    while at < path.len() {
        let end = path[at + 1..].find('/').map_or(path.len(), |next| at + 1 + next);
        match fs::mkdir(&path[..end], Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A parent on a read-only or foreign file system may be there all the same.
            Err(_) if fs::stat(&path[..end]).is_ok() => {}
            Err(errno) => return Err(Fault::os("make directory", &path[..end], errno)),
        }
        at = end;
    }
    match fs::stat(path) {
        Ok(stat) if fs::FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(()),
        Ok(_) => Err(Fault::os("make directory", path, Errno::NOTDIR)),
        Err(errno) => Err(Fault::os("make directory", path, errno)),
    }
}

/// Opens an existing file for reading, or for reading and writing.
///
/// # Errors
/// The kernel's.
pub fn open(path: &str, flags: OFlags) -> Result<OwnedFd, Fault> {
    fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| Fault::os("open", path, errno))
}

/// `base` and `path` as one absolute path; an absolute `path` stands for itself.
#[must_use]
pub fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        return String::from(path);
    }
    format!("{}/{path}", base.strip_suffix('/').unwrap_or(base))
}
