//! Appends in a transaction of the caller's.

use std::time::Duration;

use db_core::{Class, Config, Isolation, Pool, PoolOptions, TxOptions};
use db_events::{Error, EventLogs, LogId, NewEvent, POLL_FLOOR};
use db_notify::{Bus, BusOptions};
use db_testkit::{Proxy, TestDb, poll_then_drop, until};
use harness::{Process, answer as tell, told};
use tokio::time::timeout;

use crate::support::{
    NO_LOG, PATIENCE, answer, append_and_stay_open, assert_dense, events, next_batch, next_ids, numbered,
    read_to_end, run, until_one_waits,
};

fn pool(url: &str, options: PoolOptions) -> Pool {
    Pool::new(&Config::from_url(url).expect("an address"), options)
}

async fn orders_table(db: &TestDb) {
    let make = "create table orders (item text not null, log bigint not null)";
    sqlx::raw_sql(make).execute(&db.pool()).await.expect("made");
}

/// A handler as in the README: a row, its log, and the log's first event.
async fn order(pool: &Pool, events: &EventLogs, item: &str) -> Result<LogId, Error> {
    pool.handle()
        .tx(async |tx| {
            let log = events.create_in(tx).await?;
            sqlx::query("insert into orders values ($1, $2)")
                .bind(item)
                .bind(log.0)
                .execute(&mut *tx)
                .await?;
            events.append_in(tx, log, &[NewEvent::new("ordered", item)]).await?;
            Ok(log)
        })
        .await
}

/// The number of orders, and of orders with their event. No event exists without its order.
async fn orders_and_events(db: &TestDb) -> (i64, i64) {
    db.until_quiet().await;
    let (orders, paired, all): (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from orders),
             (select count(*) from orders join event_log_events as event using (log) where event.data = item),
             (select count(*) from event_log_events)",
    )
    .fetch_one(&db.pool())
    .await
    .expect("counts");
    assert_eq!(paired, all, "an event without its order");
    (orders, paired)
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_handler_that_is_dropped_at_any_await_leaves_a_row_with_its_event_or_neither(db: TestDb) {
    let events = events(&db).await;
    // The proxy delays answers, or one may be there before it is awaited.
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.latency(Duration::from_millis(1));
    let pool = pool(&proxy.url(), PoolOptions::api());
    orders_table(&db).await;

    for polls in 0.. {
        let is_done = poll_then_drop(order(&pool, &events, "tea"), polls).await.is_some();

        let (orders, events) = orders_and_events(&db).await;
        assert_eq!(orders, events, "dropped after {polls} polls");
        if is_done {
            assert!(polls > 3, "it was dropped between its statements");
            break;
        }
    }
}

