//! Brief logs: the parent appends to them, trims them, loses their tails, and removes them once they are finished. Each watcher
//! in each process must see each event once and in order, or get an error that says what is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_events::{Error, EventLogs, EventStream, LogId, Mark, NewEvent, Retention, Trim, Writer};
use db_notify::{Bus, BusOptions};
use db_testkit::TestDb;
use harness::note;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::judge::digest;
use crate::support::lose_after;

/// Limit for each wait for an event.
const PATIENCE: Duration = Duration::from_mins(2);

/// How many events a trim keeps: more than a lost tail has.
const KEPT: u64 = 12;

/// The parent's side of all brief logs.
pub(super) struct Briefs {
    events: EventLogs,
    now: Option<Brief>,
    /// The log to trim; 0 for none.
    trimmed: Arc<AtomicI64>,
    retaining: JoinSet<()>,
    counts: Arc<Counts>,
}

/// A log and its events.
struct Brief {
    log: LogId,
    batches: Vec<Vec<String>>,
    writer: Writer,
}

#[derive(Default)]
struct Counts {
    logs: AtomicU64,
    trimmed: AtomicU64,
    /// How many finished logs were kept because a foreign key refers to them.
    kept: AtomicU64,
}

impl Brief {
    fn last(&self) -> i64 {
        i64::try_from(self.batches.iter().map(Vec::len).sum::<usize>()).expect("few")
    }
}

impl Briefs {
    /// Starts the removal of finished logs. Logs with references are kept.
    pub(super) async fn begin(db: &TestDb) -> Self {
        let held = "create table held (log bigint primary key references event_logs (id))";
        sqlx::raw_sql(held).execute(&db.pool()).await.expect("made");
        let config = Config::from_url(&db.url()).expect("an address");
        let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
        let events = EventLogs::new(Pool::new(&config, PoolOptions::backend()), &bus);
        let (trimmed, counts) = (Arc::<AtomicI64>::default(), Arc::<Counts>::default());
        let mut retaining = JoinSet::new();
        retaining.spawn(retain(events.clone(), Arc::clone(&trimmed), Arc::clone(&counts)));
        Self { events, now: None, trimmed, retaining, counts }
    }

