//! A step in batches, while its version is under way.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::time::sleep;

use crate::batches::{BatchError, Batches, Progress as RowProgress, Report};
use crate::outside::File;
use crate::progress::Progress;
use crate::session::answer;
use crate::step::{FileToRun, Steps, Tries};
use crate::{Action, Error, statements};

/// How often the session with the migration lock is asked whether it is there.
const ALIVE: Duration = Duration::from_secs(1);

/// How often the progress of a step in batches is logged.
const LOGGED: Duration = Duration::from_secs(10);

/// The rows that an error names.
const NAMED: usize = 10;

/// Rows that a step has left.
#[derive(Debug, Clone)]
pub struct RowsLeft(pub Report);

impl fmt::Display for RowsLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { refused, refusals, locked, .. } = &self.0;
        if *refused > 0 {
            let shown: Vec<String> = refusals.iter().take(NAMED).map(ToString::to_string).collect();
            write!(f, "rows that cannot be changed: {refused}, such as {}", shown.join("; "))?;
        }
        if !locked.is_empty() {
            let shown: Vec<String> =
                locked.iter().take(NAMED).map(|key| format!("({})", key.join(", "))).collect();
            let start = if *refused > 0 { "; " } else { "" };
            write!(f, "{start}rows that stayed locked: {}, such as {}", locked.len(), shown.join(", "))?;
        }
        Ok(())
    }
}

impl StdError for RowsLeft {}

impl Steps<'_> {
    /// Runs a step in batches, while the version is under way.
    pub(super) async fn step_in_batches(
        &mut self,
        file: FileToRun<'_>,
        name: &str,
        batches: Option<Batches>,
        is_under_way: bool,
        next: Option<FileToRun<'_>>,
    ) -> Result<(), Error> {
        let version = file.migration.version;
        let outside =
            File { migration: file.migration, reverts: file.action == Action::Down, steps: Vec::new() };
        if is_under_way {
            self.resume(&outside).await?;
        } else {
            self.put_under_way(&outside).await?;
        }
        let began = Instant::now();
        if let Some(batches) = batches {
            let batches = batches.role(self.role).or_on_progress(logged(version));
            let mut tries = Tries::new(version, self.patience);
            let done = loop {
                let mut lost = None;
                let run = batches.run(self.config, async { lost = Some(until_lost(self.connection).await) });
                let done = run.await;
                if let Some(cause) = lost {
                    return Err(Error::Database { what: "hold the migration lock", cause });
                }
                match done {
                    // The process before, whose session with the migration lock was lost, may not have noticed yet.
                    Err(error @ BatchError::Busy { .. }) => tries.give_way(error.into(), Vec::new()).await?,
                    done => break done,
                }
            };
            let failed = |cause| Error::Step { version, step: name.into(), may_run_again: true, cause };
            let report = match done {
                Ok(report) => report,
                Err(error) => {
                    if !is_under_way && error.has_changed_nothing() {
                        self.take_back(&outside).await?;
                    }
                    return Err(failed(error.into()));
                }
            };
            if report.refused > 0 || !report.locked.is_empty() {
                return Err(failed(RowsLeft(report).into()));
            }
            tracing::info!(version, step = name, written = report.written, took = ?report.took, "a step is done");
        }
        let took =
            Progress::done(&self.table, version, 0, &statements::digest(&[]), began.elapsed().as_nanos());
        self.record(version, "record how long a step took", &took).await?;
        self.end(&outside, next).await
    }
}

/// Ends when the session does not answer any more.
async fn until_lost(connection: &mut PgConnection) -> db_core::Error {
    loop {
        sleep(ALIVE).await;
        if let Err(error) = answer(connection.ping()).await {
            return error.into();
        }
    }
}

fn logged(version: i64) -> impl Fn(&RowProgress) + Send + Sync + 'static {
    let last = Mutex::new(Instant::now());
    move |progress| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LOGGED {
            *last = Instant::now();
            let RowProgress { read, written, estimate, rows_per_second, .. } = progress;
            tracing::info!(version, read, written, estimate, rows_per_second, "a step goes on");
        }
    }
}
