//! One notification at a time on an idle system.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use db_core::Config;
use db_layer::db_notify::{Bus, Delivery, Topic};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::session::{CHANNEL, PATIENCE, Sender, close_bus, close_listener, open_bus, open_listener};
use crate::latency::{Latency, nanoseconds};
use crate::load::Slice;

/// The pause before each notification: longer than the pace of a bus, which then sends at once.
const PAUSE: Duration = Duration::from_millis(5);

/// From `notify_soon` on a bus to the delivery by the same bus: one session sends and one listens, as with the peer. Each further bus
/// would be another session for the server to wake.
pub(super) async fn bus(config: Config, slice: Duration) -> anyhow::Result<Slice> {
    Sender::alone(&config).await?.close().await?;
    let bus = open_bus(&config).await?;
    let topic = Topic::new("topic")?;
    let mut subscription = bus.subscribe(&topic, 16);
    let (stamps, heard) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(delivery) = subscription.recv().await {
            match delivery {
                Delivery::Notification(_) => stamps.send(Instant::now())?,
                Delivery::Gap(gap) => bail!("a gap: {gap}"),
            }
        }
        bail!("the bus was closed")
    });
    let measured = one_by_one(slice, heard, tasks, Soon(bus.clone(), topic)).await?;
    close_bus(&bus).await?;
    Ok(measured)
}

/// From `pg_notify` on one session to the receipt by sqlx's listener.
pub(super) async fn listener(config: Config, slice: Duration) -> anyhow::Result<Slice> {
    let mut sender = Sender::alone(&config).await?;
    let (mut listener, pool) = open_listener(&config, &[CHANNEL.to_owned()]).await?;
    let (stamps, heard) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            listener.recv().await?;
            stamps.send(Instant::now())?;
        }
    });
    let measured = one_by_one(slice, heard, tasks, &mut sender).await?;
    close_listener(&pool).await?;
    sender.close().await?;
    Ok(measured)
}

/// The sender of a notification.
trait Mouth {
    fn notify(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

struct Soon(Bus, Topic);

impl Mouth for Soon {
    async fn notify(&mut self) -> anyhow::Result<()> {
        let Self(bus, topic) = self;
        Ok(bus.notify_soon(topic)?)
    }
}

impl Mouth for &mut Sender {
    async fn notify(&mut self) -> anyhow::Result<()> {
        Sender::notify(self, CHANNEL).await
    }
}

/// Sends a notification, waits until a task of `tasks` has reported its receipt, and pauses, until the slice is over.
async fn one_by_one(
    slice: Duration,
    mut heard: mpsc::UnboundedReceiver<Instant>,
    mut tasks: JoinSet<anyhow::Result<()>>,
    mut mouth: impl Mouth,
) -> anyhow::Result<Slice> {
    let mut latencies = Vec::new();
    let first = Instant::now();
    while latencies.is_empty() || first.elapsed() < slice {
        sleep(PAUSE).await;
        let began = Instant::now();
        mouth.notify().await?;
        let at = tokio::select! {
            at = timeout(PATIENCE, heard.recv()) => at.context("no notification arrives")?.context("the receiver has ended")?,
            Some(failed) = tasks.join_next() => { failed??; bail!("the receiver has ended") }
        };
        latencies.push(nanoseconds(at - began));
    }
    tasks.shutdown().await;
    #[expect(clippy::cast_precision_loss, reason = "some hundred notifications")]
    let rate = latencies.len() as f64 / first.elapsed().as_secs_f64();
    Ok(Slice::of(rate, Latency::of(latencies)))
}
