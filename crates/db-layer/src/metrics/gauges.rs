//! What is read from the state of all parts: gauges, and counters that the parts count themselves.
//!
//! A gauge whose value is not known yet is not there: 0 would say that all is well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use db_core::{CloseReason, ErrorType, Limits, Stats, Totals};
use db_events::EventsState;
use db_migrate::Summary;
use db_notify::{BusState, GapReason};
use metrics::{Counter, Gauge, IntoF64, Label, counter, gauge};

use super::names::{self, Metric};
use super::pool::pool_label;
use crate::alerts::readings::{Held, is_away, is_used};
use crate::redis::RedisHealth;
use crate::{Db, SealingHealth};

/// The handles of all gauges and counters of a database.
pub(crate) struct Gauges {
    namespace: Vec<Label>,
    pools: Vec<PoolGauges>,
    ready: Gauge,
    closing: Gauge,
    clock_offset: Known,
    bus: BusGauges,
    events: EventGauges,
    /// From the first look on.
    migrations: OnceLock<MigrationGauges>,
    keys: Option<KeyGauges>,
    redis: Option<RedisGauges>,
}

impl std::fmt::Debug for Gauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gauges")
    }
}

impl Gauges {
    pub(crate) fn new(db: &Db) -> Self {
        let namespace = vec![Label::new("namespace", db.bus().namespace().to_owned())];
        Self {
            pools: db.all_pools().map(|pool| PoolGauges::new(pool_label(pool), pool.name())).collect(),
            ready: gauge(names::READY, &namespace),
            closing: gauge(names::CLOSING, &namespace),
            clock_offset: Known::new(names::CLOCK_OFFSET, &namespace),
            bus: BusGauges::new(&namespace),
            events: EventGauges::new(&namespace),
            migrations: OnceLock::new(),
            keys: db.holding().map(|_| KeyGauges::new(&namespace)),
            redis: db.redis_health().map(|_| RedisGauges::new(&namespace)),
            namespace,
        }
    }

    pub(crate) fn set(&self, db: &Db) {
        let health = db.health();
        for (gauges, pool) in self.pools.iter().zip(db.all_pools()) {
            gauges.set(&pool.stats(), pool.limits(), Held::of(pool), || pool.retries());
        }
        self.ready.set(flag(health.is_ready()));
        self.closing.set(flag(db.closing().is_cancelled()));
        self.clock_offset.set(health.clock_offset);
        self.bus.set(&health.bus);
        self.events.set(db.events().state());
        if let Some(summary) = health.migrations {
            self.migrations.get_or_init(|| MigrationGauges::new(&self.namespace)).set(summary);
        } else if let Some(gauges) = self.migrations.get() {
            gauges.set_unknown();
        }
        if let (Some(gauges), Some(sealing)) = (&self.keys, &health.sealing) {
            gauges.set(sealing);
        }
        if let (Some(gauges), Some(redis)) = (&self.redis, &health.redis) {
            gauges.set(redis);
        }
    }
}

struct PoolGauges {
    pool: Label,
    idle: Gauge,
    used: Gauge,
    idle_max: Gauge,
    idle_min: Gauge,
    max: Gauge,
    pending_requests: Gauge,
    timeouts: Total,
    closed: [Total; CloseReason::ALL.len()],
    dial_failures: Total,
    overflow: Gauge,
    repairing: Gauge,
    leaked: Total,
    leaks_returned: Total,
    idle_in_transaction: Gauge,
    slow: Total,
    running_slow: Gauge,
    shed: Total,
    cancelled: Total,
    second_waits: Total,
    ambiguous: Total,
    plan_stale: Total,
    /// By error. There are few for which a transaction is repeated.
    retries: Mutex<Vec<(ErrorType, Total)>>,
    /// The gauge of the reference: total, idle, waiting.
    by_state: [Gauge; 3],
}

