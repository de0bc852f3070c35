//! Database addresses, validated once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use self::limits::UrlLimits;
use self::session::Session;
use self::tls::{Place, Tls};
use crate::{PoolOptions, Pooler};

mod address;
mod environment;
mod foreign;
mod limits;
mod parameters;
mod password;
mod session;
mod tls;

pub(crate) use self::address::split_address;
pub(crate) use self::environment::LIBPQ;
pub(crate) use self::session::why_reserved;
pub(crate) use self::tls::is_pem;

/// The address of a database and how to log in to it.
///
/// Neither `Debug` nor `Display` shows the password; `Display` is `role@host:port/database`, fit for logs.
#[derive(Debug, Clone)]
pub struct Config {
    host: Host,
    port: u16,
    user: String,
    password: Option<SecretString>,
    database: String,
    tls: Tls,
    application_name: Option<String>,
    pooler: Pooler,
    limits: UrlLimits,
    session: Session,
    /// Whether the second TLS mode was the last that worked. Shared by all clones of the config.
    fell_back: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
enum Host {
    Name(String),
    SocketDir(PathBuf),
}

const LIST: &str = "a list, but only one host is supported";

fn quoted(name: Option<&str>) -> String {
    name.map_or_else(|| "with an unusual name (not shown)".to_owned(), |name| format!("`{name}`"))
}

/// What is wrong with a database address. Names the part, never a value that may contain a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The address lacks a part that a URL needs, or is not a URL.
    #[error("the database address is not a URL of the form postgres://role:password@host:port/database: {0}")]
    NotAUrl(&'static str),
    /// The scheme is not `postgres` or `postgresql`.
    #[error("the database address must begin with postgres:// or postgresql://")]
    Scheme,
    /// The host is missing or malformed.
    #[error("the host in the database address is {0}")]
    Host(&'static str),
    /// The port is not a number from 1 to 65535.
    #[error("the port in the database address must be a number from 1 to 65535")]
    Port,
    /// The address has no database.
    #[error("the database address has no database: add /name after the host")]
    Database,
    /// Neither the address nor the environment has a role.
    #[error("the database address has no role: write postgres://role@host/database, or set PGUSER")]
    User,
    /// A percent-encoded part does not decode to UTF-8.
    #[error("the {0} in the database address is not UTF-8 once its percent signs are decoded")]
    Encoding(&'static str),
    /// An unknown parameter, with its name. Its value is never repeated, nor is an unusual name: after an unescaped `?`, the
    /// name would be half a password.
    #[error("the database address has an unknown parameter {} (known: {})", quoted(.0.as_deref()), parameters::names())]
    UnknownParameter(Option<String>),
    /// A known parameter that is not supported, or not with this value.
    #[error("the parameter `{parameter}` in the database address is not supported: {reason}")]
    Refused {
        /// The parameter's name.
        parameter: &'static str,
        /// Why, and what to write instead.
        reason: &'static str,
    },
    /// The address has a parameter twice, with two values. The name is given as in [`Self::UnknownParameter`].
    #[error("the database address has the parameter {} twice, with two values: leave one out", quoted(.0.as_deref()))]
    Twice(Option<String>),
    /// The address contains a zero byte, which ends a text in the protocol.
    #[error("the database address contains a zero byte (%00)")]
    ZeroByte,
    /// A password that the driver cannot send to a server that uses SCRAM.
    #[error(
        "the password cannot be used with SCRAM authentication: it has a character that SASLprep (RFC 4013) refuses, such as a \
         line break at its end or an emoji"
    )]
    Password,
    /// A role that the driver cannot send to a server that uses SCRAM.
    #[error(
        "the role cannot be used with SCRAM authentication: it has a comma, or characters that SASLprep (RFC 4013) refuses after \
         a Latin letter"
    )]
    Role,
    /// One of libpq's variables cannot be used.
    #[error("the environment's {variable} {problem}")]
    Environment {
        /// The variable's name.
        variable: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A parameter has an unusable value.
    #[error("the parameter `{parameter}` in the database address must be {expected}")]
    Parameter {
        /// The parameter's name.
        parameter: &'static str,
        /// What the value must be.
        expected: &'static str,
    },
}

