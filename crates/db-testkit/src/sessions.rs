//! What the server says of a database's sessions.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::time::Instant;

use crate::db::TestDb;
use crate::error::Error;
use crate::server::OURSELVES;
use crate::until::{PATIENCE, PAUSE};

/// A client's session in a test's database, as `pg_stat_activity` had it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Session {
    /// The process id of its backend.
    pub pid: i32,
    /// `active`, `idle`, `idle in transaction`, `idle in transaction (aborted)` and others.
    pub state: String,
    /// What its client calls itself; may be empty.
    pub application_name: String,
    /// The statement that is running, or was the last to run; may be empty, and is cut off by `track_activity_query_size`.
    pub query: String,
    /// For how long its transaction has been open, if there is one. A statement of its own counts as one while it runs. Of
    /// an aborted one the server does not tell.
    pub transaction_age: Option<Duration>,
    /// What it waits for, such as `Lock: transactionid` or, while idle, `Client: ClientRead`.
    pub wait: Option<String>,
}

impl Session {
    /// Whether a transaction is open, be it idle, aborted, or running a statement.
    #[must_use]
    pub fn is_in_transaction(&self) -> bool {
        self.transaction_age.is_some() || self.state.starts_with("idle in transaction")
    }

    /// Whether its statement waits in `pg_sleep`.
    #[must_use]
    pub fn is_sleeping(&self) -> bool {
        self.wait.as_deref() == Some("Timeout: PgSleep")
    }

    /// Whether it is running a statement, or preparing one: to see that a statement has begun, wait for what it waits for, such as
    /// [`is_sleeping`](Self::is_sleeping).
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

/// A lock that a session in a test's database holds or waits for, as `pg_locks` had it. Those on virtual and real
/// transaction ids, which each transaction holds on itself, are not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lock {
    /// The process id of its session's backend.
    pub pid: i32,
    /// `relation`, `advisory`, `tuple`, `object` and others.
    pub kind: String,
    /// `AccessShareLock`, `ExclusiveLock` and others.
    pub mode: String,
    /// The name of the relation; or the key of an advisory lock, as the one number or the two that it was taken with.
    pub what: String,
    /// Whether the session has it, rather than waits for it.
    pub granted: bool,
}

impl Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = if self.granted { "holds" } else { "waits for" };
        write!(f, "session {} {does} {} on the {} {}", self.pid, self.mode, self.kind, self.what)
    }
}

/// What the server has of a test. None of it counts sessions of the kit: those that ask, and those of [`TestDb::pool`], with
/// which the test itself looks at the database. What is to be seen here connects by [`TestDb::options`], [`TestDb::url`] or a
/// [`Proxy`](crate::Proxy).
///
/// The server does not hear of everything at once: a session of a client that went, by crash or by politeness, is there for a
/// moment longer. So a test waits for what it expects, with the methods whose names begin with `until`.
impl TestDb {
    /// The sessions of clients in this database, in the order in which they began.
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

    /// Those of the [`sessions`](TestDb::sessions) that have a transaction open: idle in it, or running a statement.
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

    /// The locks that those sessions hold or wait for, advisory ones included.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] and [`Error::Statement`].
    pub async fn locks(&self) -> Result<Vec<Lock>, Error> {
        let mut observer = Observer::connect(self).await?;
        let locks = observer.locks().await?;
        observer.close().await;
        Ok(locks)
    }

    /// Waits until the [`sessions`](TestDb::sessions) are as they should be, and returns them.
    ///
    /// ```
    /// # #[db_testkit::test]
    /// # async fn example(db: db_testkit::TestDb) -> Result<(), sqlx::Error> {
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
    /// # }
    /// ```
    ///
    /// Cancel-safe.
    ///
    /// # Panics
    ///
    /// When they are not within 20 seconds, and lists those that are there; and when the server cannot be asked.
    pub async fn until_sessions(&self, what: &str, mut hold: impl FnMut(&[Session]) -> bool) -> Vec<Session> {
        self.watch(what, async |observer| {
            let sessions = observer.sessions().await?;
            Ok(if hold(&sessions) { Ok(sessions) } else { Err(list(&sessions, &[])) })
        })
        .await
    }

    /// Waits until no session has a transaction open, runs a statement, or holds or awaits a lock. They may be connected.
    ///
    /// Cancel-safe.
    ///
    /// # Panics
    ///
    /// When they are not quiet within 20 seconds, and lists what is left; and when the server cannot be asked.
    pub async fn until_quiet(&self) {
        self.watch("no transaction, no statement and no lock", async |observer| {
            let (sessions, locks) = (observer.sessions().await?, observer.locks().await?);
            let is_quiet =
                locks.is_empty() && !sessions.iter().any(|it| it.is_in_transaction() || it.is_running());
            Ok(if is_quiet { Ok(()) } else { Err(list(&sessions, &locks)) })
        })
        .await;
    }

    /// Looks again and again, until there is something; or fails with what was there last.
    async fn watch<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut(&mut Observer) -> Result<Result<T, String>, Error>,
    ) -> T {
        let begun = Instant::now();
        let mut last = " nothing was seen".to_owned();
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

/// A session that looks at the others. It has a name of its own, so that none of its kind sees it.
struct Observer {
    connection: PgConnection,
    database: String,
}

impl Observer {
    async fn connect(db: &TestDb) -> Result<Observer, Error> {
        let database = db.name().to_owned();
        // Its own statements are nothing to log.
        let options = db.options().application_name(OURSELVES).disable_statement_logging();
        match options.connect().await {
            Ok(connection) => Ok(Observer { connection, database }),
            Err(source) => Err(Error::Connect { database, server: db.server_name(), source }),
        }
    }

    async fn sessions(&mut self) -> Result<Vec<Session>, Error> {
        let sql = "
            select pid, coalesce(state, '') as state, application_name, query,
              extract(epoch from clock_timestamp() - xact_start)::float8 as transaction_age,
              wait_event_type || ': ' || wait_event as wait
            from pg_stat_activity
            where datname = current_database() and backend_type = 'client backend' and application_name <> $1
            order by backend_start, pid";
        let rows = self.rows(sql, "ask for the sessions in").await?;
        Ok(rows.iter().map(session).collect())
    }

    async fn locks(&mut self) -> Result<Vec<Lock>, Error> {
        // An advisory lock of one key has it in two halves; two keys have lost their signs.
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
            order by l.pid, kind, what, l.mode";
        let rows = self.rows(sql, "ask for the locks in").await?;
        Ok(rows.iter().map(lock).collect())
    }

    async fn rows(&mut self, sql: &'static str, action: &'static str) -> Result<Vec<PgRow>, Error> {
        sqlx::query(sql)
            .bind(OURSELVES)
            .fetch_all(&mut self.connection)
            .await
            .map_err(|source| Error::Statement { action, database: self.database.clone(), source })
    }

    /// Says goodbye, so that the server does not log a lost client.
    async fn close(self) {
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
        // The clock of a machine may be put back.
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
