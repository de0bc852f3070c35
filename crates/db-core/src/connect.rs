//! Connecting outside a pool: waits for a server, and fails at once on errors that waiting cannot fix.

use std::fmt;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use derive_setters::Setters;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;

use crate::class::{Verdict, is_refusal};
use crate::pooler::tracks_prepared_statements;
use crate::redact::redacted;
use crate::{Backoff, Class, Config, Pooler, Repeat};

/// Limits for waiting for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct ConnectRetry {
    /// No attempt starts after this time (default 30 s), and only the first attempt may last longer. Zero: one attempt.
    pub deadline: Duration,
    /// The limit for one attempt (default 5 s), unless the address has a `connect_timeout`.
    pub attempt: Duration,
    /// The first pause between two attempts (default 50 ms). It doubles up to `max_pause`, with jitter.
    pub min_pause: Duration,
    /// The longest pause between two attempts (default 2 s).
    pub max_pause: Duration,
}

impl Default for ConnectRetry {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            attempt: Duration::from_secs(5),
            min_pause: Duration::from_millis(50),
            max_pause: Duration::from_secs(2),
        }
    }
}

/// Opens one connection outside any pool, and retries as `retry` says.
///
/// Retried errors: connection refused or reset, socket or host name missing, server starting up, too many connections. A wrong
/// password, an unknown database or role, and a refused TLS handshake fail at once. Every failed attempt is logged. Dropping
/// the future stops the attempts and closes a half-open connection.
///
/// # Errors
///
/// [`ConnectError`] says where to, how often, how long, and why the last attempt failed.
pub async fn connect(config: &Config, retry: ConnectRetry) -> Result<PgConnection, ConnectError> {
    let options = config.as_sqlx();
    let longest = config.connect_timeout().unwrap_or(retry.attempt);
    let started = Instant::now();
    let mut backoff = Backoff::new(retry.min_pause, retry.max_pause);

    let mut attempt = 0;
    loop {
        attempt += 1;
        let left = retry.deadline.saturating_sub(started.elapsed());
        let limit = if attempt == 1 { longest } else { longest.min(left) };
        let failure = match timeout(limit, dial(config, &options)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(failure)) => failure,
            Err(_) => ConnectFailure::TimedOut(limit),
        };

        let pause = backoff.pause();
        let left = retry.deadline.saturating_sub(started.elapsed());
        if failure.is_final() || left <= pause {
            let waited = started.elapsed();
            return Err(ConnectError { to: config.to_string(), failure, attempts: attempt, waited });
        }
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(to = %config, attempt, %failure, pause_ms, "database not reached yet");
        tokio::time::sleep(pause).await;
    }
}

/// Connects and sends one request: a pooler such as `PgBouncer` accepts logins while the server behind it is down. If a pooler is
/// declared, the request checks that it tracks prepared statements.
async fn dial(config: &Config, options: &PgConnectOptions) -> Result<PgConnection, ConnectFailure> {
    let failed = |error| ConnectFailure::of(&error, config);
    let mut connection =
        with_tls_fallback(config, options.clone().disable_statement_logging()).await.map_err(failed)?;
    match config.pooler() {
        Pooler::None => connection.ping().await.map_err(failed)?,
        Pooler::Transaction => {
            if !tracks_prepared_statements(&mut connection).await.map_err(failed)? {
                return Err(ConnectFailure::no_prepared_statements());
            }
        }
    }
    Ok(connection)
}

/// Opens one connection with these options, which come from [`Config::as_sqlx`]. Tries the TLS modes that `sslmode` allows in
/// libpq's order: `prefer` tries TLS first, `allow` plain text first. The second mode is tried when TLS failed, or when
/// `pg_hba.conf` refused the login, and never after a wrong password.
///
/// Dropping the future closes a half-open connection. There is no time limit.
///
/// # Errors
///
/// The error of the attempt that got further.
pub async fn with_tls_fallback(
    config: &Config,
    options: PgConnectOptions,
) -> Result<PgConnection, sqlx::Error> {
    let (first, second) = config.tls_modes();
    let Some(second) = second else { return options.connect().await };
    let first_error = match options.clone().ssl_mode(first).connect().await {
        Ok(connection) => {
            config.note_fallback(false);
            return Ok(connection);
        }
        Err(error) if is_tls_error(&error) || is_refused(&error) => error,
        Err(error) => return Err(error),
    };
    match options.ssl_mode(second).connect().await {
        Ok(connection) => {
            config.note_fallback(true);
            Ok(connection)
        }
        Err(error) => {
            let (further, other) = if is_refused(&first_error) && !is_refused(&error) {
                (error, first_error)
            } else {
                (first_error, error)
            };
            tracing::debug!(to = %config, other = redacted(&other), "both TLS modes failed to connect");
            Err(further)
        }
    }
}

