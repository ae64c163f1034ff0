//! `run`: create, start, and what is needed to wait for the end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{WaitIdOptions, WaitIdStatus, waitid};

use super::create::{CreateOptions, Start};
use super::{Runtime, delete};
use crate::error::{Result, While};
use crate::hooks::{self, Point};
use crate::state::{Folder, Record, Status};
use crate::sys::{self, Child};

/// A process of a container that is this process's child.
#[derive(Debug)]
pub struct Running {
    child: Child,
    console: Option<OwnedFd>,
    container: Option<(Folder, Box<Record>)>,
}

impl Runtime {
    /// Makes a container and starts it at once.
    ///
    /// # Errors
    /// As `create` and `start`; nothing is left then.
    pub fn run(&self, options: &CreateOptions) -> Result<Running> {
        let made = self.make(options, Start::AtOnce)?;
        let state = made.record.state_as(&made.folder, Status::Running);
        if let Err(error) = hooks::run(&made.record.spec, Point::Poststart, &state) {
            delete::remove(&made.folder, &made.record)?;
            return Err(error);
        }
        let container = Some((made.folder, Box::new(made.record)));
        Ok(Running { child: made.child, console: made.console, container })
    }
}

impl Running {
    pub(super) fn new(child: Child, console: Option<OwnedFd>) -> Self {
        Self { child, console, container: None }
    }

    /// Its id as the host sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Its descriptor: readable when it has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// The controlling end of its terminal, if it has one that nobody else was given.
    #[must_use]
    pub fn console(&self) -> Option<BorrowedFd<'_>> {
        self.console.as_ref().map(AsFd::as_fd)
    }

    /// Gives its terminal a new size; one without a terminal has none.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let Some(console) = self.console() else { return Ok(()) };
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(console, size).during(|| "resize the terminal".to_owned())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::signal_process(self.pidfd(), signal).during(|| format!("send signal {signal}"))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It is no child of this process.
    pub fn wait(&self) -> Result<Exit> {
        let act = || format!("wait for process {}", self.child.pid);
        loop {
            let ended = waitid(rustix::process::WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED);
            match ended {
                Err(rustix::io::Errno::INTR) => {}
                Ok(Some(status)) => return Ok(Exit::of(&status)),
                Ok(None) => {}
                Err(error) => return Err(error).during(act),
            }
        }
    }

    /// Removes the container that was run, with all that is left in it.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn delete(&self) -> Result<()> {
        match &self.container {
            Some((folder, record)) => delete::remove(folder, record),
            None => Ok(()),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    fn of(status: &WaitIdStatus) -> Self {
        let number = |n: Option<i32>| n.and_then(|n| u8::try_from(n).ok());
        match number(status.terminating_signal()) {
            Some(signal) => Self::Signal(signal),
            None => Self::Code(status.exit_status().map_or(u8::MAX, |code| code as u8)),
        }
    }

    /// As shells tell it: 128 + n for signal n.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}
