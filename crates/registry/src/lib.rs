//! Images from and to registries: the OCI distribution protocol 1.1, as every registry since Docker's speaks it.
//!
//! [`pull()`] brings an image into an [`image::Store`], [`push()`] takes one out of it, [`login()`] checks credentials, [`CredentialFile`] is where they are kept.
//!
//! Reading order: `client` (one registry), `auth` and `challenge` (who asks), `http` (redirects, errors), `timeouts` and `pace`, `manifest` (what is
//! taken for an image), `pull` and `download` (streams that are counted, hashed and taken up again), `push` and `upload`,
//! `credentials`.
//!
//! Everything a registry says is taken for a lie until it is seen: lengths, digests, types, where it redirects to. What it can
//! make us hold in memory is bounded, whatever the image: documents by 4 MiB each, a stream by its buffers.
//!
//! Deliberately not here: the store's files and locks (`image`), printing, asking for passwords.
#![forbid(unsafe_code)]

mod auth;
mod challenge;
mod client;
mod credentials;
mod download;
mod error;
mod http;
mod manifest;
mod pace;
mod pull;
mod push;
mod timeouts;
mod trust;
mod upload;
mod work;

use image::Platform;

pub use challenge::Challenge;
pub use credentials::{CredentialFile, Credentials};
pub use error::{Cause, Error, Result};
pub use manifest::{Manifest, parse_config};
pub use pull::{Pulled, pull};
pub use push::{Pushed, push};
pub use timeouts::Timeouts;
pub use trust::Trust;

use client::Client;
use error::While;

/// How to speak to a registry.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who asks; nothing to look into the file.
    pub credentials: Option<Credentials>,
    /// Where credentials are kept; nothing to ask as nobody.
    pub credential_file: Option<CredentialFile>,
    /// How sure the registry must be who it says it is.
    pub trust: Trust,
    /// Which of an image's platforms to take.
    pub platform: Platform,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// Blobs that are moved at once.
    pub parallel: usize,
    /// Larger blobs are sent in pieces of this size, so that a broken connection costs one of them.
    pub chunk_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            credentials: None,
            credential_file: CredentialFile::of_user(),
            trust: Trust::Verify,
            platform: Platform::host(),
            timeouts: Timeouts::default(),
            parallel: 4,
            chunk_bytes: 128 << 20,
        }
    }
}

impl Options {
    /// Reaches the registry `domain` with the credentials there are for it.
    fn connect(&self, domain: &str) -> Result<Client> {
        let credentials = match (&self.credentials, &self.credential_file) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(file)) => {
                file.get(domain).while_trying(|| format!("find credentials for {domain}"))?
            }
            (None, None) => None,
        };
        Client::connect(domain, self.trust, credentials, self.timeouts)
    }
}

/// Whether the registry `domain` knows the one who asks.
///
/// # Errors
/// It cannot be reached, or does not.
pub fn login(domain: &str, options: &Options) -> Result<()> {
    options.connect(domain)?.check_credentials()
}