impl PoolGauges {
    fn new(label: Label, name: &str) -> Self {
        let with = |key: &'static str, value: &'static str| {
            vec![label.clone(), Label::from_static_parts(key, value)]
        };
        let connections = |state| gauge(names::CONNECTIONS, &with("db.client.connection.state", state));
        let own = [label.clone()];
        let by_state = |state| {
            let labels = [Label::new("pool", name.to_owned()), Label::from_static_parts("state", state)];
            gauge(names::POOL_CONNECTIONS, &labels)
        };
        Self {
            idle: connections("idle"),
            used: connections("used"),
            idle_max: gauge(names::IDLE_MAX, &own),
            idle_min: gauge(names::IDLE_MIN, &own),
            max: gauge(names::MAX, &own),
            pending_requests: gauge(names::PENDING_REQUESTS, &own),
            timeouts: counter(names::TIMEOUTS, &own),
            closed: CloseReason::ALL.map(|why| counter(names::CLOSED, &with("reason", why.as_str()))),
            dial_failures: counter(names::DIAL_FAILURES, &own),
            overflow: gauge(names::OVERFLOW, &own),
            repairing: gauge(names::REPAIRING, &own),
            leaked: counter(names::LEAKED, &own),
            leaks_returned: counter(names::LEAKS_RETURNED, &own),
            idle_in_transaction: gauge(names::IDLE_IN_TRANSACTION, &own),
            slow: counter(names::SLOW, &own),
            running_slow: gauge(names::RUNNING_SLOW, &own),
            shed: counter(names::SHED, &own),
            cancelled: counter(names::CANCELLED, &own),
            second_waits: counter(names::SECOND_WAITS, &own),
            ambiguous: counter(names::AMBIGUOUS, &own),
            plan_stale: counter(names::PLAN_STALE, &own),
            by_state: ["total", "idle", "waiting"].map(by_state),
            // They are there before the first.
            retries: Mutex::new(ErrorType::CONFLICTS.map(|error| (error, retries(&label, error))).into()),
            pool: label,
        }
    }

    fn set(
        &self,
        stats: &Stats,
        limits: Limits,
        held: Held,
        by_error: impl FnOnce() -> Vec<(ErrorType, u64)>,
    ) {
        let Stats { max, open, idle, in_use, repairing, waiting, totals, .. } = *stats;
        let Limits { max_idle, min_idle, .. } = limits;
        let most_idle = max_idle.unwrap_or(max).max(min_idle);
        self.idle.set(idle);
        self.used.set(in_use);
        self.idle_max.set(most_idle);
        self.idle_min.set(min_idle);
        self.max.set(max);
        self.pending_requests.set(waiting);
        self.overflow.set(open.saturating_sub(most_idle));
        self.repairing.set(repairing);
        for (gauge, count) in self.by_state.iter().zip([open, idle, waiting]) {
            gauge.set(count);
        }
        let Totals { timed_out, dial_failures, leaked, shed, cancelled, .. } = totals;
        self.timeouts.set(timed_out);
        self.dial_failures.set(dial_failures);
        self.leaked.set(leaked);
        self.leaks_returned.set(totals.leaks_returned);
        self.slow.set(totals.slow);
        self.running_slow.set(count(held.slow));
        self.idle_in_transaction.set(held.idle_in_transaction);
        self.shed.set(shed);
        self.cancelled.set(cancelled);
        self.second_waits.set(totals.nested_acquires);
        self.ambiguous.set(totals.ambiguous);
        self.plan_stale.set(totals.stale_plans);
        for (counter, why) in self.closed.iter().zip(CloseReason::ALL) {
            counter.set(totals.closed.of(why));
        }
        if totals.retries > 0 {
            let mut known = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
            for (error, count) in by_error() {
                if !known.iter().any(|(of, _)| *of == error) {
                    known.push((error, retries(&self.pool, error)));
                }
                known.iter().filter(|(of, _)| *of == error).for_each(|(_, total)| total.set(count));
            }
        }
    }
}

fn retries(pool: &Label, error: ErrorType) -> Total {
    counter(names::RETRIES, &[pool.clone(), Label::new("error.type", error.to_string())])
}

struct BusGauges {
    connected: Known,
    heartbeat_age: Known,
    queue_usage: Known,
    pending: Gauge,
    topics: Gauge,
    subscribers: Gauge,
    sent: Total,
    coalesced: Total,
    gated: Total,
    gaps: [Total; GapReason::ALL.len()],
    lagged: Total,
}

