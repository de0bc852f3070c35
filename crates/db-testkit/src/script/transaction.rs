//! The transaction of a session, as the protocol has it. A value: it knows no socket.

use super::reply::ServerError;
use super::words::name;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Status {
    #[default]
    Idle,
    Open,
    Failed,
}

/// A statement that is about the transaction itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Begin,
    Commit,
    Rollback,
    Savepoint(String),
    Release(String),
    RollbackTo(String),
}

impl Control {
    pub(super) fn of(text: &str) -> Option<Control> {
        let lower = text.to_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        // The name as it was written.
        let named = |skipped: usize| {
            let mut rest = text.trim_start();
            for _ in 0..skipped {
                rest = rest.split_once(char::is_whitespace)?.1.trim_start();
            }
            name(rest)
        };
        Some(match words[..] {
            ["begin", ..] | ["start", "transaction", ..] => Control::Begin,
            ["commit" | "end", ..] => Control::Commit,
            ["rollback", "to", "savepoint", ..] => Control::RollbackTo(named(3)?),
            ["rollback", "to", ..] => Control::RollbackTo(named(2)?),
            ["rollback" | "abort", ..] => Control::Rollback,
            ["savepoint", ..] => Control::Savepoint(named(1)?),
            ["release", "savepoint", ..] => Control::Release(named(2)?),
            ["release", ..] => Control::Release(named(1)?),
            _ => return None,
        })
    }
}

/// What happens when the transaction commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AtCommit {
    Notify { channel: String, payload: String },
    Listen(String),
    Unlisten(String),
    UnlistenAll,
}

/// What a control statement did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) tag: &'static str,
    pub(super) warning: Option<ServerError>,
    /// Whether a transaction ended, and was committed.
    pub(super) committed: Option<bool>,
    pub(super) at_commit: Vec<AtCommit>,
}

#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) status: Status,
    /// With how much there was to do at the commit.
    savepoints: Vec<(String, usize)>,
    at_commit: Vec<AtCommit>,
}

impl Transaction {
    /// For the commit; outside of a transaction, it is to be done at once.
    #[must_use]
    pub(super) fn at_commit(&mut self, what: AtCommit) -> Option<AtCommit> {
        if self.status == Status::Idle {
            return Some(what);
        }
        self.at_commit.push(what);
        None
    }

    /// A statement failed.
    pub(super) fn fail(&mut self) {
        if self.status == Status::Open {
            self.status = Status::Failed;
        }
    }

    /// Ends without a commit.
    pub(super) fn roll_back(&mut self) {
        *self = Transaction::default();
    }

    pub(super) fn apply(&mut self, control: &Control) -> Result<Done, ServerError> {
        let mut done = Done { tag: "", warning: None, committed: None, at_commit: Vec::new() };
        done.tag = match control {
            Control::Begin => {
                if self.status == Status::Idle {
                    self.status = Status::Open;
                } else {
                    done.warning = Some(warning("25001", "there is already a transaction in progress"));
                }
                "BEGIN"
            }
            Control::Commit if self.status == Status::Open => {
                done.committed = Some(true);
                done.at_commit = std::mem::take(&mut self.at_commit);
                self.roll_back();
                "COMMIT"
            }
            Control::Commit | Control::Rollback if self.status != Status::Idle => {
                done.committed = Some(false);
                self.roll_back();
                "ROLLBACK"
            }
            Control::Commit | Control::Rollback => {
                done.warning = Some(warning("25P01", "there is no transaction in progress"));
                if *control == Control::Commit { "COMMIT" } else { "ROLLBACK" }
            }
            Control::Savepoint(_) | Control::Release(_) | Control::RollbackTo(_)
                if self.status == Status::Idle =>
            {
                return Err(ServerError::new("25P01", "a savepoint can only be used in transaction blocks"));
            }
            Control::Savepoint(name) => {
                self.savepoints.push((name.clone(), self.at_commit.len()));
                "SAVEPOINT"
            }
            Control::Release(name) => {
                let at = self.find(name)?;
                self.savepoints.truncate(at);
                "RELEASE"
            }
            Control::RollbackTo(name) => {
                let at = self.find(name)?;
                self.at_commit.truncate(self.savepoints[at].1);
                self.savepoints.truncate(at + 1);
                self.status = Status::Open;
                "ROLLBACK"
            }
        };
        Ok(done)
    }

