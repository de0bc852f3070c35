//! Subscribing to one more topic beside ten thousand, and unsubscribing.

use std::time::Duration;

use anyhow::ensure;
use db_core::Config;
use db_layer::db_notify::Topic;

use super::session::{Sender, close_bus, close_listener, open_bus, open_listener};
use crate::load::Slice;
use crate::times::Times;

/// The topics that stay subscribed.
const OTHERS: u32 = 10_000;

const ONE_MORE: &str = "one/more";

pub(super) async fn bus(config: Config, slice: Duration) -> anyhow::Result<Slice> {
    Sender::alone(&config).await?.close().await?;
    let bus = open_bus(&config).await?;
    let topics = names().map(Topic::new).collect::<Result<Vec<_>, _>>()?;
    let mut subscription = bus.subscribe_all(&topics, 16);
    let mut times = Times::new(slice);
    while times.again() {
        let topic = Topic::new(ONE_MORE)?;
        ensure!(subscription.subscribe(&topic), "the topic was subscribed already");
        ensure!(subscription.unsubscribe(&topic), "the topic was not subscribed");
    }
    let measured = times.over(1.0);
    close_bus(&bus).await?;
    Ok(measured)
}

pub(super) async fn listener(config: Config, slice: Duration) -> anyhow::Result<Slice> {
    Sender::alone(&config).await?.close().await?;
    let names: Vec<String> = names().collect();
    let (mut listener, pool) = open_listener(&config, &names).await?;
    let mut times = Times::new(slice);
    while times.again() {
        listener.listen(ONE_MORE).await?;
        listener.unlisten(ONE_MORE).await?;
    }
    let measured = times.over(1.0);
    drop(listener);
    close_listener(&pool).await?;
    Ok(measured)
}

fn names() -> impl Iterator<Item = String> {
    (0..OTHERS).map(|n| format!("topic/{n}"))
}
