//! The pulse: it looks every 2 s whether the database answers, on a connection of its own, and notes what it found.
//!
//! Health is read from these notes, so a route about health costs nothing, and a pool whose connections are all in use says nothing about it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use db_core::{Class, Config, ConnectFailure, ConnectRetry, Pool, Pooler, connect};
use db_migrate::{Migrations, Summary};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::DatabaseHealth;
use crate::readiness::{Api, Beat, NotReady, Readiness};
#[cfg(feature = "redis")]
use crate::redis::Redis;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// Between two looks at the migrations, which change when a program is deployed.
const EVERY_MINUTE: Duration = Duration::from_mins(1);

/// For the answer.
const LIMIT: Duration = Duration::from_secs(1);

/// A beat: the server's clock.
const BEAT: &str = "select extract(epoch from pg_catalog.clock_timestamp())::float8";

/// Before the first beat of a session. As long as [`LIMIT`].
const NEW: &str = "set statement_timeout = 1000;";

/// For a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// For closing it.
const CLOSE: Duration = Duration::from_secs(1);

/// The task, which ends with this.
#[derive(Debug)]
pub(crate) struct Pulse {
    notes: Arc<Notes>,
    stop: DropGuard,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Notes {
    began: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    readiness: Readiness,
    database: DatabaseHealth,
    /// Seconds that the server's clock is ahead.
    clock_offset: Option<f64>,
    migrations: Option<Summary>,
}

impl Notes {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Starts it.
    pub(crate) fn start(heart: Heart) -> Self {
        let seen = Seen {
            readiness: Readiness::default(),
            database: DatabaseHealth::NotAsked,
            clock_offset: None,
            migrations: None,
        };
        let notes = Arc::new(Notes { began: Instant::now(), seen: Mutex::new(seen) });
        let stop = CancellationToken::new();
        let beats = Beats { heart, notes: Arc::clone(&notes) };
        let task = tokio::spawn(beats.run(stop.clone()));
        Self { notes, stop: stop.drop_guard(), task: Mutex::new(Some(task)) }
    }

    /// What the last look has found.
    pub(crate) fn database(&self) -> DatabaseHealth {
        self.notes.seen().database.clone()
    }

    /// Seconds that the server's clock is ahead, by the last answer.
    pub(crate) fn clock_offset(&self) -> Option<f64> {
        self.notes.seen().clock_offset
    }

    /// How the database stands against the migrations that it was opened with, by the last look.
    pub(crate) fn migrations(&self) -> Option<Summary> {
        self.notes.seen().migrations
    }

    /// Why the service is not ready, by what was found.
    pub(crate) fn not_ready(&self) -> Option<NotReady> {
        self.notes.seen().readiness.not_ready(self.notes.began.elapsed())
    }

    /// Ends the task and its connection.
    pub(crate) async fn stop(&self) {
        self.stop.token().cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::warn!(%error, "the pulse has ended before its time");
        }
    }
}

/// What the task looks at.
pub(crate) struct Heart {
    /// For its own connection.
    pub(crate) config: Config,
    pub(crate) api: Pool,
    pub(crate) others: Vec<Pool>,
    pub(crate) migrations: Option<Migrations>,
    /// It makes no connection before somebody else has.
    pub(crate) waits_for_use: bool,
    #[cfg(feature = "redis")]
    pub(crate) redis: Option<Redis>,
}

/// The task.
struct Beats {
    heart: Heart,
    notes: Arc<Notes>,
}

