//! The task that sends: at once when idle, then paced, everything that gathered in one statement.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use db_core::{Config, kept_alive};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::bus::Shared;
use crate::topic::Topic;
use crate::wire;

/// How long one statement may take, or one attempt to connect unless the address says it.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Why a notification was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotifyError {
    /// It would not fit into one NOTIFY.
    #[error("a payload for this topic has at most {limit} bytes, this one has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What fits beside the topic.
        limit: usize,
    },
    /// It contains a NUL, which PostgreSQL's text cannot hold.
    #[error("a payload must not contain a NUL character")]
    Nul,
    /// The transaction's pool has no bus attached.
    #[error("there is no bus to notify on: none is attached to the pool")]
    NoBus,
    /// The bus was closed before it was sent.
    #[error("the bus was closed before the notification was sent")]
    Closed,
}

/// Whether it can be sent at all.
pub(crate) fn check(topic: &Topic, payload: &str) -> Result<(), NotifyError> {
    let limit = wire::payload_limit(topic.as_str().len());
    if payload.len() > limit {
        return Err(NotifyError::TooLong { bytes: payload.len(), limit });
    }
    if payload.contains('\0') {
        return Err(NotifyError::Nul);
    }
    Ok(())
}

/// What waits to be sent.
pub(crate) struct Outbox {
    /// The most entries that wait; past it, one "everything" replaces them.
    size: usize,
    waiting: Mutex<Batch>,
    filled: Notify,
}

#[derive(Default)]
struct Batch {
    entries: Vec<(Topic, String)>,
    seen: HashSet<(Topic, String)>,
    everything: bool,
    callers: Vec<oneshot::Sender<()>>,
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, waiting: Mutex::default(), filled: Notify::new() }
    }

    /// Adds a notification; `caller` hears when it was sent.
    pub(crate) fn push(
        &self,
        topic: &Topic,
        payload: &str,
        caller: Option<oneshot::Sender<()>>,
    ) -> Result<(), NotifyError> {
        check(topic, payload)?;
        let mut batch = self.lock();
        if batch.closed {
            return Err(NotifyError::Closed);
        }
        batch.add(topic.clone(), payload.to_owned(), self.size);
        batch.callers.extend(caller);
        drop(batch);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes no more. What waits can still be sent.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    fn take(&self) -> Option<Batch> {
        let mut batch = self.lock();
        let closed = batch.closed;
        let has_work = batch.everything || !batch.entries.is_empty();
        has_work.then(|| std::mem::replace(&mut *batch, Batch { closed, ..Batch::default() }))
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch {
    fn add(&mut self, topic: Topic, payload: String, size: usize) {
        if self.everything {
            return;
        }
        let entry = (topic, payload);
        if self.seen.contains(&entry) {
            return;
        }
        if self.entries.len() == size {
            self.entries.clear();
            self.seen.clear();
            self.everything = true;
            return;
        }
        self.seen.insert(entry.clone());
        self.entries.push(entry);
    }

    fn payloads(&self) -> Vec<String> {
        if self.everything {
            return vec![wire::EVERYTHING.to_owned()];
        }
        wire::encode(self.entries.iter().map(|(topic, payload)| (topic.as_str(), payload.as_str())))
    }
}

/// How the notifier's session is opened.
pub(crate) struct Session {
    options: PgConnectOptions,
    /// How long that may take.
    limit: Duration,
}

pub(crate) fn session(config: &Config, heartbeat: Duration) -> Session {
    let options = kept_alive(config.clone().with_application_name("notifier").as_sqlx(), heartbeat);
    Session { options, limit: config.connect_timeout().unwrap_or(SEND_LIMIT) }
}

/// Sends until the outbox is closed and empty.
pub(crate) async fn run(
    mut connection: Option<PgConnection>,
    config: Config,
    channel: String,
    shared: Arc<Shared>,
) {
    let session = session(&config, shared.heartbeat);
    loop {
        let Some(batch) = shared.outbox.take() else {
            if shared.outbox.is_closed() {
                break;
            }
            shared.outbox.filled.notified().await;
            continue;
        };
        send(&mut connection, &session, &channel, &batch.payloads()).await;
        for caller in batch.callers {
            // A caller that no longer waits is no error.
            let _: Result<(), ()> = caller.send(());
        }
        // The pace. Without it, each notification would wake every listening process, and the writers would pay a third
        // of their rate for eight of them.
        tokio::time::sleep(shared.pace).await;
    }
    if let Some(connection) = connection {
        // A goodbye to a server that is not there is no error either.
        let _: Result<_, _> = timeout(SEND_LIMIT, connection.close()).await;
    }
}

/// Sends, connecting again after a loss, until it was sent. The caller ends the wait by dropping the task.
async fn send(connection: &mut Option<PgConnection>, session: &Session, channel: &str, payloads: &[String]) {
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build();
    loop {
        let attempt = async {
            let open = match connection.take() {
                Some(open) => open,
                None => connect(session).await?,
            };
            notify(open, channel, payloads).await
        };
        match attempt.await {
            Ok(open) => {
                *connection = Some(open);
                return;
            }
            Err(error) => tracing::warn!(%channel, %error, "cannot notify yet"),
        }
        tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(2))).await;
    }
}

pub(crate) async fn connect(session: &Session) -> Result<PgConnection, sqlx::Error> {
    timeout(session.limit, session.options.connect()).await.unwrap_or_else(|_| Err(too_late()))
}

/// Sends once, and gives the connection back.
pub(crate) async fn notify(
    mut connection: PgConnection,
    channel: &str,
    payloads: &[String],
) -> Result<PgConnection, sqlx::Error> {
    let sent = sqlx::query("select pg_notify($1, payload) from unnest($2::text[]) as payload")
        .bind(channel)
        .bind(payloads)
        .execute(&mut connection);
    timeout(SEND_LIMIT, sent).await.unwrap_or_else(|_| Err(too_late()))?;
    Ok(connection)
}

fn too_late() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    #[test]
    fn equal_notifications_that_wait_together_are_sent_once() {
        let outbox = Outbox::new(10);
        for payload in ["a", "b", "a"] {
            outbox.push(&topic("t"), payload, None).expect("pushed");
        }

        assert_eq!(outbox.take().expect("a batch").payloads(), ["11:1:ta1:1:tb"]);
    }

    #[test]
    fn past_its_size_the_outbox_says_everything_once() {
        let outbox = Outbox::new(2);
        for n in 0..5 {
            outbox.push(&topic("t"), &n.to_string(), None).expect("pushed");
        }

        assert_eq!(outbox.take().expect("a batch").payloads(), ["1*"]);
        assert!(outbox.take().is_none());
    }

    #[test]
    fn a_payload_that_would_not_fit_is_refused_at_the_call() {
        let outbox = Outbox::new(2);
        let limit = wire::payload_limit(1);

        let error = outbox.push(&topic("t"), &"x".repeat(limit + 1), None).expect_err("too long");

        assert_eq!(error, NotifyError::TooLong { bytes: limit + 1, limit });
        outbox.push(&topic("t"), &"x".repeat(limit), None).expect("the longest that fits");
        assert_eq!(outbox.push(&topic("t"), "\0", None), Err(NotifyError::Nul));
    }
}
