//! Queries a session's transaction status, and verifies that the answer belongs to the query.
//!
//! The driver counts the answers that are due, except those of a `COPY`, so after an unfinished `COPY` each statement gets the answer
//! of the previous one. A status query therefore carries a number, and only an answer with that number is accepted. The driver's count
//! is private: a session that is out of step can only be closed.

use sqlx::postgres::{PgConnection, PgDatabaseError, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row, SqlSafeStr, SqlStr};

use crate::Class;
use crate::class::is_fatal;

/// How often a query is sent. It is repeated after an error, which may belong to an abandoned statement.
const TRIES: usize = 4;

/// "Current transaction is aborted, commands ignored until end of transaction block."
const ABORTED: &str = "25P02";

/// "Savepoint … does not exist."
const NO_SUCH_SAVEPOINT: &str = "3B001";

/// A session's transaction status between two statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TxStatus {
    /// No transaction is open.
    Idle,
    Open,
    /// A statement failed in the open transaction.
    Aborted,
}

/// The numbers of a connection's status queries. They start at random, so that no other statement has the same answer.
#[derive(Debug)]
pub(crate) struct QueryNumbers(u64);

impl QueryNumbers {
    pub(crate) fn new() -> Self {
        Self(fastrand::u64(..))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

/// Queries the status: one round trip, or two in an aborted transaction. `None` if the session is out of step, so that its answers
/// belong to other statements.
///
/// # Errors
///
/// The link is lost.
pub(crate) async fn query_status(
    raw: &mut PgConnection,
    numbers: &mut QueryNumbers,
) -> Result<Option<TxStatus>, sqlx::Error> {
    let mut form = Form::Clocks;
    for _ in 0..TRIES {
        let query = StatusQuery { number: numbers.next(), form };
        // By the simple protocol, since preparing would be a statement of its own.
        let answer = raw.fetch_optional(sqlx::raw_sql(query.text())).await;
        match query.read(&Reply::of(answer)?) {
            Reading::Status(status) => return Ok(Some(status)),
            Reading::Retry(next) => form = next,
            Reading::OutOfStep => break,
        }
    }
    Ok(None)
}

/// The form of a status query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Compares the clocks of the transaction and of the statement. They differ only in a transaction that began with an
    /// earlier statement (PostgreSQL's manual, chapter 9.9.5 "Current Date/Time").
    Clocks,
    /// Rolls back to a savepoint that does not exist. An aborted transaction accepts no other query. This one has no effect, and its
    /// error contains the name.
    Savepoint,
}

#[derive(Debug, Clone, Copy)]
struct StatusQuery {
    number: u64,
    form: Form,
}

/// What arrived as the answer.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    /// The first row, if it has the types of the query's.
    Row(Option<(String, bool)>),
    NoRow,
    Refused {
        code: String,
        message: String,
    },
    /// A message that the driver did not expect, such as a notification.
    Noise,
    /// The server waited for the rest of an unfinished COPY, and ended the session.
    Interrupted,
}

#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Status(TxStatus),
    /// An error is no answer, since it may belong to an abandoned statement.
    Retry(Form),
    /// The answer belongs to another statement.
    OutOfStep,
}

impl StatusQuery {
    fn text(self) -> SqlStr {
        let number = self.number;
        let text = match self.form {
            Form::Clocks => format!("select '{number:x}', now() <> statement_timestamp()"),
            Form::Savepoint => format!("ROLLBACK TO SAVEPOINT {}", savepoint(number)),
        };
        AssertSqlSafe(text).into_sql_str()
    }

    fn read(self, reply: &Reply) -> Reading {
        match (self.form, reply) {
            (Form::Clocks, Reply::Row(Some((number, open)))) if *number == format!("{:x}", self.number) => {
                Reading::Status(if *open { TxStatus::Open } else { TxStatus::Idle })
            }
            (Form::Savepoint, Reply::Refused { code, message })
                if code == NO_SUCH_SAVEPOINT && message.contains(&savepoint(self.number)) =>
            {
                Reading::Status(TxStatus::Aborted)
            }
            (Form::Clocks, Reply::Refused { code, .. }) if code == ABORTED => Reading::Retry(Form::Savepoint),
            (_, Reply::Refused { .. } | Reply::Noise) => Reading::Retry(Form::Clocks),
            (_, Reply::Row(_) | Reply::NoRow | Reply::Interrupted) => Reading::OutOfStep,
        }
    }
}