impl Config {
    /// Parses an address in libpq's forms: `postgres://role:password@host:port/database?parameter=value`, or
    /// `host=… port=… user=…` pairs. docs/options.md lists the parameters, including those of other drivers.
    ///
    /// A Unix socket is given by its folder: `?host=/run/postgresql`, or in the place of the host with its slashes as `%2F`.
    /// Without a host, the default is the socket of a server on this machine if it exists, else `localhost`.
    ///
    /// `sslmode` is `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`, with libpq's meanings. Without it, a
    /// server on another machine must prove its identity by its certificate (`verify-full`), and a server on this machine may do
    /// without TLS (`prefer`). `sslrootcert`, `sslcert` and `sslkey` are PEM texts or file paths. The operating system's
    /// authorities are always trusted.
    ///
    /// `pgbouncer=true` declares a [pooler in transaction mode](Pooler::Transaction). `connection_limit` caps the connections of
    /// each pool of the address. `pool_timeout` replaces each pool's acquire timeout, and `connect_timeout` limits one attempt to
    /// connect, both in whole seconds.
    ///
    /// Missing parts come from libpq's `PGUSER`, `PGPASSWORD`, `PGSSLROOTCERT`, `PGSSLCERT` with `PGSSLKEY`, and `PGOPTIONS`. A
    /// role that is still missing is `USER`, else the operating system's user. No other variable of libpq is read.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the wrong part. An unknown parameter is an error: a misspelt `sslmode` must not silently connect in
    /// clear text.
    pub fn from_url(address: &str) -> Result<Self, ConfigError> {
        Self::read(address).map_err(|mut errors| errors.swap_remove(0))
    }

    /// Like [`Config::from_url`], but returns all errors, at least one.
    pub(crate) fn read(address: &str) -> Result<Self, Vec<ConfigError>> {
        let parts = split_address(address).map_err(|error| vec![error])?;
        let mut wrong = Vec::new();
        let mut config = Self::blank();
        for (name, value) in parts {
            wrong.extend(value.and_then(|value| config.set(&name, &value)).err());
        }
        config.check(&mut wrong);
        if wrong.is_empty() { Ok(config) } else { Err(wrong) }
    }

    /// Builds an address from its parts, which are not percent-encoded. A host that begins with `/` is the folder of a Unix
    /// socket. A missing role or password is found as in [`Config::from_url`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the wrong part.
    pub fn from_parts(
        host: &str,
        port: u16,
        user: Option<&str>,
        password: Option<SecretString>,
        database: &str,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::blank();
        config.set("host", host)?;
        config.set("port", &port.to_string())?;
        config.set("user", user.unwrap_or_default())?;
        if let Some(password) = password {
            config.set("password", password.expose_secret())?;
        }
        config.set("dbname", database)?;
        let mut wrong = Vec::new();
        config.check(&mut wrong);
        wrong.into_iter().next().map_or(Ok(config), Err)
    }

    /// An address without any part.
    pub(crate) fn blank() -> Self {
        Self {
            host: Host::Name(String::new()),
            port: 5432,
            user: String::new(),
            password: None,
            database: String::new(),
            tls: Tls::default(),
            application_name: None,
            pooler: Pooler::default(),
            limits: UrlLimits::default(),
            session: Session::default(),
            fell_back: Arc::default(),
        }
    }

    /// Fills in defaults, then collects the errors that concern more than one part.
    pub(crate) fn check(&mut self, wrong: &mut Vec<ConfigError>) {
        if self.database.is_empty() {
            wrong.push(ConfigError::Database);
        }
        if matches!(&self.host, Host::Name(name) if name.is_empty()) {
            self.host = local_server(self.port);
        }
        self.complete(wrong, |variable| std::env::var_os(variable));
        if self.user.is_empty() {
            wrong.push(ConfigError::User);
        }
        if let Some(password) = &self.password {
            if !password::driver_accepts(password.expose_secret()) {
                wrong.push(ConfigError::Password);
            }
            if !password::driver_accepts_role(&self.user) {
                wrong.push(ConfigError::Role);
            }
        }
        if let (Some(parameter), Pooler::Transaction) = (self.session.set_by(), self.pooler) {
            wrong.push(ConfigError::Refused { parameter, reason: POOLED });
        }
        wrong.extend(self.tls.checked(self.place()).err());
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        if value.contains('\0') {
            return Err(ConfigError::ZeroByte);
        }
        if let Some(set) = parameters::setter(name) {
            return set(self, value);
        }
        let done = self.session.set_option(name, value).or_else(|| foreign::set(name, value));
        done.unwrap_or_else(|| Err(ConfigError::UnknownParameter(address::plain(name))))
    }

