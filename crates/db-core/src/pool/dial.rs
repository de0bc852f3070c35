//! Dialling connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Executor, Row};
use tokio::time::timeout;

use super::NEVER;
use super::driver::{Driver, refuse};
use super::handoff::Refusal;
use super::live::Live;
use super::state::{AfterFailure, Dialling, Worker};
use crate::connect::{ConnectFailure, with_tls_fallback};
use crate::keepalive::with_keepalive;
use crate::pool_options::PoolOptions;
use crate::pooler::tracks_prepared_statements;
use crate::role::{Role, role_expression};
use crate::sql::HarmlessTexts;
use crate::status_query::QueryNumbers;
use crate::tracker::Session;
use crate::{Backoff, Config, Pooler, config};

/// One attempt ends after this time.
const LIMIT: Duration = Duration::from_secs(3);

/// The lower bound of the limit, even if callers wait for less: later callers use the connection as well.
const SHORTEST: Duration = Duration::from_millis(500);

/// The first pause between two attempts.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause between two attempts, without its jitter. Callers wait for it when the server is back. It may be short,
/// since only one dial of a pool retries.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// Dials one connection in a task of its own: if the caller gives up, the dial still completes, and a waiting caller may get another
/// connection that is returned earlier.
pub(super) fn spawn(driver: &Arc<Driver>, dialling: Dialling) {
    driver.runtime.spawn(Dial { driver: Arc::clone(driver), dialling: Some(dialling) }.run());
}

/// A connection that is being dialled.
struct Dial {
    driver: Arc<Driver>,
    /// `None` once the state took it back.
    dialling: Option<Dialling>,
}

impl Dial {
    async fn run(mut self) {
        let ended = self.driver.ended.clone();
        // The pauses grow until a dial succeeds, whatever the failures are.
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        loop {
            let started = Instant::now();
            // Shorter than a caller's wait, so that the caller's error contains the dial's failure.
            let limit = self
                .driver
                .config
                .connect_timeout()
                .unwrap_or(LIMIT)
                .min((self.driver.options.acquire_timeout / 4).saturating_mul(3).max(SHORTEST));
            let attempt = timeout(limit, open(&self.driver));
            let failure = tokio::select! {
                biased;
                () = ended.cancelled() => return,
                attempt = attempt => match attempt {
                    Ok(Ok((raw, session, role))) => return self.finish(raw, session, role, started),
                    Ok(Err(failure)) => failure,
                    Err(_) => ConnectFailure::TimedOut(started.elapsed()),
                },
            };
            if !self.retries_after(failure) {
                return;
            }
            tokio::select! {
                () = ended.cancelled() => return,
                () = tokio::time::sleep(backoff.pause()) => {}
            }
            let Some(dialling) = self.dialling.take() else { return };
            self.dialling = self.driver.core().state.pause_ended(dialling);
            if self.dialling.is_none() {
                return;
            }
        }
    }

    fn finish(mut self, raw: PgConnection, session: Session, role: Role, started: Instant) {
        let Some(dialling) = self.dialling.take() else { return };
        let driver = &self.driver;
        let now = Instant::now();
        let session = Arc::new(session);
        // Opened with the first connection, while the server has room for it.
        if let Some(canceller) = &driver.canceller {
            canceller.open();
        }
        driver.sessions.add(&session);
        let mut core = driver.core();
        let took = now - started;
        core.totals.dialled += 1;
        core.totals.dialling += took;
        let epochs = core.state.epochs();
        let live = Box::new(Live {
            raw,
            session,
            expires: now + shortened(driver.options.max_lifetime.min(NEVER)),
            last_used: now,
            last_seen: now,
            uses: 0,
            generation: epochs.generation,
            plans: epochs.plans,
            abandoned: 0,
            harmless_texts: HarmlessTexts::default(),
            numbers: QueryNumbers::new(),
            types: epochs.types,
            role,
            dialled_in: took,
        });
        let (placed, dials) = core.state.dialled(dialling, live, Worker::here(), now);
        drop(core);
        driver.put(placed, now);
        driver.dial(dials);
        driver.observers.report(|observer| observer.dialled(took));
    }

    /// Records a failure, and returns whether this dial tries again.
    fn retries_after(&mut self, failure: ConnectFailure) -> bool {
        tracing::warn!(pool = self.driver.options.name, to = %self.driver.config, %failure, "a dial failed");
        let Some(dialling) = self.dialling.take() else { return false };
        let now = Instant::now();
        let mut core = self.driver.core();
        core.totals.dial_failures += 1;
        core.last_failure = Some((failure.clone(), now));
        let next = core.state.dial_failed(dialling, failure.is_final(), now);
        drop(core);
        self.driver.observers.report(|observer| observer.dial_failed(&failure));
        match next {
            AfterFailure::Retry(dialling) => {
                self.dialling = Some(dialling);
                true
            }
            AfterFailure::Stop(waiters) => {
                refuse(waiters, &Refusal::Dial(failure));
                false
            }
        }
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        if let Some(dialling) = self.dialling.take() {
            self.driver.core().state.dial_dropped(dialling);
        }
        self.driver.progress.notify_waiters();
    }
}

