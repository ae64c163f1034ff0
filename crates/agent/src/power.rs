//! The end of a machine.

use core::time::Duration;

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{WaitOptions, getpid, wait};
use rustix::system::{RebootCommand, reboot};

use crate::{console, files, sys};

/// How long killed processes may take to be gone; one in an uninterruptible wait never is.
const KILL_PATIENCE_MS: u32 = 2000;

/// Kills everything, writes everything back and powers off. Never returns: a PID 1 that did would
/// panic the kernel.
///
/// In any other process, where killing everything would be a catastrophe, it only exits.
pub fn off() -> ! {
    if getpid().as_raw_nonzero().get() != 1 {
        sys::exit_now(2);
    }
    kill_all();
    rustix::fs::sync();
    // Fails where the root is no file system on a disk; then there is nothing to keep.
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    for command in [RebootCommand::PowerOff, RebootCommand::Restart] {
        if let Err(errno) = reboot(command) {
            console::report(&alloc::format!("power off: {}", sys::errno_text(errno)));
        }
    }
    loop {
        files::sleep(Duration::from_secs(3600));
    }
}

fn kill_all() {
    const SIGKILL: u8 = 9;
    // -1 is everyone but PID 1 itself.
    let _ = sys::kill(-1, SIGKILL);
    let mut waited = 0;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) if waited < KILL_PATIENCE_MS => {
                files::sleep(Duration::from_millis(1));
                waited += 1;
            }
            Ok(None) | Err(_) => return,
        }
    }
}