impl BusGauges {
    fn new(labels: &[Label]) -> Self {
        let gap = |reason: GapReason| {
            let mut labels = labels.to_vec();
            labels.push(Label::from_static_parts("reason", reason.as_str()));
            counter(names::BUS_GAPS, &labels)
        };
        Self {
            connected: Known::new(names::BUS_CONNECTED, labels),
            heartbeat_age: Known::new(names::BUS_HEARTBEAT_AGE, labels),
            queue_usage: Known::new(names::BUS_QUEUE_USAGE, labels),
            pending: gauge(names::BUS_PENDING, labels),
            topics: gauge(names::BUS_TOPICS, labels),
            subscribers: gauge(names::BUS_SUBSCRIBERS, labels),
            sent: counter(names::BUS_SENT, labels),
            coalesced: counter(names::BUS_COALESCED, labels),
            gated: counter(names::BUS_GATED, labels),
            gaps: GapReason::ALL.map(gap),
            lagged: counter(names::BUS_LAGGED, labels),
        }
    }

    fn set(&self, state: &BusState) {
        self.connected.set(is_used(state).then(|| flag(state.is_connected())));
        // Not before the first heartbeat, nor if the clock was set back meanwhile.
        self.heartbeat_age.set(state.last_heartbeat.and_then(|at| SystemTime::elapsed(&at).ok()));
        self.queue_usage.set(state.queue_usage);
        self.pending.set(count(state.pending));
        self.topics.set(count(state.topics));
        self.subscribers.set(count(state.subscribers));
        self.sent.set(state.sent);
        self.coalesced.set(state.coalesced);
        self.gated.set(state.gated);
        self.lagged.set(state.lagged);
        for (counter, reason) in self.gaps.iter().zip(GapReason::ALL) {
            counter.set(state.received_gaps.of(reason));
        }
    }
}

struct EventGauges {
    followers: Gauge,
    readers: Gauge,
    pages: Total,
    head_polls: Total,
    lag: Known,
}

impl EventGauges {
    fn new(labels: &[Label]) -> Self {
        Self {
            followers: gauge(names::EVENTS_FOLLOWERS, labels),
            readers: gauge(names::EVENTS_READERS, labels),
            pages: counter(names::EVENTS_PAGES, labels),
            head_polls: counter(names::EVENTS_HEAD_POLLS, labels),
            lag: Known::new(names::EVENTS_LAG, labels),
        }
    }

    fn set(&self, state: EventsState) {
        self.followers.set(count(state.followers));
        self.readers.set(count(state.followed));
        self.pages.set(state.pages);
        self.head_polls.set(state.head_polls);
        self.lag.set(state.lag);
    }
}

struct MigrationGauges {
    version: Gauge,
    pending: Gauge,
    changed: Gauge,
    unknown: Gauge,
    under_way: Gauge,
    failed: Gauge,
}

