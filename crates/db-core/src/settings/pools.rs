//! How large the pools may grow.

use super::{Reader, Setting};
use crate::PoolOptions;

/// PostgreSQL's own limit of `max_connections`, from the documentation of its settings.
const MOST: u32 = 262_143;

static API: Setting = Setting {
    name: "api-max-conns",
    value: "CONNECTIONS",
    default: Some("10"),
    help: "The most connections of the pool for web requests.",
    change: "When requests queue (pool statistics: queued, queue_wait) while the server has processors to spare. All pools of all \
             instances together are best begun with twice the server's cores plus its disks: more that work at the same time \
             serve nobody sooner.",
    is_secret: false,
};

static BACKEND: Setting = Setting {
    name: "backend-max-conns",
    value: "CONNECTIONS",
    default: Some("50"),
    help: "The most connections of the pool for background work. May be more than the server works on at once if they are held \
           while something else is waited for.",
    change: "Lower it when all instances together do not fit into max_connections; raise it when jobs queue that wait for others \
             and not for the processor.",
    is_secret: false,
};

/// How large the pools may grow.
pub static POOLS: [&Setting; 2] = [&API, &BACKEND];

/// The pool for web requests.
pub fn api(reader: &mut Reader<'_>) -> PoolOptions {
    sized(reader, &API, PoolOptions::api())
}

/// The pool for background work.
pub fn backend(reader: &mut Reader<'_>) -> PoolOptions {
    sized(reader, &BACKEND, PoolOptions::backend())
}

fn sized(reader: &mut Reader<'_>, setting: &'static Setting, options: PoolOptions) -> PoolOptions {
    match reader.number(setting, 1..=MOST) {
        Some(max) => options.max(max),
        None => options,
    }
}
