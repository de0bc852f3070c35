//! The only writer of a log, whose connections get lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use db_events::{Error, NewEvent};
use db_testkit::{TestDb, poll_then_drop};

use crate::support::{PATIENCE, answer, assert_dense, events, events_behind_a_proxy, numbered, read_to_end};

const KILL: &str = "select pg_terminate_backend(pid) from pg_stat_activity
                    where datname = current_database() and application_name = 'backend'";

#[db_testkit::test(migrations = "../../migrations")]
async fn each_batch_is_stored_once_though_sessions_are_killed_at_any_moment(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let kills = Arc::new(AtomicU64::new(0));
    let killer = tokio::spawn({
        let (pool, kills) = (db.pool(), Arc::clone(&kills));
        async move {
            loop {
                let killed = sqlx::query(KILL).execute(&pool).await.expect("killed").rows_affected();
                kills.fetch_add(killed, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        }
    });

    let mut writer = events.writer(log, 0);
    let mut batches = 0;
    // The writer goes on, at any speed, until enough of its sessions were lost.
    while batches < 150 || kills.load(Ordering::Relaxed) <= 10 {
        writer.append(&numbered(batches * 3 + 1, 3)).await.expect("appended");
        batches += 1;
        assert!(batches < 100_000, "nobody kills the writer's sessions");
    }
    let last = batches * 3;
    assert_eq!(writer.last(), last);
    writer.finish(&numbered(last + 1, 1)).await.expect("finished");
    killer.abort();

    let all = read_to_end(events.stream(log, 0)).await;
    assert_eq!(i64::try_from(all.len()).expect("a number"), last + 1);
    assert_dense(&all, 1);
    assert!(all.iter().all(|event| event.data == event.id.to_string()), "a batch is there twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_answer_was_lost_after_its_commit_is_found_and_not_stored_again() {
    // With a synchronous standby that never comes: a commit is done here, and its answer waits until the session is killed.
    let builder = db_embedded::Server::throwaway().setting("synchronous_standby_names", "nobody");
    let server = db_testkit::TestServer::start(builder).await.expect("a server");
    let db = server.create("../../migrations").await.expect("a database");
    let mut setup = db.pool().acquire().await.expect("a session");
    let log: i64 = sqlx::query_scalar("insert into event_logs default values returning id")
        .fetch_one(&mut *setup)
        .await
        .expect("a log");
    let wait_for_the_standby = async |setup: &mut sqlx::PgConnection, on: &str| {
        let set = format!("alter database {} set synchronous_commit = {on}", db.name());
        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(setup).await.expect("set");
    };
    wait_for_the_standby(&mut setup, "on").await;
    let events = events(&db).await;
    let log = db_events::LogId(log);
    let append = tokio::spawn({
        let mut writer = events.writer(log, 0);
        async move { writer.append(&numbered(1, 3)).await.map(|()| writer.last()) }
    });
    let committed =
        "select pid from pg_stat_activity where application_name = 'backend' and wait_event = 'SyncRep'";
    let pid = answer(&db, committed).await;
    wait_for_the_standby(&mut setup, "off").await;

    sqlx::query("select pg_terminate_backend($1, 5000)")
        .bind(pid)
        .execute(&mut *setup)
        .await
        .expect("killed");

    assert_eq!(append.await.expect("no panic").expect("appended"), 3);
    let batches: i64 = sqlx::query_scalar("select count(*) from event_log_batches")
        .fetch_one(&mut *setup)
        .await
        .expect("a count");
    assert_eq!(batches, 1);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_second_writer_is_noticed_and_stores_nothing(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let mut first = events.writer(log, 0);
    let mut second = events.writer(log, 0);
    first.append(&numbered(1, 2)).await.expect("appended");

    let error = second.append(&numbered(1, 2)).await.expect_err("the log ends elsewhere");

    assert!(matches!(error, Error::Conflict { expected: 0, last: 2, .. }), "{error:?}");
    assert_eq!(events.head(log).await.expect("a head").last, 2);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_batch_of_another_writer_is_not_taken_for_an_own_one(db: TestDb) {
    let events = events(&db).await;
    let log = events.create().await.expect("a log");
    let mut writer = events.writer(log, 0);
    // The append meets a session that is killed while it waits for a lock, and then a log that has moved on by as many
    // events as it wanted to append.
    let mut blocker = db.pool().begin().await.expect("begun");
    sqlx::query("lock table event_log_batches").execute(&mut *blocker).await.expect("locked");
    let append = tokio::spawn(async move { writer.append(&numbered(1, 1)).await });
    let waiting = "select pid from pg_stat_activity
                   where datname = current_database() and application_name = 'backend' and wait_event_type = 'Lock'";
    let pid = answer(&db, waiting).await;
    sqlx::query("insert into event_log_batches values ($1, 1, 1, 3, '{end}', '{by somebody else}', true)")
        .bind(log.0)
        .execute(&mut *blocker)
        .await
        .expect("appended");
    sqlx::query("select pg_terminate_backend($1, 5000)").bind(pid).execute(&db.pool()).await.expect("killed");
    blocker.commit().await.expect("committed");

    let result = append.await.expect("no panic");

    assert!(matches!(result, Err(Error::Finished { last: 1, .. })), "{result:?}");
}

#[db_testkit::test(migrations = "../../migrations")]
async fn finishing_and_what_is_done_with_it_happen_together_or_not_at_all(db: TestDb) {
    let events = events(&db).await;
    sqlx::raw_sql("create table job (log bigint primary key, state text)")
        .execute(&db.pool())
        .await
        .expect("a table");
    let state = async |log: db_events::LogId| -> Option<String> {
        sqlx::query_scalar("select state from job where log = $1")
            .bind(log.0)
            .fetch_optional(&db.pool())
            .await
            .expect("a state")
    };
    let end = [NewEvent::new("end", "")];

    let log = events.create().await.expect("a log");
    let writer = events.writer(log, 0);
    writer
        .finish_with(&end, move |tx| {
            Box::pin(async move {
                sqlx::query("insert into job values ($1, 'done')").bind(log.0).execute(tx).await?;
                Ok(())
            })
        })
        .await
        .expect("finished");
    assert_eq!(state(log).await.as_deref(), Some("done"));
    assert!(events.head(log).await.expect("a head").is_finished);

    let other = events.create().await.expect("a log");
    let refused = events
        .writer(other, 0)
        .finish_with(&end, move |tx| {
            Box::pin(async move {
                sqlx::query("insert into job values ($1, 'done'), ($1, 'twice')")
                    .bind(other.0)
                    .execute(tx)
                    .await?;
                Ok(())
            })
        })
        .await;
    assert!(matches!(refused, Err(Error::Database { .. })), "{refused:?}");
    assert_eq!(state(other).await, None);
    assert!(!events.head(other).await.expect("a head").is_finished);

    // A conflict rolls back the work of `also`.
    events.append(other, &numbered(1, 1)).await.expect("appended");
    let conflict = events
        .writer(other, 0)
        .finish_with(&end, move |tx| {
            Box::pin(async move {
                sqlx::query("insert into job values ($1, 'done')").bind(other.0).execute(tx).await?;
                Ok(())
            })
        })
        .await;
    assert!(matches!(conflict, Err(Error::Conflict { .. })), "{conflict:?}");
    assert_eq!(state(other).await, None);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_finish_whose_commit_has_lost_its_answer_does_nothing_twice(db: TestDb) {
    let (proxy, events) = events_behind_a_proxy(&db).await;
    sqlx::raw_sql("create table job (log bigint primary key)").execute(&db.pool()).await.expect("a table");
    let log = events.create().await.expect("a log");
    let runs = AtomicU64::new(0);
    let end = [NewEvent::new("end", "")];

    proxy.cut_answer_to("COMMIT");
    let finish = events.writer(log, 0).finish_with(&end, |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            // A second run would violate the primary key.
            sqlx::query("insert into job values ($1)").bind(log.0).execute(tx).await?;
            Ok(())
        })
    });
    tokio::time::timeout(PATIENCE, finish).await.expect("in time").expect("finished");

    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!(read_to_end(events.stream(log, 0)).await.len(), 1);
}

#[db_testkit::test(migrations = "../../migrations")]
async fn a_batch_whose_future_was_dropped_is_stored_once_if_it_is_appended_again(db: TestDb) {
    let events = events(&db).await;
    for polls in 0.. {
        let log = events.create().await.expect("a log");
        let mut writer = events.writer(log, 0);
        let is_done = poll_then_drop(writer.append(&numbered(1, 2)), polls).await.is_some();

        if !is_done {
            writer.append(&numbered(1, 2)).await.expect("appended");
        }

        assert_eq!(writer.last(), 2, "dropped after {polls} polls");
        writer.finish(&numbered(3, 1)).await.expect("finished");
        assert_eq!(read_to_end(events.stream(log, 0)).await.len(), 3, "dropped after {polls} polls");
        if is_done {
            break;
        }
    }
}
