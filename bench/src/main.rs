//! Measures the workspace beside its peers, in one run, and prints ratios.
//!
//! `cargo run --release -p bench -- TOPIC [--check] [--json FILE]`. Rounds are interleaved, figures are medians. What is
//! measured is what users get: the shipped defaults.

mod fairness;
mod isolation;
mod latency;
mod load;
mod open;
mod peers;
mod pool;
mod report;
mod rounds;
mod run;
mod server;
mod tracker;
mod tx;

use std::path::PathBuf;
use std::process::ExitCode;

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
        /// How many lines.
        #[arg(long, default_value_t = 100_000)]
        lines: u32,
    },
    /// Acquire, a prepared select, release: 10 and 64 tasks on 10 connections, beside the pools of others.
    Pool {
        #[command(flatten)]
        options: Options,
        /// Only this one, such as `pool.10.ours`, and no ratios: for a profiler. May be repeated.
        #[arg(long = "arm", value_name = "NAME", conflicts_with = "check")]
        arms: Vec<String>,
    },
    /// The same by 64 tasks on 4 connections: who gets how many turns.
    Fairness {
        #[command(flatten)]
        options: Options,
    },
    /// A transaction of one update, 10 tasks on 10 connections.
    Tx {
        #[command(flatten)]
        options: Options,
    },
    /// The API pool's latency while the backend pool is full and 200 callers wait for it, beside the same while it is idle.
    Isolation {
        #[command(flatten)]
        options: Options,
    },
    /// Opening a database that was migrated before, with 2 connections ready in each pool, beside its round trips one by one.
    Open {
        #[command(flatten)]
        options: Options,
    },
    /// Writes a file to stdout, and the moment at which somebody began to read it to another file. Used by `run`.
    #[command(hide = true)]
    Emit { file: PathBuf, stamp: PathBuf },
}

#[derive(Debug, Args)]
struct Options {
    /// Compare with `bench/targets.toml`; exit with 1 and name what falls short.
    #[arg(long)]
    check: bool,
    /// Write the rows to a file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many rounds; the median counts. Unless given, as many as take two minutes at most.
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
        Topic::Tx { options } => {
            let report = tx::measure(&workers()?, options.rounds(9))?;
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
    };
    finish(&options, &report)
}

/// Two, whatever the machine has: figures of two machines can be compared a little.
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
