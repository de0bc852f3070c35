//! Opening a migrated database, beside the round trips that it consists of.
//!
//! The peer is the driver: the same sessions and queries, one after the other, on bare connections. `open` can be faster because it
//! works concurrently. The chain is the longest sequence of dependent steps: the time of `open` if everything else were free.

use std::time::{Duration, Instant};

use anyhow::ensure;
use db_core::{Config, PoolOptions};
use db_layer::{Db, Migrations, Options};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::runtime::Runtime;

use crate::report::{Report, Row};
use crate::server::Database;

/// The connections that each of the two pools keeps ready.
const READY: u32 = 2;

/// How long closing may take; nothing is running then.
const CLOSING: Duration = Duration::from_secs(10);

/// The queries of `open` on its first session after a ping: the server's limits, and the migrations.
const QUESTIONS: [&str; 3] = [
    "select current_setting('max_connections')::int4, current_setting('superuser_reserved_connections')::int4 \
     + coalesce(current_setting('reserved_connections', true)::int4, 0)",
    "select c.oid::int8, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relname::text \
     from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass(E'_sqlx_migrations')",
    "select version, description, success, encode(checksum, 'hex') from public._sqlx_migrations order by version",
];

/// A pool's query on each session.
const WHO: &str = "select pid, backend_start::text from pg_stat_get_activity(pg_backend_pid())";

const LISTEN: &str = "listen \"db_notify.bench\"";

/// The bus's notification to itself, which checks that its own notifications arrive.
const NOTIFY: &str = "select pg_notify('db_notify.bench', '1')";

pub(crate) fn measure(runtime: &Runtime, rounds: usize) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let config = database.config()?;
        // On a worker thread, as the tasks of users are.
        let measured = runtime.block_on(runtime.spawn(async move {
            // The first run migrates, and the second one warms the server up.
            for _ in 0..2 {
                round(&config, true).await?;
            }
            let mut measured = Vec::new();
            for n in 0..rounds {
                // The order alternates, since the first of a round finds the server in another state.
                measured.push(round(&config, n % 2 == 0).await?);
            }
            anyhow::Ok(measured)
        }))??;
        let beside = |peer: fn(&Round) -> f64| -> Vec<_> {
            measured.iter().map(|round| (round.ours, peer(round))).collect()
        };
        Ok(Report {
            server: database.what().to_owned(),
            arms: Vec::new(),
            rows: vec![
                Row::new("open.warm_ms", "ms", &beside(|round| round.sum)),
                Row::new("open.vs_chain", "ms", &beside(|round| round.chain)),
            ],
        })
    })
}

/// In milliseconds.
struct Round {
    ours: f64,
    sum: f64,
    chain: f64,
}

async fn round(config: &Config, ours_first: bool) -> anyhow::Result<Round> {
    if ours_first {
        let ours = ours(config).await?;
        let (sum, chain) = peer(config).await?;
        return Ok(Round { ours, sum, chain });
    }
    let (sum, chain) = peer(config).await?;
    Ok(Round { ours: ours(config).await?, sum, chain })
}

async fn ours(config: &Config) -> anyhow::Result<f64> {
    // Read outside the timed part, as programs do when they start or are built.
    let migrations = Migrations::from_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations")).await?;
    let options = Options::new(config.clone())
        .api(PoolOptions::api().min_idle(READY))
        .backend(PoolOptions::backend().min_idle(READY));
    let options = options.migrations(migrations).namespace("bench");

    let began = Instant::now();
    let db = db_layer::open(options).await?;
    let took = milliseconds(began);

    check(&db)?;
    ensure!(db.shutdown(CLOSING).await.is_clean(), "the database did not close in time");
    Ok(took)
}

/// Checks that everything was open when `open` returned. Otherwise its figure would be too good.
fn check(db: &Db) -> anyhow::Result<()> {
    for handle in [db.api(), db.backend()] {
        let stats = handle.pool().stats();
        ensure!(stats.idle == READY, "pool {} was not warm: {stats:?}", handle.pool().name());
    }
    ensure!(db.bus().state().is_connected(), "the bus did not listen");
    Ok(())
}

/// The time of all steps one after the other, and of the longest chain.
async fn peer(config: &Config) -> anyhow::Result<(f64, f64)> {
    let options = config.as_sqlx().disable_statement_logging();
    let began = Instant::now();
    let mut first = options.connect().await?;
    first.ping().await?;
    for question in QUESTIONS {
        ask(&mut first, question).await?;
    }
    first.close().await?;
    let asked = milliseconds(began);

    let mut open = Vec::new();
    let mut longest: f64 = 0.0;
    for question in [LISTEN].into_iter().chain([WHO; 2 * READY as usize]) {
        let (connection, took) = begin(&options, question).await?;
        open.push(connection);
        longest = longest.max(took);
    }
    let connecting = Instant::now();
    let mut sender = options.connect().await?;
    longest = longest.max(milliseconds(connecting));
    let notifying = Instant::now();
    ask(&mut sender, NOTIFY).await?;
    // After the bus's other first steps.
    let heard = milliseconds(notifying);
    open.push(sender);
    let sum = milliseconds(began);

    for connection in open {
        connection.close().await?;
    }
    Ok((sum, asked + longest + heard))
}

/// Opens a session and runs one query on it.
async fn begin(options: &PgConnectOptions, question: &'static str) -> anyhow::Result<(PgConnection, f64)> {
    let began = Instant::now();
    let mut connection = options.connect().await?;
    ask(&mut connection, question).await?;
    Ok((connection, milliseconds(began)))
}

/// Runs a query by the simple protocol, in one round trip.
async fn ask(connection: &mut PgConnection, question: &'static str) -> anyhow::Result<()> {
    connection.fetch_all(sqlx::raw_sql(question)).await?;
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
