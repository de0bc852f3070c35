//! Asking a session where it stands, by a question that only its own answer can answer.
//!
//! The driver counts the answers that are still to come. It does not count those of a `COPY`, so after one that did not end as
//! it should, each statement is given the answer of the one before. A question therefore carries a number, and only an answer
//! that repeats the number is believed. The driver's count is private: a session that is one answer behind can only be closed.

use sqlx::postgres::{PgConnection, PgDatabaseError, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row, SqlSafeStr, SqlStr};

use crate::Class;
use crate::class::is_fatal;

/// A question is asked again after an error, which may be that of a statement that was cut off, but no more often than this.
const TRIES: usize = 4;

/// "Current transaction is aborted, commands ignored until end of transaction block."
const ABORTED: &str = "25P02";

/// "Savepoint … does not exist."
const NO_SUCH_SAVEPOINT: &str = "3B001";

/// Where a session stands between two statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No transaction is open.
    Idle,
    Open,
    /// A statement failed in the open transaction.
    Aborted,
}

/// The numbers of a connection's questions. They begin anywhere, so that no statement of a user's has the same answer.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new() -> Self {
        Self(fastrand::u64(..))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

/// Finds out where the session stands: one round trip, two when its transaction is aborted. `None` when it is out of step: it
/// gives answers that belong to other questions.
///
/// # Errors
///
/// When the link is lost.
pub(crate) async fn ask(
    raw: &mut PgConnection,
    numbers: &mut Numbers,
) -> Result<Option<Standing>, sqlx::Error> {
    let mut form = Form::Clocks;
    for _ in 0..TRIES {
        let question = Question { number: numbers.next(), form };
        // By the simple protocol: preparing a statement is one of its own.
        let answer = raw.fetch_optional(sqlx::raw_sql(question.text())).await;
        match question.read(&Heard::of(answer)?) {
            Reading::Stands(standing) => return Ok(Some(standing)),
            Reading::Ask(next) => form = next,
            Reading::OutOfStep => break,
        }
    }
    Ok(None)
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Whether the clocks of the transaction and of the statement differ: they do only in a transaction that began with an
    /// earlier statement (PostgreSQL's manual, chapter 9.9.5 "Current Date/Time").
    Clocks,
    /// For a savepoint that does not exist. In an aborted transaction nothing can be asked but this, which changes nothing there,
    /// and whose error repeats the name.
    Savepoint,
}

#[derive(Debug, Clone, Copy)]
struct Question {
    number: u64,
    form: Form,
}

/// What came as the answer to a question.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// What the first row says, if it is of the question's kind.
    Row(Option<(String, bool)>),
    NoRow,
    Refused {
        code: String,
        message: String,
    },
    /// A message that the driver did not expect, such as a notification.
    Noise,
    /// The server was in the middle of a COPY that nobody goes on with, and has ended the session for it.
    Interrupted,
}

#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Stands(Standing),
    /// An error is no answer. It may belong to a statement that was cut off.
    Ask(Form),
    /// It is the answer to something else.
    OutOfStep,
}

impl Question {
    fn text(self) -> SqlStr {
        let number = self.number;
        let text = match self.form {
            Form::Clocks => format!("select '{number:x}', now() <> statement_timestamp()"),
            Form::Savepoint => format!("ROLLBACK TO SAVEPOINT {}", savepoint(number)),
        };
        AssertSqlSafe(text).into_sql_str()
    }

    fn read(self, heard: &Heard) -> Reading {
        match (self.form, heard) {
            (Form::Clocks, Heard::Row(Some((number, open)))) if *number == format!("{:x}", self.number) => {
                Reading::Stands(if *open { Standing::Open } else { Standing::Idle })
            }
            (Form::Savepoint, Heard::Refused { code, message })
                if code == NO_SUCH_SAVEPOINT && message.contains(&savepoint(self.number)) =>
            {
                Reading::Stands(Standing::Aborted)
            }
            (Form::Clocks, Heard::Refused { code, .. }) if code == ABORTED => Reading::Ask(Form::Savepoint),
            (_, Heard::Refused { .. } | Heard::Noise) => Reading::Ask(Form::Clocks),
            (_, Heard::Row(_) | Heard::NoRow | Heard::Interrupted) => Reading::OutOfStep,
        }
    }
}

