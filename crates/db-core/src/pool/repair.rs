//! Bringing a connection back to a known state, or closing it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::time::timeout;

use super::PING_LIMIT;
use super::cancel::Cancel;
use super::core::{Core, Inner, Live};
use super::options::Reset;
use crate::class::{Link, Verdict, is_fatal};
use crate::doubt::Doubt;
use crate::error::said;
use crate::question::{self, Standing};
use crate::role::Role;
use crate::session::sqlx_depth;
use crate::statement::{Flight, State, Transaction};
use crate::tracker::Session;
use crate::tx::refuses;

/// A repair takes no longer than this; what is not mended then is closed.
const REPAIR_LIMIT: Duration = Duration::from_secs(2);

/// A goodbye takes no longer than this.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A statement that was cut off may end by itself for so long before it is cancelled: most do, and a cancel costs more.
pub(crate) const LET_IT_END: Duration = Duration::from_millis(2);

/// "Canceling statement due to user request", or for a limit of the server's.
const CANCELLED: &str = "57014";

/// A session that was lent may take so long to answer a question before it is taken to be at work on a statement that was cut
/// off.
const ANSWER: Duration = Duration::from_millis(250);

/// After so many statements that were cut off, the server is to forget all that were prepared: the driver cannot close those
/// whose preparation it did not see through. Half of what its own cache holds.
pub(crate) const CUT_OFF: u32 = 50;

/// After this, somebody else is let in for the one in repair. Before, waiting for it is cheaper than dialling.
const PATIENCE: Duration = Duration::from_millis(10);

/// A connection out of use, with a task that has to find out what becomes of it. Counted until it is dropped.
pub(crate) struct Suspect {
    inner: Arc<Inner>,
    live: Option<Box<Live>>,
    counted: bool,
    slow: bool,
}

/// How a connection came out of its repair.
enum Mended {
    Good,
    /// Nothing is wrong with the link, but nobody should have the session.
    Useless,
    /// The same, and something may still run in it.
    Doubtful,
}

impl Suspect {
    pub(super) fn new(inner: Arc<Inner>, live: Box<Live>) -> Self {
        Self { inner, live: Some(live), counted: true, slow: false }
    }

    /// One of which only the session is left, at the server. Others are let in for it.
    pub(super) fn without_link(inner: Arc<Inner>) -> Self {
        Self { inner, live: None, counted: true, slow: true }
    }

    /// Ends the session at the server. What is in doubt runs after that, and if it is not ended, too.
    pub(super) async fn end(self, session: Arc<Session>, doubt: Doubt) {
        terminate(&self.inner, &session).await;
        drop(doubt);
    }

