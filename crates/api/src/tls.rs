//! TLS, where nobody is let in without a certificate of the right authority: what docker calls `--tlsverify`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// The files of a server that knows its clients: PEM, as docker has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of those who sign the clients' certificates: `ca.pem`.
    pub ca: PathBuf,
    /// The server's certificate, and those between it and its authority: `cert.pem`.
    pub cert: PathBuf,
    /// The server's private key: `key.pem`.
    pub key: PathBuf,
}

/// Why TLS cannot be spoken: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TlsError {
    path: PathBuf,
    reason: String,
}

impl TlsError {
    fn of<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> TlsError {
        move |error| TlsError { path: path.to_owned(), reason: error.to_string() }
    }
}

impl Tls {
    /// Reads the files, and makes what welcomes connections.
    ///
    /// # Errors
    /// A file cannot be read, or is not what its name says.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(TlsError::of(&self.ca))?;
        }
        // Without this nobody in particular would be let in: the connection ends when no certificate comes.
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(TlsError::of(&self.ca))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(TlsError::of(&self.key))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::of(&self.cert))?
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates(&self.cert)?, key)
            .map_err(TlsError::of(&self.cert))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// All certificates of a file, of which there is one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read.map_err(TlsError::of(path))? {
        none if none.is_empty() => Err(TlsError::of(path)("no certificate is in it")),
        some => Ok(some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let tls = Tls { ca: at("ca.pem"), cert: at("cert.pem"), key: at("key.pem") };
        let error = |tls: &Tls| tls.acceptor().err().unwrap().to_string();
        assert!(error(&tls).contains("ca.pem: "), "{}", error(&tls));
        std::fs::write(at("ca.pem"), "hello\n").unwrap();
        assert!(error(&tls).contains("ca.pem: no certificate is in it"), "{}", error(&tls));
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(at("ca.pem"), nonsense).unwrap();
        assert!(error(&tls).contains("ca.pem: "), "{}", error(&tls));
    }
}
