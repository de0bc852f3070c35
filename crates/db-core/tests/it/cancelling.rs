//! Futures dropped at every await point.

use std::time::Duration;

use db_testkit::TestDb;
use futures_util::TryStreamExt;

use crate::support::{open_transactions, patient_pool, poll_and_drop, until};

/// After this many polls each of the futures below is done.
const ENOUGH: usize = 60;

#[db_testkit::test]
async fn a_dropped_begin_leaves_no_transaction_to_anybody(db: TestDb) {
    let pool = patient_pool(&db, 1);
    sqlx::query("create table t (n int)").execute(pool.handle()).await.expect("a table");
    for polls in 1..ENOUGH {
        poll_and_drop(pool.handle().begin(), polls).await;

        sqlx::query("insert into t values (1)")
            .execute(pool.handle())
            .await
            .expect("the next user's statement");
    }

    // In somebody's open transaction, the rows would be seen by nobody else.
    let rows: i64 =
        sqlx::query_scalar("select count(*) from t").fetch_one(&db.pool()).await.expect("a count");
    assert_eq!(rows, i64::try_from(ENOUGH).expect("small") - 1);
    until("no transaction is open", async || open_transactions(&db).await == 0).await;
}

#[db_testkit::test]
async fn a_dropped_transaction_leaves_all_of_it_or_nothing(db: TestDb) {
    let pool = patient_pool(&db, 1);
    sqlx::query("create table t (run int, n int)").execute(pool.handle()).await.expect("a table");
    for polls in 1..ENOUGH {
        let run = i32::try_from(polls).expect("small");
        let work = pool.handle().tx(async |tx| {
            for n in 0..2 {
                sqlx::query("insert into t values ($1, $2)").bind(run).bind(n).execute(&mut *tx).await?;
            }
            Ok::<_, db_core::Error>(())
        });
        let done = poll_and_drop(work, polls).await;

        let rows = async || -> i64 {
            sqlx::query_scalar("select count(*) from t where run = $1")
                .bind(run)
                .fetch_one(&db.pool())
                .await
                .expect("a count")
        };
        // The server may still be at what was sent to it.
        until("no transaction is open", async || open_transactions(&db).await == 0).await;
        let rows = rows().await;
        assert!(if done { rows == 2 } else { rows == 0 || rows == 2 }, "{rows} rows after {polls} polls");
    }
}

#[db_testkit::test]
async fn a_dropped_statement_never_answers_somebody_elses_question(db: TestDb) {
    let pool = patient_pool(&db, 1);
    for polls in 1..ENOUGH {
        poll_and_drop(
            sqlx::query("select generate_series(1, 500), repeat('x', 500)").fetch_all(pool.handle()),
            polls,
        )
        .await;

        let polls = i32::try_from(polls).expect("small");
        let answer: i32 = sqlx::query_scalar("select $1::int")
            .bind(polls)
            .fetch_one(pool.handle())
            .await
            .expect("an answer");
        assert_eq!(answer, polls);
    }
}

#[db_testkit::test]
async fn a_stream_dropped_in_the_middle_frees_its_place_at_once(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let mut rows = sqlx::query("select n, pg_sleep(0.001 * (n / 1000)) from generate_series(1, 1000000) n")
        .fetch(&mut conn);
    rows.try_next().await.expect("a row");
    drop(rows);
    drop(conn);

    let next = tokio::time::timeout(Duration::from_secs(5), pool.handle().acquire()).await;

    assert!(next.expect("the place is free").is_ok());
}
