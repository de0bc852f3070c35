//! The table of all rules.

use std::time::Duration;

use super::readings::{PoolReading, is_used};
use super::{Read, Rule, Severity, Unit};
use crate::NotReady;
use crate::mean::mean;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// All rules.
#[must_use]
pub const fn all() -> &'static [Rule] {
    RULES
}

const RULES: &[Rule] = &[
    Rule {
        name: "NotReady",
        severity: Severity::Critical,
        what: "Requests cannot be served",
        action: "See the reason at /health and in the log. If the database does not answer, look at the server and the network; if the API \
                 pool is stuck, the holders name the lines that keep its connections.",
        expr: "1 - db_layer_ready - db_layer_closing",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(5),
        keeps: seconds(10),
        // A service that shuts down is meant to.
        read: Read::Database(|all| Some(flag(all.not_ready.is_some_and(|why| why != NotReady::Closing)))),
    },
    Rule {
        name: "PoolUtilization",
        severity: Severity::Warning,
        what: "Database connection pool at {} utilization",
        action: "See who holds connections, and for how long. If all are short, the pool is too small for the load; if some are long, \
                 shorten them.",
        expr: "100 * db_client_connection_count{db_client_connection_state=\"used\"} \
               / ignoring(db_client_connection_state) db_client_connection_max",
        unit: Unit::Percent,
        above: 80.0,
        lasts: seconds(10),
        keeps: seconds(30),
        read: Read::Pool(|pool| Some(100.0 * f64::from(pool.now.in_use) / f64::from(pool.now.max.max(1)))),
    },
    Rule {
        name: "PoolWait",
        severity: Severity::Warning,
        what: "Callers wait for a connection for {} on average",
        action: "See who holds connections. Compare with the duration of statements: if these are slow, the pool is not the cause.",
        expr: "rate(db_layer_connection_queue_time_seconds_sum[1m]) / rate(db_layer_connection_queue_time_seconds_count[1m])",
        unit: Unit::Seconds,
        above: 0.1,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Pool(mean_wait),
    },
    Rule {
        name: "PoolQueue",
        severity: Severity::Warning,
        what: "Callers in the queue of the pool: {}",
        action: "See who holds connections. Set `queue_target` or `max_waiting`, so that callers who would wait for too long are turned away soon.",
        expr: "db_client_connection_pending_requests",
        unit: Unit::Count,
        above: 10.0,
        lasts: seconds(10),
        keeps: seconds(30),
        read: Read::Pool(|pool| Some(f64::from(pool.now.waiting))),
    },
    Rule {
        name: "PoolExhausted",
        severity: Severity::Critical,
        what: "Callers that got no connection in the last minute: {}",
        action: "Requests fail. See who holds connections; end what hangs, or make the pool larger if the server has room.",
        expr: "increase(db_client_connection_timeouts_total[1m]) + increase(db_layer_connection_shed_total[1m])",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Pool(|pool| {
            let refused = |totals: &db_core::Totals| totals.timed_out + totals.shed;
            Some(number(refused(&pool.now.totals) - refused(&pool.before)))
        }),
    },
    Rule {
        name: "ConnectionLeaked",
        severity: Severity::Warning,
        what: "Connections held for longer than their threshold: {}",
        action: "The log and the holders name the line that took each. Give it back, or give work that is meant to last a `leak_after` of \
                 its own.",
        expr: "db_layer_connection_leaked_total - db_layer_connection_leaks_returned_total",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Pool(|pool| {
            let totals = &pool.now.totals;
            Some(number(totals.leaked.saturating_sub(totals.leaks_returned)))
        }),
    },
    Rule {
        name: "SlowStatements",
        severity: Severity::Warning,
        what: "Slow statements, running or of the last minute: {}",
        action: "The log, the holders and the statements name each with its line. Look at its plan with `explain (analyze, buffers)`, and at \
                 what it waits for in `pg_stat_activity`.",
        expr: "increase(db_layer_statement_slow_total[1m]) + db_layer_statement_running_slow",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Pool(|pool| {
            let ended = pool.now.totals.slow - pool.before.slow;
            Some(number(ended + pool.held.slow as u64))
        }),
    },
    Rule {
        name: "IdleInTransaction",
        severity: Severity::Warning,
        what: "A transaction has been idle for {}",
        action: "It keeps its locks, and vacuum from cleaning up. The holders name its line: something slow happens between its statements, \
                 such as a call of another service.",
        expr: "db_layer_connection_idle_in_transaction_seconds",
        unit: Unit::Seconds,
        above: 10.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Pool(|pool| Some(pool.held.idle_in_transaction.as_secs_f64())),
    },
    Rule {
        name: "DialFailures",
        severity: Severity::Warning,
        what: "Failed attempts to open a connection in the last minute: {}",
        action: "The log has the reasons: the server is away, it has no room for more sessions, or it refuses the role.",
        expr: "increase(db_layer_connection_dial_failures_total[1m])",
        unit: Unit::Count,
        above: 2.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Pool(|pool| Some(number(pool.now.totals.dial_failures - pool.before.dial_failures))),
    },
    Rule {
        name: "BusDisconnected",
        severity: Severity::Warning,
        what: "No notifications are received",
        action: "Streams poll meanwhile, and are late. See the trouble of the bus: the server is away, is a standby, or the address leads \
                 through a pooler.",
        expr: "1 - db_layer_bus_connected",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(10),
        keeps: seconds(10),
        read: Read::Database(|all| is_used(&all.bus).then(|| flag(!all.bus.is_connected()))),
    },
    Rule {
        name: "NotificationsLost",
        severity: Severity::Warning,
        what: "Subscriptions that may have missed notifications in the last minute: {}",
        action: "Streams of events have read again what they missed. `gaps` by reason says why: the session was lost, a reader was too slow, \
                 or too much was sent at once.",
        expr: "sum without (reason) (increase(db_layer_bus_gaps_total{reason!~\"started|unannounced\"}[1m]))",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Database(|all| Some(number(all.gaps))),
    },
    Rule {
        name: "NotificationQueue",
        severity: Severity::Critical,
        what: "The server's queue of notifications is {} full",
        action: "When it is full, transactions that notify fail. Find the listening session with a long transaction \
                 (`pg_stat_activity.xact_start`), and end it.",
        expr: "100 * db_layer_bus_queue_usage",
        unit: Unit::Percent,
        above: 50.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Database(|all| all.bus.queue_usage.map(|usage| 100.0 * usage)),
    },
    Rule {
        name: "EventLag",
        severity: Severity::Warning,
        what: "The newest event was {} old when it was read",
        action: "Writers keep their transactions open for long after appending, the pool for background work is busy, or the bus is not \
                 connected.",
        expr: "db_layer_events_lag_seconds",
        unit: Unit::Seconds,
        above: 5.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Database(|all| all.lag.map(|lag| lag.as_secs_f64())),
    },
    Rule {
        name: "MigrationPending",
        severity: Severity::Warning,
        what: "Migrations that are not applied: {}",
        action: "Run `db-migrate status` to see which, and `db-migrate up` to apply them.",
        expr: "db_layer_migration_pending",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(300),
        keeps: seconds(0),
        read: Read::Database(|all| all.migrations.map(|it| number(it.pending as u64))),
    },
    Rule {
        name: "MigrationFailed",
        severity: Severity::Critical,
        what: "Migrations whose last attempt has failed: {}",
        action: "`db-migrate status` shows the error, with the line of the file. Mend the file or the data, and apply it again.",
        expr: "db_layer_migration_failed",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(0),
        keeps: seconds(0),
        read: Read::Database(|all| all.migrations.map(|it| number(it.failed as u64))),
    },
    Rule {
        name: "EncryptionKeys",
        severity: Severity::Critical,
        what: "The encryption keys need somebody",
        action: "The log says what: the key file cannot be read, or has a key that is not the database's, or a key is missing. Values are \
                 still sealed under the keys that were read before: put the right file back before the process is started again.",
        expr: "db_layer_key_alarm",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(0),
        keeps: seconds(0),
        read: Read::Database(|all| all.keys.map(|keys| flag(keys.is_alarm))),
    },
    Rule {
        name: "EncryptionKeyUnknown",
        severity: Severity::Critical,
        what: "Encryption keys that values name and this process does not have: {}",
        action: "They cannot be read. Give the process the old keys, too, until everything is re-keyed.",
        expr: "db_layer_key_unknown",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(0),
        keeps: seconds(0),
        read: Read::Database(|all| all.keys.map(|keys| number(keys.unknown as u64))),
    },
    Rule {
        name: "RetiredKeyInUse",
        severity: Severity::Warning,
        what: "Values that are not sealed under the primary key: {}",
        action: "Keep the retired key. Re-keying goes on in the background, and the log says why if it does not; the program's own `rekey` does it now.",
        expr: "db_layer_key_left_to_rekey",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(3600),
        keeps: seconds(0),
        read: Read::Database(|all| all.keys.and_then(|keys| keys.left).map(number)),
    },
    Rule {
        name: "ServerClock",
        severity: Severity::Warning,
        what: "The clocks of the server and of this machine differ by {}",
        action: "Times of events and leases are the server's. Look at the time service (NTP) of both machines.",
        expr: "abs(db_layer_clock_offset_seconds)",
        unit: Unit::Seconds,
        above: 2.0,
        lasts: seconds(10),
        keeps: seconds(30),
        read: Read::Database(|all| all.clock.map(f64::abs)),
    },
    Rule {
        name: "RedisAway",
        severity: Severity::Warning,
        what: "Redis does not answer",
        action: "Rate limits count in each process by itself meanwhile, each its share. The log has the reason: the server is away, frozen, or refuses \
                 the login.",
        expr: "1 - db_layer_redis_connected",
        unit: Unit::Count,
        above: 0.0,
        lasts: seconds(5),
        keeps: seconds(10),
        read: Read::Database(|all| all.redis?.is_away.map(flag)),
    },
    Rule {
        name: "RedisBypassed",
        severity: Severity::Warning,
        what: "Callers that did without Redis in the last minute: {}",
        action: "It was away or too slow for them. Look at its latency (`redis-cli --latency`), at slow commands (`SLOWLOG GET`) and at the network.",
        expr: "increase(db_layer_redis_without_total[1m])",
        unit: Unit::Count,
        above: 10.0,
        lasts: seconds(0),
        keeps: seconds(30),
        read: Read::Database(|all| all.redis.map(|redis| number(redis.without))),
    },
];

