//! Measures the workspace beside its peers in one run, and prints ratios.
//!
//! `cargo run --release -p bench -- TOPIC [--check] [--json FILE]`. Rounds are interleaved, figures are medians, and the layer
//! runs with its shipped defaults.
#![expect(
    clippy::disallowed_methods,
    reason = "slices are measured by the clock, and the clocks of several processes are compared"
)]

mod arrivals;
mod events;
mod fairness;
mod index;
mod isolation;
mod latency;
mod limit;
mod load;
mod logs;
mod measure;
mod migrate;
mod notify;
mod open;
mod orm;
mod peers;
mod pool;
mod rekey;
mod report;
mod rounds;
mod rows;
mod run;
mod seal;
mod server;
mod testdb;
mod times;
mod topics;
mod tracker;
mod tx;
mod watchers;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::runtime::{self, Runtime};

use crate::report::Report;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    topic: Topic,
}

#[derive(Debug, Subcommand)]
enum Topic {
    /// Lines through `buildwatch run`, beside `psql` copying them into a table.
    Run {
        #[command(flatten)]
        options: Options,
        /// The number of lines.
        #[arg(long, default_value_t = 100_000)]
        lines: u32,
    },
    /// Acquire, a prepared select, release, on 10 connections beside the peers' pools: 10 and 64 tasks, and requests that arrive at
    /// fixed times.
    Pool {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `pool.10.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// The same with 64 tasks on 4 connections: the spread of operations per task.
    Fairness {
        #[command(flatten)]
        options: Options,
    },
    /// A transaction of one update, 10 tasks on 10 connections.
    Tx {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `tx.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Entities of `SeaORM` on our pool: find by key, and a transaction of one update, 10 tasks on 10 connections.
    Orm {
        #[command(flatten)]
        options: Options,
        /// Only this one, such as `orm.10.ours`, and no ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Acquire, a prepared select, release, measured by the Prometheus exporter and not; and what measuring costs, beside what `sqlx-otel` costs
    /// sqlx's pool.
    Measure {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `measure.10.on`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Requests over HTTP with one query, 64 clients on 10 connections, beside the same handler on sqlx's pool; and the routes of health while 200
    /// callers keep the pool full.
    Web {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `web.select.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Requests through a layer that limits them by address, beside `tower_governor`; and by Redis, beside a plain `SET` on the same connection.
    Limit {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `limit.memory.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Sealing and unsealing a value of 100 bytes, 1 KiB and 16 KiB, beside ciphers alone and beside hexadecimal text in two columns.
    Seal {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `seal.1k.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Re-keying a column of 100 000 values of 200 bytes, beside ways that store row by row and beside one statement of the server;
    /// the latency of readers meanwhile. Commits wait for the disk.
    Rekey {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `rekey.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Finding a row by a blind index under one, two and three keys, beside finding it by its text, 10 tasks on 10 connections.
    Index {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `index.1`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// The API pool's latency while the backend pool is full and 200 callers wait for it, beside the same while it is idle.
    Isolation {
        #[command(flatten)]
        options: Options,
    },
    /// Opening a migrated database, with 2 connections ready in each pool, beside its round trips one after the other.
    Open {
        #[command(flatten)]
        options: Options,
    },
    /// Inserts on 10 and 50 connections with a notification, beside inserts without one and with one inside the transaction.
    Notify {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `notify.10.1_listener.topics_1.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// A bus with 10 000 topics and more, beside sqlx's listener with as many channels; one notification alone.
    Topics {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `topics.10k.bus`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Events appended durably by one writer, and read, beside rows, COPY and pages by plain statements.
    Events {
        #[command(flatten)]
        options: Options,
        /// How long a snapshot is open while appends continue.
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..))]
        snapshot_seconds: u16,
        /// Run only this arm, such as `read.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// 1, 10, 100 and 1000 watchers of one log, beside as many watchers that query for new events by themselves.
    Watchers {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `watchers.1000.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// Applying 500 small migrations and those of real projects, and finding that none is pending, beside sqlx's runner.
    Migrate {
        #[command(flatten)]
        options: Options,
    },
    /// A migrated database for each test, beside `#[sqlx::test]`; and a script, which has no database.
    Testdb {
        #[command(flatten)]
        options: Options,
        /// Run only this arm, such as `testdb.ours`, without ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
        /// The server of `DATABASE_URL`, in words: set for the process that measures.
        #[arg(long, hide = true)]
        on: Option<String>,
    },
    /// Writes a file to stdout, and the time of the first read to another file. Used by `run`.
    #[command(hide = true)]
    Emit { file: PathBuf, stamp: PathBuf },
    /// Listens until its stdin ends, and prints the notifications with their times. Used by `notify`.
    #[command(hide = true)]
    Listen,
}

#[derive(Debug, Args)]
struct Options {
    /// Compare with `bench/targets.toml`; exit with 1 and list the rows that miss their target.
    #[arg(long)]
    check: bool,
    /// Write the rows to a file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The number of rounds, of which the median counts. The default takes at most three minutes.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
}

impl Options {
    fn rounds(&self, unless_given: u16) -> usize {
        self.rounds.unwrap_or(unless_given).into()
    }
}

fn main() -> ExitCode {
    match act() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn act() -> anyhow::Result<ExitCode> {
    let (options, report) = match Cli::parse().topic {
        Topic::Emit { file, stamp } => {
            run::emit(&file, &stamp)?;
            return Ok(ExitCode::SUCCESS);
        }
        Topic::Listen => {
            notify::listen()?;
            return Ok(ExitCode::SUCCESS);
        }
        Topic::Run { options, lines } => {
            let report = run::measure(lines, options.rounds(7))?;
            (options, report)
        }
        Topic::Pool { options, arms } => {
            let report = pool::measure(&workers()?, options.rounds(7), &arms)?;
            (options, report)
        }
        Topic::Fairness { options } => {
            let report = fairness::measure(&workers()?, options.rounds(5))?;
            (options, report)
        }
        Topic::Tx { options, arms } => {
            let report = tx::measure(&workers()?, options.rounds(9), &arms)?;
            (options, report)
        }
        Topic::Orm { options, arms } => {
            let report = orm::measure(&workers()?, options.rounds(9), &arms)?;
            (options, report)
        }
        Topic::Measure { options, arms } => {
            let report = measure::measure(&workers()?, options.rounds(7), &arms)?;
            (options, report)
        }
        Topic::Web { options, arms } => {
            let report = web::measure(&workers()?, options.rounds(3), &arms)?;
            (options, report)
        }
        Topic::Limit { options, arms } => {
            let report = limit::measure(&workers()?, options.rounds(9), &arms)?;
            (options, report)
        }
        Topic::Seal { options, arms } => {
            let report = seal::measure(options.rounds(51), &arms)?;
            (options, report)
        }
        Topic::Rekey { options, arms } => {
            let report = rekey::measure(&workers()?, options.rounds(9), &arms)?;
            (options, report)
        }
        Topic::Index { options, arms } => {
            let report = index::measure(&workers()?, options.rounds(9), &arms)?;
            (options, report)
        }
        Topic::Isolation { options } => {
            let report = isolation::measure(&workers()?, options.rounds(15))?;
            (options, report)
        }
        Topic::Open { options } => {
            let report = open::measure(&workers()?, options.rounds(51))?;
            (options, report)
        }
        Topic::Notify { options, arms } => {
            let report = notify::measure(&workers()?, options.rounds(13), &arms)?;
            (options, report)
        }
        Topic::Topics { options, arms } => {
            let report = topics::measure(&workers()?, options.rounds(15), &arms)?;
            (options, report)
        }
        Topic::Events { options, snapshot_seconds, arms } => {
            let snapshot = Duration::from_secs(snapshot_seconds.into());
            let report = events::measure(&workers()?, options.rounds(9), &arms, snapshot)?;
            (options, report)
        }
        Topic::Watchers { options, arms } => {
            let report = watchers::measure(&workers()?, options.rounds(5), &arms)?;
            (options, report)
        }
        Topic::Migrate { options } => {
            let report = migrate::measure(&workers()?, options.rounds(5))?;
            (options, report)
        }
        Topic::Testdb { on: None, .. } => return testdb::in_child(&workers()?),
        Topic::Testdb { options, arms, on: Some(server) } => {
            let report = testdb::measure(options.rounds(9), &arms, server)?;
            (options, report)
        }
    };
    finish(&options, &report)
}

/// Two worker threads on every machine, so that figures of two machines are roughly comparable.
fn workers() -> anyhow::Result<Runtime> {
    Ok(runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn finish(options: &Options, report: &Report) -> anyhow::Result<ExitCode> {
    print!("{report}");
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string(report)?).with_context(|| file.display().to_string())?;
    }
    if !options.check {
        return Ok(ExitCode::SUCCESS);
    }
    let short = report.check(include_str!("../targets.toml"))?;
    for line in &short {
        eprintln!("bench: {line}");
    }
    Ok(if short.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
