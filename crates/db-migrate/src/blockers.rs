//! Who keeps a migration waiting, seen from another connection.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use db_core::{Config, ConnectRetry};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::time::sleep;

use crate::session::{answer, open};

/// The longest pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// The characters of a statement that are shown.
const SHOWN: i32 = 200;

/// A session, or a prepared transaction, that holds a lock that a migration waits for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Blocker {
    /// The server process. 0 for a prepared transaction, which has none.
    pub pid: i32,
    /// What the session calls itself. Empty if it has no name, or the migrating role may not see it.
    pub application: String,
    /// The age of its transaction, if the migrating role may see it: `pg_read_all_stats` is needed for other roles' sessions.
    pub since: Option<Duration>,
    /// The first words of its statement, on request ([`Migrations::with_blocking_statements`](crate::Migrations::with_blocking_statements)).
    pub statement: Option<String>,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str("a prepared transaction")?,
            pid => write!(f, "process {pid}")?,
        }
        if !self.application.is_empty() {
            write!(f, " ({})", self.application)?;
        }
        if let Some(since) = self.since {
            write!(f, ", in a transaction for {:.0} s", since.as_secs_f64())?;
        }
        self.statement.as_ref().map_or(Ok(()), |statement| write!(f, ", with `{statement}`"))
    }
}

/// The blockers in one line; nothing if there are none.
pub(crate) fn listed(blockers: &[Blocker]) -> String {
    blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Looks from a connection of its own, which it opens when a migration takes long.
pub(crate) struct Observer {
    config: Config,
    /// The migrating session.
    pid: i32,
    shows_statements: bool,
    pause: Duration,
    connection: Option<PgConnection>,
    cannot_look: bool,
    /// Those seen last.
    blockers: Vec<Blocker>,
    /// The phase seen last of an index that is built concurrently.
    phase: String,
}

/// Process, application, seconds in a transaction, statement.
type Found = (i32, String, Option<f64>, Option<String>);

impl Observer {
    /// `shortest`: the shortest wait in which a blocker is to be seen.
    pub(crate) fn new(config: &Config, pid: i32, shows_statements: bool, shortest: Duration) -> Self {
        Self {
            config: config.clone(),
            pid,
            shows_statements,
            pause: PAUSE.min(shortest / 4).max(Duration::from_millis(10)),
            connection: None,
            cannot_look: false,
            blockers: Vec::new(),
            phase: String::new(),
        }
    }

    /// Looks while the work goes on. Returns what it gave, those who were seen last, and the observer.
    pub(crate) async fn beside<T>(
        mut self,
        version: i64,
        work: impl Future<Output = T>,
    ) -> (T, Vec<Blocker>, Self) {
        let done = tokio::select! {
            done = work => done,
            never = self.watch(version) => match never {},
        };
        let blockers = std::mem::take(&mut self.blockers);
        (done, blockers, self)
    }

    /// Looks until it is dropped, and tells of other blockers than before. The migration goes on when it cannot look.
    async fn watch(&mut self, version: i64) -> Infallible {
        loop {
            sleep(self.pause).await;
            match self.look(version).await {
                Ok(blockers) if blockers.is_empty() => {}
                Ok(blockers) => {
                    let pids = |all: &[Blocker]| all.iter().map(|it| it.pid).collect::<Vec<_>>();
                    if pids(&blockers) != pids(&self.blockers) {
                        tracing::warn!(version, blockers = listed(&blockers), "a migration waits for a lock");
                    }
                    self.blockers = blockers;
                }
                Err(error) if !std::mem::replace(&mut self.cannot_look, true) => {
                    tracing::warn!(version, %error, "cannot see what a migration waits for; it goes on");
                }
                Err(_) => {}
            }
        }
    }

    async fn look(&mut self, version: i64) -> Result<Vec<Blocker>, db_core::Error> {
        // Not there while it is in use: after a dropped look, it may be within an answer.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => open(&self.config, once()).await?,
        };
        let found = answer(
            sqlx::query_as(
                "select pid, coalesce(application_name, '') as application,
                   extract(epoch from clock_timestamp() - xact_start)::float8 as seconds,
                   case when $2 then left(query, $3) end as statement
                 from (select distinct unnest(pg_blocking_pids($1)) as pid) as blocking
                 left join pg_stat_activity using (pid)
                 order by pid",
            )
            .bind(self.pid)
            .bind(self.shows_statements)
            .bind(SHOWN)
            .fetch_all(&mut connection),
        );
        let found: Vec<Found> = found.await?;
        let phase = answer(
            sqlx::query_scalar(
                "select concat_ws(', ', phase,
                   case when lockers_total > 0 then format('%s of %s transactions have ended', lockers_done, lockers_total) end,
                   case when blocks_total > 0 then format('%s of %s blocks', blocks_done, blocks_total) end,
                   case when tuples_total > 0 then format('%s of %s rows', tuples_done, tuples_total) end)
                 from pg_stat_progress_create_index where pid = $1",
            )
            .bind(self.pid)
            .fetch_optional(&mut connection),
        );
        let phase: Option<String> = phase.await?;
        self.connection = Some(connection);
        if let Some(phase) = phase.filter(|phase| *phase != self.phase) {
            tracing::info!(version, phase, "an index is built");
            self.phase = phase;
        }
        let blockers = found.into_iter().map(|(pid, application, seconds, statement)| {
            let since = seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
            Blocker { pid, application, since, statement }
        });
        Ok(blockers.collect())
    }

    pub(crate) async fn close(self) {
        if let Some(connection) = self.connection
            && let Err(error) = answer(connection.close()).await
        {
            tracing::debug!(%error, "the observing connection was lost before it was closed");
        }
    }
}

/// One attempt: the next look is another one.
fn once() -> ConnectRetry {
    ConnectRetry::default().deadline(Duration::ZERO)
}
