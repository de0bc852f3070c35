//! The task that owns the one LISTEN connection.

use std::collections::HashSet;
use std::fmt;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::error::DatabaseError;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use crate::Channel;
use crate::bus::Shared;
use crate::delivery::GapReason;
use crate::link::{Link, Listener, RawNotification, Sender, within};
use crate::notifier::{self, pauses};
use crate::state::{Part, Trouble};
use crate::unreadable::Unreadable;
use crate::wire::{self, Message};

/// How long a LISTEN may take. A first one reads what is in the server's queue.
pub(crate) const LISTEN_LIMIT: Duration = Duration::from_secs(5);

/// How full the server's queue has to be for a word about it. The server itself warns at one half, in its log.
const NEARLY_FULL: f64 = 0.5;

/// The most notifications that are delivered in a row before anything else is looked at.
const IN_A_ROW: usize = 256;

/// Why there is nothing to receive from.
#[derive(Debug)]
pub(crate) enum Deaf {
    /// What opening, LISTEN or the question whether anything arrives have met.
    Met(sqlx::Error),
    /// LISTEN was answered, and what was then notified did not arrive.
    NothingDelivered,
}

impl Deaf {
    fn trouble(&self) -> Trouble {
        match self {
            Self::Met(error) => Trouble::of(error),
            Self::NothingDelivered => Trouble::NothingDelivered,
        }
    }
}

impl fmt::Display for Deaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Met(error) => error.fmt(f),
            Self::NothingDelivered => Trouble::NothingDelivered.fmt(f),
        }
    }
}

impl From<sqlx::Error> for Deaf {
    fn from(error: sqlx::Error) -> Self {
        Self::Met(error)
    }
}

/// A session that listens, and one that was heard by it.
pub(crate) type Both<L> = (<L as Link>::Listener, <L as Link>::Sender);

/// LISTENs, and notifies itself from another session, which comes along: a pooler in transaction mode says yes to LISTEN, and
/// nothing ever comes, though it goes on answering.
pub(crate) async fn listen_and_hear<L: Link>(
    link: &L,
    own: &Channel,
    others: &[Channel],
    answer: Duration,
) -> Result<Both<L>, Deaf> {
    let channels: Vec<Channel> = std::iter::once(own).chain(others).cloned().collect();
    let listen = async {
        let mut listener = link.listener().await?;
        within(LISTEN_LIMIT, listener.listen(&channels)).await?;
        Ok(listener)
    };
    // Only the notification has to come after both. Boxed, since the driver's futures are large.
    let (mut listener, mut sender) = tokio::try_join!(Box::pin(listen), Box::pin(link.sender()))?;
    let nothing = [wire::NOTHING.to_owned()];
    match within(LISTEN_LIMIT, sender.notify(own, &nothing)).await {
        Ok(()) => {}
        // It got the notification itself: a pooler gave it the session that listens.
        Err(sqlx::Error::Protocol(said)) if said.contains("NotificationResponse") => {
            return Err(Deaf::NothingDelivered);
        }
        Err(error) => return Err(error.into()),
    }
    // Be it that, or what somebody else says: whoever is here before LISTEN is in force will be told of a gap.
    let heard = async {
        // Be it on this channel: another one may be another client's, on a session that a pooler lends to many.
        while listener.recv().await?.channel() != own.as_str() {}
        Ok::<_, sqlx::Error>(())
    };
    if let Ok(heard) = timeout(answer, heard).await {
        heard?;
    } else {
        within(answer, listener.ping()).await?;
        // It may have been there before the answer, and this process too busy to look.
        let late = listener.recv().now_or_never().ok_or(Deaf::NothingDelivered)?;
        drop(late?);
    }
    Ok((listener, sender))
}

/// What the task owns.
pub(crate) struct Listening<L: Link> {
    pub(crate) link: L,
    pub(crate) channel: Channel,
    pub(crate) shared: Arc<Shared>,
    /// None on a lazy bus, before somebody has subscribed.
    pub(crate) listener: Option<L::Listener>,
    /// To the notifier.
    pub(crate) senders: mpsc::Sender<L::Sender>,
    /// Channels of other programs' that are listened to.
    pub(crate) others: HashSet<Channel>,
    pub(crate) unreadable: Unreadable,
}

