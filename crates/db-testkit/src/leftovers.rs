//! What a test leaves on its server.

use std::fmt::Write as _;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::db::TestDb;
use crate::error::Error;
use crate::server::APPLICATION_NAME;
use crate::sessions::{Lock, Observer, Seen, Session};
use crate::until::PAUSE;

/// How long transactions, statements and locks may take to end after the test's body. A connection that was dropped, or that its
/// pool repairs, needs some milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Limit for a look, on a server that does not answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What a test may leave.
#[derive(Debug)]
pub(crate) struct Allowed {
    /// Parts of statements and of application names.
    pub(crate) leaves: &'static [&'static str],
    /// Whether sessions may stay connected.
    pub(crate) idle: bool,
}

impl Allowed {
    fn allows(&self, seen: &Seen) -> bool {
        let Session { query, application_name, .. } = &seen.session;
        let named = |part: &&str| query.contains(part) || application_name.contains(part);
        // The pool of `TestDb::pool` is ours, and its connections stay.
        let may_idle = self.idle || application_name == APPLICATION_NAME;
        let is_busy = seen.session.is_in_transaction() || seen.session.is_running() || seen.has_locks;
        !is_busy && may_idle || self.leaves.iter().any(named)
    }
}

/// What is left in these databases that is not allowed, one line each; empty if nothing is. Waits for up to 1 s.
///
/// A server that does not answer leaves nothing to see. A line on stderr says so. Databases that are reached through a pooler by
/// `DB_TESTKIT_THROUGH` are not looked at.
pub(crate) async fn look(dbs: &[TestDb], allowed: &Allowed) -> String {
    let mut text = String::new();
    // Behind a pooler the sessions are the pooler's, and a statement goes on when its client has gone.
    for db in dbs.iter().filter(|db| db.database().through.get().is_none()) {
        match within(LIMIT, look_at(db, allowed)).await {
            Some(Ok(left)) => text.push_str(&left),
            Some(Err(error)) => {
                eprintln!("db-testkit: cannot see what the test left: {}", error.with_sources());
            }
            None => eprintln!("db-testkit: cannot see what the test left: no answer within {LIMIT:?}"),
        }
    }
    text
}

async fn look_at(db: &TestDb, allowed: &Allowed) -> Result<String, Error> {
    let begun = Instant::now();
    loop {
        let mut left = sessions(db).await?;
        left.retain(|it| !allowed.allows(it));
        if left.is_empty() {
            return Ok(String::new());
        }
        if begun.elapsed() > PATIENCE {
            return Ok(describe(db, &left).await);
        }
        within(PAUSE, std::future::pending::<()>()).await;
    }
}

/// Asks in the session that is there already: a new one would take longer than all the rest of the look.
async fn sessions(db: &TestDb) -> Result<Vec<Seen>, Error> {
    let mut admin = db.database().admin.lock().await;
    let Some(admin) = &mut *admin else {
        // The test has dropped its database.
        return Ok(Vec::new());
    };
    match admin.sessions_in(db.name()).await {
        // The test may have ended that session, together with its server.
        Err(_) => {
            let mut observer = Observer::connect(db).await?;
            let seen = observer.seen(true).await?;
            observer.close().await;
            Ok(seen)
        }
        seen => seen,
    }
}

/// A line for each session, and one for each of its locks.
async fn describe(db: &TestDb, left: &[Seen]) -> String {
    // Without the locks the sessions are still named.
    let locks = locks(db).await.unwrap_or_default();
    let mut text = String::new();
    for Seen { session, .. } in left {
        // Writing to a string does not fail.
        let _ = write!(text, "\n  {session}");
        if session.application_name == APPLICATION_NAME {
            text.push_str(" (on `db.pool()`)");
        }
        for lock in locks.iter().filter(|it| it.pid == session.pid) {
            let _ = write!(text, "\n  {lock}");
        }
    }
    text
}

/// Asks in a session of the database, since only such a session can name relations.
async fn locks(db: &TestDb) -> Result<Vec<Lock>, Error> {
    let mut observer = Observer::connect(db).await?;
    let locks = observer.locks(true).await?;
    observer.close().await;
    Ok(locks)
}

/// The output of the future, or `None` after the limit by the machine's clock: a test may have paused that of tokio.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    // Dropped together with the future, which ends the thread's wait.
    let (_waits, ended) = mpsc::channel::<()>();
    let alarm = tokio::task::spawn_blocking(move || ended.recv_timeout(limit));
    tokio::select! {
        output = future => Some(output),
        _ = alarm => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Allowed, Seen, Session};

    fn seen(state: &str, application_name: &str, query: &str) -> Seen {
        let (state, application_name, query) = (state.into(), application_name.into(), query.into());
        let session = Session { pid: 1, state, application_name, query, transaction_age: None, wait: None };
        Seen { session, has_locks: false }
    }

    #[test]
    fn transactions_statements_and_locks_are_left_and_idle_sessions_only_when_strict() {
        let usual = Allowed { leaves: &[], idle: true };
        let strict = Allowed { leaves: &[], idle: false };

        for state in
            ["active", "fastpath function call", "idle in transaction", "idle in transaction (aborted)"]
        {
            assert!(!usual.allows(&seen(state, "db-testkit", "select 1")), "{state}");
        }
        assert!(!usual.allows(&Seen { has_locks: true, ..seen("idle", "a", "") }));
        assert!(usual.allows(&seen("idle", "a", "")));
        assert!(!strict.allows(&seen("idle", "a", "")));
        assert!(strict.allows(&seen("idle", "db-testkit", "")), "the pool is the kit's");
    }

    #[test]
    fn a_part_of_the_statement_or_of_the_application_name_allows_a_session() {
        let allowed = Allowed { leaves: &["pg_sleep", "worker"], idle: true };

        assert!(allowed.allows(&seen("active", "a", "select pg_sleep(9)")));
        assert!(allowed.allows(&seen("active", "a worker", "select 1")));
        assert!(!allowed.allows(&seen("active", "a", "select 1")));
    }
}
