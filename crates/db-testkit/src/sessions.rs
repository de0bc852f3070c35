//! The server's view of a database's sessions.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::time::Instant;

use crate::db::TestDb;
use crate::error::Error;
use crate::server::APPLICATION_NAME;
use crate::until::{PATIENCE, PAUSE};

/// A client's session in a test's database, from `pg_stat_activity`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Session {
    /// The process id of its backend.
    pub pid: i32,
    /// `active`, `idle`, `idle in transaction`, `idle in transaction (aborted)` and others.
    pub state: String,
    /// The name that its client gave; may be empty.
    pub application_name: String,
    /// The statement that runs or ran last; may be empty, and is truncated to `track_activity_query_size`.
    pub query: String,
    /// How long its transaction has been open, if there is one. A single statement counts as a transaction while it runs. The
    /// server does not report it for an aborted transaction.
    pub transaction_age: Option<Duration>,
    /// What the session waits for, such as `Lock: transactionid` or, while idle, `Client: ClientRead`.
    pub wait: Option<String>,
}

impl Session {
    /// Whether a transaction is open: idle, aborted, or running a statement.
    #[must_use]
    pub fn is_in_transaction(&self) -> bool {
        self.transaction_age.is_some() || self.state.starts_with("idle in transaction")
    }

    /// Whether its statement waits in `pg_sleep`.
    #[must_use]
    pub fn is_sleeping(&self) -> bool {
        self.wait.as_deref() == Some("Timeout: PgSleep")
    }

    /// Whether the session runs or prepares a statement. To see that a statement has begun, wait for its wait event, as
    /// [`is_sleeping`](Self::is_sleeping) does.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state.as_str(), "active" | "fastpath function call")
    }
}

impl Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} {:?}, {}", self.pid, self.application_name, self.state)?;
        if let Some(age) = self.transaction_age {
            write!(f, ", in a transaction for {age:.1?}")?;
        }
        if let Some(wait) = &self.wait {
            write!(f, ", waits for {wait}")?;
        }
        write!(f, ": {}", self.query)
    }
}

/// A lock that a session in a test's database holds or waits for, from `pg_locks`. Locks on virtual and real transaction ids
/// are left out, since each transaction holds them on itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lock {
    /// The process id of its session's backend.
    pub pid: i32,
    /// `relation`, `advisory`, `tuple`, `object` and others.
    pub kind: String,
    /// `AccessShareLock`, `ExclusiveLock` and others.
    pub mode: String,
    /// The name of the relation, or the key of an advisory lock: one number or two, as it was taken.
    pub what: String,
    /// Whether the session holds the lock; otherwise it waits for it.
    pub granted: bool,
}

impl Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = if self.granted { "holds" } else { "waits for" };
        write!(f, "session {} {does} {} on the {} {}", self.pid, self.mode, self.kind, self.what)
    }
}

/// The server's view of a test. Sessions of the kit are left out: its observers, and those of [`TestDb::pool`], with which the
/// test inspects the database. Sessions that shall be seen must connect by [`TestDb::options`], [`TestDb::url`] or a
/// [`Proxy`](crate::Proxy). The look at the end of a [test](macro@crate::test) sees the sessions of the pool, too.
///
/// The server sees changes with a delay: the session of a client that has gone exists a moment longer. So tests wait for the
/// expected state, with the methods whose names begin with `until`.
impl TestDb {
    /// The sessions of clients in this database, in order of their start.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] and [`Error::Statement`].
    pub async fn sessions(&self) -> Result<Vec<Session>, Error> {
        let mut observer = Observer::connect(self).await?;
        let sessions = observer.sessions().await?;
        observer.close().await;
        Ok(sessions)
    }

    /// The [`sessions`](TestDb::sessions) with an open transaction: idle in it, or running a statement.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] and [`Error::Statement`].
    pub async fn open_transactions(&self) -> Result<Vec<Session>, Error> {
        let mut sessions = self.sessions().await?;
        sessions.retain(Session::is_in_transaction);
        Ok(sessions)
    }

