//! What is read from the state of all parts: gauges, and counters that the parts count themselves.

use std::time::{Duration, SystemTime};

use db_core::{CloseReason, ErrorType, Limits, Pool, Stats, Totals};
use db_events::EventsState;
use db_migrate::Summary;
use db_notify::{BusState, GapReason};
use metrics::{Counter, Gauge, Label, counter, gauge};

use super::names::{self, Metric};
use super::pool::pool_label;
use crate::{Db, SealingHealth};

/// The handles of all gauges and counters of a database. Each is made once, with 0.
pub(crate) struct Gauges {
    pools: Vec<PoolGauges>,
    ready: Gauge,
    bus: BusGauges,
    events: EventGauges,
    migrations: Option<MigrationGauges>,
    keys: Option<KeyGauges>,
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
            pools: db.all_pools().map(PoolGauges::new).collect(),
            ready: gauge(names::READY, &[]),
            bus: BusGauges::new(&namespace),
            events: EventGauges::new(&namespace),
            migrations: db.pulse().has_migrations().then(MigrationGauges::new),
            keys: db.holding().map(|_| KeyGauges::new()),
        }
    }

    pub(crate) fn set(&self, db: &Db) {
        let health = db.health();
        for (gauges, pool) in self.pools.iter().zip(db.all_pools()) {
            gauges.set(pool);
        }
        self.ready.set(flag(health.is_ready()));
        self.bus.set(&health.bus);
        self.events.set(db.events().state());
        if let (Some(gauges), Some(summary)) = (&self.migrations, health.migrations) {
            gauges.set(summary);
        }
        if let (Some(gauges), Some(sealing)) = (&self.keys, &health.sealing) {
            gauges.set(sealing);
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
    timeouts: Counter,
    closed: [Counter; CloseReason::ALL.len()],
    dial_failures: Counter,
    overflow: Gauge,
    repairing: Gauge,
    leaked: Counter,
    shed: Counter,
    cancelled: Counter,
    second_waits: Counter,
    ambiguous: Counter,
    plan_stale: Counter,
    /// The gauge of the reference: total, idle, waiting.
    by_state: [Gauge; 3],
}

/// The errors for which transactions are repeated most often. Their counters are there before the first.
const CONFLICTS: [&str; 2] = ["40001", "40P01"];

impl PoolGauges {
    fn new(pool: &Pool) -> Self {
        let label = pool_label(pool);
        let with = |key: &'static str, value: &'static str| {
            vec![label.clone(), Label::from_static_parts(key, value)]
        };
        let connections = |state| gauge(names::CONNECTIONS, &with("db.client.connection.state", state));
        let own = [label.clone()];
        let by_state = |state| {
            let labels =
                [Label::new("pool", pool.name().to_owned()), Label::from_static_parts("state", state)];
            gauge(names::POOL_CONNECTIONS, &labels)
        };
        for state in CONFLICTS {
            retries(&label, state).absolute(0);
        }
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
            shed: counter(names::SHED, &own),
            cancelled: counter(names::CANCELLED, &own),
            second_waits: counter(names::SECOND_WAITS, &own),
            ambiguous: counter(names::AMBIGUOUS, &own),
            plan_stale: counter(names::PLAN_STALE, &own),
            by_state: ["total", "idle", "waiting"].map(by_state),
            pool: label,
        }
    }

    fn set(&self, pool: &Pool) {
        let Stats { max, open, idle, in_use, repairing, waiting, totals, .. } = pool.stats();
        let Limits { max_idle, min_idle, .. } = pool.limits();
        let most_idle = max_idle.unwrap_or(max);
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
        self.timeouts.absolute(timed_out);
        self.dial_failures.absolute(dial_failures);
        self.leaked.absolute(leaked);
        self.shed.absolute(shed);
        self.cancelled.absolute(cancelled);
        self.second_waits.absolute(totals.nested_acquires);
        self.ambiguous.absolute(totals.ambiguous);
        self.plan_stale.absolute(totals.stale_plans);
        for (counter, why) in self.closed.iter().zip(CloseReason::ALL) {
            counter.absolute(totals.closed.of(why));
        }
        if totals.retries > 0 {
            for (error, count) in pool.retries() {
                retries(&self.pool, ErrorType::as_str(&error)).absolute(count);
            }
        }
    }
}

fn retries(pool: &Label, error: &str) -> Counter {
    counter(names::RETRIES, &[pool.clone(), Label::new("error.type", error.to_owned())])
}

struct BusGauges {
    connected: Gauge,
    heartbeat_age: Gauge,
    queue_usage: Gauge,
    pending: Gauge,
    topics: Gauge,
    subscribers: Gauge,
    sent: Counter,
    coalesced: Counter,
    gated: Counter,
    gaps: [Counter; GapReason::ALL.len()],
    lagged: Counter,
}

