//! A process that listens, and prints its notifications with their times.
//!
//! It prints `ready`, and for each slice one line for each notification, with its topic's number and the time, and then `end`. It ends
//! with its stdin.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use db_core::Config;
use db_layer::db_notify::{Bus, BusOptions, Delivery, Topic};
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::committed::{Heard, now};
use super::{ALL, END, inserts};

/// The environment variable with the address: an address may have a password, and arguments are visible to all users.
pub(super) const ADDRESS: &str = "BENCH_LISTEN";

pub(super) const READY: &str = "ready";

/// Longer than the process is ever needed.
const LIFE: Duration = Duration::from_mins(10);

/// Uses one thread, to leave the processors to the measured writers.
pub(crate) fn listen() -> anyhow::Result<()> {
    let url = std::env::var(ADDRESS).context("`listen` is used by `notify` only")?;
    thread::spawn(|| {
        // Whether stdin ends or cannot be read, the parent is gone.
        let _: std::io::Result<usize> = std::io::stdin().read_to_end(&mut Vec::new());
        #[expect(
            clippy::disallowed_methods,
            reason = "the parent is gone, and this process owns nothing but a session"
        )]
        std::process::exit(0);
    });
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { timeout(LIFE, hear(url)).await })?
}

async fn hear(url: String) -> anyhow::Result<()> {
    let bus = Bus::open(&Config::from_url(&url)?, BusOptions::default()).await?;
    let mut topics = (0..ALL).map(|n| Topic::new(inserts::topic(n))).collect::<Result<Vec<_>, _>>()?;
    topics.push(Topic::new(END)?);
    let mut subscription = bus.subscribe_all(&topics, topics.len());
    say(&[], READY)?;
    let mut heard = Vec::new();
    while let Some(delivery) = subscription.recv().await {
        let notification = match delivery {
            Delivery::Notification(notification) => notification,
            Delivery::Gap(gap) => bail!("a gap: {gap}"),
        };
        let topic = notification.topic().context("a notification without a topic")?.as_str();
        if topic == END {
            say(&heard, END)?;
            heard.clear();
        } else {
            let (_, number) = topic.rsplit_once('/').context("an unknown topic")?;
            heard.push(Heard { topic: number.parse()?, at: now() });
        }
    }
    bail!("the bus was closed")
}

fn say(heard: &[Heard], last: &str) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for Heard { topic, at } in heard {
        writeln!(text, "{topic} {at}")?;
    }
    writeln!(text, "{last}")?;
    let mut out = std::io::stdout();
    out.write_all(&text)?;
    Ok(out.flush()?)
}
