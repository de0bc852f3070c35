//! Ids, batches and refusals.

use db_events::{Error, NewEvent, WriterId};
use db_testkit::TestDb;

use crate::support::{
    NO_LOG, append_and_stay_open, assert_dense, events, numbered, read_to_end, until_one_waits,
};

#[db_testkit::test(migrations = "../../migrations")]
async fn ids_are_dense_from_one_and_batches_stay_whole(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");

    assert_eq!(events.append(log, &numbered(1, 3)).await.expect("appended"), 1..=3);
    assert_eq!(events.append(log, &numbered(4, 1)).await.expect("appended"), 4..=4);
    let last = [NewEvent::new("a", "x"), NewEvent::new("b", "ünï\"\n")];
    assert_eq!(events.finish(log, &last).await.expect("finished"), 5..=6);

    let all = read_to_end(events.stream(log, 0)).await;
    assert_dense(&all, 1);
    let shown: Vec<(&str, &str)> = all.iter().map(|event| (&*event.kind, event.data.as_str())).collect();
    assert_eq!(shown, [("n", "1"), ("n", "2"), ("n", "3"), ("n", "4"), ("a", "x"), ("b", "ünï\"\n")]);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn many_writers_leave_no_hole_and_no_event_out(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let events = events.clone();
        writers.spawn(async move {
            for batch in 0..25 {
                let first = writer * 1000 + batch * 10;
                let ids = events.append(log, &numbered(first, 3)).await.expect("appended");
                assert_eq!(ids.end() - ids.start(), 2, "a batch is whole");
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("no panic");
    }
    events.finish(log, &numbered(-1, 1)).await.expect("finished");

    let all = read_to_end(events.stream(log, 0)).await;

    assert_eq!(all.len(), 8 * 25 * 3 + 1);
    assert_dense(&all, 1);
    // A later append has a higher id, whichever writer it is from.
    for writer in 0..8 {
        let theirs: Vec<i64> = all
            .iter()
            .map(|event| event.data.parse().expect("a number"))
            .filter(|n: &i64| *n >= writer * 1000 && *n < (writer + 1) * 1000)
            .collect();
        assert!(theirs.is_sorted(), "{theirs:?}");
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_append_that_is_not_committed_yet_is_waited_for_and_not_jumped_over(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let open = append_and_stay_open(&db, log, (1, 2)).await;

    let quick = tokio::spawn({
        let events = events.clone();
        async move { events.append(log, &numbered(1, 1)).await }
    });
    // The second writer waits for the first one.
    until_one_waits(&db).await;
    assert!(!quick.is_finished(), "the second append did not wait");
    open.commit().await.expect("committed");

    assert_eq!(quick.await.expect("no panic").expect("appended"), 3..=3);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_finished_log_takes_nothing_more(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    events.finish(log, &numbered(1, 2)).await.expect("finished");

    let appended = events.append(log, &numbered(3, 1)).await;
    let finished = events.finish(log, &numbered(3, 1)).await;

    assert!(matches!(appended, Err(Error::Finished { last: 2, .. })), "{appended:?}");
    assert!(matches!(finished, Err(Error::Finished { last: 2, .. })), "{finished:?}");
    assert_eq!(read_to_end(events.stream(log, 0)).await.len(), 2);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn bad_events_are_refused_and_nothing_is_stored(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let good = NewEvent::new("n", "1");
    let beside = |bad: NewEvent| vec![good.clone(), bad];

    assert!(matches!(events.append(log, &[]).await, Err(Error::Size { events: 0, .. })));
    assert!(matches!(events.append(log, &beside(NewEvent::new("n", "a\0b"))).await, Err(Error::Nul)));
    for kind in NewEvent::RESERVED_KINDS {
        let refused = events.append(log, &beside(NewEvent::new(kind, ""))).await;
        assert!(matches!(refused, Err(Error::ReservedKind(which)) if which == kind), "{refused:?}");
        let pushed = events.appender(log).push(NewEvent::new(kind, "")).await;
        assert!(matches!(pushed, Err(Error::ReservedKind(_))), "{pushed:?}");
    }
    for kind in ["", "a\nb", &"x".repeat(65)] {
        let bad = NewEvent::new(kind.to_owned(), "");
        assert!(matches!(events.append(log, &beside(bad)).await, Err(Error::BadKind)), "{kind:?}");
    }
    let large = NewEvent::new("n", "x".repeat(17 << 20));
    assert!(matches!(events.append(log, &[large]).await, Err(Error::Size { .. })));
    assert!(matches!(events.append(NO_LOG, &numbered(1, 1)).await, Err(Error::UnknownLog(NO_LOG))));

    assert_eq!(events.head(log).await.expect("a head").last, 0);
}

#[test]
fn writers_of_processes_that_have_seeded_their_random_numbers_alike_are_two() {
    let writer = || {
        fastrand::seed(7);
        WriterId::random()
    };

    assert_ne!(writer(), writer());
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_writers_number_stands_for_the_same_events_or_is_an_error(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let source = (WriterId(7), 1);
    let batch = || vec![NewEvent::new("a", "1"), NewEvent::new("a", "2")];
    assert_eq!(events.append_once(log, source, &batch()).await.expect("appended"), 1..=2);

    for other in [
        vec![NewEvent::new("a", "1"), NewEvent::new("a", "3")],
        vec![NewEvent::new("a", "1"), NewEvent::new("b", "2")],
        vec![NewEvent::new("a", "1"), NewEvent::new("a", "2").version(2)],
        vec![NewEvent::new("a", "1")],
        vec![NewEvent::new("a", "1"), NewEvent::new("a", "2"), NewEvent::new("a", "3")],
    ] {
        let refused = events.append_once(log, source, &other).await;
        assert!(
            matches!(refused, Err(Error::SequenceReused { writer: WriterId(7), sequence: 1, first: 1, .. })),
            "{other:?}: {refused:?}"
        );
    }

    assert_eq!(events.append_once(log, source, &batch()).await.expect("the same once more"), 1..=2);
    assert_eq!(events.head(log).await.expect("a head").last, 2);
    // The same sequence number of another writer, or of another log, is another batch.
    assert_eq!(events.append_once(log, (WriterId(8), 1), &numbered(3, 1)).await.expect("appended"), 3..=3);
    let elsewhere = events.create().await.expect("a log");
    assert_eq!(events.append_once(elsewhere, source, &numbered(1, 1)).await.expect("appended"), 1..=1);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_log_made_in_a_transaction_goes_with_it(db: TestDb) {
    let events = events(&db).await;
    let pool = db_core::Pool::new(
        &db_core::Config::from_url(&db.url()).expect("an address"),
        db_core::PoolOptions::api(),
    );
    let mut tx = pool.handle().begin().await.expect("begun");
    let log = events.create_in(&mut tx).await.expect("a log");
    tx.rollback().await.expect("rolled back");

    assert!(matches!(events.head(log).await, Err(Error::Removed { .. })));
}
