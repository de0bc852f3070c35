//! Opening a pair of sessions, and checking that notifications pass from one to the other.

use std::fmt;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use crate::error::OpenError;
use crate::link::{Link, Listener, Sender, within};
use crate::state::Trouble;
use crate::{Channel, wire};

/// How long a LISTEN may take. The first LISTEN of a session reads the server's queue.
pub(crate) const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no session listens.
#[derive(Debug)]
pub(crate) enum ListenError {
    /// Opening the sessions, LISTEN or the check failed.
    Failed(sqlx::Error),
    /// LISTEN succeeded, and the bus's own notification did not arrive.
    NothingDelivered,
}

impl ListenError {
    pub(crate) fn trouble(&self) -> Trouble {
        match self {
            Self::Failed(error) => Trouble::of(error),
            Self::NothingDelivered => Trouble::NothingDelivered,
        }
    }

    pub(crate) fn into_open_error<L: Link>(self, link: &L) -> OpenError {
        let to = link.to_string();
        match self {
            Self::NothingDelivered => OpenError::NothingDelivered { to },
            Self::Failed(error) if Trouble::of(&error) == Trouble::Standby => OpenError::Standby { to },
            Self::Failed(error) => OpenError::Listen { to, failure: link.explain(&error) },
        }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::NothingDelivered => Trouble::NothingDelivered.fmt(f),
        }
    }
}

impl From<sqlx::Error> for ListenError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

/// A session that listens, and a session whose notification it has received.
pub(crate) type Sessions<L> = (<L as Link>::Listener, <L as Link>::Sender);

/// Opens both sessions, LISTENs, and notifies from the one to the other. Behind a pooler in transaction mode, LISTEN succeeds, the
/// session answers every ping, and no notification ever arrives.
pub(crate) async fn open_sessions<L: Link>(
    link: &L,
    own: &Channel,
    raw: &[Channel],
    answer: Duration,
) -> Result<Sessions<L>, ListenError> {
    let channels: Vec<Channel> = std::iter::once(own).chain(raw).cloned().collect();
    let listen = async {
        let mut listener = link.listener().await?;
        within(LISTEN_TIMEOUT, listener.listen(&channels)).await?;
        Ok(listener)
    };
    // The two sessions do not depend on each other. Boxed, since the driver's futures are large.
    let (mut listener, mut sender) = tokio::try_join!(Box::pin(listen), Box::pin(link.sender()))?;
    let nothing = [wire::NOTHING.to_owned()];
    match within(LISTEN_TIMEOUT, sender.notify(own, &nothing)).await {
        Ok(()) => {}
        // The sending session received the notification: a pooler gave it the session that listens.
        Err(sqlx::Error::Protocol(message)) if message.contains("NotificationResponse") => {
            return Err(ListenError::NothingDelivered);
        }
        Err(error) => return Err(error.into()),
    }
    // Any notification on our own channel proves delivery, whoever sent it, and is dropped: the gap that follows covers it. A
    // notification on another channel proves nothing: behind a pooler, the session may be shared.
    let delivered = async {
        while listener.recv().await?.channel() != own.as_str() {}
        Ok::<_, sqlx::Error>(())
    };
    if let Ok(delivered) = timeout(answer, delivered).await {
        delivered?;
    } else {
        within(answer, listener.ping()).await?;
        // The notification may have arrived before the answer, while this process was too busy to receive it.
        let late = listener.recv().now_or_never().ok_or(ListenError::NothingDelivered)?;
        drop(late?);
    }
    Ok((listener, sender))
}
