//! The link between a bus and the place where notifications are exchanged.
//!
//! There are two links: [`PostgresLink`](crate::PostgresLink), and `MemoryLink` (feature `memory`) for tests of programs that use a
//! bus. One conformance suite checks the promises of this module on both.

#[cfg(feature = "memory")]
pub(crate) mod memory;
pub(crate) mod postgres;

use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use db_core::{Backoff, ConnectFailure};
use sqlx::postgres::PgNotification;
use tokio::time::timeout;

use crate::Channel;

/// Opens sessions at a place where notifications are exchanged. Its text form names the place, without secrets.
pub trait Link: Clone + fmt::Display + Send + Sync + 'static {
    /// A session that listens.
    type Listener: Listener;
    /// A session that sends.
    type Sender: Sender;

    /// Opens a session that listens, to no channel yet. The link sets the timeout.
    ///
    /// Dropping the future opens nothing.
    ///
    /// # Errors
    ///
    /// The session could not be opened.
    fn listener(&self) -> impl Future<Output = Result<Self::Listener, sqlx::Error>> + Send;

    /// Opens a session that sends. The link sets the timeout.
    ///
    /// Dropping the future opens nothing.
    ///
    /// # Errors
    ///
    /// The session could not be opened.
    fn sender(&self) -> impl Future<Output = Result<Self::Sender, sqlx::Error>> + Send;

    /// Explains an error of opening a session.
    fn explain(&self, error: &sqlx::Error) -> ConnectFailure;
}

/// A session that listens.
///
/// After its first error the session is lost: the bus drops it and opens another one. The session must not reconnect by itself, since
/// subscribers must learn that notifications may have been missed.
pub trait Listener: Send + 'static {
    /// Adds channels. Notifications sent after the return [arrive](Listener::recv); notifications sent before the call do not. A channel
    /// of the session may be added again.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn listen(&mut self, channels: &[Channel]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Removes channels. Notifications that have arrived are still received.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn unlisten(&mut self, channels: &[Channel]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The next notification. Those of one sender come in the order in which they were sent. Cancel safe, unlike all other methods.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn recv(&mut self) -> impl Future<Output = Result<RawNotification, sqlx::Error>> + Send;

    /// Pings the server. Returns the usage of the queue that all notifications pass, from 0 to 1 (`pg_notification_queue_usage`).
    /// Notifications that arrive meanwhile are received later.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn ping(&mut self) -> impl Future<Output = Result<f64, sqlx::Error>> + Send;

    /// Closes the session gracefully. The link sets the timeout.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A session that sends.
///
/// After its first error, or when one of its futures was dropped, the bus drops the session and opens another one.
pub trait Sender: Send + 'static {
    /// Notifies a channel once for each payload, in their order: of all of them or of none. Equal payloads arrive once.
    ///
    /// # Errors
    ///
    /// After an error of the database, no payload was sent. After any other error, all or none were sent.
    fn notify(
        &mut self,
        channel: &Channel,
        payloads: &[String],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Closes the session gracefully. The link sets the timeout.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A notification as a session receives it.
#[derive(Clone)]
pub struct RawNotification(Form);

#[derive(Clone)]
enum Form {
    /// As the driver read it, without a copy.
    Postgres(PgNotification),
    Text {
        channel: Channel,
        payload: Arc<str>,
    },
}

impl RawNotification {
    /// Makes a notification that does not come from PostgreSQL.
    #[must_use]
    pub fn new(channel: Channel, payload: impl Into<Arc<str>>) -> Self {
        Self(Form::Text { channel, payload: payload.into() })
    }

    /// The channel that was notified.
    #[must_use]
    pub fn channel(&self) -> &str {
        match &self.0 {
            Form::Postgres(notification) => notification.channel(),
            Form::Text { channel, .. } => channel.as_str(),
        }
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &str {
        match &self.0 {
            Form::Postgres(notification) => notification.payload(),
            Form::Text { payload, .. } => payload,
        }
    }
}

impl From<PgNotification> for RawNotification {
    fn from(notification: PgNotification) -> Self {
        Self(Form::Postgres(notification))
    }
}

/// Shows the length of the payload only: payloads are data of the program.
impl fmt::Debug for RawNotification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawNotification")
            .field("channel", &self.channel())
            .field("bytes", &self.payload().len())
            .finish()
    }
}

/// The pauses between attempts to reach the server.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_secs(2))
}

/// Limits the time of a request to a session. A session that exceeds it is lost.
pub(crate) async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(limit, attempt).await.unwrap_or_else(|_| Err(sqlx::Error::Io(ErrorKind::TimedOut.into())))
}
