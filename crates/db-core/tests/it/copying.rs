//! COPY in and out: a finished COPY keeps its connection, an unfinished one closes it at once.

use std::time::Duration;

use db_core::{CloseReason, Error, Pool, PoolOptions};
use db_testkit::{TestDb, poll_then_drop, until};
use futures_util::TryStreamExt;

use crate::support::{PATIENCE, config, patient_pool, until_repaired};

async fn table(db: &TestDb) -> Pool {
    let pool = patient_pool(db, 1);
    sqlx::query("create table t (n int)").execute(&pool).await.expect("a table");
    pool
}

/// The number of stored rows, as another session sees it.
async fn stored(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from t").fetch_one(&db.pool()).await.expect("a count")
}

async fn pid(pool: &Pool) -> i32 {
    until_repaired(pool).await;
    pool.handle().acquire().await.expect("a connection").pid()
}

/// Checks that each statement gets its own answer.
async fn answers_its_own(pool: &Pool, what: &str) {
    for _ in 0..2 {
        let number = fastrand::i64(..);
        let answer: i64 =
            sqlx::query_scalar("select $1").bind(number).fetch_one(pool).await.expect("an answer");
        assert_eq!(answer, number, "{what}");
    }
}

#[db_testkit::test]
async fn rows_that_are_copied_in_are_stored_and_copied_out_again(db: TestDb) {
    let pool = table(&db).await;
    let before = pid(&pool).await;

    // Through a handle, through a connection, and in a savepoint that is undone.
    let mut copy = pool.handle().copy_in("copy t from stdin").await.expect("begun");
    for n in 0..3 {
        copy.send(format!("{n}\n")).await.expect("sent");
    }
    assert_eq!(copy.finish().await.expect("finished"), 3);
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let mut copy = conn.copy_in("copy t from stdin").await.expect("begun");
    copy.send(b"3\n".as_slice()).await.expect("sent");
    assert_eq!(copy.finish().await.expect("finished"), 1);
    drop(conn);
    let mut tx = pool.handle().begin().await.expect("begun");
    let mut part = tx.savepoint().await.expect("a savepoint");
    let mut copy = part.copy_in("copy t from stdin").await.expect("begun");
    copy.send("4\n5\n").await.expect("sent");
    assert_eq!(copy.finish().await.expect("finished"), 2);
    part.rollback().await.expect("undone");
    let rows: Vec<_> =
        tx.copy_out("copy (select n from t order by n) to stdout").try_collect().await.expect("rows");
    assert_eq!(rows.concat(), b"0\n1\n2\n3\n");
    tx.commit().await.expect("committed");
    let rows: Vec<_> =
        pool.handle().copy_out("copy (select max(n) from t) to stdout").try_collect().await.expect("rows");
    assert_eq!(rows.concat(), b"3\n");

    assert_eq!(stored(&db).await, 4);
    assert_eq!(pid(&pool).await, before, "the same connection");
    assert_eq!(pool.stats().totals.repaired, 0, "no repair");
    answers_its_own(&pool, "after all copies").await;
}