    /// The same address with another database.
    #[must_use]
    pub fn with_database(mut self, database: impl Into<String>) -> Self {
        self.database = database.into();
        self
    }

    /// Sets `application_name`, which `pg_stat_activity` shows, unless the address has one.
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> Self {
        self.application_name.get_or_insert_with(|| name.to_owned());
        self
    }

    /// The `application_name`, if the address or the program gives one.
    #[must_use]
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// The same address with this `sslmode`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the mode contradicts the other TLS parameters of the address.
    pub fn with_tls_mode(mut self, mode: PgSslMode) -> Result<Self, ConfigError> {
        self.tls.use_mode(mode);
        self.with_checked_tls()
    }

    /// The same address with this `sslrootcert`: a certificate as PEM, or the path of a file that contains one. It is the
    /// authority that verifies the server.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there is no certificate, or when the address's `sslmode` does not verify.
    pub fn with_root_certificate(mut self, pem: &str) -> Result<Self, ConfigError> {
        self.set("sslrootcert", pem)?;
        self.with_checked_tls()
    }

    /// The same address with this `sslcert` and `sslkey`, by which the client proves its identity: PEM texts or file paths.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a file cannot be read.
    pub fn with_client_certificate(mut self, pem: &str, key: &SecretString) -> Result<Self, ConfigError> {
        self.set("sslcert", pem)?;
        self.set("sslkey", key.expose_secret())?;
        self.with_checked_tls()
    }

    fn with_checked_tls(mut self) -> Result<Self, ConfigError> {
        self.tls.checked(self.place())?;
        // The mode that worked was found for the previous TLS parameters.
        self.fell_back = Arc::default();
        Ok(self)
    }

    /// The same address, with this pooler declared.
    #[must_use]
    pub fn with_pooler(mut self, pooler: Pooler) -> Self {
        self.pooler = pooler;
        self
    }

    /// The declared pooler.
    #[must_use]
    pub fn pooler(&self) -> Pooler {
        self.pooler
    }

    /// Applies the address's limits to a pool's options, as [`Pool::new`](crate::Pool::new) does.
    #[must_use]
    pub fn apply_to(&self, options: PoolOptions) -> PoolOptions {
        self.limits.apply_to(options)
    }

    /// The limit for one attempt to connect, if the address has one.
    #[must_use]
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.limits.connect_timeout
    }

    /// The database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role to log in as.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether the server is on this machine, by RFC 6761 (`localhost`), RFC 1122 and RFC 4291 (loopback addresses).
    fn place(&self) -> Place {
        let Host::Name(name) = &self.host else { return Place::Socket };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let is_here = match name.parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        };
        if is_here { Place::Local } else { Place::Remote }
    }

    /// Whether TLS is verified only because no mode was given.
    pub(crate) fn verifies_by_default(&self) -> bool {
        self.tls.verifies_by_default(self.place())
    }

    /// The TLS modes to try, by `sslmode`, in this order.
    pub(crate) fn tls_modes(&self) -> (PgSslMode, Option<PgSslMode>) {
        self.tls.modes(self.place())
    }

    /// Stores which TLS mode worked last, for callers of [`Config::as_sqlx`], which can try one only.
    pub(crate) fn note_fallback(&self, fell_back: bool) {
        self.fell_back.store(fell_back, Ordering::Relaxed);
    }

    /// The options for sqlx, for code that connects by itself.
    ///
    /// sqlx tries one TLS mode. For `allow` and `prefer`, that is the mode by which [`connect`](crate::connect::connect) or a pool
    /// of this address connected last, else the first.
    ///
    /// Caution: `Debug` of sqlx's type prints the password in clear text.
    #[must_use]
    pub fn as_sqlx(&self) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            .database(&self.database);
        options = match &self.host {
            // RFC 3986 puts an IPv6 address in brackets; the resolver does not accept them.
            Host::Name(name) => options.host(name.trim_start_matches('[').trim_end_matches(']')),
            Host::SocketDir(dir) => options.socket(dir),
        };
        if let Some(password) = &self.password {
            options = options.password(password.expose_secret());
        }
        options = self.tls.apply(options, self.place());
        if let ((_, Some(second)), true) = (self.tls_modes(), self.fell_back.load(Ordering::Relaxed)) {
            options = options.ssl_mode(second);
        }
        // An empty name replaces the name that the driver took from the environment.
        options = options.application_name(self.application_name.as_deref().unwrap_or_default());
        if !self.session.settings().is_empty() {
            options = options.options(self.session.settings().iter().map(|(name, value)| (name, value)));
        }
        if self.pooler == Pooler::Transaction {
            // PgBouncer refuses the parameter at startup. Servers from version 12 on send floats in full without it.
            options = options.extra_float_digits(None);
        }
        options
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port)?,
            Host::SocketDir(dir) => write!(f, "{}:{}", dir.display(), self.port)?,
        }
        write!(f, "/{}", self.database)
    }
}

