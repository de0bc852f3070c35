//! Removing a log during appends to it.

use db_events::{Error, EventLogs, LogId};
use db_testkit::{TestDb, until};
use sqlx::{Postgres, Transaction};

use crate::support::{answer, append_and_stay_open, append_by_hand, ended, events, next_batch, numbered};

/// An append by hand to a log with one event, in a transaction that stays open.
async fn open_append(db: &TestDb, log: LogId) -> Transaction<'static, Postgres> {
    append_and_stay_open(db, log, (2, 2)).await
}

async fn one_event(db: &TestDb, events: &EventLogs) -> LogId {
    let log = events.create().await.expect("a log");
    append_by_hand(db, log, 1).await;
    log
}

async fn left(db: &TestDb, log: LogId) -> i64 {
    let count = sqlx::query_scalar("select count(*) from event_log_batches where log = $1").bind(log.0);
    count.fetch_one(&db.pool()).await.expect("a count")
}

async fn until_waiting(db: &TestDb, sessions: i64) {
    until("sessions wait for a lock", async || {
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and application_name = 'backend' and wait_event_type = 'Lock'";
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&db.pool()).await.expect("a count") >= sessions
    })
    .await;
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_append_that_waits_while_its_log_is_removed_leaves_nothing_behind(db: TestDb) {
    let events = events(&db).await;
    for (is_first, commits) in [(true, false), (true, true), (false, false), (false, true)] {
        let log = one_event(&db, &events).await;
        let open = open_append(&db, log).await;
        let append = || {
            let events = events.clone();
            tokio::spawn(async move { events.append(log, &numbered(2, 1)).await })
        };
        let remove = || {
            let events = events.clone();
            tokio::spawn(async move { events.remove(log).await })
        };
        let (append, remove) = if is_first {
            let append = append();
            until_waiting(&db, 1).await;
            (append, remove())
        } else {
            let remove = remove();
            until_waiting(&db, 1).await;
            (append(), remove)
        };
        until_waiting(&db, 2).await;

        if commits {
            open.commit().await.expect("committed");
        } else {
            open.rollback().await.expect("rolled back");
        }

        let appended = append.await.expect("no panic");
        let removed = remove.await.expect("no panic");
        removed.expect("whoever is before it ends");
        // The append was stored before the removal and is gone with the log, or it failed.
        assert!(matches!(appended, Ok(_) | Err(Error::UnknownLog(_))), "{appended:?}");
        assert_eq!(left(&db, log).await, 0, "first {is_first}, commits {commits}: {appended:?}");
        let gone = events.append(log, &numbered(2, 1)).await;
        assert!(matches!(gone, Err(Error::UnknownLog(_))), "{gone:?}");
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn while_an_append_to_it_is_open_a_log_is_not_removed(db: TestDb) {
    let events = events(&db).await;
    let log = one_event(&db, &events).await;
    let open = open_append(&db, log).await;
    let remove = tokio::spawn({
        let events = events.clone();
        async move { events.remove(log).await }
    });
    until_waiting(&db, 1).await;

    remove.abort();
    assert!(remove.await.expect_err("dropped").is_cancelled());

    // A dropped append has done nothing.
    open.commit().await.expect("committed");
    db.until_quiet().await;
    assert_eq!(events.head(log).await.expect("it is there").last, 2);
    assert_eq!(left(&db, log).await, 2);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn the_fence_of_a_log_that_was_half_removed_is_no_event_and_is_removed_by_the_next(db: TestDb) {
    let events = events(&db).await;
    let log = one_event(&db, &events).await;
    let mut stream = events.stream(log, 0);
    next_batch(&mut stream).await.expect("the first");
    // As after the death of a process during the removal.
    let half = "with gone as (delete from event_logs where id = $1)
                insert into event_log_batches values ($1, 2, 2, 0, '{}', '{}', true)";
    sqlx::query(half).bind(log.0).execute(&db.pool()).await.expect("half removed");

    for cursor in [1, 2] {
        let told = ended(&mut events.stream(log, cursor)).await;
        assert!(matches!(told, Error::Removed { .. }), "{cursor}: {told:?}");
    }
    events.append(log, &numbered(2, 1)).await.expect_err("it is gone");
    let told = ended(&mut stream).await;
    assert!(matches!(told, Error::Removed { .. }), "{told:?}");
    let seen: i32 = answer(&db, "select count(*)::int from event_log_events").await;
    assert_eq!(seen, 1, "people with a SQL prompt do not see it either");

    events.retain(&db_events::Retention::older_than(std::time::Duration::ZERO)).await.expect("retained");
    assert_eq!(left(&db, log).await, 0);
}
