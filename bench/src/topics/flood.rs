//! Notifications at the highest rate at which they are received.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use db_core::Config;
use db_layer::db_notify::{Bus, Delivery, Subscription, Topic};
use sqlx::postgres::{PgListener, PgPool};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::session::{CHANNEL, PATIENCE, Sender, close_bus, close_listener, open_bus, open_listener};
use crate::load::Slice;

/// The notifications in one statement.
const STATEMENT: usize = 1000;

/// The receiver.
#[derive(Debug, Clone, Copy)]
pub(super) enum Receiver {
    /// One subscription to this number of topics.
    Subscription(u32),
    /// This number of subscriptions, each to one topic and in a task of its own.
    Tasks(u32),
    /// sqlx's listener on this number of channels.
    Listener(u32),
}

impl Receiver {
    fn topics(self) -> u32 {
        match self {
            Self::Subscription(topics) | Self::Tasks(topics) | Self::Listener(topics) => topics,
        }
    }

    /// The expected rate of notifications per second, by which their number is chosen: with one number for all, many channels would
    /// take minutes.
    fn pace(self) -> f64 {
        match self {
            Self::Listener(channels) if channels > 1000 => 100_000.0,
            _ => 1_000_000.0,
        }
    }
}

/// Sends the notifications of a slice. The rate is from the first statement to the last receipt.
pub(super) async fn run(config: Config, receiver: Receiver, slice: Duration) -> anyhow::Result<Slice> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some hundred thousand notifications"
    )]
    let all = (receiver.pace() * slice.as_secs_f64()) as u64;
    let names: Vec<String> = (0..receiver.topics()).map(|n| format!("topic/{n}")).collect();
    let statements = statements(receiver, &names, all);
    let tally = Arc::new(Tally::new(all));
    let mut sender = Sender::alone(&config).await?;
    let mut receivers = Receivers::open(&config, receiver, &names, &tally).await?;

    let began = Instant::now();
    let sending = async {
        for (channels, payloads) in &statements {
            sender.send(channels, payloads).await?;
        }
        Ok(())
    };
    let both = async { tokio::try_join!(sending, receivers.until_all_is_there(&tally)) };
    timeout(PATIENCE, both)
        .await
        .with_context(|| format!("not all of {all} notifications arrived: {tally:?}"))??;
    let elapsed = began.elapsed();

    receivers.close().await?;
    sender.close().await?;
    tally.check()?;
    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand notifications")]
    let rate = all as f64 / elapsed.as_secs_f64();
    Ok(Slice::of(rate, None))
}

/// The channels and payloads of each statement. The payloads are distinct, since the server drops duplicates within
/// a statement. Built beforehand, so that it does not count as the receivers' time.
fn statements(receiver: Receiver, names: &[String], all: u64) -> Vec<(Vec<String>, Vec<String>)> {
    let all: Vec<_> = (0..all).zip(names.iter().cycle()).collect();
    let one = |(n, name): &(u64, &String)| {
        let payload = n.to_string();
        match receiver {
            Receiver::Listener(_) => ((*name).clone(), payload),
            // The documented wire form of `db_notify`.
            Receiver::Subscription(_) | Receiver::Tasks(_) => {
                (CHANNEL.to_owned(), format!("1{}:{}:{name}{payload}", name.len(), payload.len()))
            }
        }
    };
    all.chunks(STATEMENT).map(|some| some.iter().map(one).unzip()).collect()
}

/// The notifications that have arrived.
#[derive(Debug)]
struct Tally {
    all: u64,
    arrived: AtomicU64,
    /// The sum of the numbers in the payloads, whose expected value is known.
    sum: AtomicU64,
    over: Notify,
}

impl Tally {
    fn new(all: u64) -> Self {
        Self { all, arrived: AtomicU64::new(0), sum: AtomicU64::new(0), over: Notify::new() }
    }

