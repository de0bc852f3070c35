//! Sending statements and reading their answers.

use std::time::Instant;

use async_stream::try_stream;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, TryStreamExt};
use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Executor, SqlStr};
use tokio::time::timeout;

use super::Session;
use super::log::StatementTiming;
use super::text::Text;
use crate::deadline::{WaitLimit, within};
use crate::observer::StatementDone;
use crate::pooler::Needs;
use crate::role::{NotWritable, Role};
use crate::sql;
use crate::statement::{InFlight, Transaction};
use crate::{Class, ErrorType, PoolerError};

impl Session {
    /// Runs transaction control by the simple protocol: one round trip, nothing prepared.
    pub(crate) async fn control(&mut self, statement: SqlStr) -> Result<(), sqlx::Error> {
        self.control_row(statement).await.map(drop)
    }

    pub(crate) async fn control_row(&mut self, statement: SqlStr) -> Result<Option<PgRow>, sqlx::Error> {
        // The end of a transaction is not cut off by a deadline.
        let limit = WaitLimit::of_statement(self.inner.options.statement_timeout);
        self.control_within(statement, limit).await
    }

    pub(crate) async fn control_within(
        &mut self,
        statement: SqlStr,
        limit: WaitLimit,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        self.drain().await?;
        let sent = statement.clone();
        self.round_trip(
            &statement,
            InFlight::Control,
            limit,
            |raw| raw.fetch_optional(sqlx::raw_sql(sent)),
            |_, _| {},
        )
        .await
    }