    /// Says goodbye. A dead peer cannot make that long.
    pub(super) async fn close(mut self) {
        if let Some(live) = self.live.take() {
            match timeout(CLOSE_LIMIT, live.raw.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(
                        pool = self.inner.options.name,
                        error = said(&error),
                        "closing a connection failed"
                    );
                }
                Err(_) => {
                    tracing::debug!(pool = self.inner.options.name, "closing a connection took too long");
                }
            }
        }
    }

    /// Asks for a sign of life, and puts the connection back if it gives one.
    pub(super) async fn verify(mut self) {
        let (generation, roles) = {
            let core = self.inner.core();
            (core.generation, core.roles)
        };
        let Some(live) = &mut self.live else { return };
        let answer = timeout(PING_LIMIT, async {
            if live.generation < roles {
                return Role::ask(&mut live.raw).await;
            }
            live.raw.ping().await.map(|()| live.role)
        });
        match answer.await {
            Ok(Ok(Role::Withdrawn)) if live.role == Role::Writes => self.close().await,
            Ok(Ok(role)) => {
                live.role = role;
                live.generation = generation;
                live.last_seen = Instant::now();
                self.back();
            }
            _ => self.is_lost(),
        }
    }

    /// Brings the connection back to a known state, and puts it back, or closes it.
    pub(super) async fn repair(mut self, mut state: State) {
        let Some(mut live) = self.live.take() else { return };
        let inner = Arc::clone(&self.inner);
        let mended = {
            let mut mending = pin!(timeout(REPAIR_LIMIT, mend(&inner, &mut live, &mut state)));
            tokio::select! {
                biased;
                mended = &mut mending => mended,
                () = tokio::time::sleep(PATIENCE) => {
                    self.is_slow();
                    mending.await
                }
            }
        };
        let session = Arc::clone(&live.session);
        self.live = Some(live);
        match mended {
            Ok(Ok(Mended::Good)) => {
                inner.core().totals.repaired += 1;
                self.answered();
                self.back();
            }
            Ok(Ok(Mended::Useless)) => {
                inner.core().totals.repair_failed += 1;
                self.close().await;
            }
            Ok(Ok(Mended::Doubtful)) => {
                inner.core().totals.repair_failed += 1;
                // First the session: with its link gone, it would go on until it looks for it.
                terminate(&inner, &session).await;
                self.close().await;
            }
            Ok(Err(error)) => {
                inner.core().totals.repair_failed += 1;
                tracing::debug!(
                    pool = inner.options.name,
                    pid = session.pid,
                    error = said(&error),
                    "a connection broke in repair"
                );
                self.is_lost();
            }
            Err(_) => {
                inner.core().totals.repair_failed += 1;
                tracing::warn!(
                    pool = inner.options.name,
                    pid = session.pid,
                    "a connection did not come to rest within {REPAIR_LIMIT:?}, and is closed"
                );
                // It would go on at the server for as long as the link is silent.
                terminate(&inner, &session).await;
                self.is_lost();
            }
        }
    }

    fn is_slow(&mut self) {
        self.slow = true;
        self.inner.core().slow += 1;
        self.inner.dial_if_wanted();
    }

    fn answered(&mut self) {
        if let Some(live) = &mut self.live {
            live.last_seen = Instant::now();
        }
    }

    fn back(mut self) {
        let Some(live) = self.live.take() else { return };
        let inner = Arc::clone(&self.inner);
        let mut core = inner.core();
        self.uncount(&mut core);
        inner.place(core, live, Instant::now());
    }

    fn is_lost(&mut self) {
        if let Some(live) = self.live.take() {
            let generation = live.generation;
            drop(live);
            self.uncount(&mut self.inner.clone().core());
            self.inner.lost(generation);
        }
    }

    fn uncount(&mut self, core: &mut Core) {
        if self.counted {
            core.repairing -= 1;
            core.slow -= u32::from(self.slow);
            self.counted = false;
        }
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        // First the link, then its place.
        self.live = None;
        let inner = Arc::clone(&self.inner);
        self.uncount(&mut inner.core());
        inner.gone.notify_waiters();
        inner.dial_if_wanted();
    }
}

/// Ends a session from outside.
async fn terminate(inner: &Inner, session: &Arc<Session>) {
    let Some(canceller) = &inner.canceller else { return };
    if !canceller.terminate(session).await {
        let (pool, pid) = (&inner.options.name, session.pid);
        tracing::debug!(pool, pid, "its session may go on");
    }
}

/// The round trips of a repair.
async fn mend(inner: &Arc<Inner>, live: &mut Live, state: &mut State) -> Result<Mended, sqlx::Error> {
    let reset = inner.options.reset;
    let end = match state.in_flight() {
        // It may run for long, or wait for data.
        Some(Flight::Copy) => return Ok(Mended::Doubtful),
        Some(Flight::Lent | Flight::OutOfStep) | None => settle(live).await?,
        Some(flight) => {
            let end = come_to_rest(inner, live, flight, LET_IT_END).await?;
            // Others can see now what it has done.
            state.doubt.came_to(end);
            // An answer that nobody took may have been large. The driver lets go of it with the next answer.
            live.raw.shrink_buffers();
            end
        }
    };
    if end.cancel == Cancel::Unanswered {
        return Ok(Mended::Doubtful);
    }
    // A pooler counts answers, too, and loses count of a COPY in a way that no question can find out: it answers the question
    // rightly, and leaves something out of the answer to a statement that is prepared later.
    if state.is_useless() || (state.was_lent && inner.is_pooled()) {
        return Ok(Mended::Useless);
    }

    // This is also the one more round trip after a cancel: a signal that came too late for the statement hits this, and
    // is used up by it.
    let Some(standing) = ask(inner, live).await? else {
        let (pool, pid) = (&inner.options.name, live.session.pid);
        tracing::debug!(pool, pid, "a session gives each statement the answer of another, and is closed");
        return Ok(Mended::Useless);
    };
    let is_whole = matches!(state.in_flight(), Some(Flight::Lent) | None);
    let by_text = state.transaction == Transaction::None && is_whole;
    match standing {
        Standing::Idle => {}
        Standing::Open if by_text && reset == Reset::Commit => match control(&mut live.raw, "COMMIT").await {
            Err(error @ sqlx::Error::Database(_)) if !is_fatal(&error) => {
                let (pool, pid) = (&inner.options.name, live.session.pid);
                tracing::warn!(
                    pool,
                    pid,
                    error = said(&error),
                    "what was begun by text could not be committed"
                );
            }
            done => done?,
        },
        Standing::Open | Standing::Aborted => repeat(&mut live.raw, "ROLLBACK").await?,
    }
    if state.in_flight().is_some() {
        live.cut_off += 1;
    }
    // A pooler would discard what is in some other session.
    if inner.is_pooled() {
        // Nor can what it keeps for this one be closed one by one.
        let is_kept = !state.asks_role() || may_be_kept(inner, live).await?;
        return Ok(if !is_kept || !counts_none(live).await || live.cut_off >= CUT_OFF {
            Mended::Useless
        } else {
            Mended::Good
        });
    }
    if reset == Reset::DiscardAll || (state.session_changed && reset != Reset::Keep) {
        repeat(&mut live.raw, "DISCARD ALL").await?;
        // The server has forgotten the prepared statements.
        live.raw.clear_cached_statements().await?;
        live.cut_off = 0;
    } else if live.cut_off >= CUT_OFF {
        forget_statements(live).await?;
    }
    if state.session_changed && reset == Reset::Keep {
        // Nobody could receive a notification here: the driver takes it for a part of the next answer, and fails.
        repeat(&mut live.raw, "UNLISTEN *").await?;
    }
    if state.asks_role() && !may_be_kept(inner, live).await? {
        return Ok(Mended::Useless);
    }
    Ok(if counts_none(live).await { Mended::Good } else { Mended::Useless })
}

