//! The limits that an address sets for dialling and for its pools.

use std::time::Duration;

use super::ConfigError;
use crate::PoolOptions;

/// PostgreSQL's own maximum of `max_connections`.
const MAX_CONNECTIONS: u32 = 262_143;

/// One day. A longer wait is a mistake of the unit.
const MAX_SECONDS: u32 = 86_400;
#[derive(Debug, Clone, Default)]
pub(super) struct UrlLimits {
    pub(super) connections: Option<u32>,
    pub(super) acquire_timeout: Option<Duration>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) keepalive: Option<Duration>,
}

impl UrlLimits {
    pub(super) fn apply_to(&self, options: PoolOptions) -> PoolOptions {
        let max = self.connections.map_or(options.max, |limit| options.max.min(limit));
        let acquire_timeout = self.acquire_timeout.unwrap_or(options.acquire_timeout);
        let keepalive = self.keepalive.unwrap_or(options.keepalive);
        options.max(max).acquire_timeout(acquire_timeout).keepalive(keepalive)
    }
}

/// Parses a number of connections.
pub(super) fn connections(parameter: &'static str, value: &str) -> Result<u32, ConfigError> {
    let expected = "a whole number from 1 to 262143";
    number(value, MAX_CONNECTIONS).ok_or(ConfigError::Parameter { parameter, expected })
}

/// Parses a time in seconds.
pub(super) fn seconds(parameter: &'static str, value: &str) -> Result<Duration, ConfigError> {
    let expected = "a whole number of seconds from 1 to 86400";
    let seconds = number(value, MAX_SECONDS).ok_or(ConfigError::Parameter { parameter, expected })?;
    Ok(Duration::from_secs(seconds.into()))
}

fn number(value: &str, max: u32) -> Option<u32> {
    value.parse().ok().filter(|number| (1..=max).contains(number))
}