    /// Makes a log.
    pub(super) async fn create(&mut self) -> LogId {
        let log = loop {
            match self.events.create().await {
                Ok(log) => break log,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.now = Some(Brief { log, batches: Vec::new(), writer: self.events.writer(log, 0) });
        self.trim(true);
        log
    }

    /// Appends some batches. Returns the last event.
    pub(super) async fn append(&mut self) -> i64 {
        let Some(brief) = &mut self.now else { panic!("there is a log") };
        for _ in 0..10 {
            let (number, count) = (brief.batches.len(), fastrand::usize(1..4));
            let nonce = fastrand::u32(..);
            let data: Vec<String> = (0..count).map(|event| format!("{number}.{event}.{nonce}")).collect();
            let batch: Vec<NewEvent> = data.iter().map(|data| NewEvent::new("n", data.as_str())).collect();
            timeout(PATIENCE, brief.writer.append(&batch)).await.expect("in time").expect("appended");
            brief.batches.push(data);
        }
        brief.last()
    }

    /// Starts or stops trimming the log.
    pub(super) fn trim(&self, is_trimmed: bool) {
        let log = self.now.as_ref().filter(|_| is_trimmed).map_or(0, |brief| brief.log.0);
        self.trimmed.store(log, Ordering::Relaxed);
    }

    /// Keeps the log by a foreign key, so that all its watchers see its end.
    pub(super) async fn hold(&self, db: &TestDb) {
        let Some(brief) = &self.now else { panic!("there is a log") };
        let hold = sqlx::query("insert into held values ($1)").bind(brief.log.0);
        hold.execute(&db.pool()).await.expect("held");
    }

    /// Loses the last batches, as a promotion of a lagging standby does.
    pub(super) async fn lose_tail(&mut self, db: &TestDb) {
        let Some(brief) = &mut self.now else { panic!("there is a log") };
        let lost = fastrand::usize(1..3);
        brief.batches.truncate(brief.batches.len() - lost);
        lose_after(db, brief.log, brief.last()).await;
        brief.writer = self.events.writer(brief.log, brief.last());
    }

    /// Finishes the log. Returns all its events, including trimmed ones.
    pub(super) async fn finish(&mut self) -> (LogId, Vec<String>) {
        let Some(mut brief) = self.now.take() else { panic!("there is a log") };
        let finished = timeout(PATIENCE, brief.writer.finish(&[NewEvent::new("n", "end")])).await;
        match finished.expect("in time") {
            // An answer was lost, and the log was removed before the batch was sent again.
            Ok(()) | Err(Error::UnknownLog(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        brief.batches.push(vec!["end".to_owned()]);
        (brief.log, brief.batches.concat())
    }

    /// Ends the removal.
    pub(super) async fn end(mut self) -> [(&'static str, u64); 3] {
        self.retaining.abort_all();
        while let Some(ended) = self.retaining.join_next().await {
            assert!(ended.is_err_and(|error| error.is_cancelled()), "the removing has failed");
        }
        let Counts { logs, trimmed, kept } = &*self.counts;
        [("retained-logs", logs), ("trimmed-batches", trimmed), ("retained-and-kept", kept)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

async fn retain(events: EventLogs, trimmed: Arc<AtomicI64>, counts: Arc<Counts>) {
    let at_once = Retention::older_than(Duration::ZERO).pause(Duration::ZERO);
    let few = Trim::keep_last(KEPT).pause(Duration::ZERO);
    loop {
        match events.retain(&at_once).await {
            Ok(removed) => {
                counts.logs.fetch_add(removed.logs, Ordering::Relaxed);
                counts.kept.fetch_add(removed.kept, Ordering::Relaxed);
            }
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
        match events.trim(LogId(trimmed.load(Ordering::Relaxed)), &few).await {
            Ok(batches) => _ = counts.trimmed.fetch_add(batches, Ordering::Relaxed),
            Err(Error::Removed { .. } | Error::UnknownLog(_)) => {}
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// The behaviour of a watcher of a brief log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    /// Reads from the beginning to the end.
    Stays,
    /// Leaves, and resumes with its last event and its mark.
    Resumes,
    /// Starts again at 0.
    Restarts,
}

pub(super) const HABITS: [Habit; 3] = [Habit::Stays, Habit::Resumes, Habit::Restarts];

/// The errors and ends that the watchers of brief logs in one process have met.
#[derive(Default)]
pub(super) struct Told {
    /// The log was rewound.
    pub(super) rewound: AtomicU64,
    /// The beginning of the log was removed.
    pub(super) trimmed: AtomicU64,
    /// The log was removed.
    pub(super) removed: AtomicU64,
    /// The log is finished.
    pub(super) finished: AtomicU64,
}

/// The consecutive events that a watcher has seen since the last error.
#[derive(Default)]
struct Run(Vec<(i64, String, Mark)>);

impl Run {
    /// A stream after the last of these events, or after `cursor` if there are none.
    fn resume(&self, events: &EventLogs, log: LogId, cursor: i64) -> EventStream {
        match self.0.last() {
            Some((id, _, mark)) => events.resume(log, *id, *mark),
            None => events.stream(log, cursor),
        }
    }
}

/// Watches a brief log until it is finished or removed. `place` gets the last event seen.
pub(super) async fn watch(
    events: EventLogs,
    log: LogId,
    habit: Habit,
    place: Arc<AtomicI64>,
    told: Arc<Told>,
) {
    let count = |counter: &AtomicU64| _ = counter.fetch_add(1, Ordering::Relaxed);
    let (mut run, mut cursor) = (Run::default(), 0);
    let mut stream = events.stream(log, 0);
    loop {
        match timeout(PATIENCE, stream.next_batch()).await.expect("in time") {
            Ok(Some(batch)) => {
                for event in batch {
                    assert_eq!(event.id, cursor + 1, "brief log {log}, {habit:?}: a hole or a double");
                    cursor = event.id;
                    run.0.push((event.id, event.data, event.mark));
                }
            }
            Ok(None) => {
                count(&told.finished);
                let from = run.0.first().map_or(cursor + 1, |(id, ..)| *id);
                let all = run.0.iter().fold(0, |before, (id, data, _)| digest(before, *id, "n", data));
                note(&format!("ended {log} {from} {all}"));
                break;
            }
            Err(Error::Rewound { last, .. }) => {
                count(&told.rewound);
                assert!(last <= cursor, "brief log {log}, {habit:?}: rewound to {last} at {cursor}");
                run.0.retain(|(id, ..)| *id <= last);
                cursor = last;
                stream = run.resume(&events, log, cursor);
            }
            Err(Error::Removed { first: Some(first), .. }) => {
                count(&told.trimmed);
                assert!(first > cursor, "brief log {log}, {habit:?}: {first} is left at {cursor}");
                run.0.clear();
                cursor = first - 1;
                stream = events.stream(log, cursor);
            }
            Err(Error::Removed { first: None, .. }) => {
                count(&told.removed);
                break;
            }
            Err(error) => panic!("brief log {log}, {habit:?}: {error:?}"),
        }
        place.store(cursor, Ordering::Relaxed);
        match habit {
            Habit::Resumes if fastrand::bool() => stream = run.resume(&events, log, cursor),
            Habit::Restarts if fastrand::u8(..4) == 0 => {
                run.0.clear();
                cursor = 0;
                stream = events.stream(log, 0);
            }
            Habit::Stays | Habit::Resumes | Habit::Restarts => {}
        }
    }
    place.store(i64::MAX, Ordering::Relaxed);
}
