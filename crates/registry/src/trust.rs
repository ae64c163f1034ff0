//! Whom a connection trusts: the host's certificate authorities, and those that its configuration names for one registry.

use std::fs;
use std::path::Path;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Where Docker and its relatives look for a registry's own authorities: `<folder>/<host:port>/*.crt`.
const FOLDERS: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];
/// Bytes of one such file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How sure a registry must be who it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// TLS with a certificate that is right.
    Verify,
    /// TLS with any certificate, or none at all: what tools call an insecure registry.
    Anything,
}

/// The settings for TLS.
pub(crate) fn tls_config(domain: &str, trust: Trust) -> TlsConfig {
    let builder = TlsConfig::builder();
    if trust == Trust::Anything {
        return builder.disable_verification(true).build();
    }
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::debug!("certificates of this host: {error}");
    }
    roots.extend(loaded.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()));
    // A host without any: those of the browsers are built in.
    let own = own_roots(domain);
    if roots.is_empty() && own.is_empty() {
        return builder.root_certs(RootCerts::WebPki).build();
    }
    roots.extend(own);
    builder.root_certs(RootCerts::new_with_certs(&roots)).build()
}

fn own_roots(domain: &str) -> Vec<Certificate<'static>> {
    FOLDERS.iter().flat_map(|folder| roots_in(&Path::new(folder).join(domain))).collect()
}

/// The certificates of all files that end in `.crt`. What cannot be read is said with `-v` and left out.
fn roots_in(folder: &Path) -> Vec<Certificate<'static>> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let small = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_FILE_BYTES);
        if path.extension().is_none_or(|extension| extension != "crt") || !small {
            continue;
        }
        let Ok(bytes) = fs::read(&path) else {
            tracing::info!("{} cannot be read", path.display());
            continue;
        };
        let before = found.len();
        for item in parse_pem(&bytes) {
            if let Ok(PemItem::Certificate(certificate)) = item {
                found.push(certificate);
            }
        }
        tracing::info!("{}: {} certificates", path.display(), found.len() - before);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_taken_from_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        fs::write(folder.path().join("ca.crt"), format!("{pem}{pem}")).unwrap();
        fs::write(folder.path().join("other.txt"), pem).unwrap();
        fs::write(folder.path().join("broken.crt"), "-----BEGIN CERTIFICATE-----\n%%%").unwrap();
        fs::create_dir(folder.path().join("folder.crt")).unwrap();
        assert_eq!(roots_in(folder.path()).len(), 2);
        assert!(roots_in(&folder.path().join("none")).is_empty());
    }
}
