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
use crate::deadline::{Limited, within};
use crate::log::Trip;
use crate::pooler::Needs;
use crate::role::{NotWritable, Role};
use crate::sql;
use crate::statement::{Flight, Transaction};
use crate::text::Text;
use crate::{Class, PoolerError};

impl Session {
    /// Runs transaction control by the simple protocol: one round trip, nothing prepared.
    pub(crate) async fn control(&mut self, statement: SqlStr) -> Result<(), sqlx::Error> {
        self.control_row(statement).await.map(drop)
    }

    pub(crate) async fn control_row(&mut self, statement: SqlStr) -> Result<Option<PgRow>, sqlx::Error> {
        self.drain().await?;
        let limit = Limited::of_statement(self.inner.options.statement_timeout);
        let sent = statement.clone();
        self.travel(
            &statement,
            Flight::Control,
            limit,
            |raw| raw.fetch_optional(sqlx::raw_sql(sent)),
            |_, _| {},
        )
        .await
    }

    /// A statement that answers with one row, or none.
    pub(crate) fn optional<'c>(
        &'c mut self,
        text: &'c mut Text,
    ) -> impl Future<Output = Result<Option<PgRow>, sqlx::Error>> + Send + 'c {
        self.whole(
            text,
            |raw, text| raw.fetch_optional(text),
            |trip, row| trip.rows += u64::from(row.is_some()),
        )
    }

    /// A statement whose rows nobody wants.
    pub(crate) fn count<'c>(
        &'c mut self,
        text: &'c mut Text,
    ) -> impl Future<Output = Result<PgQueryResult, sqlx::Error>> + Send + 'c {
        self.whole(text, |raw, text| raw.execute(text), |trip, done| trip.affected += done.rows_affected())
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async function has room for its arguments twice"
    )]
    fn whole<'c, T: Send>(
        &'c mut self,
        text: &'c mut Text,
        run: impl for<'r> Fn(&'r mut PgConnection, &'r mut Text) -> BoxFuture<'r, Result<T, sqlx::Error>>
        + Send
        + Sync
        + 'c,
        note: impl Fn(&mut Trip, &T) + Send + Sync + 'c,
    ) -> impl Future<Output = Result<T, sqlx::Error>> + Send + 'c {
        async move {
            if !self.is_ready() {
                // In a box: most statements have nothing before them.
                Box::pin(self.make_ready()).await?;
            }
            self.take_note(text)?;
            let limit = self.limit();
            let spare = self.spare(text);
            // As in `once_more`, and not by a function of both, which would be one more future around it.
            let trip = self.depart(text.sql_str(), Flight::Statement);
            let answer = within(limit.ends(trip.started), run(&mut self.live_mut().raw, text)).await;
            match self.judge(trip, text.sql_str(), limit, answer, &note) {
                Err(error) => Box::pin(self.once_more(error, text, spare, limit, run, note)).await,
                answer => answer,
            }
        }
    }

    /// Sends a statement that has just failed a second time, if that was for a stale plan, and it may be.
    async fn once_more<T>(
        &mut self,
        error: sqlx::Error,
        text: &mut Text,
        spare: Option<PgArguments>,
        limit: Limited,
        run: impl for<'r> Fn(&'r mut PgConnection, &'r mut Text) -> BoxFuture<'r, Result<T, sqlx::Error>>,
        note: impl Fn(&mut Trip, &T),
    ) -> Result<T, sqlx::Error> {
        if !self.heals(&error, text).await {
            return Err(error);
        }
        let Some(spare) = spare else { return Err(error) };
        text.refill(spare);
        self.distinguish(text);
        let trip = self.depart(text.sql_str(), Flight::Statement);
        let answer = within(limit.ends(trip.started), run(&mut self.live_mut().raw, text)).await;
        self.judge(trip, text.sql_str(), limit, answer, note)
    }

    /// A statement whose rows are read one by one. Each wait for the next has the limit, not the whole.
    pub(crate) fn many(
        &mut self,
        mut text: Text,
    ) -> BoxStream<'_, Result<Either<PgQueryResult, PgRow>, sqlx::Error>> {
        Box::pin(try_stream! {
            self.make_ready().await?;
            self.take_note(&text)?;
            let sql = text.sql_str().clone();
            let ends = self.state.ends;
            let mut may_repeat = true;
            loop {
                let mut limit = self.limit();
                let spare = self.spare(&mut text);
                let mut trip = self.depart(&sql, Flight::Statement);
                let live = self.live.as_deref_mut().expect("there until it is dropped");
                let mut results = live.raw.fetch_many(&mut text);
                let failure = loop {
                    // Most rows are there already, and need no timer.
                    let next = if let Some(next) = results.try_next().now_or_never() {
                        Ok(next)
                    } else {
                        // What is left of a transaction's time is less for each row.
                        limit = ends.map_or(limit, |ends| ends.limit().min(limit));
                        timeout(limit.wait, results.try_next()).await
                    };
                    match next {
                        Ok(Ok(Some(result))) => {
                            may_repeat = false;
                            trip.saw(&result);
                            yield result;
                        }
                        Ok(Ok(None)) => break None,
                        Ok(Err(error)) => break Some(error),
                        Err(_) => {
                            drop(results);
                            Err(self.too_late(&trip, &sql, limit))?;
                            return;
                        }
                    }
                };
                drop(results);
                self.arrive(&trip, &sql, failure.as_ref());
                let Some(error) = failure.map(|error| self.explained(error)) else { break };
                let healed = self.heals(&error, &text).await;
                let Some(spare) = spare.filter(|_| healed && may_repeat) else {
                    Err(error)?;
                    break;
                };
                text.refill(spare);
                may_repeat = false;
            }
        })
    }

    /// Prepares a statement, as the driver does.
    pub(crate) async fn run_prepare(
        &mut self,
        sql: SqlStr,
        parameters: Vec<PgTypeInfo>,
    ) -> Result<PgStatement, sqlx::Error> {
        self.make_ready().await?;
        self.admit(|| sql::needs_session(sql.as_str(), false))?;
        let (limit, sent) = (self.limit(), sql.clone());
        self.travel(&sql, Flight::Statement, limit, |raw| prepare(raw, sent, parameters), |_, _| {}).await
    }

    /// Asks for the types of a statement.
    pub(crate) async fn run_describe(
        &mut self,
        sql: SqlStr,
    ) -> Result<sqlx::Describe<sqlx::Postgres>, sqlx::Error> {
        self.make_ready().await?;
        let (limit, sent) = (self.limit(), sql.clone());
        self.travel(&sql, Flight::Statement, limit, |raw| raw.describe(sent), |_, _| {}).await
    }

    /// Sends something, and waits for the whole of its answer within the limit.
    async fn travel<T>(
        &mut self,
        sql: &SqlStr,
        flight: Flight,
        limit: Limited,
        run: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
        note: impl FnOnce(&mut Trip, &T),
    ) -> Result<T, sqlx::Error> {
        let trip = self.depart(sql, flight);
        let running = run(&mut self.live_mut().raw);
        let answer = within(limit.ends(trip.started), running).await;
        self.judge(trip, sql, limit, answer, note)
    }

    /// Takes note of an answer, or of its absence.
    fn judge<T>(
        &mut self,
        mut trip: Trip,
        sql: &SqlStr,
        limit: Limited,
        answer: Option<Result<T, sqlx::Error>>,
        note: impl FnOnce(&mut Trip, &T),
    ) -> Result<T, sqlx::Error> {
        let Some(answer) = answer else { return Err(self.too_late(&trip, sql, limit)) };
        if let Ok(answer) = &answer {
            note(&mut trip, answer);
        }
        self.arrive(&trip, sql, answer.as_ref().err());
        answer.map_err(|error| self.explained(error))
    }

    /// Marks the error of a session that may not write on its server's decision.
    fn explained(&self, error: sqlx::Error) -> sqlx::Error {
        if Class::of(&error) == Class::ReadOnly && !self.state.reads_only {
            NotWritable::mark(error)
        } else {
            error
        }
    }

    /// The error of an answer that did not come in time, which the log is to show, too.
    fn too_late(&mut self, trip: &Trip, sql: &SqlStr, limit: Limited) -> sqlx::Error {
        let error = self.expired(limit).into();
        trip.log(Instant::now(), &self.inner.options, self.at, sql.as_str(), Some(&error));
        error
    }

    /// Raises the flag, and tells the tracker.
    pub(super) fn depart(&mut self, sql: &SqlStr, flight: Flight) -> Trip {
        let trip = Trip::begin(if self.once { self.taken } else { Instant::now() });
        self.state.begin(flight);
        if self.inner.tracks() && !self.once {
            self.live().session.statement_started(sql, trip.started);
        }
        trip
    }

    /// Lowers the flag, tells the tracker, and writes the log.
    pub(super) fn arrive(&mut self, trip: &Trip, sql: &SqlStr, error: Option<&sqlx::Error>) {
        let now = Instant::now();
        if error.is_some() && self.live().role == Role::ByChoice {
            // That it is refused a write says nothing new of its server.
            self.state.reads_only = true;
        }
        self.state.end(error);
        if !self.state.is_lost() {
            self.live_mut().last_seen = now;
        }
        if self.inner.tracks() && !self.once {
            self.live().session.statement_finished();
        }
        trip.log(now, &self.inner.options, self.at, sql.as_str(), error);
    }

    /// Notes what a statement will leave behind, before it is sent.
    ///
    /// # Errors
    ///
    /// A [`PoolerError`] when there is a pooler in between that would leave it to others.
    fn take_note(&mut self, text: &Text) -> Result<(), PoolerError> {
        self.admit(|| text.needs_session())?;
        let changes_session = text.changes_session(&mut self.live_mut().known);
        // Outside of a transaction, what sets something for the session only is of interest.
        if changes_session || self.state.transaction != Transaction::None {
            self.state.reads_only |= says_that_it_reads_only(text.as_str());
        }
        if changes_session {
            self.state.session_changed = true;
            self.state.unseen = true;
            self.state.may_be_begun = true;
            if self.state.transaction == Transaction::Aborted {
                // `ROLLBACK TO SAVEPOINT` may mend it; the commit will ask.
                self.state.transaction = Transaction::Open;
            }
        }
        Ok(())
    }

    /// Refuses what a pooler in between would leave to others.
    fn admit(&self, needs: impl FnOnce() -> Option<Needs>) -> Result<(), PoolerError> {
        if !self.inner.is_pooled() {
            return Ok(());
        }
        match needs() {
            Some(needs) => Err(PoolerError::new(&self.inner.options.name, self.at, needs)),
            None => Ok(()),
        }
    }
}

/// Whether a text sets its transaction, or the session, to read only. Most texts are no such thing by their first letter.
fn says_that_it_reads_only(sql: &str) -> bool {
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
