//! The command `db-migrate`.

mod answers;
mod args;
mod commands;
mod new;
mod terminal;
mod trial;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::Cli;

/// Something failed, or was refused.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    // As `sqlx migrate` does. The environment itself comes first.
    let file = dotenvy::dotenv();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => {
            // Help and version are no errors. For wrong arguments clap's own exit code is 2, which here says that something was found.
            let code = if said.use_stderr() { FAILED } else { 0 };
            return said.print().map_or(ExitCode::from(FAILED), |()| ExitCode::from(code));
        }
    };
    if let Err(error) = file
        && !error.not_found()
    {
        eprintln!("db-migrate: .env cannot be read, and is left out");
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let done = runtime.block_on(commands::run(cli));
            // Only a read of the terminal may still run.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("db-migrate: {}", terminal::shown_lines(&format!("{error:#}")));
            ExitCode::from(FAILED)
        }
    }
}
