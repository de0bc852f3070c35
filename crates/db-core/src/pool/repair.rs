//! The round trips that repair a connection.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::time::timeout;

use super::PING_LIMIT;
use super::driver::Driver;
use super::live::Live;
use crate::cancels::Cancel;
use crate::class::{Link, Verdict, is_fatal, refuses};
use crate::observer::Observer;
use crate::pool_options::Reset;
use crate::redact::redacted;
use crate::role::Role;
use crate::sqlx_depth;
use crate::statement::{InFlight, State, Transaction};
use crate::statement_end::StatementEnd;
use crate::stats::CloseReason;
use crate::status_query::{TxStatus, query_status};

/// An abandoned statement may run for this long before it is cancelled: most end sooner, and a cancel costs more.
pub(crate) const CANCEL_AFTER: Duration = Duration::from_millis(2);

/// SQLSTATE `query_canceled`: by a cancel request or by one of the server's timeouts.
const CANCELLED: &str = "57014";

/// A session that was lent as sqlx's own must answer the status query within this time. Otherwise it is assumed to run an abandoned
/// statement.
const STATUS_LIMIT: Duration = Duration::from_millis(250);

/// After this number of abandoned statements, the server must forget all prepared statements: sqlx cannot close a statement whose
/// preparation was abandoned. Half the capacity of sqlx's cache.
pub(crate) const MAX_ABANDONED: u32 = 50;

/// The outcome of a repair.
pub(super) enum Repaired {
    Good,
    /// The link works, but the session must not be used again, for this reason.
    Useless(CloseReason),
    /// The same, and a statement may still run in the session.
    Doubtful,
}

/// The round trips of a repair.
pub(super) async fn reset(
    driver: &Arc<Driver>,
    live: &mut Live,
    state: &mut State,
) -> Result<Repaired, sqlx::Error> {
    let after_use = driver.options.reset;
    let end = match state.in_flight() {
        // A COPY may run for a long time, or wait for data.
        Some(InFlight::Copy) => return Ok(Repaired::Doubtful),
        Some(InFlight::Lent | InFlight::OutOfStep) | None => settle(live).await?,
        Some(flight) => {
            let end = drain(driver, live, flight, CANCEL_AFTER).await?;
            // The statement has ended, so its effects are visible to others.
            state.pending_hooks.resolve(end);
            // The unread answer may have been large. The driver frees it with the next answer.
            live.raw.shrink_buffers();
            end
        }
    };
    if end.cancel == Cancel::Unanswered {
        return Ok(Repaired::Doubtful);
    }
    // A pooler counts answers, too. After a COPY, its count may be wrong without the status query noticing: the pooler answers the
    // query correctly, and drops part of the answer to a later prepare.
    if state.is_useless() || (state.was_lent && driver.is_pooled()) {
        return Ok(Repaired::Useless(state.why_useless()));
    }

    // This query is also the round trip that must follow a cancel: a signal that arrives late hits this query and no later
    // statement.
    let Some(status) = status(driver, live).await? else {
        let (pool, pid) = (&driver.options.name, live.session.pid);
        tracing::debug!(
            pool,
            pid,
            "a session is out of step: it answers each statement with the answer of another, so it is closed"
        );
        return Ok(Repaired::Useless(CloseReason::Repair));
    };
    let is_whole = matches!(state.in_flight(), Some(InFlight::Lent) | None);
    let is_raw = state.transaction == Transaction::None && is_whole;
    match status {
        TxStatus::Idle => {}
        TxStatus::Open if is_raw && after_use == Reset::Commit => {
            match control(&mut live.raw, "COMMIT").await {
                Err(error @ sqlx::Error::Database(_)) if !is_fatal(&error) => {
                    let (pool, pid) = (&driver.options.name, live.session.pid);
                    tracing::warn!(
                        pool,
                        pid,
                        error = redacted(&error),
                        "a transaction begun with raw SQL could not be committed"
                    );
                }
                done => done?,
            }
        }
        TxStatus::Open | TxStatus::Aborted => repeat(&mut live.raw, "ROLLBACK").await?,
    }
    if state.in_flight().is_some() {
        live.abandoned += 1;
    }
    // Through a pooler, `DISCARD ALL` would run in another session, and prepared statements cannot be closed one by one.
    if driver.is_pooled() {
        if state.asks_role() && !may_be_kept(driver, live).await? {
            return Ok(Repaired::Useless(CloseReason::Evicted));
        }
        return Ok(if !counts_none(live).await || live.abandoned >= MAX_ABANDONED {
            Repaired::Useless(CloseReason::Repair)
        } else {
            Repaired::Good
        });
    }
    if after_use == Reset::DiscardAll || (state.session_changed && after_use != Reset::Keep) {
        repeat(&mut live.raw, "DISCARD ALL").await?;
        // The server has forgotten the prepared statements.
        live.raw.clear_cached_statements().await?;
        live.abandoned = 0;
        if let Some(after_connect) = &driver.options.after_connect {
            after_connect.run(&mut live.raw).await?;
        }
    } else if live.abandoned >= MAX_ABANDONED {
        forget_statements(live).await?;
    }
    if state.session_changed && after_use == Reset::Keep {
        // No listener could receive a notification: sqlx takes it for a part of the next answer, and fails.
        repeat(&mut live.raw, "UNLISTEN *").await?;
    }
    if state.asks_role() && !may_be_kept(driver, live).await? {
        return Ok(Repaired::Useless(CloseReason::Evicted));
    }
    Ok(if counts_none(live).await { Repaired::Good } else { Repaired::Useless(CloseReason::Repair) })
}

