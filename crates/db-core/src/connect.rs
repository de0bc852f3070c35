//! Waiting for a server, and failing at once on what waiting cannot mend.

use std::fmt;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use derive_setters::Setters;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;

use crate::class::{Verdict, is_refusal};
use crate::pooler::follows_statements;
use crate::{Backoff, Class, Config, Pooler, Repeat, error};

/// How long to wait for a server, and how often to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct ConnectRetry {
    /// No attempt begins after this time [30 s], and none but the first goes on longer. Zero means one attempt.
    pub deadline: Duration,
    /// One attempt ends after this time [5 s], unless the address has a `connect_timeout`.
    pub attempt: Duration,
    /// The first pause between two attempts [50 ms]; it doubles up to `max_pause` and is spread by jitter.
    pub min_pause: Duration,
    /// The longest pause between two attempts [2 s].
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

/// Opens one connection that belongs to no pool, waiting for the server as `retry` says.
///
/// Repeated is what may mend itself: refused, socket or name not there yet, starting up, too many connections, reset.
/// A wrong password, an unknown database or role, or a refused TLS handshake ends it at once. Every failed attempt is
/// logged. Dropping the future stops trying and closes what was being opened.
///
/// # Errors
///
/// [`ConnectError`] says to what, how often and how long it was tried, and what the last attempt met.
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

/// Connects, and asks for something: a proxy such as `PgBouncer` accepts logins while the server behind it is down. Of one that
/// is known to be there it is found out, too, whether it can do what is needed of it.
async fn dial(config: &Config, options: &PgConnectOptions) -> Result<PgConnection, ConnectFailure> {
    let failed = |error| ConnectFailure::of(&error, config);
    let mut connection =
        each_way(config, options.clone().disable_statement_logging()).await.map_err(failed)?;
    match config.pooler() {
        Pooler::None => connection.ping().await.map_err(failed)?,
        Pooler::Transaction => {
            if !follows_statements(&mut connection).await.map_err(failed)? {
                return Err(ConnectFailure::does_not_follow());
            }
        }
    }
    Ok(connection)
}

/// Opens one connection with these options, made of [`Config::as_sqlx`], in each way that `sslmode` allows, as libpq does:
/// `prefer` tries TLS first and then without, `allow` the other way round. The second way is tried when TLS failed, or when the
/// server refused the login by its `pg_hba.conf`, and never after a wrong password.
///
/// Dropping the future closes what was being opened. There is no limit of time.
///
/// # Errors
///
/// What the way that came further has met.
pub async fn each_way(config: &Config, options: PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let (first, second) = config.ways();
    let Some(second) = second else { return options.connect().await };
    let met = match options.clone().ssl_mode(first).connect().await {
        Ok(connection) => {
            config.note_way(false);
            return Ok(connection);
        }
        Err(error) if is_of_tls(&error) || is_refused(&error) => error,
        Err(error) => return Err(error),
    };
    match options.ssl_mode(second).connect().await {
        Ok(connection) => {
            config.note_way(true);
            Ok(connection)
        }
        Err(error) => {
            let (further, other) =
                if is_refused(&met) && !is_refused(&error) { (error, met) } else { (met, error) };
            tracing::debug!(to = %config, other = error::said(&other), "the other way to connect failed, too");
            Err(further)
        }
    }
}

fn is_of_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(io) => io.kind() == ErrorKind::InvalidData,
        _ => false,
    }
}

/// By `pg_hba.conf`, or by a pooler that takes TLS only.
fn is_refused(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| match error.code().as_deref() {
        Some("28000") => true,
        Some("08P01") => SAYS_TLS_ONLY.iter().any(|text| error.message().contains(text)),
        _ => false,
    })
}

/// How `PgBouncer` asks for TLS.
const SAYS_TLS_ONLY: [&str; 2] = ["SSL required", "TLS connection required"];

/// Why a database could not be reached.
#[derive(Debug)]
pub struct ConnectError {
    to: String,
    failure: ConnectFailure,
    attempts: u32,
    waited: Duration,
}

impl ConnectError {
    /// What the last attempt met.
    #[must_use]
    pub fn failure(&self) -> &ConnectFailure {
        &self.failure
    }

