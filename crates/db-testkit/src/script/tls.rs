//! TLS for clients that ask for it, with a certificate that is made for the script.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

/// The names that clients may call the script by.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    /// The certificate, signed by itself, for clients that verify it.
    certificate: NamedTempFile,
}

impl Tls {
    pub(super) fn new() -> Result<Tls, Failure> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(NAMES.map(String::from))?;
        let mut certificate =
            tempfile::Builder::new().prefix("db-testkit-script-").suffix(".pem").tempfile()?;
        certificate.write_all(cert.pem().as_bytes())?;
        // Named, since a process may have no default, or another one.
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![cert.into()], signing_key.into())?;
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), certificate })
    }

    pub(super) fn certificate(&self) -> &Path {
        self.certificate.path()
    }
}
