//! Reading from a cursor, live.

use std::time::{Duration, Instant};

use db_core::{Config, Pool, PoolOptions};
use db_events::{Error, EventLogs, NewEvent, POLL_FLOOR};
use db_testkit::{TestDb, until};
use futures_util::TryStreamExt;
use tokio::time::timeout;

use crate::support::{NO_LOG, PATIENCE, assert_dense, ended, events, next_batch, numbered, read_to_end};

#[db_testkit::test(migrations = "../../migrations")]
async fn a_follower_gets_each_append_as_it_happens(db: TestDb) {
    let (writer, reader) = (events(&db).await, events(&db).await);
    let log = writer.create().await.expect("a log");
    let mut stream = reader.stream(log, 0);

    for n in 1..=5 {
        writer.append(log, &numbered(n, 1)).await.expect("appended");
        let batch = next_batch(&mut stream).await.expect("more");
        assert_eq!(batch.iter().map(|event| event.id).collect::<Vec<_>>(), [n]);
    }
    writer.finish(log, &numbered(6, 1)).await.expect("finished");

    assert_eq!(next_batch(&mut stream).await.expect("the last").len(), 1);
    assert_eq!(next_batch(&mut stream).await, None);
    assert_eq!(next_batch(&mut stream).await, None, "an end stays an end");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_follower_that_waits_is_woken_and_does_not_poll(db: TestDb) {
    let (writer, reader) = (events(&db).await, events(&db).await);
    let log = writer.create().await.expect("a log");
    for n in 1..=3 {
        let pages = reader.state().pages;
        let mut stream = reader.stream(log, n - 1);
        let waiting = tokio::spawn(async move { stream.next_batch().await });
        until_waiting(&reader, pages).await;
        assert!(!waiting.is_finished());

        if n == 3 {
            writer.writer(log, n - 1).finish(&numbered(n, 1)).await.expect("finished");
        } else {
            writer.append(log, &numbered(n, 1)).await.expect("appended");
        }

        let woken = timeout(POLL_FLOOR / 2, waiting).await.expect("long before it would look by itself");
        assert_eq!(woken.expect("no panic").expect("no error").expect("more")[0].id, n);
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn any_cursor_gives_exactly_what_follows_it(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    for (first, count) in [(1, 1), (2, 10), (12, 3), (15, 100)] {
        events.append(log, &numbered(first, count)).await.expect("appended");
    }
    events.finish(log, &numbered(115, 1)).await.expect("finished");

    for cursor in [-5, 0, 1, 2, 10, 11, 12, 13, 14, 15, 60, 113, 114, 115] {
        let rest = read_to_end(events.stream(log, cursor)).await;

        assert_eq!(
            rest.len(),
            usize::try_from((115 - cursor.max(0)).max(0)).expect("small"),
            "after {cursor}"
        );
        assert_dense(&rest, cursor.clamp(0, 115) + 1);
        assert!(rest.iter().all(|event| event.data == event.id.to_string()));
    }
    for cursor in [116, 1000, i64::MAX] {
        let told = ended(&mut events.stream(log, cursor)).await;
        assert!(matches!(told, Error::Rewound { last: 115, .. }), "after {cursor}: {told:?}");
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_backlog_larger_than_a_page_comes_whole(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let line = "x".repeat(100_000);
    for _ in 0..40 {
        events
            .append(log, &[NewEvent::new("n", line.as_str()), NewEvent::new("n", "short")])
            .await
            .expect("appended");
    }
    events.finish(log, &numbered(1, 1)).await.expect("finished");
    let mut stream = events.stream(log, 0);

    let mut pages = Vec::new();
    while let Some(page) = next_batch(&mut stream).await {
        pages.push(page);
    }

    assert!(pages.len() > 2, "4 MB in {} pages", pages.len());
    let all = pages.concat();
    assert_eq!(all.len(), 81);
    assert_dense(&all, 1);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn watchers_that_come_and_go_see_every_event_once_and_in_order(db: TestDb) {
    let (writer, reader) = (events(&db).await, events(&db).await);
    let log = writer.create().await.expect("a log");
    let writing = tokio::spawn(async move {
        for n in 0..300 {
            writer.append(log, &numbered(n * 2 + 1, 2)).await.expect("appended");
        }
        writer.finish(log, &numbered(601, 1)).await.expect("finished");
    });
    let mut watchers = tokio::task::JoinSet::new();
    for watcher in 0..8 {
        let reader = reader.clone();
        watchers.spawn(async move {
            let mut seen = Vec::new();
            let mut cut = 0;
            // Each reader drops its stream at any moment, and resumes with the last event it has.
            while seen.last().is_none_or(|event: &db_events::Event| event.id < 601) {
                let mut stream = reader.stream(log, seen.last().map_or(0, |event| event.id));
                for _ in 0..3 {
                    let patience =
                        Duration::from_micros(if cut < 10 { 300 * (watcher + 1) } else { 30_000_000 });
                    match timeout(patience, stream.next_batch()).await {
                        Ok(batch) => seen.extend(batch.expect("no error").into_iter().flatten()),
                        Err(_) => cut += 1,
                    }
                }
            }
            seen
        });
    }

    while let Some(seen) = watchers.join_next().await {
        let seen = seen.expect("no panic");
        assert_eq!(seen.len(), 601);
        assert_dense(&seen, 1);
    }
    writing.await.expect("no panic");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_killed_session_costs_a_follower_nothing(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    for n in 1..=5 {
        let kill = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
                    where datname = current_database() and application_name in ('backend', 'bus', 'notifier')";
        sqlx::query(kill).execute(&db.pool()).await.expect("killed");

        let mut writer = events.writer(log, n - 1);
        writer.append(&numbered(n, 1)).await.expect("appended");

        assert_eq!(next_batch(&mut stream).await.expect("more")[0].id, n);
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_lost_notification_delays_a_follower_by_no_more_than_the_floor(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    let waiting = tokio::spawn(async move { stream.next_batch().await });
    until_waiting(&events, 0).await;

    // Inserted by SQL, so no notification is sent.
    sqlx::query("insert into event_log_batches values ($1, 1, 1, 1, '{n}', '{1}', false)")
        .bind(log.0)
        .execute(&db.pool())
        .await
        .expect("appended");

    let found =
        timeout(POLL_FLOOR + Duration::from_secs(5), waiting).await.expect("not long after the floor");
    assert_eq!(found.expect("no panic").expect("no error").expect("more")[0].id, 1);
}

/// Waits until a stream has read a page, found nothing, and read again from its position.
async fn until_waiting(events: &EventLogs, pages: u64) {
    until("it waits", async || events.state().pages >= pages + 2).await;
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_unknown_log_is_an_error_and_not_an_endless_wait(db: TestDb) {
    let events = events(&db).await;

    let error = timeout(PATIENCE, events.stream(NO_LOG, 0).next_batch()).await.expect("in time");

    assert!(matches!(error, Err(Error::UnknownLog(NO_LOG))), "{error:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn events_come_one_by_one_too(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.append(log, &numbered(1, 2)).await.expect("appended");
    events.finish(log, &numbered(3, 1)).await.expect("finished");

    let all: Vec<_> = events.stream(log, 1).events().try_collect().await.expect("no error");

    assert_dense(&all, 2);
    assert_eq!(all.len(), 2);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_flood_of_gaps_costs_few_head_polls(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    let pages = events.state().pages;
    let waiting = tokio::spawn(async move { stream.next_batch().await });
    until_waiting(&events, pages).await;
    let (head_polls, begun) = (events.state().head_polls, Instant::now());

    // Another process permanently sends too much, or notifications of an unknown form.
    for form in ["1*", "not ours"].into_iter().cycle().take(600) {
        sqlx::query("select pg_notify('db_notify.default', $1)")
            .bind(form)
            .execute(&db.pool())
            .await
            .expect("notified");
    }
    events.append(log, &numbered(1, 1)).await.expect("appended");
    let woken = timeout(PATIENCE, waiting).await.expect("in time").expect("no panic");
    assert_eq!(woken.expect("no error").expect("more")[0].id, 1);

    // The first poll is at once; then one poll answers all gaps within 200 ms.
    let most = begun.elapsed().as_millis() / 200 + 2;
    let head_polls = events.state().head_polls - head_polls;
    assert!(u128::from(head_polls) <= most, "{head_polls} head polls, where {most} will do");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn followers_and_the_age_of_the_newest_event_are_counted(db: TestDb) {
    let (writer, reader) = (events(&db).await, events(&db).await);
    let (log, other) = (writer.create().await.expect("a log"), writer.create().await.expect("a log"));
    let follow = |log| {
        let mut stream = reader.stream(log, 0);
        tokio::spawn(async move {
            next_batch(&mut stream).await.expect("more");
            stream
        })
    };
    assert_eq!((reader.state().followers, reader.state().lag), (0, None));

    let streams = [follow(log), follow(log), follow(other)];
    until("all follow", async || reader.state().followers == 3).await;
    assert_eq!((reader.state().followed, reader.state().lag), (2, None), "nothing is to be read");

    // An event has the time at which its transaction has begun.
    let pool = Pool::new(&Config::from_url(&db.url()).expect("an address"), PoolOptions::backend());
    let mut tx = pool.handle().begin().await.expect("a transaction");
    let begun = Instant::now();
    let age = Duration::from_millis(100);
    until("a while has passed", async || begun.elapsed() > age).await;
    writer.append_in(&mut tx, log, &numbered(1, 1)).await.expect("appended");
    tx.commit().await.expect("committed");
    until("it was read", async || reader.state().lag.is_some_and(|lag| lag > age && lag < PATIENCE)).await;

    writer.append(other, &numbered(1, 1)).await.expect("appended");
    let mut kept = Vec::new();
    for stream in streams {
        kept.push(timeout(PATIENCE, stream).await.expect("in time").expect("no panic"));
    }

    drop(kept);
    until("nobody follows", async || reader.state().followers == 0).await;
}
