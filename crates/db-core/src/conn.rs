//! A connection on loan from a pool.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, Postgres, SqlStr};

use crate::statement::{Flagged, State, Transaction, flagged};
use crate::text::Text;
use crate::{Error, Tx};

/// A connection taken from a [`Pool`](crate::Pool), given back when it is dropped.
///
/// `&mut Conn` is a sqlx executor. There is no `Deref` to sqlx's connection, because every `&mut *conn` would then have
/// to be suspected; [`Conn::as_sqlx`] is there for code that needs it.
///
/// Dropped with a statement cut off, with the link lost, with a transaction open, or after a statement that changes the
/// session, the connection is closed instead of given back.
#[derive(Debug)]
pub struct Conn {
    raw: PoolConnection<Postgres>,
    pub(crate) state: State,
}

impl Conn {
    pub(crate) fn new(raw: PoolConnection<Postgres>) -> Self {
        Self { raw, state: State::default() }
    }

    /// Begins a transaction, which takes the connection with it.
    ///
    /// Dropping the future closes the connection: nothing stays open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when `BEGIN` fails.
    pub async fn begin(self) -> Result<Tx, Error> {
        Tx::begin(self).await
    }

    /// sqlx's own connection, for code that insists on it. The connection is closed afterwards instead of given back:
    /// nothing is known of what was done with it.
    pub fn as_sqlx(&mut self) -> &mut PgConnection {
        self.state.foreign = true;
        &mut self.raw
    }

    /// Notes what a statement will leave behind, before it is sent.
    fn take_note<'q>(&mut self, query: impl Execute<'q, Postgres>) -> Text {
        let text = Text::of(query);
        if text.changes_session() {
            self.state.foreign = true;
            if self.state.transaction == Transaction::Aborted {
                // `ROLLBACK TO SAVEPOINT` may mend it; the commit will ask.
                self.state.transaction = Transaction::Open;
            }
        }
        text
    }

    pub(crate) fn parts(&mut self) -> (&mut PgConnection, &mut State) {
        (&mut self.raw, &mut self.state)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if !self.state.is_clean() {
            self.raw.close_on_drop();
        }
    }
}

impl<'c> Executor<'c> for &'c mut Conn {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let query = self.take_note(query);
        let (raw, state) = self.parts();
        Box::pin(Flagged::new(state, raw.fetch_many(query)))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let query = self.take_note(query);
        let (raw, state) = self.parts();
        Box::pin(flagged(state, raw.fetch_optional(query)))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        let (raw, state) = self.parts();
        Box::pin(flagged(state, raw.prepare_with(sql, parameters)))
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        let (raw, state) = self.parts();
        Box::pin(flagged(state, raw.describe(sql)))
    }
}
