//! What is done with columns that have to be re-keyed when a database is opened.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use db_core::Config;
use db_core::encryption::{Declared, Strategy};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Mode, Rekey, RekeyError};
use crate::batches::{BatchError, Pace, Progress};

/// How long opening waits for the count of what is left.
const COUNT: Duration = Duration::from_secs(10);
/// How often to look whether another key seals.
const LOOK: Duration = Duration::from_secs(1);
/// The pause after which rows that others keep storing, or an error, are tried again.
const AGAIN: Duration = Duration::from_mins(1);

/// What opening does when values are not sealed under the key that seals now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AtOpen {
    /// It fails.
    Refuse,
    /// It logs a warning.
    Warn,
    /// It does not look: for a program that runs shortly, beside a service that re-keys.
    Leave,
    /// It re-keys in the background, at the default pace.
    #[default]
    Run,
}

/// Re-keying in the background. Ends when it is dropped.
pub struct Background {
    stop: watch::Sender<bool>,
    state: Arc<Mutex<BackgroundState>>,
    task: Option<JoinHandle<()>>,
}

/// How far re-keying in the background is.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BackgroundState {
    /// The column that is being re-keyed, and how far; none between runs.
    pub running: Option<(String, Progress)>,
    /// The rows that were left when all columns were last done. `None` before.
    pub left: Option<u64>,
    /// The rows that cannot be unsealed, of all columns.
    pub refused: u64,
    /// The last error, until a run succeeds.
    pub error: Option<String>,
}

/// Does what `at_open` says with the columns that `strategy` has a key for. Blind indexes are left out, and without a key that seals,
/// nothing is done.
///
/// With [`AtOpen::Run`] it returns at once. The background task runs until it is dropped or stopped: once another key seals, it re-keys
/// again, so it also serves a handshake after which a key becomes the primary one later.
///
/// # Errors
///
/// With [`AtOpen::Refuse`]: [`RekeyError::Left`] when rows are left, or cannot be counted within 10 s; else as [`Rekey::left`].
pub async fn at_open(
    config: &Config,
    columns: Vec<Declared>,
    strategy: Arc<dyn Strategy>,
    mode: Mode,
    at_open: AtOpen,
) -> Result<Option<Background>, RekeyError> {
    let columns: Vec<_> = columns.into_iter().filter(|column| !column.is_index()).collect();
    if at_open == AtOpen::Run {
        return Ok((!columns.is_empty()).then(|| Background::start(config.clone(), columns, strategy, mode)));
    }
    if at_open == AtOpen::Leave || strategy.sealing_key().is_none() {
        return Ok(None);
    }
    for column in columns {
        let rekey = Rekey::new(column, Arc::clone(&strategy), mode.clone());
        let column = rekey.column().to_string();
        let left = match timeout(COUNT, rekey.left(config)).await {
            Ok(Ok(0)) => continue,
            Ok(Ok(left)) => Some(left),
            Ok(Err(error)) if at_open == AtOpen::Warn => {
                tracing::warn!(column, %error, "it is not known whether values have to be re-keyed");
                continue;
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => None,
        };
        let error = RekeyError::Left { column, left };
        if at_open == AtOpen::Refuse {
            return Err(error);
        }
        tracing::warn!(%error, "values have to be re-keyed");
    }
    Ok(None)
}

impl Background {
    fn start(config: Config, columns: Vec<Declared>, strategy: Arc<dyn Strategy>, mode: Mode) -> Self {
        let state = Arc::<Mutex<BackgroundState>>::default();
        let (stop, stopped) = watch::channel(false);
        let work = Work { config, columns, strategy, mode, state: Arc::clone(&state), stopped };
        Self { stop, state, task: Some(tokio::spawn(work.run())) }
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> BackgroundState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops within a batch, and waits for the end.
    ///
    /// Dropping the future ends the task, too.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "re-keying in the background panicked");
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Background").field(&self.state()).finish()
    }
}

/// What the task has.
struct Work {
    config: Config,
    columns: Vec<Declared>,
    strategy: Arc<dyn Strategy>,
    mode: Mode,
    state: Arc<Mutex<BackgroundState>>,
    stopped: watch::Receiver<bool>,
}

impl Work {
    async fn run(mut self) {
        loop {
            let key = self.strategy.sealing_key();
            let is_done = if key.is_none() { true } else { self.once().await };
            // Another key, or rows that are left, begin a new run.
            let mut waited = Duration::ZERO;
            while self.strategy.sealing_key() == key && (is_done || waited < AGAIN) {
                if self.pause(LOOK).await {
                    return;
                }
                waited += LOOK;
            }
        }
    }

    /// Re-keys all columns. Returns whether nothing is left that can be re-keyed.
    async fn once(&mut self) -> bool {
        let (mut left, mut refused, mut failure) = (0, 0, None);
        for column in self.columns.clone() {
            let name = column.to_string();
            let (state, shown) = (Arc::clone(&self.state), name.clone());
            let show = move |progress: &Progress| {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.running = Some((shown.clone(), *progress));
            };
            let rekey = Rekey::new(column, Arc::clone(&self.strategy), self.mode.clone());
            let rekey = rekey.pace(Pace::default()).on_progress(show);
            // A column of which nothing is left needs no run.
            let done = match rekey.left(&self.config).await {
                Ok(0) => continue,
                Ok(_) => {
                    let mut stopped = self.stopped.clone();
                    // The sender lives as long as the task.
                    rekey.run(&self.config, async { drop(stopped.wait_for(|stopped| *stopped).await) }).await
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(done) => {
                    let report = &done.report;
                    tracing::info!(
                        column = name,
                        written = report.written,
                        refused = report.refused,
                        left = done.left,
                        "re-keyed"
                    );
                    for refusal in report.refusals.iter().take(10) {
                        tracing::warn!(column = name, %refusal, "not re-keyed");
                    }
                    left += done.left.unwrap_or(0);
                    refused += report.refused;
                }
                Err(RekeyError::Batches { cause, .. }) if matches!(*cause, BatchError::Busy { .. }) => {
                    tracing::debug!(column = name, "another process re-keys");
                    failure.get_or_insert_with(|| cause.to_string());
                }
                Err(error) => {
                    tracing::warn!(%error, "re-keying in the background failed, and is tried again");
                    failure = Some(error.to_string());
                }
            }
        }
        let is_done = failure.is_none() && left <= refused;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = BackgroundState {
            running: None,
            left: failure.is_none().then_some(left),
            refused,
            error: failure,
        };
        is_done
    }

    /// Returns whether it is stopped.
    async fn pause(&mut self, pause: Duration) -> bool {
        timeout(pause, self.stopped.wait_for(|stopped| *stopped)).await.is_ok()
    }
}