impl std::str::FromStr for Config {
    type Err = ConfigError;

    fn from_str(address: &str) -> Result<Self, ConfigError> {
        Self::from_url(address)
    }
}

const POOLED: &str = "a pooler in transaction mode shares its sessions between clients: set it for the role or the database \
                      (ALTER ROLE … SET), or remove pgbouncer=true";

fn host(text: &str) -> Result<Host, ConfigError> {
    if text.is_empty() {
        return Err(ConfigError::Host("missing"));
    }
    if text.contains(',') {
        return Err(ConfigError::Host(LIST));
    }
    Ok(if text.starts_with('/') { Host::SocketDir(PathBuf::from(text)) } else { Host::Name(text.to_owned()) })
}

/// The socket of a server on this machine, in the folders where Debian's and PostgreSQL's own libpq look.
fn local_server(port: u16) -> Host {
    let folders = ["/var/run/postgresql", "/tmp"].map(Path::new);
    let found = folders.into_iter().find(|folder| folder.join(format!(".s.PGSQL.{port}")).exists());
    found.map_or_else(|| Host::Name("localhost".to_owned()), |folder| Host::SocketDir(folder.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of docs/options.md between these marks.
    pub(super) fn between(mark: &str) -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/options.md");
        let page = std::fs::read_to_string(path).expect("docs/options.md");
        let (_, rest) = page.split_once(&format!("<!-- {mark} -->\n")).expect(mark);
        let (text, _) = rest.split_once(&format!("<!-- end of {mark} -->")).expect(mark);
        text.trim().to_owned()
    }

    fn shown(address: &str) -> String {
        Config::from_url(address).expect("a good address").to_string()
    }

    #[test]
    fn the_usual_forms_are_read() {
        assert_eq!(shown("postgres://app:secret@db.example:5433/shop"), "app@db.example:5433/shop");
        assert_eq!(shown("postgresql://app@db/shop"), "app@db:5432/shop");
        assert_eq!(shown("postgres://app@[::1]:5433/shop"), "app@[::1]:5433/shop");
        assert_eq!(shown("postgres://app@/shop?host=/run/pg"), "app@/run/pg:5432/shop");
        assert_eq!(shown("postgres:///shop?host=/run/pg&port=7&user=app"), "app@/run/pg:7/shop");
        assert_eq!(shown("postgres://app@%2Frun%2Fpg/shop"), "app@/run/pg:5432/shop");
        assert_eq!(shown("postgres://a%40b@db/a%20shop"), "a@b@db:5432/a shop");
    }

    #[test]
    fn off_this_machine_tls_is_verified_unless_the_address_says_otherwise() {
        for (address, mode) in [
            ("postgres://app@db.example/shop", "VerifyFull"),
            ("postgres://app@10.0.0.1/shop", "VerifyFull"),
            ("postgres://app@localhost.example/shop", "VerifyFull"),
            ("postgres://app@db.example/shop?sslmode=prefer", "Prefer"),
            ("postgres://app@db.example/shop?sslmode=disable", "Disable"),
            ("postgres://app@localhost/shop", "Prefer"),
            ("postgres://app@DB.LocalHost/shop", "Prefer"),
            ("postgres://app@127.8.9.1/shop", "Prefer"),
            ("postgres://app@[::1]/shop", "Prefer"),
            ("postgres://app@/shop?host=/run/postgresql", "Disable"),
            ("postgres://app@/shop?host=/run/postgresql&sslmode=verify-full", "Disable"),
            ("postgres://app@127.0.0.1/shop?sslmode=verify-ca", "VerifyCa"),
        ] {
            let mode_of = Config::from_url(address).expect("a good address").as_sqlx().get_ssl_mode();
            assert_eq!(format!("{mode_of:?}"), mode, "{address}");
        }
    }

    #[test]
    fn parameters_are_read_as_sqlx_reads_them() {
        let once = shown("postgres://app@/shop?host=%2Frun%2Fa%2541");
        assert_eq!(once, "app@/run/a%41:5432/shop", "decoded once");
        assert_eq!(shown("postgres://db/shop?user=a+b%20c%2B"), "a b c+@db:5432/shop");
        assert_eq!(shown("postgres://app@db/shop?&port=6432&"), "app@db:6432/shop");
    }

    #[test]
    fn all_errors_of_an_address_are_found() {
        let errors = Config::read("postgres://app:%ff@a,b/?sslmode=maybe&pool_timeout=0&nothing=1&port=x")
            .expect_err("seven errors");

        assert_eq!(errors.len(), 7, "{errors:?}");
        assert_eq!(errors[0], ConfigError::Host(LIST), "in the address's order");
        assert_eq!(errors[6], ConfigError::Database);
    }

    #[test]
    fn the_limits_of_an_address_apply_to_its_pools() {
        let config =
            Config::from_url("postgres://app@db/shop?connection_limit=20&pool_timeout=7&connect_timeout=9")
                .expect("a good address");

        let (api, backend) = (config.apply_to(PoolOptions::api()), config.apply_to(PoolOptions::backend()));

        assert_eq!((api.max, backend.max), (10, 20), "the limit raises no pool's own");
        assert_eq!(
            (api.acquire_timeout, backend.acquire_timeout),
            (Duration::from_secs(7), Duration::from_secs(7))
        );
        assert_eq!(config.connect_timeout(), Some(Duration::from_secs(9)));
        let without_limits = Config::from_url("postgres://app@db/shop").expect("a good address");
        assert_eq!(
            without_limits.apply_to(PoolOptions::api()).acquire_timeout,
            PoolOptions::api().acquire_timeout
        );
        assert_eq!(without_limits.connect_timeout(), None);
    }

    #[test]
    fn only_pgbouncer_true_declares_a_pooler() {
        for (address, pooler) in [
            ("postgres://app@db/shop", Pooler::None),
            ("postgres://app@db/shop?pgbouncer=false", Pooler::None),
            ("postgres://app@db/shop?pgbouncer=true", Pooler::Transaction),
        ] {
            assert_eq!(Config::from_url(address).expect("a good address").pooler(), pooler, "{address}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (parameter, value) in [
            ("connection_limit", "0"),
            ("connection_limit", "many"),
            ("connection_limit", "-1"),
            ("connection_limit", "262144"),
            ("pool_timeout", "0"),
            ("pool_timeout", "1.5"),
            ("pool_timeout", ""),
            ("connect_timeout", "86401"),
            ("pgbouncer", "yes"),
            ("pgbouncer", ""),
        ] {
            let error =
                Config::from_url(&format!("postgres://app@db/shop?{parameter}={value}")).expect_err(value);

            assert!(
                matches!(&error, ConfigError::Parameter { parameter: named, .. } if *named == parameter),
                "{parameter}={value}: {error}"
            );
        }
    }

    #[test]
    fn each_bad_part_is_named() {
        let bad = |address: &str| Config::from_url(address).expect_err(address);

        assert!(matches!(bad("shop"), ConfigError::NotAUrl(_)));
        assert_eq!(bad("mysql://app@db/shop"), ConfigError::Scheme);
        assert_eq!(bad("postgres://app@db:port/shop"), ConfigError::Port);
        assert_eq!(bad("postgres://app@db:99999/shop"), ConfigError::Port);
        assert_eq!(bad("postgres://app@db:0/shop"), ConfigError::Port);
        assert_eq!(bad("postgres://app@db"), ConfigError::Database);
        assert_eq!(bad("postgres://app@db/"), ConfigError::Database);
        assert!(matches!(bad("postgres://app@a,b/shop"), ConfigError::Host(_)));
        assert_eq!(
            bad("postgres://app@db/shop?ssl_mode=require"),
            ConfigError::UnknownParameter(Some("ssl_mode".into()))
        );
        assert!(matches!(
            bad("postgres://app@db/shop?sslmode=maybe"),
            ConfigError::Parameter { parameter: "sslmode", .. }
        ));
        assert!(matches!(
            bad("postgres://app@db/shop?sslrootcert=/no/such/file"),
            ConfigError::Parameter { parameter: "sslrootcert", .. }
        ));
        for (one, other) in [("sslcert", "sslkey"), ("sslkey", "sslcert")] {
            assert!(matches!(
                bad(&format!("postgres://app@db/shop?{one}=-----BEGIN%20SOMETHING-----")),
                ConfigError::Parameter { parameter, .. } if parameter == other
            ));
        }
        assert_eq!(bad("postgres://app:%ff@db/shop"), ConfigError::Encoding("password"));
    }

    #[test]
    fn no_form_shows_the_password() {
        let config = Config::from_url("postgres://app:hunter2@db/shop").expect("a good address");

        assert!(!format!("{config:?} {config}").contains("hunter2"));
        for bad in [
            "postgres://app:hunter2@db:x/shop",
            "postgres://app:hunter2@db/shop?hunter=hunter2",
            "postgres:/app:hunter2@db/shop",
            "postgres://app:hunter2@/shop?sslmode=hunter2",
            "postgres://app:hun/ter2@db/shop",
            "postgres://app:hun?ter2@db/shop",
            "postgres://app:hun#ter2@db/shop",
            "postgres://app:1/hunter2@db/shop",
            "postgres://app:1?hunter2@db/shop",
            "postgres://app:1?hunter=2&ter2@db/shop",
        ] {
            let error = Config::from_url(bad).expect_err(bad);
            assert!(!format!("{error:?} {error}").contains("ter2"), "{bad}");
        }
    }

    /// Mutates good addresses: changes, doubles and drops bytes, and inserts pieces. Every result must be read or refused, and no
    /// error may contain the password.
    #[test]
    fn mutated_addresses_neither_panic_nor_show_the_password() {
        const PIECES: [&str; 32] = [
            "postgres://",
            "app",
            ":",
            "@",
            "/",
            "?",
            "#",
            "&",
            "=",
            "%",
            "%2F",
            "%00",
            "%ff",
            "[",
            "::1",
            "]",
            "5432",
            "99999",
            "sslmode",
            "verify-full",
            "host",
            ",",
            "ü",
            "\\",
            "pgbouncer=true",
            "connection_limit=",
            "pool_timeout=",
            "connect_timeout=",
            "-1",
            "0",
            "1e9",
            "18446744073709551616",
        ];
        let mut random = fastrand::Rng::with_seed(2026);
        let mut read = [0; 2];
        let good = [
            "postgres://app:hunter2@db.example:5432/shop?sslmode=require&host=/run",
            "postgres://app:hunter2@db/shop?pgbouncer=true&connection_limit=9&pool_timeout=7&connect_timeout=5",
        ];
        for n in 0..100_000 {
            let mut address = good[n % good.len()].to_owned();
            for _ in 0..random.usize(1..6) {
                let at: Vec<usize> =
                    address.char_indices().map(|(at, _)| at).chain([address.len()]).collect();
                let (from, to) = (random.usize(..at.len()), random.usize(..at.len()));
                // The password stays whole, so that the check below can find it.
                let password = address.find("hunter2").expect("the password stays");
                let (from, to) = (at[from.min(to)], at[from.max(to)].min(at[from.min(to)] + 6));
                let (from, to) = match (from, address.is_char_boundary(to)) {
                    (from, true) if to <= password || from >= password + 7 => (from, to),
                    _ => (password, password),
                };
                address.replace_range(from..to, random.choice(PIECES).expect("there are some"));
            }
            match Config::from_url(&address) {
                Err(error) => {
                    let text = format!("{error} {error:?}");
                    assert!(!text.contains("hunter2"), "{address}: {text}");
                }
                Ok(config) => {
                    let pool = config.apply_to(PoolOptions::backend());
                    assert!((1..=50).contains(&pool.max), "{address}: {pool:?}");
                    let times = [Some(pool.acquire_timeout), config.connect_timeout()];
                    let day = Duration::from_secs(1)..=Duration::from_hours(24);
                    assert!(
                        times.into_iter().flatten().all(|time| day.contains(&time)),
                        "{address}: {times:?}"
                    );
                    drop(config.as_sqlx());
                    read[n % good.len()] += 1;
                }
            }
        }
        assert!(read.iter().all(|read| *read > 1_000), "hardly any address is read: {read:?}");
    }
}
