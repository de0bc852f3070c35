//! What TLS has to be like.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::ConfigError;

/// What an address says of TLS.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    mode: Option<PgSslMode>,
    root_cert: Option<Pem>,
    cert: Option<Pem>,
    key: Option<Pem>,
}

/// What is in a file, or in the address itself. It may be a key, so `Debug` shows nothing of it.
#[derive(Clone)]
enum Pem {
    File(String),
    Text(SecretString),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{path}"),
            Self::Text(_) => write!(f, "(PEM)"),
        }
    }
}

impl Tls {
    /// Takes a parameter of an address, if it is one of these.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Option<Result<(), ConfigError>> {
        let (parameter, place) = match name {
            "sslmode" => return Some(self.set_mode(value)),
            "sslrootcert" => ("sslrootcert", &mut self.root_cert),
            "sslcert" => ("sslcert", &mut self.cert),
            "sslkey" => ("sslkey", &mut self.key),
            _ => return None,
        };
        Some(pem(parameter, value).map(|pem| *place = Some(pem)))
    }

    /// A certificate is of no use without its key, and a key without its certificate.
    pub(super) fn checked(&self) -> Result<(), ConfigError> {
        let (parameter, expected) = match (&self.cert, &self.key) {
            (Some(_), None) => ("sslkey", "there, too, since sslcert is"),
            (None, Some(_)) => ("sslcert", "there, too, since sslkey is"),
            _ => return Ok(()),
        };
        Err(ConfigError::Parameter { parameter, expected })
    }

    fn set_mode(&mut self, value: &str) -> Result<(), ConfigError> {
        self.mode = Some(value.parse().map_err(|_| ConfigError::Parameter {
            parameter: "sslmode",
            expected: "one of disable, allow, prefer, require, verify-ca, verify-full",
        })?);
        Ok(())
    }

    /// As the address says; otherwise, off this machine, the server is verified, its name included, and on it, where nobody
    /// can listen, TLS is used if the server offers it.
    fn mode(&self, on_this_machine: bool) -> PgSslMode {
        let default = if on_this_machine { PgSslMode::Prefer } else { PgSslMode::VerifyFull };
        self.mode.unwrap_or(default)
    }

    /// Whether the server is verified because nobody said otherwise.
    pub(super) fn verifies_by_default(&self, on_this_machine: bool) -> bool {
        self.mode.is_none() && !on_this_machine
    }

    pub(super) fn apply(&self, options: PgConnectOptions, on_this_machine: bool) -> PgConnectOptions {
        let options = options.ssl_mode(self.mode(on_this_machine));
        let options = match &self.root_cert {
            Some(Pem::File(path)) => options.ssl_root_cert(path),
            Some(Pem::Text(pem)) => options.ssl_root_cert_from_pem(pem.expose_secret().as_bytes().to_vec()),
            None => options,
        };
        let options = match &self.cert {
            Some(Pem::File(path)) => options.ssl_client_cert(path),
            Some(Pem::Text(pem)) => options.ssl_client_cert_from_pem(pem.expose_secret()),
            None => options,
        };
        match &self.key {
            Some(Pem::File(path)) => options.ssl_client_key(path),
            Some(Pem::Text(pem)) => options.ssl_client_key_from_pem(pem.expose_secret()),
            None => options,
        }
    }
}

/// A PEM text as it is, or the path of a file that has it.
fn pem(parameter: &'static str, value: &str) -> Result<Pem, ConfigError> {
    if is_pem(value) {
        return Ok(Pem::Text(SecretString::from(value)));
    }
    file(parameter, value).map(Pem::File)
}

/// Whether it is PEM, and not the path of a file that has it.
pub(crate) fn is_pem(text: &str) -> bool {
    text.trim_start().starts_with("-----BEGIN ")
}

/// A file that is missing would look like a server that is, and be waited for.
fn file(parameter: &'static str, path: &str) -> Result<String, ConfigError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(_) => {
            Err(ConfigError::Parameter { parameter, expected: "PEM, or the path of a file that can be read" })
        }
    }
}