/// Has sqlx count no open transaction, after a loan in which it did.
async fn counts_none(live: &mut Live) -> bool {
    !live.raw.is_in_transaction() || sqlx_depth::lower(&mut live.raw).await.is_ok()
}

/// Asks a session where it stands, and cancels what keeps it from answering: a statement that was cut off while the session
/// was lent. `None` when nobody else is to have it.
pub(crate) async fn ask(inner: &Inner, live: &mut Live) -> Result<Option<Standing>, sqlx::Error> {
    // Not by `come_to_rest` first: in the middle of a COPY, the server does not answer a sign of life.
    if inner.canceller.is_some() {
        let asked = timeout(ANSWER, question::ask(&mut live.raw, &mut live.numbers)).await;
        if let Ok(answer) = asked {
            return answer;
        }
        if come_to_rest(inner, live, Flight::Statement, LET_IT_END).await?.cancel == Cancel::Unanswered {
            return Ok(None);
        }
    }
    question::ask(&mut live.raw, &mut live.numbers).await
}

/// Has both sides forget what was prepared.
pub(crate) async fn forget_statements(live: &mut Live) -> Result<(), sqlx::Error> {
    // Cut off in between, the driver has forgotten more than the server, and not less.
    live.raw.clear_cached_statements().await?;
    control(&mut live.raw, "DEALLOCATE ALL").await?;
    live.cut_off = 0;
    Ok(())
}

/// Whether somebody else may have a session that was refused a write. Not when its server takes none, whether that is new or
/// not: the next one that is dialled may reach another server. Not when the session was made read-only past us. A role that only
/// reads is left alone.
async fn may_be_kept(inner: &Arc<Inner>, live: &mut Live) -> Result<bool, sqlx::Error> {
    let role = Role::ask(&mut live.raw).await?;
    if role == Role::Withdrawn && live.role == Role::Writes {
        inner.demoted(live.generation);
    }
    Ok(role == Role::Writes || role == live.role && role == Role::ByChoice)
}

/// How what was cut off came to its end.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rest {
    /// With an error of its own, or because it was cancelled.
    pub(crate) failed: bool,
    /// With an error of its own: nothing of it is stored, and nothing of a transaction that it was to commit.
    pub(crate) refused: bool,
    /// What has become of the requests to cancel it. After an unanswered one, it may still run.
    pub(crate) cancel: Cancel,
}