#[db_testkit::test]
async fn an_aborted_or_refused_copy_keeps_its_connection(db: TestDb) {
    let pool = table(&db).await;
    let before = pid(&pool).await;

    let mut copy = pool.handle().copy_in("copy t from stdin").await.expect("begun");
    copy.send("1\n").await.expect("sent");
    copy.abort("no more").await.expect("aborted");
    let mut copy = pool.handle().copy_in("copy t from stdin").await.expect("begun");
    copy.send("x\n").await.expect("sent");
    let refused = copy.finish().await.expect_err("a bad row");
    assert_eq!(refused.sqlstate().as_deref(), Some("22P02"), "{refused}");
    let divided = "copy (select 1 / (3 - n) from generate_series(1, 9) n) to stdout";
    let failed = pool.handle().copy_out(divided).try_collect::<Vec<_>>().await.expect_err("division by zero");
    assert_eq!(failed.sqlstate().as_deref(), Some("22012"), "{failed}");

    // A COPY that fails also fails its transaction, which recovers by a savepoint around the COPY.
    let mut tx = pool.handle().begin().await.expect("begun");
    sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
    for ends in ["abort", "finish"] {
        let mut part = tx.savepoint().await.expect("a savepoint");
        let mut copy = part.copy_in("copy t from stdin").await.expect("begun");
        if ends == "abort" {
            copy.abort("no more").await.expect("aborted");
        } else {
            copy.send("x\n").await.expect("sent");
            copy.finish().await.expect_err("a bad row");
        }
        part.rollback().await.expect("undone");
    }
    tx.commit().await.expect("committed");
    let mut tx = pool.handle().begin().await.expect("begun");
    tx.copy_in("copy t from stdin").await.expect("begun").abort("no more").await.expect("aborted");
    assert!(matches!(tx.commit().await, Err(Error::Aborted)));

    assert_eq!(stored(&db).await, 1);
    assert_eq!(pid(&pool).await, before, "the same connection");
    answers_its_own(&pool, "after all copies").await;
}

/// Ways to leave a COPY unfinished, or to fail to start it.
const UNFINISHED: &[&str] = &[
    "drop",
    "drop without data",
    "forget",
    "a bad row, aborted",
    "no table",
    "no copy",
    "out",
    "out, dropped",
    "out of no table",
];

/// Runs an unfinished COPY on a session inside or outside a transaction.
async fn copy_unfinished(how: &str, db: &mut db_core::Session) {
    match how {
        "drop" => db.copy_in("copy t from stdin").await.expect("begun").send("1\n").await.expect("sent"),
        "drop without data" => drop(db.copy_in("copy t from stdin").await.expect("begun")),
        "forget" => std::mem::forget(db.copy_in("copy t from stdin").await.expect("begun")),
        "a bad row, aborted" => {
            let mut copy = db.copy_in("copy t from stdin").await.expect("begun");
            copy.send("x\n").await.expect("sent");
            copy.abort("no more").await.expect_err("the COPY had failed");
        }
        "no table" => drop(db.copy_in("copy nowhere from stdin").await.expect_err("no table")),
        "no copy" => drop(db.copy_in("select 1").await.expect_err("no copy")),
        "out" => drop(db.copy_in("copy t to stdout").await.expect_err("a COPY in the other direction")),
        "out, dropped" => {
            let mut rows = db.copy_out("copy (select generate_series(1, 100000)) to stdout");
            rows.try_next().await.expect("a row").expect("a row");
        }
        "out of no table" => {
            db.copy_out("copy nowhere to stdout").try_next().await.expect_err("no table");
        }
        _ => unreachable!("{how}"),
    }
}

#[db_testkit::test]
async fn an_unfinished_copy_closes_its_connection_at_once(db: TestDb) {
    let pool = table(&db).await;
    for how in UNFINISHED {
        let before = pid(&pool).await;
        let mut conn = pool.handle().acquire().await.expect("a connection");
        copy_unfinished(how, &mut conn).await;

        if *how != "forget" {
            // While the connection is still held.
            db.until_sessions("the session has ended", |all| all.iter().all(|seen| seen.pid != before)).await;
        }
        let next = Error::from(sqlx::query("select 1").execute(&mut conn).await.expect_err("not sent"));
        assert!(matches!(&next, Error::Lent(_)), "{how}: {next:?}");
        assert!(conn.as_sqlx().await.is_err() && conn.ping().await.is_err(), "{how}");
        assert!(conn.begin().await.is_err(), "{how}");

        answers_its_own(&pool, how).await;
        assert_ne!(pid(&pool).await, before, "{how}");
    }
    assert_eq!(stored(&db).await, 0);
    assert_eq!(pool.stats().totals.closed.of(CloseReason::Lost), 0, "no link counts as lost");
}

