//! The table of all metrics: what they are called, and what they say.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// What kind of numbers a metric has.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It is as it is at the moment.
    Gauge,
    /// How many values there were, by size. The upper bounds of the sizes.
    Histogram(&'static [f64]),
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name, as the `metrics` facade gets it. Exporters may change dots to underscores, and add the unit.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its unit, as UCUM writes it: `s`, `1`, `{connection}`.
    pub unit: &'static str,
    /// What it says.
    pub what: &'static str,
}

/// The sizes of durations, by OpenTelemetry's semantic conventions.
const SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// The sizes of results, by the same.
const ROWS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0];

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:expr, $unit:literal, $what:literal;)+) => {
        $(pub(crate) const $constant: Metric = Metric { name: $name, kind: $kind, unit: $unit, what: $what };)+

        /// All metrics.
        #[must_use]
        pub const fn all() -> &'static [Metric] {
            &[$($constant),+]
        }
    };
}

metrics! {
    // OpenTelemetry's names, of its semantic conventions 1.44.
    DURATION = "db.client.operation.duration", Kind::Histogram(SECONDS), "s",
        "Duration of statements, by error if they failed";
    RETURNED_ROWS = "db.client.response.returned_rows", Kind::Histogram(ROWS), "{row}",
        "Rows that statements returned";
    CONNECTIONS = "db.client.connection.count", Kind::Gauge, "{connection}",
        "Open connections, by state: idle or used";
    IDLE_MAX = "db.client.connection.idle.max", Kind::Gauge, "{connection}",
        "The most connections that stay open while idle";
    IDLE_MIN = "db.client.connection.idle.min", Kind::Gauge, "{connection}",
        "Idle connections to keep open";
    MAX = "db.client.connection.max", Kind::Gauge, "{connection}",
        "The most connections that are in use or idle";
    PENDING_REQUESTS = "db.client.connection.pending_requests", Kind::Gauge, "{request}",
        "Callers in the queue of the pool";
    TIMEOUTS = "db.client.connection.timeouts", Kind::Counter, "{timeout}",
        "Callers that got no connection within the pool's time limit";
    CREATE_TIME = "db.client.connection.create_time", Kind::Histogram(SECONDS), "s",
        "How long dialling a connection took";
    WAIT_TIME = "db.client.connection.wait_time", Kind::Histogram(SECONDS), "s",
        "How long callers waited for their connection: queueing, dialling and checking together";
    USE_TIME = "db.client.connection.use_time", Kind::Histogram(SECONDS), "s",
        "How long connections were held";

    // What the conventions have no name for.
    QUEUE_TIME = "db_layer.connection.queue_time", Kind::Histogram(SECONDS), "s",
        "What of the wait was queueing for a connection that others used";
    CLOSED = "db_layer.connection.closed", Kind::Counter, "{connection}",
        "Connections that are gone, by reason";
    DIAL_FAILURES = "db_layer.connection.dial_failures", Kind::Counter, "{attempt}",
        "Failed attempts to dial a connection";
    OVERFLOW = "db_layer.connection.overflow", Kind::Gauge, "{connection}",
        "Open connections above the most that stay open while idle";
    REPAIRING = "db_layer.connection.repairing", Kind::Gauge, "{connection}",
        "Connections that are pinged, repaired or closed";
    LEAKED = "db_layer.connection.leaked", Kind::Counter, "{connection}",
        "Connections that were held for longer than their threshold";
    LEAKS_RETURNED = "db_layer.connection.leaks_returned", Kind::Counter, "{connection}",
        "Connections that were given back after they were held for longer than their threshold";
    IDLE_IN_TRANSACTION = "db_layer.connection.idle_in_transaction", Kind::Gauge, "s",
        "The longest time that a transaction has been idle for";
    SLOW = "db_layer.statement.slow", Kind::Counter, "{statement}",
        "Statements that took longer than the pool's threshold";
    RUNNING_SLOW = "db_layer.statement.running_slow", Kind::Gauge, "{statement}",
        "Statements that have been running for longer than the pool's threshold";
    SHED = "db_layer.connection.shed", Kind::Counter, "{request}",
        "Callers that were turned away, because the queue was full or everybody waited for too long";
    CANCELLED = "db_layer.connection.cancelled", Kind::Counter, "{statement}",
        "Abandoned statements that were cancelled on the server";
    SECOND_WAITS = "db_layer.connection.second_waits", Kind::Counter, "{request}",
        "Waits of a task that already held a connection of the same pool";
    RETRIES = "db_layer.tx.retries", Kind::Counter, "{transaction}",
        "Repetitions of transactions, by the error that was the reason";
    AMBIGUOUS = "db_layer.tx.ambiguous", Kind::Counter, "{transaction}",
        "Commits whose outcome stayed unknown";
    PLAN_STALE = "db_layer.plan.stale", Kind::Counter, "{plan}",
        "Cached plans that were found stale";
    POOL_CONNECTIONS = "db_pool_connections", Kind::Gauge, "{connection}",
        "Connections by state: total, idle, and callers waiting";
    READY = "db_layer.ready", Kind::Gauge, "1",
        "1 while requests can be served, else 0";
    CLOSING = "db_layer.closing", Kind::Gauge, "1",
        "1 while the service shuts down, else 0";
    CLOCK_OFFSET = "db_layer.clock.offset", Kind::Gauge, "s",
        "By how much the server's clock is ahead of this machine's; negative if it is behind";

    BUS_CONNECTED = "db_layer.bus.connected", Kind::Gauge, "1",
        "1 while LISTEN is in force, else 0; from the first use of the bus on";
    BUS_HEARTBEAT_AGE = "db_layer.bus.heartbeat_age", Kind::Gauge, "s",
        "Time since the server last answered a heartbeat of the bus";
    BUS_QUEUE_USAGE = "db_layer.bus.queue_usage", Kind::Gauge, "1",
        "Usage of the server's queue of notifications, from 0 to 1";
    BUS_PENDING = "db_layer.bus.pending", Kind::Gauge, "{notification}",
        "Notifications that wait to be sent";
    BUS_TOPICS = "db_layer.bus.topics", Kind::Gauge, "{topic}",
        "Topics with a subscription in this process";
    BUS_SUBSCRIBERS = "db_layer.bus.subscribers", Kind::Gauge, "{subscription}",
        "Subscriptions in this process";
    BUS_SENT = "db_layer.bus.sent", Kind::Counter, "{notification}",
        "Notifications that were sent";
    BUS_COALESCED = "db_layer.bus.coalesced", Kind::Counter, "{notification}",
        "Notifications that were not sent, because an equal one was waiting";
    BUS_GATED = "db_layer.bus.gated", Kind::Counter, "{notification}",
        "Notifications that were not sent, because no process watched their topic";
    BUS_GAPS = "db_layer.bus.gaps", Kind::Counter, "{gap}",
        "Gaps that subscriptions received, by reason";
    BUS_LAGGED = "db_layer.bus.lagged", Kind::Counter, "{notification}",
        "Notifications that did not fit into the queue of a subscription";

    EVENTS_FOLLOWERS = "db_layer.events.followers", Kind::Gauge, "{stream}",
        "Streams that follow an event log";
    EVENTS_READERS = "db_layer.events.readers", Kind::Gauge, "{log}",
        "Event logs that are followed, each by one reader";
    EVENTS_PAGES = "db_layer.events.pages", Kind::Counter, "{page}",
        "Pages of event logs that were read";
    EVENTS_HEAD_POLLS = "db_layer.events.head_polls", Kind::Counter, "{poll}",
        "Polls of the heads of all followed event logs";
    EVENTS_LAG = "db_layer.events.lag", Kind::Gauge, "s",
        "How old the newest event was when it was last read for followers, if that was in the last minute";

    MIGRATION_VERSION = "db_layer.migration.version", Kind::Gauge, "1",
        "The newest version on record in the database";
    MIGRATION_PENDING = "db_layer.migration.pending", Kind::Gauge, "{file}",
        "Migrations that are not applied";
    MIGRATION_CHANGED = "db_layer.migration.changed", Kind::Gauge, "{file}",
        "Migrations that were changed after they were applied";
    MIGRATION_UNKNOWN = "db_layer.migration.unknown", Kind::Gauge, "{file}",
        "Versions on record that the program does not have";
    MIGRATION_UNDER_WAY = "db_layer.migration.under_way", Kind::Gauge, "{file}",
        "Migrations that have begun and not ended";
    MIGRATION_FAILED = "db_layer.migration.failed", Kind::Gauge, "{file}",
        "Migrations whose last attempt has failed";

    KEY_SEALED = "db_layer.key.sealed", Kind::Counter, "{value}",
        "Values that were sealed";
    KEY_UNSEALED = "db_layer.key.unsealed", Kind::Counter, "{value}",
        "Values that were unsealed";
    KEY_FAILED = "db_layer.key.failed", Kind::Counter, "{value}",
        "Values that were not sealed or unsealed, by reason";
    KEY_ALARM = "db_layer.key.alarm", Kind::Gauge, "1",
        "1 while somebody has to look at the keys, else 0";
    KEY_WAITS_FOR = "db_layer.key.waits_for", Kind::Gauge, "{process}",
        "Processes that do not have the key yet that is to become primary";
    KEY_UNKNOWN = "db_layer.key.unknown", Kind::Gauge, "{key}",
        "Keys that values have named and that this process does not have";
    KEY_LEFT = "db_layer.key.left_to_rekey", Kind::Gauge, "{value}",
        "Values that are not sealed under the primary key";

    REDIS_CONNECTED = "db_layer.redis.connected", Kind::Gauge, "1",
        "1 while Redis answers, else 0; from the first look on";
    REDIS_WITHOUT = "db_layer.redis.without", Kind::Counter, "{request}",
        "Callers that did without Redis, because it was away or too slow";
    REDIS_CONNECTIONS = "db_layer.redis.connections", Kind::Gauge, "{connection}",
        "Connections of clients, by Redis's own count";
    REDIS_COMMANDS = "db_layer.redis.commands", Kind::Gauge, "{command}",
        "Commands that Redis has executed since its start, by its own count";
    REDIS_COMMAND_RATE = "db_layer.redis.command_rate", Kind::Gauge, "{command}/s",
        "Commands that Redis executes a second, by its own count";
    REDIS_MEMORY = "db_layer.redis.memory", Kind::Gauge, "By",
        "Memory that Redis uses, by its own count";
}

/// The names of the histograms, each with the upper bounds of its sizes, for the program's exporter: some make a summary of a histogram
/// without bounds.
pub fn histograms() -> impl Iterator<Item = (&'static str, &'static [f64])> {
    all().iter().filter_map(|metric| match metric.kind {
        Kind::Histogram(bounds) => Some((metric.name, bounds)),
        _ => None,
    })
}

/// Tells the recorder the unit and the meaning of each metric.
pub(crate) fn describe() {
    for Metric { name, kind, unit, what } in all().iter().copied() {
        let unit = match unit {
            "s" => Unit::Seconds,
            "By" => Unit::Bytes,
            _ => Unit::Count,
        };
        match kind {
            Kind::Counter => describe_counter!(name, unit, what),
            Kind::Gauge => describe_gauge!(name, unit, what),
            Kind::Histogram(_) => describe_histogram!(name, unit, what),
        }
    }
}