impl Reply {
    fn of(answer: Result<Option<PgRow>, sqlx::Error>) -> Result<Self, sqlx::Error> {
        match answer {
            Ok(Some(row)) => Ok(Self::Row(row.try_get(0).ok().zip(row.try_get(1).ok()))),
            Ok(None) => Ok(Self::NoRow),
            Err(sqlx::Error::Protocol(_)) => Ok(Self::Noise),
            Err(error) if is_lost_track(&error) => Ok(Self::Interrupted),
            Err(error) if is_fatal(&error) || Class::of(&error) == Class::Lost => Err(error),
            Err(error) => match error.as_database_error() {
                Some(refusal) => Ok(Self::Refused {
                    code: refusal.code().unwrap_or_default().into_owned(),
                    message: refusal.message().to_owned(),
                }),
                None => Err(error),
            },
        }
    }
}

/// Whether the error is the server's own "terminating connection because protocol synchronization was lost". A pooler uses the same
/// code for all its errors, but gives no routine.
fn is_lost_track(error: &sqlx::Error) -> bool {
    let Some(database) = error.as_database_error() else { return false };
    let routine = database.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
    is_fatal(error) && database.code().as_deref() == Some("08P01") && routine.is_some()
}

fn savepoint(number: u64) -> String {
    format!("db_core_status_{number:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u64 = 0x4711;

    fn row(number: &str, open: bool) -> Reply {
        Reply::Row(Some((number.to_owned(), open)))
    }

    fn refused(code: &str, message: &str) -> Reply {
        Reply::Refused { code: code.to_owned(), message: message.to_owned() }
    }

    #[test]
    fn only_an_answer_with_the_querys_number_is_accepted() {
        use Reading::{OutOfStep, Retry, Status};
        for (form, reply, reading) in [
            (Form::Clocks, row("4711", false), Status(TxStatus::Idle)),
            (Form::Clocks, row("4711", true), Status(TxStatus::Open)),
            (Form::Clocks, row("4710", false), OutOfStep),
            (Form::Clocks, Reply::Row(None), OutOfStep),
            (Form::Clocks, Reply::NoRow, OutOfStep),
            (Form::Clocks, Reply::Noise, Retry(Form::Clocks)),
            (Form::Clocks, Reply::Interrupted, OutOfStep),
            (Form::Clocks, refused("57014", "canceling statement due to user request"), Retry(Form::Clocks)),
            (Form::Clocks, refused("22012", "division by zero"), Retry(Form::Clocks)),
            (Form::Clocks, refused("25P02", "current transaction is aborted"), Retry(Form::Savepoint)),
            (
                Form::Savepoint,
                refused("3B001", "savepoint \"db_core_status_4711\" does not exist"),
                Status(TxStatus::Aborted),
            ),
            (
                Form::Savepoint,
                refused("3B001", "savepoint \"db_core_status_4710\" does not exist"),
                Retry(Form::Clocks),
            ),
            (Form::Savepoint, refused("25P02", "current transaction is aborted"), Retry(Form::Clocks)),
            (Form::Savepoint, refused("25P01", "there is no transaction"), Retry(Form::Clocks)),
            (Form::Savepoint, row("4711", false), OutOfStep),
            (Form::Savepoint, Reply::NoRow, OutOfStep),
        ] {
            assert_eq!(StatusQuery { number: OURS, form }.read(&reply), reading, "{form:?} {reply:?}");
        }
    }

    #[test]
    fn no_two_status_queries_of_a_connection_have_the_same_text() {
        let mut numbers = QueryNumbers::new();
        let mut texts: Vec<_> = (0..100)
            .map(|_| StatusQuery { number: numbers.next(), form: Form::Clocks }.text().as_str().to_owned())
            .collect();

        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 100);
    }
}