impl BusGauges {
    fn new(labels: &[Label]) -> Self {
        let gap = |reason: GapReason| {
            let mut labels = labels.to_vec();
            labels.push(Label::from_static_parts("reason", reason.as_str()));
            counter(names::BUS_GAPS, &labels)
        };
        Self {
            connected: gauge(names::BUS_CONNECTED, labels),
            heartbeat_age: gauge(names::BUS_HEARTBEAT_AGE, labels),
            queue_usage: gauge(names::BUS_QUEUE_USAGE, labels),
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
        self.connected.set(flag(state.is_connected()));
        // Not before the first heartbeat, nor if the clock was set back meanwhile.
        if let Some(age) = state.last_heartbeat.and_then(|at| SystemTime::elapsed(&at).ok()) {
            self.heartbeat_age.set(age);
        }
        if let Some(usage) = state.queue_usage {
            self.queue_usage.set(usage);
        }
        self.pending.set(count(state.pending));
        self.topics.set(count(state.topics));
        self.subscribers.set(count(state.subscribers));
        self.sent.absolute(state.sent);
        self.coalesced.absolute(state.coalesced);
        self.gated.absolute(state.gated);
        self.lagged.absolute(state.lagged);
        for (counter, reason) in self.gaps.iter().zip(GapReason::ALL) {
            counter.absolute(state.received_gaps.of(reason));
        }
    }
}

struct EventGauges {
    followers: Gauge,
    readers: Gauge,
    pages: Counter,
    head_polls: Counter,
    lag: Gauge,
}

impl EventGauges {
    fn new(labels: &[Label]) -> Self {
        Self {
            followers: gauge(names::EVENTS_FOLLOWERS, labels),
            readers: gauge(names::EVENTS_READERS, labels),
            pages: counter(names::EVENTS_PAGES, labels),
            head_polls: counter(names::EVENTS_HEAD_POLLS, labels),
            lag: gauge(names::EVENTS_LAG, labels),
        }
    }

    fn set(&self, state: EventsState) {
        self.followers.set(count(state.followers));
        self.readers.set(count(state.followed));
        self.pages.absolute(state.pages);
        self.head_polls.absolute(state.head_polls);
        self.lag.set(state.lag.unwrap_or(Duration::ZERO));
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
    fn new() -> Self {
        let of = |metric| gauge(metric, &[]);
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
}

struct KeyGauges {
    sealed: Counter,
    unsealed: Counter,
    /// In the order of [`KeyGauges::REASONS`].
    failed: [Counter; 5],
    alarm: Gauge,
    waits_for: Gauge,
    unknown: Gauge,
    left: Gauge,
}

impl KeyGauges {
    const REASONS: [&str; 5] = ["keys_away", "unknown_key", "not_authentic", "unreadable", "not_sealed"];

    fn new() -> Self {
        let of = |metric| gauge(metric, &[]);
        let failed = |reason| counter(names::KEY_FAILED, &[Label::from_static_parts("reason", reason)]);
        Self {
            sealed: counter(names::KEY_SEALED, &[]),
            unsealed: counter(names::KEY_UNSEALED, &[]),
            failed: Self::REASONS.map(failed),
            alarm: of(names::KEY_ALARM),
            waits_for: of(names::KEY_WAITS_FOR),
            unknown: of(names::KEY_UNKNOWN),
            left: of(names::KEY_LEFT),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "no table has so many rows")]
    fn set(&self, health: &SealingHealth) {
        let totals = health.totals;
        self.sealed.absolute(totals.sealed);
        self.unsealed.absolute(totals.unsealed);
        let failed =
            [totals.away, totals.unknown_key, totals.not_authentic, totals.unreadable, totals.not_sealed];
        for (counter, total) in self.failed.iter().zip(failed) {
            counter.absolute(total);
        }
        self.alarm.set(flag(health.alarm.is_some()));
        self.waits_for.set(count(health.waits_for.len()));
        self.unknown.set(count(health.unknown.len()));
        if let Some(left) = health.rekeying.as_ref().and_then(|state| state.left) {
            self.left.set(left as f64);
        }
    }
}

fn gauge(metric: Metric, labels: &[Label]) -> Gauge {
    gauge!(metric.name, labels.to_vec())
}

fn counter(metric: Metric, labels: &[Label]) -> Counter {
    let counter = counter!(metric.name, labels.to_vec());
    // Exporters show a counter once it was set.
    counter.absolute(0);
    counter
}

fn flag(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "there are not that many")]
fn count(number: usize) -> f64 {
    number as f64
}