impl<L: Link> Listening<L> {
    /// Receives until the bus is closed, making a new session after every loss; the first one, if there is none yet, when
    /// somebody has subscribed. `hears` is dropped when nothing is received any more.
    pub(crate) async fn run(mut self, hears: impl Send) {
        let shared = Arc::clone(&self.shared);
        let _cut_off: Option<()> = shared.closing.run_until_cancelled(self.listen_for_ever()).await;
        drop(hears);
        if let Some(listener) = self.listener {
            listener.close().await;
        }
    }

    async fn listen_for_ever(&mut self) {
        let mut reason = None;
        let mut pauses = pauses();
        if self.listener.is_none() {
            self.shared.routes.subscribed().await;
            self.listen_again().await;
            reason = Some(GapReason::Started);
        }
        loop {
            self.shared.condition.connected();
            self.shared.routes.in_force(&self.others);
            // They look at what they follow now, while nothing can be missed any more.
            if let Some(reason) = reason.replace(GapReason::Reconnected) {
                self.shared.gap(reason);
            }
            let (loss, was_well) = self.receive().await;
            self.shared.condition.lost();
            if was_well {
                tracing::warn!(channel = %self.channel, %loss, "notifications lost, listening again");
                pauses = notifier::pauses();
            } else {
                // One that is lost as soon as it is there would be lost as often as it can be made.
                tracing::debug!(channel = %self.channel, %loss, "notifications lost before the first sign of life");
                sleep(pauses.next().unwrap_or(LISTEN_LIMIT)).await;
            }
            self.listen_again().await;
        }
    }

    /// Delivers what arrives; returns why it cannot go on, and whether the server ever gave a sign of life.
    async fn receive(&mut self) -> (sqlx::Error, bool) {
        let Self { shared, listener, others, channel, unreadable, .. } = self;
        let lost = || sqlx::Error::Io(ErrorKind::NotConnected.into());
        let Some(listener) = listener else { return (lost(), false) };
        let mut was_well = false;
        let heartbeat = sleep(Duration::ZERO);
        let mut heartbeat = pin!(heartbeat);
        loop {
            let result = tokio::select! {
                arrived = listener.recv() => match arrived {
                    Ok(arrived) => {
                        deliver(&arrived, channel, others, shared, unreadable);
                        match drain(listener, channel, others, shared, unreadable) {
                            // In a flood, this task would not wait for thousands of them, and the subscribers it has woken
                            // would wait for it while their queues fill.
                            Ok(Left::More) => {
                                yield_now().await;
                                Ok(())
                            }
                            Ok(Left::Nothing) => Ok(()),
                            Err(error) => Err(error),
                        }
                    }
                    Err(error) => Err(error),
                },
                () = shared.routes.changed() => follow(listener, channel, others, shared).await,
                () = &mut heartbeat => {
                    unreadable.tell(Instant::now(), channel);
                    let alive = ask(listener, channel, shared).await;
                    was_well |= alive.is_ok();
                    heartbeat.as_mut().reset(Instant::now() + shared.heartbeat);
                    alive
                }
            };
            if let Err(error) = result {
                return (error, was_well);
            }
        }
    }

    /// Tries until it listens and hears. Says why it does not when that is new, and not with each attempt.
    async fn listen_again(&mut self) {
        let Self { link, channel, shared, .. } = self;
        let mut pauses = pauses();
        let (listener, sender) = loop {
            self.others = shared.routes.channels();
            let others: Vec<_> = self.others.iter().cloned().collect();
            match listen_and_hear(link, channel, &others, shared.answer).await {
                Ok(both) => break both,
                Err(error) => {
                    let trouble = error.trouble();
                    if shared.condition.note(Part::Listening, Some(trouble)) {
                        tracing::warn!(%channel, to = %link, %error, %trouble, "cannot listen yet, trying until it works");
                    } else {
                        tracing::debug!(%channel, %error, "cannot listen yet");
                    }
                }
            }
            sleep(pauses.next().unwrap_or(LISTEN_LIMIT)).await;
        };
        if shared.condition.note(Part::Listening, None) {
            tracing::info!(%channel, to = %link, "listening again");
        }
        // The old one goes when the new one is there: its peer may not answer any more.
        self.listener = Some(listener);
        if let Err(unwanted) = self.senders.try_send(sender) {
            unwanted.into_inner().close().await;
        }
    }
}

