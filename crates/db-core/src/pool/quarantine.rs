//! A connection out of use, and the task that repairs, pings or closes it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Connection;
use tokio::time::timeout;

use super::PING_LIMIT;
use super::driver::Driver;
use super::live::Live;
use super::repair::{Repaired, reset};
use super::state::{Quarantined, Worker};
use crate::hooks::PendingHooks;
use crate::observer;
use crate::redact::redacted;
use crate::role::Role;
use crate::statement::State;
use crate::stats::CloseReason;
use crate::tracker::Session;

/// The limit for a repair. After it, the connection is closed.
const REPAIR_LIMIT: Duration = Duration::from_secs(2);

/// The limit for closing a connection.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// After this time, another connection may be dialled in place of the one in repair. Before it, waiting is cheaper than dialling.
const SLOW_AFTER: Duration = Duration::from_millis(10);

/// A connection out of use. It counts until this value is dropped or the state takes it back.
pub(super) struct Quarantine {
    driver: Arc<Driver>,
    /// `None` once the link is closed, and for a bare session.
    live: Option<Box<Live>>,
    /// `None` once the state took it back.
    quarantined: Option<Quarantined>,
    /// What is counted when the connection is gone. `None` for a bare session, which was counted when its link was lost.
    why: Option<CloseReason>,
}

impl Quarantine {
    /// `why`: the reason if it is closed, unless its link is lost.
    pub(super) fn new(
        driver: &Arc<Driver>,
        live: Box<Live>,
        quarantined: Quarantined,
        why: CloseReason,
    ) -> Self {
        let (driver, live, quarantined) = (Arc::clone(driver), Some(live), Some(quarantined));
        Self { driver, live, quarantined, why: Some(why) }
    }

    /// A session at the server whose connection is gone.
    pub(super) fn of_session(driver: &Arc<Driver>, quarantined: Quarantined) -> Self {
        Self { driver: Arc::clone(driver), live: None, quarantined: Some(quarantined), why: None }
    }

    /// Ends the session at the server, then drops `hooks`.
    pub(super) async fn end(self, session: Arc<Session>, hooks: PendingHooks) {
        terminate(&self.driver, &session).await;
        drop(hooks);
    }

    /// Closes the connection, within a limit, since the peer may be dead.
    pub(super) async fn close(mut self) {
        let Some(live) = self.live.take() else { return };
        let pool = &self.driver.options.name;
        match timeout(CLOSE_LIMIT, live.raw.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(pool, error = redacted(&error), "closing a connection failed"),
            Err(_) => tracing::debug!(pool, "closing a connection took longer than {CLOSE_LIMIT:?}"),
        }
    }

    /// Pings the connection, and readmits it if the server answers.
    pub(super) async fn verify(mut self) {
        let epochs = self.driver.core().state.epochs();
        let Some(live) = &mut self.live else { return };
        let answer = timeout(PING_LIMIT, async {
            if live.generation < epochs.roles {
                return Role::ask(&mut live.raw).await;
            }
            live.raw.ping().await.map(|()| live.role)
        });
        match answer.await {
            Ok(Ok(Role::Withdrawn)) if live.role == Role::Writes => self.close().await,
            Ok(Ok(role)) => {
                live.role = role;
                live.generation = epochs.generation;
                live.last_seen = Instant::now();
                self.readmit();
            }
            _ => self.lose(),
        }
    }

    /// Brings the connection back to a known state and readmits it, or closes it.
    pub(super) async fn repair(mut self, mut state: State) {
        let Some(mut live) = self.live.take() else { return };
        let driver = Arc::clone(&self.driver);
        let began = Instant::now();
        let repaired = {
            let mut repairing = pin!(timeout(REPAIR_LIMIT, reset(&driver, &mut live, &mut state)));
            tokio::select! {
                biased;
                repaired = &mut repairing => repaired,
                () = tokio::time::sleep(SLOW_AFTER) => {
                    self.mark_slow();
                    repairing.await
                }
            }
        };
        let (pool, session) = (&driver.options.name, Arc::clone(&live.session));
        let is_good = matches!(repaired, Ok(Ok(Repaired::Good)));
        let now = Instant::now();
        if is_good {
            live.last_seen = now;
            driver.core().totals.repaired += 1;
        } else {
            driver.core().totals.repair_failed += 1;
        }
        self.live = Some(live);
        match repaired {
            Ok(Ok(Repaired::Good)) => self.readmit(),
            Ok(Ok(Repaired::Useless(why))) => {
                self.why = Some(why);
                self.close().await;
            }
            Ok(Ok(Repaired::Doubtful)) => {
                // The session ends first: without a client, it would run on until it checks its link.
                terminate(&driver, &session).await;
                self.close().await;
            }
            Ok(Err(error)) => {
                let error = redacted(&error);
                tracing::debug!(pool, pid = session.pid, error, "a connection broke in repair");
                self.lose();
            }
            Err(_) => {
                tracing::warn!(
                    pool,
                    pid = session.pid,
                    "a connection could not be repaired within {REPAIR_LIMIT:?} and is closed"
                );
                // The session would run on at the server for as long as the link is silent.
                terminate(&driver, &session).await;
                self.lose();
            }
        }
        let ended = observer::Repaired { took: now.saturating_duration_since(began), is_good };
        driver.observers.report(|observer| observer.repaired(&ended));
    }