/// Connects, and queries the session's process id and start (PostgreSQL's manual, table 28.36 "Additional Statistics Functions"; the
/// view built on this function takes a new session three times as long). The answer also proves that the server is up: a pooler
/// accepts logins while the server behind it is down.
async fn open(driver: &Driver) -> Result<(PgConnection, Session, Role), ConnectFailure> {
    let failed = |error| ConnectFailure::of(&error, &driver.config);
    let session = session_options(&driver.config, &driver.options)?;
    if driver.is_pooled() && driver.options.after_connect.is_some() {
        return Err(ConnectFailure::after_connect_through_pooler());
    }
    let mut raw = with_tls_fallback(&driver.config, session).await.map_err(failed)?;
    let (session, role) = match driver.config.pooler() {
        Pooler::None => identity(&mut raw).await.map_err(failed)?,
        Pooler::Transaction => {
            check_pooler(driver, &mut raw).await?;
            (Session::unknown(), Role::ask(&mut raw).await.map_err(failed)?)
        }
    };
    if let Some(after_connect) = &driver.options.after_connect {
        after_connect.run(&mut raw).await.map_err(|error| ConnectFailure::after_connect(&error))?;
    }
    Ok((raw, session, role))
}

pub(super) async fn identity(raw: &mut PgConnection) -> Result<(Session, Role), sqlx::Error> {
    let row = raw
        .fetch_one(sqlx::raw_sql(concat!(
            "select pid, backend_start::text, ",
            role_expression!(),
            " from pg_stat_get_activity(pg_backend_pid())"
        )))
        .await?;
    let session = Session::new(row.try_get(0)?, row.try_get(1)?);
    Ok((session, Role::of(row.try_get(2)?)))
}

/// Checks on the pool's first connection that the pooler tracks prepared statements.
async fn check_pooler(driver: &Driver, raw: &mut PgConnection) -> Result<(), ConnectFailure> {
    let failed = |error| ConnectFailure::of(&error, &driver.config);
    if driver.pooler_checked.get().is_some() {
        return Ok(());
    }
    if !tracks_prepared_statements(raw).await.map_err(failed)? {
        return Err(ConnectFailure::no_prepared_statements());
    }
    if driver.pooler_checked.set(()).is_ok() {
        let (pool, to) = (&driver.options.name, &driver.config);
        tracing::debug!(pool, %to, "the pooler tracks prepared statements");
    }
    Ok(())
}

/// The settings of each session of the pool. As startup options, they survive `DISCARD ALL` and cost no round trip. Our own ones
/// are in PostgreSQL's manual, chapter 20.11 "Client Connection Defaults".
fn session_options(config: &Config, options: &PoolOptions) -> Result<PgConnectOptions, ConnectFailure> {
    let mut session = config
        .clone()
        .with_application_name(&options.name)
        .as_sqlx()
        // Without a cache, the driver never closes its prepared statements.
        .statement_cache_capacity(options.statement_cache.max(1))
        // Our own log has the pool and the call site, so sqlx's is off.
        .disable_statement_logging();
    // Other clients share the sessions of a pooler.
    let is_shared = config.pooler() == Pooler::Transaction;
    if !is_shared {
        session = with_keepalive(session, options.keepalive).options([options.idle_in_transaction()]);
    }
    for (name, value) in options.session.iter() {
        if name.eq_ignore_ascii_case("application_name") {
            session = session.application_name(value);
        } else if let Some(reason) = config::why_reserved(name) {
            return Err(ConnectFailure::Refused(format!("PoolOptions::set(\"{name}\", …): {reason}")));
        } else if !is_shared {
            session = session.options([(name, value)]);
        }
    }
    Ok(session)
}

/// Shortens a lifetime by up to a tenth at random, so that connections opened together are not closed together.
fn shortened(lifetime: Duration) -> Duration {
    lifetime.mul_f64(1.0 - 0.1 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_opened_together_live_for_different_times_up_to_a_tenth_shorter() {
        let max = Duration::from_secs(1000);
        let mut lives: Vec<_> = (0..100).map(|_| shortened(max)).collect();
        lives.sort();

        assert!(lives[0] > max.mul_f64(0.9) && lives[99] <= max, "{lives:?}");
        assert!(lives[99] > lives[0] + max.mul_f64(0.05), "{lives:?}");
        lives.dedup();
        assert!(lives.len() > 90, "{lives:?}");
    }
}
