//! One turn: a log is written, and many watchers read it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use db_layer::{LogId, NewEvent};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::cpu::Server;
use crate::latency::{Latency, nanoseconds};
use crate::load::{Cost, Slice};
use crate::logs::{Next, batch};

/// The events in an append, and the time between appends.
const BATCH: i64 = 10;
const PACE: Duration = Duration::from_millis(10);

/// Appends before the measured ones, so that every session is open and every statement prepared.
const WARM_UP: i64 = 30;

/// How long all watchers may take to see the appended events.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to write a log and to watch it. Cheap to clone.
pub(super) trait Log: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    /// Creates a log.
    fn create(&self) -> impl Future<Output = anyhow::Result<LogId>> + Send;

    /// Appends events numbered from `first` on, and wakes the watchers. Returns after the commit.
    fn append(
        &self,
        log: LogId,
        first: i64,
        events: &[NewEvent],
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Passes all events from the beginning to the watcher, until it has seen enough.
    fn watch(&self, log: LogId, watcher: &mut Watcher) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// The queries of all watchers so far.
    fn queries(&self) -> u64;
}

/// Runs this number of watchers on a log that is written for a slice of time, at its pace.
pub(super) async fn course(
    log: impl Log,
    server: Server,
    watchers: u32,
    slice: Duration,
) -> anyhow::Result<Slice> {
    let appends = i64::try_from(slice.as_millis() / PACE.as_millis())?;
    let id = log.create().await?;
    // The last events before the watchers start, before measuring, and at the end.
    let ends = [1, 1 + WARM_UP, 1 + WARM_UP + appends].map(|appends| appends * BATCH);
    let arrivals = Arc::new(Arrivals { ends, seen: [(); 3].map(|()| Semaphore::new(0)) });
    let mut writer = Writer { log: log.clone(), id, next: 1 };
    writer.write(1).await?;

    let mut eyes = JoinSet::new();
    for _ in 0..watchers {
        let (log, mut watcher) = (log.clone(), Watcher::new(&arrivals));
        eyes.spawn(async move {
            log.watch(id, &mut watcher).await?;
            anyhow::Ok(watcher.moments)
        });
    }
    arrivals.wait(0, watchers).await?;
    writer.write(WARM_UP).await?;
    arrivals.wait(1, watchers).await?;

    let (busy, queries) = (server.busy()?, log.queries());
    let began = Instant::now();
    let commits = writer.write(appends).await?;
    arrivals.wait(2, watchers).await?;
    let took = began.elapsed();
    let (busy, queries) = (server.busy()?.since(&busy), log.queries() - queries);

    let mut lags = Vec::new();
    while let Some(moments) = eyes.join_next().await {
        lags.extend(self::lags(&commits, &moments??)?);
    }
    #[expect(clippy::cast_precision_loss, reason = "some millions at most")]
    let [seen, queries, appends] = [lags.len() as f64, queries as f64, appends as f64];
    let cost = Cost { processor: busy.as_secs_f64() * 1e6 / appends, queries: queries / appends };
    Ok(Slice { cost: Some(cost), ..Slice::of(seen / took.as_secs_f64(), Latency::of(lags)) })
}

struct Writer<L> {
    log: L,
    id: LogId,
    next: i64,
}

/// An append: its last event, and a time after its commit.
type Commit = (i64, Instant);

impl<L: Log> Writer<L> {
    /// Appends this number of times.
    async fn write(&mut self, appends: i64) -> anyhow::Result<Vec<Commit>> {
        let mut pace = interval(PACE);
        // All appends are made, even if the server is too busy for the pace.
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut commits = Vec::new();
        for _ in 0..appends {
            pace.tick().await;
            self.log.append(self.id, self.next, &batch(self.next, BATCH)).await?;
            self.next += BATCH;
            commits.push((self.next - 1, Instant::now()));
        }
        Ok(commits)
    }
}

/// The progress of all watchers.
struct Arrivals {
    ends: [i64; 3],
    /// A permit for each watcher that has seen the event.
    seen: [Semaphore; 3],
}