impl Beats {
    async fn run(self, stop: CancellationToken) {
        let mut connection = None;
        let beats = async {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // Of the last look at the migrations.
            let mut looked: Option<Instant> = None;
            loop {
                ticks.tick().await;
                self.beat(&mut connection).await;
                if looked.is_none_or(|at| at.elapsed() >= EVERY_MINUTE) && connection.is_some() {
                    self.look_at_migrations(&mut connection).await;
                    looked = Some(Instant::now());
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = beats => {}
            // By itself, so that one that is slow does not hold up the other.
            () = self.look_at_redis() => {}
        }
        if let Some(connection) = connection {
            close(connection).await;
        }
    }

    /// Never ends.
    async fn look_at_redis(&self) {
        #[cfg(feature = "redis")]
        if let Some(redis) = &self.heart.redis {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if !self.heart.waits_for_use || redis.was_used() {
                    redis.look().await;
                }
            }
        }
        std::future::pending::<()>().await;
    }

    /// On the connection of the beats, which has just answered.
    async fn look_at_migrations(&self, connection: &mut Option<PgConnection>) {
        let Some(migrations) = &self.heart.migrations else { return };
        let Some(mut open) = connection.take() else { return };
        let found = timeout(LIMIT, migrations.summary(&mut open)).await;
        match found {
            Ok(Ok(summary)) => {
                self.notes.seen().migrations = Some(summary);
                *connection = Some(open);
            }
            Ok(Err(error)) => {
                tracing::info!(%error, "the state of the migrations could not be read");
                self.notes.seen().migrations = None;
                if is_answer(&error) {
                    *connection = Some(open);
                }
            }
            // Its answer may still come, so the connection is not used again.
            Err(_) => {
                tracing::info!("the state of the migrations could not be read within {LIMIT:?}");
                self.notes.seen().migrations = None;
            }
        }
    }

    async fn beat(&self, connection: &mut Option<PgConnection>) {
        let pools = || self.heart.others.iter().chain([&self.heart.api]);
        let is_used = || pools().any(|pool| pool.stats().totals.dialled > 0);
        let began = Instant::now();
        let asked = if self.heart.waits_for_use && !is_used() {
            None
        } else {
            Some(ask(&self.heart.config, connection).await)
        };
        let offset = asked.as_ref().and_then(|asked| asked.as_ref().ok()).copied();
        let found = match asked {
            None => DatabaseHealth::NotAsked,
            Some(Ok(_)) => DatabaseHealth::Answers { within: began.elapsed() },
            // The server is there, and has more sessions than it may.
            Some(Err(db_core::Error::Connect(error)))
                if matches!(error.failure(), ConnectFailure::NoRoom(_)) =>
            {
                DatabaseHealth::Answers { within: began.elapsed() }
            }
            Some(Err(error)) => DatabaseHealth::Fails { reason: error.to_string() },
        };
        let api = self.heart.api.stats();
        let beat = Beat {
            at: self.notes.began.elapsed(),
            answered: !matches!(found, DatabaseHealth::Fails { .. }),
            returned: pools().map(|pool| pool.stats().totals.returned).sum(),
            api: Api {
                is_full: api.idle == 0 && api.open >= api.max,
                waiting: api.waiting,
                turned_away: api.totals.shed + api.totals.timed_out,
                handed_out: api.totals.acquired,
            },
        };
        let mut seen = self.notes.seen();
        let before = seen.readiness.not_ready(beat.at);
        seen.readiness.beat(beat);
        let now = seen.readiness.not_ready(beat.at);
        match (&found, now) {
            (DatabaseHealth::Fails { reason }, Some(why)) if before != now => {
                tracing::warn!(%why, reason, "not ready");
            }
            (_, Some(why)) if before != now => tracing::warn!(%why, "not ready"),
            (DatabaseHealth::Fails { reason }, _) => {
                tracing::info!(reason, "the database did not answer a look");
            }
            (_, None) if before.is_some() => tracing::info!("ready again"),
            _ => {}
        }
        seen.database = found;
        seen.clock_offset = offset.or(seen.clock_offset);
    }
}

/// Whether the server has answered, so that the connection is in step.
fn is_answer(error: &db_migrate::Error) -> bool {
    matches!(error, db_migrate::Error::Database { cause, .. } if !matches!(cause.class(), Class::Lost | Class::NotReached))
}

/// Asks on this connection, or on a new one, by how many seconds the server's clock is ahead. A connection that has not answered is closed:
/// its answer may still come.
#[expect(clippy::disallowed_methods, reason = "the clocks of two machines are compared")]
async fn ask(config: &Config, connection: &mut Option<PgConnection>) -> Result<f64, db_core::Error> {
    let is_new = connection.is_none();
    let mut open = match connection.take() {
        Some(open) => open,
        None => {
            connect::connect(config, ConnectRetry::default().deadline(Duration::ZERO).attempt(CONNECT))
                .await?
        }
    };
    // The simple protocol, which each pooler knows. A new session also gets a limit, for the looks at the migrations: when this side gives up, the
    // server does, too. Behind a pooler it would be another client's.
    let prepare = if is_new && config.pooler() == Pooler::None { NEW } else { "" };
    let sql = format!("{prepare} {BEAT}");
    let (began, here) = (Instant::now(), SystemTime::now());
    let asked = timeout(LIMIT, open.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    let late = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    let rows = asked.unwrap_or_else(|_| Err(late()))?;
    let took = began.elapsed();
    let there: f64 = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    *connection = Some(open);
    Ok(ahead(there, here, took))
}

/// Seconds that a clock is ahead which said `there` while an answer took `took` from `here` on: half of that was the way there.
fn ahead(there: f64, here: SystemTime, took: Duration) -> f64 {
    let here = here.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + took / 2;
    there - here.as_secs_f64()
}

async fn close(connection: PgConnection) {
    if !matches!(timeout(CLOSE, connection.close()).await, Ok(Ok(()))) {
        tracing::debug!("the connection of the pulse was lost before it was closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_in_the_middle_of_the_way() {
        let here = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for (there, seconds) in [(1000.25, 0.0), (1003.25, 3.0), (990.25, -10.0)] {
            assert_eq!(ahead(there, here, Duration::from_millis(500)).to_bits(), f64::to_bits(seconds));
        }
    }
}
