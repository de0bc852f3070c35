//! A connection checked out of a pool.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use sqlx::SqlStr;

use crate::pool::{CheckedOut, Shared};
use crate::tracker::Caller;
use crate::{Error, Session, Tx, TxOptions};

/// A connection checked out of a [`Pool`](crate::Pool), returned when it is dropped. Statements run on its [`Session`].
///
/// `&mut Conn` is a sqlx executor. There is no `Deref` to sqlx's connection, because every `&mut *conn` could then change the
/// session unseen; [`Session::as_sqlx`] is for code that needs it.
///
/// A connection that is returned clean is ready for the next caller at once, without a round trip. A connection with an abandoned
/// statement, an open transaction or a changed session is first repaired in the background: the statement is cancelled on the
/// server, the transaction rolled back, the session reset. A connection whose link is lost is replaced.
#[derive(Debug)]
pub struct Conn {
    session: Session,
}

impl Conn {
    /// Starts a checkout, for one statement if one is given.
    pub(crate) fn new(
        live: CheckedOut,
        inner: Arc<Shared>,
        caller: Caller,
        now: Instant,
        statement: Option<&SqlStr>,
    ) -> Self {
        Self { session: Session::new(live, inner, caller, now, statement) }
    }

    /// Begins a transaction, which takes the connection with it.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if `BEGIN` fails.
    pub async fn begin(self) -> Result<Tx, Error> {
        self.begin_with(TxOptions::default()).await
    }

    /// Begins a transaction with these options.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if `BEGIN` or a [local setting](TxOptions::set) fails.
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
