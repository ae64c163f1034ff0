//! The first process of a container (`strata run --init`): starts the command, hands signals on to it, waits for every process
//! that has lost its parent, and ends as the command does.
//!
//! A kernel does not end a first process by a signal that it has not asked for, and leaves it the children of all others; few
//! commands know that. This one has nothing of its own to lose: it has the command's user, rights and root.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, set_child_subreaper, setpgid, wait};
use rustix::termios::tcsetpgrp;

use crate::sys::{self, ExecStrings};

/// What the command line begins with; behind it the program's file, and its words from its own name on.
pub const WORD: &[u8] = b"reap";

/// What a command ends with that could not be run.
const NOT_RUN: i32 = 126;
/// Bytes of what a signal's descriptor says of one (`struct signalfd_siginfo`); its number comes first.
const SIGNAL_BYTES: usize = 128;

/// Runs the command to its end; gives its exit code, or 128 and the number of the signal that ended it.
#[must_use]
pub fn main(words: &[&[u8]]) -> i32 {
    let failed = |text: String| {
        sys::complain(&format!("init: {text}\n"));
        NOT_RUN
    };
    let strings = words.iter().map(|word| CString::new(*word));
    let Ok(mut strings) = strings.collect::<Result<Vec<CString>, _>>() else { return NOT_RUN };
    if strings.len() < 2 {
        return failed(String::from("no command"));
    }
    let file = strings.remove(0);
    let argv = ExecStrings::new(strings);
    let signals = match sys::all_signals() {
        Ok(signals) => signals,
        Err(errno) => return failed(format!("take signals: {}", sys::errno_text(errno))),
    };
    // Where it shares the process ids of others it is not the first, and gets children all the same.
    let _ = set_child_subreaper(Some(getpid()));
    let started = sys::fork(|| {
        let own = getpid();
        // Of a terminal's own keys the command hears by itself. While SIGTTOU is blocked, the terminal can be given away.
        let _ = setpgid(Some(own), Some(own));
        let [terminal, ..] = sys::standard_streams();
        let _ = tcsetpgrp(terminal, own);
        sys::default_signals();
        let errno = sys::exec_as_it_is(&file, &argv);
        if errno == Errno::NOENT { NOT_RUN + 1 } else { NOT_RUN }
    });
    match started {
        Ok(command) => attend(command, &signals),
        Err(errno) => failed(format!("start a process: {}", sys::errno_text(errno))),
    }
}

/// Until the command has ended.
fn attend(command: Pid, signals: &OwnedFd) -> i32 {
    let mut signal = [0; SIGNAL_BYTES];
    loop {
        // One may have ended before the signals were looked at.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == command {
                return code(status);
            }
        }
        if !matches!(rustix::io::read(signals, &mut signal), Ok(SIGNAL_BYTES)) {
            continue;
        }
        let [number, ..] = signal;
        let number = i32::from(number);
        // Its children's, and those of a terminal that is not this one's to read and write.
        if ![libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU].contains(&number) {
            let _ = sys::kill(command.as_raw_nonzero().get(), number as u8);
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or_default())
}
