//! Notifications as fast as they are received.

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

/// So many in one statement.
const STATEMENT: usize = 1000;

/// Who receives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ear {
    /// One subscription to so many topics.
    Subscription(u32),
    /// As many subscriptions, each to one topic, and each in a task of its own.
    Tasks(u32),
    /// sqlx's listener on so many channels.
    Listener(u32),
}

impl Ear {
    fn topics(self) -> u32 {
        match self {
            Self::Subscription(topics) | Self::Tasks(topics) | Self::Listener(topics) => topics,
        }
    }

    /// How many notifications a second it is given. With what is sent to the others, many channels would take minutes.
    fn pace(self) -> f64 {
        match self {
            Self::Listener(channels) if channels > 1000 => 100_000.0,
            _ => 1_000_000.0,
        }
    }
}

/// Sends all that is to be received in a slice, and says how many a second that were, from the first statement to the last
/// one that was received.
pub(super) async fn run(config: Config, ear: Ear, slice: Duration) -> anyhow::Result<Slice> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundred thousand")]
    let all = (ear.pace() * slice.as_secs_f64()) as u64;
    let names: Vec<String> = (0..ear.topics()).map(|n| format!("topic/{n}")).collect();
    let statements = statements(ear, &names, all);
    let tally = Arc::new(Tally::new(all));
    let mut sender = Sender::alone(&config).await?;
    let mut receivers = Receivers::open(&config, ear, &names, &tally).await?;

    let began = Instant::now();
    let sending = async {
        for (channels, payloads) in &statements {
            sender.send(channels, payloads).await?;
        }
        Ok(())
    };
    let both = async { tokio::try_join!(sending, receivers.until_all_is_there(&tally)) };
    timeout(PATIENCE, both).await.with_context(|| format!("of {all}, not all arrived: {tally:?}"))??;
    let elapsed = began.elapsed();

    receivers.close().await?;
    sender.close().await?;
    tally.check()?;
    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
    let rate = all as f64 / elapsed.as_secs_f64();
    Ok(Slice::of(rate, None))
}

/// What each statement notifies: channels, and their payloads. They are distinct, since the server drops what is equal within
/// a statement. Made beforehand: it would be the receivers' time.
fn statements(ear: Ear, names: &[String], all: u64) -> Vec<(Vec<String>, Vec<String>)> {
    let all: Vec<_> = (0..all).zip(names.iter().cycle()).collect();
    let one = |(n, name): &(u64, &String)| {
        let payload = n.to_string();
        match ear {
            Ear::Listener(_) => ((*name).clone(), payload),
            // The form on the wire, as `db_notify`'s documentation draws it.
            Ear::Subscription(_) | Ear::Tasks(_) => {
                (CHANNEL.to_owned(), format!("1{}:{}:{name}{payload}", name.len(), payload.len()))
            }
        }
    };
    all.chunks(STATEMENT).map(|some| some.iter().map(one).unzip()).collect()
}

/// What has arrived.
#[derive(Debug)]
struct Tally {
    all: u64,
    arrived: AtomicU64,
    /// Of the numbers in the payloads: of all of them, it is known.
    sum: AtomicU64,
    over: Notify,
}

impl Tally {
    fn new(all: u64) -> Self {
        Self { all, arrived: AtomicU64::new(0), sum: AtomicU64::new(0), over: Notify::new() }
    }

    fn count(&self, payload: &str) -> anyhow::Result<()> {
        let n: u64 = payload.parse().with_context(|| format!("a payload that nobody sent: {payload}"))?;
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
        ensure!((arrived, sum) == (*all, right), "of {all}, not each arrived once: {self:?}");
        Ok(())
    }
}

/// Tasks that receive, and what they receive from.
struct Receivers {
    tasks: JoinSet<anyhow::Result<()>>,
    from: From,
}

enum From {
    Bus(Bus),
    Listener(PgPool),
}

impl Receivers {
    async fn open(config: &Config, ear: Ear, names: &[String], tally: &Arc<Tally>) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        if let Ear::Listener(_) = ear {
            let (listener, pool) = open_listener(config, names).await?;
            tasks.spawn(hear(listener, Arc::clone(tally)));
            return Ok(Self { tasks, from: From::Listener(pool) });
        }
        let bus = open_bus(config).await?;
        let topics = names.iter().map(Topic::new).collect::<Result<Vec<_>, _>>()?;
        // Room for all: what does not fit would be a gap.
        let size = usize::try_from(tally.all)?;
        if let Ear::Tasks(_) = ear {
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
    fn what_came_twice_does_not_stand_for_what_is_missing() {
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
    fn what_is_sent_is_spread_over_all_topics_and_nothing_is_equal() {
        let names = ["a".to_owned(), "bc".to_owned()];

        let sent = |ear| -> Vec<_> {
            statements(ear, &names, 3)
                .into_iter()
                .flat_map(|(channels, payloads)| channels.into_iter().zip(payloads))
                .collect()
        };

        assert_eq!(sent(Ear::Listener(2)), [("a", "0"), ("bc", "1"), ("a", "2")].map(owned));
        let bus = [(CHANNEL, "11:1:a0"), (CHANNEL, "12:1:bc1"), (CHANNEL, "11:1:a2")];
        assert_eq!(sent(Ear::Subscription(2)), bus.map(owned));
    }

    fn owned((channel, payload): (&str, &str)) -> (String, String) {
        (channel.to_owned(), payload.to_owned())
    }
}
