//! `COPY` with a tracked end.
//!
//! The driver does not count the answers to a `COPY`, so after an unfinished `COPY` each statement would get the answer of the
//! previous one. No statement follows such a `COPY`: its connection is closed at once, and its session ended.

use std::fmt;
use std::ops::DerefMut;
use std::time::Instant;

use async_stream::try_stream;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgCopyIn};
use sqlx::{SqlSafeStr, SqlStr};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Session;
use super::log::StatementTiming;
use crate::call_site::CallSite;
use crate::class::is_fatal;
use crate::deadline::{Deadline, DeadlineError, WaitLimit};
use crate::lent::{LentError, LentProblem};
use crate::statement::InFlight;
use crate::{Conn, Error, Handle};

impl Session {
    /// Starts a `COPY … FROM STDIN`.
    ///
    /// End it with [`CopyIn::finish`], or with an [`CopyIn::abort`] that the server confirms. If it ends in any other way, or
    /// does not start, its connection is closed at once: a transaction around it is lost, and each further statement on the
    /// session fails with [`Error::Lent`]. Dropping this future after `COPY` was sent is such an end, too.
    ///
    /// The pool's [`statement_timeout`](crate::PoolOptions::statement_timeout) applies to each wait for the server, not to the whole
    /// `COPY`.
    /// # Errors
    ///
    /// [`Error::Statement`] if the server refuses the statement, or if it is not a `COPY … FROM STDIN`.
    pub async fn copy_in(&mut self, statement: impl SqlSafeStr) -> Result<CopyIn<'_>, Error> {
        CopyIn::begin(self, statement.into_sql_str()).await
    }

    /// Runs a `COPY … TO STDOUT`. The statement is sent when the stream is first polled. Each item is a piece of the output, which
    /// in PostgreSQL's present formats is one row.
    ///
    /// Read the stream to its end, `None`. If it is dropped earlier, or does not start, its connection is closed at
    /// once: a transaction around it is lost, and each further statement on the session fails with [`Error::Lent`].
    ///
    /// The pool's [`statement_timeout`](crate::PoolOptions::statement_timeout) applies to each wait for the server, not to the whole
    /// `COPY`. The stream ends after its first error: [`Error::Statement`] if the server refuses the statement or fails during it,
    /// or if it is not a `COPY … TO STDOUT`.
    pub fn copy_out(&mut self, statement: impl SqlSafeStr) -> BoxStream<'_, Result<Bytes, Error>> {
        copy_out(std::future::ready(Ok(self)), statement.into_sql_str())
    }

    /// Records the end of a `COPY` whose answer the driver has read completely.
    fn copy_answered(&mut self, copy: Copy, rows: u64, error: Option<&sqlx::Error>) {
        let Copy { sql, mut timing, .. } = copy;
        timing.affected += rows;
        self.finish_statement(&timing, &sql, error);
        if error.is_some() {
            // Probably in step. `Lent` makes the next statement query the status first.
            self.state.begin(InFlight::Lent);
        }
    }

    /// Closes the connection. No further statement is sent on this session.
    fn close_at_once(&mut self) {
        let transaction = self.state.transaction;
        self.leave();
        self.state.transaction = transaction;
        self.state.begin(InFlight::Copy);
    }
}

impl Handle {
    /// [`Session::copy_in`] on a connection of its own, which is returned at the end of the `COPY`.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`]; [`Error::Statement`] if the server refuses the statement, or if it is not a `COPY … FROM STDIN`.
    pub fn copy_in<S: SqlSafeStr>(
        &self,
        statement: S,
    ) -> impl Future<Output = Result<CopyIn<'static>, Error>> + Send + use<S> {
        let (acquired, sql) = (self.acquire(), statement.into_sql_str());
        async move { CopyIn::begin(acquired.await?, sql).await }
    }

    /// [`Session::copy_out`] on a connection of its own, which is acquired when the stream is first polled and returned at its end.
    pub fn copy_out(&self, statement: impl SqlSafeStr) -> BoxStream<'static, Result<Bytes, Error>> {
        let acquired = self.acquire();
        copy_out::<Conn>(async move { Ok(acquired.await?) }, statement.into_sql_str())
    }
}

/// A running `COPY … FROM STDIN`, started by [`Session::copy_in`] or [`Handle::copy_in`].
///
/// ```no_run
/// # async fn run(pool: db_core::Pool) -> Result<(), db_core::Error> {
/// let mut copy = pool.handle().copy_in("copy word from stdin").await?;
/// for word in ["one", "two"] {
///     copy.send(format!("{word}\n")).await?;
/// }
/// assert_eq!(copy.finish().await?, 2);
/// # Ok(())
/// # }
/// ```
#[must_use = "the connection is closed unless the copy is finished or aborted"]
pub struct CopyIn<'c> {
    /// Holds the session and executes the orders. `None` once it has ended, or an order was dropped halfway.
    copying: Option<BoxFuture<'c, Result<u64, Error>>>,
    orders: mpsc::Sender<Order>,
    pool: String,
    at: CallSite,
}

