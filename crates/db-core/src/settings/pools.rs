//! The settings of the pools' sizes.

use super::{Reader, Setting};
use crate::PoolOptions;

/// PostgreSQL's own maximum of `max_connections`.
const MAX_CONNECTIONS: u32 = 262_143;

static API: Setting = Setting {
    name: "api-max-conns",
    value: "CONNECTIONS",
    default: Some("10"),
    help: "Maximum connections of the pool for web requests.",
    change: "When requests queue (pool statistics: queued, queue_wait) while the server has idle processors. Start with 2 × server \
             cores + disks, summed over all pools of all instances; more active connections do not raise throughput.",
    is_secret: false,
    repeats: false,
};

static BACKEND: Setting = Setting {
    name: "backend-max-conns",
    value: "CONNECTIONS",
    default: Some("50"),
    help: "Maximum connections of the pool for background work. It may exceed what the server can work on at once if jobs hold \
           connections while they wait for something else.",
    change: "Lower it when all instances together exceed max_connections. Raise it when jobs queue while they wait for other \
             services and the server has idle processors.",
    is_secret: false,
    repeats: false,
};

/// The settings of the pools' sizes.
pub static POOLS: [&Setting; 2] = [&API, &BACKEND];

/// The options of the pool for web requests.
pub fn api(reader: &mut Reader<'_>) -> PoolOptions {
    sized(reader, &API, PoolOptions::api())
}

/// The options of the pool for background work.
pub fn backend(reader: &mut Reader<'_>) -> PoolOptions {
    sized(reader, &BACKEND, PoolOptions::backend())
}

fn sized(reader: &mut Reader<'_>, setting: &'static Setting, options: PoolOptions) -> PoolOptions {
    match reader.number(setting, 1..=MAX_CONNECTIONS) {
        Some(max) => options.max(max),
        None => options,
    }
}
