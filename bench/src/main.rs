//! Measures the workspace beside its peers, in one run, and prints ratios.
//!
//! `cargo run --release -p bench -- TOPIC [--check] [--json FILE]`. Rounds are interleaved, figures are medians. What is
//! measured is what users get: the shipped defaults.

mod report;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

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
    /// How many rounds; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
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
            let report = run::measure(lines, options.rounds)?;
            (options, report)
        }
    };
    finish(&options, &report)
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