impl Arrivals {
    /// Waits until all watchers have seen the event.
    async fn wait(&self, end: usize, watchers: u32) -> anyhow::Result<()> {
        let all = timeout(PATIENCE, self.seen[end].acquire_many(watchers)).await;
        let behind = || {
            let seen = self.seen[end].available_permits();
            format!("{seen} of {watchers} watchers have seen event {}", self.ends[end])
        };
        all.with_context(behind)??.forget();
        Ok(())
    }
}

/// Events that arrived together: the first, the last, and the time.
type Moment = (i64, i64, Instant);

/// A watcher of a log.
pub(super) struct Watcher {
    next: Next,
    arrivals: Arc<Arrivals>,
    moments: Vec<Moment>,
}

impl Watcher {
    fn new(arrivals: &Arc<Arrivals>) -> Self {
        Self { next: Next(1), arrivals: Arc::clone(arrivals), moments: Vec::new() }
    }

    /// The last event that the watcher has seen.
    pub(super) fn cursor(&self) -> i64 {
        self.next.0 - 1
    }

    /// Records events. Returns whether there are more to come.
    pub(super) fn see<'e>(
        &mut self,
        events: impl IntoIterator<Item = (i64, &'e str)>,
    ) -> anyhow::Result<bool> {
        let (at, before) = (Instant::now(), self.cursor());
        for (id, data) in events {
            self.next.count(id, data)?;
        }
        let now = self.cursor();
        self.moments.push((before + 1, now, at));
        let Arrivals { ends, seen } = &*self.arrivals;
        for (end, seen) in ends.iter().zip(seen) {
            if (before + 1..=now).contains(end) {
                seen.add_permits(1);
            }
        }
        ensure!(now <= ends[2], "event {now} was never appended");
        Ok(now < ends[2])
    }
}

/// The time from the commit of each event to its arrival at one watcher.
fn lags(commits: &[Commit], moments: &[Moment]) -> anyhow::Result<Vec<u32>> {
    let mut lags = Vec::new();
    let mut moments = moments.iter();
    let mut moment = moments.next();
    for (last, committed) in commits {
        for id in last - BATCH + 1..=*last {
            while moment.is_some_and(|(_, until, _)| *until < id) {
                moment = moments.next();
            }
            match moment {
                Some((from, _, at)) if *from <= id => {
                    // The event may arrive before the writer reads the clock.
                    lags.push(nanoseconds(at.saturating_duration_since(*committed)));
                }
                _ => bail!("a watcher never saw event {id}"),
            }
        }
    }
    Ok(lags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_of_an_event_is_the_time_from_its_commit_to_its_page() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let commits = [(20, after(0)), (30, after(10))];

        let lags = lags(&commits, &[(1, 12, after(1)), (13, 30, after(14))]).expect("all events");

        let ms = |ms: u32, times| vec![ms * 1_000_000; times];
        assert_eq!(lags, [ms(1, 2), ms(14, 8), ms(4, 10)].concat());
    }

    #[test]
    fn a_missing_event_is_an_error() {
        let now = Instant::now();

        assert!(lags(&[(20, now)], &[(1, 19, now)]).is_err());
        assert!(lags(&[(20, now)], &[(1, 14, now), (16, 20, now)]).is_err());
    }

    #[test]
    fn an_event_that_was_never_appended_is_an_error() {
        let arrivals = Arc::new(Arrivals { ends: [1, 2, 3], seen: [(); 3].map(|()| Semaphore::new(0)) });
        let mut watcher = Watcher::new(&arrivals);
        let texts: Vec<_> = (1..=4).map(crate::logs::data).collect();
        let event = |id: i64| (id, texts[usize::try_from(id - 1).expect("from 1 on")].as_str());

        assert!(watcher.see([event(1), event(2)]).expect("in order"));
        assert!(!watcher.see([event(3)]).expect("in order"));
        assert_eq!(arrivals.seen.each_ref().map(Semaphore::available_permits), [1, 1, 1]);
        assert!(watcher.see([event(4)]).is_err());
    }
}
