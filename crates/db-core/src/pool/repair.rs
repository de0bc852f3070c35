//! The round trips that bring a connection back to a known state.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::time::timeout;

use super::PING_LIMIT;
use super::cancel::Cancel;
use super::driver::Driver;
use super::live::Live;
use super::options::Reset;
use crate::class::{Link, Verdict, is_fatal};
use crate::error::said;
use crate::question::{self, Standing};
use crate::role::Role;
use crate::session::sqlx_depth;
use crate::statement::{Flight, State, Transaction};
use crate::tx::refuses;

/// A cut-off statement has this long to end by itself before it is cancelled: most do, and a cancel costs more.
pub(crate) const LET_IT_END: Duration = Duration::from_millis(2);

/// "Canceling statement due to user request", or due to a time limit of the server's.
const CANCELLED: &str = "57014";

/// A session that was lent as sqlx's own has this long to answer a question. After it, the session is taken to be at work on a
/// cut-off statement.
const ANSWER: Duration = Duration::from_millis(250);

/// After this number of cut-off statements, the server has to forget all prepared statements: sqlx cannot close a statement whose
/// preparation was cut off. Half of what sqlx's cache holds.
pub(crate) const CUT_OFF: u32 = 50;

/// What a repair has made of a connection.
pub(super) enum Repaired {
    Good,
    /// The link works, but the session must not be used again.
    Useless,
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
        // A COPY may run for long, or wait for data.
        Some(Flight::Copy) => return Ok(Repaired::Doubtful),
        Some(Flight::Lent | Flight::OutOfStep) | None => settle(live).await?,
        Some(flight) => {
            let end = come_to_rest(driver, live, flight, LET_IT_END).await?;
            // What the statement has done is visible to others now.
            state.doubt.came_to(end);
            // An answer that nobody took may have been large. The driver lets go of it with the next answer.
            live.raw.shrink_buffers();
            end
        }
    };
    if end.cancel == Cancel::Unanswered {
        return Ok(Repaired::Doubtful);
    }
    // A pooler counts answers, too. After a COPY, its count may be wrong in a way that no question finds out: it answers the question
    // rightly, and drops a part of the answer to a statement that is prepared later.
    if state.is_useless() || (state.was_lent && driver.is_pooled()) {
        return Ok(Repaired::Useless);
    }

    // This is also the round trip that is needed after a cancel: a signal that came too late for its statement hits this question, and
    // no later statement.
    let Some(standing) = ask(driver, live).await? else {
        let (pool, pid) = (&driver.options.name, live.session.pid);
        tracing::debug!(pool, pid, "a session gives each statement the answer of another, and is closed");
        return Ok(Repaired::Useless);
    };
    let is_whole = matches!(state.in_flight(), Some(Flight::Lent) | None);
    let by_text = state.transaction == Transaction::None && is_whole;
    match standing {
        Standing::Idle => {}
        Standing::Open if by_text && after_use == Reset::Commit => {
            match control(&mut live.raw, "COMMIT").await {
                Err(error @ sqlx::Error::Database(_)) if !is_fatal(&error) => {
                    let (pool, pid) = (&driver.options.name, live.session.pid);
                    tracing::warn!(
                        pool,
                        pid,
                        error = said(&error),
                        "a transaction that was begun by text could not be committed"
                    );
                }
                done => done?,
            }
        }
        Standing::Open | Standing::Aborted => repeat(&mut live.raw, "ROLLBACK").await?,
    }
    if state.in_flight().is_some() {
        live.cut_off += 1;
    }
    // Through a pooler, `DISCARD ALL` would run in another session, and prepared statements cannot be closed one by one.
    if driver.is_pooled() {
        let is_kept = !state.asks_role() || may_be_kept(driver, live).await?;
        return Ok(if !is_kept || !counts_none(live).await || live.cut_off >= CUT_OFF {
            Repaired::Useless
        } else {
            Repaired::Good
        });
    }
    if after_use == Reset::DiscardAll || (state.session_changed && after_use != Reset::Keep) {
        repeat(&mut live.raw, "DISCARD ALL").await?;
        // The server has forgotten the prepared statements.
        live.raw.clear_cached_statements().await?;
        live.cut_off = 0;
        if let Some(after_connect) = &driver.options.after_connect {
            after_connect.run(&mut live.raw).await?;
        }
    } else if live.cut_off >= CUT_OFF {
        forget_statements(live).await?;
    }
    if state.session_changed && after_use == Reset::Keep {
        // A notification would reach no listener: sqlx takes it for a part of the next answer, and fails.
        repeat(&mut live.raw, "UNLISTEN *").await?;
    }
    if state.asks_role() && !may_be_kept(driver, live).await? {
        return Ok(Repaired::Useless);
    }
    Ok(if counts_none(live).await { Repaired::Good } else { Repaired::Useless })
}

