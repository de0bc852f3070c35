//! Finding out what became of a commit whose answer was lost (PostgreSQL's manual, chapter 9.27.9 "Transaction ID and
//! Snapshot Information Functions").

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Row, SqlSafeStr};
use tokio::time::{Instant, sleep, timeout_at};

use crate::pool::{Shared, acquire};
use crate::tracker::{self, Asker};
use crate::{Error, Session};

/// For so long the server is asked.
const LIMIT: Duration = Duration::from_secs(10);

/// A session that has not decided after this long is ended: a commit that never reached it would leave it waiting.
const PATIENCE: Duration = Duration::from_millis(250);

/// What became of it.
pub(super) enum Outcome {
    Committed,
    RolledBack,
    Unknown,
}

/// The transaction's number. It is given one if it has none: some get theirs only while they commit, such as one that does
/// nothing but notify.
pub(super) async fn number(session: &mut Session) -> Result<Option<String>, Error> {
    let row = session.control_row("select pg_current_xact_id()::text".into_sql_str()).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
}

/// Asks the server on another connection.
pub(super) async fn outcome(mut session: Session, number: Option<&str>) -> Outcome {
    let Some(number) = number else { return Outcome::Unknown };
    // With it, the pool lives on, even if this was the last that was left of it.
    let inner = Arc::clone(session.inner());
    let asker = Asker::new(session.at, &inner.options);
    let process = Arc::clone(&session.live().session);
    // It may hold the only place in the pool; and it must never come back to it, since its session may be ended now.
    session.state.mark_lost();
    drop(session);
    let ask = ask(&inner, asker, &process, number);
    timeout_at(Instant::now() + LIMIT, ask).await.unwrap_or(Outcome::Unknown)
}

async fn ask(inner: &Arc<Shared>, asker: Asker, process: &Arc<tracker::Session>, number: &str) -> Outcome {
    let started = Instant::now();
    loop {
        match status(inner, asker, number).await {
            Ok(Some(status)) if status == "committed" => return Outcome::Committed,
            Ok(Some(status)) if status == "aborted" => return Outcome::RolledBack,
            // So old that the server has forgotten: not within our ten seconds, unless its clock of transactions races.
            Ok(None) => return Outcome::Unknown,
            Ok(Some(_)) => {
                if started.elapsed() > PATIENCE
                    && let Some(canceller) = &inner.canceller
                    && !canceller.terminate(process).await
                {
                    tracing::debug!(pool = inner.options.name, "a session in doubt could not be ended");
                }
            }
            Err(Error::Acquire(error)) if error.is_closed() => return Outcome::Unknown,
            Err(error) => tracing::debug!(pool = inner.options.name, %error, "the server cannot tell yet"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn status(inner: &Arc<Shared>, asker: Asker, number: &str) -> Result<Option<String>, Error> {
    let mut conn = acquire(Arc::clone(inner), asker, None).await?;
    let status =
        sqlx::query_scalar("select pg_xact_status($1::xid8)").bind(number).fetch_one(&mut conn).await;
    Ok(status?)
}