/// Waits for the end of what was cut off. A statement is cancelled when it does not end by itself within `patience`. A commit is
/// better waited for: nobody knows what becomes of it either way. So is everything through a pooler.
///
/// May be dropped: the session knows of a request that is under way.
pub(crate) async fn come_to_rest(
    inner: &Inner,
    live: &mut Live,
    flight: Flight,
    patience: Duration,
) -> Result<Rest, sqlx::Error> {
    let canceller = inner.canceller.as_ref().filter(|_| flight == Flight::Statement);
    let Some(canceller) = canceller else {
        let rest = read_end(&mut live.raw).await?;
        return Ok(settle(live).await?.after(rest));
    };
    let session = Arc::clone(&live.session);
    let mut counted = false;
    let mut count = || {
        if !std::mem::replace(&mut counted, true) {
            inner.core().totals.cancelled += 1;
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
                // The link may not say so for a long time.
                Cancel::Gone => {
                    break timeout(PING_LIMIT, &mut end).await.unwrap_or_else(|_| Err(ended()))?;
                }
                Cancel::Answered => count(),
                Cancel::None | Cancel::Queued { .. } | Cancel::Sent | Cancel::Refused => {}
            }
            // A cancel that comes before its statement is ignored: the statement may have been on its way still.
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

/// Waits until no request to cancel is under way any more, whoever asked for it, and makes one more round trip after its answer:
/// a signal that came too late hits this one, and fails a transaction, too.
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
                session.cancels.used_up();
            }
            Cancel::Unanswered => return Ok(Rest { cancel: Cancel::Unanswered, ..rest }),
            _ => return Ok(rest),
        }
    }
}

impl Rest {
    /// The same, after a statement that came to its end like this.
    fn after(self, statement: Self) -> Self {
        Self { failed: self.failed || statement.failed, refused: statement.refused, ..self }
    }
}

/// The error of a link whose session the server has no longer.
fn ended() -> sqlx::Error {
    let what = "the session has ended at the server";
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what))
}

/// Reads what is left of a statement that was cut off, its error included: the driver stops at that as if it were the
/// answer to what it has just sent, and a cancelled statement always leaves one. Says whether there was any.
async fn read_end(raw: &mut PgConnection) -> Result<Rest, sqlx::Error> {
    let mut rest = Rest::default();
    loop {
        match raw.ping().await {
            // There is one for each statement, so this ends.
            Err(error @ sqlx::Error::Database(_)) if Verdict::of_statement(&error).link < Link::Closed => {
                // A request to cancel may have hit our question and not the statement before it.
                let code = error.as_database_error().and_then(DatabaseError::code);
                rest.refused |= refuses(&error) && code.as_deref() != Some(CANCELLED);
                rest.failed = true;
            }
            other => return other.map(|()| rest),
        }
    }
}

/// Whether a transaction is open, or has failed.
pub(crate) async fn is_in_transaction(inner: &Arc<Inner>, live: &mut Live) -> Result<bool, sqlx::Error> {
    Ok(!matches!(ask(inner, live).await?, Some(Standing::Idle)))
}

/// Sends something that may be sent twice. A notification that comes in between fails it the first time.
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

#[cfg(test)]
mod tests {
    use db_testkit::{TestDb, until};

    use super::*;
    use crate::pool::{Shared, acquire};
    use crate::tracker::{Asker, CallSite};
    use crate::{Config, PoolOptions};

    #[db_testkit::test]
    async fn a_repair_that_takes_long_lets_the_next_caller_in_at_once(db: TestDb) {
        let config = Config::from_url(&db.url()).expect("an address");
        let options = PoolOptions { max: 1, ..PoolOptions::api() };
        // Without a keeper, who would let him in later.
        let inner = Arc::new(Inner::new(config, options));
        let alive = inner.ended.clone().drop_guard();
        let shared = Arc::new(Shared { inner, _alive: alive });
        let asker = Asker { at: CallSite::caller(), leak_after: Duration::MAX };
        let mut conn = acquire(Arc::clone(&shared), asker, None).await.expect("a connection");
        let (live, state) = conn.parts();
        // What is waited for and not cancelled.
        state.begin(Flight::Control);
        let sleep = live.raw.execute(sqlx::raw_sql("select pg_sleep(600)"));
        tokio::select! {
            _ = sleep => panic!("it sleeps for ten minutes"),
            _ = db.until_sessions("it sleeps", |all| all.iter().any(db_testkit::Session::is_running)) => {}
        }
        let next = tokio::spawn(acquire(Arc::clone(&shared), asker, None));
        until("the next one waits", async || shared.core().stats().waiting == 1).await;

        drop(conn);

        let next = next.await.expect("no panic").expect("another connection");
        let now = shared.core().stats();
        assert_eq!((now.repairing, now.totals.repair_failed), (1, 0), "while it is in repair: {now:?}");
        drop(next);
    }
}
