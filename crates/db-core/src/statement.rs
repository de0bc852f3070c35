//! The state of a checked-out connection.
//!
//! The driver does not say whether an answer is still due, and a future dropped at an await point leaves it due. So each statement sets
//! a flag before its first byte is sent, and clears the flag after its last byte was read.

use sqlx::error::DatabaseError;

use crate::class::{Class, Link, Verdict};
use crate::deadline::Deadline;
use crate::error_type::ErrorType;
use crate::hooks::PendingHooks;
use crate::lent::LentProblem;
use crate::stats::CloseReason;
use crate::status_query::TxStatus;

/// The state of a connection between two statements.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "the flags are independent of each other")]
pub(crate) struct State {
    /// The statement whose answer was not read completely.
    in_flight: Option<InFlight>,
    link: Link,
    /// Why a working connection must not be used again.
    useless: Option<CloseReason>,
    /// A statement may have changed the session, as its text shows or because sqlx's own connection was lent.
    pub(crate) session_changed: bool,
    /// The transaction may have failed unnoticed, because statements bypassed this crate.
    pub(crate) unseen: bool,
    /// sqlx's own connection was lent to code that may change the session.
    pub(crate) was_lent: bool,
    /// A statement may have begun a transaction with raw SQL.
    pub(crate) may_have_begun: bool,
    pub(crate) transaction: Transaction,
    /// The deadline of the transaction, or of the caller.
    pub(crate) ends: Option<Deadline>,
    /// The program chose to be read-only.
    pub(crate) reads_only: bool,
    /// What was wrong with the transaction's first failed statement, because of which the server refuses all later ones.
    pub(crate) failure: Option<(Verdict, ErrorType)>,
    /// The hooks to run when the outcome of the statement in flight is known, or can no longer be learnt.
    pub(crate) pending_hooks: PendingHooks,
}

/// What is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InFlight {
    /// A statement of the caller.
    Statement,
    /// `BEGIN`, `COMMIT` and the like, and pings: short, so they are waited for and not cancelled.
    Control,
    /// Unknown statements: sqlx's own connection was lent. The transaction status is queried before anything else is sent.
    Lent,
    /// A `COPY`, whose answers the driver does not count. If it does not end properly, nothing more is sent.
    Copy,
    /// Answers that belong to other statements. Nothing more is sent.
    OutOfStep,
}

/// The state of this crate's transaction on a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transaction {
    #[default]
    None,
    /// A transaction is or may be open.
    Open,
    /// A statement in the transaction failed, so the server will only roll back.
    Aborted,
}

impl State {
    /// The state of a new checkout, whose caller has this deadline.
    pub(crate) fn until(ends: Option<Deadline>) -> Self {
        Self { ends, ..Self::default() }
    }

    /// Whether the next caller can use the connection without a repair.
    pub(crate) fn is_clean(&self) -> bool {
        self.in_flight.is_none()
            && self.link == Link::Kept
            && !self.session_changed
            && self.transaction == Transaction::None
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.link == Link::Lost
    }

    pub(crate) fn mark_lost(&mut self) {
        self.link = Link::Lost;
    }

    /// Whether the connection must not be used again.
    pub(crate) fn is_useless(&self) -> bool {
        self.link >= Link::Closed
    }

    /// Marks a working connection as one that must not be used again.
    pub(crate) fn mark_useless(&mut self, why: CloseReason) {
        self.link = self.link.max(Link::Closed);
        self.useless.get_or_insert(why);
    }

    /// What is counted when the connection is closed instead of being used again.
    pub(crate) fn why_useless(&self) -> CloseReason {
        self.useless.unwrap_or(CloseReason::Repair)
    }

    /// Whether the role must be queried before the next use.
    pub(crate) fn asks_role(&self) -> bool {
        self.link == Link::AskRole
    }

    pub(crate) fn in_flight(&self) -> Option<InFlight> {
        self.in_flight
    }

    /// Records that an abandoned statement has ended, and whether it failed.
    pub(crate) fn finish_abandoned(&mut self, failed: bool) {
        self.in_flight = None;
        if failed && self.transaction == Transaction::Open {
            self.transaction = Transaction::Aborted;
        }
    }

    /// Records a loan of sqlx's own connection. The borrower may recover a failed transaction.
    pub(crate) fn lend(&mut self) {
        self.unseen = true;
        self.in_flight = Some(InFlight::Lent);
        if self.transaction == Transaction::Aborted {
            self.transaction = Transaction::Open;
        }
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.in_flight == Some(InFlight::Lent)
    }

    /// Records the transaction status after a loan. Returns what prevents the next statement, if anything does; the connection then still
    /// counts as lent.
    pub(crate) fn set_status(&mut self, status: TxStatus) -> Result<(), LentProblem> {
        self.in_flight = Some(InFlight::Lent);
        self.transaction = match (self.transaction, status) {
            (Transaction::None, TxStatus::Open | TxStatus::Aborted) if !self.may_have_begun => {
                return Err(LentProblem::StillOpen);
            }
            (Transaction::Open | Transaction::Aborted, TxStatus::Idle) => return Err(LentProblem::Ended),
            (Transaction::None, _) => Transaction::None,
            (_, TxStatus::Aborted) => Transaction::Aborted,
            (_, TxStatus::Open) => Transaction::Open,
        };
        self.unseen = false;
        self.in_flight = None;
        Ok(())
    }

    /// Records that the session is out of step: nothing more is sent, and it is not used again.
    pub(crate) fn mark_out_of_step(&mut self) {
        self.in_flight = Some(InFlight::OutOfStep);
        self.mark_useless(CloseReason::Repair);
    }

    pub(crate) fn begin(&mut self, flight: InFlight) {
        self.in_flight = Some(flight);
    }

    pub(crate) fn end(&mut self, error: Option<&sqlx::Error>) {
        let Some(error) = error else {
            self.in_flight = None;
            return;
        };
        let verdict = Verdict::of_statement(error);
        let is_by_choice = self.reads_only && verdict.link == Link::AskRole;
        if !is_by_choice {
            self.link = self.link.max(verdict.link);
        }
        if verdict.link == Link::Closed && matches!(verdict.class, Class::Lost | Class::TimedOut) {
            // The server has ended the session.
            self.useless.get_or_insert(CloseReason::Lost);
        }
        let is_answer = matches!(error, sqlx::Error::Database(_));
        if !is_answer && verdict.link < Link::Lost {
            // The statement was not sent, or its answer was read before the error.
            self.in_flight = None;
            return;
        }
        if self.failure.is_none() || self.transaction != Transaction::Aborted && !is_aborted(error) {
            self.failure = Some((verdict, ErrorType::of(error)));
        }
        if is_answer {
            // The statement has ended. It has failed the transaction around it.
            self.in_flight = None;
            if self.transaction == Transaction::Open {
                self.transaction = Transaction::Aborted;
            }
        }
    }
}

/// "Current transaction is aborted, commands ignored until end of transaction block."
const ABORTED: &str = "25P02";

/// Whether the server refused a statement because an earlier one had failed.
pub(crate) fn is_aborted(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(ABORTED)
}
