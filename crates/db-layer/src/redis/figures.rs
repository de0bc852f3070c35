//! What is known of Redis.

use crate::DatabaseHealth;

/// The state of Redis at one moment, by what was noted before.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RedisHealth {
    /// Whether it answers: it is asked every 2 s, and has the times of [`Options::redis`](crate::Options) for a connection and for the answer.
    pub server: DatabaseHealth,
    /// What it said of itself; `None` before the first answer, and while it does not answer.
    pub figures: Option<RedisFigures>,
    /// How many times somebody did without Redis, because it was away or too slow.
    pub without: u64,
    /// Whether the connection is closed for good, by a shutdown.
    pub is_closed: bool,
}

impl RedisHealth {
    /// Whether it answered when it was last asked.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self.server, DatabaseHealth::Answers { .. }) && !self.is_closed
    }
}

/// What Redis says of itself (`INFO`). A number that it does not say, or that cannot be read, is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RedisFigures {
    /// Connections of clients.
    pub connections: Option<u64>,
    /// Commands that were executed since its start.
    pub commands: Option<u64>,
    /// Commands a second, at the moment.
    pub commands_per_second: Option<u64>,
    /// Bytes of memory in use.
    pub memory: Option<u64>,
}

impl RedisFigures {
    /// Reads the answer to `INFO`.
    #[cfg(feature = "redis")]
    pub(super) fn parse(info: &str) -> Self {
        let number = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim_end().parse().ok()
        };
        Self {
            connections: number("connected_clients"),
            commands: number("total_commands_processed"),
            commands_per_second: number("instantaneous_ops_per_sec"),
            memory: number("used_memory"),
        }
    }
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_by_name_and_one_that_is_not_there_loses_only_itself() {
        let info = "# Clients\r\nconnected_clients:3\r\n# Memory\r\nused_memory:1048576\r\nused_memory_rss:9\r\n\
                    # Stats\r\ntotal_commands_processed:x12\r\ninstantaneous_ops_per_sec:7\r\n";
        let expected = RedisFigures {
            connections: Some(3),
            commands: None,
            commands_per_second: Some(7),
            memory: Some(1_048_576),
        };
        assert_eq!(RedisFigures::parse(info), expected);
        assert_eq!(RedisFigures::parse(""), RedisFigures::default());
    }
}
