//! A reader of a log that has lost events gets an error: no event is skipped silently.

use std::time::Duration;

use db_events::{Error, EventLogs, EventStream, LogId, Mark, POLL_FLOOR, Retention, Selection};
use db_testkit::{TestDb, until};
use tokio::time::timeout;

use crate::support::{
    PATIENCE, append_by_hand, batches_by_hand, ended, events, lose_after, next_ids, numbered, trim,
};

/// More batches than two pages have.
const LONG: i64 = 2500;

/// A stream that has seen the first events of a log, each in a batch of its own, and waits for more.
async fn follower(db: &TestDb, events: &EventLogs, seen: i64) -> (LogId, EventStream) {
    let log = events.create().await.expect("a log");
    batches_by_hand(db, log, (1, seen), false).await;
    let mut stream = events.stream(log, 0);
    assert_eq!(next_ids(&mut stream).await.len(), usize::try_from(seen).expect("few"));
    (log, stream)
}

/// A log of [`LONG`] batches, of which one page is read; it is being removed, and its first 2000 batches are gone.
async fn half_removed(db: &TestDb, events: &EventLogs) -> (LogId, EventStream) {
    let log = events.create().await.expect("a log");
    batches_by_hand(db, log, (1, LONG), true).await;
    let mut stream = events.stream(log, 0);
    assert_eq!(next_ids(&mut stream).await, (1..=1000).collect::<Vec<_>>());
    sqlx::query("delete from event_logs where id = $1").bind(log.0).execute(&db.pool()).await.expect("gone");
    trim(db, log, 2000).await;
    (log, stream)
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_stream_in_the_middle_of_a_log_that_is_removed_gets_an_error_and_skips_nothing(db: TestDb) {
    let events = events(&db).await;
    let (log, mut stream) = half_removed(&db, &events).await;

    for _ in 0..2 {
        let told = ended(&mut stream).await;
        assert!(matches!(told, Error::Removed { log: which, .. } if which == log), "{told:?}");
    }
    assert_eq!(stream.cursor(), 1000, "what was seen stays so");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_stream_that_begins_while_a_log_is_removed_gets_an_error(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    batches_by_hand(&db, log, (1, LONG), true).await;
    let mut middle = events.stream(log, 0);
    assert_eq!(next_ids(&mut middle).await.len(), 1000);
    let slowly = Retention::older_than(Duration::ZERO).pause(Duration::from_hours(1));
    let removing = tokio::spawn({
        let events = events.clone();
        async move { events.retain(&slowly).await }
    });
    until("some of it is gone", async || left(&db, log).await < LONG).await;

    let told = ended(&mut events.stream(log, 0)).await;

    assert!(matches!(told, Error::Removed { log: which, .. } if which == log), "{told:?}");
    // The last event that this stream has seen is gone, so it cannot check that the next one continues it.
    let told = ended(&mut middle).await;
    assert!(matches!(told, Error::Removed { log: which, .. } if which == log), "{told:?}");
    removing.abort();
}

async fn left(db: &TestDb, log: LogId) -> i64 {
    let count = sqlx::query_scalar("select count(*) from event_log_batches where log = $1").bind(log.0);
    count.fetch_one(&db.pool()).await.expect("a count")
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_history_of_a_log_that_is_removed_meanwhile_is_an_error_and_not_half_of_it(db: TestDb) {
    let events = events(&db).await;
    for kinds in [None, Some(["n"])] {
        let log = events.create().await.expect("a log");
        batches_by_hand(&db, log, (1, LONG), true).await;
        let selection = kinds.map_or_else(Selection::default, |kinds| Selection::default().kinds(kinds));
        let mut history = events.history(log, selection);
        assert_eq!(history.next_batch().await.expect("read").expect("a page").len(), 1000);
        sqlx::query("delete from event_logs where id = $1")
            .bind(log.0)
            .execute(&db.pool())
            .await
            .expect("gone");
        trim(&db, log, 2000).await;

        let told = history.next_batch().await;

        assert!(
            matches!(told, Err(Error::Removed { log: which, .. }) if which == log),
            "{kinds:?}: {told:?}"
        );
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_history_of_a_log_that_is_rewound_meanwhile_is_an_error(db: TestDb) {
    let events = events(&db).await;
    for (kinds, again) in [(None, 0), (None, 2000), (Some(["n"]), 0), (Some(["n"]), 2000)] {
        let log = events.create().await.expect("a log");
        batches_by_hand(&db, log, (1, LONG), false).await;
        let selection = kinds.map_or_else(Selection::default, |kinds| Selection::default().kinds(kinds));
        let mut history = events.history(log, selection);
        assert_eq!(history.next_batch().await.expect("read").expect("a page").len(), 1000);
        lose_after(&db, log, 990).await;
        batches_by_hand(&db, log, (991, 990 + again), false).await;

        let told = history.next_batch().await;

        assert!(matches!(told, Err(Error::Rewound { last: 990, .. })), "{kinds:?}, {again}: {told:?}");
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_cursor_below_the_first_event_gets_an_error_and_a_cursor_right_before_it_goes_on(db: TestDb) {
    let events = events(&db).await;
    let (log, mut waiting) = follower(&db, &events, 10).await;
    trim(&db, log, 5).await;

    for cursor in [0, 3, 4] {
        let told = ended(&mut events.stream(log, cursor)).await;
        assert!(matches!(told, Error::Removed { log: which, .. } if which == log), "{cursor}: {told:?}");
    }
    for cursor in [5, 6, 9] {
        let ids = next_ids(&mut events.stream(log, cursor)).await;
        assert_eq!(ids, (cursor + 1..=10).collect::<Vec<_>>());
    }
    events.append(log, &numbered(11, 1)).await.expect("appended");
    assert_eq!(next_ids(&mut waiting).await, [11]);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_hole_in_a_log_ends_a_stream_after_what_comes_before_it(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    batches_by_hand(&db, log, (1, 3), false).await;
    batches_by_hand(&db, log, (7, 9), true).await;
    let mut stream = events.stream(log, 0);

    assert_eq!(next_ids(&mut stream).await, [1, 2, 3]);
    let told = ended(&mut stream).await;

    assert!(matches!(told, Error::Removed { log: which, .. } if which == log), "{told:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn followers_of_a_log_that_is_rewound_get_the_last_unchanged_event(db: TestDb) {
    let events = events(&db).await;
    // When the next page is read, the log has as many events as before, fewer, more, or none.
    for again in [0, 1, 5, 9] {
        let (log, mut stream) = follower(&db, &events, 10).await;
        let (mut beside, mut late) = (events.stream(log, 0), events.stream(log, 8));
        assert_eq!(next_ids(&mut beside).await.len(), 10);
        assert_eq!(next_ids(&mut late).await, [9, 10]);
        lose_after(&db, log, 5).await;
        batches_by_hand(&db, log, (6, 5 + again), false).await;
        // A writer appends normally.
        events.append(log, &numbered(6 + again, 1)).await.expect("appended");

        for stream in [&mut stream, &mut beside] {
            let told = ended(stream).await;
            assert!(
                matches!(told, Error::Rewound { log: which, last: 5 } if which == log),
                "{again}: {told:?}"
            );
        }
        // The stream had not seen the replaced events.
        let told = ended(&mut late).await;
        assert!(matches!(told, Error::Rewound { last: 0, .. }), "{again}: {told:?}");
        let ids = next_ids(&mut events.stream(log, 5)).await;
        assert_eq!(ids, (6..=6 + again).collect::<Vec<_>>());
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn waiting_streams_find_out_that_a_log_was_rewound_without_a_notification(db: TestDb) {
    let events = events(&db).await;
    let mut waiting = Vec::new();
    for again in [0, 3, 5, 7] {
        let (log, mut stream) = follower(&db, &events, 10).await;
        let task = tokio::spawn(async move { stream.next_batch().await });
        waiting.push((log, again, task));
    }
    until("all of them wait", async || events.state().pages >= 8).await;

    for (log, again, _) in &waiting {
        let mut rewinding = db.pool().begin().await.expect("begun");
        for sql in [
            "delete from event_log_batches where log = $1 and last > 5 and $2 >= 0",
            "insert into event_log_batches select $1, n, n, 1, '{n}', '{other}', false from generate_series(6, 5 + $2) as n",
        ] {
            sqlx::query(sql).bind(log.0).bind(again).execute(&mut *rewinding).await.expect("rewound");
        }
        rewinding.commit().await.expect("committed");
    }

    for (_, again, task) in waiting {
        let told = timeout(2 * POLL_FLOOR + PATIENCE, task).await.expect("in time").expect("no panic");
        assert!(matches!(told, Err(Error::Rewound { last: 5, .. })), "{again}: {told:?}");
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn new_streams_follow_a_rewound_log_beside_old_ones_that_get_an_error(db: TestDb) {
    let events = events(&db).await;
    let (log, mut before) = follower(&db, &events, 12).await;
    let task = tokio::spawn(async move { before.next_batch().await });
    until("it follows", async || events.state().pages == 2).await;
    lose_after(&db, log, 10).await;

    let mut after = events.stream(log, 5);
    assert_eq!(next_ids(&mut after).await, [6, 7, 8, 9, 10]);
    let pages = events.state().pages;
    let next = tokio::spawn(async move { next_ids(&mut after).await });
    let told = timeout(PATIENCE, task).await.expect("in time").expect("no panic");
    assert!(matches!(told, Err(Error::Rewound { last: 10, .. })), "{told:?}");
    events.append(log, &numbered(11, 1)).await.expect("appended");

    assert_eq!(next.await.expect("no panic"), [11]);
    let looks = events.state().pages - pages;
    assert!(looks < 100, "{looks} pages: it waits, and does not ask again and again");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_reader_that_resumes_with_a_mark_gets_an_error_and_one_with_an_id_alone_does_not(db: TestDb) {
    let events = events(&db).await;
    let (log, stream) = follower(&db, &events, 10).await;
    let mark = stream.mark().expect("the tenth event's");
    assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    assert_eq!(events.head(log).await.expect("a head").mark, Some(mark));
    let fifth = events.history(log, Selection::default().until(5).last(1)).collect().await.expect("read");
    append_by_hand(&db, log, 11).await;
    assert_eq!(next_ids(&mut events.resume(log, 10, mark)).await, [11], "nothing has happened yet");

    lose_after(&db, log, 5).await;
    let told = ended(&mut events.resume(log, 10, mark)).await;
    assert!(matches!(told, Error::Rewound { last: 0, .. }), "nothing at that number: {told:?}");
    let told = ended(&mut events.stream(log, 10)).await;
    assert!(matches!(told, Error::Rewound { last: 5, .. }), "a number is taken at its word: {told:?}");

    batches_by_hand(&db, log, (6, 12), false).await;
    let told = ended(&mut events.resume(log, 10, mark)).await;
    assert!(matches!(told, Error::Rewound { last: 0, .. }), "others at that number: {told:?}");
    assert_eq!(next_ids(&mut events.stream(log, 10)).await, [11, 12]);
    assert_eq!(next_ids(&mut events.resume(log, 5, fifth[0].mark)).await, (6..=12).collect::<Vec<_>>());
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_mark_of_another_log_or_of_one_that_had_the_number_before_is_noticed(db: TestDb) {
    let events = events(&db).await;
    let (log, stream) = follower(&db, &events, 3).await;
    let mark = stream.mark().expect("the third event's");
    drop(stream);
    let (other, _) = follower(&db, &events, 3).await;

    let told = ended(&mut events.resume(other, 3, mark)).await;
    assert!(matches!(told, Error::Rewound { last: 0, .. }), "of another log: {told:?}");

    events.remove(log).await.expect("removed");
    sqlx::query("insert into event_logs (id) overriding system value values ($1)")
        .bind(log.0)
        .execute(&db.pool())
        .await
        .expect("made again");
    let told = ended(&mut events.resume(log, 3, mark)).await;
    assert!(matches!(told, Error::Rewound { last: 0, .. }), "empty: {told:?}");
    batches_by_hand(&db, log, (1, 8), false).await;
    let told = ended(&mut events.resume(log, 3, mark)).await;
    assert!(matches!(told, Error::Rewound { last: 0, .. }), "with other events: {told:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn all_events_of_a_batch_have_one_mark_wherever_a_page_is_cut(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    // Each batch is larger than a page.
    let large: Vec<_> =
        (1..=20).map(|n| db_events::NewEvent::new("n", format!("{n}{}", "x".repeat(1 << 16)))).collect();
    for _ in 0..3 {
        events.append(log, &large).await.expect("appended");
    }
    let all = events.history(log, Selection::default()).collect().await.expect("read");
    assert_eq!(all.len(), 60);

    for event in &all[..59] {
        let mut stream = events.resume(log, event.id, event.mark);
        let next = next_ids(&mut stream).await;
        assert_eq!(next[0], event.id + 1);
        assert_eq!(
            stream.mark(),
            Some(all[usize::try_from(*next.last().expect("some")).expect("few") - 1].mark)
        );
    }
    assert_ne!(all[19].mark, all[20].mark);
    assert_eq!(all[20].mark, all[39].mark);
}
