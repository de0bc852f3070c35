//! Finds out the outcome of a commit whose answer was lost (PostgreSQL's manual, chapter 9.27.9 "Transaction ID and
//! Snapshot Information Functions").

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Row, SqlSafeStr};
use tokio::time::{Instant, sleep, timeout_at};

use crate::pool::{Shared, acquire};
use crate::tracker::{self, Caller};
use crate::{Error, Session};

/// The limit for the whole search.
const LIMIT: Duration = Duration::from_secs(10);

/// A session that has not decided after this time is ended: if the commit never reached it, it would wait for ever.
const TERMINATE_AFTER: Duration = Duration::from_millis(250);

/// The outcome of a commit.
pub(super) enum Outcome {
    Committed,
    RolledBack,
    Unknown,
}

/// The transaction's number. The query assigns one if there is none, since some transactions get theirs only during the commit, for
/// example one that only notifies.
pub(super) async fn number(session: &mut Session) -> Result<Option<String>, Error> {
    let row = session.control_row("select pg_current_xact_id()::text".into_sql_str()).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
}

/// Queries the outcome on another connection.
pub(super) async fn outcome(mut session: Session, number: Option<&str>) -> Outcome {
    // Keeps the pool alive, even if the session was its last user.
    let inner = Arc::clone(session.inner());
    let Some(number) = number else {
        inner.commit_unknown();
        return Outcome::Unknown;
    };
    let caller = Caller::new(session.at, &inner.options);
    let process = Arc::clone(&session.live().session);
    // The session may hold the pool's only slot, and it must not return to the pool, since it may be ended below.
    session.state.mark_lost();
    drop(session);
    let search = search(&inner, caller, &process, number);
    let outcome = timeout_at(Instant::now() + LIMIT, search).await.unwrap_or(Outcome::Unknown);
    if matches!(outcome, Outcome::Unknown) {
        inner.commit_unknown();
    }
    outcome
}

async fn search(
    inner: &Arc<Shared>,
    caller: Caller,
    process: &Arc<tracker::Session>,
    number: &str,
) -> Outcome {
    let started = Instant::now();
    loop {
        match status(inner, caller, number).await {
            Ok(Some(status)) if status == "committed" => return Outcome::Committed,
            Ok(Some(status)) if status == "aborted" => return Outcome::RolledBack,
            // The server has forgotten the number as too old, which cannot happen within 10 s under normal load.
            Ok(None) => return Outcome::Unknown,
            Ok(Some(_)) => {
                if started.elapsed() > TERMINATE_AFTER
                    && let Some(canceller) = &inner.canceller
                    && !canceller.terminate(process).await
                {
                    tracing::debug!(
                        pool = inner.options.name,
                        "a session whose commit is unresolved could not be ended"
                    );
                }
            }
            Err(Error::Acquire(error)) if error.is_closed() => return Outcome::Unknown,
            Err(error) => {
                tracing::debug!(pool = inner.options.name, %error, "the outcome of a commit could not be queried yet");
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn status(inner: &Arc<Shared>, caller: Caller, number: &str) -> Result<Option<String>, Error> {
    let mut conn = acquire(Arc::clone(inner), caller, None).await?;
    let status =
        sqlx::query_scalar("select pg_xact_status($1::xid8)").bind(number).fetch_one(&mut conn).await;
    Ok(status?)
}
