//! Why something was not done.

use alloc::format;
use alloc::string::String;

use rustix::io::Errno;

/// What this crate returns.
pub type Result<T> = core::result::Result<T, Error>;

/// The act, its object, and the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What was being done: `open`.
    pub act: &'static str,
    /// To what; bytes that are no text are replaced.
    pub path: String,
    /// Why it did not work.
    pub cause: Cause,
}

/// Why something did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The kernel's word.
    Os(Errno),
    /// What was asked for makes no sense.
    Invalid(&'static str),
}

impl Error {
    pub(crate) fn os(act: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
        let path = String::from_utf8_lossy(path).into_owned();
        move |errno| Error { act, path, cause: Cause::Os(errno) }
    }

    pub(crate) fn invalid(act: &'static str, path: &[u8], reason: &'static str) -> Error {
        let path = String::from_utf8_lossy(path).into_owned();
        Error { act, path, cause: Cause::Invalid(reason) }
    }

    /// The exit code of a process that ends with this: 2 for what is not there, 3 for what makes no sense, 4 for what may not be
    /// written, else 1.
    pub fn code(&self) -> u8 {
        match self.cause {
            Cause::Os(Errno::NOENT) => 2,
            Cause::Os(Errno::NOTDIR | Errno::LOOP) | Cause::Invalid(_) => 3,
            Cause::Os(Errno::ROFS) => 4,
            Cause::Os(_) => 1,
        }
    }

    /// One line; `words` says what an error of the kernel is.
    pub fn line(&self, words: impl FnOnce(Errno) -> String) -> String {
        let cause = match self.cause {
            Cause::Os(errno) => words(errno),
            Cause::Invalid(reason) => String::from(reason),
        };
        let path: String = self.path.chars().flat_map(char::escape_debug).collect();
        match path.as_str() {
            "" => format!("{}: {cause}", self.act),
            path => format!("{} {path}: {cause}", self.act),
        }
    }
}
