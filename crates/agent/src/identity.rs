//! What copies of one machine must not share: the state of the kernel's random numbers, and the time.

use protocol::Renew;
use rustix::fs::OFlags;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::fault::Fault;
use crate::{files, sys};

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