    /// The locks that those sessions hold or wait for, including advisory ones.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] and [`Error::Statement`].
    pub async fn locks(&self) -> Result<Vec<Lock>, Error> {
        let mut observer = Observer::connect(self).await?;
        let locks = observer.locks(false).await?;
        observer.close().await;
        Ok(locks)
    }

    /// Waits until `hold` returns true for the [`sessions`](TestDb::sessions), and returns them.
    ///
    /// ```
    /// # fn main() -> Result<(), sqlx::Error> { db_testkit::run(async |db| {
    /// use sqlx::ConnectOptions;
    ///
    /// let mut connection = db.options().application_name("the test's").connect().await?;
    /// let sleep = sqlx::query("select pg_sleep(60)").execute(&mut connection);
    /// let sleeps = db.until_sessions("the statement runs", |all| all.iter().any(|it| it.is_running()));
    /// tokio::select! {
    ///     _ = sleep => unreachable!("it takes a minute"),
    ///     sessions = sleeps => assert_eq!(sessions[0].application_name, "the test's"),
    /// }
    /// # Ok(())
    /// # }) }
    /// ```
    ///
    /// Cancel-safe.
    ///
    /// # Panics
    ///
    /// After 20 s, with a list of the sessions; and if the server does not answer.
    pub async fn until_sessions(&self, what: &str, mut hold: impl FnMut(&[Session]) -> bool) -> Vec<Session> {
        self.watch(what, async |observer| {
            let sessions = observer.sessions().await?;
            Ok(if hold(&sessions) { Ok(sessions) } else { Err(list(&sessions, &[])) })
        })
        .await
    }

    /// Waits until no session has a transaction open, runs a statement, or holds or awaits a lock. Sessions may stay connected.
    ///
    /// Cancel-safe.
    ///
    /// # Panics
    ///
    /// After 20 s, with a list of what is left; and if the server does not answer.
    pub async fn until_quiet(&self) {
        self.watch("no transaction, no statement and no lock", async |observer| {
            let (sessions, locks) = (observer.sessions().await?, observer.locks(false).await?);
            let is_quiet =
                locks.is_empty() && !sessions.iter().any(|it| it.is_in_transaction() || it.is_running());
            Ok(if is_quiet { Ok(()) } else { Err(list(&sessions, &locks)) })
        })
        .await;
    }