fn is_tls_error(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(io) => io.kind() == ErrorKind::InvalidData,
        _ => false,
    }
}

/// Whether `pg_hba.conf`, or a pooler that takes TLS only, refused the login.
fn is_refused(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| match error.code().as_deref() {
        Some("28000") => true,
        Some("08P01") => TLS_REQUIRED.iter().any(|text| error.message().contains(text)),
        _ => false,
    })
}

/// The messages with which `PgBouncer` demands TLS.
const TLS_REQUIRED: [&str; 2] = ["SSL required", "TLS connection required"];

/// Why a database could not be reached.
#[derive(Debug, Clone)]
pub struct ConnectError {
    to: String,
    failure: ConnectFailure,
    attempts: u32,
    waited: Duration,
}

impl ConnectError {
    /// Why the last attempt failed.
    #[must_use]
    pub fn failure(&self) -> &ConnectFailure {
        &self.failure
    }

    /// The number of attempts.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The time spent on all attempts.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Replaces the counts by those of all attempts, of which this was the last.
    pub(crate) fn set_total(&mut self, attempts: u32, waited: Duration) {
        self.attempts = attempts;
        self.waited = waited;
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not connect to {}: {}", self.to, self.failure)?;
        if self.attempts > 1 {
            write!(f, " (tried {} times in {:.1} s)", self.attempts, self.waited.as_secs_f64())?;
        }
        Ok(())
    }
}

// No `source`: `failure` already has the driver's text, without the server's C line numbers.
impl std::error::Error for ConnectError {}

