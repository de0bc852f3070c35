//! The TLS parameters of an address.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::ConfigError;

/// The TLS parameters of an address.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    mode: Option<PgSslMode>,
    root_cert: Option<Authority>,
    cert: Option<Pem>,
    key: Option<Pem>,
    /// `channel_binding=require`.
    requires_binding: bool,
}

/// The authority whose certificates are trusted.
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
    /// On this machine.
    Local,
    Remote,
}

/// A file, or the text itself. The text may be a key, so `Debug` hides it.
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

    /// Checks the parameters against each other: a certificate needs its key and a key its certificate, and a parameter that
    /// demands verification contradicts an `sslmode` that verifies less.
    pub(super) fn checked(&self, place: Place) -> Result<(), ConfigError> {
        let is_full = matches!(self.mode, None | Some(PgSslMode::VerifyFull));
        let is_encrypted = is_full || matches!(self.mode, Some(PgSslMode::Require | PgSslMode::VerifyCa));
        let (parameter, expected) = match (&self.cert, &self.key) {
            (Some(_), None) => ("sslkey", "given, since sslcert is given"),
            (None, Some(_)) => ("sslcert", "given, since sslkey is given"),
            _ if self.requires_binding && place == Place::Socket => {
                ("channel_binding", "prefer or disable, since there is no TLS on a Unix socket")
            }
            _ if self.requires_binding && !is_encrypted => (
                "sslmode",
                "verify-full, or left out, since channel_binding=require demands a verified server",
            ),
            _ if matches!(self.root_cert, Some(Authority::System)) && !is_full => (
                "sslmode",
                "verify-full, or left out, since sslrootcert=system accepts certificates of any server",
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

    /// The driver does not support channel binding. A verified host name gives the same protection against a server in between.
    pub(super) fn set_binding(&mut self, value: &str) -> Result<(), ConfigError> {
        self.requires_binding = match value {
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

    /// The effective mode, with libpq's rules: an authority implies verification, and a socket has no TLS. Without `sslmode`, a
    /// remote server is verified with its name, and a local server uses TLS if it offers TLS.
    pub(super) fn mode(&self, place: Place) -> PgSslMode {
        let is_system = matches!(self.root_cert, Some(Authority::System));
        match self.mode {
            _ if place == Place::Socket => PgSslMode::Disable,
            _ if self.requires_binding || is_system => PgSslMode::VerifyFull,
            None if place == Place::Local => PgSslMode::Prefer,
            None => PgSslMode::VerifyFull,
            Some(PgSslMode::Require) => self.encrypted(),
            Some(mode) => mode,
        }
    }

    fn encrypted(&self) -> PgSslMode {
        if self.root_cert.is_some() { PgSslMode::VerifyCa } else { PgSslMode::Require }
    }

    /// The modes to try. The second is tried after the server refused the first: PostgreSQL's manual, table 34.1 "SSL Mode
    /// Descriptions". The driver itself does not try a second mode.
    pub(super) fn modes(&self, place: Place) -> (PgSslMode, Option<PgSslMode>) {
        match self.mode(place) {
            PgSslMode::Allow => (PgSslMode::Disable, Some(self.encrypted())),
            PgSslMode::Prefer if self.root_cert.is_some() => (self.encrypted(), Some(PgSslMode::Disable)),
            PgSslMode::Prefer => (PgSslMode::Prefer, Some(PgSslMode::Disable)),
            mode => (mode, None),
        }
    }

    /// Whether the server is verified only because no mode was given.
    pub(super) fn verifies_by_default(&self, place: Place) -> bool {
        self.mode.is_none() && place == Place::Remote
    }

    pub(super) fn apply(&self, options: PgConnectOptions, place: Place) -> PgConnectOptions {
        let options = options.ssl_mode(self.mode(place));
        let options = match &self.root_cert {
            Some(Authority::Given(Pem::File(path))) => options.ssl_root_cert(path),
            Some(Authority::Given(Pem::Text(pem))) => {
                options.ssl_root_cert_from_pem(pem.expose_secret().as_bytes().to_vec())
            }
            // An empty text replaces the file that the driver found in the environment.
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

/// Checks that the text contains a certificate: the driver accepts a text without one and silently verifies by the other
/// authorities.
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
        let expected = "a certificate as PEM, the path of a file that contains one, or system";
        return Err(ConfigError::Parameter { parameter: "sslrootcert", expected });
    }
    Ok(Authority::Given(given))
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// A PEM text, or the path of a readable file.
fn pem(parameter: &'static str, value: &str) -> Result<Pem, ConfigError> {
    if is_pem(value) {
        return Ok(Pem::Text(SecretString::from(value)));
    }
    file(parameter, value).map(Pem::File)
}

/// Whether the text is PEM and not a file path.
pub(crate) fn is_pem(text: &str) -> bool {
    text.trim_start().starts_with("-----BEGIN ")
}

/// Checks that the file can be opened. Without the check, a missing file would look like a missing server, and be retried.
fn file(parameter: &'static str, path: &str) -> Result<String, ConfigError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(_) => {
            Err(ConfigError::Parameter { parameter, expected: "PEM, or the path of a file that can be read" })
        }
    }
}
