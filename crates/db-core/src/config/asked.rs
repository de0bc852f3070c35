//! What an address asks of those who dial it and of the pools made of it.

use std::time::Duration;

use super::ConfigError;
use crate::PoolOptions;

/// PostgreSQL's own limit of `max_connections`, from the documentation of its settings.
const MOST: u32 = 262_143;

/// A day: longer waits are mistakes of a unit.
const LONGEST: u32 = 86_400;

/// What it asks.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) connections: Option<u32>,
    pub(super) wait: Option<Duration>,
    pub(super) dial: Option<Duration>,
    pub(super) keepalive: Option<Duration>,
}

impl Asked {
    pub(super) fn apply_to(&self, options: PoolOptions) -> PoolOptions {
        let max = self.connections.map_or(options.max, |most| options.max.min(most));
        let acquire_timeout = self.wait.unwrap_or(options.acquire_timeout);
        let keepalive = self.keepalive.unwrap_or(options.keepalive);
        options.max(max).acquire_timeout(acquire_timeout).keepalive(keepalive)
    }
}

/// A number of connections.
pub(super) fn connections(parameter: &'static str, value: &str) -> Result<u32, ConfigError> {
    let expected = "a whole number from 1 to 262143";
    number(value, MOST).ok_or(ConfigError::Parameter { parameter, expected })
}

/// A time.
pub(super) fn seconds(parameter: &'static str, value: &str) -> Result<Duration, ConfigError> {
    let expected = "a whole number of seconds from 1 to 86400";
    let seconds = number(value, LONGEST).ok_or(ConfigError::Parameter { parameter, expected })?;
    Ok(Duration::from_secs(seconds.into()))
}

fn number(value: &str, most: u32) -> Option<u32> {
    value.parse().ok().filter(|number| (1..=most).contains(number))
}
