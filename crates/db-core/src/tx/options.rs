//! What kind of transaction to begin.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::keepalive::milliseconds;

/// How far a transaction is kept apart from others (PostgreSQL's manual, chapter 13.2 "Transaction Isolation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it began.
    ReadCommitted,
    /// The whole transaction sees what was committed before its first statement.
    RepeatableRead,
    /// As if transactions ran one after the other. May fail with 40001: use [`Handle::tx_retry`](crate::Handle::tx_retry).
    Serializable,
}

/// What kind of transaction to begin. The default is the server's, with the pool's
/// [`tx_timeout`](crate::PoolOptions::tx_timeout).
///
/// ```
/// use std::time::Duration;
/// use db_core::{Isolation, TxOptions};
///
/// let report = TxOptions::default()
///     .isolation(Isolation::Serializable)
///     .read_only()
///     .deferrable()
///     .statement_timeout(Duration::from_secs(20))
///     .tenant("acme");
/// ```
#[derive(Clone, Default)]
pub struct TxOptions {
    isolation: Option<Isolation>,
    pub(crate) read_only: bool,
    deferrable: bool,
    settings: Vec<(String, String)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) resolves_commit: bool,
}

impl TxOptions {
    /// Its isolation level.
    #[must_use]
    pub fn isolation(self, isolation: Isolation) -> Self {
        Self { isolation: Some(isolation), ..self }
    }

    /// Refuse to write.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Wait for a moment in which a serializable read-only transaction cannot fail. Means nothing to others.
    #[must_use]
    pub fn deferrable(self) -> Self {
        Self { deferrable: true, ..self }
    }

    /// How long the transaction may be open, in place of the pool's [`tx_timeout`](crate::PoolOptions::tx_timeout). The
    /// server's own limit for a transaction that idles stays that of the pool.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// The server ends a statement in it after this long (57014). Counted in milliseconds, 1 at least.
    #[must_use]
    pub fn statement_timeout(self, timeout: Duration) -> Self {
        self.set("statement_timeout", &milliseconds(timeout))
    }

    /// The server ends a wait for a lock in it after this long (55P03). Counted in milliseconds, 1 at least.
    #[must_use]
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        self.set("lock_timeout", &milliseconds(timeout))
    }

    /// The role it acts as. The pool's role must be a member of it.
    #[must_use]
    pub fn role(self, role: &str) -> Self {
        self.set("role", role)
    }

    /// The tenant it acts for: the setting `app.tenant`, for row-level security policies that compare with
    /// `current_setting('app.tenant')`.
    #[must_use]
    pub fn tenant(self, tenant: &str) -> Self {
        self.set("app.tenant", tenant)
    }

    /// Any other setting, for this transaction alone, as by `SET LOCAL`. A later one of the same name wins.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// When the connection is lost during the commit, find out whether the transaction was committed, instead of failing
    /// with [`Error::CommitUnknown`](crate::Error::CommitUnknown). It costs a round trip before each commit, for the
    /// transaction's number, and needs another connection once it happens.
    #[must_use]
    pub fn resolve_commit(self) -> Self {
        Self { resolves_commit: true, ..self }
    }

    /// The text that begins it, with settings that its own come after: one message, one round trip.
    pub(crate) fn begin(&self, before: &[(&str, String)]) -> String {
        let mut sql = "BEGIN".to_owned();
        if let Some(isolation) = self.isolation {
            sql.push_str(match isolation {
                Isolation::ReadCommitted => " ISOLATION LEVEL READ COMMITTED",
                Isolation::RepeatableRead => " ISOLATION LEVEL REPEATABLE READ",
                Isolation::Serializable => " ISOLATION LEVEL SERIALIZABLE",
            });
        }
        if self.read_only {
            sql.push_str(" READ ONLY");
        }
        if self.deferrable {
            sql.push_str(" DEFERRABLE");
        }
        let before = before.iter().map(|(name, value)| (*name, value));
        for (name, value) in before.chain(self.settings.iter().map(|(name, value)| (name.as_str(), value))) {
            write!(sql, "; SELECT set_config({}, {}, true)", literal(name), literal(value))
                .expect("writing to a string");
        }
        sql
    }

    /// Whether [`TxOptions::begin`] is the plain word.
    pub(crate) fn is_plain(&self) -> bool {
        self.isolation.is_none() && !self.read_only && !self.deferrable && self.settings.is_empty()
    }
}

impl fmt::Debug for TxOptions {
    /// Settings by their names only: a value may be a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<_> = self.settings.iter().map(|(name, _)| name).collect();
        f.debug_struct("TxOptions")
            .field("isolation", &self.isolation)
            .field("read_only", &self.read_only)
            .field("deferrable", &self.deferrable)
            .field("settings", &settings)
            .field("timeout", &self.timeout)
            .field("resolves_commit", &self.resolves_commit)
            .finish()
    }
}

/// Quotes a text in a way that means the same whatever `standard_conforming_strings` says (PostgreSQL's manual, chapter
/// 4.1.2.2 "String Constants With C-Style Escapes"). A NUL, which no text can hold, makes the server refuse it.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_one_text() {
        let options =
            TxOptions::default().isolation(Isolation::RepeatableRead).read_only().deferrable().tenant("a");

        assert_eq!(
            options.begin(&[]),
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY DEFERRABLE; SELECT set_config(E'app.tenant', E'a', true)"
        );
        assert_eq!(TxOptions::default().begin(&[]), "BEGIN");
    }

    #[test]
    fn a_value_cannot_end_its_quotes() {
        assert_eq!(literal(r"a'; drop table t; --\"), r"E'a''; drop table t; --\\'");
    }
}