/// Sets sqlx's count of open transactions to zero, if a loan of sqlx's connection left it higher. Returns whether it is zero then.
async fn counts_none(live: &mut Live) -> bool {
    !live.raw.is_in_transaction() || sqlx_depth::lower(&mut live.raw).await.is_ok()
}

/// Asks a session where it stands. A statement that keeps it from answering, cut off while the session was lent as sqlx's own, is
/// cancelled. `None` means that the session must not be used again.
pub(crate) async fn ask(driver: &Driver, live: &mut Live) -> Result<Option<Standing>, sqlx::Error> {
    // `come_to_rest` does not come first, since the server does not answer a ping in the middle of a COPY.
    if driver.canceller.is_some() {
        let asked = timeout(ANSWER, question::ask(&mut live.raw, &mut live.numbers)).await;
        if let Ok(answer) = asked {
            return answer;
        }
        if come_to_rest(driver, live, Flight::Statement, LET_IT_END).await?.cancel == Cancel::Unanswered {
            return Ok(None);
        }
    }
    question::ask(&mut live.raw, &mut live.numbers).await
}

/// Makes sqlx and the server forget all prepared statements.
pub(crate) async fn forget_statements(live: &mut Live) -> Result<(), sqlx::Error> {
    // In this order: if the future is dropped in between, sqlx has forgotten more than the server, which is harmless.
    live.raw.clear_cached_statements().await?;
    control(&mut live.raw, "DEALLOCATE ALL").await?;
    live.cut_off = 0;
    Ok(())
}

/// Whether a session that was refused a write may be used again. Not if its server takes no writes, since the next dial may reach
/// another server; nor if the session was made read-only without our knowledge. If the role is read-only by choice, the session is
/// kept.
async fn may_be_kept(driver: &Arc<Driver>, live: &mut Live) -> Result<bool, sqlx::Error> {
    let role = Role::ask(&mut live.raw).await?;
    if role == Role::Withdrawn && live.role == Role::Writes {
        driver.demoted(live.generation);
    }
    Ok(role == Role::Writes || role == live.role && role == Role::ByChoice)
}

/// How a cut-off statement came to its end.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rest {
    /// It failed with an error of its own, or because it was cancelled.
    pub(crate) failed: bool,
    /// It failed with an error of its own: nothing of it is stored, and nothing of a transaction that it was to commit.
    pub(crate) refused: bool,
    /// What has become of the requests to cancel it. After an unanswered request, it may still run.
    pub(crate) cancel: Cancel,
}

