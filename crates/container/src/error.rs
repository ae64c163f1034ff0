//! What can go wrong with a container.

use std::io;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something could not be done with a container. Each text is the act and its object; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel said no.
    #[error("{act}")]
    Os {
        /// What was tried, with its object.
        act: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A bundle, an option or a request that makes no sense, or that would let something through.
    #[error("{what}: {fault}")]
    Refused {
        /// The thing that is wrong.
        what: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The host lacks what is asked for.
    #[error("{what}: {fault}")]
    Host {
        /// What is asked for.
        what: String,
        /// What the host has not.
        fault: String,
    },
    /// `config.json` or a state file is no JSON of the right shape.
    #[error("read {what}")]
    Json {
        /// The file.
        what: String,
        /// Where it stops being right.
        source: serde_json::Error,
    },
    /// No container has this id.
    #[error("container {0:?} does not exist")]
    Unknown(String),
    /// A container of this id exists already.
    #[error("container {0:?} exists already")]
    Exists(String),
    /// The container is not in a state in which this can be done.
    #[error("{act} container {id:?}: it is {status}")]
    Status {
        /// What was tried.
        act: &'static str,
        /// Which container.
        id: String,
        /// What it is.
        status: crate::state::Status,
    },
    /// The process inside could not be prepared; the text is its own, with the cause.
    #[error("{0}")]
    Inside(String),
    /// The command could not be executed; the text says why.
    #[error("{text}")]
    Command {
        /// The command and the cause.
        text: String,
        /// 127 if it does not exist, else 126.
        code: u8,
    },
}

impl Error {
    /// A refusal.
    pub(crate) fn refused(what: impl Into<String>, fault: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), fault: fault.into() }
    }

    /// Something that this host lacks.
    pub(crate) fn host(what: impl Into<String>, fault: impl Into<String>) -> Self {
        Self::Host { what: what.into(), fault: fault.into() }
    }

    /// The whole chain on one line, for where only text can go.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    /// The kernel's number, if it was the kernel.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Says which act a failed system call belongs to.
pub(crate) trait While<T> {
    /// `act` failed because of this.
    fn during(self, act: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> While<T> for std::result::Result<T, E> {
    fn during(self, act: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Os { act: act(), source: error.into() })
    }
}
