//! Waiting for a process in the foreground: signals go to it, its terminal is carried.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Result, While};
use crate::sys::{self, SignalMask};
use crate::verbs::{Exit, Running};

/// Signals that are about this process, not about the container's.
const OWN: [i32; 4] = [libc::SIGCHLD, libc::SIGPIPE, libc::SIGTTIN, libc::SIGTTOU];

/// How long nothing happens before it counts as idle: longer than what ends at once takes.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Where a terminal's keys come from and its text goes.
#[derive(Debug)]
pub struct Streams<'a> {
    /// Keys.
    pub input: Option<BorrowedFd<'a>>,
    /// Text.
    pub output: BorrowedFd<'a>,
}

/// Signals blocked from here on, to be read by [`Running::attend`]. Made before the process is, so that none is lost.
#[derive(Debug)]
pub struct Signals {
    fd: std::os::fd::OwnedFd,
    before: SignalMask,
}

impl Signals {
    /// Blocks them.
    ///
    /// # Errors
    /// The kernel gives no descriptor.
    pub fn block() -> Result<Self> {
        let act = || "take signals over".to_owned();
        let before = sys::block_signals().during(act)?;
        Ok(Self { fd: sys::signal_fd().during(act)?, before })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        sys::restore_signals(&self.before);
    }
}

impl Running {
    /// Waits for its end; meanwhile signals reach it, and its terminal, if this process has the controlling end, is
    /// carried to and from `streams`. `when_idle` is called once, as soon as nothing happens for a tenth of a second.
    ///
    /// # Errors
    /// It is no child of this process.
    pub fn attend(&self, signals: &Signals, streams: &Streams<'_>, when_idle: fn()) -> Result<Exit> {
        let mut idle_after = Some(IDLE);
        let mut input = streams.input.filter(|_| self.console().is_some());
        let mut console = self.console();
        resize(console, streams.output);
        loop {
            let end = self.pidfd();
            let mut polled = [
                PollFd::from_borrowed_fd(end, PollFlags::IN),
                PollFd::new(&signals.fd, PollFlags::IN),
                PollFd::from_borrowed_fd(console.unwrap_or(end), PollFlags::IN),
                PollFd::from_borrowed_fd(input.unwrap_or(end), PollFlags::IN),
            ];
            match poll(&mut polled, idle_after.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => {
                    idle_after = None;
                    when_idle();
                    continue;
                }
                polled => polled.during(|| "wait for the container".to_owned())?,
            };
            let ready = polled.map(|fd| !fd.revents().is_empty());
            if ready[1] {
                self.pass_signals(signals, console, streams.output);
            }
            if let (true, Some(from)) = (ready[2], console)
                && !carry(from, streams.output)
            {
                console = None;
            }
            if let (true, Some(from), Some(to)) = (ready[3], input, console)
                && !carry(from, to)
            {
                input = None;
            }
            if ready[0] && (console.is_none() || !ready[2]) {
                return self.wait();
            }
        }
    }

    fn pass_signals(&self, signals: &Signals, console: Option<BorrowedFd<'_>>, output: BorrowedFd<'_>) {
        while let Some(signal) = sys::next_signal(signals.fd.as_fd()) {
            if signal == libc::SIGWINCH {
                resize(console, output);
            } else if !OWN.contains(&signal) {
                // It may have ended already.
                let _ = self.signal(signal);
            }
        }
    }
}

/// Gives a terminal the size of another.
fn resize(console: Option<BorrowedFd<'_>>, like: BorrowedFd<'_>) {
    if let (Some(console), Ok(size)) = (console, rustix::termios::tcgetwinsize(like)) {
        // One that is going away has no size.
        let _ = rustix::termios::tcsetwinsize(console, size);
    }
}

/// Carries what there is; whether more may come.
fn carry(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut bytes = [0; 16 << 10];
    let read = match rustix::io::read(from, &mut bytes) {
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
        // EIO is how a terminal says that nobody has its other end open.
        Ok(0) | Err(_) => return false,
        Ok(read) => read,
    };
    let mut left = &bytes[..read];
    while !left.is_empty() {
        match rustix::io::write(to, left) {
            Ok(written) => left = &left[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
