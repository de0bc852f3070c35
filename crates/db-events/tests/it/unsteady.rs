//! Watchers of logs that lose their tails, and that are removed right after their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use db_events::{Error, Event, EventLogs, LogId, NewEvent, Retention};
use db_testkit::TestDb;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{PATIENCE, events, lose_after};

const LOGS: usize = 8;
const WATCHERS: usize = 4;
const STEPS: usize = 60;

/// Appends, sometimes loses the last events, and finishes the log. Returns its content at that time.
async fn write(db: Arc<TestDb>, events: EventLogs, log: LogId) -> Vec<String> {
    let mut there: Vec<Vec<String>> = Vec::new();
    for step in 0..STEPS {
        if fastrand::u8(..8) == 0 {
            there.truncate(fastrand::usize(..=there.len()));
            let last = there.iter().map(Vec::len).sum::<usize>();
            lose_after(&db, log, i64::try_from(last).expect("few")).await;
        }
        let new: Vec<String> = (0..fastrand::usize(1..4)).map(|number| format!("{step}.{number}")).collect();
        let batch: Vec<NewEvent> = new.iter().map(|data| NewEvent::new("n", data.as_str())).collect();
        events.append(log, &batch).await.expect("appended");
        there.push(new);
    }
    events.finish(log, &[NewEvent::new("end", "end")]).await.expect("finished");
    there.push(vec!["end".to_owned()]);
    there.concat()
}

/// Watches to the end, and continues at the last unchanged event after a loss. Returns the content of a log that it has seen
/// whole.
async fn watch(events: EventLogs, log: LogId, resumes: bool, told: Arc<AtomicU64>) -> Option<Vec<String>> {
    let mut seen: Vec<Event> = Vec::new();
    let mut stream = events.stream(log, 0);
    loop {
        match timeout(PATIENCE, stream.next_batch()).await.expect("in time") {
            Ok(Some(batch)) => {
                for event in batch {
                    assert_eq!(usize::try_from(event.id).expect("an id"), seen.len() + 1, "log {log}");
                    seen.push(event);
                }
            }
            Ok(None) => return Some(seen.into_iter().map(|event| event.data).collect()),
            Err(Error::Rewound { last, .. }) => {
                told.fetch_add(1, Ordering::Relaxed);
                let last = usize::try_from(last).expect("an id");
                assert!(last < seen.len(), "log {log}: {last} of {}", seen.len());
                seen.truncate(last);
                stream = from(&events, log, seen.last());
            }
            Err(Error::Removed { .. }) => return None,
            Err(error) => panic!("log {log}: {error:?}"),
        }
        if resumes && fastrand::bool() {
            stream = from(&events, log, seen.last());
        }
    }
}

fn from(events: &EventLogs, log: LogId, last: Option<&Event>) -> db_events::EventStream {
    last.map_or_else(|| events.stream(log, 0), |last| events.resume(log, last.id, last.mark))
}

#[db_testkit::test(migrations = "../../migrations")]
async fn every_watcher_sees_every_event_once_and_in_order_or_gets_an_error(db: TestDb) {
    let db = Arc::new(db);
    let (writer, reader) = (events(&db).await, events(&db).await);
    let told = Arc::new(AtomicU64::new(0));
    let (mut writing, mut watching) = (JoinSet::new(), JoinSet::new());
    for _ in 0..LOGS {
        let log = writer.create().await.expect("a log");
        for watcher in 0..WATCHERS {
            let watch = watch(reader.clone(), log, watcher % 2 == 1, Arc::clone(&told));
            watching.spawn(async move { (log, watch.await) });
        }
        let write = write(Arc::clone(&db), writer.clone(), log);
        writing.spawn(async move { (log, write.await) });
    }
    let mut retaining = JoinSet::new();
    retaining.spawn(async move {
        let at_once = Retention::older_than(Duration::ZERO).pause(Duration::ZERO);
        loop {
            writer.retain(&at_once).await.expect("retained");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });

    let written: std::collections::HashMap<LogId, Vec<String>> =
        writing.join_all().await.into_iter().collect();
    let watched = timeout(2 * PATIENCE, watching.join_all()).await.expect("in time");

    for (log, seen) in watched {
        if let Some(seen) = seen {
            assert_eq!(seen, written[&log], "log {log} was seen differently");
        }
    }
    assert!(told.load(Ordering::Relaxed) > 0, "nobody was told, so nothing was shown");
}