    /// How often it was tried.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long it was tried.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Tells of all that was tried, when this was the last part of it.
    pub(crate) fn tell_all(&mut self, attempts: u32, waited: Duration) {
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

// No `source`: the driver's own text is part of the failure already, without the server's C line numbers.
impl std::error::Error for ConnectError {}

/// What a connection attempt met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// SQLSTATE 28P01, or no password given where one was asked for.
    #[error("the password of role `{0}` was refused (28P01)")]
    WrongPassword(String),
    /// SQLSTATE 28000: unknown role, or `pg_hba.conf` has no entry for this client.
    #[error("role `{role}` may not log in from here: {said} (28000)")]
    LoginRefused {
        /// The role.
        role: String,
        /// What the server said.
        said: String,
    },
    /// SQLSTATE 3D000.
    #[error("there is no database `{0}` on this server (3D000)")]
    NoSuchDatabase(String),
    /// The TLS handshake, or the certificates.
    #[error("TLS: {0}")]
    Tls(String),
    /// The socket's folder may not be entered.
    #[error("this user may not reach the server's socket: {0}")]
    Forbidden(String),
    /// Nothing listens there, or the name is not known.
    #[error("no server answers there: {0}")]
    NotReached(String),
    /// The server is there and does not take connections now (57P03, 53300).
    #[error("the server is there but takes no connection now: {0}")]
    NotReady(String),
    /// The server is there and refuses the session for good: the role may not connect to the database (42501), the database
    /// takes no connections (55000), a setting of the session is unknown or wrong (42704, 22023), or the server wants a proof
    /// that the driver does not have.
    #[error("the server refuses the session: {0}")]
    Refused(String),
    /// There is a pooler in between that was not reckoned with, or that cannot do what is needed.
    #[error("{0}")]
    Pooler(String),
    /// What [`PoolOptions::after_connect`](crate::PoolOptions::after_connect) runs on each new connection failed.
    #[error("a new connection could not be prepared: after_connect failed: {said}")]
    AfterConnect {
        /// What the server or the driver said.
        said: String,
        /// Whether it would fail again in the same way.
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
    /// Whether waiting cannot mend it.
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

    pub(crate) fn of_preparing(source: &sqlx::Error) -> Self {
        let said = match source.as_database_error().and_then(sqlx::error::DatabaseError::code) {
            Some(code) => format!("{} ({code})", error::said(source)),
            None => error::said(source),
        };
        Self::AfterConnect { said, is_final: Verdict::of_statement(source).repeat == Repeat::Never }
    }

    pub(crate) fn cannot_prepare() -> Self {
        Self::Pooler(
            "after_connect prepares a session, and behind the pooler in between a session is everybody's: leave after_connect \
             out, or use the server's own address"
                .to_owned(),
        )
    }

    fn tls(said: String, config: &Config) -> Self {
        if config.verifies_by_default() {
            // Who never asked for it needs to know where it comes from.
            return Self::Tls(format!(
                "{said}; a server on another machine has to prove who it is: give the authority that signed its certificate as \
                 sslrootcert, or say by sslmode what else will do, such as sslmode=disable in a network that you trust"
            ));
        }
        Self::Tls(said)
    }

    /// `PgBouncer` has one code for whatever it says itself, and texts in no language but English.
    fn of_pooler(said: String, config: &Config) -> Self {
        if said.contains("unsupported startup parameter") {
            return Self::Pooler(match config.pooler() {
                Pooler::None => format!(
                    "a pooler such as PgBouncer is in between ({said}): if it is in transaction mode, add pgbouncer=true to the \
                     address; if not, have it ignore that (ignore_startup_parameters)"
                ),
                Pooler::Transaction => {
                    format!(
                        "the pooler in between refused the session ({said}): have it ignore that (ignore_startup_parameters)"
                    )
                }
            });
        }
        let says = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
        // What the server told it, an old one passes on without the server's code.
        let is_unknown = |what: &str| said.starts_with(what) && said.ends_with("does not exist");
        if says(&["no such database"]) || is_unknown("database ") {
            return Self::NoSuchDatabase(config.database().to_owned());
        }
        // It may be of a role that it does not know, which it keeps to itself.
        if says(&["authentication failed"]) {
            return Self::WrongPassword(config.user().to_owned());
        }
        if says(&["no such user", "login rejected"]) || says(&SAYS_TLS_ONLY) || is_unknown("role ") {
            return Self::LoginRefused { role: config.user().to_owned(), said };
        }
        if says(&["bouncer config error"]) {
            return Self::Pooler(
                "the pooler in between has a mistake in its settings, and its log says which".to_owned(),
            );
        }
        Self::NotReady(said)
    }

    pub(crate) fn does_not_follow() -> Self {
        Self::Pooler(
            "the pooler in between does not follow prepared statements, which every query is: PgBouncer does from 1.21 on, with \
             max_prepared_statements above 0; with an older one, use its session mode and leave out pgbouncer=true, or the \
             server's own address"
                .to_owned(),
        )
    }

    /// What an error of the driver's is, met in connecting to this place.
    #[must_use]
    pub fn of(source: &sqlx::Error, config: &Config) -> Self {
        let said = error::said(source);
        match source {
            // The driver puts the whole text of an authority into its error.
            sqlx::Error::Tls(_) if said.starts_with("Invalid certificate") => {
                return Self::Tls("sslrootcert has a certificate that cannot be read".to_owned());
            }
            error if is_of_tls(error) => return Self::tls(said, config),
            // A role without a password, which was not looked at: the driver quotes a character of it.
            sqlx::Error::Configuration(_) if said.contains("saslprep") => {
                return Self::WrongPassword(config.user().to_owned());
            }
            // Of a connection that is made, it is about our own certificate and its key.
            sqlx::Error::Configuration(_) => return Self::Tls(said),
            _ => {}
        }
        if let Some(code) = source.as_database_error().and_then(sqlx::error::DatabaseError::code) {
            return match code.as_ref() {
                "28P01" => Self::WrongPassword(config.user().to_owned()),
                "28000" => Self::LoginRefused { role: config.user().to_owned(), said },
                "3D000" => Self::NoSuchDatabase(config.database().to_owned()),
                "57P03" | "53300" => Self::NotReady(said),
                "08P01" => Self::of_pooler(said, config),
                code if is_refusal(code) => Self::Refused(format!("{said} ({code})")),
                _ => Self::Other(format!("{said} ({code})")),
            };
        }
        match Class::of(source) {
            Class::NotReached => Self::NotReached(said),
            Class::Refused if matches!(source, sqlx::Error::Protocol(_)) => Self::Refused(said),
            Class::Refused => Self::Forbidden(said),
            _ => Self::Other(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_not_ask_for_verification_is_told_where_it_comes_from() {
        let said = |address: &str| {
            let config = Config::from_url(address).expect("a good address");
            ConnectFailure::of(&sqlx::Error::Tls("no certificate".into()), &config).to_string()
        };

        assert!(
            said("postgres://app@db.example/shop").contains("sslmode=disable in a network that you trust")
        );
        for asked in ["postgres://app@db.example/shop?sslmode=verify-full", "postgres://app@localhost/shop"] {
            assert_eq!(said(asked), "TLS: no certificate");
        }
    }
}
