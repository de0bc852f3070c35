//! Making connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Executor, Row};
use tokio::time::timeout;

use super::NEVER;
use super::core::{Inner, Live, Refusal};
use super::options::PoolOptions;
use crate::connect::{ConnectFailure, each_way};
use crate::keepalive::with_keepalive;
use crate::pooler::follows_statements;
use crate::question::Numbers;
use crate::role::{Role, question};
use crate::sql::Known;
use crate::tracker::Session;
use crate::{Config, Pooler};

/// One attempt ends after this time.
const LIMIT: Duration = Duration::from_secs(3);

/// However short callers wait: a dial serves those who come after them.
const SHORTEST: Duration = Duration::from_millis(500);

/// The longest pause between two attempts, which chance may double. Only one dial of a pool goes on trying, so this need not
/// be long; it is what callers wait for when the server is back.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// How long a pool rests after the server has refused a session for good, before it dials again for nobody: it doubles with each
/// refusal, up to 32 times as long. A caller is never kept from dialling.
const REST: Duration = Duration::from_secs(1);

/// Makes one connection, in a task of its own: a caller who goes away does not waste it, and one who waits may get
/// another that comes back earlier. The caller of this function has counted it already.
pub(super) fn spawn(inner: &Arc<Inner>) {
    inner.runtime.spawn(Dial { inner: Arc::clone(inner), counted: true }.run());
}

/// A connection that is being made. Counted until it is there, or until nobody tries any more.
struct Dial {
    inner: Arc<Inner>,
    counted: bool,
}

impl Dial {
    async fn run(mut self) {
        let ended = self.inner.ended.clone();
        // They grow until there is a connection, whatever the failures are.
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(10))
            .with_max_delay(MAX_PAUSE)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let started = Instant::now();
            // Shorter than what a caller waits, who is then told what the dial met.
            let limit = self
                .inner
                .config
                .connect_timeout()
                .unwrap_or(LIMIT)
                .min((self.inner.options.acquire_timeout / 4).saturating_mul(3).max(SHORTEST));
            let attempt = timeout(limit, open(&self.inner));
            let failure = tokio::select! {
                biased;
                () = ended.cancelled() => return,
                attempt = attempt => match attempt {
                    Ok(Ok((raw, session, role))) => return self.arrived(raw, session, role, started),
                    Ok(Err(failure)) => failure,
                    Err(_) => ConnectFailure::TimedOut(started.elapsed()),
                },
            };
            if !self.goes_on_after(failure) {
                return;
            }
            tokio::select! {
                () = ended.cancelled() => return,
                () = tokio::time::sleep(pauses.next().unwrap_or(MAX_PAUSE)) => {}
            }
            // In one step: who joins the queue now either sees this dial counted, and it goes on, or makes one.
            let mut core = self.inner.core();
            if !core.dial_is_wanted() {
                core.dialling -= 1;
                self.counted = false;
                return;
            }
        }
    }

    fn arrived(mut self, raw: PgConnection, session: Session, role: Role, started: Instant) {
        let inner = Arc::clone(&self.inner);
        let now = Instant::now();
        let session = Arc::new(session);
        // Now, while there is room for it at the server.
        if let Some(canceller) = &inner.canceller {
            canceller.open();
        }
        let mut core = inner.core();
        core.totals.dialled += 1;
        core.totals.dialling += now - started;
        core.down = false;
        core.refused = 0;
        core.rests_until = None;
        core.sessions.retain(|session| session.strong_count() > 0);
        core.sessions.push(Arc::downgrade(&session));
        let live = Box::new(Live {
            raw,
            session,
            expires: now + shortened(inner.options.max_lifetime.min(NEVER)),
            last_used: now,
            last_seen: now,
            uses: 0,
            generation: core.generation,
            plans: core.plans,
            cut_off: 0,
            known: Known::default(),
            numbers: Numbers::new(),
            types: core.types,
            role,
        });
        core.dialling -= 1;
        self.counted = false;
        inner.place(core, live, now);
        // The server is there again: now the others may dial, too.
        inner.dial_if_wanted();
    }

    /// Notes a failure, and says whether this dial is to go on trying: one does, for all.
    fn goes_on_after(&mut self, failure: ConnectFailure) -> bool {
        tracing::warn!(pool = self.inner.options.name, to = %self.inner.config, %failure, "no connection");
        let mut core = self.inner.core();
        core.totals.dial_failures += 1;
        core.last_failure = Some((failure.clone(), Instant::now()));
        core.down = true;
        let is_final = failure.is_final();
        if is_final {
            let rest = REST.saturating_mul(1 << core.refused.min(5));
            core.refused = core.refused.saturating_add(1);
            core.rests_until = Some(Instant::now() + rest);
        }
        let goes_on = !is_final && core.dialling == 1 && core.dial_is_wanted();
        if !goes_on {
            core.dialling -= 1;
            self.counted = false;
        }
        // With connections out that may still come back, the queue has something to wait for.
        let refuse = is_final && core.in_use + core.repairing == 0;
        drop(core);
        if refuse {
            self.inner.refuse_all(&Refusal::Dial(failure));
        }
        goes_on
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        if self.counted {
            self.inner.core().dialling -= 1;
        }
        self.inner.gone.notify_waiters();
    }
}