    fn count(&self, payload: &str) -> anyhow::Result<()> {
        let n: u64 = payload.parse().with_context(|| format!("an unknown payload: {payload}"))?;
        self.sum.fetch_add(n, Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.all {
            self.over.notify_one();
        }
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        let Self { all, arrived, sum, .. } = self;
        let (arrived, sum) = (arrived.load(Ordering::Acquire), sum.load(Ordering::Relaxed));
        let right = all * (all - 1) / 2;
        ensure!((arrived, sum) == (*all, right), "not each of {all} notifications arrived once: {self:?}");
        Ok(())
    }
}

/// The receiving tasks, and their bus or pool.
struct Receivers {
    tasks: JoinSet<anyhow::Result<()>>,
    from: From,
}

enum From {
    Bus(Bus),
    Listener(PgPool),
}

impl Receivers {
    async fn open(
        config: &Config,
        receiver: Receiver,
        names: &[String],
        tally: &Arc<Tally>,
    ) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        if let Receiver::Listener(_) = receiver {
            let (listener, pool) = open_listener(config, names).await?;
            tasks.spawn(hear(listener, Arc::clone(tally)));
            return Ok(Self { tasks, from: From::Listener(pool) });
        }
        let bus = open_bus(config).await?;
        let topics = names.iter().map(Topic::new).collect::<Result<Vec<_>, _>>()?;
        // Room for all notifications, since an overflow would be a gap.
        let size = usize::try_from(tally.all)?;
        if let Receiver::Tasks(_) = receiver {
            for topic in &topics {
                tasks.spawn(receive(bus.subscribe(topic, size), Arc::clone(tally)));
            }
        } else {
            tasks.spawn(receive(bus.subscribe_all(&topics, size), Arc::clone(tally)));
        }
        Ok(Self { tasks, from: From::Bus(bus) })
    }

    async fn until_all_is_there(&mut self, tally: &Tally) -> anyhow::Result<()> {
        tokio::select! {
            () = tally.over.notified() => Ok(()),
            Some(failed) = self.tasks.join_next() => failed?,
        }
    }

    async fn close(mut self) -> anyhow::Result<()> {
        self.tasks.shutdown().await;
        match self.from {
            From::Bus(bus) => close_bus(&bus).await,
            From::Listener(pool) => close_listener(&pool).await,
        }
    }
}

async fn receive(mut subscription: Subscription, tally: Arc<Tally>) -> anyhow::Result<()> {
    while let Some(delivery) = subscription.recv().await {
        match delivery {
            Delivery::Notification(notification) => tally.count(notification.payload())?,
            Delivery::Gap(gap) => bail!("a gap: {gap}"),
        }
    }
    bail!("the bus was closed")
}

async fn hear(mut listener: PgListener, tally: Arc<Tally>) -> anyhow::Result<()> {
    loop {
        tally.count(listener.recv().await?.payload())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_notification_does_not_replace_a_missing_one() {
        let of = |payloads: &[&str]| {
            let tally = Tally::new(3);
            payloads.iter().try_for_each(|payload| tally.count(payload)).expect("numbers");
            tally.check()
        };

        assert!(of(&["2", "0", "1"]).is_ok());
        assert!(of(&["2", "0"]).is_err());
        assert!(of(&["2", "0", "0"]).is_err());
    }

    #[test]
    fn notifications_are_spread_over_all_topics_and_distinct() {
        let names = ["a".to_owned(), "bc".to_owned()];

        let sent = |receiver| -> Vec<_> {
            statements(receiver, &names, 3)
                .into_iter()
                .flat_map(|(channels, payloads)| channels.into_iter().zip(payloads))
                .collect()
        };

        assert_eq!(sent(Receiver::Listener(2)), [("a", "0"), ("bc", "1"), ("a", "2")].map(owned));
        let bus = [(CHANNEL, "11:1:a0"), (CHANNEL, "12:1:bc1"), (CHANNEL, "11:1:a2")];
        assert_eq!(sent(Receiver::Subscription(2)), bus.map(owned));
    }

    fn owned((channel, payload): (&str, &str)) -> (String, String) {
        (channel.to_owned(), payload.to_owned())
    }
}
