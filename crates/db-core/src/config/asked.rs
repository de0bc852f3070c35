//! What an address asks of those who dial it and of the pools made of it.

use std::time::Duration;

use super::ConfigError;
use crate::PoolOptions;

/// PostgreSQL's own limit of `max_connections`, from the documentation of its settings.
const MOST: u32 = 262_143;

/// A day: longer waits are mistakes of a unit.
const LONGEST: u32 = 86_400;

/// The parameters of an address that other libraries know, too.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    connections: Option<u32>,
    wait: Option<Duration>,
    pub(super) dial: Option<Duration>,
    keepalive: Option<Duration>,
}

impl Asked {
    /// Takes a parameter of an address, if it is one of these.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Option<Result<(), ConfigError>> {
        Some(match name {
            "connection_limit" => number(value, MOST)
                .map(|most| self.connections = Some(most))
                .ok_or(("connection_limit", "a whole number from 1 to 262143")),
            "pool_timeout" => seconds(value)
                .map(|wait| self.wait = Some(wait))
                .ok_or(("pool_timeout", "a whole number of seconds from 1 to 86400")),
            "connect_timeout" => seconds(value)
                .map(|dial| self.dial = Some(dial))
                .ok_or(("connect_timeout", "a whole number of seconds from 1 to 86400")),
            "keepalives_idle" => seconds(value)
                .map(|silence| self.keepalive = Some(silence))
                .ok_or(("keepalives_idle", "a whole number of seconds from 1 to 86400")),
            _ => return None,
        })
        .map(|set| set.map_err(|(parameter, expected)| ConfigError::Parameter { parameter, expected }))
    }

    pub(super) fn apply_to(&self, options: PoolOptions) -> PoolOptions {
        let max = self.connections.map_or(options.max, |most| options.max.min(most));
        let acquire_timeout = self.wait.unwrap_or(options.acquire_timeout);
        let keepalive = self.keepalive.unwrap_or(options.keepalive);
        PoolOptions { max, acquire_timeout, keepalive, ..options }
    }
}

fn number(value: &str, most: u32) -> Option<u32> {
    value.parse().ok().filter(|number| (1..=most).contains(number))
}

fn seconds(value: &str) -> Option<Duration> {
    number(value, LONGEST).map(|seconds| Duration::from_secs(seconds.into()))
}
