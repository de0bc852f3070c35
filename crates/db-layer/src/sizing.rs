//! Checks whether the server has room for all pools of all instances.

use std::fmt;

use sqlx::{Executor, PgConnection, Row};

use crate::Options;

/// The bus's sessions: a listener and a notifier.
const BUS: u32 = 2;

/// The session that looks whether the database answers.
const PULSE: u32 = 1;

/// The pools of all instances may open more connections than the server has.
///
/// Without the check this would show only under load, as refused connections. `Display` gives the numbers and what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionBudgetExceeded {
    instances: u32,
    /// The most sessions of one instance, by purpose.
    parts: Vec<(String, u32)>,
    room: Room,
    backend: u32,
}

/// The server's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    max_connections: u32,
    /// Connections that ordinary roles cannot use.
    reserved: u32,
}

impl Room {
    fn for_ordinary_roles(self) -> u32 {
        self.max_connections.saturating_sub(self.reserved)
    }
}

impl ConnectionBudgetExceeded {
    /// The most sessions of one instance.
    fn each(&self) -> u32 {
        self.parts.iter().fold(0, |sum, (_, part)| sum.saturating_add(*part))
    }

    /// The most sessions that all instances may have at once.
    #[must_use]
    pub fn needed(&self) -> u32 {
        self.each().saturating_mul(self.instances)
    }

    /// How many sessions the server has for ordinary roles.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.room.for_ordinary_roles()
    }

    /// The largest backend pool with which everything fits.
    #[must_use]
    pub fn largest_backend_that_fits(&self) -> Option<u32> {
        let others = self.each() - self.backend;
        let left = (self.available() / self.instances).checked_sub(others)?;
        Some(left).filter(|left| *left > 0)
    }
}

impl fmt::Display for ConnectionBudgetExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Room { max_connections, reserved } = self.room;
        let (needed, available) = (self.needed(), self.available());
        let parts: Vec<_> = self.parts.iter().map(|(name, part)| format!("{name} {part}")).collect();
        write!(
            f,
            "the pools may open {needed} connections ({} instances of {}: {}), and the server has {available} for them \
             (max_connections {max_connections} less {reserved} reserved): ",
            self.instances,
            self.each(),
            parts.join(", "),
        )?;
        if let Some(backend) = self.largest_backend_that_fits() {
            write!(f, "lower backend-max-conns to {backend}, or ")?;
        }
        write!(
            f,
            "raise max_connections to {}; more active connections than twice the server's cores plus its disks do not raise throughput",
            needed.saturating_add(reserved)
        )
    }
}

impl std::error::Error for ConnectionBudgetExceeded {}

/// Asks the server for its limits, and compares.
pub(crate) async fn check(
    connection: &mut PgConnection,
    options: &Options,
) -> Result<Result<(), ConnectionBudgetExceeded>, sqlx::Error> {
    // `reserved_connections` came with PostgreSQL 16. The simple protocol needs one round trip.
    let row = connection
        .fetch_one(sqlx::raw_sql(
            "select current_setting('max_connections')::int4, current_setting('superuser_reserved_connections')::int4 \
             + coalesce(current_setting('reserved_connections', true)::int4, 0)",
        ))
        .await?;
    let number = |index| row.try_get::<i32, _>(index).map(|number| u32::try_from(number).unwrap_or(0));
    let room = Room { max_connections: number(0)?, reserved: number(1)? };

    let pools = [&options.api, &options.backend].into_iter().chain(&options.named);
    let mut parts: Vec<_> = pools.map(|pool| (pool.name.clone(), pool.max_sessions())).collect();
    parts.extend([("bus".to_owned(), BUS), ("pulse".to_owned(), PULSE)]);
    let found = ConnectionBudgetExceeded {
        instances: options.instances.max(1),
        parts,
        room,
        backend: options.backend.max,
    };
    Ok(if found.needed() <= found.available() { Ok(()) } else { Err(found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(instances: u32, max_connections: u32) -> ConnectionBudgetExceeded {
        ConnectionBudgetExceeded {
            instances,
            parts: vec![("api".into(), 15), ("backend".into(), 55), ("bus".into(), 2)],
            room: Room { max_connections, reserved: 3 },
            backend: 50,
        }
    }

    #[test]
    fn the_advice_has_numbers_that_fit() {
        let exceeded = of(2, 100);

        assert_eq!(
            exceeded.to_string(),
            "the pools may open 144 connections (2 instances of 72: api 15, backend 55, bus 2), and the server has 97 for \
             them (max_connections 100 less 3 reserved): lower backend-max-conns to 26, or raise max_connections to 147; \
             more active connections than twice the server's cores plus its disks do not raise throughput"
        );
        assert!(of(2, 147).needed() <= of(2, 147).available());
        assert!(2 * (72 - 50 + 26) <= exceeded.available() && 2 * (72 - 50 + 27) > exceeded.available());
    }

    #[test]
    fn when_no_backend_would_be_small_enough_only_the_server_is_left() {
        let exceeded = of(5, 100);

        assert_eq!(exceeded.largest_backend_that_fits(), None);
        assert!(exceeded.to_string().contains("reserved): raise max_connections to 363; "), "{exceeded}");
    }
}
