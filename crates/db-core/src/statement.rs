//! Knowing whether a statement was cut off.
//!
//! The driver does not say whether an answer is still on its way; a future dropped at an await point leaves it there.
//! So each statement raises a flag before its first byte is sent, and lowers it when its last one was read.

use sqlx::error::DatabaseError;

use crate::class::{Link, Verdict};
use crate::deadline::Ends;
use crate::doubt::Doubt;
use crate::lent::Found;
use crate::question::Standing;

/// What is known of a connection between two statements.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is known, or not, whatever the others are")]
pub(crate) struct State {
    /// A statement was begun and its end not seen.
    in_flight: Option<Flight>,
    link: Link,
    /// Something may have been left in the session that we did not see through: sqlx's own connection was lent, or a
    /// statement's text says so.
    pub(crate) session_changed: bool,
    /// Statements were sent past us, so nobody knows whether the transaction has failed meanwhile.
    pub(crate) unseen: bool,
    /// sqlx's own connection was lent to code that may do anything with it.
    pub(crate) was_lent: bool,
    /// A text that went through us may have begun a transaction.
    pub(crate) may_be_begun: bool,
    pub(crate) transaction: Transaction,
    /// No statement of the transaction may wait for longer than until then.
    pub(crate) ends: Option<Ends>,
    /// The program itself said that it only reads.
    pub(crate) reads_only: bool,
    /// What the first failed statement of the transaction met: the server refuses all that come after it for that one.
    pub(crate) failure: Option<Verdict>,
    /// What runs once it is known what has become of the statement that is in flight, or that nobody will know.
    pub(crate) doubt: Doubt,
}

/// What was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flight {
    /// A statement of the user's.
    Statement,
    /// `BEGIN`, `COMMIT` and the like, and signs of life: short, and better waited for than cancelled.
    Control,
    /// Nothing of ours: the connection was lent as sqlx's own, and nobody knows what is under way on it. It is asked where it
    /// stands before anything else is sent.
    Lent,
    /// A `COPY`, whose answers the driver does not count. Unless it comes to its end, nothing more is sent.
    Copy,
    /// Answers that belong to other questions. Nothing more is sent.
    OutOfStep,
}

/// Where a connection stands with transactions of ours.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transaction {
    #[default]
    None,
    /// One is open, or may be.
    Open,
    /// A statement failed inside it, so the server will only roll it back.
    Aborted,
}

impl State {
    /// Whether the next user of the connection would notice nothing of this one.
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

    /// Whether nobody else is to have the connection.
    pub(crate) fn is_useless(&self) -> bool {
        self.link >= Link::Closed
    }

    /// Notes that nobody else is to have the connection, though it works.
    pub(crate) fn mark_useless(&mut self) {
        self.link = self.link.max(Link::Closed);
    }

    /// Whether its server is to be asked whether it takes writes.
    pub(crate) fn asks_role(&self) -> bool {
        self.link == Link::AskRole
    }

    pub(crate) fn in_flight(&self) -> Option<Flight> {
        self.in_flight
    }

    /// Notes that what was cut off has come to its end, and whether it failed.
    pub(crate) fn at_rest(&mut self, failed: bool) {
        self.in_flight = None;
        if failed && self.transaction == Transaction::Open {
            self.transaction = Transaction::Aborted;
        }
    }

    /// Notes that sqlx's own connection is lent. What failed before may be mended by what is done with it.
    pub(crate) fn lend(&mut self) {
        self.unseen = true;
        self.in_flight = Some(Flight::Lent);
        if self.transaction == Transaction::Aborted {
            self.transaction = Transaction::Open;
        }
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.in_flight == Some(Flight::Lent)
    }

    /// Notes where the session stands that was lent, and says what is in the way of the next statement, if anything is: then it
    /// counts as lent still.
    pub(crate) fn stands(&mut self, standing: Standing) -> Result<(), Found> {
        self.in_flight = Some(Flight::Lent);
        self.transaction = match (self.transaction, standing) {
            (Transaction::None, Standing::Open | Standing::Aborted) if !self.may_be_begun => {
                return Err(Found::Open);
            }
            (Transaction::Open | Transaction::Aborted, Standing::Idle) => return Err(Found::Ended),
            (Transaction::None, _) => Transaction::None,
            (_, Standing::Aborted) => Transaction::Aborted,
            (_, Standing::Open) => Transaction::Open,
        };
        self.unseen = false;
        self.in_flight = None;
        Ok(())
    }

    /// Notes that its answers belong to other questions: nothing more is sent, and nobody else is to have it.
    pub(crate) fn mark_out_of_step(&mut self) {
        self.in_flight = Some(Flight::OutOfStep);
        self.mark_useless();
    }

    pub(crate) fn begin(&mut self, flight: Flight) {
        self.in_flight = Some(flight);
    }

    pub(crate) fn end(&mut self, error: Option<&sqlx::Error>) {
        let Some(error) = error else {
            self.in_flight = None;
            return;
        };
        let verdict = Verdict::of_statement(error);
        let says_nothing_new = self.reads_only && verdict.link == Link::AskRole;
        if !says_nothing_new {
            self.link = self.link.max(verdict.link);
        }
        let is_answer = matches!(error, sqlx::Error::Database(_));
        if !is_answer && verdict.link < Link::Lost {
            // It was not sent, or its answer was read before.
            self.in_flight = None;
            return;
        }
        if self.failure.is_none() || self.transaction != Transaction::Aborted && !is_aborted(error) {
            self.failure = Some(verdict);
        }
        if is_answer {
            // The statement is over; a transaction around it is lost.
            self.in_flight = None;
            if self.transaction == Transaction::Open {
                self.transaction = Transaction::Aborted;
            }
        }
    }
}

/// "Current transaction is aborted, commands ignored until end of transaction block."
const ABORTED: &str = "25P02";

/// Whether the server refuses a statement for what one before it met.
pub(crate) fn is_aborted(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(ABORTED)
}