/// Lowers sqlx's count of open transactions to zero, since a loan of sqlx's connection may have left it higher. Returns whether the
/// count is zero.
async fn counts_none(live: &mut Live) -> bool {
    !live.raw.is_in_transaction() || sqlx_depth::lower(&mut live.raw).await.is_ok()
}

/// Queries the transaction status of a session. A statement that was abandoned while the session was lent as sqlx's own may keep the
/// session busy; it is cancelled. `None` means that the session must not be used again.
pub(crate) async fn status(driver: &Driver, live: &mut Live) -> Result<Option<TxStatus>, sqlx::Error> {
    // `drain` does not come first, since the server does not answer a ping in the middle of a COPY.
    if driver.canceller.is_some() {
        let answer = timeout(STATUS_LIMIT, query_status(&mut live.raw, &mut live.numbers)).await;
        if let Ok(answer) = answer {
            return answer;
        }
        if drain(driver, live, InFlight::Statement, CANCEL_AFTER).await?.cancel == Cancel::Unanswered {
            return Ok(None);
        }
    }
    query_status(&mut live.raw, &mut live.numbers).await
}

/// Makes sqlx and the server forget all prepared statements.
pub(crate) async fn forget_statements(live: &mut Live) -> Result<(), sqlx::Error> {
    // In this order: if the future is dropped in between, sqlx has forgotten more than the server, which is harmless.
    live.raw.clear_cached_statements().await?;
    control(&mut live.raw, "DEALLOCATE ALL").await?;
    live.abandoned = 0;
    Ok(())
}

/// Whether a session whose write was refused may be used again. Not if its server accepts no writes, since the next dial may reach
/// another server; nor if the session became read-only unnoticed. A role that is read-only by choice keeps its session.
async fn may_be_kept(driver: &Arc<Driver>, live: &mut Live) -> Result<bool, sqlx::Error> {
    let role = Role::ask(&mut live.raw).await?;
    if role == Role::Withdrawn && live.role == Role::Writes {
        driver.demoted(live.generation);
    }
    Ok(role == Role::Writes || role == live.role && role == Role::ByChoice)
}

