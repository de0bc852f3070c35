//! The task that sends: at once when idle, then paced, everything that gathered in one statement.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use sqlx::error::DatabaseError;
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;

use crate::Channel;
use crate::bus::Shared;
use crate::link::{Link, Sender, within};
use crate::state::{Part, Trouble};
use crate::wire;

/// The most payloads of a statement, half a megabyte: what takes longer than the server may take to answer would be tried again
/// for ever.
const STATEMENT: usize = 64;

/// So many calls for one statement, and the next one waits longer.
const BUSY: usize = 16;
/// At most so many times as long.
const LONGEST_STRETCH: u32 = 4;

/// The longest that a statement is waited for. The first attempt has the time of an answer, each further one twice as much.
const LONGEST: Duration = Duration::from_secs(30);

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

/// What the task owns.
pub(crate) struct Notifier<L: Link> {
    pub(crate) link: L,
    pub(crate) channel: Channel,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sender: Option<L::Sender>,
    /// The listening task dials a sender, too, to hear itself: it is newer than the one that is here, and known to be well.
    pub(crate) fresh: Receiver<L::Sender>,
    /// Some text was refused, and that was said.
    pub(crate) refused: bool,
}

impl<L: Link> Notifier<L> {
    /// Sends until the outbox is closed and empty. `_sends` is dropped with the task.
    pub(crate) async fn run(mut self, _sends: impl Send) {
        loop {
            let batch = tokio::select! {
                batch = self.shared.outbox.take() => batch,
                // Without a goodbye to the other one, which may be dead and would be waited for.
                Some(fresh) = self.fresh.recv() => {
                    self.sender = Some(fresh);
                    continue;
                }
            };
            let Some(batch) = batch else { break };
            for payloads in batch.payloads().chunks(STATEMENT) {
                if self.send(payloads).await == Outcome::Refused {
                    // One of them is to blame, and the others are not.
                    for payload in payloads.chunks(1) {
                        self.send_or_everything(payload).await;
                    }
                }
            }
            self.shared.counters.sent.add(batch.len());
            // The pace. Without it, each notification would wake every listening process, and the writers would pay a third
            // of their rate for eight of them.
            let pause = self.shared.pace * stretch(batch.calls());
            batch.sent();
            sleep(pause).await;
        }
        self.take_fresh();
        if let Some(sender) = self.sender {
            sender.close().await;
        }
    }

    fn take_fresh(&mut self) {
        while let Ok(fresh) = self.fresh.try_recv() {
            self.sender = Some(fresh);
        }
    }

    /// Sends what the database may not be able to hold: then everybody is told to look.
    async fn send_or_everything(&mut self, payload: &[String]) {
        if self.send(payload).await == Outcome::Refused {
            self.send(&[wire::EVERYTHING.to_owned()]).await;
        }
    }

    /// Sends, connecting again after a loss, until it was sent or can never be. Whoever closes the bus ends the wait by dropping
    /// the task.
    async fn send(&mut self, payloads: &[String]) -> Outcome {
        let mut pauses = pauses();
        let mut limit = self.shared.answer;
        // A session that was idle may have been ended meanwhile: that is found out by using it, and is no trouble.
        let mut may_be_stale = self.sender.is_some();
        loop {
            match self.attempt(payloads, limit).await {
                Ok(()) => {
                    if self.shared.condition.note(Part::Sending, None) {
                        tracing::info!(channel = %self.channel, "notifications are sent again");
                    }
                    return Outcome::Sent;
                }
                Err(error) if is_about_the_text(&error) => {
                    if std::mem::replace(&mut self.refused, true) {
                        tracing::debug!(channel = %self.channel, %error, "notifications that the database cannot hold");
                    } else {
                        tracing::error!(
                            channel = %self.channel, %error,
                            "notifications that the database cannot hold: subscribers are told to look for themselves"
                        );
                    }
                    return Outcome::Refused;
                }
                Err(error) if may_be_stale && error.as_database_error().is_none_or(is_an_end) => {
                    tracing::debug!(channel = %self.channel, %error, "the notifying session was lost while it was idle");
                    may_be_stale = false;
                    continue;
                }
                Err(error) => {
                    let trouble = Trouble::of(&error);
                    if self.shared.condition.note(Part::Sending, Some(trouble)) {
                        tracing::warn!(
                            channel = %self.channel, to = %self.link, %error, %trouble,
                            "cannot notify yet, trying until it works"
                        );
                    } else {
                        tracing::debug!(channel = %self.channel, %error, "cannot notify yet");
                    }
                }
            }
            limit = LONGEST.min(limit * 2).max(self.shared.answer);
            tokio::select! {
                // A connection that is known to be well is tried at once.
                Some(fresh) = self.fresh.recv() => self.sender = Some(fresh),
                () = sleep(pauses.next().unwrap_or(LONGEST)) => {}
            }
        }
    }

    async fn attempt(&mut self, payloads: &[String], limit: Duration) -> Result<(), sqlx::Error> {
        self.take_fresh();
        let open = self.sender.take();
        let Self { link, channel, shared, fresh, .. } = self;
        let sending = async {
            let mut sender = match open {
                Some(open) => open,
                None => link.sender().await?,
            };
            within(limit, sender.notify(channel, payloads)).await?;
            Ok::<_, sqlx::Error>(sender)
        };
        // One that takes its time may be dead. When there is another one, which is known to be well, it has had enough.
        let superseding = async {
            sleep(shared.answer).await;
            fresh.recv().await
        };
        let (sender, result) = tokio::select! {
            sent = Box::pin(sending) => (sent?, Ok(())),
            Some(fresh) = superseding => (fresh, Err(sqlx::Error::Io(ErrorKind::TimedOut.into()))),
        };
        self.sender = Some(sender);
        result
    }
}

/// How much longer than the pace it waits after so many calls: the busier those who write, the dearer each wake-up of all who
/// listen.
fn stretch(calls: usize) -> u32 {
    let times = calls / BUSY + 1;
    u32::try_from(times).map_or(LONGEST_STRETCH, |times| times.min(LONGEST_STRETCH))
}

/// What became of payloads.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Sent,
    /// They can never be sent.
    Refused,
}

/// Class 57, "operator intervention": the session was ended.
fn is_an_end(said: &dyn DatabaseError) -> bool {
    said.code().is_some_and(|code| code.starts_with("57"))
}

/// Class 22, "data exception": such as a character that the database's encoding has not. Another attempt would meet it again.
pub(crate) fn is_about_the_text(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code.starts_with("22"))
}

/// How long to wait between attempts: from 20 ms to 2 s.
pub(crate) fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}
