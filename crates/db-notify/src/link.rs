//! What a bus needs of the place where notifications are exchanged.
//!
//! There are two such places: [`PostgresLink`](crate::PostgresLink), and, for tests of programs that use a bus, `MemoryLink` (feature
//! `memory`). One conformance suite runs on both, so that what is said here holds for both.

use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use db_core::ConnectFailure;
use sqlx::postgres::PgNotification;
use tokio::time::timeout;

use crate::Channel;

/// A place where notifications are exchanged. Its text form says where, without secrets.
pub trait Link: Clone + fmt::Display + Send + Sync + 'static {
    /// One that listens.
    type Listener: Listener;
    /// One that sends.
    type Sender: Sender;

    /// Opens a session that listens, to nothing yet.
    ///
    /// Dropping the future opens nothing.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being opened, within a time of the link's own.
    fn listener(&self) -> impl Future<Output = Result<Self::Listener, sqlx::Error>> + Send;

    /// Opens a session that sends.
    ///
    /// Dropping the future opens nothing.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being opened, within a time of the link's own.
    fn sender(&self) -> impl Future<Output = Result<Self::Sender, sqlx::Error>> + Send;

    /// What an error of opening means.
    fn explain(&self, error: &sqlx::Error) -> ConnectFailure;
}

/// A session that listens.
///
/// After its first error it is lost: the bus drops it and opens another one. It must not mend itself, since whoever listens has
/// to know that something may have been missed.
pub trait Listener: Send + 'static {
    /// Listens to these channels too. What is notified after it has returned [arrives](Listener::recv), and nothing that was
    /// notified before it was called does. A channel that is listened to already stays so.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn listen(&mut self, channels: &[Channel]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Listens to these channels no longer. What has arrived before is still received.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn unlisten(&mut self, channels: &[Channel]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The next notification, those of one sender in the order in which they were sent. Cancel safe, unlike everything else here.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn recv(&mut self) -> impl Future<Output = Result<RawNotification, sqlx::Error>> + Send;

    /// Asks the other end for a sign of life, which is how full the queue is that all notifications pass, from 0 to 1
    /// (`pg_notification_queue_usage`). What arrives meanwhile is received later.
    ///
    /// # Errors
    ///
    /// The session is lost.
    fn ping(&mut self) -> impl Future<Output = Result<f64, sqlx::Error>> + Send;

    /// Says goodbye, within a time of the link's own.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A session that sends.
///
/// After its first error, or when one of its futures is dropped, it is dropped and another one opened.
pub trait Sender: Send + 'static {
    /// Notifies a channel of all payloads, at once and in their order, or of none. Equal ones arrive once.
    ///
    /// # Errors
    ///
    /// With an answer of the database, none was sent. With anything else, all of them or none.
    fn notify(
        &mut self,
        channel: &Channel,
        payloads: &[String],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Says goodbye, within a time of the link's own.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// What a listener receives.
#[derive(Clone)]
pub struct RawNotification(Form);

#[derive(Clone)]
enum Form {
    /// As the driver read it: nothing is copied.
    Postgres(PgNotification),
    Text {
        channel: Channel,
        payload: Arc<str>,
    },
}

impl RawNotification {
    /// One that does not come from PostgreSQL.
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

    /// What it was notified of.
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

/// How much it carries, and not what: payloads are the program's.
impl fmt::Debug for RawNotification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawNotification")
            .field("channel", &self.channel())
            .field("bytes", &self.payload().len())
            .finish()
    }
}

/// A session that does not answer in time is lost.
pub(crate) async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(limit, attempt).await.unwrap_or_else(|_| Err(sqlx::Error::Io(ErrorKind::TimedOut.into())))
}
