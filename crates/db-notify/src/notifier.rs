//! The task that sends. It sends at once when it was idle. Then it keeps the pace: all that gathered meanwhile goes into one batch.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;

use crate::class;
use crate::link::{Link, Sender, backoff, within};
use crate::shared::BusShared;
use crate::state::{Part, Trouble};
use crate::wire;
use crate::{Channel, Flushed};

/// The most payloads of a statement, 512 KB together. A larger statement might exceed every timeout, and be repeated for ever.
const MAX_PAYLOADS: usize = 64;

/// For each 16 calls that a batch stands for, the pause after it is one pace longer.
const CALLS_PER_PACE: usize = 16;

/// The longest pause, in paces.
const MAX_PACES: u32 = 4;

/// The longest timeout of a statement. The first attempt has the timeout of an answer, each further one twice as much.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// What the task owns.
pub(crate) struct Notifier<L: Link> {
    pub(crate) link: L,
    pub(crate) channel: Channel,
    pub(crate) shared: Arc<BusShared>,
    pub(crate) sender: Option<L::Sender>,
    /// Sending sessions from the listening task, which opens one with each listening session to check delivery. Such a session is
    /// newer than `sender`, and known to work.
    pub(crate) senders: Receiver<L::Sender>,
    /// A refused text was logged as an error. Later ones are logged at debug level.
    pub(crate) logged_refusal: bool,
}

impl<L: Link> Notifier<L> {
    /// Sends until the outbox is closed and empty. `_sends` is dropped with the task.
    pub(crate) async fn run(mut self, _sends: impl Send) {
        loop {
            let batch = tokio::select! {
                batch = self.shared.outbox.take() => batch,
                // The old session is dropped and not closed: its peer may be dead, and closing would wait for it.
                Some(sender) = self.senders.recv() => {
                    self.sender = Some(sender);
                    continue;
                }
            };
            let Some(batch) = batch else { break };
            let taken = Instant::now();
            for payloads in batch.payloads().chunks(MAX_PAYLOADS) {
                if self.send(payloads).await == Outcome::Refused {
                    // One payload of them was refused. The others are sent without it.
                    for payload in payloads.chunks(1) {
                        self.send_or_everything(payload).await;
                    }
                }
            }
            let counters = &self.shared.counters;
            counters.sent.add(batch.len());
            let flushed = Flushed { notifications: batch.len(), calls: batch.calls(), took: taken.elapsed() };
            counters.observers.report(|observer| observer.flushed(&flushed));
            // Without the pace, each notification would wake every listening process: with eight of them, writers would lose
            // a third of their rate.
            let pause = self.shared.pace * paces(batch.calls());
            batch.sent();
            sleep(pause).await;
        }
        self.take_newest();
        if let Some(sender) = self.sender {
            sender.close().await;
        }
    }

    fn take_newest(&mut self) {
        while let Ok(sender) = self.senders.try_recv() {
            self.sender = Some(sender);
        }
    }

    /// Sends one payload. If the database cannot hold it, sends "everything" in its place.
    async fn send_or_everything(&mut self, payload: &[String]) {
        if self.send(payload).await == Outcome::Refused {
            self.send(&[wire::EVERYTHING.to_owned()]).await;
        }
    }

    /// Sends until the statement is done or the text is refused, and connects again after each loss. Closing the bus ends the wait
    /// by dropping the task.
    async fn send(&mut self, payloads: &[String]) -> Outcome {
        let mut pauses = backoff();
        let mut limit = self.shared.answer;
        // The server may have ended the session while it was idle, which its next use shows. That is no trouble.
        let mut may_be_stale = self.sender.is_some();
        loop {
            match self.attempt(payloads, limit).await {
                Ok(()) => {
                    if self.shared.condition.note(Part::Sending, None) {
                        tracing::info!(channel = %self.channel, "notifications are sent again");
                    }
                    return Outcome::Sent;
                }
                Err(error) if class::is_text_refused(&error) => {
                    if std::mem::replace(&mut self.logged_refusal, true) {
                        tracing::debug!(channel = %self.channel, %error, "the database cannot hold a notification");
                    } else {
                        tracing::error!(
                            channel = %self.channel, %error,
                            "the database cannot hold a notification: all subscribers are told of a gap in its place. Use topics and \
                             payloads in the encoding of the database"
                        );
                    }
                    return Outcome::Refused;
                }
                Err(error) if may_be_stale && class::is_session_lost(&error) => {
                    tracing::debug!(channel = %self.channel, %error, "the sending session was lost while it was idle");
                    may_be_stale = false;
                    continue;
                }
                Err(error) => {
                    let trouble = Trouble::of(&error);
                    if self.shared.condition.note(Part::Sending, Some(trouble)) {
                        tracing::warn!(
                            channel = %self.channel, to = %self.link, %error, %trouble,
                            "the bus cannot notify yet, retrying until it can"
                        );
                    } else {
                        tracing::debug!(channel = %self.channel, %error, "the bus cannot notify yet");
                    }
                }
            }
            limit = MAX_TIMEOUT.min(limit * 2).max(self.shared.answer);
            tokio::select! {
                // A session that is known to work is used at once.
                Some(sender) = self.senders.recv() => self.sender = Some(sender),
                () = sleep(pauses.pause()) => {}
            }
        }
    }

    async fn attempt(&mut self, payloads: &[String], limit: Duration) -> Result<(), sqlx::Error> {
        self.take_newest();
        let open = self.sender.take();
        let Self { link, channel, shared, senders, .. } = self;
        let sending = async {
            let mut sender = match open {
                Some(open) => open,
                None => link.sender().await?,
            };
            within(limit, sender.notify(channel, payloads)).await?;
            Ok::<_, sqlx::Error>(sender)
        };
        // A session that has not answered in time may be dead. A new session, which is known to work, then replaces it.
        let replacement = async {
            sleep(shared.answer).await;
            senders.recv().await
        };
        let (sender, result) = tokio::select! {
            sent = Box::pin(sending) => (sent?, Ok(())),
            Some(sender) = replacement => (sender, Err(sqlx::Error::Io(ErrorKind::TimedOut.into()))),
        };
        self.sender = Some(sender);
        result
    }
}

/// The pause after a batch, in paces. The more calls a batch stands for, the more it costs the writers that each statement wakes all
/// listeners.
fn paces(calls: usize) -> u32 {
    let paces = calls / CALLS_PER_PACE + 1;
    u32::try_from(paces).map_or(MAX_PACES, |paces| paces.min(MAX_PACES))
}

/// How an attempt to send ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Sent,
    /// The database cannot hold the text.
    Refused,
}
