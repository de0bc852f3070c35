//! The link to PostgreSQL.

use std::fmt::{self, Write as _};
use std::io::ErrorKind;
use std::slice;
use std::time::Duration;

use db_core::connect::each_way;
use db_core::{Config, ConnectFailure, with_keepalive};
use futures_util::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgPool};
use tokio::runtime;
use tokio::time::timeout;

use crate::link::{Link, Listener, RawNotification, Sender, within};
use crate::notifier::is_about_the_text;
use crate::{BusOptions, Channel};

/// How long one attempt to connect may take, unless the address says it.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Keeps a server from ending the session because it is idle, which a session that listens always is. Not among the startup options,
/// since a server before PostgreSQL 14 does not know it.
const STAYS: &str = "select set_config('idle_session_timeout', '0', false)
                     where current_setting('idle_session_timeout', true) is not null";

/// PostgreSQL, by its own address: a pooler in transaction mode says yes to LISTEN and delivers nothing.
///
/// Each session is kept alive from the server's end, too, after a silence of [`BusOptions::heartbeat`], and is not ended for being idle
/// (`idle_session_timeout`).
#[derive(Debug, Clone)]
pub struct PostgresLink {
    config: Config,
    heartbeat: Duration,
    goodbye: Duration,
}

impl PostgresLink {
    /// The server of this address.
    #[must_use]
    pub fn new(config: &Config, options: &BusOptions) -> Self {
        Self { config: config.clone(), heartbeat: options.heartbeat, goodbye: options.answer }
    }

    fn options(&self, name: &str) -> PgConnectOptions {
        with_keepalive(self.config.clone().with_application_name(name).as_sqlx(), self.heartbeat)
    }

    fn limit(&self) -> Duration {
        self.config.connect_timeout().unwrap_or(CONNECT_LIMIT)
    }
}

/// Role, host, port and database.
impl fmt::Display for PostgresLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl Link for PostgresLink {
    type Listener = PostgresListener;
    type Sender = PostgresSender;

    async fn listener(&self) -> Result<PostgresListener, sqlx::Error> {
        let limit = self.limit();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(limit)
            .after_connect(|connection, _| Box::pin(async move { connection.execute(STAYS).await.map(drop) }))
            .connect_lazy_with(self.options("bus"));
        let mut listener = within(limit, PgListener::connect_with(&pool)).await?;
        // What sqlx reports of a loss is not always a loss, and not always all: a lost one is thrown away.
        listener.eager_reconnect(false);
        // After a loss the driver would take another connection from the pool, and not say so. A closed pool has none.
        listener.ignore_pool_close_event(true);
        let _waits_for_the_listener: Option<()> = pool.close().now_or_never();
        Ok(PostgresListener { listener: Some(listener), pool, goodbye: self.goodbye })
    }

    async fn sender(&self) -> Result<PostgresSender, sqlx::Error> {
        // A transaction that notifies has a record in the log, and nothing in it that a crash could lose: a notification is
        // delivered once it is committed, and nowhere kept. It need not wait for the disk, nor have others wait with it.
        let options = self.options("notifier").options([("synchronous_commit", "off")]);
        let connecting = async {
            let mut connection = each_way(&self.config, options).await?;
            connection.execute(STAYS).await?;
            Ok(connection)
        };
        let connection = within(self.limit(), connecting).await?;
        Ok(PostgresSender { connection, goodbye: self.goodbye })
    }

    fn explain(&self, error: &sqlx::Error) -> ConnectFailure {
        ConnectFailure::of(error, &self.config)
    }
}

/// A connection that LISTENs, and the pool of one that it came from, because sqlx has no other way to give a listener its
/// options.
///
/// Dropping it ends the connection at once, without a word to the server.
#[derive(Debug)]
pub struct PostgresListener {
    /// None once it has said goodbye, or is dropped.
    listener: Option<PgListener>,
    pool: PgPool,
    goodbye: Duration,
}

