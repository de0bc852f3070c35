//! Coming to the end of what was cut off, and asking where the session stands.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Session;
use crate::class::Verdict;
use crate::deadline::{DeadlineError, Limited};
use crate::lent::{Found, LentError};
use crate::pool::{CUT_OFF, Cancel, LET_IT_END, ask, come_to_rest, forget_statements, is_in_transaction};
use crate::question::{self, Standing};
use crate::statement::{Flight, Transaction};

/// In a transaction, a statement that was cut off may go on for so long before it is cancelled, as documented at
/// [`Tx`](crate::Tx): the transaction fails with it.
const LET_A_TRANSACTION_GO_ON: Duration = Duration::from_secs(5);

impl Session {
    /// Whether a statement may be sent without more ado.
    pub(crate) fn is_ready(&self) -> bool {
        self.state.in_flight().is_none() && !self.has_to_undo()
    }

    /// Undoes what a dropped savepoint has left, and comes to the end of what was cut off.
    pub(crate) async fn make_ready(&mut self) -> Result<(), sqlx::Error> {
        self.settle().await?;
        self.drain().await
    }

    /// Reads the end of a statement that was cut off, if there is one: the driver would take its error for that of the next. It
    /// is cancelled when it does not end by itself at once; in a transaction, which would fail with it, only after
    /// [`LET_A_TRANSACTION_GO_ON`], and then that is said. After sqlx's own connection was lent, asks where the session stands.
    pub(crate) async fn drain(&mut self) -> Result<(), sqlx::Error> {
        let is_open = match self.state.transaction {
            Transaction::Open => true,
            // One may have been begun by text.
            Transaction::None => self.state.session_changed,
            Transaction::Aborted => false,
        };
        let patience = if is_open { LET_A_TRANSACTION_GO_ON } else { LET_IT_END };
        self.end_what_was_cut_off(is_open, patience).await
    }

    /// The same, where the transaction around it is to be undone: it is cancelled at once.
    pub(crate) async fn give_up(&mut self) -> Result<(), sqlx::Error> {
        self.end_what_was_cut_off(false, LET_IT_END).await
    }

    async fn end_what_was_cut_off(
        &mut self,
        keeps_transaction: bool,
        patience: Duration,
    ) -> Result<(), sqlx::Error> {
        let Some(flight) = self.state.in_flight() else { return Ok(()) };
        if matches!(flight, Flight::Lent | Flight::Copy | Flight::OutOfStep) {
            let standing = self.ask().await?;
            return self.state.stands(standing).map_err(|found| self.not_sent(found));
        }
        let limit = self.limit();
        let by_text = self.state.transaction == Transaction::None;
        let live = self.live.as_deref_mut().expect("there until it is dropped");
        let rested = timeout(limit.wait, async {
            let rest = come_to_rest(&self.inner, live, flight, patience).await?;
            let was_cancelled = rest.failed && rest.cancel == Cancel::Answered;
            let fails_transaction = was_cancelled
                && keeps_transaction
                && (!by_text || is_in_transaction(&self.inner, live).await?);
            Ok((rest, fails_transaction))
        });
        match rested.await {
            Ok(Ok((rest, _))) if rest.cancel == Cancel::Unanswered => {
                // The request may be carried out whenever the session does something, so that is to do nothing more.
                self.state.mark_lost();
                let what =
                    "a request to cancel the statement before was not answered, and might hit this one";
                Err(sqlx::Error::Protocol(what.to_owned()))
            }
            Ok(Ok((rest, fails_transaction))) => {
                // Nobody asked for its error, but a transaction around it has failed, too.
                self.state.at_rest(rest.failed);
                self.state.doubt.came_to(rest);
                if fails_transaction {
                    let (pool, at) = (&self.inner.options.name, self.at);
                    let error = DeadlineError::of_cut_off(pool, at, LET_A_TRANSACTION_GO_ON).into();
                    self.state.failure.get_or_insert(Verdict::of(&error));
                    return Err(error);
                }
                live.cut_off += 1;
                if live.cut_off < CUT_OFF { Ok(()) } else { self.forget_statements(limit).await }
            }
            Ok(Err(error)) => {
                self.state.mark_lost();
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Has the server forget what was prepared, since nobody knows of all of it.
    async fn forget_statements(&mut self, limit: Limited) -> Result<(), sqlx::Error> {
        if self.inner.is_pooled() || self.state.transaction != Transaction::None {
            // Done when it is given back.
            self.state.session_changed = true;
            return Ok(());
        }
        let live = self.live.as_deref_mut().expect("there until it is dropped");
        self.state.begin(Flight::Control);
        match timeout(limit.wait, forget_statements(live)).await {
            Ok(forgotten) => {
                self.state.end(forgotten.as_ref().err());
                forgotten
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Asks the session where it stands. The answer clears what was in flight, but is not noted.
    pub(crate) async fn ask(&mut self) -> Result<Standing, sqlx::Error> {
        match self.state.in_flight() {
            Some(Flight::OutOfStep) => return Err(self.not_sent(Found::OutOfStep)),
            Some(Flight::Copy) => return Err(self.not_sent(Found::CutCopy)),
            Some(Flight::Statement | Flight::Control | Flight::Lent) | None => {}
        }
        let limit = self.limit();
        let live = self.live.as_deref_mut().expect("there until it is dropped");
        if !self.state.is_lent() {
            self.state.begin(Flight::Control);
        }
        let asked = timeout(limit.wait, async {
            if self.state.transaction == Transaction::None {
                ask(&self.inner, live).await
            } else {
                // Without a cancel, which could hit the question, and a transaction would be lost with it.
                question::ask(&mut live.raw, &mut live.numbers).await
            }
        });
        match asked.await {
            Ok(Ok(Some(standing))) => {
                self.state.end(None);
                live.last_seen = Instant::now();
                Ok(standing)
            }
            Ok(Ok(None)) => {
                self.state.mark_out_of_step();
                Err(self.not_sent(Found::OutOfStep))
            }
            Ok(Err(error)) => {
                self.state.mark_lost();
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    fn not_sent(&self, found: Found) -> sqlx::Error {
        LentError::new(&self.inner.options.name, self.at, found).into()
    }
}