/// An order to the running `COPY`.
struct Order {
    action: Action,
    done: oneshot::Sender<()>,
}

enum Action {
    Send(Bytes),
    Finish,
    Abort(String),
}

impl<'c> CopyIn<'c> {
    async fn begin<S>(session: S, sql: SqlStr) -> Result<Self, Error>
    where
        S: DerefMut<Target = Session> + Send + 'c,
    {
        let (orders, receiver) = mpsc::channel(1);
        let (begun, is_begun) = oneshot::channel();
        let (pool, at) = (session.inner.options.name.clone(), session.at);
        let copying = Box::pin(copy_in(Guard(session), sql, begun, receiver));
        let mut copy = Self { copying: Some(copying), orders, pool, at };
        copy.until(is_begun).await?;
        Ok(copy)
    }

    /// Sends a piece of the data. Pieces need not be whole rows.
    ///
    /// Dropping the future ends the `COPY` and closes its connection.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the link is lost, [`Error::Deadline`], and [`Error::Lent`] after the `COPY` has ended. A refused row
    /// is reported by [`finish`](Self::finish).
    pub async fn send(&mut self, data: impl Into<Bytes>) -> Result<(), Error> {
        self.order(Action::Send(data.into())).await.map(drop)
    }

    /// Ends the data. Returns the number of rows stored; inside a transaction, they are stored when it commits.
    ///
    /// Dropping the future closes the connection; the rows may or may not be stored.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the server refuses a row: no row is stored, and the session stays usable.
    pub async fn finish(mut self) -> Result<u64, Error> {
        self.order(Action::Finish).await
    }

    /// Aborts with a reason for the server's log: no row is stored, and a transaction around the `COPY` has failed. The session
    /// stays usable.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the server had already refused a row: the connection is closed.
    pub async fn abort(mut self, reason: impl Into<String>) -> Result<(), Error> {
        self.order(Action::Abort(reason.into())).await.map(drop)
    }

    async fn order(&mut self, action: Action) -> Result<u64, Error> {
        let (done, is_done) = oneshot::channel();
        // The channel has room: each order is taken before the next call.
        let _: Result<_, _> = self.orders.try_send(Order { action, done });
        self.until(is_done).await
    }

    /// Polls the `COPY` until `done` resolves or the `COPY` ends.
    async fn until(&mut self, done: oneshot::Receiver<()>) -> Result<u64, Error> {
        // Taken out of `self`: if this future is dropped, the `COPY` is dropped, and its connection closed.
        let Some(mut copying) = self.copying.take() else {
            return Err(Error::Lent(LentError::new(&self.pool, self.at, LentProblem::UnfinishedCopy)));
        };
        tokio::select! {
            biased;
            ended = &mut copying => ended,
            _ = done => {
                self.copying = Some(copying);
                Ok(0)
            }
        }
    }
}

impl fmt::Debug for CopyIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyIn")
            .field("pool", &self.pool)
            .field("is_open", &self.copying.is_some())
            .finish_non_exhaustive()
    }
}

/// Closes the connection if a `COPY` on it is unfinished.
struct Guard<S: DerefMut<Target = Session>>(S);

impl<S: DerefMut<Target = Session>> Drop for Guard<S> {
    fn drop(&mut self) {
        if self.0.state.in_flight() == Some(InFlight::Copy) {
            self.0.close_at_once();
        }
    }
}

/// A running `COPY` and the limits of its waits.
struct Copy {
    sql: SqlStr,
    timing: StatementTiming,
    ends: Option<Deadline>,
    statement: WaitLimit,
    pool: String,
    at: CallSite,
}

impl Copy {
    async fn begin(session: &mut Session, sql: SqlStr) -> Result<Self, sqlx::Error> {
        session.make_ready().await?;
        let limit = session.limit();
        if limit.is_over() {
            return Err(session.expired(limit).into());
        }
        let timing = session.start_statement(&sql, InFlight::Copy);
        let statement = WaitLimit::of_statement(session.inner.options.statement_timeout);
        let (pool, at) = (session.inner.options.name.clone(), session.at);
        Ok(Self { sql, timing, ends: session.state.ends, statement, pool, at })
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
        let limit = self.ends.map_or(self.statement, |ends| ends.limit().min(self.statement));
        if limit.is_over() {
            return Err(DeadlineError::new(&self.pool, self.at, limit).into());
        }
        match timeout(limit.wait, work).await {
            Ok(done) => done,
            Err(_) => Err(DeadlineError::new(&self.pool, self.at, limit).into()),
        }
    }
}

