//! Running a command as a build.

mod environment;
mod process;
mod reader;
mod recorder;
mod watchdog;

use std::ffi::OsString;

use anyhow::Context;
use db_layer::db_events;
use db_layer::{AtOpen, Db, LogId, Signal, Signals};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::builds::{self, Plan, Plans};
use crate::cli::{RunArgs, Site};
use crate::open::{Opened, open};
use crate::output::End;
use crate::print::Printer;
use crate::reaper;
use crate::run::process::Process;
use crate::signals;
use crate::terminal::shown;

/// How many chunks of output wait for the database before the command has to wait, too.
const CHUNKS: usize = 4;
/// How long a build may still take after the second request to end, and printing after the build's end.
const GIVE_UP: std::time::Duration = std::time::Duration::from_secs(2);

/// A build that runs in this process.
pub(crate) struct Running {
    pub(crate) id: i64,
    pub(crate) log: LogId,
    task: JoinHandle<Result<End, db_events::Error>>,
    cancel: CancellationToken,
    kill: CancellationToken,
}

impl Running {
    /// Asks the command to end, and marks the build as aborted.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Kills the command.
    pub(crate) fn kill(&self) {
        self.cancel.cancel();
        self.kill.cancel();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.kill.is_cancelled()
    }

    /// Waits until the build and its log are finished. Cancel safe.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<End> {
        let end = (&mut self.task).await.context("the build's task failed")?;
        end.context("cannot store the build's output")
    }
}

/// Stores a build and starts its command, which runs whether or not this value is awaited.
pub(crate) async fn start(db: &Db, plans: &Plans, command: Vec<OsString>) -> anyhow::Result<Running> {
    let folder = std::env::current_dir().context("the current folder")?;
    let plan = Plan::of(&command, &folder);
    let (id, log) = builds::create(db, plans, &plan).await.context("cannot store the build")?;

    let cancel = CancellationToken::new();
    let kill = CancellationToken::new();
    let task = tokio::spawn(build(db.clone(), id, log, command, cancel.clone(), kill.clone()));
    Ok(Running { id, log, task, cancel, kill })
}

/// One build, from the start of its command to the end of its log.
async fn build(
    db: Db,
    id: i64,
    log: LogId,
    command: Vec<OsString>,
    cancel: CancellationToken,
    kill: CancellationToken,
) -> Result<End, db_events::Error> {
    let writer = db.events().writer(log, 0);
    let (chunks, stored) = mpsc::channel(CHUNKS);
    let run = async {
        match Process::spawn(&command) {
            Err(end) => {
                drop(chunks);
                end
            }
            Ok(process) => process.run(chunks, cancel.clone(), kill.clone()).await,
        }
    };
    let record = async {
        let recorded = recorder::record(writer, stored).await;
        if recorded.is_err() {
            // Without a log, the command cannot go on.
            cancel.cancel();
            kill.cancel();
        }
        recorded
    };
    let _beat = AbortOnDropHandle::new(tokio::spawn(beat(db.clone(), id)));

    let (end, last) = tokio::join!(run, record);
    reaper::finish_with(&db, id, log, last?, &end).await?;
    Ok(end)
}

/// Updates the build's row while it runs.
async fn beat(db: Db, id: i64) {
    loop {
        tokio::time::sleep(reaper::BEAT).await;
        // An update that hangs must not block the next one.
        match timeout(reaper::BEAT, builds::seen(&db, id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot update the row of a running build"),
            Err(_) => tracing::debug!("no answer to the update of a running build's row"),
        }
    }
}

/// `buildwatch run`.
pub(crate) async fn command(site: &Site, args: RunArgs) -> anyhow::Result<u8> {
    let mut signals = signals::catch()?;
    site.warn_of_open_secrets();
    let opened = tokio::select! {
        opened = open(site, AtOpen::Leave) => opened?,
        asked = signals.next() => return Ok(asked.exit_code()),
    };
    let code = watched(&opened, &mut signals, args).await;
    opened.close().await;
    code
}

/// Runs the build and prints its events from the database.
async fn watched(opened: &Opened, signals: &mut Signals, args: RunArgs) -> anyhow::Result<u8> {
    let db = &opened.db;
    let mut running = start(db, &opened.plans, args.command).await?;
    eprintln!("buildwatch: build {}", running.id);
    let _reaper = AbortOnDropHandle::new(tokio::spawn(reaper::run(db.clone())));

    let print = Printer::new(args.print).print_all(db.events().stream(running.log, 0));
    tokio::pin!(print);

    let mut all_shown = false;
    let mut ended = None;
    let mut asked = None;
    let mut give_up = None;
    while !(all_shown && ended.is_some()) {
        tokio::select! {
            result = &mut print, if !all_shown => {
                all_shown = true;
                if let Err(error) = result {
                    running.cancel();
                    eprintln!("buildwatch: {error:#}");
                }
            }
            end = running.ended(), if ended.is_none() => {
                ended = Some(end?);
                if asked.is_some() {
                    // The reader of the output may have stopped reading.
                    give_up.get_or_insert(Instant::now() + GIVE_UP);
                }
            }
            signal = signals.next() => if asked.replace(signal).is_none() {
                running.cancel();
                if ended.is_some() {
                    give_up.get_or_insert(Instant::now() + GIVE_UP);
                }
            } else {
                // The second request ends it at once. If the database is away, another process ends the build later.
                running.kill();
                give_up.get_or_insert(Instant::now() + GIVE_UP);
            },
            () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => break,
        }
    }

    let interrupted = asked.map_or(125, Signal::exit_code);
    let Some(end) = ended else { return Ok(interrupted) };
    if let Some(message) = &end.message {
        eprintln!("buildwatch: {}", shown(message));
    }
    // Exit codes have eight bits.
    Ok(end.exit_code.map_or(interrupted, |code| u8::try_from(code).unwrap_or(u8::MAX)))
}
