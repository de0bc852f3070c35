//! A bus with many topics, beside sqlx's listener with as many channels.
//!
//! All notifications are sent by one session, a thousand in a statement, and each is a NOTIFY of its own for both: what is
//! compared is receiving. A bus that sends packs hundreds into one NOTIFY, which comes on top. Every one has to arrive.
//!
//! Each arm has the database for itself: the server wakes all sessions that listen, to whatever.

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
use crate::topics::flood::Ear;

/// For so long, those that are as quick as they are expected to be are sent to.
const FLOOD: Duration = Duration::from_millis(200);

/// One at a time, and most of it is waiting.
const IDLE: Duration = Duration::from_millis(600);

/// Subscribing, over and over.
const MORE: Duration = Duration::from_millis(100);

/// Of some arms alone, if they are named, there are no rows.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let config = database.config()?;
        let flood =
            |name, ear| arm(runtime, &config, name, FLOOD, move |on, slice| flood::run(on, ear, slice));
        let mut arms = vec![
            // Those that have targets to meet beside each other are neighbours.
            flood("topics.1.bus", Ear::Subscription(1)),
            flood("topics.1.listener", Ear::Listener(1)),
            flood("topics.10.bus", Ear::Subscription(10)),
            flood("topics.100k.bus", Ear::Subscription(100_000)),
            flood("topics.10k.bus", Ear::Subscription(10_000)),
            flood("topics.10k.tasks", Ear::Tasks(10_000)),
            flood("topics.10k.listener", Ear::Listener(10_000)),
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

/// On a worker thread, as everybody's tasks are.
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
