//! What copies of one machine must not share: the state of the kernel's random numbers, the time, the name, the id.
//!
//! Absent: the card's addresses, which [`network`](crate::network) has from the host; `/proc/sys/kernel/random/boot_id`, which cannot be changed and says the truth: the copies were booted together. The
//! vsock address too: nobody but the machine's own host ever sees it.

use alloc::format;
use alloc::string::ToString;

use protocol::{Identity, Renew};
use rustix::fs::{self, OFlags};
use rustix::system::{sethostname, uname};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::fault::Fault;
use crate::{files, mounts, sys};

/// machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";

/// Mixes the host's random bits into the kernel's pool, makes it draw from there at once, and sets the clock.
///
/// # Errors
/// The kernel's.
pub fn renew(renew: &Renew) -> Result<(), Fault> {
    let pool = files::open("/dev/urandom", OFlags::RDWR)?;
    sys::add_entropy(&pool, &renew.seed).map_err(|errno| Fault::os("seed", "/dev/urandom", errno))?;
    const NS: u64 = 1_000_000_000;
    let seconds = i64::try_from(renew.clock_ns / NS).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: (renew.clock_ns % NS) as i64 };
    clock_settime(ClockId::Realtime, time).map_err(|errno| Fault::os("set", "the clock", errno))
}

/// Gives the machine another name, where the kernel and files say it, and its id. Programs that have read them before keep what
/// they read.
///
/// # Errors
/// The kernel's, or that of a root that cannot be written.
pub fn identify(identity: &Identity) -> Result<(), Fault> {
    let name = &identity.hostname;
    if !name.is_empty() {
        let old = uname().nodename().to_string_lossy().to_string();
        sethostname(name.as_bytes()).map_err(|errno| Fault::os("set host name", name, errno))?;
        mounts::rename(&old, name);
    }
    // An image without the folder has no use for the file.
    if fs::stat("/etc").is_err() {
        return Ok(());
    }
    files::write(MACHINE_ID, &format!("{}\n", identity.machine_id_text()))
}
