//! Beginning and ending transactions.

use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::TxOptions;
use crate::class::refuses;
use crate::deadline::{Deadline, DeadlineError};
use crate::error::StatementError;
use crate::statement::Transaction;
use crate::status_query::TxStatus;
use crate::{Class, Error, ErrorType, Session};

impl Session {
    /// Sends `BEGIN`. The session counts as in a transaction from the first byte on, since the server may have begun it.
    pub(crate) async fn begin_transaction(&mut self, options: &TxOptions) -> Result<(), Error> {
        let inner = self.inner();
        let timeout = options.timeout.unwrap_or(inner.options.tx_timeout);
        let callers = self.state.ends;
        let sql = if inner.is_pooled() {
            // Nobody can cancel its statements there, so the server ends them at the caller's deadline, too.
            let limit = callers.map_or(timeout, |callers| callers.limit().wait.min(timeout));
            AssertSqlSafe(options.begin(&inner.options.for_each_transaction(limit))).into_sql_str()
        } else if options.is_plain() {
            "BEGIN".into_sql_str()
        } else {
            AssertSqlSafe(options.begin(&[])).into_sql_str()
        };
        // Effects of earlier statements do not belong to the transaction.
        self.make_ready().await?;
        self.state.transaction = Transaction::Open;
        self.state.failure = None;
        self.state.pending_hooks.clear();
        self.state.reads_only |= options.read_only;
        if callers.is_some() {
            self.nesting().callers_deadline = callers;
        }
        self.state.ends =
            [Deadline::after(timeout), callers].into_iter().flatten().min_by_key(|ends| ends.at);
        self.live().session.set_in_transaction(true);
        self.control_within(sql, self.limit()).await?;
        Ok(())
    }

    /// Checks everything that must be known before `COMMIT` is sent.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] if the server would roll back instead, after rolling back; otherwise the errors of
    /// [`Tx::commit`](crate::Tx::commit).
    pub(crate) async fn get_ready_to_commit(&mut self) -> Result<(), Error> {
        if self.state.transaction == Transaction::None {
            return Err(ended_early());
        }
        self.undo_pending().await?;
        // An abandoned statement may have failed. The status after a loan is queried below.
        if !self.state.is_lent() {
            self.drain().await?;
        }
        if let Some(expired) = self.expired_transaction() {
            return Err(expired.into());
        }
        if self.state.unseen && self.state.transaction == Transaction::Open {
            self.check_aborted().await?;
        }
        if self.state.transaction == Transaction::Aborted {
            self.roll_back().await?;
            return Err(Error::Aborted);
        }
        Ok(())
    }

    /// Sends `COMMIT` without resolving an unknown outcome.
    pub(crate) async fn send_commit(&mut self) -> Result<(), Error> {
        let committed = self.try_commit().await;
        if matches!(committed, Err(Error::CommitUnknown(_))) {
            self.inner().commit_unknown();
            if self.state.in_flight().is_none() {
                // No further answer will arrive.
                self.state.pending_hooks.unknown();
            }
        }
        committed
    }

    /// Sends `COMMIT`. After [`Error::CommitUnknown`], the hooks are still pending.
    pub(super) async fn try_commit(&mut self) -> Result<(), Error> {
        // From here on the server may commit even if this future is dropped, so the hooks stay with the connection.
        self.make_hooks_pending();
        match self.control("COMMIT".into_sql_str()).await {
            Ok(()) => {
                self.transaction_ended();
                self.state.pending_hooks.committed();
                Ok(())
            }
            Err(error) if refuses(&error) => {
                self.state.pending_hooks.clear();
                Err(error.into())
            }
            Err(error) => Err(Error::CommitUnknown(StatementError::new(error))),
        }
    }

    /// Rolls back from any state.
    pub(crate) async fn roll_back(&mut self) -> Result<(), Error> {
        if self.state.is_lent() {
            // After a loan, the status must be known before anything is sent.
            self.status().await?;
        }
        self.drain_for_rollback().await?;
        self.control("ROLLBACK".into_sql_str()).await?;
        self.transaction_ended();
        Ok(())
    }

    pub(super) fn transaction_ended(&mut self) {
        self.state.transaction = Transaction::None;
        self.state.ends = self.nesting.take().and_then(|nesting| nesting.callers_deadline);
        self.live().session.set_in_transaction(false);
    }

    /// Checks whether the transaction is aborted, if not every statement was seen: the server answers the commit of an aborted
    /// transaction without an error.
    pub(super) async fn check_aborted(&mut self) -> Result<(), Error> {
        match self.status().await? {
            TxStatus::Open => {}
            TxStatus::Aborted => self.state.transaction = Transaction::Aborted,
            TxStatus::Idle => {
                // There is no transaction to commit or to roll back.
                self.make_hooks_pending();
                self.transaction_ended();
                self.state.pending_hooks.unknown();
                return Err(ended_early());
            }
        }
        Ok(())
    }

    /// The error of the transaction's deadline, if it has passed.
    fn expired_transaction(&self) -> Option<DeadlineError> {
        let limit = self.state.ends?.limit();
        limit.wait.is_zero().then(|| self.expired(limit))
    }

    /// The error of a transaction that did not end in time.
    pub(crate) fn transaction_timed_out(&self) -> DeadlineError {
        self.expired(self.limit())
    }

    /// Whether a rollback would have to wait for an abandoned statement, or has no link to send it on.
    pub(crate) fn is_busy_or_lost(&self) -> bool {
        self.state.in_flight().is_some() || self.state.is_lost()
    }

    /// The transaction's deadline.
    pub(crate) fn ends(&self) -> Option<tokio::time::Instant> {
        self.state.ends.map(|ends| ends.at.into())
    }

    /// The transaction's first failure, if the transaction may be repeated because of it.
    pub(crate) fn failure(&self) -> Option<(Class, ErrorType)> {
        let (verdict, error) = self.state.failure?;
        Some((verdict.retry_class()?, error))
    }
}

/// The error of a commit whose outcome is unknown because the transaction had already ended.
fn ended_early() -> Error {
    let what = "a statement inside the transaction had already ended it";
    Error::CommitUnknown(StatementError::new(sqlx::Error::Protocol(what.to_owned())))
}