impl PostgresListener {
    fn listener(&mut self) -> &mut PgListener {
        self.listener.as_mut().expect("a session that is used was not closed")
    }

    /// One round trip, whatever their number. Past the driver's own `listen`, which keeps a list for when it connects again.
    async fn each(&mut self, command: &str, channels: &[Channel]) -> Result<(), sqlx::Error> {
        let mut text = String::new();
        for channel in channels {
            // Quoted as in the manual, chapter 4.1.1. A channel has no NUL.
            write!(text, "{command} \"{}\";", channel.as_str().replace('"', "\"\""))
                .expect("writing to a string");
        }
        self.listener().execute(AssertSqlSafe(text)).await?;
        Ok(())
    }

    /// Without those whose names the database's encoding has no characters for: nobody can notify them either, and they must not
    /// cost all others their session.
    async fn each_that_can_be(&mut self, command: &str, channels: &[Channel]) -> Result<(), sqlx::Error> {
        match self.each(command, channels).await {
            Err(error) if is_about_the_text(&error) => {}
            done => return done,
        }
        for channel in channels {
            match self.each(command, slice::from_ref(channel)).await {
                Err(error) if is_about_the_text(&error) => {
                    tracing::warn!(%channel, %error, "no notification can come by this channel");
                }
                done => done?,
            }
        }
        Ok(())
    }
}

impl Listener for PostgresListener {
    async fn listen(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.each_that_can_be("LISTEN", channels).await
    }

    async fn unlisten(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.each_that_can_be("UNLISTEN", channels).await
    }

    async fn recv(&mut self) -> Result<RawNotification, sqlx::Error> {
        // Nothing is the driver's way to say that the connection was lost; the next call would make another one.
        let notification = self.listener().try_recv().await?;
        notification
            .map(RawNotification::from)
            .ok_or_else(|| sqlx::Error::Io(ErrorKind::UnexpectedEof.into()))
    }

    async fn ping(&mut self) -> Result<f64, sqlx::Error> {
        sqlx::query_scalar("select pg_notification_queue_usage()").fetch_one(self.listener()).await
    }

    async fn close(mut self) {
        let limit = self.goodbye;
        let goodbye = async {
            // One that does not answer is dropped instead.
            self.ping().await?;
            // This leaves the connection to a task of the driver's.
            drop(self.listener.take());
            self.pool.close().await;
            Ok(())
        };
        if let Err(error) = within(limit, goodbye).await {
            tracing::debug!(%error, "the listening connection was not closed in good order");
        }
    }
}

impl Drop for PostgresListener {
    fn drop(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        // The driver's drop spawns a task that says UNLISTEN and waits for the answer. With a peer that is silent it would keep
        // its socket until TCP gives up, which is for ever if somebody in between still acknowledges; and nobody can abort it. On
        // a runtime that ends, it ends, and the socket is closed.
        match runtime::Builder::new_current_thread().build() {
            Ok(ending) => {
                let entered = ending.enter();
                drop(listener);
                drop(entered);
                // Not waiting for anything, which a runtime's own drop must not do in another one.
                ending.shutdown_background();
            }
            Err(error) => tracing::debug!(%error, "a lost listening connection is left to the driver"),
        }
    }
}

/// A connection that calls `pg_notify`.
#[derive(Debug)]
pub struct PostgresSender {
    connection: PgConnection,
    goodbye: Duration,
}

impl Sender for PostgresSender {
    async fn notify(&mut self, channel: &Channel, payloads: &[String]) -> Result<(), sqlx::Error> {
        sqlx::query("select pg_notify($1, payload) from unnest($2::text[]) as payload")
            .bind(channel.as_str())
            .bind(payloads)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    async fn close(self) {
        if timeout(self.goodbye, self.connection.close()).await.is_err() {
            tracing::debug!("the notifying connection did not close in time");
        }
    }
}
