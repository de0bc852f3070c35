//! Finishing abandoned statements, and querying the session's transaction status.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Session;
use crate::cancels::Cancel;
use crate::class::Verdict;
use crate::deadline::{DeadlineError, WaitLimit};
use crate::error_type::ErrorType;
use crate::lent::{LentError, LentProblem};
use crate::pool::{CANCEL_AFTER, MAX_ABANDONED, drain, forget_statements, is_in_transaction, status};
use crate::statement::{InFlight, Transaction};
use crate::status_query::{TxStatus, query_status};

/// An abandoned statement in a transaction may run for this long before it is cancelled, as documented at [`Tx`](crate::Tx): the
/// cancel fails the transaction.
const CANCEL_IN_TX_AFTER: Duration = Duration::from_secs(5);

impl Session {
    /// Whether a statement can be sent without preparation.
    pub(crate) fn is_ready(&self) -> bool {
        self.state.in_flight().is_none() && !self.has_pending_undo()
    }

    /// Undoes a dropped savepoint, and finishes an abandoned statement.
    pub(crate) async fn make_ready(&mut self) -> Result<(), sqlx::Error> {
        self.undo_pending().await?;
        self.drain().await
    }

    /// Finishes an abandoned statement: the driver would take its error for the answer to the next statement. It is cancelled if it
    /// does not end within [`CANCEL_AFTER`]; in a transaction, which fails with the cancel, only after [`CANCEL_IN_TX_AFTER`], and
    /// then this returns an error. After a loan of sqlx's own connection, queries the transaction status.
    pub(crate) async fn drain(&mut self) -> Result<(), sqlx::Error> {
        let is_open = match self.state.transaction {
            Transaction::Open => true,
            // A transaction may have been begun with raw SQL.
            Transaction::None => self.state.session_changed,
            Transaction::Aborted => false,
        };
        let patience = if is_open { CANCEL_IN_TX_AFTER } else { CANCEL_AFTER };
        self.finish_abandoned(is_open, patience).await
    }

    /// As [`drain`](Self::drain), before a rollback: the statement is cancelled at once.
    pub(crate) async fn drain_for_rollback(&mut self) -> Result<(), sqlx::Error> {
        self.finish_abandoned(false, CANCEL_AFTER).await
    }

    async fn finish_abandoned(
        &mut self,
        keeps_transaction: bool,
        patience: Duration,
    ) -> Result<(), sqlx::Error> {
        let Some(flight) = self.state.in_flight() else { return Ok(()) };
        if matches!(flight, InFlight::Lent | InFlight::Copy | InFlight::OutOfStep) {
            let status = self.status().await?;
            return self.state.set_status(status).map_err(|problem| self.not_sent(problem));
        }
        let limit = self.limit();
        let is_raw = self.state.transaction == Transaction::None;
        let live = self.live.as_deref_mut().expect("an open connection");
        let drained = timeout(limit.wait, async {
            let end = drain(&self.inner, live, flight, patience).await?;
            let was_cancelled = end.failed && end.cancel == Cancel::Answered;
            let fails_transaction = was_cancelled
                && keeps_transaction
                && (!is_raw || is_in_transaction(&self.inner, live).await?);
            Ok((end, fails_transaction))
        });
        match drained.await {
            Ok(Ok((end, _))) if end.cancel == Cancel::Unanswered => {
                // The server may carry out the request at the next statement, so no further statement may be sent.
                self.state.mark_lost();
                let what =
                    "a cancel request for the previous statement was not answered and might hit this one";
                Err(sqlx::Error::Protocol(what.to_owned()))
            }
            Ok(Ok((end, fails_transaction))) => {
                // The statement's own error is dropped with its future, but it has failed the transaction around it.
                self.state.finish_abandoned(end.failed);
                self.state.pending_hooks.resolve(end);
                if fails_transaction {
                    let (pool, at) = (&self.inner.options.name, self.at);
                    let error = DeadlineError::of_abandoned(pool, at, CANCEL_IN_TX_AFTER).into();
                    self.state.failure.get_or_insert((Verdict::of(&error), ErrorType::of(&error)));
                    return Err(error);
                }
                live.abandoned += 1;
                if live.abandoned < MAX_ABANDONED { Ok(()) } else { self.forget_statements(limit).await }
            }
            Ok(Err(error)) => {
                self.state.mark_lost();
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Makes sqlx and the server forget all prepared statements: abandoned ones cannot be closed one by one.
    async fn forget_statements(&mut self, limit: WaitLimit) -> Result<(), sqlx::Error> {
        if self.inner.is_pooled() || self.state.transaction != Transaction::None {
            // The repair after the checkout does it.
            self.state.session_changed = true;
            return Ok(());
        }
        let live = self.live.as_deref_mut().expect("an open connection");
        self.state.begin(InFlight::Control);
        match timeout(limit.wait, forget_statements(live)).await {
            Ok(forgotten) => {
                self.state.end(forgotten.as_ref().err());
                forgotten
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Queries the transaction status. The answer ends what was in flight; the status is not stored.
    pub(crate) async fn status(&mut self) -> Result<TxStatus, sqlx::Error> {
        match self.state.in_flight() {
            Some(InFlight::OutOfStep) => return Err(self.not_sent(LentProblem::OutOfStep)),
            Some(InFlight::Copy) => return Err(self.not_sent(LentProblem::UnfinishedCopy)),
            Some(InFlight::Statement | InFlight::Control | InFlight::Lent) | None => {}
        }
        let limit = self.limit();
        let live = self.live.as_deref_mut().expect("an open connection");
        if !self.state.is_lent() {
            self.state.begin(InFlight::Control);
        }
        let answer = timeout(limit.wait, async {
            if self.state.transaction == Transaction::None {
                status(&self.inner, live).await
            } else {
                // No cancel here: it could hit the status query and fail the transaction.
                query_status(&mut live.raw, &mut live.numbers).await
            }
        });
        match answer.await {
            Ok(Ok(Some(status))) => {
                self.state.end(None);
                live.last_seen = Instant::now();
                Ok(status)
            }
            Ok(Ok(None)) => {
                self.state.mark_out_of_step();
                Err(self.not_sent(LentProblem::OutOfStep))
            }
            Ok(Err(error)) => {
                self.state.mark_lost();
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    fn not_sent(&self, problem: LentProblem) -> sqlx::Error {
        LentError::new(&self.inner.options.name, self.at, problem).into()
    }
}