#[test]
fn orders_until_it_is_killed() {
    let Some((address, mut orders)) = told() else { return };
    run(async move {
        let config = Config::from_url(&address).expect("an address");
        let bus = Bus::open(&config, BusOptions::default()).await.expect("a bus");
        let pool = Pool::new(&config, PoolOptions::api());
        let events = EventLogs::new(pool.clone(), &bus);
        orders.recv().await.expect("an order");
        tell("begun");
        for number in 0.. {
            order(&pool, &events, &format!("item {number}")).await.expect("ordered");
        }
    });
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_process_that_is_killed_leaves_rows_with_their_events_or_neither(db: TestDb) {
    orders_table(&db).await;
    let mut before = 0;
    for _ in 0..4 {
        let mut process = Process::start("in_transactions::orders_until_it_is_killed", &db.url());
        process.ask("begin").await;
        until("it has ordered", async || {
            let count = sqlx::query_scalar::<_, i64>("select count(*) from orders");
            count.fetch_one(&db.pool()).await.expect("a count") > before + 20
        })
        .await;

        process.kill();

        let (orders, events) = orders_and_events(&db).await;
        assert_eq!(orders, events, "an order without its event");
        before = orders;
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn events_of_a_transaction_come_with_its_commit_and_wake_followers(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let pool = pool(&db.url(), PoolOptions::api());
    let mut stream = events.stream(log, 0);
    events.append(log, &numbered(1, 1)).await.expect("appended");
    assert_eq!(next_ids(&mut stream).await, [1]);
    let waiting = tokio::spawn(async move { (next_ids(&mut stream).await, stream) });
    until("the stream follows", async || events.state().watched.here == 1).await;

    let mut tx = pool.handle().begin().await.expect("begun");
    assert_eq!(events.append_in(&mut tx, log, &numbered(2, 2)).await.expect("appended"), 2..=3);
    // A second batch of the same transaction follows the first.
    assert_eq!(events.append_in(&mut tx, log, &numbered(4, 1)).await.expect("appended"), 4..=4);
    assert_eq!(events.head(log).await.expect("a head").last, 1, "not committed yet");
    tx.commit().await.expect("committed");

    let (ids, mut stream) =
        timeout(POLL_FLOOR / 2, waiting).await.expect("long before the next poll").expect("no panic");
    assert_eq!(ids, [2, 3, 4]);
    let mut tx = pool.handle().begin().await.expect("begun");
    events.finish_in(&mut tx, log, &numbered(5, 1)).await.expect("finished");
    let late = events.append_in(&mut tx, log, &numbered(6, 1)).await;
    assert!(matches!(late, Err(Error::Finished { last: 5, .. })), "{late:?}");
    // A refused append leaves the transaction usable.
    let unknown = events.append_in(&mut tx, NO_LOG, &numbered(1, 1)).await;
    assert!(matches!(unknown, Err(Error::UnknownLog(NO_LOG))), "{unknown:?}");
    let bad = events.append_in(&mut tx, log, &[NewEvent::new("", "")]).await;
    assert!(matches!(bad, Err(Error::BadKind)), "{bad:?}");
    tx.commit().await.expect("committed");
    assert_eq!(next_ids(&mut stream).await, [5]);
    assert!(next_batch(&mut stream).await.is_none(), "finished");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn other_writers_wait_for_a_transaction_and_take_its_place_if_it_rolls_back(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let pool = pool(&db.url(), PoolOptions::api());
    let appender = events.appender(log);
    for (commits, first) in [(false, 1), (true, 3)] {
        let mut tx = pool.handle().begin().await.expect("begun");
        let in_tx = [NewEvent::new("n", "in the transaction")];
        assert_eq!(*events.append_in(&mut tx, log, &in_tx).await.expect("appended").start(), first);
        let append = tokio::spawn({
            let events = events.clone();
            async move { events.append(log, &numbered(first, 1)).await }
        });
        until_one_waits(&db).await;
        let push = tokio::spawn({
            let appender = appender.clone();
            async move { appender.append(NewEvent::new("n", "appender")).await }
        });
        assert!(!append.is_finished(), "it waits");

        if commits {
            tx.commit().await.expect("committed");
        } else {
            tx.rollback().await.expect("rolled back");
        }

        timeout(PATIENCE, append).await.expect("in time").expect("no panic").expect("appended");
        timeout(PATIENCE, push).await.expect("in time").expect("no panic").expect("appended");
    }
    events.finish(log, &numbered(6, 1)).await.expect("finished");
    let all = read_to_end(events.stream(log, 0)).await;
    assert_dense(&all, 1);
    assert_eq!(all.len(), 6, "two appends each time, one transaction, and the end");
    assert_eq!(all.iter().filter(|event| event.data == "in the transaction").count(), 1);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn while_a_transaction_hangs_others_fail_at_their_deadline_and_nothing_is_lost(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let hanging = pool(&db.url(), PoolOptions::api());
    let impatient = PoolOptions::backend().statement_timeout(Duration::from_millis(200));
    let bus =
        Bus::open(&Config::from_url(&db.direct_url()).expect("an address"), BusOptions::default()).await;
    let hurried = EventLogs::new(pool(&db.url(), impatient), &bus.expect("a bus"));
    let appender = hurried.appender(log);
    let mut tx = hanging.handle().begin().await.expect("begun");
    events.append_in(&mut tx, log, &[NewEvent::new("n", "hangs")]).await.expect("appended");
    let push = tokio::spawn({
        let appender = appender.clone();
        async move { appender.append(NewEvent::new("n", "waits")).await }
    });

    for _ in 0..2 {
        let late = timeout(PATIENCE, hurried.append(log, &[NewEvent::new("n", "late")])).await;
        let late = late.expect("it fails at its own deadline");
        assert!(
            matches!(&late, Err(Error::Database { cause, .. }) if cause.class() == Class::TimedOut),
            "{late:?}"
        );
    }

    // An appender goes on, and stores its event once.
    assert!(!push.is_finished(), "it waits");
    tx.commit().await.expect("committed");
    timeout(PATIENCE, push).await.expect("in time").expect("no panic").expect("stored");
    db.until_quiet().await;
    events.finish(log, &[NewEvent::new("n", "end")]).await.expect("finished");
    let all = read_to_end(events.stream(log, 0)).await;
    assert_dense(&all, 1);
    let data: Vec<&str> = all.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(data, ["hangs", "waits", "end"], "an append that failed at its deadline is not stored");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_append_that_loses_a_race_is_repeated_unless_its_transaction_keeps_its_snapshot(db: TestDb) {
    let events = events(&db).await;
    let pool = pool(&db.url(), PoolOptions::api());
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let log = events.create().await.expect("a log");
        let mut tx =
            pool.handle().begin_with(TxOptions::default().isolation(isolation)).await.expect("begun");
        // The first statement takes the snapshot, in the isolation levels that keep one.
        sqlx::query("select 1").execute(&mut tx).await.expect("asked");
        let open = append_and_stay_open(&db, log, (1, 1)).await;
        let slow = tokio::spawn({
            let events = events.clone();
            async move {
                let appended = events.append_in(&mut tx, log, &numbered(1, 1)).await;
                (appended, tx)
            }
        });
        answer(&db, WAITING_OF_API).await;
        open.commit().await.expect("committed");

        let (appended, tx) = timeout(PATIENCE, slow).await.expect("in time").expect("no panic");

        if isolation == Isolation::ReadCommitted {
            assert_eq!(appended.expect("appended"), 2..=2);
            tx.commit().await.expect("committed");
        } else {
            assert!(
                matches!(&appended, Err(Error::Database { cause, .. }) if cause.class() == Class::Conflict),
                "{isolation:?}: {appended:?}"
            );
            tx.rollback().await.expect("rolled back");
            assert_eq!(events.append(log, &numbered(2, 1)).await.expect("appended"), 2..=2);
        }
    }
}

/// Waits until a session of the API pool waits for another session's transaction.
const WAITING_OF_API: &str = "select pid from pg_stat_activity
    where datname = current_database() and application_name = 'api' and wait_event_type = 'Lock'";
