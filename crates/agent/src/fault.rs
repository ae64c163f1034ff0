//! What goes wrong, in the three parts the host shows: the act, its object, the cause. Written out
//! by hand rather than with a derive macro, which the agent's own build would compile again.

use alloc::string::{String, ToString};
use core::fmt;

use protocol::Failure;
use rustix::io::Errno;

/// The most of a text that is kept, in characters: a command may be megabytes long, a message may not.
const MAX_TEXT: usize = 1000;

fn clip(text: String) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text,
        Some((at, _)) => alloc::format!("{}…", &text[..at]),
    }
}

/// Why the agent could not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What was being done: "mount", "read".
    pub act: &'static str,
    /// To what; may be empty.
    pub object: String,
    /// Why it did not work.
    pub cause: String,
}

impl Fault {
    /// A fault with a cause of our own.
    pub fn new(act: &'static str, object: impl ToString, cause: impl ToString) -> Self {
        Self { act, object: clip(object.to_string()), cause: clip(cause.to_string()) }
    }

    /// A fault the kernel found.
    pub fn os(act: &'static str, object: impl ToString, errno: Errno) -> Self {
        Self::new(act, object, crate::sys::errno_text(errno))
    }

    /// The answer to the host that asked for the process `exec`.
    #[must_use]
    pub fn into_failure(self, exec: u32, code: u8) -> Failure {
        Failure { exec, code, act: self.act.to_string(), object: self.object, cause: self.cause }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.act)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl core::error::Error for Fault {}
