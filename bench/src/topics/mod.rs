//! A bus with many topics, beside sqlx's listener with as many channels.
//!
//! One session sends all notifications, a thousand in a statement, each as a NOTIFY of its own, so that receiving is compared. A
//! sending bus packs hundreds of notifications into one NOTIFY, which is faster still. Every notification must arrive.
//!
//! Each arm has the database for itself, since the server wakes all listening sessions, whatever they listen to.

mod flood;
mod idle;
mod more;
mod session;

use std::time::Duration;

use db_core::Config;
use tokio::runtime::Runtime;

use crate::load::Slice;
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;
use crate::topics::flood::Receiver;

/// The time that a receiver of the expected rate needs.
const FLOOD: Duration = Duration::from_millis(200);

/// One at a time; most of it is waiting.
const IDLE: Duration = Duration::from_millis(600);

/// Subscribing repeatedly.
const MORE: Duration = Duration::from_millis(100);

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let config = database.config()?;
        let flood = |name, receiver| {
            arm(runtime, &config, name, FLOOD, move |on, slice| flood::run(on, receiver, slice))
        };
        let mut arms = vec![
            // Arms that are compared with each other are neighbours.
            flood("topics.1.bus", Receiver::Subscription(1)),
            flood("topics.1.listener", Receiver::Listener(1)),
            flood("topics.10.bus", Receiver::Subscription(10)),
            flood("topics.100k.bus", Receiver::Subscription(100_000)),
            flood("topics.10k.bus", Receiver::Subscription(10_000)),
            flood("topics.10k.tasks", Receiver::Tasks(10_000)),
            flood("topics.10k.listener", Receiver::Listener(10_000)),
            arm(runtime, &config, "topics.subscribe.bus", MORE, more::bus),
            arm(runtime, &config, "topics.subscribe.listener", MORE, more::listener),
            arm(runtime, &config, "topics.idle.bus", IDLE, idle::bus),
            arm(runtime, &config, "topics.idle.listener", IDLE, idle::listener),
        ];

        let narrowed = narrow(&mut arms, only)?;
        let measured = interleave(&arms, rounds)?;
        let rates = |name, ours, peer| measured.rates(name, ours, peer);
        let rows = if narrowed {
            Vec::new()
        } else {
            vec![
                rates("topics.10k.vs_listen", "topics.10k.bus", "topics.10k.listener"),
                rates("topics.10k.tasks_vs_listen", "topics.10k.tasks", "topics.10k.listener"),
                rates("topics.100k.vs_10", "topics.100k.bus", "topics.10.bus"),
                rates("topics.subscribe.vs_listen", "topics.subscribe.bus", "topics.subscribe.listener"),
                measured.p50s("topics.idle_p50.vs_listener", "topics.idle.bus", "topics.idle.listener"),
                rates("topics.one.vs_listener", "topics.1.bus", "topics.1.listener"),
            ]
        };
        Ok(measured.report(database.what().to_owned(), rows))
    })
}

/// Runs the arm on a worker thread, as the tasks of users are.
fn arm<'a, F>(
    runtime: &'a Runtime,
    config: &'a Config,
    name: &str,
    slice: Duration,
    run: impl Fn(Config, Duration) -> F + 'a,
) -> Arm<'a>
where
    F: Future<Output = anyhow::Result<Slice>> + Send + 'static,
{
    Arm::new(name, slice, move |slice| runtime.block_on(runtime.spawn(run(config.clone(), slice)))?)
}
