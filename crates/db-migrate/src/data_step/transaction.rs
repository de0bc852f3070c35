//! A step in the transaction that also records its version.

use std::time::{Duration, Instant};

use db_core::{Pool, PoolOptions, Tx, TxOptions};
use sqlx::AssertSqlSafe;

use super::AnyStep;
use crate::blockers::{Blocker, Observer};
use crate::causes::redacted;
use crate::step::{CHECK_CONSTRAINTS, FileToRun, Steps, Tries};
use crate::{Action, Error, session};

/// A limit that a step does not reach, below the longest that the server takes.
const NO_LIMIT: Duration = Duration::from_hours(24 * 20);

/// How long a step waits for its connection.
const ACQUIRE: Duration = Duration::from_secs(30);

/// How long the pool of a step may take to close.
const CLOSE: Duration = Duration::from_secs(5);

impl Steps<'_> {
    /// Repeats the whole transaction while it waits for a lock in vain, if the step may run again.
    pub(super) async fn step_in_transaction(
        &mut self,
        file: FileToRun<'_>,
        name: &str,
        step: &dyn AnyStep,
    ) -> Result<(), Error> {
        let version = file.migration.version;
        let options = PoolOptions::named("migration").max(1).acquire_timeout(ACQUIRE);
        let options = options.statement_timeout(NO_LIMIT).tx_timeout(NO_LIMIT).leak_after(NO_LIMIT);
        let pool = Pool::lazy(self.config, options.slow_statement(NO_LIMIT));
        let mut tries = Tries::new(version, self.patience);
        let done = loop {
            let (done, blockers) = self.try_step(&pool, file, name, step).await;
            match done {
                // An error of another kind came before the step began.
                Err(error)
                    if error.gives_way()
                        && (step.may_run_again() || matches!(error, Error::Failed { .. })) =>
                {
                    if let Err(over) = tries.give_way(error.into_cause(), blockers).await {
                        break Err(over);
                    }
                }
                done => break done,
            }
        };
        pool.close(CLOSE).await;
        done?;
        self.advance(None);
        if self.begin_anew(file).await? == self.recorded_in(file) {
            Ok(())
        } else {
            Err(self.moved(file.migration))
        }
    }

    async fn try_step(
        &self,
        pool: &Pool,
        file: FileToRun<'_>,
        name: &str,
        step: &dyn AnyStep,
    ) -> (Result<(), Error>, Vec<Blocker>) {
        let version = file.migration.version;
        let options = TxOptions::default().read_write().resolve_commit();
        let mut tx = match pool.handle().begin_with(options).await {
            Ok(tx) => tx,
            Err(cause) => return (Err(failed(version, cause)), Vec::new()),
        };
        // The table's row comes first: if this session outlives the one with the lock, the next holder of the lock waits for it.
        let begins = format!(
            "{lock_timeout} {record} {only_one}; {role}",
            lock_timeout = self.lock_timeout,
            record = self.record_of(file, Duration::ZERO),
            only_one = if file.action == Action::Up { "on conflict (version) do nothing" } else { "" },
            role = self.set_role(),
        );
        let way_back = self.files.file(version, true).filter(|_| file.action == Action::Up);
        let history = self.history.as_ref().map(|history| history.done(file.migration, way_back));
        let ends = format!(
            "set local statement_timeout = 0; {CHECK_CONSTRAINTS}; {lock_timeout} set session authorization default; reset role; {history}",
            lock_timeout = self.lock_timeout,
            history = history.unwrap_or_default(),
        );
        let step_failed =
            |cause| Error::Step { version, step: name.into(), may_run_again: step.may_run_again(), cause };
        let observer = Observer::new(self.config, tx.pid(), self.files.shows_statements, self.lock_timeout.0);
        let work = async {
            let began = Instant::now();
            send(&mut tx, session::without_limits()).await.map_err(|cause| failed(version, cause))?;
            if send(&mut tx, begins).await.map_err(|cause| failed(version, cause))? == 0 {
                // Another holder of the lock has done it, while this one's session was lost.
                return Ok(false);
            }
            step.run(&mut tx).await.map_err(|cause| step_failed(redacted(cause)))?;
            let failed = |cause: db_core::Error| step_failed(cause.into());
            let took = format!(
                "update {} set execution_time = {} where version = {version}",
                self.table.name,
                began.elapsed().as_nanos()
            );
            send(&mut tx, ends + &took).await.map_err(failed)?;
            Ok(true)
        };
        let (done, blockers, observer) = observer.beside(version, work).await;
        observer.close().await;
        let done = match done {
            Ok(true) => tx.commit().await.map_err(|cause| step_failed(cause.into())),
            other => {
                if let Err(error) = tx.rollback().await {
                    tracing::debug!(version, %error, "the session of a step was lost before it was rolled back");
                }
                other.map(drop)
            }
        };
        (done, blockers)
    }
}

/// Returns the number of rows that were changed, or read.
async fn send(tx: &mut Tx, sql: String) -> Result<u64, db_core::Error> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    Ok(done.rows_affected())
}

fn failed(version: i64, cause: db_core::Error) -> Error {
    Error::Failed { version, repeatable: None, at: None, cause: Box::new(cause) }
}