/// Why an attempt to connect failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// SQLSTATE 28P01, or no password was given and the server asked for one.
    #[error("the password of role `{0}` was refused (28P01)")]
    WrongPassword(String),
    /// SQLSTATE 28000: unknown role, or `pg_hba.conf` has no entry for this client.
    #[error("role `{role}` may not log in from here: {message} (28000)")]
    LoginRefused {
        /// The role.
        role: String,
        /// The server's message.
        message: String,
    },
    /// SQLSTATE 3D000.
    #[error("there is no database `{0}` on this server (3D000)")]
    NoSuchDatabase(String),
    /// The TLS handshake or the certificates failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// This process may not enter the socket's folder.
    #[error("no permission to open the server's socket: {0}")]
    Forbidden(String),
    /// Nothing listens at the address, or the host name is unknown.
    #[error("no server answers: {0}")]
    NotReached(String),
    /// The server is up and has no room for another session (53300).
    #[error("the server has no room for another session: {0}")]
    NoRoom(String),
    /// The server is up but takes no connections now (57P03).
    #[error("the server is up but takes no connections now: {0}")]
    NotReady(String),
    /// The server is up and refuses the session permanently: the role may not connect to the database (42501), the database
    /// takes no connections (55000), a setting of the session is unknown or invalid (42704, 22023), or the driver does not
    /// support the server's authentication method.
    #[error("the server refuses the session: {0}")]
    Refused(String),
    /// A pooler is in between that was not declared, or that lacks a needed feature.
    #[error("{0}")]
    Pooler(String),
    /// The statements of [`PoolOptions::after_connect`](crate::PoolOptions::after_connect) failed on a new connection.
    #[error("after_connect failed on a new connection: {message}")]
    AfterConnect {
        /// The server's or the driver's message.
        message: String,
        /// Whether a retry would fail in the same way.
        is_final: bool,
    },
    /// No answer within the limit of one attempt.
    #[error("no answer within {:.1} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl ConnectFailure {
    /// Whether waiting cannot fix it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::WrongPassword(_)
                | Self::LoginRefused { .. }
                | Self::NoSuchDatabase(_)
                | Self::Refused(_)
                | Self::Tls(_)
                | Self::Forbidden(_)
                | Self::Pooler(_)
                | Self::AfterConnect { is_final: true, .. }
        )
    }

    pub(crate) fn after_connect(source: &sqlx::Error) -> Self {
        let message = match source.as_database_error().and_then(sqlx::error::DatabaseError::code) {
            Some(code) => format!("{} ({code})", redacted(source)),
            None => redacted(source),
        };
        Self::AfterConnect { message, is_final: Verdict::of_statement(source).repeat == Repeat::Never }
    }

    pub(crate) fn after_connect_through_pooler() -> Self {
        Self::Pooler(
            "after_connect sets up a session, but a pooler in transaction mode shares sessions between clients: remove \
             after_connect, or use the server's own address"
                .to_owned(),
        )
    }

    fn tls(message: String, config: &Config) -> Self {
        if config.verifies_by_default() {
            // Verification is the default, so the message names the parameter that turns it off.
            return Self::Tls(format!(
                "{message}; a server on another machine must prove its identity: pass the authority that signed its certificate as \
                 sslrootcert, or choose another sslmode, such as sslmode=disable in a network that you trust"
            ));
        }
        Self::Tls(message)
    }

    /// `PgBouncer` uses one SQLSTATE for all its own errors, and English texts only.
    fn of_pooler(message: String, config: &Config) -> Self {
        if message.contains("unsupported startup parameter") {
            return Self::Pooler(match config.pooler() {
                Pooler::None => format!(
                    "a pooler such as PgBouncer is in between ({message}): if it is in transaction mode, add pgbouncer=true to the \
                     address; if not, list the parameter in its ignore_startup_parameters"
                ),
                Pooler::Transaction => {
                    format!(
                        "the pooler refused the session ({message}): list the parameter in its ignore_startup_parameters"
                    )
                }
            });
        }
        let has = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
        // An old PgBouncer passes on the server's message without the server's SQLSTATE.
        let is_unknown = |what: &str| message.starts_with(what) && message.ends_with("does not exist");
        if has(&["no such database"]) || is_unknown("database ") {
            return Self::NoSuchDatabase(config.database().to_owned());
        }
        // This may be an unknown role: PgBouncer does not tell the two apart.
        if has(&["authentication failed"]) {
            return Self::WrongPassword(config.user().to_owned());
        }
        if has(&["no such user", "login rejected"]) || has(&TLS_REQUIRED) || is_unknown("role ") {
            return Self::LoginRefused { role: config.user().to_owned(), message };
        }
        if has(&["bouncer config error"]) {
            return Self::Pooler("the pooler's configuration is invalid: see its log".to_owned());
        }
        Self::NotReady(message)
    }

    pub(crate) fn no_prepared_statements() -> Self {
        Self::Pooler(
            "the pooler does not track prepared statements, which every query uses: use PgBouncer 1.21 or later with \
             max_prepared_statements above 0; with an older one, use its session mode without pgbouncer=true, or the server's own \
             address"
                .to_owned(),
        )
    }

    /// Classifies a driver error from connecting to `config`.
    #[must_use]
    pub fn of(source: &sqlx::Error, config: &Config) -> Self {
        let message = redacted(source);
        match source {
            // The driver's error quotes the whole text of the authority.
            sqlx::Error::Tls(_) if message.starts_with("Invalid certificate") => {
                return Self::Tls("sslrootcert contains a certificate that cannot be read".to_owned());
            }
            error if is_tls_error(error) => return Self::tls(message, config),
            // `Config` checks a password but not a role without one, and the driver's error quotes a character of it.
            sqlx::Error::Configuration(_) if message.contains("saslprep") => {
                return Self::WrongPassword(config.user().to_owned());
            }
            // While connecting, the driver reports our own certificate and key by this variant.
            sqlx::Error::Configuration(_) => return Self::Tls(message),
            _ => {}
        }
        if let Some(code) = source.as_database_error().and_then(sqlx::error::DatabaseError::code) {
            return match code.as_ref() {
                "28P01" => Self::WrongPassword(config.user().to_owned()),
                "28000" => Self::LoginRefused { role: config.user().to_owned(), message },
                "3D000" => Self::NoSuchDatabase(config.database().to_owned()),
                "53300" => Self::NoRoom(message),
                "57P03" => Self::NotReady(message),
                "08P01" => Self::of_pooler(message, config),
                code if is_refusal(code) => Self::Refused(format!("{message} ({code})")),
                _ => Self::Other(format!("{message} ({code})")),
            };
        }
        match Class::of(source) {
            Class::NotReached => Self::NotReached(message),
            Class::Refused if matches!(source, sqlx::Error::Protocol(_)) => Self::Refused(message),
            Class::Refused => Self::Forbidden(message),
            _ => Self::Other(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_default_verification_names_the_way_to_turn_it_off() {
        let message = |address: &str| {
            let config = Config::from_url(address).expect("a good address");
            ConnectFailure::of(&sqlx::Error::Tls("no certificate".into()), &config).to_string()
        };

        assert!(
            message("postgres://app@db.example/shop").contains("sslmode=disable in a network that you trust")
        );
        for address in ["postgres://app@db.example/shop?sslmode=verify-full", "postgres://app@localhost/shop"]
        {
            assert_eq!(message(address), "TLS: no certificate");
        }
    }
}
