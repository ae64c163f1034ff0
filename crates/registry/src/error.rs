//! Everything that can go wrong between here and a registry.

use std::io;
use std::time::Duration;

/// The result of speaking to a registry.
pub type Result<T> = std::result::Result<T, Error>;

/// One act that did not work; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[error("{act}")]
pub struct Error {
    act: String,
    #[source]
    cause: Cause,
}

/// Why an act did not work.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The local store.
    #[error(transparent)]
    Store(#[from] image::Error),
    /// The name of the host is unknown, or nobody can be asked.
    #[error("look up {host}")]
    Lookup {
        /// The host.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No connection, or one that broke.
    #[error("connection to {host}")]
    Connection {
        /// The host.
        host: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The other side says nothing, or next to nothing.
    #[error("{host} stalls: {what} within {} s", after.as_secs_f32())]
    Stalled {
        /// The host.
        host: String,
        /// What did not come.
        what: &'static str,
        /// How long that may take.
        after: Duration,
    },
    /// Both sides do not agree on a secure connection.
    #[error("secure connection to {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// What is wrong, as TLS has it.
        reason: String,
    },
    /// What came is not what the protocol says, or not what was said before.
    #[error("{host} breaks the protocol: {reason}")]
    Protocol {
        /// The host.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// An answer that says no.
    #[error("{host} answers {status}{message}")]
    Status {
        /// The host.
        host: String,
        /// The status of HTTP.
        status: u16,
        /// What the registry says about it, with a colon before it; may be empty.
        message: String,
        /// How long to wait before asking again, if the registry says so.
        retry_after: Option<Duration>,
    },
    /// Credentials that are missing or wrong.
    #[error("{host} wants {}{message}", if *given { "other credentials" } else { "credentials" })]
    Unauthorized {
        /// The registry as its users call it.
        host: String,
        /// Whether credentials were given.
        given: bool,
        /// What the registry says about it, with a colon before it; may be empty.
        message: String,
    },
    /// The registry has no such image.
    #[error("{host} has no such image{message}")]
    NotFound {
        /// The registry as its users call it.
        host: String,
        /// What the registry says about it, with a colon before it; may be empty.
        message: String,
    },
    /// Something that is no image of a kind that is understood.
    #[error("{0}")]
    Unsupported(String),
    /// An index has nothing for the wanted platform.
    #[error("it is not there for {wanted}, only for {offered}")]
    NoPlatform {
        /// What was wanted.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// Bytes that are not those of their name.
    #[error("{host} sends other bytes than asked for: they have the digest {found}")]
    WrongDigest {
        /// The host.
        host: String,
        /// The digest of what came.
        found: image::Digest,
    },
    /// The file of credentials, or a program that keeps them.
    #[error("{0}")]
    Credentials(String),
    /// The file of credentials cannot be read or written.
    #[error("{act} {}", path.display())]
    CredentialFile {
        /// `read`, `write`, …
        act: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Another piece of the same work failed first.
    #[error("called off")]
    CalledOff,
}

impl Error {
    /// `act` failed because of `cause`.
    pub(crate) fn new(act: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Error { act: act.into(), cause: cause.into() }
    }

    /// Why it failed.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }
}

impl Cause {
    /// Whether the same act may work when it is tried again in a moment.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Cause::Connection { source, .. } => {
                // Nobody listens there, or may be reached: that does not change in seconds.
                !matches!(
                    source.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::HostUnreachable
                )
            }
            Cause::Stalled { .. } => true,
            Cause::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502..=504),
            _ => false,
        }
    }
}

/// Says which act a cause belongs to.
pub(crate) trait While<T> {
    /// `act` failed because of this.
    fn while_trying(self, act: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Cause>> While<T> for std::result::Result<T, E> {
    fn while_trying(self, act: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::new(act(), cause))
    }
}

/// Text from a registry, as much of it as one line shows, and nothing that would speak to a terminal.
pub(crate) fn shown(text: &str) -> String {
    const LIMIT: usize = 300;
    let visible =
        |c: char| if c.is_control() { c.escape_default().collect::<String>() } else { c.to_string() };
    let mut shown: String = text.trim().chars().take(LIMIT).map(visible).collect();
    if text.trim().chars().nth(LIMIT).is_some() {
        shown.push('…');
    }
    shown
}
