//! `COPY`, with an end that is seen.
//!
//! The driver does not count the answers to a `COPY`, so after one that did not come to its end each statement would be given the
//! answer of the one before. Nothing follows such a `COPY`: its connection is closed at once, and its session ended.

use std::fmt;
use std::ops::DerefMut;

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
use crate::class::is_fatal;
use crate::deadline::{DeadlineError, Ends, Limited};
use crate::lent::{Found, LentError};
use crate::log::Trip;
use crate::statement::Flight;
use crate::tracker::CallSite;
use crate::{Conn, Error, Handle};

impl Session {
    /// Begins a `COPY … FROM STDIN`.
    ///
    /// It ends by [`CopyIn::finish`], or by an [`CopyIn::abort`] that the server confirms. Ended in any other way, and when it
    /// does not start, its connection is closed at once: a transaction around it is lost, and each further statement on the
    /// session fails with [`Error::Lent`]. Dropping this future is such an end once `COPY` was sent.
    ///
    /// Each wait for the server has the pool's [`statement_timeout`](crate::PoolOptions::statement_timeout), not the whole.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the server refuses the statement, or it is no such `COPY`.
    pub async fn copy_in(&mut self, statement: impl SqlSafeStr) -> Result<CopyIn<'_>, Error> {
        CopyIn::begin(self, statement.into_sql_str()).await
    }

    /// Runs a `COPY … TO STDOUT`, which is sent when the stream is first polled. Its items are pieces of the answer, each a row in
    /// the forms that PostgreSQL has today.
    ///
    /// It ends with the end of the stream, `None`. Dropped before that, and when it does not start, its connection is closed at
    /// once: a transaction around it is lost, and each further statement on the session fails with [`Error::Lent`].
    ///
    /// Each wait for the server has the pool's [`statement_timeout`](crate::PoolOptions::statement_timeout), not the whole. The
    /// first item that is an error is the last one: [`Error::Statement`] when the server refuses the statement or fails on the
    /// way, or the statement is no such `COPY`.
    pub fn copy_out(&mut self, statement: impl SqlSafeStr) -> BoxStream<'_, Result<Bytes, Error>> {
        copy_out(std::future::ready(Ok(self)), statement.into_sql_str())
    }

    /// Notes how a `COPY` ended of which the driver has read all that there is.
    fn copy_answered(&mut self, copy: Copy, rows: u64, error: Option<&sqlx::Error>) {
        let Copy { sql, mut trip, .. } = copy;
        trip.affected += rows;
        self.arrive(&trip, &sql, error);
        if error.is_some() {
            // As far as anybody knows. It costs a question before the next statement to be sure.
            self.state.begin(Flight::Lent);
        }
    }

    /// Gives the connection to those who close it. Nothing is sent on this session any more.
    fn close_at_once(&mut self) {
        let transaction = self.state.transaction;
        self.leave();
        self.state.transaction = transaction;
        self.state.begin(Flight::Copy);
    }
}

impl Handle {
    /// [`Session::copy_in`] on a connection of its own, which is given back at its end.
    ///
    /// # Errors
    ///
    /// [`Error::Acquire`]; [`Error::Statement`] when the server refuses the statement, or it is no such `COPY`.
    pub fn copy_in<S: SqlSafeStr>(
        &self,
        statement: S,
    ) -> impl Future<Output = Result<CopyIn<'static>, Error>> + Send + use<S> {
        let (acquired, sql) = (self.acquire(), statement.into_sql_str());
        async move { CopyIn::begin(acquired.await?, sql).await }
    }

    /// [`Session::copy_out`] on a connection of its own, which is taken when the stream is first polled and given back at its end.
    pub fn copy_out(&self, statement: impl SqlSafeStr) -> BoxStream<'static, Result<Bytes, Error>> {
        let acquired = self.acquire();
        copy_out::<Conn>(async move { Ok(acquired.await?) }, statement.into_sql_str())
    }
}

/// A `COPY … FROM STDIN` that takes data, made by [`Session::copy_in`] or [`Handle::copy_in`].
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
    /// Holds the session, and does what it is told. None once it has ended, or what it was told was cut off.
    copying: Option<BoxFuture<'c, Result<u64, Error>>>,
    orders: mpsc::Sender<Order>,
    pool: String,
    at: CallSite,
}

/// What is to be done next.
struct Order {
    what: What,
    done: oneshot::Sender<()>,
}

enum What {
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

    /// Sends a piece of the data. Pieces need not be rows.
    ///
    /// Dropping the future ends the `COPY`, and closes its connection: nothing follows a piece that was cut off.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the link is lost, [`Error::Deadline`], and [`Error::Lent`] once it has ended. That a row is
    /// refused is told by [`finish`](Self::finish).
    pub async fn send(&mut self, data: impl Into<Bytes>) -> Result<(), Error> {
        self.order(What::Send(data.into())).await.map(drop)
    }

