//! Ending statements, and sessions, from beside them.
//!
//! The driver keeps the secret that a cancel request of the protocol needs to itself, so `pg_cancel_backend` is called
//! (PostgreSQL's manual, chapter 9.27.2 "Server Signaling Functions"), on one connection that is kept for it.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::PING_LIMIT;
use crate::Config;
use crate::keepalive::kept_alive;
use crate::tracker::Session;

/// One request, the wait for its turn and the dialling included.
const LIMIT: Duration = Duration::from_secs(1);

/// The connection is closed when it was not needed for so long.
const IDLE: Duration = Duration::from_secs(30);

/// The start of the process is compared, too: the session may be gone and its process id another client's by now.
const CANCEL: &str =
    "select pg_cancel_backend(pid) from pg_stat_get_activity($1) where backend_start = $2::timestamptz";
const TERMINATE: &str =
    "select pg_terminate_backend(pid) from pg_stat_get_activity($1) where backend_start = $2::timestamptz";

/// One per pool, so at most one session more.
pub(crate) struct Canceller {
    options: PgConnectOptions,
    /// Taken out while it is used, and put back when it answered: a request that is dropped on the way takes it along.
    control: Mutex<Option<(PgConnection, Instant)>>,
}

impl Canceller {
    pub(super) fn new(config: &Config, pool: &str, keepalive: Duration) -> Self {
        let options = config.clone().with_application_name(&format!("{pool} control")).as_sqlx();
        let options = kept_alive(options.disable_statement_logging(), keepalive);
        Self { options, control: Mutex::new(None) }
    }

    /// Cancels the statement that runs in a session. When this returns, the server process has been signalled, or is
    /// not there any more.
    pub(super) async fn cancel(&self, session: &Session) -> Result<(), sqlx::Error> {
        self.ask(CANCEL, session).await
    }

    /// Ends a session.
    pub(crate) async fn terminate(&self, session: &Session) -> Result<(), sqlx::Error> {
        self.ask(TERMINATE, session).await
    }

    async fn ask(&self, question: &'static str, session: &Session) -> Result<(), sqlx::Error> {
        let asked = timeout(LIMIT, async {
            let mut control = self.control.lock().await;
            let mut connection = match alive(control.take()).await {
                Some(connection) => connection,
                None => self.options.connect().await?,
            };
            let answer = sqlx::query(question)
                .bind(session.pid)
                .bind(&session.began)
                .fetch_optional(&mut connection)
                .await;
            if answer.is_ok() {
                *control = Some((connection, Instant::now()));
            }
            answer.map(drop)
        });
        asked.await.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
    }

    /// Closes the connection if nobody needed it for a while.
    pub(super) fn rest(&self, now: Instant) {
        if let Ok(mut control) = self.control.try_lock() {
            control.take_if(|(_, used)| now.saturating_duration_since(*used) > IDLE);
        }
    }

    /// Closes the connection.
    pub(super) async fn close(&self, deadline: Duration) {
        // Whoever holds it still has its own limit, and takes it along.
        if let Ok(mut control) = timeout(deadline, self.control.lock()).await {
            control.take();
        }
    }
}

/// The connection that was kept, if it still answers: whatever broke the link of a statement may have broken this one, too.
/// Asked before and not found out by the request itself: one whose answer did not come may be carried out later, on
/// somebody else's statement.
async fn alive(kept: Option<(PgConnection, Instant)>) -> Option<PgConnection> {
    let (mut connection, _) = kept?;
    match timeout(PING_LIMIT, connection.ping()).await {
        Ok(Ok(())) => Some(connection),
        _ => None,
    }
}