/// Waits for the end of an abandoned statement, and cancels it if it does not end within `patience`. Transaction control is never
/// cancelled, since a cancelled commit may or may not be stored; neither is a statement through a pooler.
///
/// The future may be dropped: the session keeps the state of the cancel request.
pub(crate) async fn drain(
    driver: &Driver,
    live: &mut Live,
    flight: InFlight,
    patience: Duration,
) -> Result<StatementEnd, sqlx::Error> {
    let canceller = driver.canceller.as_ref().filter(|_| flight == InFlight::Statement);
    let Some(canceller) = canceller else {
        let end = read_end(&mut live.raw).await?;
        return Ok(settle(live).await?.after(end));
    };
    let session = Arc::clone(&live.session);
    let mut counted = false;
    let mut count = || {
        if !std::mem::replace(&mut counted, true) {
            driver.core().totals.cancelled += 1;
            driver.observers.report(Observer::cancelled);
        }
    };
    let end = {
        let mut reading = pin!(read_end(&mut live.raw));
        let mut wait = patience;
        let mut pause = CANCEL_AFTER;
        loop {
            if let Ok(ended) = timeout(wait, &mut reading).await {
                break ended?;
            }
            let answer = tokio::select! {
                biased;
                ended = &mut reading => break ended?,
                answer = canceller.cancel(&session) => answer,
            };
            match answer {
                Cancel::Unanswered => {
                    return Ok(StatementEnd { failed: true, refused: false, cancel: answer });
                }
                // The link may report that only much later.
                Cancel::Gone => {
                    break timeout(PING_LIMIT, &mut reading)
                        .await
                        .unwrap_or_else(|_| Err(session_ended()))?;
                }
                Cancel::Answered => count(),
                Cancel::None | Cancel::Queued { .. } | Cancel::Sent | Cancel::Refused => {}
            }
            // The server ignores a cancel that arrives before its statement, so another request follows.
            pause *= 2;
            wait = pause;
        }
    };
    let end = settle(live).await?.after(end);
    if end.cancel == Cancel::Answered {
        count();
    }
    Ok(end)
}

/// Waits until no cancel request is under way, and makes one more round trip after its answer: a signal that arrives late hits this
/// round trip, and fails an open transaction, too.
async fn settle(live: &mut Live) -> Result<StatementEnd, sqlx::Error> {
    let session = Arc::clone(&live.session);
    let mut end = StatementEnd::default();
    loop {
        match session.cancels.settled().await {
            answer @ (Cancel::Answered | Cancel::Refused) => {
                if answer == Cancel::Answered {
                    end.cancel = answer;
                }
                end.failed |= read_end(&mut live.raw).await?.failed;
                session.cancels.mark_used_up();
            }
            Cancel::Unanswered => return Ok(StatementEnd { cancel: Cancel::Unanswered, ..end }),
            _ => return Ok(end),
        }
    }
}

/// The error of a link whose session has ended at the server.
fn session_ended() -> sqlx::Error {
    let what = "the server ended the session";
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what))
}

/// Reads the rest of an abandoned statement's answer. Its error must be read, since sqlx would take it for the answer to the next
/// statement, and a cancelled statement always leaves one.
async fn read_end(raw: &mut PgConnection) -> Result<StatementEnd, sqlx::Error> {
    let mut end = StatementEnd::default();
    loop {
        match raw.ping().await {
            // Each statement leaves at most one error, so this loop ends.
            Err(error @ sqlx::Error::Database(_)) if Verdict::of_statement(&error).link < Link::Closed => {
                // A cancel may have hit this ping instead of the statement before it.
                let code = error.as_database_error().and_then(DatabaseError::code);
                end.refused |= refuses(&error) && code.as_deref() != Some(CANCELLED);
                end.failed = true;
            }
            other => return other.map(|()| end),
        }
    }
}

/// Whether a transaction is open, or has failed.
pub(crate) async fn is_in_transaction(driver: &Arc<Driver>, live: &mut Live) -> Result<bool, sqlx::Error> {
    Ok(!matches!(status(driver, live).await?, Some(TxStatus::Idle)))
}

/// Sends a statement that is safe to send twice. A notification that arrives before its answer fails the first attempt.
async fn repeat(raw: &mut PgConnection, statement: &'static str) -> Result<(), sqlx::Error> {
    match control(raw, statement).await {
        Err(sqlx::Error::Protocol(_)) => {
            read_end(raw).await?;
            control(raw, statement).await
        }
        done => done,
    }
}

async fn control(raw: &mut PgConnection, statement: &'static str) -> Result<(), sqlx::Error> {
    raw.execute(sqlx::raw_sql(statement)).await.map(drop)
}
