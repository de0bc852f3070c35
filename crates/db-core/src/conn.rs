//! A connection on loan from a pool.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use sqlx::SqlStr;

use crate::pool::{CheckedOut, Shared};
use crate::tracker::Asker;
use crate::{Error, Session, Tx, TxOptions};

/// A connection taken from a [`Pool`](crate::Pool), given back when it is dropped. What runs on it is a [`Session`].
///
/// `&mut Conn` is a sqlx executor. There is no `Deref` to sqlx's connection, because every `&mut *conn` would then have
/// to be suspected; [`Session::as_sqlx`] is there for code that needs it.
///
/// Given back clean, it is at once ready for the next user, without a round trip. Dropped with a statement cut off, with a
/// transaction open, or after a statement that changes the session, it is first brought back to a known state, in the
/// background: the statement is cancelled on the server, the transaction rolled back, the session reset. With its link
/// lost, it is replaced.
#[derive(Debug)]
pub struct Conn {
    session: Session,
}

impl Conn {
    /// Lent out now, for one statement if that is told.
    pub(crate) fn new(
        live: CheckedOut,
        inner: Arc<Shared>,
        asker: Asker,
        now: Instant,
        statement: Option<&SqlStr>,
    ) -> Self {
        Self { session: Session::new(live, inner, asker, now, statement) }
    }

    /// Begins a transaction, which takes the connection with it.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when `BEGIN` fails.
    pub async fn begin(self) -> Result<Tx, Error> {
        self.begin_with(TxOptions::default()).await
    }

    /// Begins a transaction of a certain kind.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when `BEGIN` or a [local setting](TxOptions::set) fails.
    pub async fn begin_with(self, options: TxOptions) -> Result<Tx, Error> {
        Tx::begin(self.session, options).await
    }
}

impl Deref for Conn {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
