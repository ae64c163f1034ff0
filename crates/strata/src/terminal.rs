//! The terminal Strata runs on: raw mode, and the promise that it is undone on every way out.
//!
//! Ways out: [`Raw`] is dropped (return, error, and unwinding), or a panic in any thread reaches the hook of
//! [`restore_on_panic`]. Signals that end the program are turned into an orderly return by [`crate::signals`]; after
//! `kill -9` a [`keeper`] does it.

mod keeper;

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use crate::failure::{Outcome, While};
use keeper::Keeper;

/// How the terminal was before raw mode; nothing while it is as its owner left it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// While this lives, the terminal at standard input hands over every key as it is typed, or shows nothing of it.
#[derive(Debug)]
pub struct Raw {
    _keeper: Option<Keeper>,
}

impl Raw {
    /// Switches the terminal at standard input to raw mode.
    ///
    /// # Errors
    /// Standard input is not a terminal, or its mode cannot be changed.
    pub fn enter() -> Outcome<Self> {
        Self::change("switch the terminal to raw mode", Termios::make_raw)
    }

    /// Has the terminal at standard input hand over whole lines, and show nothing of what is typed but the ends of them.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub fn hide() -> Outcome<Self> {
        Self::change("hide what is typed", |mode| {
            mode.local_modes.remove(LocalModes::ECHO);
            mode.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        })
    }

    fn change(act: &str, change: impl FnOnce(&mut Termios)) -> Outcome<Self> {
        let act = || act.to_owned();
        let before = termios::tcgetattr(io::stdin()).while_trying(act)?;
        let mut keeper = Keeper::start();
        let mut raw = before.clone();
        change(&mut raw);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let set = termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        keeper.iter_mut().for_each(Keeper::is_raw_now);
        let guard = Self { _keeper: keeper };
        set.while_trying(act)?;
        Ok(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was. Does nothing when it is not in raw mode.
fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// As [`restore`], in a signal handler: if the mode is just being changed by the thread that was interrupted, nothing is done.
pub fn restore_in_signal() {
    if let Ok(before) = BEFORE.try_lock()
        && let Some(before) = before.as_ref()
    {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
    }
}

/// Makes a panic in any thread restore the terminal before its message is printed.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        print(info);
    }));
}

/// Whether standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Rows and columns of the terminal at standard output, else at standard input; 24 × 80 where there is none.
pub fn size() -> (u16, u16) {
    let size = termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// Standard error for log lines: in raw mode a line feed alone does not return the carriage.
#[derive(Debug)]
pub struct LogWriter(());

impl LogWriter {
    /// Writes to standard error.
    pub fn new() -> Self {
        Self(())
    }
}

impl Write for LogWriter {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let raw = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let mut out = io::stderr().lock();
        if !raw {
            return out.write(text);
        }
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => out.write_all(line).and_then(|()| out.write_all(b"\r\n"))?,
                None => out.write_all(line)?,
            }
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
