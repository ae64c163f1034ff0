//! Everything that can go wrong in a build.

use std::io;
use std::path::PathBuf;

/// The result of a build or a part of it.
pub type Result<T> = std::result::Result<T, Error>;

/// Where in a Containerfile, and what there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An instruction that is none, or cannot be carried out as it stands.
    #[error("{file}:{line}: {reason}")]
    Line {
        /// The Containerfile, as the user named it.
        file: String,
        /// The line the instruction begins in, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// An instruction that failed.
    #[error("{file}:{line}: {instruction}")]
    Step {
        /// The Containerfile.
        file: String,
        /// The line the instruction begins in, from 1.
        line: usize,
        /// Its first words.
        instruction: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// Something about the build as a whole.
    #[error("{0}")]
    Invalid(String),
    /// The store, or an image in it.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A file of the context or of the scratch folder.
    #[error("{act} {}", path.display())]
    File {
        /// What was tried.
        act: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A layer that cannot be written.
    #[error("write {path:?} into the layer")]
    Layer {
        /// Of the file in the image.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A command that could not be run, or an image that could not be brought.
    #[error("{act}")]
    Outside {
        /// What was tried.
        act: String,
        /// Why it did not work.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A command of RUN that failed.
    #[error("the command ended with exit code {0}")]
    Command(u8),
}

impl Error {
    pub(crate) fn file(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { act, path, source }
    }

    pub(crate) fn layer(path: &[u8]) -> impl FnOnce(io::Error) -> Error {
        let path = format!("/{}", String::from_utf8_lossy(path));
        move |source| Error::Layer { path, source }
    }
}
