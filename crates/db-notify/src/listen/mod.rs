//! The task that owns the one LISTEN connection.

mod open;
mod unreadable;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::Channel;
use crate::class;
use crate::deliver::GapReason;
use crate::link::{Link, Listener, RawNotification, Sender, backoff, within};
use crate::shared::BusShared;
use crate::state::{Part, Trouble};
use crate::wire::{self, Message};
pub(crate) use open::{LISTEN_TIMEOUT, Sessions, open_sessions};
pub(crate) use unreadable::Unreadable;

/// The share of the server's queue in use at which the bus warns. The server warns at the same share, in its own log.
const NEARLY_FULL: f64 = 0.5;

/// The most notifications that are delivered in a row before the task turns to anything else.
const MAX_DRAINED: usize = 256;

/// What the task owns.
pub(crate) struct Listening<L: Link> {
    pub(crate) link: L,
    pub(crate) channel: Channel,
    pub(crate) shared: Arc<BusShared>,
    /// `None` on a lazy bus before the first subscription.
    pub(crate) listener: Option<L::Listener>,
    /// New sending sessions go to the notifier.
    pub(crate) new_senders: mpsc::Sender<L::Sender>,
    /// Channels of other programs to which the session listens.
    pub(crate) raw_channels: HashSet<Channel>,
    pub(crate) unreadable: Unreadable,
}

impl<L: Link> Listening<L> {
    /// Receives until the bus is closed. After each loss it opens new sessions; on a lazy bus it opens the first ones at the first
    /// subscription. `listens` is dropped when nothing is received any more.
    pub(crate) async fn run(mut self, listens: impl Send) {
        let shared = Arc::clone(&self.shared);
        let _closed: Option<()> = shared.closing.run_until_cancelled(self.keep_receiving()).await;
        drop(listens);
        if let Some(listener) = self.listener {
            listener.close().await;
        }
    }

    async fn keep_receiving(&mut self) {
        let mut reason = None;
        let mut pauses = backoff();
        if self.listener.is_none() {
            self.shared.routes.subscribed().await;
            self.connect().await;
            reason = Some(GapReason::Started);
        }
        loop {
            self.shared.condition.connected();
            self.shared.routes.start(&self.raw_channels);
            // Subscribers read now, while no notification can be missed.
            if let Some(reason) = reason.replace(GapReason::Reconnected) {
                self.shared.gap(reason);
            }
            let (loss, had_heartbeat) = self.receive().await;
            self.shared.condition.lost();
            if had_heartbeat {
                tracing::warn!(channel = %self.channel, %loss, "the listening session was lost, connecting again");
                pauses = backoff();
            } else {
                // Sessions that end before their first heartbeat are opened less and less often.
                tracing::debug!(channel = %self.channel, %loss, "the listening session was lost before its first heartbeat");
                sleep(pauses.pause()).await;
            }
            self.connect().await;
        }
    }

    /// Delivers what arrives. Returns the error that ended the session, and whether the server answered a heartbeat before.
    async fn receive(&mut self) -> (sqlx::Error, bool) {
        let Self { shared, listener, raw_channels, channel, unreadable, .. } = self;
        let no_session = || sqlx::Error::Io(ErrorKind::NotConnected.into());
        let Some(listener) = listener else { return (no_session(), false) };
        let mut had_heartbeat = false;
        let timer = sleep(Duration::ZERO);
        let mut timer = pin!(timer);
        loop {
            let result = tokio::select! {
                received = listener.recv() => match received {
                    Ok(notification) => {
                        deliver(&notification, channel, raw_channels, shared, unreadable);
                        match drain(listener, channel, raw_channels, shared, unreadable) {
                            // In a flood this task is never idle. Without a yield, the subscribers that it has woken
                            // would not run, and their queues would fill.
                            Ok(Drained::Partly) => {
                                yield_now().await;
                                Ok(())
                            }
                            Ok(Drained::Completely) => Ok(()),
                            Err(error) => Err(error),
                        }
                    }
                    Err(error) => Err(error),
                },
                () = shared.routes.changed() => update_channels(listener, channel, raw_channels, shared).await,
                () = &mut timer => {
                    unreadable.report(Instant::now(), channel);
                    let answer = heartbeat(listener, channel, shared).await;
                    had_heartbeat |= answer.is_ok();
                    timer.as_mut().reset(Instant::now() + shared.heartbeat);
                    answer
                }
            };
            if let Err(error) = result {
                return (error, had_heartbeat);
            }
        }
    }