    /// Ends the data. Returns how many rows were stored, or will be with the transaction around it.
    ///
    /// Dropping the future closes the connection; the rows may be stored or not.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the server refuses a row: none is stored, and the session is of use still.
    pub async fn finish(mut self) -> Result<u64, Error> {
        self.order(What::Finish).await
    }

    /// Gives up, with a reason for the server's log: no row is stored, and a transaction around it has failed. The session is of
    /// use still.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the server had refused a row before: the connection is closed.
    pub async fn abort(mut self, reason: impl Into<String>) -> Result<(), Error> {
        self.order(What::Abort(reason.into())).await.map(drop)
    }

    async fn order(&mut self, what: What) -> Result<u64, Error> {
        let (done, is_done) = oneshot::channel();
        // It takes each before this is called again.
        let _: Result<_, _> = self.orders.try_send(Order { what, done });
        self.until(is_done).await
    }

    /// Lets it go on until then, or to its end.
    async fn until(&mut self, done: oneshot::Receiver<()>) -> Result<u64, Error> {
        // Out of its place: if this future is dropped, it goes as well, and the connection with it.
        let Some(mut copying) = self.copying.take() else {
            return Err(Error::Lent(LentError::new(&self.pool, self.at, Found::CutCopy)));
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

/// Closes the connection if a `COPY` on it has not come to its end.
struct Guard<S: DerefMut<Target = Session>>(S);

impl<S: DerefMut<Target = Session>> Drop for Guard<S> {
    fn drop(&mut self) {
        if self.0.state.in_flight() == Some(Flight::Copy) {
            self.0.close_at_once();
        }
    }
}

/// A `COPY` under way, and how long each of its waits may be.
struct Copy {
    sql: SqlStr,
    trip: Trip,
    ends: Option<Ends>,
    statement: Limited,
    pool: String,
    at: CallSite,
}

impl Copy {
    async fn begin(session: &mut Session, sql: SqlStr) -> Result<Self, sqlx::Error> {
        session.make_ready().await?;
        let trip = session.depart(&sql, Flight::Copy);
        let statement = Limited::of_statement(session.inner.options.statement_timeout);
        let (pool, at) = (session.inner.options.name.clone(), session.at);
        Ok(Self { sql, trip, ends: session.state.ends, statement, pool, at })
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
        let limit = self.ends.map_or(self.statement, |ends| ends.limit().min(self.statement));
        match timeout(limit.wait, work).await {
            Ok(done) => done,
            Err(_) => Err(DeadlineError::new(&self.pool, self.at, limit).into()),
        }
    }
}

/// Whether the driver has read the answer to its end: it does after an error that does not end the session.
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
    let mut to: PgCopyIn<&mut PgConnection> =
        copy.within(session.live_mut().raw.copy_in_raw(copy.sql.as_str())).await?;
    let _: Result<_, _> = begun.send(());
    while let Some(Order { what, done }) = orders.recv().await {
        match what {
            What::Send(data) => copy.within(to.send(data)).await.map(drop)?,
            What::Finish => {
                let finished = copy.within(to.finish()).await;
                match &finished {
                    Ok(rows) => session.copy_answered(copy, *rows, None),
                    Err(error) if is_answer(error) => session.copy_answered(copy, 0, Some(error)),
                    // It ends with the guard.
                    Err(_) => {}
                }
                return Ok(finished?);
            }
            What::Abort(reason) => {
                copy.within(to.abort(reason)).await?;
                session.copy_answered(copy, 0, None);
                session.state.at_rest(true);
                return Ok(0);
            }
        }
        let _: Result<_, _> = done.send(());
    }
    // Nobody is left who could end it well.
    Ok(0)
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
        let failure = 'copy: {
            let session = &mut *guard.0;
            let mut copy = match Copy::begin(session, sql).await {
                Ok(copy) => copy,
                Err(error) => break 'copy Some(error),
            };
            let mut rows = match copy.within(session.live_mut().raw.copy_out_raw(copy.sql.as_str())).await {
                Ok(rows) => rows,
                Err(error) => break 'copy Some(error),
            };
            let failure = loop {
                match copy.within(rows.try_next()).await {
                    Ok(Some(row)) => {
                        copy.trip.rows += 1;
                        yield row;
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            drop(rows);
            if failure.as_ref().is_none_or(is_answer) {
                session.copy_answered(copy, 0, failure.as_ref());
            }
            failure
        };
        // Before the error is told: the stream may be kept for long after it.
        drop(guard);
        if let Some(error) = failure {
            Err(error)?;
        }
    })
}
