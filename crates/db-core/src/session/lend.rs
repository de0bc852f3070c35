//! Lending sqlx's own connection to code that insists on it.
//!
//! sqlx counts the transactions that it has open, and decides by that count whether its `begin` sends `BEGIN` or makes a
//! savepoint. Our transactions are begun and ended past that count, so it is set right before each loan.

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use super::{Session, sqlx_depth};
use crate::Error;
use crate::question::Standing;
use crate::statement::{Flight, Transaction, is_aborted};

impl Session {
    /// sqlx's own connection, for code that insists on it: a function that takes `&mut PgConnection` or `impl Acquire`.
    ///
    /// Nothing is known of what is done with it, so before the next statement that does not go through it, one round trip asks
    /// where the session stands, and the session is reset when it is given back (`DISCARD ALL`), with all that was prepared on
    /// it. Behind a [pooler](crate::Pooler::Transaction), the connection is closed instead. Code that leaves the session as it
    /// was costs less by [`as_sqlx_without_reset`](Self::as_sqlx_without_reset).
    ///
    /// In a transaction of ours, `begin` of sqlx makes a savepoint, and its `commit` and `rollback` end that savepoint. The first
    /// such loan of a connection costs a round trip, and so does the first one outside of a transaction after that.
    ///
    /// The next statement fails with [`Error::Lent`], and is not sent, when the session gives each statement the answer of
    /// another: sqlx loses count of the answers when a `COPY` does not end as it should, for example when its future is dropped
    /// ([`copy_in`](Self::copy_in) and [`copy_out`](Self::copy_out) do not). The connection is of no more use then, and is
    /// closed. The same is said while a transaction is open that was begun through sqlx's connection, for which the statement was
    /// not meant, and when our transaction was ended through it.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// What a statement meets that is sent next: [`Error::Deadline`] when something that was cut off in a transaction had to be
    /// cancelled, [`Error::Lent`] after a loan that ended badly, [`Error::Statement`] when the link is lost.
    pub async fn as_sqlx(&mut self) -> Result<&mut PgConnection, Error> {
        self.ready_to_lend().await?;
        self.state.lend();
        self.state.was_lent = true;
        self.state.session_changed = true;
        Ok(&mut self.live_mut().raw)
    }

    /// The same for code that leaves the session as it was, which the caller promises: no settings but `SET LOCAL`, no `LISTEN`,
    /// nothing temporary that is not dropped on commit, no locks of the session, nothing prepared by text, no `COPY` that does
    /// not end. The session is not reset, and keeps what was prepared on it.
    ///
    /// One round trip asks where the session stands all the same: before the next statement that does not go through sqlx's
    /// connection, before a commit, or in the background when the connection is given back.
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

    /// Has nothing in flight, and sqlx's count as high as it must be for its `begin` to do the right thing.
    async fn ready_to_lend(&mut self) -> Result<(), Error> {
        let is_lent = self.state.is_lent();
        if !is_lent {
            self.make_ready().await?;
        }
        let counts = self.live().raw.is_in_transaction();
        let is_open = match self.state.transaction {
            // Nothing of ours came in between: what is open is for the one who lends again.
            Transaction::None if is_lent => return Ok(()),
            Transaction::None if self.state.may_be_begun => self.ask().await? != Standing::Idle,
            Transaction::None => false,
            Transaction::Open | Transaction::Aborted => true,
        };
        if is_open && !counts {
            if is_lent {
                // It has lost a transaction of ours, or holds a savepoint that was cut off.
                self.drain().await?;
            }
            // In a failed transaction there are no savepoints.
            if self.state.transaction != Transaction::Aborted {
                self.raise_depth().await?;
            }
        } else if counts && !is_open {
            self.lower_depth().await?;
        }
        Ok(())
    }

    /// Has sqlx take a transaction to be open.
    async fn raise_depth(&mut self) -> Result<(), sqlx::Error> {
        let limit = self.limit();
        let (live, state) = self.parts();
        state.begin(Flight::Control);
        match timeout(limit.wait, sqlx_depth::raise(&mut live.raw)).await {
            Ok(Ok(())) => {
                state.end(None);
                Ok(())
            }
            Ok(Err(error)) => {
                state.end(Some(&error));
                // It had failed before, and nobody knew: a way back may be what the connection is lent for.
                if is_aborted(&error) { Ok(()) } else { Err(error) }
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Has sqlx take no transaction to be open.
    async fn lower_depth(&mut self) -> Result<(), sqlx::Error> {
        let limit = self.limit();
        let (live, state) = self.parts();
        // Dropped halfway, it may have a transaction open, which is asked for before anything else is sent.
        state.begin(Flight::Lent);
        match timeout(limit.wait, sqlx_depth::lower(&mut live.raw)).await {
            Ok(Ok(())) => {
                state.end(None);
                Ok(())
            }
            Ok(Err(error)) => {
                state.end(Some(&error));
                state.begin(Flight::Lent);
                state.mark_useless();
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }
}
