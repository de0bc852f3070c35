//! buildwatch: run a command as a build, and watch it live from any machine.
//!
//! The reference service of the workspace, and an example of using its crates. Read it in this order: [`open`] opens the
//! database, [`builds`] has its rows, [`run`] turns a command into events, [`mod@print`] and [`serve`] show them.

mod builds;
mod cli;
mod config;
mod home;
mod host;
mod keys;
mod list;
mod migrate;
mod open;
mod output;
mod print;
mod privacy;
mod reaper;
mod run;
mod sealed;
mod serve;
mod signals;
mod status;
mod terminal;
mod took;
mod visible;
mod watch;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter =
        EnvFilter::try_from_env("BUILDWATCH_LOG").unwrap_or_else(|_| EnvFilter::new("warn,sqlx=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();

    // `run` and `watch --exit-code` exit with the command's code, so their own failures exit with 125, as those of `env`,
    // `timeout` and `docker run`.
    let own_failure = match &cli.command {
        Some(Command::Run(_)) => 125,
        Some(Command::Watch(args)) if args.exit_code => 125,
        _ => 1,
    };
    match &cli.command {
        Some(Command::Run(_)) => privacy::shut_proc(),
        // Its commands come from clients, which must not use files that our caller left open.
        Some(Command::Serve(_)) | None => {
            privacy::shut_proc();
            privacy::close_inherited();
        }
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&anyhow::Error::from(error).context("cannot start the runtime"), own_failure);
        }
    };
    let result = runtime.block_on(dispatch(cli));
    // Only blocking reads and tasks without results still run.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error, own_failure),
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<u8> {
    let site = &cli.site;
    match cli.command {
        None => serve::demo(site).await,
        Some(Command::Run(args)) => run::command(site, args).await,
        Some(Command::Serve(args)) => serve::command(site, args).await,
        Some(Command::Watch(args)) => watch::command(site, args).await,
        Some(Command::List(args)) => list::command(site, args).await,
        Some(Command::Config(args)) => config::command(site, &args),
        Some(Command::Migrate(args)) => migrate::command(site, args).await,
        Some(Command::Keys(args)) => keys::command(site, args).await,
        Some(Command::Sealed(command)) => sealed::command(site, command).await,
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("buildwatch: {}", terminal::shown_lines(&format!("{error:#}")));
    ExitCode::from(code)
}
