//! The task that owns the one LISTEN connection.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use db_core::{Config, kept_alive};
use sqlx::postgres::{PgConnection, PgListener, PgPoolOptions};
use sqlx::{Connection, Executor, PgPool};
use tokio::time::timeout;

use crate::bus::Shared;
use crate::delivery::GapReason;
use crate::notifier;
use crate::wire::{self, Message};

/// How long the server may take to answer a heartbeat.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);
/// How long one attempt to connect and LISTEN may take, unless the address says it.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);

/// A connection that LISTENs, and the pool of one that it came from, because sqlx has no other way to give a listener
/// its options.
pub(crate) struct Listening {
    listener: PgListener,
    pool: PgPool,
}

impl Listening {
    /// Ends the connection, which the listener's drop leaves to a task of sqlx's.
    async fn close(self) {
        drop(self.listener);
        if timeout(HEARTBEAT_LIMIT, self.pool.close()).await.is_err() {
            tracing::debug!("the listening connection did not close in time");
        }
    }
}

/// Opens a connection of its own and LISTENs on it.
pub(crate) async fn listen(
    config: &Config,
    channel: &str,
    heartbeat: Duration,
) -> Result<Listening, sqlx::Error> {
    let limit = config.connect_timeout().unwrap_or(ATTEMPT_LIMIT);
    let attempt = async {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(limit)
            .connect_lazy_with(kept_alive(config.clone().with_application_name("bus").as_sqlx(), heartbeat));
        let mut listener = PgListener::connect_with(&pool).await?;
        // We make a new one after every loss: what sqlx reports of one is not always a loss, and not always all.
        listener.eager_reconnect(false);
        listener.listen(channel).await?;
        Ok(Listening { listener, pool })
    };
    timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Why there is nothing to receive from.
#[derive(Debug)]
pub(crate) enum Deaf {
    /// What LISTEN met, or the question whether anything arrives.
    Met(sqlx::Error),
    /// LISTEN was answered, and what was then notified did not arrive.
    Unheard,
}

impl std::fmt::Display for Deaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Met(error) => error.fmt(f),
            Self::Unheard => f.write_str(
                "LISTEN was answered, and nothing arrives: a pooler such as PgBouncer in transaction mode seems to be in between",
            ),
        }
    }
}

impl From<sqlx::Error> for Deaf {
    fn from(error: sqlx::Error) -> Self {
        Self::Met(error)
    }
}

/// LISTENs, and notifies itself on another connection, which comes along: a pooler in transaction mode says yes to LISTEN, and
/// nothing ever comes, though it goes on answering.
pub(crate) async fn listen_and_hear(
    config: &Config,
    channel: &str,
    heartbeat: Duration,
) -> Result<(Listening, PgConnection), Deaf> {
    let session = notifier::session(config, heartbeat);
    // Only the notification has to come after both.
    let (mut listening, sender) =
        tokio::try_join!(listen(config, channel, heartbeat), notifier::connect(&session))?;
    let nothing = [wire::NOTHING.to_owned()];
    let notifier = match notifier::notify(sender, channel, &nothing).await {
        Ok(notifier) => notifier,
        // It got the notification itself: a pooler gave it the session that listens.
        Err(sqlx::Error::Protocol(said)) if said.contains("NotificationResponse") => {
            return Err(Deaf::Unheard);
        }
        Err(error) => return Err(error.into()),
    };
    let listener = &mut listening.listener;
    // Be it that, or what somebody else says.
    match timeout(HEARTBEAT_LIMIT, listener.try_recv()).await {
        Ok(Ok(Some(_))) => Ok((listening, notifier)),
        Ok(Ok(None)) => Err(sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into()).into()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => match timeout(HEARTBEAT_LIMIT, (&mut *listener).execute("select 1")).await {
            Ok(answer) => Err(answer.map_or_else(Deaf::Met, |_| Deaf::Unheard)),
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
        },
    }
}

/// Waits for the first subscription, LISTENs, and then [receives](run). Whoever subscribed meanwhile is told when LISTEN is in
/// force, and not before: what they look at then, they look at while nothing can be missed any more.
pub(crate) async fn run_when_wanted(config: Config, channel: String, shared: Arc<Shared>) {
    let listening = async {
        shared.wanted.notified().await;
        relisten(&config, &channel, shared.heartbeat).await
    };
    let first = tokio::select! {
        () = shared.closing.cancelled() => {
            shared.routes.close();
            return;
        }
        first = listening => first,
    };
    shared.set_connected(true);
    shared.gap(GapReason::Started);
    run(first, config, channel, shared).await;
}

/// Receives until the bus is closed, making a new connection after every loss.
pub(crate) async fn run(mut listening: Listening, config: Config, channel: String, shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => break,
            loss = receive(&mut listening.listener, &shared) => {
                shared.set_connected(false);
                tracing::warn!(%channel, %loss, "notifications lost, listening again");
            }
        }
        // The old one goes when the new one is there: its peer may not answer any more.
        tokio::select! {
            () = shared.closing.cancelled() => break,
            fresh = relisten(&config, &channel, shared.heartbeat) => drop(std::mem::replace(&mut listening, fresh)),
        }
        shared.set_connected(true);
        shared.gap(GapReason::Reconnected);
    }
    shared.routes.close();
    listening.close().await;
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

/// Tries until it listens and hears. Says once why it does not, and not with each attempt.
async fn relisten(config: &Config, channel: &str, heartbeat: Duration) -> Listening {
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build();
    let mut said = false;
    loop {
        match listen_and_hear(config, channel, heartbeat).await {
            Ok((listening, notifier)) => {
                // The notifier has one of its own. Whether the goodbye arrives is all the same.
                let _: Result<_, _> = timeout(HEARTBEAT_LIMIT, notifier.close()).await;
                return listening;
            }
            Err(error) if said => tracing::debug!(%channel, %error, "cannot listen yet"),
            Err(error) => {
                said = true;
                tracing::warn!(%channel, to = %config, %error, "cannot listen yet, trying until it works");
            }
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
            tracing::warn!(bytes = payload.len(), "a notification of a form that is not known here");
            shared.gap(GapReason::Unreadable);
        }
    }
}