#[db_testkit::test]
async fn an_unfinished_copy_loses_the_transaction_around_it(db: TestDb) {
    let pool = table(&db).await;
    for how in UNFINISHED {
        for ends in ["commit", "rollback", "drop", "statement", "savepoint"] {
            let what = format!("{how}, {ends}");
            let mut tx = pool.handle().begin().await.expect("begun");
            sqlx::query("insert into t values (1)").execute(&mut tx).await.expect("inserted");
            tx.after_commit(|| panic!("the transaction is not committed"));
            if ends == "savepoint" {
                let mut part = tx.savepoint().await.expect("a savepoint");
                copy_unfinished(how, &mut part).await;
                part.rollback().await.expect_err(&what);
            } else {
                copy_unfinished(how, &mut tx).await;
            }
            match ends {
                "commit" => assert!(matches!(tx.commit().await, Err(Error::Lent(_))), "{what}"),
                "rollback" => assert!(tx.rollback().await.is_err(), "{what}"),
                "statement" => {
                    sqlx::query("select 1").execute(&mut tx).await.expect_err(&what);
                    assert!(tx.savepoint().await.is_err(), "{what}");
                    drop(tx);
                }
                _ => drop(tx),
            }
            answers_its_own(&pool, &what).await;
        }
    }
    assert_eq!(stored(&db).await, 0);
}

#[db_testkit::test]
async fn nothing_follows_a_dropped_send(db: TestDb) {
    let pool = table(&db).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    let mut copy = conn.copy_in("copy t from stdin").await.expect("begun");
    // More than a socket buffers.
    let dropped = poll_then_drop(copy.send(vec![b'\n'; 100_000_000]), 1).await;
    assert!(dropped.is_none(), "the send was dropped while pending");

    let error = copy.send("1\n").await.expect_err("the COPY has ended");
    assert!(matches!(error, Error::Lent(_)), "{error:?}");
    let error = copy.finish().await.expect_err("the COPY has ended");
    assert!(matches!(error, Error::Lent(_)), "{error:?}");

    drop(conn);
    answers_its_own(&pool, "afterwards").await;
    assert_eq!(stored(&db).await, 0);
}

#[db_testkit::test]
async fn a_copy_may_be_dropped_at_each_await(db: TestDb) {
    let pool = table(&db).await;
    for polls in 0.. {
        let before = stored(&db).await;
        let work = async {
            let mut copy = pool.handle().copy_in("copy t from stdin").await?;
            copy.send("1\n").await?;
            copy.finish().await
        };
        let done = poll_then_drop(work, polls).await.transpose().expect("copied");
        answers_its_own(&pool, &format!("in, {polls} polls")).await;
        until_repaired(&pool).await;
        let after = stored(&db).await;
        assert!(after == before || after == before + 1, "{polls} polls");
        if done.is_some() {
            assert_eq!(after, before + 1);
            break;
        }
    }
    for polls in 0.. {
        let rows = pool.handle().copy_out("copy (select generate_series(1, 9)) to stdout");
        let done = poll_then_drop(rows.try_collect::<Vec<_>>(), polls).await.transpose().expect("rows");
        answers_its_own(&pool, &format!("out, {polls} polls")).await;
        if done.is_some() {
            break;
        }
    }
}

#[db_testkit::test]
async fn a_copy_without_an_answer_ends_at_its_limit_and_its_session_is_ended(db: TestDb) {
    let options =
        PoolOptions::api().max(1).acquire_timeout(PATIENCE).statement_timeout(Duration::from_millis(200));
    let pool = Pool::new(&config(&db), options);

    let mut rows = pool.handle().copy_out("copy (select pg_sleep(600)) to stdout");
    let error = rows.try_next().await.expect_err("the query takes ten minutes");
    assert!(matches!(error, Error::Deadline(_)), "{error:?}");

    let runs = |all: &[db_testkit::Session]| all.iter().any(|seen| seen.query.contains("pg_sleep(600)"));
    db.until_sessions("the session has ended", |all| !runs(all)).await;
    until("the slot is free", async || pool.stats().repairing == 0).await;
}
