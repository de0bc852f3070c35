//! The options of a transaction.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::keepalive::milliseconds;

/// The isolation level of a transaction (PostgreSQL's manual, chapter 13.2 "Transaction Isolation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it began.
    ReadCommitted,
    /// The whole transaction sees what was committed before its first statement.
    RepeatableRead,
    /// Transactions behave as if they ran one after the other. May fail with 40001: use [`Handle::tx_retry`](crate::Handle::tx_retry).
    Serializable,
}

/// The options of a transaction. The defaults are the server's, with the pool's
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
#[expect(clippy::struct_excessive_bools, reason = "each is asked for, or not, whatever the others are")]
pub struct TxOptions {
    isolation: Option<Isolation>,
    pub(crate) read_only: bool,
    read_write: bool,
    deferrable: bool,
    settings: Vec<(String, String)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) resolves_commit: bool,
}

impl TxOptions {
    /// Sets the isolation level.
    #[must_use]
    pub fn isolation(self, isolation: Isolation) -> Self {
        Self { isolation: Some(isolation), ..self }
    }

    /// Makes the transaction read-only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, read_write: false, ..self }
    }

    /// Allow writes, also where the role or the database begins transactions that only read (`default_transaction_read_only`). A
    /// standby refuses to begin such a transaction.
    #[must_use]
    pub fn read_write(self) -> Self {
        Self { read_only: false, read_write: true, ..self }
    }

    /// Waits for a moment in which a serializable read-only transaction cannot fail. Has no effect on other transactions.
    #[must_use]
    pub fn deferrable(self) -> Self {
        Self { deferrable: true, ..self }
    }

    /// Sets how long the transaction may be open, in place of the pool's [`tx_timeout`](crate::PoolOptions::tx_timeout). The
    /// server's own limit for an idle transaction stays that of the pool.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Makes the server cancel a statement after this time (57014), rounded down to milliseconds, at least 1 ms.
    #[must_use]
    pub fn statement_timeout(self, timeout: Duration) -> Self {
        self.set("statement_timeout", &milliseconds(timeout))
    }

    /// Makes the server end a wait for a lock after this time (55P03), rounded down to milliseconds, at least 1 ms.
    #[must_use]
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        self.set("lock_timeout", &milliseconds(timeout))
    }

    /// Sets the role that the transaction acts as. The pool's role must be a member of it.
    #[must_use]
    pub fn role(self, role: &str) -> Self {
        self.set("role", role)
    }

    /// Sets the tenant that the transaction acts for: the setting `app.tenant`, for row-level security policies that compare with
    /// `current_setting('app.tenant')`.
    #[must_use]
    pub fn tenant(self, tenant: &str) -> Self {
        self.set("app.tenant", tenant)
    }

    /// Sets any other setting for this transaction only, as `SET LOCAL` does. A later value of the same name wins.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// If the connection is lost during the commit, find out whether the transaction was committed, instead of failing
    /// with [`Error::CommitUnknown`](crate::Error::CommitUnknown). Costs a round trip before each commit to get the
    /// transaction's number, and another connection when the case occurs.
    #[must_use]
    pub fn resolve_commit(self) -> Self {
        Self { resolves_commit: true, ..self }
    }

    /// The BEGIN statement, followed by the settings in `before` and then this transaction's own, as one simple-protocol message.
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
        if self.read_write {
            sql.push_str(" READ WRITE");
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

    /// Whether [`TxOptions::begin`] is a bare `BEGIN`.
    pub(crate) fn is_plain(&self) -> bool {
        self.isolation.is_none()
            && !self.read_only
            && !self.read_write
            && !self.deferrable
            && self.settings.is_empty()
    }
}

impl fmt::Debug for TxOptions {
    /// Shows settings by name only, since a value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<_> = self.settings.iter().map(|(name, _)| name).collect();
        f.debug_struct("TxOptions")
            .field("isolation", &self.isolation)
            .field("read_only", &self.read_only)
            .field("read_write", &self.read_write)
            .field("deferrable", &self.deferrable)
            .field("settings", &settings)
            .field("timeout", &self.timeout)
            .field("resolves_commit", &self.resolves_commit)
            .finish()
    }
}

/// Quotes a text so that it means the same with every `standard_conforming_strings` (PostgreSQL's manual, chapter
/// 4.1.2.2 "String Constants With C-Style Escapes"). The server refuses a NUL, which no text can contain.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_begin_statement_and_the_settings_are_one_text() {
        let options =
            TxOptions::default().isolation(Isolation::RepeatableRead).read_only().deferrable().tenant("a");

        assert_eq!(
            options.begin(&[]),
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY DEFERRABLE; SELECT set_config(E'app.tenant', E'a', true)"
        );
        assert_eq!(TxOptions::default().begin(&[]), "BEGIN");
    }

    #[test]
    fn a_value_cannot_close_its_quotes() {
        assert_eq!(literal(r"a'; drop table t; --\"), r"E'a''; drop table t; --\\'");
    }
}
