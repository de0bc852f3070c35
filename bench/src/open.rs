//! Opening a database that was migrated before, beside the round trips it is made of.
//!
//! The peer is the driver: the same sessions begun and the same questions asked, one after the other, by bare connections.
//! What ours does at the same time is what it can be quicker by. The chain is the part of that where each step needs the one
//! before: what ours would take if everything else cost nothing.

use std::time::{Duration, Instant};

use anyhow::ensure;
use db_core::{Config, PoolOptions};
use db_layer::{Db, Migrations, Options};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::runtime::Runtime;

use crate::report::{Report, Row};
use crate::server::Database;

/// What each of the two pools keeps ready.
const READY: u32 = 2;

/// How long what was opened may take to close; nothing is at work.
const CLOSING: Duration = Duration::from_secs(10);

/// What `open` asks on its first session, after a sign of life: how much room the server has, and what was migrated.
const QUESTIONS: [&str; 3] = [
    "select current_setting('max_connections')::int4, current_setting('superuser_reserved_connections')::int4 \
     + coalesce(current_setting('reserved_connections', true)::int4, 0)",
    "select to_regclass('_sqlx_migrations') is not null",
    "select version, description, encode(checksum, 'hex') from _sqlx_migrations where success order by version",
];

/// What a pool asks on each session.
const WHO: &str = "select pid, backend_start::text from pg_stat_get_activity(pg_backend_pid())";

const LISTEN: &str = "listen \"db_notify.bench\"";

/// What the bus says, on a session of its own, to see whether it arrives.
const NOTIFY: &str = "select pg_notify('db_notify.bench', '1')";

pub(crate) fn measure(runtime: &Runtime, rounds: usize) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let config = database.config()?;
        // On a worker thread, as everybody's tasks are.
        let measured = runtime.block_on(runtime.spawn(async move {
            // The first one migrates, and the second one warms the server up.
            for _ in 0..2 {
                round(&config, true).await?;
            }
            let mut measured = Vec::new();
            for n in 0..rounds {
                // Whoever comes first finds the server in another state.
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

/// Milliseconds.
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
    // The files are read when a program starts, or when it is built.
    let migrations = Migrations::from_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations")).await?;
    let options = Options::new(config.clone())
        .api(PoolOptions::api().min_idle(READY))
        .backend(PoolOptions::backend().min_idle(READY));
    let options = options.migrations(migrations).namespace("bench");

    let began = Instant::now();
    let db = db_layer::open(options).await?;
    let took = milliseconds(began);

    check(&db)?;
    ensure!(db.shutdown(CLOSING).await.is_clean(), "what was opened did not close");
    Ok(took)
}

/// Whether it had everything when it said so. An earlier end would be a better figure.
fn check(db: &Db) -> anyhow::Result<()> {
    for handle in [db.api(), db.backend()] {
        let stats = handle.pool().stats();
        ensure!(stats.idle == READY, "pool {} was not warm: {stats:?}", handle.pool().name());
    }
    ensure!(db.bus().state().is_connected(), "the bus did not listen");
    Ok(())
}

/// All of it one after the other, and of it the longest chain.
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
    // After whatever else the bus begins with.
    let heard = milliseconds(notifying);
    open.push(sender);
    let sum = milliseconds(began);

    for connection in open {
        connection.close().await?;
    }
    Ok((sum, asked + longest + heard))
}

/// A session, and its one question.
async fn begin(options: &PgConnectOptions, question: &'static str) -> anyhow::Result<(PgConnection, f64)> {
    let began = Instant::now();
    let mut connection = options.connect().await?;
    ask(&mut connection, question).await?;
    Ok((connection, milliseconds(began)))
}

/// By the simple protocol, in one round trip.
async fn ask(connection: &mut PgConnection, question: &'static str) -> anyhow::Result<()> {
    connection.fetch_all(sqlx::raw_sql(question)).await?;
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