/// Whether the driver has read the answer completely, as it does after an error that does not end the session.
fn is_answer(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(_)) && !is_fatal(error)
}

async fn copy_in<S>(
    mut guard: Guard<S>,
    sql: SqlStr,
    begun: oneshot::Sender<()>,
    mut orders: mpsc::Receiver<Order>,
) -> Result<u64, Error>
where
    S: DerefMut<Target = Session> + Send,
{
    let session = &mut *guard.0;
    let copy = Copy::begin(session, sql).await?;
    let ended = match copy.within(session.live_mut().raw.copy_in_raw(copy.sql.as_str())).await {
        Ok(to) => follow(to, &copy, begun, &mut orders).await,
        // The guard closes the connection, also after an error of the server: the driver may be out of step.
        Err(error) => CopyEnd::Broken(error),
    };
    match ended {
        CopyEnd::Answered(Ok(rows)) => {
            session.copy_answered(copy, rows, None);
            Ok(rows)
        }
        CopyEnd::Answered(Err(error)) => {
            session.copy_answered(copy, 0, Some(&error));
            Err(error.into())
        }
        CopyEnd::Aborted => {
            session.copy_answered(copy, 0, None);
            session.state.finish_abandoned(true);
            Ok(0)
        }
        CopyEnd::Broken(error) => {
            session.report(Instant::now(), &copy.timing, &copy.sql, Some(&error));
            Err(error.into())
        }
        // `CopyIn` was dropped.
        CopyEnd::Dropped => Ok(0),
    }
}

/// How a `COPY … FROM STDIN` has ended.
enum CopyEnd {
    /// The server has answered, and the session is in step.
    Answered(Result<u64, sqlx::Error>),
    Aborted,
    Broken(sqlx::Error),
    Dropped,
}

/// Does what the orders say until the `COPY` ends.
async fn follow(
    mut to: PgCopyIn<&mut PgConnection>,
    copy: &Copy,
    begun: oneshot::Sender<()>,
    orders: &mut mpsc::Receiver<Order>,
) -> CopyEnd {
    let _: Result<_, _> = begun.send(());
    while let Some(Order { action, done }) = orders.recv().await {
        match action {
            Action::Send(data) => {
                if let Err(error) = copy.within(to.send(data)).await.map(drop) {
                    return CopyEnd::Broken(error);
                }
            }
            Action::Finish => {
                return match copy.within(to.finish()).await {
                    Err(error) if !is_answer(&error) => CopyEnd::Broken(error),
                    finished => CopyEnd::Answered(finished),
                };
            }
            Action::Abort(reason) => {
                return match copy.within(to.abort(reason)).await {
                    Err(error) => CopyEnd::Broken(error),
                    Ok(()) => CopyEnd::Aborted,
                };
            }
        }
        let _: Result<_, _> = done.send(());
    }
    CopyEnd::Dropped
}

fn copy_out<'c, S>(
    acquired: impl Future<Output = Result<S, Error>> + Send + 'c,
    sql: SqlStr,
) -> BoxStream<'c, Result<Bytes, Error>>
where
    S: DerefMut<Target = Session> + Send + 'c,
{
    Box::pin(try_stream! {
        let mut guard = Guard(acquired.await?);
        // With the `COPY` that is not reported yet.
        let (failure, untold) = 'copy: {
            let session = &mut *guard.0;
            let mut copy = match Copy::begin(session, sql).await {
                Ok(copy) => copy,
                Err(error) => break 'copy (Some(error), None),
            };
            let mut rows = match copy.within(session.live_mut().raw.copy_out_raw(copy.sql.as_str())).await {
                Ok(rows) => rows,
                Err(error) => break 'copy (Some(error), Some(copy)),
            };
            let failure = loop {
                match copy.within(rows.try_next()).await {
                    Ok(Some(row)) => {
                        copy.timing.rows += 1;
                        yield row;
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            drop(rows);
            if failure.as_ref().is_none_or(is_answer) {
                session.copy_answered(copy, 0, failure.as_ref());
                (failure, None)
            } else {
                (failure, Some(copy))
            }
        };
        if let Some(Copy { sql, timing, .. }) = untold {
            guard.0.report(Instant::now(), &timing, &sql, failure.as_ref());
        }
        // Before the error is returned, since the stream may be kept for long after it.
        drop(guard);
        if let Some(error) = failure {
            Err(error)?;
        }
    })
}
