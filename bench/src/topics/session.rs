//! Sessions of the driver: the sender, and sqlx's listener.

use std::time::Duration;

use anyhow::{Context, ensure};
use db_core::Config;
use db_layer::db_notify::{Bus, BusOptions};
use sqlx::postgres::{PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};
use tokio::time::{sleep, timeout};

/// The limit for steps that should take moments.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// The documented channel of a bus in its default namespace.
pub(super) const CHANNEL: &str = "db_notify.default";

/// The sending session.
pub(super) struct Sender(PgConnection);

impl Sender {
    /// Connects, and waits until no other session is connected: those of the previous turn may still be ending.
    pub(super) async fn alone(config: &Config) -> anyhow::Result<Self> {
        let mut conn = config.as_sqlx().disable_statement_logging().connect().await?;
        let others = "select count(*) from pg_stat_activity where datname = current_database() \
                      and backend_type = 'client backend' and pid <> pg_backend_pid()";
        let alone = async {
            while sqlx::query_scalar::<_, i64>(others).fetch_one(&mut conn).await? > 0 {
                sleep(Duration::from_millis(1)).await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, alone)
            .await
            .context("another session is connected to the benchmark's database")??;
        Ok(Self(conn))
    }

    /// Notifies many channels, each with its payload, in one statement.
    pub(super) async fn send(&mut self, channels: &[String], payloads: &[String]) -> anyhow::Result<()> {
        sqlx::query(
            "select pg_notify(channel, payload) from unnest($1::text[], $2::text[]) as _ (channel, payload)",
        )
        .bind(channels)
        .bind(payloads)
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    /// Notifies one channel with an empty payload.
    pub(super) async fn notify(&mut self, channel: &str) -> anyhow::Result<()> {
        sqlx::query("select pg_notify($1, '')").bind(channel).execute(&mut self.0).await?;
        Ok(())
    }

    pub(super) async fn close(self) -> anyhow::Result<()> {
        Ok(self.0.close().await?)
    }
}

/// A bus with the shipped defaults.
pub(super) async fn open_bus(config: &Config) -> anyhow::Result<Bus> {
    Ok(Bus::open(config, BusOptions::default()).await?)
}

pub(super) async fn close_bus(bus: &Bus) -> anyhow::Result<()> {
    ensure!(bus.close(PATIENCE).await, "the bus did not close");
    Ok(())
}

/// A listener on these channels, and its pool.
///
/// `PgListener::connect` would build the same but keep the pool for itself, so that its end could not be awaited.
pub(super) async fn open_listener(
    config: &Config,
    channels: &[String],
) -> anyhow::Result<(PgListener, PgPool)> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_with(config.as_sqlx().disable_statement_logging())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.ignore_pool_close_event(true);
    listener.listen_all(channels.iter().map(String::as_str)).await?;
    Ok((listener, pool))
}

/// Closes the pool after the listener was dropped.
pub(super) async fn close_listener(pool: &PgPool) -> anyhow::Result<()> {
    timeout(PATIENCE, pool.close()).await.context("the listener did not close")
}