/// Connects, and asks who is at the other end (PostgreSQL's manual, table 28.36 "Additional Statistics Functions"; the view
/// that is built on this function takes a new session three times as long). That is a sign of life, too: a proxy accepts
/// logins while the server behind it is down.
async fn open(inner: &Inner) -> Result<(PgConnection, Session, Role), ConnectFailure> {
    let failed = |error| ConnectFailure::of(&error, &inner.config);
    let session = session_options(&inner.config, &inner.options);
    let mut raw = each_way(&inner.config, session).await.map_err(failed)?;
    let (session, role) = match inner.config.pooler() {
        Pooler::None => identity(&mut raw).await.map_err(failed)?,
        Pooler::Transaction => {
            look_through(inner, &mut raw).await?;
            (Session::unknown(), Role::ask(&mut raw).await.map_err(failed)?)
        }
    };
    Ok((raw, session, role))
}

pub(super) async fn identity(raw: &mut PgConnection) -> Result<(Session, Role), sqlx::Error> {
    let row = raw
        .fetch_one(sqlx::raw_sql(concat!(
            "select pid, backend_start::text, ",
            question!(),
            " from pg_stat_get_activity(pg_backend_pid())"
        )))
        .await?;
    let session = Session::new(row.try_get(0)?, row.try_get(1)?);
    Ok((session, Role::of(row.try_get(2)?)))
}

/// Asks by the pool's first connection whether the pooler can do what is needed of it.
async fn look_through(inner: &Inner, raw: &mut PgConnection) -> Result<(), ConnectFailure> {
    let failed = |error| ConnectFailure::of(&error, &inner.config);
    if inner.pooler_follows.get().is_some() {
        return Ok(());
    }
    if !follows_statements(raw).await.map_err(failed)? {
        return Err(ConnectFailure::does_not_follow());
    }
    if inner.pooler_follows.set(()).is_ok() {
        let (pool, to) = (&inner.options.name, &inner.config);
        tracing::debug!(pool, %to, "the pooler in between follows prepared statements");
    }
    Ok(())
}

/// What each session of the pool is told when it begins. As a startup option it survives `DISCARD ALL`, and costs no
/// round trip. The setting is one of PostgreSQL's manual, chapter 20.11 "Client Connection Defaults".
fn session_options(config: &Config, options: &PoolOptions) -> PgConnectOptions {
    // Our own log knows the pool and the line.
    let session = config.clone().with_application_name(&options.name).as_sqlx().disable_statement_logging();
    if config.pooler() == Pooler::Transaction {
        // Its sessions are everybody's.
        return session;
    }
    with_keepalive(session, options.keepalive).options([options.idle_in_transaction()])
}

/// Up to a tenth shorter: connections that were opened together are not closed together.
fn shortened(lifetime: Duration) -> Duration {
    lifetime.mul_f64(1.0 - 0.1 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_opened_together_live_for_different_times_up_to_a_tenth_shorter() {
        let most = Duration::from_secs(1000);
        let mut lives: Vec<_> = (0..100).map(|_| shortened(most)).collect();
        lives.sort();

        assert!(lives[0] > most.mul_f64(0.9) && lives[99] <= most, "{lives:?}");
        assert!(lives[99] > lives[0] + most.mul_f64(0.05), "{lives:?}");
        lives.dedup();
        assert!(lives.len() > 90, "{lives:?}");
    }
}