    fn find(&self, name: &str) -> Result<usize, ServerError> {
        self.savepoints
            .iter()
            .rposition(|(there, _)| there == name)
            .ok_or_else(|| ServerError::new("3B001", format!("savepoint \"{name}\" does not exist")))
    }
}

fn warning(sqlstate: &str, message: &str) -> ServerError {
    ServerError::new(sqlstate, message).severity("WARNING")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify(payload: &str) -> AtCommit {
        AtCommit::Notify { channel: "c".to_owned(), payload: payload.to_owned() }
    }

    fn run(transaction: &mut Transaction, text: &str) -> Done {
        transaction.apply(&Control::of(text).unwrap()).unwrap()
    }

    #[test]
    fn control_statements_are_told_from_others() {
        for (text, control) in [
            ("BEGIN ISOLATION LEVEL SERIALIZABLE", Control::Begin),
            ("start transaction", Control::Begin),
            ("END", Control::Commit),
            ("abort", Control::Rollback),
            ("SAVEPOINT A", Control::Savepoint("a".into())),
            ("RELEASE \"A b\"", Control::Release("A b".into())),
            ("ROLLBACK TO SAVEPOINT s1", Control::RollbackTo("s1".into())),
            ("rollback to s1", Control::RollbackTo("s1".into())),
        ] {
            assert_eq!(Control::of(text), Some(control), "{text}");
        }
        assert_eq!(Control::of("select 1"), None);
    }

    #[test]
    fn a_commit_of_a_failed_transaction_is_a_rollback() {
        let mut transaction = Transaction::default();
        run(&mut transaction, "begin");
        transaction.fail();

        let done = run(&mut transaction, "commit");

        assert_eq!((done.tag, done.committed), ("ROLLBACK", Some(false)));
        assert_eq!(transaction.status, Status::Idle);
    }

    #[test]
    fn work_that_a_savepoint_undoes_is_not_committed() {
        let mut transaction = Transaction::default();
        run(&mut transaction, "begin");
        assert_eq!(transaction.at_commit(notify("kept")), None);
        run(&mut transaction, "savepoint a");
        assert_eq!(transaction.at_commit(notify("undone")), None);
        transaction.fail();
        run(&mut transaction, "rollback to a");

        assert_eq!(run(&mut transaction, "commit").at_commit, [notify("kept")]);
        assert_eq!(transaction.at_commit(notify("now")), Some(notify("now")));
    }

    #[test]
    fn a_savepoint_that_is_not_there_is_an_error() {
        let mut transaction = Transaction::default();
        let savepoint = Control::of("rollback to a").unwrap();

        assert_eq!(transaction.apply(&savepoint).unwrap_err().sqlstate(), "25P01");
        run(&mut transaction, "begin");
        assert_eq!(transaction.apply(&savepoint).unwrap_err().sqlstate(), "3B001");
        run(&mut transaction, "savepoint a");
        run(&mut transaction, "savepoint b");
        run(&mut transaction, "release a");
        assert_eq!(transaction.apply(&Control::of("release b").unwrap()).unwrap_err().sqlstate(), "3B001");
    }

    #[test]
    fn an_end_or_a_beginning_too_many_is_a_warning() {
        let mut transaction = Transaction::default();

        assert!(run(&mut transaction, "commit").warning.is_some());
        assert!(run(&mut transaction, "begin").warning.is_none());
        assert!(run(&mut transaction, "begin").warning.is_some());
    }
}
