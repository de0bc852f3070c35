//! A transaction.

use std::fmt;
use std::sync::Arc;

use async_stream::try_stream;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{AssertSqlSafe, Either, Execute, Executor, Postgres, SqlSafeStr, SqlStr};

use crate::class::{Verdict, is_fatal};
use crate::deadline::{DeadlineError, Ends};
use crate::doubt::{Hook, When};
use crate::encryption::Keyring;
use crate::error::StatementError;
use crate::question::Standing;
use crate::statement::Transaction;
use crate::text::Text;
use crate::{Class, Conn, Error, Repeat};

mod attempt;
mod options;
mod resolve;
mod savepoint;

pub use attempt::Attempt;
pub use options::{Isolation, TxOptions};
pub use savepoint::Savepoint;

use resolve::Outcome;

/// An open transaction, which ends with [`Tx::commit`], [`Tx::rollback`] or by being dropped.
///
/// `&mut Tx` is a sqlx executor. Dropped without a commit, the transaction is rolled back in the background, wherever its
/// future was cut off; [`Handle::tx`](crate::Handle::tx) is the form that cannot forget the end.
///
/// What was cut off in it, such as the rest of a stream, is read to its end before the next statement, as sqlx does. If that takes
/// longer than 5 s, it is cancelled: the next statement, or the commit, then fails with [`Error::Deadline`] and says so. A
/// rollback, and that of a savepoint around it, cancels it at once.
///
/// `BEGIN` and `COMMIT` are sent by us and not by sqlx's `Transaction`: in sqlx 0.9.0 a `begin` whose future is dropped
/// leaves a transaction open on a connection that goes back to its pool.
pub struct Tx {
    conn: Conn,
    /// The open savepoints, by their numbers on the server: never that of one before, which may be there still.
    savepoints: Vec<u32>,
    next_savepoint: u32,
    /// The outermost savepoint that was left without a word, to be rolled back to before anything else is done.
    undo: Option<u32>,
    /// Without those whose savepoint is undone.
    hooks: Vec<Hook>,
    resolves_commit: bool,
}

impl Tx {
    pub(crate) async fn begin(mut conn: Conn, options: TxOptions) -> Result<Self, Error> {
        let timeout = options.timeout.unwrap_or(conn.inner().options.tx_timeout);
        let inner = conn.inner();
        let sql = if inner.is_pooled() {
            AssertSqlSafe(options.begin(&inner.options.for_each_transaction(timeout))).into_sql_str()
        } else if options.is_plain() {
            "BEGIN".into_sql_str()
        } else {
            AssertSqlSafe(options.begin(&[])).into_sql_str()
        };
        // What a statement before has left is not the transaction's.
        conn.drain().await?;
        // Before the first byte is sent: from here on the server may have a transaction open.
        conn.state.transaction = Transaction::Open;
        conn.state.failure = None;
        conn.state.doubt.forget();
        conn.state.reads_only |= options.read_only;
        conn.state.ends = Ends::after(timeout);
        conn.live().session.set_in_transaction(true);
        let mut tx = Self {
            conn,
            savepoints: Vec::new(),
            next_savepoint: 0,
            undo: None,
            hooks: Vec::new(),
            resolves_commit: options.resolves_commit,
        };
        tx.conn.control(sql).await?;
        Ok(tx)
    }

