//! The link to PostgreSQL.

use std::fmt::{self, Write as _};
use std::io::ErrorKind;
use std::slice;
use std::time::Duration;

use db_core::connect::with_tls_fallback;
use db_core::{Config, ConnectFailure, with_keepalive};
use futures_util::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgPool};
use tokio::runtime;
use tokio::time::timeout;

use super::{Link, Listener, RawNotification, Sender, within};
use crate::{BusOptions, Channel, class};

/// The timeout of an attempt to connect, unless the address has a `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the server from ending the session for being idle, which a listening session always is. It is not a startup option, since a
/// server before PostgreSQL 14 does not know it.
const NO_IDLE_TIMEOUT: &str = "select set_config('idle_session_timeout', '0', false)
                     where current_setting('idle_session_timeout', true) is not null";

/// The link to PostgreSQL, by the server's own address: through a pooler in transaction mode, LISTEN succeeds and delivers nothing.
///
/// The server pings its end of each session after a silence of [`BusOptions::heartbeat`] (TCP keepalive), and does not end the session
/// for being idle (`idle_session_timeout`).
#[derive(Debug, Clone)]
pub struct PostgresLink {
    config: Config,
    heartbeat: Duration,
    close_timeout: Duration,
}

impl PostgresLink {
    /// The link to the server of this address.
    #[must_use]
    pub fn new(config: &Config, options: &BusOptions) -> Self {
        Self { config: config.clone(), heartbeat: options.heartbeat, close_timeout: options.answer }
    }

    fn options(&self, name: &str) -> PgConnectOptions {
        with_keepalive(self.config.clone().with_application_name(name).as_sqlx(), self.heartbeat)
    }

    fn connect_timeout(&self) -> Duration {
        self.config.connect_timeout().unwrap_or(CONNECT_TIMEOUT)
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
        let limit = self.connect_timeout();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(limit)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(NO_IDLE_TIMEOUT).await.map(drop) })
            })
            .connect_lazy_with(self.options("bus"));
        let mut listener = within(limit, PgListener::connect_with(&pool)).await?;
        // sqlx reports some losses as other errors, so every error ends the session.
        listener.eager_reconnect(false);
        // After a loss the driver would silently take another connection from the pool, but a closed pool has none.
        listener.ignore_pool_close_event(true);
        let _still_closing: Option<()> = pool.close().now_or_never();
        Ok(PostgresListener { listener: Some(listener), pool, close_timeout: self.close_timeout })
    }

    async fn sender(&self) -> Result<PostgresSender, sqlx::Error> {
        // A transaction that notifies writes a commit record, and a crash can lose nothing of it: the server delivers notifications
        // at the commit and stores none. So the commit need not wait for the disk.
        let options = self.options("notifier").options([("synchronous_commit", "off")]);
        let connecting = async {
            let mut connection = with_tls_fallback(&self.config, options).await?;
            connection.execute(NO_IDLE_TIMEOUT).await?;
            Ok(connection)
        };
        let connection = within(self.connect_timeout(), connecting).await?;
        Ok(PostgresSender { connection, close_timeout: self.close_timeout })
    }

    fn explain(&self, error: &sqlx::Error) -> ConnectFailure {
        ConnectFailure::of(error, &self.config)
    }
}

/// A connection that LISTENs, and the pool of one that it came from: sqlx has no other way to give options to a listener.
///
/// Dropping it ends the connection at once, without a message to the server.
#[derive(Debug)]
pub struct PostgresListener {
    /// `None` once the session is being closed or dropped.
    listener: Option<PgListener>,
    pool: PgPool,
    close_timeout: Duration,
}

impl PostgresListener {
    fn listener(&mut self) -> &mut PgListener {
        self.listener.as_mut().expect("a session is used only before it is closed")
    }

    /// One round trip for all channels. It bypasses the driver's `listen`, which keeps a list of channels for a reconnect.
    async fn execute_for(&mut self, command: &str, channels: &[Channel]) -> Result<(), sqlx::Error> {
        let mut text = String::new();
        for channel in channels {
            // Quoted as the manual says in chapter 4.1.1. A channel has no NUL.
            write!(text, "{command} \"{}\";", channel.as_str().replace('"', "\"\""))
                .expect("writing to a string");
        }
        self.listener().execute(AssertSqlSafe(text)).await?;
        Ok(())
    }

    /// Skips channels whose names the encoding of the database cannot hold: nobody can notify them, and they must not cost the other
    /// channels their session.
    async fn execute_for_each(&mut self, command: &str, channels: &[Channel]) -> Result<(), sqlx::Error> {
        match self.execute_for(command, channels).await {
            Err(error) if class::is_text_refused(&error) => {}
            done => return done,
        }
        for channel in channels {
            match self.execute_for(command, slice::from_ref(channel)).await {
                Err(error) if class::is_text_refused(&error) => {
                    tracing::warn!(
                        %channel, %error,
                        "the encoding of the database cannot hold the name of a channel: it will deliver nothing"
                    );
                }
                done => done?,
            }
        }
        Ok(())
    }
}

impl Listener for PostgresListener {
    async fn listen(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.execute_for_each("LISTEN", channels).await
    }

    async fn unlisten(&mut self, channels: &[Channel]) -> Result<(), sqlx::Error> {
        self.execute_for_each("UNLISTEN", channels).await
    }

    async fn recv(&mut self) -> Result<RawNotification, sqlx::Error> {
        // The driver returns `None` for a lost connection, and would open another one at the next call.
        let notification = self.listener().try_recv().await?;
        notification
            .map(RawNotification::from)
            .ok_or_else(|| sqlx::Error::Io(ErrorKind::UnexpectedEof.into()))
    }

    async fn ping(&mut self) -> Result<f64, sqlx::Error> {
        sqlx::query_scalar("select pg_notification_queue_usage()").fetch_one(self.listener()).await
    }

    async fn close(mut self) {
        let limit = self.close_timeout;
        let closing = async {
            // A connection that does not answer is dropped instead.
            self.ping().await?;
            // The drop hands the connection to a task of the driver, which returns it to the pool.
            drop(self.listener.take());
            self.pool.close().await;
            Ok(())
        };
        if let Err(error) = within(limit, closing).await {
            tracing::debug!(%error, "the listening connection was dropped instead of closed");
        }
    }
}

impl Drop for PostgresListener {
    fn drop(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        // The driver's drop spawns a task that sends UNLISTEN and waits for the answer. With a silent peer the task would keep its
        // socket until TCP gives up, which is never if a machine in between still acknowledges; and no one can abort it. On a
        // runtime that ends, the task ends, too, and the socket is closed.
        match runtime::Builder::new_current_thread().build() {
            Ok(ending) => {
                let entered = ending.enter();
                drop(listener);
                drop(entered);
                // The drop of a runtime waits, which is not allowed within another runtime. This does not wait.
                ending.shutdown_background();
            }
            Err(error) => {
                tracing::debug!(%error, "there is no runtime to end a lost listening connection: it is left to the driver");
            }
        }
    }
}

/// A connection that calls `pg_notify`.
#[derive(Debug)]
pub struct PostgresSender {
    connection: PgConnection,
    close_timeout: Duration,
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
        if timeout(self.close_timeout, self.connection.close()).await.is_err() {
            tracing::debug!(limit = ?self.close_timeout, "the sending connection was not closed in time");
        }
    }
}
