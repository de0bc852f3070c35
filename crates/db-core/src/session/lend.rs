//! Lending sqlx's own connection to code that needs it.
//!
//! sqlx counts the transactions that it has open, and decides by that count whether its `begin` sends `BEGIN` or creates a
//! savepoint. Our transactions do not change that count, so it is set right before each loan.

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use super::Session;
use crate::statement::{InFlight, Transaction, is_aborted};
use crate::stats::CloseReason;
use crate::status_query::TxStatus;
use crate::{Error, sqlx_depth};

impl Session {
    /// sqlx's own connection, for functions that take `&mut PgConnection` or `impl Acquire`.
    ///
    /// This crate does not see what is done with it. So one round trip queries the transaction status before the next statement that
    /// does not go through the loan, and the session is reset when it is returned (`DISCARD ALL`), with all its prepared statements.
    /// Behind a [pooler](crate::Pooler::Transaction), the connection is closed instead. Code that does not change the session costs
    /// less with [`as_sqlx_without_reset`](Self::as_sqlx_without_reset).
    ///
    /// In a transaction of ours, sqlx's `begin` creates a savepoint, and its `commit` and `rollback` end that savepoint. The first
    /// such loan of a connection costs a round trip, and so does the first loan outside a transaction after it.
    ///
    /// After a loan, the next statement fails with [`Error::Lent`] and is not sent in three cases. First, the session answers each
    /// statement with the answer of another: sqlx loses count of the answers when a `COPY` does not end properly, for example when
    /// its future is dropped ([`copy_in`](Self::copy_in) and [`copy_out`](Self::copy_out) do not have this problem); the connection
    /// is then closed. Second, a transaction that was begun through the loan is still open. Third, our transaction was ended through
    /// the loan.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] if an abandoned statement in a transaction had to be cancelled, [`Error::Lent`] after a loan that ended
    /// badly, [`Error::Statement`] if the link is lost.
    pub async fn as_sqlx(&mut self) -> Result<&mut PgConnection, Error> {
        self.ready_to_lend().await?;
        self.state.lend();
        self.state.was_lent = true;
        self.state.session_changed = true;
        Ok(&mut self.live_mut().raw)
    }

    /// As [`as_sqlx`](Self::as_sqlx), for code that does not change the session, which the caller promises: no settings but `SET
    /// LOCAL`, no `LISTEN`, no temporary objects without `ON COMMIT DROP`, no session locks, no `PREPARE`, and no unfinished `COPY`.
    /// The session is not reset, and keeps its prepared statements.
    ///
    /// One round trip queries the transaction status all the same: before the next statement that does not go through the loan,
    /// before a commit, or in the background when the connection is returned.
    ///
    /// ```no_run
    /// # async fn run(pool: db_core::Pool) -> Result<(), db_core::Error> {
    /// async fn add(conn: &mut sqlx::PgConnection, word: &str) -> sqlx::Result<()> {
    ///     sqlx::query("insert into word values ($1)").bind(word).execute(conn).await?;
    ///     Ok(())
    /// }
    ///
    /// pool.handle()
    ///     .tx(async |tx| {
    ///         add(tx.as_sqlx_without_reset().await?, "hello").await?;
    ///         Ok::<_, db_core::Error>(())
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`as_sqlx`](Self::as_sqlx).
    pub async fn as_sqlx_without_reset(&mut self) -> Result<&mut PgConnection, Error> {
        self.ready_to_lend().await?;
        self.state.lend();
        Ok(&mut self.live_mut().raw)
    }

    /// Finishes what is in flight, and sets sqlx's count so that its `begin` works correctly.
    async fn ready_to_lend(&mut self) -> Result<(), Error> {
        let is_lent = self.state.is_lent();
        if !is_lent {
            self.make_ready().await?;
        }
        self.savepoints_may_end();
        let counts = self.live().raw.is_in_transaction();
        let is_open = match self.state.transaction {
            // No statement of ours came between two loans: an open transaction belongs to the borrower.
            Transaction::None if is_lent => return Ok(()),
            Transaction::None if self.state.may_have_begun => self.status().await? != TxStatus::Idle,
            Transaction::None => false,
            Transaction::Open | Transaction::Aborted => true,
        };
        if is_open && !counts {
            if is_lent {
                // The borrower ended a transaction of ours, or left a savepoint unfinished.
                self.drain().await?;
            }
            // A failed transaction accepts no savepoints.
            if self.state.transaction != Transaction::Aborted {
                self.raise_depth().await?;
            }
        } else if counts && !is_open {
            self.lower_depth().await?;
        }
        Ok(())
    }

    /// Raises sqlx's count of open transactions to one.
    async fn raise_depth(&mut self) -> Result<(), sqlx::Error> {
        let limit = self.limit();
        let (live, state) = self.parts();
        state.begin(InFlight::Control);
        match timeout(limit.wait, sqlx_depth::raise(&mut live.raw)).await {
            Ok(Ok(())) => {
                state.end(None);
                Ok(())
            }
            Ok(Err(error)) => {
                state.end(Some(&error));
                // The transaction had already failed unnoticed: the borrower may want to recover it.
                if is_aborted(&error) { Ok(()) } else { Err(error) }
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Lowers sqlx's count of open transactions to zero.
    async fn lower_depth(&mut self) -> Result<(), sqlx::Error> {
        let limit = self.limit();
        let (live, state) = self.parts();
        // If this is dropped halfway, a transaction may be open. `Lent` makes the next statement query the status first.
        state.begin(InFlight::Lent);
        match timeout(limit.wait, sqlx_depth::lower(&mut live.raw)).await {
            Ok(Ok(())) => {
                state.end(None);
                Ok(())
            }
            Ok(Err(error)) => {
                state.end(Some(&error));
                state.begin(InFlight::Lent);
                state.mark_useless(CloseReason::Repair);
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }
}