impl MigrationGauges {
    fn new(labels: &[Label]) -> Self {
        let of = |metric| gauge(metric, labels);
        Self {
            version: of(names::MIGRATION_VERSION),
            pending: of(names::MIGRATION_PENDING),
            changed: of(names::MIGRATION_CHANGED),
            unknown: of(names::MIGRATION_UNKNOWN),
            under_way: of(names::MIGRATION_UNDER_WAY),
            failed: of(names::MIGRATION_FAILED),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a version is a time in 14 digits at most")]
    fn set(&self, summary: Summary) {
        self.version.set(summary.current as f64);
        self.pending.set(count(summary.pending));
        self.changed.set(count(summary.changed));
        self.unknown.set(count(summary.unknown));
        self.under_way.set(count(summary.under_way));
        self.failed.set(count(summary.failed));
    }

    /// After a look that has failed.
    fn set_unknown(&self) {
        let Self { version, pending, changed, unknown, under_way, failed } = self;
        for gauge in [version, pending, changed, unknown, under_way, failed] {
            gauge.set(f64::NAN);
        }
    }
}

struct KeyGauges {
    sealed: Total,
    unsealed: Total,
    /// In the order of [`KeyGauges::REASONS`].
    failed: [Total; 5],
    alarm: Gauge,
    waits_for: Gauge,
    unknown: Gauge,
    left: Known,
}

impl KeyGauges {
    const REASONS: [&str; 5] = ["keys_away", "unknown_key", "not_authentic", "unreadable", "not_sealed"];

    fn new(labels: &[Label]) -> Self {
        let of = |metric| gauge(metric, labels);
        let failed = |reason| {
            let reason = Label::from_static_parts("reason", reason);
            counter(names::KEY_FAILED, &[labels, &[reason]].concat())
        };
        Self {
            sealed: counter(names::KEY_SEALED, labels),
            unsealed: counter(names::KEY_UNSEALED, labels),
            failed: Self::REASONS.map(failed),
            alarm: of(names::KEY_ALARM),
            waits_for: of(names::KEY_WAITS_FOR),
            unknown: of(names::KEY_UNKNOWN),
            left: Known::new(names::KEY_LEFT, labels),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a table has fewer than 2^53 rows")]
    fn set(&self, health: &SealingHealth) {
        let totals = health.totals;
        self.sealed.set(totals.sealed);
        self.unsealed.set(totals.unsealed);
        let failed =
            [totals.away, totals.unknown_key, totals.not_authentic, totals.unreadable, totals.not_sealed];
        for (counter, total) in self.failed.iter().zip(failed) {
            counter.set(total);
        }
        self.alarm.set(flag(health.alarm.is_some()));
        self.waits_for.set(count(health.waits_for.len()));
        self.unknown.set(count(health.unknown.len()));
        let left = health.rekeying.as_ref().and_then(|state| state.left);
        self.left.set(left.map(|left| left as f64));
    }
}

struct RedisGauges {
    connected: Known,
    without: Total,
    connections: Known,
    commands: Known,
    command_rate: Known,
    memory: Known,
}

impl RedisGauges {
    fn new(labels: &[Label]) -> Self {
        let known = |metric| Known::new(metric, labels);
        Self {
            connected: known(names::REDIS_CONNECTED),
            without: counter(names::REDIS_WITHOUT, labels),
            connections: known(names::REDIS_CONNECTIONS),
            commands: known(names::REDIS_COMMANDS),
            command_rate: known(names::REDIS_COMMAND_RATE),
            memory: known(names::REDIS_MEMORY),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts and bytes below 2^53")]
    fn set(&self, health: &RedisHealth) {
        self.connected.set(is_away(health).map(|is_away| flag(!is_away)));
        self.without.set(health.without);
        let figures = health.figures.unwrap_or_default();
        let known = |figure: Option<u64>| figure.map(|figure| figure as f64);
        self.connections.set(known(figures.connections));
        self.commands.set(known(figures.commands));
        self.command_rate.set(known(figures.commands_per_second));
        self.memory.set(known(figures.memory));
    }
}

/// A gauge whose value is not always known: it is not there before the first one, and `NaN` while it is not known any more.
struct Known {
    metric: Metric,
    labels: Vec<Label>,
    gauge: OnceLock<Gauge>,
}

impl Known {
    fn new(metric: Metric, labels: &[Label]) -> Self {
        Self { metric, labels: labels.to_vec(), gauge: OnceLock::new() }
    }

    fn set(&self, value: Option<impl IntoF64>) {
        match value {
            Some(value) => self.gauge.get_or_init(|| gauge(self.metric, &self.labels)).set(value),
            None => {
                if let Some(gauge) = self.gauge.get() {
                    gauge.set(f64::NAN);
                }
            }
        }
    }
}

fn gauge(metric: Metric, labels: &[Label]) -> Gauge {
    gauge!(metric.name, labels.to_vec())
}

fn counter(metric: Metric, labels: &[Label]) -> Total {
    Total { counter: counter!(metric.name, labels.to_vec()), last: AtomicU64::new(0) }
}

/// A counter that follows a total. What the total has grown by is added: an absolute value would stand still when the database is opened again,
/// and two databases with the same labels would show the larger one.
struct Total {
    counter: Counter,
    last: AtomicU64,
}

impl Total {
    fn set(&self, now: u64) {
        // Several may set it at once, also to an older total.
        let last = self.last.fetch_max(now, Ordering::Relaxed);
        self.counter.increment(now.saturating_sub(last));
    }
}

fn flag(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "there are not that many")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use db_core::encryption::{Key, Keyring};
    use db_core::{Config, Pool, PoolOptions};
    use db_testkit::TestDb;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::{DatabaseHealth, Options};

    /// What an exporter of its own shows after this, without labels of the pool and the namespace, by name.
    fn shown(show: impl FnOnce()) -> Vec<(String, f64)> {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, show);
        let text = recorder.handle().render();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                let name =
                    name.replace("db_client_connection_pool_name=\"p\"", "").replace("namespace=\"n\"", "");
                let name = name.replace("{}", "").replace("{,", "{");
                (name, value.parse().expect("a number"))
            })
            .collect()
    }

    fn assert_shows(shown: &[(String, f64)], expected: &[(&str, f64)]) {
        for (name, value) in expected {
            let found = shown.iter().find(|(of, _)| of == name).map(|(_, value)| *value);
            assert_eq!(found, Some(*value), "{name} in {shown:?}");
        }
    }

    #[db_testkit::test]
    async fn each_number_of_a_pool_is_that_of_its_name(db: TestDb) {
        let mut stats = Stats::default();
        (stats.max, stats.open, stats.idle, stats.in_use, stats.repairing, stats.waiting) =
            (1, 22, 3, 4, 5, 6);
        let totals = &mut stats.totals;
        (totals.timed_out, totals.dial_failures, totals.leaked, totals.shed) = (7, 8, 9, 10);
        (totals.cancelled, totals.nested_acquires, totals.ambiguous, totals.stale_plans) = (11, 12, 13, 14);
        (totals.retries, totals.leaks_returned, totals.slow) = (16, 17, 18);
        let idle_in_transaction = std::time::Duration::from_secs(19);
        let held = Held { slow: 20, idle_in_transaction };
        let config = Config::from_url(&db.url()).expect("an address");
        let limits = Pool::lazy(&config, PoolOptions::api()).limits().max_idle(Some(15)).min_idle(2);
        let retried = || vec![(ErrorType::CONFLICTS[1], 16)];

        let shown = shown(|| {
            let label = Label::new("db.client.connection.pool.name", "p");
            PoolGauges::new(label, "p").set(&stats, limits, held, retried);
        });

        assert_shows(
            &shown,
            &[
                ("db_client_connection_max", 1.0),
                ("db_client_connection_count{db_client_connection_state=\"idle\"}", 3.0),
                ("db_client_connection_count{db_client_connection_state=\"used\"}", 4.0),
                ("db_client_connection_idle_max", 15.0),
                ("db_client_connection_idle_min", 2.0),
                ("db_client_connection_pending_requests", 6.0),
                ("db_client_connection_timeouts", 7.0),
                ("db_layer_connection_overflow", 7.0),
                ("db_layer_connection_repairing", 5.0),
                ("db_layer_connection_dial_failures", 8.0),
                ("db_layer_connection_leaked", 9.0),
                ("db_layer_connection_leaks_returned", 17.0),
                ("db_layer_statement_slow", 18.0),
                ("db_layer_connection_idle_in_transaction", 19.0),
                ("db_layer_statement_running_slow", 20.0),
                ("db_layer_connection_shed", 10.0),
                ("db_layer_connection_cancelled", 11.0),
                ("db_layer_connection_second_waits", 12.0),
                ("db_layer_tx_ambiguous", 13.0),
                ("db_layer_plan_stale", 14.0),
                ("db_layer_tx_retries{error_type=\"40P01\"}", 16.0),
                ("db_layer_tx_retries{error_type=\"40001\"}", 0.0),
                ("db_pool_connections{pool=\"p\",state=\"total\"}", 22.0),
                ("db_pool_connections{pool=\"p\",state=\"idle\"}", 3.0),
                ("db_pool_connections{pool=\"p\",state=\"waiting\"}", 6.0),
            ],
        );
    }

    #[db_testkit::test]
    async fn each_number_of_the_other_parts_is_that_of_its_name(db: TestDb) {
        let config = Config::from_url(&db.url()).expect("an address");
        let keys = Keyring::new(&Key::generate().expect("a key"));
        let options = Options::new(config).keys(keys).lazy();
        let layer = crate::open(options).await.expect("an open database");
        let mut bus = layer.bus().state();
        (bus.queue_usage, bus.pending, bus.topics, bus.subscribers) = (Some(0.5), 2, 3, 4);
        (bus.sent, bus.coalesced, bus.gated, bus.lagged) = (5, 6, 7, 8);
        let mut events = layer.events().state();
        (events.followers, events.followed, events.pages, events.head_polls) = (11, 12, 13, 14);
        events.lag = Some(std::time::Duration::from_secs(15));
        let mut summary = Summary::default();
        (summary.current, summary.pending, summary.changed) = (21, 22, 23);
        (summary.unknown, summary.under_way, summary.failed) = (24, 25, 26);
        let mut sealing = layer.health().sealing.expect("keys");
        let totals = &mut sealing.totals;
        (totals.sealed, totals.unsealed, totals.away, totals.unknown_key) = (31, 32, 33, 34);
        (totals.not_authentic, totals.unreadable, totals.not_sealed) = (35, 36, 37);
        sealing.alarm = Some("look at it".to_owned());
        sealing.waits_for = vec![String::new(); 38];

        let server = DatabaseHealth::Answers { within: std::time::Duration::ZERO };
        let mut figures = crate::redis::RedisFigures::default();
        (figures.connections, figures.commands) = (Some(41), Some(42));
        (figures.commands_per_second, figures.memory) = (Some(43), Some(44));
        let redis = RedisHealth { server, figures: Some(figures), without: 45, is_closed: false };

        let label = [Label::new("namespace", "n")];
        let shown = shown(|| {
            BusGauges::new(&label).set(&bus);
            EventGauges::new(&label).set(events);
            MigrationGauges::new(&label).set(summary);
            KeyGauges::new(&label).set(&sealing);
            RedisGauges::new(&label).set(&redis);
        });

        assert_shows(
            &shown,
            &[
                ("db_layer_bus_connected", 0.0),
                ("db_layer_bus_queue_usage", 0.5),
                ("db_layer_bus_pending", 2.0),
                ("db_layer_bus_topics", 3.0),
                ("db_layer_bus_subscribers", 4.0),
                ("db_layer_bus_sent", 5.0),
                ("db_layer_bus_coalesced", 6.0),
                ("db_layer_bus_gated", 7.0),
                ("db_layer_bus_lagged", 8.0),
                ("db_layer_events_followers", 11.0),
                ("db_layer_events_readers", 12.0),
                ("db_layer_events_pages", 13.0),
                ("db_layer_events_head_polls", 14.0),
                ("db_layer_events_lag", 15.0),
                ("db_layer_migration_version", 21.0),
                ("db_layer_migration_pending", 22.0),
                ("db_layer_migration_changed", 23.0),
                ("db_layer_migration_unknown", 24.0),
                ("db_layer_migration_under_way", 25.0),
                ("db_layer_migration_failed", 26.0),
                ("db_layer_key_sealed", 31.0),
                ("db_layer_key_unsealed", 32.0),
                ("db_layer_key_failed{reason=\"keys_away\"}", 33.0),
                ("db_layer_key_failed{reason=\"unknown_key\"}", 34.0),
                ("db_layer_key_failed{reason=\"not_authentic\"}", 35.0),
                ("db_layer_key_failed{reason=\"unreadable\"}", 36.0),
                ("db_layer_key_failed{reason=\"not_sealed\"}", 37.0),
                ("db_layer_key_alarm", 1.0),
                ("db_layer_key_waits_for", 38.0),
                ("db_layer_redis_connected", 1.0),
                ("db_layer_redis_connections", 41.0),
                ("db_layer_redis_commands", 42.0),
                ("db_layer_redis_command_rate", 43.0),
                ("db_layer_redis_memory", 44.0),
                ("db_layer_redis_without", 45.0),
            ],
        );
        let names: Vec<_> = shown.iter().map(|(name, _)| name.as_str()).collect();
        assert!(
            !names.contains(&"db_layer_bus_heartbeat_age"),
            "no heartbeat yet, which is not 0: {names:?}"
        );
    }
}