    /// Opens new sessions, however long it takes. Each new kind of trouble is logged once, and not with each attempt.
    async fn connect(&mut self) {
        let Self { link, channel, shared, .. } = self;
        let mut pauses = backoff();
        let (listener, sender) = loop {
            self.raw_channels = shared.routes.channels();
            let raw: Vec<_> = self.raw_channels.iter().cloned().collect();
            match open_sessions(link, channel, &raw, shared.answer).await {
                Ok(sessions) => break sessions,
                Err(error) => {
                    let trouble = error.trouble();
                    if shared.condition.note(Part::Listening, Some(trouble)) {
                        tracing::warn!(%channel, to = %link, %error, %trouble, "the bus cannot listen yet, retrying until it can");
                    } else {
                        tracing::debug!(%channel, %error, "the bus cannot listen yet");
                    }
                }
            }
            sleep(pauses.pause()).await;
        };
        if shared.condition.note(Part::Listening, None) {
            tracing::info!(%channel, to = %link, "the bus listens again");
        }
        // The old session is dropped only now: its peer may not answer any more.
        self.listener = Some(listener);
        if let Err(unwanted) = self.new_senders.try_send(sender) {
            unwanted.into_inner().close().await;
        }
    }
}

/// How many of the notifications that have arrived were delivered.
enum Drained {
    Completely,
    Partly,
}

/// Delivers the notifications that have arrived, and at most `MAX_DRAINED`: a flood must not delay heartbeats and LISTENs.
fn drain<L: Listener>(
    listener: &mut L,
    own: &Channel,
    raw_channels: &HashSet<Channel>,
    shared: &BusShared,
    unreadable: &mut Unreadable,
) -> Result<Drained, sqlx::Error> {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..MAX_DRAINED {
        // Pinned in place: the driver's future has kilobytes, and `now_or_never` would move it for each notification.
        let Poll::Ready(received) = pin!(listener.recv()).poll(&mut context) else {
            return Ok(Drained::Completely);
        };
        deliver(&received?, own, raw_channels, shared, unreadable);
    }
    Ok(Drained::Partly)
}

/// LISTENs to the channels with a new subscriber, and UNLISTENs from those without any.
async fn update_channels<L: Listener>(
    listener: &mut L,
    own: &Channel,
    raw_channels: &mut HashSet<Channel>,
    shared: &BusShared,
) -> Result<(), sqlx::Error> {
    let wanted = shared.routes.channels();
    let more: Vec<Channel> = wanted.difference(raw_channels).cloned().collect();
    if !more.is_empty() {
        within(LISTEN_TIMEOUT, listener.listen(&more)).await?;
    }
    // A program may have listened to the bus's own channel. The bus itself still needs it.
    let fewer: Vec<Channel> =
        raw_channels.difference(&wanted).filter(|channel| *channel != own).cloned().collect();
    if !fewer.is_empty() {
        within(LISTEN_TIMEOUT, listener.unlisten(&fewer)).await?;
    }
    *raw_channels = wanted;
    shared.routes.start(raw_channels);
    Ok(())
}

/// Pings the server, and notes how full its queue is.
async fn heartbeat<L: Listener>(
    listener: &mut L,
    own: &Channel,
    shared: &BusShared,
) -> Result<(), sqlx::Error> {
    let usage = match within(shared.answer, listener.ping()).await {
        Ok(usage) => Some(usage),
        // An error of the statement is an answer, too, and no reason to give up the session.
        Err(error) if !class::is_session_lost(&error) => {
            tracing::debug!(channel = %own, %error, "the server does not tell the usage of its queue of notifications");
            None
        }
        Err(error) => return Err(error),
    };
    shared.condition.heartbeat(usage);
    let trouble = usage.filter(|usage| *usage >= NEARLY_FULL).map(|_| Trouble::QueueFull);
    if shared.condition.note(Part::Queue, trouble) {
        match trouble {
            Some(trouble) => {
                tracing::warn!(channel = %own, usage, %trouble, "the server may soon refuse notifications");
            }
            None => {
                tracing::info!(channel = %own, usage, "the server's queue of notifications has room again");
            }
        }
    }
    Ok(())
}

fn deliver(
    notification: &RawNotification,
    own: &Channel,
    raw_channels: &HashSet<Channel>,
    shared: &BusShared,
    unreadable: &mut Unreadable,
) {
    if !raw_channels.is_empty() {
        shared.routes.deliver_raw(notification.channel(), notification.payload());
    }
    // Checked in any case: after an UNLISTEN, notifications of that channel may still arrive.
    if notification.channel() != own.as_str() {
        return;
    }
    match wire::decode(notification.payload()) {
        Some(Message::Entries(entries)) => shared.routes.deliver(entries),
        Some(Message::Everything) => shared.gap(GapReason::Overflow),
        None => {
            unreadable.record(notification.payload(), Instant::now(), own);
            shared.gap(GapReason::Unreadable);
        }
    }
}