    /// Runs a statement that returns at most one row.
    pub(crate) fn optional<'c>(
        &'c mut self,
        text: &'c mut Text,
    ) -> impl Future<Output = Result<Option<PgRow>, sqlx::Error>> + Send + 'c {
        self.run_statement(
            text,
            |raw, text| raw.fetch_optional(text),
            |timing, row| timing.rows += u64::from(row.is_some()),
        )
    }

    /// Runs a statement whose rows are not needed.
    pub(crate) fn count<'c>(
        &'c mut self,
        text: &'c mut Text,
    ) -> impl Future<Output = Result<PgQueryResult, sqlx::Error>> + Send + 'c {
        self.run_statement(
            text,
            |raw, text| raw.execute(text),
            |timing, done| timing.affected += done.rows_affected(),
        )
    }

    #[expect(clippy::manual_async_fn, reason = "the future of an async function stores its arguments twice")]
    fn run_statement<'c, T: Send>(
        &'c mut self,
        text: &'c mut Text,
        run: impl for<'r> Fn(&'r mut PgConnection, &'r mut Text) -> BoxFuture<'r, Result<T, sqlx::Error>>
        + Send
        + Sync
        + 'c,
        note: impl Fn(&mut StatementTiming, &T) + Send + Sync + 'c,
    ) -> impl Future<Output = Result<T, sqlx::Error>> + Send + 'c {
        async move {
            if !self.is_ready() {
                // Boxed, since this is rare.
                Box::pin(self.make_ready()).await?;
            }
            self.record_effects(text)?;
            let limit = self.limit();
            if limit.is_over() {
                return Err(self.expired(limit).into());
            }
            let spare = self.spare_arguments(text);
            // The same three lines as in `run_again`: a shared async function would add one more future around this one.
            let timing = self.start_statement(text.sql_str(), InFlight::Statement);
            let answer = within(limit.ends(timing.started), run(&mut self.live_mut().raw, text)).await;
            match self.take_answer(timing, text.sql_str(), limit, answer, &note) {
                Err(error) => Box::pin(self.run_again(error, text, spare, limit, run, note)).await,
                answer => answer,
            }
        }
    }

    /// Sends a failed statement again if its plan was stale and it may be repeated.
    async fn run_again<T>(
        &mut self,
        error: sqlx::Error,
        text: &mut Text,
        spare: Option<PgArguments>,
        limit: WaitLimit,
        run: impl for<'r> Fn(&'r mut PgConnection, &'r mut Text) -> BoxFuture<'r, Result<T, sqlx::Error>>,
        note: impl Fn(&mut StatementTiming, &T),
    ) -> Result<T, sqlx::Error> {
        if !self.refresh_plan(&error, text).await {
            return Err(error);
        }
        let Some(spare) = spare else { return Err(error) };
        // The whole time of a statement again, but for the caller's and the transaction's deadline.
        let limit = limit.min(self.limit());
        if limit.is_over() {
            return Err(error);
        }
        text.refill(spare);
        self.mark_text(text);
        // From now on, and not from the acquire, as the first time.
        self.once = false;
        let timing = self.start_statement(text.sql_str(), InFlight::Statement);
        let answer = within(limit.ends(timing.started), run(&mut self.live_mut().raw, text)).await;
        self.take_answer(timing, text.sql_str(), limit, answer, note)
    }

    /// Runs a statement whose rows are read one by one. The time limit applies to each wait for the next row.
    pub(crate) fn many(
        &mut self,
        mut text: Text,
    ) -> BoxStream<'_, Result<Either<PgQueryResult, PgRow>, sqlx::Error>> {
        Box::pin(try_stream! {
            self.make_ready().await?;
            self.record_effects(&text)?;
            let sql = text.sql_str().clone();
            let ends = self.state.ends;
            let mut may_repeat = true;
            loop {
                let mut limit = self.limit();
                if limit.is_over() {
                    Err(self.expired(limit))?;
                }
                let spare = self.spare_arguments(&mut text);
                let mut timing = self.start_statement(&sql, InFlight::Statement);
                let live = self.live.as_deref_mut().expect("an open connection");
                let mut results = live.raw.fetch_many(&mut text);
                let failure = loop {
                    // Most rows have already arrived, and need no timer.
                    let next = if let Some(next) = results.try_next().now_or_never() {
                        Ok(next)
                    } else {
                        // The transaction's remaining time shrinks with each row.
                        limit = ends.map_or(limit, |ends| ends.limit().min(limit));
                        timeout(limit.wait, results.try_next()).await
                    };
                    match next {
                        Ok(Ok(Some(result))) => {
                            may_repeat = false;
                            timing.count(&result);
                            yield result;
                        }
                        Ok(Ok(None)) => break None,
                        Ok(Err(error)) => break Some(error),
                        Err(_) => {
                            drop(results);
                            Err(self.timed_out(&timing, &sql, limit))?;
                            return;
                        }
                    }
                };
                drop(results);
                self.finish_statement(&timing, &sql, failure.as_ref());
                let Some(error) = failure.map(|error| self.mark_not_writable(error)) else { break };
                let refreshed = self.refresh_plan(&error, &text).await;
                let Some(spare) = spare.filter(|_| refreshed && may_repeat) else {
                    Err(error)?;
                    break;
                };
                text.refill(spare);
                may_repeat = false;
            }
        })
    }

    /// Prepares a statement.
    pub(crate) async fn run_prepare(
        &mut self,
        sql: SqlStr,
        parameters: Vec<PgTypeInfo>,
    ) -> Result<PgStatement, sqlx::Error> {
        self.make_ready().await?;
        self.check_pooler(|| sql::needs_session(sql.as_str(), false))?;
        let (limit, sent) = (self.limit(), sql.clone());
        self.round_trip(&sql, InFlight::Statement, limit, |raw| prepare(raw, sent, parameters), |_, _| {})
            .await
    }

    /// Describes a statement: the types of its parameters and columns.
    pub(crate) async fn run_describe(
        &mut self,
        sql: SqlStr,
    ) -> Result<sqlx::Describe<sqlx::Postgres>, sqlx::Error> {
        self.make_ready().await?;
        let (limit, sent) = (self.limit(), sql.clone());
        self.round_trip(&sql, InFlight::Statement, limit, |raw| raw.describe(sent), |_, _| {}).await
    }

    /// Sends something, and waits within the limit for its whole answer.
    async fn round_trip<T>(
        &mut self,
        sql: &SqlStr,
        flight: InFlight,
        limit: WaitLimit,
        run: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
        note: impl FnOnce(&mut StatementTiming, &T),
    ) -> Result<T, sqlx::Error> {
        if limit.is_over() {
            return Err(self.expired(limit).into());
        }
        let timing = self.start_statement(sql, flight);
        let running = run(&mut self.live_mut().raw);
        let answer = within(limit.ends(timing.started), running).await;
        self.take_answer(timing, sql, limit, answer, note)
    }

    /// Records an answer, or the lack of it.
    fn take_answer<T>(
        &mut self,
        mut timing: StatementTiming,
        sql: &SqlStr,
        limit: WaitLimit,
        answer: Option<Result<T, sqlx::Error>>,
        note: impl FnOnce(&mut StatementTiming, &T),
    ) -> Result<T, sqlx::Error> {
        let Some(answer) = answer else { return Err(self.timed_out(&timing, sql, limit)) };
        if let Ok(answer) = &answer {
            note(&mut timing, answer);
        }
        self.finish_statement(&timing, sql, answer.as_ref().err());
        answer.map_err(|error| self.mark_not_writable(error))
    }

    /// Marks the error of a refused write if the server decided so, and not the program.
    fn mark_not_writable(&self, error: sqlx::Error) -> sqlx::Error {
        if Class::of(&error) == Class::ReadOnly && !self.state.reads_only {
            NotWritable::mark(error)
        } else {
            error
        }
    }

    /// The error of an answer that did not arrive in time. Logs it, too.
    fn timed_out(&mut self, timing: &StatementTiming, sql: &SqlStr, limit: WaitLimit) -> sqlx::Error {
        let error = self.expired(limit).into();
        self.report(Instant::now(), timing, sql, Some(&error));
        error
    }

    /// Sets the in-flight flag, and updates the tracker.
    pub(super) fn start_statement(&mut self, sql: &SqlStr, flight: InFlight) -> StatementTiming {
        let timing = StatementTiming::begin(if self.once { self.taken } else { Instant::now() });
        self.state.begin(flight);
        if self.inner.tracks() && !self.once {
            self.live().session.statement_started(sql, timing.started);
        }
        timing
    }

    /// Clears the in-flight flag, and records the end.
    pub(super) fn finish_statement(
        &mut self,
        timing: &StatementTiming,
        sql: &SqlStr,
        error: Option<&sqlx::Error>,
    ) {
        let now = Instant::now();
        if error.is_some() && self.live().role == Role::ByChoice {
            // A refused write then says nothing new about the server.
            self.state.reads_only = true;
        }
        self.state.end(error);
        if !self.state.is_lost() {
            self.live_mut().last_seen = now;
        }
        self.report(now, timing, sql, error);
    }

    /// Records the end of a statement, or that nobody waits for it any more: in the tracker, in the log, and for the observers.
    pub(super) fn report(
        &self,
        now: Instant,
        timing: &StatementTiming,
        sql: &SqlStr,
        error: Option<&sqlx::Error>,
    ) {
        if self.inner.tracks() && !self.once {
            self.live().session.statement_finished(now);
        }
        let (at, name, sql) = (self.at, self.name, sql.as_str());
        let is_slow = timing.log(now, &self.inner.options, at, name, sql, error);
        if is_slow {
            self.inner.statement_was_slow();
        }
        if self.inner.observers.is_empty() {
            return;
        }
        let took = now.saturating_duration_since(timing.started);
        let StatementTiming { rows, affected, .. } = *timing;
        let error = error.map(ErrorType::of);
        let done = StatementDone { at, name, sql, took, rows, affected, error };
        self.inner.observers.report(|observer| observer.statement(&done));
    }

    /// Records what a statement will leave in its session, before it is sent.
    ///
    /// # Errors
    ///
    /// [`PoolerError`] if a pooler would leave it to other clients.
    fn record_effects(&mut self, text: &Text) -> Result<(), PoolerError> {
        self.check_pooler(|| text.needs_session())?;
        let changes_session = text.changes_session(&mut self.live_mut().harmless_texts);
        // Outside a transaction, only the session's own settings count.
        if changes_session || self.state.transaction != Transaction::None {
            self.state.reads_only |= sets_read_only(text.as_str());
        }
        if changes_session {
            self.state.session_changed = true;
            self.state.unseen = true;
            self.state.may_have_begun = true;
            self.savepoints_may_end();
            if self.state.transaction == Transaction::Aborted {
                // `ROLLBACK TO SAVEPOINT` may recover it; the commit will check.
                self.state.transaction = Transaction::Open;
            }
        }
        Ok(())
    }

    /// Refuses a statement that needs a session of its own behind a pooler.
    fn check_pooler(&self, needs: impl FnOnce() -> Option<Needs>) -> Result<(), PoolerError> {
        if !self.inner.is_pooled() {
            return Ok(());
        }
        match needs() {
            Some(needs) => Err(PoolerError::new(&self.inner.options.name, self.at, needs)),
            None => Ok(()),
        }
    }
}

/// Whether a statement sets the transaction or the session to read only. Checks the first letter first, since most do not.
fn sets_read_only(sql: &str) -> bool {
    let sql = sql.trim_start();
    if !sql.starts_with(['s', 'S', 'b', 'B']) {
        return false;
    }
    let is = |keyword: &str| sql.get(..keyword.len()).is_some_and(|word| word.eq_ignore_ascii_case(keyword));
    if !(is("set") || is("start") || is("begin")) {
        return false;
    }
    let sql = sql.to_ascii_lowercase();
    sql.contains("read only") || sql.contains("read_only")
}

fn prepare(
    raw: &mut PgConnection,
    sql: SqlStr,
    parameters: Vec<PgTypeInfo>,
) -> BoxFuture<'_, Result<PgStatement, sqlx::Error>> {
    Box::pin(async move { raw.prepare_with(sql, &parameters).await })
}