fn mean_wait(pool: &PoolReading) -> Option<f64> {
    let (now, before) = (&pool.now.totals, &pool.before);
    let waited = now.queue_wait.saturating_sub(before.queue_wait);
    let acquired = now.acquired - before.acquired;
    (acquired > 0).then(|| mean(waited, acquired).as_secs_f64())
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use db_core::{Stats, Totals};
    use db_migrate::Summary;
    use db_testkit::TestDb;

    use super::super::readings::{Held, KeyReading, PoolReading, Readings, RedisReading};
    use super::*;
    use crate::{Config, Options};

    fn pool() -> PoolReading {
        let mut now = Stats::default();
        (now.max, now.in_use, now.waiting) = (8, 7, 11);
        let totals = &mut now.totals;
        (totals.timed_out, totals.shed, totals.leaked, totals.leaks_returned) = (30, 40, 9, 5);
        (totals.slow, totals.dial_failures) = (20, 50);
        (totals.acquired, totals.queue_wait) = (110, seconds(25));
        let mut before = Totals::default();
        (before.timed_out, before.shed, before.slow, before.dial_failures) = (28, 37, 14, 43);
        (before.acquired, before.queue_wait) = (100, seconds(10));
        let held = Held { slow: 2, idle_in_transaction: seconds(13) };
        PoolReading { name: "p".to_owned(), now, before, held }
    }

    #[db_testkit::test]
    async fn each_rule_reads_the_number_of_its_name(db: TestDb) {
        let config = Config::from_url(&db.url()).expect("an address");
        let layer = crate::open(Options::new(config).lazy()).await.expect("an open database");
        let mut bus = layer.bus().state();
        (bus.connected_since, bus.queue_usage) = (None, Some(0.75));
        let mut migrations = Summary::default();
        (migrations.pending, migrations.failed) = (21, 22);
        let well = Readings {
            pools: vec![pool()],
            not_ready: None,
            bus,
            gaps: 23,
            lag: Some(seconds(24)),
            migrations: Some(migrations),
            keys: Some(KeyReading { is_alarm: true, unknown: 25, left: Some(26) }),
            clock: Some(-27.0),
            redis: Some(RedisReading { is_away: Some(true), without: 28 }),
        };
        let value = |rule: &Rule, all: &Readings| match rule.read {
            Read::Pool(read) => read(&all.pools[0]),
            Read::Database(read) => read(all),
        };
        let expected = [
            ("NotReady", 0.0),
            ("PoolUtilization", 87.5),
            ("PoolWait", 1.5),
            ("PoolQueue", 11.0),
            ("PoolExhausted", 5.0),
            ("ConnectionLeaked", 4.0),
            ("SlowStatements", 8.0),
            ("IdleInTransaction", 13.0),
            ("DialFailures", 7.0),
            ("NotificationsLost", 23.0),
            ("NotificationQueue", 75.0),
            ("EventLag", 24.0),
            ("MigrationPending", 21.0),
            ("MigrationFailed", 22.0),
            ("EncryptionKeys", 1.0),
            ("EncryptionKeyUnknown", 25.0),
            ("RetiredKeyInUse", 26.0),
            ("ServerClock", 27.0),
            ("RedisAway", 1.0),
            ("RedisBypassed", 28.0),
        ];
        let read: Vec<_> = all().iter().filter_map(|rule| Some((rule.name, value(rule, &well)?))).collect();
        assert_eq!(read, expected, "a bus that nobody uses has no number");

        let of = |name: &str, all: &Readings| {
            value(super::all().iter().find(|it| it.name == name).expect(name), all)
        };
        let mut other = well.clone();
        other.not_ready = Some(NotReady::Database);
        other.bus.subscribers = 1;
        assert_eq!((of("NotReady", &other), of("BusDisconnected", &other)), (Some(1.0), Some(1.0)));
        other.not_ready = Some(NotReady::Closing);
        other.bus.connected_since = Some(std::time::SystemTime::UNIX_EPOCH);
        assert_eq!((of("NotReady", &other), of("BusDisconnected", &other)), (Some(0.0), Some(0.0)));
        other.pools[0].before.acquired = 110;
        assert_eq!(of("PoolWait", &other), None, "nobody waited in the last minute");
    }

    #[test]
    fn names_are_different_and_texts_have_a_place_for_their_number() {
        let names: BTreeSet<&str> = all().iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), all().len());
        for rule in all() {
            let needs_none =
                ["NotReady", "BusDisconnected", "EncryptionKeys", "RedisAway"].contains(&rule.name);
            assert_eq!(rule.what.matches("{}").count(), usize::from(!needs_none), "{}", rule.name);
        }
    }
}
