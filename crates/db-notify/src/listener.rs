//! The task that owns the one LISTEN connection.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use db_core::Config;
use sqlx::Executor;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::timeout;

use crate::bus::Shared;
use crate::delivery::GapReason;
use crate::wire::{self, Message};

/// How long the server may take to answer a heartbeat.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);
/// How long one attempt to connect and LISTEN may take.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);

/// Opens a connection of its own and LISTENs on it.
pub(crate) async fn listen(config: &Config, channel: &str) -> Result<PgListener, sqlx::Error> {
    let attempt = async {
        // A pool of one, because sqlx has no other way to give a listener its options.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ATTEMPT_LIMIT)
            .connect_lazy_with(config.clone().with_application_name("bus").as_sqlx());
        let mut listener = PgListener::connect_with(&pool).await?;
        // We make a new one after every loss: what sqlx reports of one is not always a loss, and not always all.
        listener.eager_reconnect(false);
        listener.listen(channel).await?;
        Ok(listener)
    };
    timeout(ATTEMPT_LIMIT, attempt)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Receives until the bus is closed, making a new connection after every loss.
pub(crate) async fn run(mut listener: PgListener, config: Config, channel: String, shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => break,
            loss = receive(&mut listener, &shared) => {
                shared.set_connected(false);
                tracing::warn!(%channel, %loss, "notifications lost, listening again");
            }
        }
        drop(listener);
        tokio::select! {
            () = shared.closing.cancelled() => break,
            fresh = relisten(&config, &channel) => listener = fresh,
        }
        shared.set_connected(true);
        shared.gap(GapReason::Reconnected);
    }
    shared.routes.close();
}

/// Delivers what arrives; returns why it cannot go on.
async fn receive(listener: &mut PgListener, shared: &Shared) -> String {
    loop {
        match timeout(shared.heartbeat, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => deliver(notification.payload(), shared),
            // sqlx reports some losses as `None`, some as an error, and keeps some connections that are lost: every
            // one of them may have cost a notification.
            Ok(Ok(None)) => return "the connection was lost".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            // Silence: is the peer still there? What arrives meanwhile is kept by the listener.
            Err(_) => match timeout(HEARTBEAT_LIMIT, (&mut *listener).execute("select 1")).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return format!("heartbeat: {error}"),
                Err(_) => return format!("no answer to the heartbeat within {HEARTBEAT_LIMIT:?}"),
            },
        }
    }
}

async fn relisten(config: &Config, channel: &str) -> PgListener {
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build();
    loop {
        match listen(config, channel).await {
            Ok(listener) => return listener,
            Err(error) => tracing::debug!(%channel, %error, "cannot listen yet"),
        }
        tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(2))).await;
    }
}

fn deliver(payload: &str, shared: &Shared) {
    match wire::decode(payload) {
        Some(Message::Entries(entries)) => {
            for (topic, payload) in entries {
                shared.routes.deliver(topic, payload);
            }
        }
        Some(Message::Everything) => shared.gap(GapReason::Overflow),
        None => {
            tracing::warn!(
                bytes = payload.len(),
                "a notification of a form that is not known here"
            );
            shared.gap(GapReason::Unreadable);
        }
    }
}