/// What may have arrived and is not delivered yet.
enum Left {
    Nothing,
    More,
}

/// Delivers what has arrived already. Bounded, so that a flood keeps neither heartbeats nor LISTENs waiting.
fn drain<L: Listener>(
    listener: &mut L,
    own: &Channel,
    others: &HashSet<Channel>,
    shared: &Shared,
    unreadable: &mut Unreadable,
) -> Result<Left, sqlx::Error> {
    let mut look = Context::from_waker(Waker::noop());
    for _ in 0..IN_A_ROW {
        // In its place: a driver's future has kilobytes, and `now_or_never` would move it for each notification.
        let Poll::Ready(arrived) = pin!(listener.recv()).poll(&mut look) else { return Ok(Left::Nothing) };
        deliver(&arrived?, own, others, shared, unreadable);
    }
    Ok(Left::More)
}

/// Listens to what somebody wants now, and no longer to what nobody wants.
async fn follow<L: Listener>(
    listener: &mut L,
    own: &Channel,
    others: &mut HashSet<Channel>,
    shared: &Shared,
) -> Result<(), sqlx::Error> {
    let wanted = shared.routes.channels();
    let more: Vec<Channel> = wanted.difference(others).cloned().collect();
    if !more.is_empty() {
        within(LISTEN_LIMIT, listener.listen(&more)).await?;
    }
    // The bus's own channel, too, may have been listened to as it is.
    let fewer: Vec<Channel> = others.difference(&wanted).filter(|channel| *channel != own).cloned().collect();
    if !fewer.is_empty() {
        within(LISTEN_LIMIT, listener.unlisten(&fewer)).await?;
    }
    *others = wanted;
    shared.routes.in_force(others);
    Ok(())
}

/// A heartbeat.
async fn ask<L: Listener>(listener: &mut L, own: &Channel, shared: &Shared) -> Result<(), sqlx::Error> {
    let usage = match within(shared.answer, listener.ping()).await {
        Ok(usage) => Some(usage),
        // A sign of life, too. What it says about the question is not worth a connection.
        Err(error) if is_an_answer(&error) => {
            tracing::debug!(channel = %own, %error, "how full the server's queue is cannot be asked");
            None
        }
        Err(error) => return Err(error),
    };
    shared.condition.heard(usage);
    let trouble = usage.filter(|usage| *usage >= NEARLY_FULL).map(|_| Trouble::QueueFull);
    if shared.condition.note(Part::Queue, trouble) {
        match trouble {
            Some(trouble) => {
                tracing::warn!(channel = %own, usage, %trouble, "notifications may soon be refused");
            }
            None => {
                tracing::info!(channel = %own, usage, "the server's queue of notifications has room again");
            }
        }
    }
    Ok(())
}

/// Whether the server has refused a statement, and not the session: classes 08 and 57, and two more of the manual's appendix A.
fn is_an_answer(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| !code.starts_with("08") && !code.starts_with("57") && code != "25P03")
}

fn deliver(
    arrived: &RawNotification,
    own: &Channel,
    others: &HashSet<Channel>,
    shared: &Shared,
    unreadable: &mut Unreadable,
) {
    if !others.is_empty() {
        shared.routes.deliver_from(arrived.channel(), arrived.payload());
    }
    // Also when nobody wants any other: what one has said before its UNLISTEN may arrive after it.
    if arrived.channel() != own.as_str() {
        return;
    }
    match wire::decode(arrived.payload()) {
        Some(Message::Entries(entries)) => shared.routes.deliver_all(entries),
        Some(Message::Everything) => shared.gap(GapReason::Overflow),
        None => {
            unreadable.came(arrived.payload(), Instant::now(), own);
            shared.gap(GapReason::Unreadable);
        }
    }
}
