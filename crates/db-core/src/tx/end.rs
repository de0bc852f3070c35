//! How a transaction on a session begins and ends.

use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::TxOptions;
use crate::class::{Verdict, is_fatal};
use crate::deadline::{DeadlineError, Ends};
use crate::error::StatementError;
use crate::question::Standing;
use crate::statement::Transaction;
use crate::{Class, Error, Repeat, Session};

impl Session {
    /// Sends `BEGIN`. From its first byte on, the server may have a transaction open, and the session says so.
    pub(crate) async fn begin_transaction(&mut self, options: &TxOptions) -> Result<(), Error> {
        let inner = self.inner();
        let timeout = options.timeout.unwrap_or(inner.options.tx_timeout);
        let sql = if inner.is_pooled() {
            AssertSqlSafe(options.begin(&inner.options.for_each_transaction(timeout))).into_sql_str()
        } else if options.is_plain() {
            "BEGIN".into_sql_str()
        } else {
            AssertSqlSafe(options.begin(&[])).into_sql_str()
        };
        // What a statement before has left is not the transaction's.
        self.make_ready().await?;
        self.state.transaction = Transaction::Open;
        self.state.failure = None;
        self.state.doubt.forget();
        self.state.reads_only |= options.read_only;
        self.state.ends = Ends::after(timeout);
        self.live().session.set_in_transaction(true);
        self.control(sql).await?;
        Ok(())
    }

    /// All that has to be known before `COMMIT` is sent.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] when it would be rolled back instead, which is done here, and what [`Tx::commit`](crate::Tx::commit)
    /// says.
    pub(crate) async fn get_ready_to_commit(&mut self) -> Result<(), Error> {
        if self.state.transaction == Transaction::None {
            return Err(was_ended());
        }
        self.settle().await?;
        // A statement that was cut off may have failed. Where the session stands that was lent is asked below.
        if !self.state.is_lent() {
            self.drain().await?;
        }
        if let Some(expired) = self.expired_transaction() {
            return Err(expired.into());
        }
        if self.state.unseen && self.state.transaction == Transaction::Open {
            self.find_out_whether_aborted().await?;
        }
        if self.state.transaction == Transaction::Aborted {
            self.roll_back().await?;
            return Err(Error::Aborted);
        }
        Ok(())
    }

    /// Sends `COMMIT`, of which nobody will be asked when its answer does not come.
    pub(crate) async fn send_commit(&mut self) -> Result<(), Error> {
        let committed = self.try_commit().await;
        if matches!(committed, Err(Error::CommitUnknown(_))) && self.state.in_flight().is_none() {
            // There is no answer to come that could tell.
            self.state.doubt.unknown();
        }
        committed
    }

    /// Sends `COMMIT`. With [`Error::CommitUnknown`], its hooks still wait.
    pub(super) async fn try_commit(&mut self) -> Result<(), Error> {
        // From here on the server may have committed, whatever becomes of this future: the hooks go with the connection.
        self.leave_hooks_to_doubt();
        match self.control("COMMIT".into_sql_str()).await {
            Ok(()) => {
                self.transaction_ended();
                self.state.doubt.committed();
                Ok(())
            }
            Err(error) if refuses(&error) => {
                self.state.doubt.forget();
                Err(error.into())
            }
            Err(error) => Err(Error::CommitUnknown(StatementError(error))),
        }
    }

    /// Rolls back, wherever it stands.
    pub(crate) async fn roll_back(&mut self) -> Result<(), Error> {
        if self.state.is_lent() {
            // Nothing is open afterwards.
            self.ask().await?;
        }
        self.give_up().await?;
        self.control("ROLLBACK".into_sql_str()).await?;
        self.transaction_ended();
        Ok(())
    }

    pub(super) fn transaction_ended(&mut self) {
        self.state.transaction = Transaction::None;
        self.state.ends = None;
        self.nesting = None;
        self.live().session.set_in_transaction(false);
    }

    /// Finds out whether the transaction is aborted, where we did not see every statement: the server answers the commit
    /// of one that is without an error.
    async fn find_out_whether_aborted(&mut self) -> Result<(), Error> {
        match self.ask().await? {
            Standing::Open => {}
            Standing::Aborted => self.state.transaction = Transaction::Aborted,
            Standing::Idle => {
                // There is nothing to commit or to roll back any more.
                self.leave_hooks_to_doubt();
                self.transaction_ended();
                self.state.doubt.unknown();
                return Err(was_ended());
            }
        }
        Ok(())
    }

    /// The limit of the transaction that has passed, if it has.
    fn expired_transaction(&self) -> Option<DeadlineError> {
        let limit = self.state.ends?.limit();
        limit.wait.is_zero().then(|| self.expired(limit))
    }

    /// The error of a transaction that was not done in time.
    pub(crate) fn not_done(&self) -> DeadlineError {
        self.expired(self.limit())
    }

    /// Whether rolling back would have to wait for a statement that was cut off, or has no link to do it on.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.state.in_flight().is_some() || self.state.is_lost()
    }

    /// When the transaction has to be done.
    pub(crate) fn ends(&self) -> Option<tokio::time::Instant> {
        self.state.ends.map(|ends| ends.at.into())
    }

    /// What the first failed statement in the transaction met, if that is a reason to run all of it again.
    pub(crate) fn failure(&self) -> Option<Class> {
        self.state.failure.and_then(Verdict::retry_class)
    }
}

/// The error of a commit of which nobody knows what became.
fn was_ended() -> Error {
    let what = "the transaction had been ended by a statement inside it";
    Error::CommitUnknown(StatementError(sqlx::Error::Protocol(what.to_owned())))
}

/// Whether the server refused a commit, so that nothing of it is stored. A session that ends with its answer has not refused:
/// the commit may have been stored before what ended it, whatever the code.
pub(crate) fn refuses(error: &sqlx::Error) -> bool {
    let is_answer = matches!(error, sqlx::Error::Database(_)) && !is_fatal(error);
    is_answer && Verdict::of_statement(error).repeat != Repeat::IfHarmless
}
