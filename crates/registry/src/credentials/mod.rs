//! Credentials, and where Docker's tools keep them: `config.json`, or a program that the file names.
//!
//! Source: `docker login` and the `cli/config` packages of the Docker CLI; the credential helper protocol of
//! `docker/docker-credential-helpers`. What else is in the file stays as it is.

mod file;
mod helper;

use std::fmt;

pub use file::CredentialFile;

use crate::error::Cause;

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and what proves it: a password or an access token.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that gets other tokens (OAuth2's refresh token).
    IdentityToken(String),
}

impl Credentials {
    /// `user:password`
    ///
    /// # Errors
    /// There is no colon, or no user.
    pub fn parse(text: &str) -> std::result::Result<Credentials, Cause> {
        let (user, password) = text.split_once(':').unwrap_or_default();
        Credentials::password(user, password)
    }

    /// A user and a password.
    ///
    /// # Errors
    /// One of them is empty, or the user has a colon in it.
    pub fn password(user: &str, password: &str) -> std::result::Result<Credentials, Cause> {
        if user.is_empty() || password.is_empty() || user.contains(':') {
            return Err(Cause::Credentials("credentials are USER:PASSWORD, neither empty".to_string()));
        }
        Ok(Credentials::Password { user: user.to_string(), password: password.to_string() })
    }
}

/// Without the secret, so that no log has it.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password({user:?})"),
            Credentials::IdentityToken(_) => write!(f, "IdentityToken"),
        }
    }
}

/// The name under which Docker keeps what is for `docker.io`.
const DOCKER_IO_KEY: &str = "https://index.docker.io/v1/";

/// The key a registry has in the file and in helpers.
fn key_of(domain: &str) -> &str {
    if domain == "docker.io" { DOCKER_IO_KEY } else { domain }
}

/// The host of a key, which may be a URL: Docker's own rule for finding what older versions wrote.
fn host_of_key(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = rest.split('/').next().unwrap_or_default();
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_two_words_and_never_shown() {
        let parsed = Credentials::parse("me:a:b").unwrap();
        assert_eq!(parsed, Credentials::password("me", "a:b").unwrap());
        assert_eq!(format!("{parsed:?}"), "Password(\"me\")");
        assert_eq!(format!("{:?}", Credentials::IdentityToken("x".into())), "IdentityToken");
        for text in ["", "me", ":x", "me:"] {
            assert!(Credentials::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn keys_of_all_times_name_one_host() {
        for key in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "https://docker.io",
            "https://registry-1.docker.io/v2/",
        ] {
            assert_eq!(host_of_key(key), "docker.io", "{key}");
        }
        assert_eq!(host_of_key("http://reg.example:5000/v1"), "reg.example:5000");
        assert_eq!(key_of("docker.io"), DOCKER_IO_KEY);
    }
}
