//! What TLS has to be like.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::ConfigError;

/// What an address says of TLS.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    mode: Option<PgSslMode>,
    root_cert: Option<Authority>,
    cert: Option<Pem>,
    key: Option<Pem>,
    /// `channel_binding=require`: nobody may be in between.
    binds: bool,
}

/// Who signs the certificates that are trusted.
#[derive(Clone)]
enum Authority {
    /// `sslrootcert=system`.
    System,
    Given(Pem),
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => write!(f, "system"),
            Self::Given(pem) => pem.fmt(f),
        }
    }
}

/// Where the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind a Unix socket, where there is no TLS.
    Socket,
    /// On this machine, where nobody can listen.
    Here,
    Elsewhere,
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
    pub(super) fn use_mode(&mut self, mode: PgSslMode) {
        self.mode = Some(mode);
    }

    pub(super) fn has_authority(&self) -> bool {
        self.root_cert.is_some()
    }

    pub(super) fn has_certificate(&self) -> bool {
        self.cert.is_some() || self.key.is_some()
    }

    /// A certificate is of no use without its key, and a key without its certificate. What asks for a verified server is at odds
    /// with a mode that verifies less.
    pub(super) fn checked(&self, place: Place) -> Result<(), ConfigError> {
        let is_full = matches!(self.mode, None | Some(PgSslMode::VerifyFull));
        let is_encrypted = is_full || matches!(self.mode, Some(PgSslMode::Require | PgSslMode::VerifyCa));
        let (parameter, expected) = match (&self.cert, &self.key) {
            (Some(_), None) => ("sslkey", "there, too, since sslcert is"),
            (None, Some(_)) => ("sslcert", "there, too, since sslkey is"),
            _ if self.binds && place == Place::Socket => {
                ("channel_binding", "prefer or disable, since there is no TLS on a Unix socket")
            }
            _ if self.binds && !is_encrypted => (
                "sslmode",
                "verify-full, or left out, since channel_binding=require lets nobody be in between",
            ),
            _ if matches!(self.root_cert, Some(Authority::System)) && !is_full => (
                "sslmode",
                "verify-full, or left out, since sslrootcert=system trusts everybody who has a certificate",
            ),
            _ => return Ok(()),
        };
        Err(ConfigError::Parameter { parameter, expected })
    }

    pub(super) fn set_authority(&mut self, value: &str) -> Result<(), ConfigError> {
        self.root_cert = Some(authority(value)?);
        Ok(())
    }

    pub(super) fn set_certificate(&mut self, value: &str) -> Result<(), ConfigError> {
        self.cert = Some(pem("sslcert", value)?);
        Ok(())
    }

    pub(super) fn set_key(&mut self, value: &str) -> Result<(), ConfigError> {
        self.key = Some(pem("sslkey", value)?);
        Ok(())
    }

    /// The driver cannot bind a password to its channel. What that is for, that nobody is in between, a verified name does, too.
    pub(super) fn set_binding(&mut self, value: &str) -> Result<(), ConfigError> {
        self.binds = match value {
            "require" => true,
            "prefer" | "disable" => false,
            _ => {
                let expected = "one of disable, prefer, require";
                return Err(ConfigError::Parameter { parameter: "channel_binding", expected });
            }
        };
        Ok(())
    }

    pub(super) fn set_mode(&mut self, value: &str) -> Result<(), ConfigError> {
        self.mode = Some(value.parse().map_err(|_| ConfigError::Parameter {
            parameter: "sslmode",
            expected: "one of disable, allow, prefer, require, verify-ca, verify-full",
        })?);
        Ok(())
    }

    /// As the address says, and as libpq reads it: an authority is there to verify by, and a socket has no TLS. Where the address
    /// does not say it, the server is verified off this machine, its name included, and on it TLS is used if the server offers it.
    pub(super) fn mode(&self, place: Place) -> PgSslMode {
        let is_system = matches!(self.root_cert, Some(Authority::System));
        match self.mode {
            _ if place == Place::Socket => PgSslMode::Disable,
            _ if self.binds || is_system => PgSslMode::VerifyFull,
            None if place == Place::Here => PgSslMode::Prefer,
            None => PgSslMode::VerifyFull,
            Some(PgSslMode::Require) => self.encrypted(),
            Some(mode) => mode,
        }
    }

    fn encrypted(&self) -> PgSslMode {
        if self.root_cert.is_some() { PgSslMode::VerifyCa } else { PgSslMode::Require }
    }

    /// The ways to connect, the second after the server refused the first: PostgreSQL's manual, table 34.1 "SSL Mode
    /// Descriptions". The driver itself would not try a second one.
    pub(super) fn ways(&self, place: Place) -> (PgSslMode, Option<PgSslMode>) {
        match self.mode(place) {
            PgSslMode::Allow => (PgSslMode::Disable, Some(self.encrypted())),
            PgSslMode::Prefer if self.root_cert.is_some() => (self.encrypted(), Some(PgSslMode::Disable)),
            PgSslMode::Prefer => (PgSslMode::Prefer, Some(PgSslMode::Disable)),
            mode => (mode, None),
        }
    }

    /// Whether the server is verified because nobody said otherwise.
    pub(super) fn verifies_by_default(&self, place: Place) -> bool {
        self.mode.is_none() && place == Place::Elsewhere
    }

    pub(super) fn apply(&self, options: PgConnectOptions, place: Place) -> PgConnectOptions {
        let options = options.ssl_mode(self.mode(place));
        let options = match &self.root_cert {
            Some(Authority::Given(Pem::File(path))) => options.ssl_root_cert(path),
            Some(Authority::Given(Pem::Text(pem))) => {
                options.ssl_root_cert_from_pem(pem.expose_secret().as_bytes().to_vec())
            }
            // Nothing, in the place of what the driver has found in the environment.
            Some(Authority::System) | None => options.ssl_root_cert_from_pem(Vec::new()),
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

/// The driver takes a text without a certificate for an authority that trusts nobody, and verifies by the others.
fn authority(value: &str) -> Result<Authority, ConfigError> {
    if value == "system" {
        return Ok(Authority::System);
    }
    let given = pem("sslrootcert", value)?;
    let has_certificate = match &given {
        Pem::Text(text) => text.expose_secret().contains(CERTIFICATE),
        Pem::File(path) => std::fs::read(path).is_ok_and(|bytes| {
            bytes.windows(CERTIFICATE.len()).any(|window| window == CERTIFICATE.as_bytes())
        }),
    };
    if !has_certificate {
        let expected = "a certificate as PEM, the path of a file that has one, or system";
        return Err(ConfigError::Parameter { parameter: "sslrootcert", expected });
    }
    Ok(Authority::Given(given))
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

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