/// Waits for the end of a cut-off statement, and cancels it if it does not end by itself within `patience`. Transaction control is only
/// waited for, since a cancelled commit may be stored or not. So is everything through a pooler.
///
/// The future may be dropped: the session knows of a request that is under way.
pub(crate) async fn come_to_rest(
    driver: &Driver,
    live: &mut Live,
    flight: Flight,
    patience: Duration,
) -> Result<Rest, sqlx::Error> {
    let canceller = driver.canceller.as_ref().filter(|_| flight == Flight::Statement);
    let Some(canceller) = canceller else {
        let rest = read_end(&mut live.raw).await?;
        return Ok(settle(live).await?.after(rest));
    };
    let session = Arc::clone(&live.session);
    let mut counted = false;
    let mut count = || {
        if !std::mem::replace(&mut counted, true) {
            driver.core().totals.cancelled += 1;
        }
    };
    let rest = {
        let mut end = pin!(read_end(&mut live.raw));
        let mut wait = patience;
        let mut pause = LET_IT_END;
        loop {
            if let Ok(ended) = timeout(wait, &mut end).await {
                break ended?;
            }
            let answer = tokio::select! {
                biased;
                ended = &mut end => break ended?,
                answer = canceller.cancel(&session) => answer,
            };
            match answer {
                Cancel::Unanswered => return Ok(Rest { failed: true, refused: false, cancel: answer }),
                // The link may show that only much later.
                Cancel::Gone => {
                    break timeout(PING_LIMIT, &mut end).await.unwrap_or_else(|_| Err(ended()))?;
                }
                Cancel::Answered => count(),
                Cancel::None | Cancel::Queued { .. } | Cancel::Sent | Cancel::Refused => {}
            }
            // The server ignores a cancel that overtakes its statement, so the next try follows.
            pause *= 2;
            wait = pause;
        }
    };
    let rest = settle(live).await?.after(rest);
    if rest.cancel == Cancel::Answered {
        count();
    }
    Ok(rest)
}

/// Waits until no request to cancel is under way, and makes one more round trip after its answer: a signal that came too late for its
/// statement hits this round trip, and fails a transaction, too.
async fn settle(live: &mut Live) -> Result<Rest, sqlx::Error> {
    let session = Arc::clone(&live.session);
    let mut rest = Rest::default();
    loop {
        match session.cancels.settled().await {
            answer @ (Cancel::Answered | Cancel::Refused) => {
                if answer == Cancel::Answered {
                    rest.cancel = answer;
                }
                rest.failed |= read_end(&mut live.raw).await?.failed;
                session.cancels.mark_used_up();
            }
            Cancel::Unanswered => return Ok(Rest { cancel: Cancel::Unanswered, ..rest }),
            _ => return Ok(rest),
        }
    }
}

impl Rest {
    /// Both ends, the one of the statement before first.
    fn after(self, statement: Self) -> Self {
        Self { failed: self.failed || statement.failed, refused: statement.refused, ..self }
    }
}

/// The error of a link whose session has ended at the server.
fn ended() -> sqlx::Error {
    let what = "the session has ended at the server";
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what))
}

/// Reads what is left of a cut-off statement, and its error: sqlx would take that error for the answer to what it sends next, and a
/// cancelled statement always leaves one. Returns whether there was an error.
async fn read_end(raw: &mut PgConnection) -> Result<Rest, sqlx::Error> {
    let mut rest = Rest::default();
    loop {
        match raw.ping().await {
            // There is one error for each statement, so this ends.
            Err(error @ sqlx::Error::Database(_)) if Verdict::of_statement(&error).link < Link::Closed => {
                // A request to cancel may have hit our ping and not the statement before it.
                let code = error.as_database_error().and_then(DatabaseError::code);
                rest.refused |= refuses(&error) && code.as_deref() != Some(CANCELLED);
                rest.failed = true;
            }
            other => return other.map(|()| rest),
        }
    }
}

/// Whether a transaction is open, or has failed.
pub(crate) async fn is_in_transaction(driver: &Arc<Driver>, live: &mut Live) -> Result<bool, sqlx::Error> {
    Ok(!matches!(ask(driver, live).await?, Some(Standing::Idle)))
}

/// Sends a statement that may be sent twice. A notification that arrives in between makes it fail the first time.
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
