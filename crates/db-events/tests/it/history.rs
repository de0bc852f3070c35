//! Histories: any range of the stored events, and removed events.

use std::time::Duration;

use db_events::{Error, EventLogs, LogId, NewEvent, Retention, Selection};
use db_testkit::{TestDb, poll_then_drop, until};
use tokio::time::timeout;

use crate::support::{NO_LOG, PATIENCE, append_and_stay_open, events, next_batch, numbered};

/// A log of 100 events in batches of different sizes, every tenth of them a milestone.
async fn hundred(events: &EventLogs) -> LogId {
    let log = events.create().await.expect("a log");
    let all: Vec<NewEvent> = (1..=100)
        .map(|n| NewEvent::new(if n % 10 == 0 { "milestone" } else { "line" }, n.to_string()))
        .collect();
    let mut rest = &all[..];
    for size in [1, 2, 3, 30, 4, 50, 10] {
        let (batch, after) = rest.split_at(size);
        events.append(log, batch).await.expect("appended");
        rest = after;
    }
    log
}

#[db_testkit::test(migrations = "../../migrations")]
async fn any_part_of_a_log_can_be_asked_for(db: TestDb) {
    let events = events(&db).await;
    let log = hundred(&events).await;
    let all = Selection::default;
    let milestones = || all().kinds(["milestone"]);
    let every = |from: i64, to: i64, step: usize| (from..=to).step_by(step).collect::<Vec<_>>();

    for (selection, ids) in [
        (all(), every(1, 100, 1)),
        (all().after(-7), every(1, 100, 1)),
        (all().after(98), vec![99, 100]),
        (all().after(100), vec![]),
        (all().after(i64::MAX), vec![]),
        (all().until(3), vec![1, 2, 3]),
        (all().until(1000), every(1, 100, 1)),
        (all().until(0), vec![]),
        (all().after(30).until(33), vec![31, 32, 33]),
        (all().after(33).until(30), vec![]),
        (all().last(3), vec![98, 99, 100]),
        (all().last(0), vec![]),
        (all().last(u32::MAX), every(1, 100, 1)),
        (all().after(98).last(50), vec![99, 100]),
        (all().until(50).last(2), vec![49, 50]),
        (milestones(), every(10, 100, 10)),
        (milestones().after(10).until(40), vec![20, 30, 40]),
        (milestones().last(15), vec![90, 100]),
        (all().kinds(["milestone", "line"]).last(2), vec![99, 100]),
        (all().kinds(["no such type"]), vec![]),
        (all().kinds([""; 0]), vec![]),
    ] {
        let found = events.history(log, selection.clone()).collect().await.expect("read");
        assert_eq!(found.iter().map(|event| event.id).collect::<Vec<_>>(), ids, "{selection:?}");
        assert!(found.iter().all(|event| event.data == event.id.to_string()), "{selection:?}");
    }
    let unknown = events.history(NO_LOG, all()).collect().await;
    assert!(matches!(unknown, Err(Error::UnknownLog(NO_LOG))), "{unknown:?}");
    let head = events.head(log).await.expect("a head");
    assert_eq!((head.last, head.is_finished), (100, false));
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_history_ends_where_the_log_ended_when_it_was_begun(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let megabyte = "x".repeat(1 << 20);
    for _ in 0..3 {
        events.append(log, &[NewEvent::new("n", megabyte.as_str())]).await.expect("appended");
    }
    let mut history = events.history(log, Selection::default());
    assert_eq!(history.next_batch().await.expect("read").expect("a page").len(), 1);
    events.append(log, &numbered(4, 1)).await.expect("appended");

    let mut ids = Vec::new();
    loop {
        // A dropped future has read nothing; a future that is ready at its first poll has.
        let page = match poll_then_drop(history.next_batch(), 1).await {
            Some(page) => page,
            None => history.next_batch().await,
        };
        let Some(page) = page.expect("read") else { break };
        ids.extend(page.iter().map(|event| event.id));
    }
    assert_eq!(ids, [2, 3]);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn the_last_events_of_a_log_are_followed_by_those_to_come(db: TestDb) {
    let events = events(&db).await;
    let log = hundred(&events).await;
    let mut stream = events.stream_last(log, 3).await.expect("a stream");
    let ids = async |stream: &mut _| {
        next_batch(stream).await.expect("more").iter().map(|event| event.id).collect::<Vec<_>>()
    };

    assert_eq!(ids(&mut stream).await, [98, 99, 100]);
    events.append(log, &numbered(101, 1)).await.expect("appended");
    assert_eq!(ids(&mut stream).await, [101]);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn only_logs_that_were_finished_long_ago_are_removed(db: TestDb) {
    let events = events(&db).await;
    let mut logs = Vec::new();
    for _ in 0..6 {
        let log = hundred(&events).await;
        events.finish(log, &numbered(101, 1)).await.expect("finished");
        logs.push(log);
    }
    let open = hundred(&events).await;
    let age = async |log: LogId, days: i32| {
        let set = "update event_log_batches set at = at - make_interval(days => $2) where log = $1";
        sqlx::query(set).bind(log.0).bind(days).execute(&db.pool()).await.expect("set");
    };
    for log in [logs[0], logs[1], logs[2], logs[3], open] {
        age(log, 40).await;
    }
    age(logs[4], 20).await;
    // A row of another table refers to one of the old logs.
    sqlx::raw_sql("create table owners (log bigint references event_logs (id))")
        .execute(&db.pool())
        .await
        .expect("made");
    sqlx::query("insert into owners values ($1)").bind(logs[1].0).execute(&db.pool()).await.expect("owned");
    // Another log was half removed when its process was killed.
    let half = "with gone as (delete from event_logs where id = $1)
                delete from event_log_batches where log = $1 and first < 10";
    sqlx::query(half).bind(logs[3].0).execute(&db.pool()).await.expect("half removed");

    let month = Retention::older_than(Duration::from_hours(24 * 30)).pause(Duration::ZERO);
    let removed = events.retain(&month).await.expect("removed");

    assert_eq!((removed.logs, removed.kept), (3, 1), "{removed:?}");
    for (log, is_there) in logs.iter().zip([false, true, false, false, true, true]) {
        assert_eq!(events.head(*log).await.is_ok(), is_there, "{log}");
    }
    let whole = events.history(logs[1], Selection::default()).collect().await.expect("read");
    assert_eq!(whole.len(), 101, "what is referred to keeps all that it has");
    assert!(events.head(open).await.is_ok(), "what is not finished is never old");
    let left: i64 = sqlx::query_scalar("select count(*) from event_log_batches where log = any($1)")
        .bind([logs[0].0, logs[2].0, logs[3].0].as_slice())
        .fetch_one(&db.pool())
        .await
        .expect("a count");
    assert_eq!(left, 0);
    let again = events.retain(&month).await.expect("nothing to remove");
    assert_eq!((again.logs, again.batches, again.kept), (0, 0, 1));
}

#[db_testkit::test(migrations = "../../migrations")]
async fn removal_does_not_wait_for_writers(db: TestDb) {
    let events = events(&db).await;
    let old = hundred(&events).await;
    events.finish(old, &numbered(101, 1)).await.expect("finished");
    let busy = hundred(&events).await;
    let open = append_and_stay_open(&db, busy, (101, 101)).await;

    let now = Retention::older_than(Duration::ZERO).pause(Duration::ZERO);
    let removed = timeout(PATIENCE, events.retain(&now)).await.expect("in time").expect("removed");

    assert_eq!((removed.logs, removed.kept), (1, 0), "{removed:?}");
    open.commit().await.expect("committed");
    assert_eq!(events.append(busy, &numbered(102, 1)).await.expect("appended"), 102..=102);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_log_that_is_removed_takes_nothing_and_is_gone_for_its_followers(db: TestDb) {
    let events = events(&db).await;
    let log = hundred(&events).await;
    let mut stream = events.stream(log, 100);
    let waiting = tokio::spawn(async move { stream.next_batch().await });
    until("it follows", async || events.state().pages > 0).await;

    events.remove(log).await.expect("removed");
    events.remove(log).await.expect("there is none");

    let append = events.append(log, &numbered(1, 1)).await;
    assert!(matches!(append, Err(Error::UnknownLog(_))), "{append:?}");
    let ended = waiting.await.expect("no panic");
    assert!(matches!(ended, Err(Error::Removed { log: removed, .. }) if removed == log), "{ended:?}");
}