    /// Calls `look` until it returns a value; panics with what it saw last.
    async fn watch<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut(&mut Observer) -> Result<Result<T, String>, Error>,
    ) -> T {
        let begun = Instant::now();
        let mut last = " no answer".to_owned();
        let watched = tokio::time::timeout(PATIENCE, async {
            let mut observer = Observer::connect(self).await?;
            loop {
                match look(&mut observer).await? {
                    Ok(found) => {
                        observer.close().await;
                        return Ok::<T, Error>(found);
                    }
                    Err(seen) => last = seen,
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await;
        let Ok(looked) = watched else {
            panic!("not within {:.0?}: {what}. There is:{last}", begun.elapsed());
        };
        looked.unwrap_or_else(|error| panic!("cannot see whether there is {what}: {}", error.with_sources()))
    }
}

fn list(sessions: &[Session], locks: &[Lock]) -> String {
    let mut text = String::new();
    for line in sessions.iter().map(ToString::to_string).chain(locks.iter().map(ToString::to_string)) {
        // Writing to a string does not fail.
        let _ = write!(text, "\n  {line}");
    }
    if text.is_empty() { " no session".to_owned() } else { text }
}

/// The application name of the sessions that observe the others. No observer sees them.
const OBSERVER: &str = "db-testkit observer";

/// The sessions in a database, from a session in any database of the server.
///
/// With `and_pool`, those of [`TestDb::pool`] are among them.
pub(crate) async fn sessions_in(
    connection: &mut PgConnection,
    database: &str,
    and_pool: bool,
) -> Result<Vec<Seen>, Error> {
    let sql = "
        select pid, coalesce(state, '') as state, application_name, query,
          extract(epoch from clock_timestamp() - xact_start)::float8 as transaction_age,
          wait_event_type || ': ' || wait_event as wait,
          exists (select from pg_locks l where l.pid = a.pid and l.database = a.datid) as has_locks
        from pg_stat_activity a
        where datname = $1 and backend_type = 'client backend' and application_name <> $2
          and ($3 or application_name <> $4)
        order by backend_start, pid";
    let asked = sqlx::query(sql).bind(database).bind(OBSERVER).bind(and_pool).bind(APPLICATION_NAME);
    let rows = asked.fetch_all(connection).await.map_err(|source| Error::Statement {
        action: "ask for the sessions in",
        database: database.to_owned(),
        source,
    })?;
    Ok(rows.iter().map(|row| Seen { session: session(row), has_locks: row.get("has_locks") }).collect())
}

/// A session, and whether it holds or awaits a lock in its database.
pub(crate) struct Seen {
    pub(crate) session: Session,
    pub(crate) has_locks: bool,
}

/// A session that observes the others.
pub(crate) struct Observer {
    connection: PgConnection,
    database: String,
}

impl Observer {
    pub(crate) async fn connect(db: &TestDb) -> Result<Observer, Error> {
        let database = db.name().to_owned();
        // Its statements are not logged.
        let options = db.options().application_name(OBSERVER).disable_statement_logging();
        match options.connect().await {
            Ok(connection) => Ok(Observer { connection, database }),
            Err(source) => Err(Error::Connect { database, server: db.server_name(), source }),
        }
    }

    async fn sessions(&mut self) -> Result<Vec<Session>, Error> {
        let seen = self.seen(false).await?;
        Ok(seen.into_iter().map(|it| it.session).collect())
    }

    /// See [`sessions_in`].
    pub(crate) async fn seen(&mut self, and_pool: bool) -> Result<Vec<Seen>, Error> {
        sessions_in(&mut self.connection, &self.database, and_pool).await
    }

    /// With `and_pool`, the locks of [`TestDb::pool`] are among them.
    pub(crate) async fn locks(&mut self, and_pool: bool) -> Result<Vec<Lock>, Error> {
        // `pg_locks` splits the one key of an advisory lock into two halves, and shows two keys as unsigned.
        let sql = "
            select l.pid, l.locktype as kind, l.mode, l.granted,
              case
                when l.locktype <> 'advisory' then coalesce(l.relation::regclass::text, l.classid::regclass::text, '')
                when l.objsubid = 1 then (l.classid::int8 << 32 | l.objid::int8)::text
                else (l.classid::int8 << 32 >> 32)::text || ', ' || (l.objid::int8 << 32 >> 32)::text
              end as what
            from pg_locks l join pg_stat_activity a using (pid)
            where l.database = (select oid from pg_database where datname = current_database())
              and a.backend_type = 'client backend' and a.application_name <> $1
              and ($2 or a.application_name <> $3)
            order by l.pid, kind, what, l.mode";
        let asked = sqlx::query(sql).bind(OBSERVER).bind(and_pool).bind(APPLICATION_NAME);
        let rows = asked.fetch_all(&mut self.connection).await.map_err(|source| Error::Statement {
            action: "ask for the locks in",
            database: self.database.clone(),
            source,
        })?;
        Ok(rows.iter().map(lock).collect())
    }

    /// Closes the session gracefully, or the server would log a lost client.
    pub(crate) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "a connection was lost before it was closed");
        }
    }
}

fn session(row: &PgRow) -> Session {
    Session {
        pid: row.get("pid"),
        state: row.get("state"),
        application_name: row.get("application_name"),
        query: row.get("query"),
        // The machine's clock may have been set back.
        transaction_age: row
            .get::<Option<f64>, _>("transaction_age")
            .map(|age| Duration::from_secs_f64(age.max(0.0))),
        wait: row.get("wait"),
    }
}

fn lock(row: &PgRow) -> Lock {
    Lock {
        pid: row.get("pid"),
        kind: row.get("kind"),
        mode: row.get("mode"),
        what: row.get("what"),
        granted: row.get("granted"),
    }
}
