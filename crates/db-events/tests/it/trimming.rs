//! Removing the beginning of a log that goes on.

use std::time::Duration;

use db_events::{Error, EventLogs, LogId, Selection, Trim};
use db_testkit::TestDb;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{
    NO_LOG, PATIENCE, assert_dense, batches_by_hand, ended, events, next_batch, next_ids, numbered,
};

async fn stored(db: &TestDb, log: LogId) -> (i64, i64, i64) {
    sqlx::query_as(
        "select coalesce(min(first), 0), coalesce(max(last), 0), count(*) from event_log_batches where log = $1",
    )
    .bind(log.0)
    .fetch_one(&db.pool())
    .await
    .expect("what is stored")
}

/// A log of batches of one event.
async fn log_of(db: &TestDb, events: &EventLogs, count: i64) -> LogId {
    let log = events.create().await.expect("a log");
    batches_by_hand(db, log, (1, count), false).await;
    log
}

/// Makes the events up to `last` one hour older.
async fn age(db: &TestDb, log: LogId, last: i64) {
    let age = "update event_log_batches set at = at - interval '1 hour' where log = $1 and last <= $2";
    sqlx::query(age).bind(log.0).bind(last).execute(&db.pool()).await.expect("aged");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn the_last_events_stay_and_readers_below_them_get_the_first_event_that_is_left(db: TestDb) {
    let events = events(&db).await;
    let log = log_of(&db, &events, 100).await;
    let mut live = events.stream(log, 95);
    assert_eq!(next_ids(&mut live).await, [96, 97, 98, 99, 100]);
    let mut behind = events.stream(log, 10);

    assert_eq!(events.trim(log, &Trim::keep_last(30)).await.expect("trimmed"), 70);

    assert_eq!(stored(&db, log).await, (71, 100, 30));
    for stream in [&mut behind, &mut events.stream(log, 0), &mut events.stream(log, 69)] {
        let told = ended(stream).await;
        assert!(matches!(told, Error::Removed { first: Some(71), .. }), "{told:?}");
        assert!(told.to_string().contains("71"), "{told}");
    }
    let mut again = events.stream(log, 70);
    assert_dense(&next_batch(&mut again).await.expect("the rest"), 71);
    let mut last = events.stream_last(log, 50).await.expect("a stream");
    assert_eq!(next_ids(&mut last).await.len(), 30, "all that is left");
    // The log goes on, and its readers with it.
    assert_eq!(events.append(log, &numbered(101, 1)).await.expect("appended"), 101..=101);
    for stream in [&mut live, &mut again, &mut last] {
        assert_eq!(next_ids(stream).await, [101]);
    }
    assert_eq!(events.trim(log, &Trim::keep_last(31)).await.expect("nothing to do"), 0);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_reader_at_the_edge_gets_an_error_if_its_event_cannot_be_recognized(db: TestDb) {
    let events = events(&db).await;
    let log = log_of(&db, &events, 10).await;
    let all = events.history(log, Selection::default()).collect().await.expect("read");

    events.trim(log, &Trim::keep_last(5)).await.expect("trimmed");

    let told = ended(&mut events.resume(log, 5, all[4].mark)).await;
    assert!(matches!(told, Error::Removed { first: Some(6), .. }), "{told:?}");
    assert_eq!(next_ids(&mut events.resume(log, 6, all[5].mark)).await, [7, 8, 9, 10]);
    let told = ended(&mut events.resume(log, 6, all[6].mark)).await;
    assert!(matches!(told, Error::Rewound { .. }), "the mark is checked as before: {told:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn old_events_are_removed_up_to_the_first_one_that_is_not_and_the_last_batch_stays(db: TestDb) {
    let events = events(&db).await;
    let log = log_of(&db, &events, 10).await;
    let hour = Trim::older_than(Duration::from_mins(30));
    assert_eq!(events.trim(log, &hour).await.expect("nothing is old"), 0);
    age(&db, log, 4).await;
    // A long transaction has appended this batch, so it is older than the batches before it.
    let out_of_order =
        "update event_log_batches set at = at - interval '2 hours' where log = $1 and first = 8";
    sqlx::query(out_of_order).bind(log.0).execute(&db.pool()).await.expect("aged");

    assert_eq!(events.trim(log, &hour).await.expect("trimmed"), 4);

    assert_eq!(stored(&db, log).await, (5, 10, 6));
    age(&db, log, 10).await;
    assert_eq!(events.trim(log, &hour).await.expect("trimmed"), 5, "all but the last");
    assert_eq!(stored(&db, log).await, (10, 10, 1));
    assert_eq!(events.trim(log, &Trim::keep_last(0)).await.expect("trimmed"), 0);
    assert_eq!(events.append(log, &numbered(11, 1)).await.expect("appended"), 11..=11, "the ids go on");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_batch_is_removed_whole_or_not_at_all(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    for batch in 0..4 {
        events.append(log, &numbered(batch * 10 + 1, 10)).await.expect("appended");
    }

    assert_eq!(events.trim(log, &Trim::keep_last(15)).await.expect("trimmed"), 2);

    assert_eq!(stored(&db, log).await, (21, 40, 2), "five events more than were to be kept");
    assert_eq!(next_ids(&mut events.stream(log, 25)).await.len(), 15, "from within a batch");
    events.finish(log, &numbered(41, 1)).await.expect("finished");
    events.trim(log, &Trim::keep_last(0)).await.expect("trimmed");
    assert!(events.head(log).await.expect("a head").is_finished);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn histories_of_some_kinds_fail_on_trimmed_events_too(db: TestDb) {
    let events = events(&db).await;
    let log = log_of(&db, &events, 2500).await;
    let kinds = || Selection::default().kinds(["n"]);
    let mut reading = events.history(log, kinds());
    assert_eq!(reading.next_batch().await.expect("read").expect("a page").len(), 1000);

    events.trim(log, &Trim::keep_last(500).pause(Duration::ZERO)).await.expect("trimmed");

    let told = reading.next_batch().await;
    assert!(matches!(told, Err(Error::Removed { first: Some(2001), .. })), "{told:?}");
    let told = events.history(log, kinds()).collect().await;
    assert!(matches!(told, Err(Error::Removed { first: Some(2001), .. })), "{told:?}");
    let told = events.history(log, Selection::default()).collect().await;
    assert!(matches!(told, Err(Error::Removed { first: Some(2001), .. })), "{told:?}");
    let rest = events.history(log, kinds().after(2000)).collect().await.expect("the rest");
    assert_eq!(rest.len(), 500);
    let last = events.history(log, kinds().last(1000)).collect().await.expect("the last");
    assert_eq!(last.len(), 500);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn trimming_goes_on_while_others_append_and_follow(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    let (seen, mut progress) = watch::channel(0);
    let reading = tokio::spawn(async move {
        while let Some(batch) = stream.next_batch().await.expect("it is never that far behind") {
            assert_dense(&batch, *seen.borrow() + 1);
            seen.send_replace(batch.last_id());
        }
        *seen.borrow()
    });
    let trimming = tokio::spawn({
        let events = events.clone();
        async move {
            let mut removed = 0;
            let keep = Trim::keep_last(2000).pause(Duration::ZERO);
            while !events.head(log).await.expect("a head").is_finished {
                removed += events.trim(log, &keep).await.expect("trimmed");
            }
            removed
        }
    });
    for batch in 0..500 {
        // The reader is not as far behind as the number of kept events.
        progress.wait_for(|seen| seen + 1000 > batch * 20).await.expect("it reads");
        events.append(log, &numbered(batch * 20 + 1, 20)).await.expect("appended");
    }
    events.finish(log, &numbered(10_001, 1)).await.expect("finished");

    let removed = timeout(PATIENCE, trimming).await.expect("in time").expect("no panic");
    let last = timeout(PATIENCE, reading).await.expect("in time").expect("no panic");

    assert_eq!(last, 10_001);
    assert!(removed > 100, "{removed} batches removed");
    let unknown = events.trim(NO_LOG, &Trim::keep_last(1)).await;
    assert!(matches!(unknown, Err(Error::UnknownLog(NO_LOG))), "{unknown:?}");
}