    fn mark_slow(&mut self) {
        let Some(quarantined) = &mut self.quarantined else { return };
        let dials = self.driver.core().state.mark_slow(quarantined, Instant::now());
        self.driver.dial(dials);
    }

    fn readmit(mut self) {
        let Some(live) = self.live.take() else { return };
        let Some(quarantined) = self.quarantined.take() else { return };
        let now = Instant::now();
        let wear = self.driver.wear(&live, now);
        let readmitted = self.driver.core().state.readmit(quarantined, live, wear, Worker::here(), now);
        let (placed, dials) = readmitted;
        self.driver.put(placed, now);
        self.driver.dial(dials);
    }

    /// The link is lost.
    fn lose(mut self) {
        let Some(live) = self.live.take() else { return };
        let generation = live.generation;
        drop(live);
        let Some(quarantined) = self.quarantined.take() else { return };
        let mut core = self.driver.core();
        core.totals.closed.count(CloseReason::Lost);
        let loss = core.state.lose_quarantined(quarantined, generation, Instant::now());
        drop(core);
        self.driver.react(loss);
        self.driver.observers.report(|observer| observer.closed(CloseReason::Lost));
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        // The link goes before its slot is freed.
        self.live = None;
        if let Some(quarantined) = self.quarantined.take() {
            let mut core = self.driver.core();
            if let Some(why) = self.why {
                core.totals.closed.count(why);
            }
            let dials = core.state.released(quarantined, Instant::now());
            drop(core);
            self.driver.dial(dials);
            if let Some(why) = self.why {
                self.driver.observers.report(|observer| observer.closed(why));
            }
        }
        self.driver.progress.notify_waiters();
    }
}

/// Ends a session through the canceller.
async fn terminate(driver: &Driver, session: &Arc<Session>) {
    let Some(canceller) = &driver.canceller else { return };
    if !canceller.terminate(session).await {
        let (pool, pid) = (&driver.options.name, session.pid);
        tracing::debug!(pool, pid, "a session could not be ended and may run on");
    }
}

#[cfg(test)]
mod tests {
    use db_testkit::{TestDb, until};
    use sqlx::Executor;

    use super::*;
    use crate::call_site::CallSite;
    use crate::pool::{Shared, acquire};
    use crate::statement::InFlight;
    use crate::tracker::Caller;
    use crate::{Config, PoolOptions};

    #[db_testkit::test(leaves = "pg_sleep")]
    async fn a_slow_repair_frees_its_slot_for_the_next_caller(db: TestDb) {
        let config = Config::from_url(&db.url()).expect("an address");
        let options = PoolOptions::api().max(1);
        // There is no keeper, which would dial for the caller later.
        let driver = Arc::new(Driver::new(config, options));
        let alive = driver.ended.clone().drop_guard();
        let shared = Arc::new(Shared { driver, _alive: alive });
        let caller = Caller::new(CallSite::caller(), &shared.options);
        let mut conn = acquire(Arc::clone(&shared), caller, None).await.expect("a connection");
        let (live, state) = conn.parts();
        // Transaction control is waited for and never cancelled.
        state.begin(InFlight::Control);
        let sleep = live.raw.execute(sqlx::raw_sql("select pg_sleep(600)"));
        tokio::select! {
            _ = sleep => panic!("the statement sleeps for ten minutes"),
            _ = db.until_sessions("the statement sleeps", |all| all.iter().any(db_testkit::Session::is_sleeping)) => {}
        }
        let next = tokio::spawn(acquire(Arc::clone(&shared), caller, None));
        until("the next caller waits", async || shared.core().stats().waiting == 1).await;

        drop(conn);

        let next = next.await.expect("no panic").expect("another connection");
        let now = shared.core().stats();
        assert_eq!(
            (now.repairing, now.totals.repair_failed),
            (1, 0),
            "while the connection is in repair: {now:?}"
        );
        drop(next);
    }
}
