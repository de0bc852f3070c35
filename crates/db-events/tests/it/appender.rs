//! Events that come one by one, and batches that are sent again.

use db_events::{Error, NewEvent, WriterId};
use db_testkit::{TestDb, poll_then_drop};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{NO_LOG, PATIENCE, assert_dense, events, events_behind_a_proxy, numbered, read_to_end};

async fn batches(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from event_log_batches").fetch_one(&db.pool()).await.expect("a count")
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_batch_that_is_sent_again_is_stored_once_and_keeps_its_ids(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let (one, other) = (WriterId::random(), WriterId::random());
    let send = async |writer, sequence| {
        events.append_once(log, (writer, sequence), &numbered(1, 3)).await.expect("appended")
    };

    assert_eq!(send(one, 1).await, 1..=3);
    assert_eq!(send(other, 1).await, 4..=6);
    assert_eq!(send(one, 2).await, 7..=9);
    assert_eq!(send(one, 1).await, 1..=3);
    assert_eq!(send(other, 1).await, 4..=6);
    events.finish(log, &numbered(10, 1)).await.expect("finished");
    assert_eq!(send(one, 2).await, 7..=9);
    let late = events.append_once(log, (one, 3), &numbered(1, 3)).await;
    assert!(matches!(late, Err(Error::Finished { last: 10, .. })), "{late:?}");

    assert_eq!(read_to_end(events.stream(log, 0)).await.len(), 10);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_batch_that_is_sent_many_times_at_once_is_stored_once(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let writer = WriterId::random();
    let mut sending = JoinSet::new();
    for n in 0..60 {
        let events = events.clone();
        sending.spawn(async move {
            events.append_once(log, (writer, n % 3), &numbered(1, 2)).await.map(|ids| (n % 3, ids))
        });
    }

    let mut seen: Vec<_> = sending.join_all().await.into_iter().map(|sent| sent.expect("appended")).collect();
    seen.sort_by_key(|(sequence, ids)| (*sequence, *ids.start()));
    seen.dedup();

    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(batches(&db).await, 3);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn events_appended_one_by_one_are_stored_in_order_and_in_few_batches(db: TestDb) {
    const EVENTS: i64 = 5000;
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    assert_eq!(appender.flush().await.expect("nothing to store"), 0);

    for event in numbered(1, EVENTS) {
        appender.push(event).await.expect("handed over");
    }
    assert_eq!(appender.flush().await.expect("stored"), EVENTS);
    assert_eq!(appender.waiting(), 0);
    assert_eq!(appender.append(NewEvent::new("n", "5001")).await.expect("stored"), EVENTS + 1);

    let stored = batches(&db).await;
    assert!(stored < EVENTS / 10, "{stored} batches");
    events.finish(log, &numbered(EVENTS + 2, 1)).await.expect("finished");
    let all = read_to_end(events.stream(log, 0)).await;
    assert_dense(&all, 1);
    assert!(all.iter().all(|event| event.data == event.id.to_string()), "out of order");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn many_callers_of_an_appender_get_the_ids_of_their_own_events(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    let mut appending = JoinSet::new();
    for n in 0..200 {
        let appender = appender.clone();
        appending.spawn(async move {
            (appender.append(NewEvent::new("n", n.to_string())).await.expect("stored"), n)
        });
    }
    let mut ids = appending.join_all().await;
    ids.sort_unstable();
    events.finish(log, &numbered(201, 1)).await.expect("finished");

    let all = read_to_end(events.stream(log, 0)).await;
    for (event, (id, n)) in all.iter().zip(ids) {
        assert_eq!((event.id, &event.data), (id, &n.to_string()));
    }
}

#[db_testkit::test(migrations = "../../migrations")]
async fn nothing_is_acknowledged_before_it_is_stored_and_a_lost_answer_doubles_nothing(db: TestDb) {
    let (proxy, events) = events_behind_a_proxy(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    appender.append(NewEvent::new("n", "1")).await.expect("stored");

    // It is stored, and its answer never comes.
    proxy.cut_answer_to("insert into event_log_batches");
    for n in 2..=40 {
        let id = timeout(PATIENCE, appender.append(NewEvent::new("n", n.to_string()))).await;
        assert_eq!(id.expect("in time").expect("stored"), n);
        if n % 10 == 0 && n < 40 {
            proxy.reset();
        }
        if n == 3 {
            proxy.heal();
        }
    }

    events.finish(log, &numbered(41, 1)).await.expect("finished");
    let all = read_to_end(events.stream(log, 0)).await;
    assert_eq!(all.len(), 41);
    assert!(all.iter().all(|event| event.data == event.id.to_string()), "doubled, lost or out of order");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn callers_that_append_faster_than_the_database_stores_wait(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    let mut blocker = db.pool().begin().await.expect("begun");
    sqlx::query("lock table event_log_batches").execute(&mut *blocker).await.expect("locked");

    let mut pushed = 0_usize;
    let megabyte = "x".repeat(1 << 20);
    while poll_then_drop(appender.push(NewEvent::new("n", megabyte.as_str())), 1).await.is_some() {
        pushed += 1;
        assert!(pushed < 100, "there is no bound");
    }
    assert_eq!(appender.waiting(), pushed);
    assert!((6..=8).contains(&pushed), "{pushed} MiB");

    blocker.rollback().await.expect("released");
    assert_eq!(appender.flush().await.expect("stored"), i64::try_from(pushed).expect("few"));
    appender.push(NewEvent::new("n", "room again")).await.expect("handed over");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_appender_to_a_finished_log_gives_all_callers_the_reason(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    assert!(matches!(appender.append(NewEvent::new("", "x")).await, Err(Error::BadKind)), "and it goes on");
    assert_eq!(appender.append(NewEvent::new("n", "1")).await.expect("stored"), 1);
    events.finish(log, &numbered(2, 1)).await.expect("finished");

    for _ in 0..2 {
        let error = appender.append(NewEvent::new("n", "3")).await.expect_err("finished");
        assert!(
            matches!(&error, Error::AppenderClosed { cause: Some(cause), .. } if matches!(**cause, Error::Finished { last: 2, .. })),
            "{error:?}"
        );
        assert!(error.to_string().contains("is finished with event 2"), "{error}");
    }
    assert!(appender.flush().await.is_err());
    let unknown = events.appender(NO_LOG).append(NewEvent::new("n", "1")).await;
    assert!(
        matches!(&unknown, Err(Error::AppenderClosed { cause: Some(cause), .. }) if matches!(**cause, Error::UnknownLog(_))),
        "{unknown:?}"
    );
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_event_keeps_its_version_and_its_json(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let token = |n: i16| NewEvent::json("token", &serde_json::json!({ "n": n })).expect("JSON").version(n);
    events.append(log, &[token(1), token(1)]).await.expect("appended");
    events.append(log, &[token(2), token(2)]).await.expect("appended");
    events.finish(log, &[token(1), token(3)]).await.expect("finished");

    let all = read_to_end(events.stream(log, 0)).await;

    let versions: Vec<i16> = all.iter().map(|event| event.version).collect();
    assert_eq!(versions, [1, 1, 2, 2, 1, 3]);
    let data: serde_json::Value = all[5].json().expect("JSON");
    assert_eq!(data["n"], 3);
    let seen: Vec<i16> =
        sqlx::query_scalar("select version from event_log_events where log = $1 order by id")
            .bind(log.0)
            .fetch_all(&db.pool())
            .await
            .expect("rows");
    assert_eq!(seen, versions);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn an_appender_finishes_its_log_after_all_that_was_handed_over_and_takes_nothing_more(db: TestDb) {
    let (proxy, events) = events_behind_a_proxy(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    let stream = events.stream(log, 0);
    let reading = tokio::spawn(read_to_end(stream));
    let mut appending = JoinSet::new();
    for n in 1..=100 {
        appender.push(NewEvent::new("n", n.to_string())).await.expect("handed over");
    }
    // The answer to the batch that finishes the log is lost: it is sent again, and stored once.
    proxy.cut_answer_to("the last event");

    let last = timeout(PATIENCE, appender.finish(NewEvent::new("end", "the last event"))).await;

    assert_eq!(last.expect("in time").expect("finished"), 101);
    for late in [NewEvent::new("n", "102"), NewEvent::new("n", "103")] {
        let appender = appender.clone();
        appending.spawn(async move { appender.append(late).await });
    }
    for late in appending.join_all().await {
        assert!(
            matches!(&late, Err(Error::AppenderClosed { cause: Some(cause), .. }) if matches!(**cause, Error::Finished { last: 101, .. })),
            "{late:?}"
        );
    }
    assert!(matches!(appender.finish(NewEvent::new("end", "")).await, Err(Error::AppenderClosed { .. })));
    let all = timeout(PATIENCE, reading).await.expect("the stream has ended").expect("no panic");
    assert_dense(&all, 1);
    assert_eq!((all.len(), &*all[99].data, &*all[100].kind), (101, "100", "end"));
    assert!(events.head(log).await.expect("a head").is_finished);
}

/// Refuses the next appends with an SQLSTATE, `times` times.
async fn refuse(db: &TestDb, code: &str, times: i64) {
    let refuse = format!(
        "drop sequence if exists refusals;
         create sequence refusals;
         create or replace function refuse() returns trigger language plpgsql as $$
         begin
             if nextval('refusals') <= {times} then
                 raise exception using errcode = '{code}', message = 'not now';
             end if;
             return new;
         end $$;
         create or replace trigger refuse before insert on event_log_batches for each row execute function refuse()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(&db.pool()).await.expect("made");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn appenders_and_writers_wait_for_a_server_in_a_bad_state_and_go_on(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let appender = events.appender(log);
    let mut last = 0;
    // Takes no writes, disk full, no memory, some limit of the server's, its disk fails, it fails itself.
    for code in ["25006", "53100", "53200", "53400", "58030", "XX000"] {
        refuse(&db, code, 2).await;

        let id = timeout(PATIENCE, appender.append(NewEvent::new("n", code))).await;

        last += 1;
        assert_eq!(id.expect("in time").unwrap_or_else(|error| panic!("{code}: {error}")), last);
        refuse(&db, code, 2).await;
        let mut writer = events.writer(log, last);
        let stored = timeout(PATIENCE, writer.append(&numbered(1, 1))).await;
        stored.expect("in time").unwrap_or_else(|error| panic!("{code}: {error}"));
        last = writer.last();
    }

    // An error that waiting cannot repair closes the appender, with its reason.
    refuse(&db, "42501", 2).await;
    let refused = appender.append(NewEvent::new("n", "x")).await;
    assert!(
        matches!(&refused, Err(Error::AppenderClosed { cause: Some(cause), .. }) if cause.to_string().contains("not now")),
        "{refused:?}"
    );
}
