//! Where Redis is, and how long it may take.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion};
use derive_setters::Setters;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

/// Where Redis is, and how long it may take. `Debug` and `Display` show no password.
#[derive(Clone, Setters)]
#[non_exhaustive]
pub struct RedisConfig {
    #[setters(skip)]
    pub(super) client: Arc<Client>,
    /// How long one attempt to connect may take (default 1 s).
    pub connect: Duration,
    /// How long the answer to a command may take (default 500 ms). [`within`](super::Redis::within) sets shorter limits. A command that blocks, such
    /// as `BLPOP`, needs a connection of its own.
    pub answer: Duration,
    /// How long nobody asks, after Redis did not answer somebody in time or was not reached (default 1 s). Then one caller tries.
    pub rest: Duration,
}

/// The text is not the address of a Redis. The message does not show it: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not the address of a Redis: redis://user:password@host:port/database, rediss://… with TLS, or redis+unix:///path?db=0"
)]
#[non_exhaustive]
pub struct RedisConfigError;

impl RedisConfig {
    /// Reads an address: `redis://user:password@host:port/database`, `rediss://…` with TLS, or `redis+unix:///path`. Nothing is connected to.
    ///
    /// The first address with TLS makes ring the default of rustls for the process, if the program has chosen none: the driver would choose by
    /// itself, and panic in a program that has two to choose from. TLS trusts the system's authorities.
    ///
    /// # Errors
    ///
    /// [`RedisConfigError`] if the text is not such an address.
    pub fn from_url(url: &str) -> Result<Self, RedisConfigError> {
        let info = url.into_connection_info().map_err(|_| RedisConfigError)?;
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => return Err(RedisConfigError),
            // Another thread may have been faster.
            ConnectionAddr::TcpTls { .. } if CryptoProvider::get_default().is_none() => {
                ring::default_provider().install_default().ok();
            }
            _ => {}
        }
        // The other protocol has messages that nobody asked for, and would reconnect because of one.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let client = Client::open(info.set_redis_settings(settings)).map_err(|_| RedisConfigError)?;
        Ok(Self {
            client: Arc::new(client),
            connect: Duration::from_secs(1),
            answer: Duration::from_millis(500),
            rest: Duration::from_secs(1),
        })
    }
}

impl fmt::Display for RedisConfig {
    /// `redis://host:port/database`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.client.get_connection_info();
        let database = info.redis_settings().db();
        match info.addr() {
            ConnectionAddr::Unix(path) => write!(f, "redis+unix://{}?db={database}", path.display()),
            ConnectionAddr::TcpTls { host, port, .. } => write!(f, "rediss://{host}:{port}/{database}"),
            other => write!(f, "redis://{other}/{database}"),
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client: _, connect, answer, rest } = self;
        f.debug_struct("RedisConfig")
            .field("address", &format_args!("{self}"))
            .field("connect", connect)
            .field("answer", answer)
            .field("rest", rest)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (url, shown) in [
            ("redis://app:geheim@cache.example:6380/2", "redis://cache.example:6380/2"),
            ("redis://cache.example", "redis://cache.example:6379/0"),
            ("rediss://:geheim@cache.example", "rediss://cache.example:6379/0"),
            ("redis+unix:///run/redis.sock?db=1&pass=geheim", "redis+unix:///run/redis.sock?db=1"),
        ] {
            let config = RedisConfig::from_url(url).expect(url);
            assert_eq!(config.to_string(), shown);
            assert!(!format!("{config:?}").contains("geheim"), "{config:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_not_shown() {
        for text in [
            "",
            "cache",
            "postgres://a:geheim@b/c",
            "http://geheim",
            "redis://a:geheim@b/c",
            "redis://",
            "rediss://:geheim@b/#insecure",
        ] {
            let error = RedisConfig::from_url(text).expect_err(text);
            assert!(!format!("{error} {error:?}").contains("geheim"), "{error}");
        }
    }
}