impl Heard {
    fn of(answer: Result<Option<PgRow>, sqlx::Error>) -> Result<Self, sqlx::Error> {
        match answer {
            Ok(Some(row)) => Ok(Self::Row(row.try_get(0).ok().zip(row.try_get(1).ok()))),
            Ok(None) => Ok(Self::NoRow),
            Err(sqlx::Error::Protocol(_)) => Ok(Self::Noise),
            Err(error) if is_lost_track(&error) => Ok(Self::Interrupted),
            Err(error) if is_fatal(&error) || Class::of(&error) == Class::Lost => Err(error),
            Err(error) => match error.as_database_error() {
                Some(said) => Ok(Self::Refused {
                    code: said.code().unwrap_or_default().into_owned(),
                    message: said.message().to_owned(),
                }),
                None => Err(error),
            },
        }
    }
}

/// "Terminating connection because protocol synchronization was lost", from the server itself: a pooler has the same code for all
/// that it says, and names no routine.
fn is_lost_track(error: &sqlx::Error) -> bool {
    let Some(said) = error.as_database_error() else { return false };
    let routine = said.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
    is_fatal(error) && said.code().as_deref() == Some("08P01") && routine.is_some()
}

fn savepoint(number: u64) -> String {
    format!("db_core_asks_{number:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u64 = 0x4711;

    fn row(number: &str, open: bool) -> Heard {
        Heard::Row(Some((number.to_owned(), open)))
    }

    fn refused(code: &str, message: &str) -> Heard {
        Heard::Refused { code: code.to_owned(), message: message.to_owned() }
    }

    #[test]
    fn only_an_answer_with_the_questions_number_is_believed() {
        use Reading::{Ask, OutOfStep, Stands};
        for (form, heard, reading) in [
            (Form::Clocks, row("4711", false), Stands(Standing::Idle)),
            (Form::Clocks, row("4711", true), Stands(Standing::Open)),
            (Form::Clocks, row("4710", false), OutOfStep),
            (Form::Clocks, Heard::Row(None), OutOfStep),
            (Form::Clocks, Heard::NoRow, OutOfStep),
            (Form::Clocks, Heard::Noise, Ask(Form::Clocks)),
            (Form::Clocks, Heard::Interrupted, OutOfStep),
            (Form::Clocks, refused("57014", "canceling statement due to user request"), Ask(Form::Clocks)),
            (Form::Clocks, refused("22012", "division by zero"), Ask(Form::Clocks)),
            (Form::Clocks, refused("25P02", "current transaction is aborted"), Ask(Form::Savepoint)),
            (
                Form::Savepoint,
                refused("3B001", "savepoint \"db_core_asks_4711\" does not exist"),
                Stands(Standing::Aborted),
            ),
            (
                Form::Savepoint,
                refused("3B001", "savepoint \"db_core_asks_4710\" does not exist"),
                Ask(Form::Clocks),
            ),
            (Form::Savepoint, refused("25P02", "current transaction is aborted"), Ask(Form::Clocks)),
            (Form::Savepoint, refused("25P01", "there is no transaction"), Ask(Form::Clocks)),
            (Form::Savepoint, row("4711", false), OutOfStep),
            (Form::Savepoint, Heard::NoRow, OutOfStep),
        ] {
            assert_eq!(Question { number: OURS, form }.read(&heard), reading, "{form:?} {heard:?}");
        }
    }

    #[test]
    fn no_two_questions_of_a_connection_have_the_same_text() {
        let mut numbers = Numbers::new();
        let mut texts: Vec<_> = (0..100)
            .map(|_| Question { number: numbers.next(), form: Form::Clocks }.text().as_str().to_owned())
            .collect();

        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 100);
    }
}