    /// Commits. The connection goes back to its pool, and what [`Tx::after_commit`] and [`Tx::unless_rolled_back`] were given
    /// runs.
    ///
    /// Dropping the future leaves it open whether the transaction is committed or not: nobody has read the answer. All of
    /// it is, or nothing. The answer is then read in the background, and what was given runs as it says.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] when a statement in the transaction had failed: nothing of it is stored, although the server
    /// itself answers such a `COMMIT` without an error. [`Error::Statement`] when the server refused, for example a
    /// deferred constraint: nothing is stored. [`Error::Lent`] when the session came back from [`Tx::as_sqlx`] in a state in
    /// which its answers cannot be believed: the commit was not sent, and nothing is stored. [`Error::Deadline`] when it was open
    /// for too long, or when what was cut off in it did not end: nothing is stored. [`Error::CommitUnknown`] when the link was
    /// lost on the way, or the session ended with an error; with [`TxOptions::resolve_commit`], this is success or
    /// [`Error::RolledBack`] instead, as soon as the server can tell.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.settle().await?;
        // A statement that was cut off may have failed. Where the session stands that was lent is asked below.
        if !self.conn.state.is_lent() {
            self.conn.drain().await?;
        }
        if let Some(expired) = self.expired() {
            return Err(expired.into());
        }
        if self.conn.state.unseen && self.conn.state.transaction == Transaction::Open {
            self.ask().await?;
        }
        if self.conn.state.transaction == Transaction::Aborted {
            self.rollback().await?;
            return Err(Error::Aborted);
        }
        let number = if self.resolves_commit { Some(resolve::number(&mut self.conn).await?) } else { None };
        // From here on the server may have committed, whatever becomes of this future: the hooks go with the connection.
        self.doubts();
        let error = match self.conn.control("COMMIT".into_sql_str()).await {
            Ok(()) => {
                self.ended();
                self.conn.state.doubt.committed();
                return Ok(());
            }
            Err(error) if refuses(&error) => {
                self.conn.state.doubt.forget();
                return Err(Error::from(error));
            }
            Err(error) => StatementError(error),
        };
        let Some(number) = number else {
            if self.conn.state.in_flight().is_none() {
                // There is no answer to come that could tell.
                self.conn.state.doubt.unknown();
            }
            return Err(Error::CommitUnknown(error));
        };
        let mut doubt = std::mem::take(&mut self.conn.state.doubt);
        match resolve::outcome(self.conn, number.as_deref()).await {
            Outcome::Committed => {
                doubt.committed();
                Ok(())
            }
            Outcome::RolledBack => {
                doubt.forget();
                Err(Error::RolledBack(error))
            }
            Outcome::Unknown => Err(Error::CommitUnknown(error)),
        }
    }

    /// Rolls back. The connection goes back to its pool.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when the link was lost: the server then rolls back by itself.
    pub async fn rollback(mut self) -> Result<(), Error> {
        if self.conn.state.is_lent() {
            // Wherever it stands: nothing is open afterwards.
            self.conn.ask().await?;
        }
        self.conn.give_up().await?;
        self.conn.control("ROLLBACK".into_sql_str()).await?;
        self.ended();
        Ok(())
    }

    /// Begins a part that can be undone alone.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when a statement had failed before (25P02).
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, Error> {
        Savepoint::begin(self).await
    }

    /// Runs `work` as a part that can be undone alone: kept when it returns `Ok`, undone when it returns `Err` or its
    /// future is dropped. The transaction goes on either way.
    ///
    /// # Errors
    ///
    /// The error of `work` as it is; else what [`Tx::savepoint`], [`Savepoint::release`] and [`Savepoint::rollback`] say.
    pub async fn nested<T, E, F>(&mut self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Savepoint<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let mut savepoint = self.savepoint().await?;
        match work(&mut savepoint).await {
            Ok(value) => {
                savepoint.release().await?;
                Ok(value)
            }
            Err(error) => {
                savepoint.rollback().await?;
                Err(error)
            }
        }
    }

    /// Runs something once the transaction is known to be committed: right after the commit's answer, in the order given,
    /// before [`Tx::commit`] returns; in the background, when its future was dropped and the answer comes all the same. Not
    /// when it is rolled back, nor when its outcome is not known, nor when the savepoint in which this was called is undone.
    /// It must not block.
    pub fn after_commit(&mut self, run: impl FnOnce() + Send + 'static) {
        self.hook(When::Committed, run);
    }

    /// As [`Tx::after_commit`], and also when the commit was sent and nobody can tell what became of it: its answer was lost
    /// ([`Error::CommitUnknown`]), or its future, its task or its runtime ended before the answer came. For what wakes others up,
    /// who then look for themselves: once too often does no harm there, and not at all does.
    ///
    /// It runs when the server has come to the end of the commit, so that others can see what was stored; at once when the link
    /// is lost, which may be before that.
    pub fn unless_rolled_back(&mut self, run: impl FnOnce() + Send + 'static) {
        self.hook(When::NotRolledBack, run);
    }

    fn hook(&mut self, when: When, run: impl FnOnce() + Send + 'static) {
        self.hooks.push(Hook { level: self.savepoints.len(), when, run: Box::new(run) });
    }

    /// Leaves the hooks to whoever comes to know what the server has done.
    fn doubts(&mut self) {
        self.conn.state.doubt.add(std::mem::take(&mut self.hooks));
    }

    /// What was [attached](crate::Pool::attach) to its pool.
    #[must_use]
    pub fn attached<T: std::any::Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.conn.inner().companions.get()
    }

    /// The keys that columns are sealed under, if they were attached to its pool.
    #[must_use]
    pub fn keyring(&self) -> Option<Arc<Keyring>> {
        self.attached()
    }

    /// The process id of the server process, as in `pg_stat_activity`; 0 through a [pooler](crate::Pooler::Transaction).
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.conn.pid()
    }

    /// sqlx's own connection inside the transaction, for code that insists on it. Nothing is known of what is done with
    /// it, so one round trip before the next statement, or the commit, asks where the session stands, as
    /// [`Conn::as_sqlx`] says, and the session is reset after the transaction's end. A savepoint that was dropped and not yet undone is undone
    /// by the next statement that goes through the transaction itself.
    pub fn as_sqlx(&mut self) -> &mut PgConnection {
        self.conn.as_sqlx()
    }

    /// The limit that has passed, if it has.
    fn expired(&mut self) -> Option<DeadlineError> {
        let limit = self.conn.state.ends?.limit();
        limit.wait.is_zero().then(|| self.conn.expired(limit))
    }

    /// The error of a transaction that was not done in time.
    pub(crate) fn not_done(&mut self) -> DeadlineError {
        let limit = self.conn.limit();
        self.conn.expired(limit)
    }

    /// Whether rolling back would have to wait for a statement that was cut off, or has no link to do it on.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.conn.state.in_flight().is_some() || self.conn.state.is_lost()
    }

    /// When it has to be done.
    pub(crate) fn ends(&self) -> Option<tokio::time::Instant> {
        self.conn.state.ends.map(|ends| ends.at.into())
    }

    /// What the first failed statement in it met, if that is a reason to run all of it again.
    pub(crate) fn failure(&self) -> Option<Class> {
        self.conn.state.failure.and_then(Verdict::retry_class)
    }

    fn ended(&mut self) {
        let state = &mut self.conn.state;
        state.transaction = Transaction::None;
        state.ends = None;
        self.conn.live().session.set_in_transaction(false);
    }

    /// Finds out whether the transaction is aborted, where we did not see every statement: the server answers the commit
    /// of one that is without an error.
    async fn ask(&mut self) -> Result<(), Error> {
        match self.conn.ask().await? {
            Standing::Open => {}
            Standing::Aborted => self.conn.state.transaction = Transaction::Aborted,
            Standing::Idle => {
                // There is nothing to commit or to roll back any more.
                self.ended();
                self.doubts();
                self.conn.state.doubt.unknown();
                let what = "the transaction had been ended by a statement inside it";
                return Err(Error::CommitUnknown(StatementError(sqlx::Error::Protocol(what.to_owned()))));
            }
        }
        Ok(())
    }

    /// [`Tx::settle`], in a box when there is something to do: most statements have nothing to wait for.
    async fn settled(&mut self) -> Result<(), sqlx::Error> {
        match self.undo {
            None => Ok(()),
            Some(_) => Box::pin(self.settle()).await,
        }
    }

    /// Undoes what a dropped savepoint has left.
    async fn settle(&mut self) -> Result<(), sqlx::Error> {
        let Some(number) = self.undo else { return Ok(()) };
        // What was cut off since is undone as well.
        self.conn.give_up().await?;
        let name = savepoint_name(number);
        let sql = format!("ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}");
        self.conn.control(AssertSqlSafe(sql).into_sql_str()).await?;
        self.undo = None;
        if self.conn.state.transaction == Transaction::Aborted {
            // It was a statement since the savepoint that failed: in an aborted transaction none can be made.
            self.conn.state.transaction = Transaction::Open;
            self.conn.state.failure = None;
        }
        Ok(())
    }

    async fn control_savepoint(&mut self, what: &str, number: u32) -> Result<(), sqlx::Error> {
        let sql = format!("{what} {}", savepoint_name(number));
        self.conn.control(AssertSqlSafe(sql).into_sql_str()).await
    }

    /// Has everything since that savepoint undone before the next statement.
    fn undo_from(&mut self, level: usize) {
        // Numbers grow, so the outermost has the smallest.
        let number = self.savepoints[level - 1];
        self.undo = Some(self.undo.map_or(number, |other| other.min(number)));
        self.savepoints.truncate(level - 1);
        self.hooks.retain(|hook| hook.level < level);
    }

    /// Leaves what was done since that savepoint to the one around it.
    fn keep_from(&mut self, level: usize) {
        self.savepoints.truncate(level - 1);
        for hook in &mut self.hooks {
            hook.level = hook.level.min(level - 1);
        }
    }
}

/// Whether the server refused a commit, so that nothing of it is stored. A session that ends with its answer has not refused:
/// the commit may have been stored before what ended it, whatever the code.
pub(crate) fn refuses(error: &sqlx::Error) -> bool {
    let is_answer = matches!(error, sqlx::Error::Database(_)) && !is_fatal(error);
    is_answer && Verdict::of_statement(error).repeat != Repeat::IfHarmless
}

fn savepoint_name(number: u32) -> String {
    format!("db_core_{number}")
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("conn", &self.conn)
            .field("savepoints", &self.savepoints.len())
            .finish_non_exhaustive()
    }
}

impl<'c> Executor<'c> for &'c mut Tx {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move {
            self.settled().await?;
            self.conn.count(&mut text).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let text = Text::of(query);
        if self.undo.is_none() {
            return self.conn.many(text);
        }
        Box::pin(try_stream! {
            self.settled().await?;
            let mut results = self.conn.many(text);
            while let Some(result) = results.try_next().await? {
                yield result;
            }
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move {
            self.settled().await?;
            self.conn.optional(&mut text).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            self.settled().await?;
            self.conn.prepare_with(sql, parameters).await
        })
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            self.settled().await?;
            self.conn.describe(sql).await
        })
    }
}
