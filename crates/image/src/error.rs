//! Everything that can go wrong in this crate.

use std::io;
use std::path::{Path, PathBuf};

/// The result of an operation on the store.
pub type Result<T> = std::result::Result<T, Error>;

/// One act on one object that did not work; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file of the host.
    #[error("{act} {}", path.display())]
    File {
        /// What was tried: `open`, `create`, `rename`, …
        act: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No image of this name in the store.
    #[error("no image named {name} in {}", store.display())]
    NoImage {
        /// The name as normalised.
        name: String,
        /// The root of the store.
        store: PathBuf,
    },
    /// A name that is not an image reference.
    #[error("bad image name {name:?}: {reason}")]
    BadName {
        /// The name as given.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A blob whose bytes are not what its name says.
    #[error("corrupt blob sha256:{digest} in {}: {reason}", path.display())]
    CorruptBlob {
        /// The digest that names the blob.
        digest: String,
        /// The file it lies in.
        path: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// A blob that something in the store points to is not there.
    #[error("missing blob sha256:{digest}: expected in {}", path.display())]
    MissingBlob {
        /// The digest that names the blob.
        digest: String,
        /// Where it would lie.
        path: PathBuf,
    },
    /// A JSON document that does not parse or has the wrong shape.
    #[error("parse {what}")]
    Json {
        /// Which document.
        what: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A document or archive that parses but makes no sense.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which document or archive.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes of an archive or layer cannot be read.
    #[error("read {what}")]
    Archive {
        /// Which archive or layer.
        what: String,
        /// What is wrong, and at which entry.
        #[source]
        source: crate::tar::TarError,
    },
    /// A kernel that is not in the store.
    #[error("no kernel {}in {}", id.as_ref().map(|id| format!("{id} ")).unwrap_or_default(), store.display())]
    NoKernel {
        /// The kernel asked for; nothing where any would do.
        id: Option<String>,
        /// The root of the store.
        store: PathBuf,
    },
    /// Something that is in use by another process just now.
    #[error("{what} is in use")]
    InUse {
        /// The kernel or image.
        what: String,
    },
    /// A program of the host that this needs is not installed.
    #[error("{act}: {program} is not installed: install the package {package}")]
    NoTool {
        /// What needs it.
        act: &'static str,
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program of the host that ran and did not do its work.
    #[error("{program} {outcome}: {message}")]
    Tool {
        /// The program.
        program: String,
        /// Its exit status.
        outcome: String,
        /// The end of what it wrote to its standard error.
        message: String,
    },
    /// The caller's step between reading a kernel and storing it.
    #[error("unpack kernel {what}")]
    Unpack {
        /// The kernel.
        what: String,
        /// What the loader says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// True when the object asked for is not there (as opposed to broken).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NoImage { .. } | Error::NoKernel { .. })
    }

    /// Adds act and path to an I/O error.
    pub(crate) fn file(act: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::File { act, path, source }
    }

    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Error {
        let what = what.into();
        move |source| Error::Json { what, source }
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), reason: reason.into() }
    }
}
