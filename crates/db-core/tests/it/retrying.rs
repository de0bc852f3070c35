//! Retries, decided by the errors of a real server.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use db_core::{Class, Config, Error, Isolation, Pool, PoolOptions, TxOptions, TxRetry};
use db_testkit::{Proxy, TestDb};
use tokio::sync::Barrier;

use crate::support::{config, patient_pool};

/// More retries than any test needs.
const MANY: u32 = 1000;

fn quick(retries: u32) -> TxRetry {
    let pause = Duration::from_millis(1);
    TxRetry::default().retries(retries).min_pause(pause).max_pause(4 * pause).conflict_pause(pause)
}

fn impatient(config: &Config) -> Pool {
    let acquire_timeout = Duration::from_millis(100);
    Pool::new(config, PoolOptions::api().max(1).acquire_timeout(acquire_timeout))
}

async fn run(pool: &Pool, sql: &'static str) -> Result<(), Error> {
    sqlx::query(sql).execute(pool.handle()).await?;
    Ok(())
}

/// Rows 1 and 2, both zero.
async fn accounts(db: &TestDb) {
    sqlx::raw_sql("create table account (id int primary key, n int not null); insert into account values (1, 0), (2, 0)")
        .execute(&db.pool())
        .await
        .expect("a table");
}

async fn sum(db: &TestDb) -> i64 {
    sqlx::query_scalar("select sum(n) from account").fetch_one(&db.pool()).await.expect("a sum")
}

#[db_testkit::test]
async fn a_refused_connection_is_retried_until_the_server_is_up(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.refuse();
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let pool = impatient(&config);
    let runs = Cell::new(0);

    let result = quick(MANY)
        .run(|| {
            runs.set(runs.get() + 1);
            if runs.get() == 3 {
                proxy.heal();
            }
            run(&pool, "select 1")
        })
        .await;

    result.expect("the server is up");
    assert!(runs.get() >= 3, "{}", runs.get());
}

#[db_testkit::test]
async fn work_that_keeps_failing_is_repeated_as_often_as_the_policy_says(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.refuse();
    let pool = impatient(&Config::from_url(&proxy.url()).expect("the proxy's address"));
    for retries in [0, 2] {
        let runs = Cell::new(0);

        let result = quick(retries)
            .run(|| {
                runs.set(runs.get() + 1);
                assert!(runs.get() <= retries + 1, "too many runs");
                run(&pool, "select 1")
            })
            .await;

        assert!(matches!(result, Err(Error::Acquire(_))), "{result:?}");
        assert_eq!(runs.get(), retries + 1);
    }
}

#[db_testkit::test]
async fn work_whose_session_was_terminated_is_repeated(db: TestDb) {
    let pool = patient_pool(&db, 1);
    let runs = Cell::new(0);

    let result = quick(MANY)
        .run(async || {
            runs.set(runs.get() + 1);
            if runs.get() == 1 {
                let error = run(&pool, "select pg_terminate_backend(pg_backend_pid()), pg_sleep(60)").await;
                let error = error.expect_err("terminated");
                assert_eq!((error.class(), error.sqlstate().as_deref()), (Class::Lost, Some("57P01")));
                return Err(error);
            }
            run(&pool, "select 1").await
        })
        .await;

    result.expect("success on the second run");
    assert_eq!(runs.get(), 2);
}

#[db_testkit::test]
async fn a_transaction_whose_session_was_terminated_is_repeated(db: TestDb) {
    accounts(&db).await;
    let pool = patient_pool(&db, 2);
    let runs = &AtomicU32::new(0);
    let db = &db;

    let result = pool
        .handle()
        .tx_retry(TxOptions::default(), quick(MANY), || {
            async move |tx| {
                sqlx::query("update account set n = n + 1 where id = 1").execute(&mut *tx).await?;
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    let killed = sqlx::query("select pg_terminate_backend($1, 5000)").bind(tx.pid());
                    killed.execute(&db.pool()).await.expect("killed");
                }
                sqlx::query("update account set n = n + 1 where id = 2").execute(&mut *tx).await?;
                Ok::<_, Error>(())
            }
        })
        .await;

    result.expect("success on the second run");
    assert_eq!((runs.load(Ordering::SeqCst), sum(db).await), (2, 2));
}

#[db_testkit::test]
async fn a_serializable_transaction_that_lost_a_conflict_is_repeated(db: TestDb) {
    accounts(&db).await;
    let pool = patient_pool(&db, 2);
    let (runs, other) = (&AtomicU32::new(0), &pool);
    let serializable = || TxOptions::default().isolation(Isolation::Serializable);
    let add = "update account set n = n + 1 where id = 1";

    let result = pool
        .handle()
        .tx_retry(serializable(), quick(MANY), || {
            async move |tx| {
                // The transaction's decision depends on what it reads here.
                sqlx::query("select sum(n) from account").execute(&mut *tx).await?;
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    let won = other.handle().tx_with(serializable(), async |tx| {
                        sqlx::query(add).execute(&mut *tx).await?;
                        Ok::<_, Error>(())
                    });
                    won.await.expect("the other transaction wins");
                }
                let added = sqlx::query(add).execute(&mut *tx).await.map_err(Error::from);
                if let Err(error) = &added {
                    assert_eq!(error.sqlstate().as_deref(), Some("40001"), "{error}");
                }
                added
            }
        })
        .await;

    result.expect("success on the second run");
    assert_eq!((runs.load(Ordering::SeqCst), sum(&db).await), (2, 2));
}

#[db_testkit::test]
async fn a_transaction_that_lost_a_conflict_at_its_commit_is_repeated(db: TestDb) {
    accounts(&db).await;
    let pool = patient_pool(&db, 2);
    let (runs, other) = (&AtomicU32::new(0), &pool);
    let serializable = || TxOptions::default().isolation(Isolation::Serializable);

    let result = pool
        .handle()
        .tx_retry(serializable(), quick(MANY), || {
            async move |tx| {
                // Each transaction writes what the other has read, so only one can commit.
                sqlx::query("select sum(n) from account").execute(&mut *tx).await?;
                sqlx::query("update account set n = n + 1 where id = 1").execute(&mut *tx).await?;
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    let won = other.handle().tx_with(serializable(), async |tx| {
                        sqlx::query("select sum(n) from account").execute(&mut *tx).await?;
                        sqlx::query("update account set n = n + 1 where id = 2").execute(&mut *tx).await?;
                        Ok::<_, Error>(())
                    });
                    won.await.expect("the other transaction wins");
                }
                Ok::<_, Error>(())
            }
        })
        .await;

    result.expect("success on the second run");
    assert_eq!((runs.load(Ordering::SeqCst), sum(&db).await), (2, 2));
}

#[db_testkit::test]
async fn the_victim_of_a_deadlock_is_repeated(db: TestDb) {
    accounts(&db).await;
    let pool = patient_pool(&db, 2);
    let runs = Arc::new(AtomicU32::new(0));
    let both = Arc::new(Barrier::new(2));
    let task = |first: i32, second: i32| {
        let (pool, runs, both) = (pool.clone(), Arc::clone(&runs), Arc::clone(&both));
        tokio::spawn(async move {
            let (runs, both, mine) = (&*runs, &*both, &AtomicU32::new(0));
            pool.handle()
                .tx_retry(TxOptions::default(), quick(MANY), || {
                    async move |tx| {
                        let add = "update account set n = n + 1 where id = $1";
                        runs.fetch_add(1, Ordering::SeqCst);
                        sqlx::query(add).bind(first).execute(&mut *tx).await?;
                        if mine.fetch_add(1, Ordering::SeqCst) == 0 {
                            // Now each transaction waits for the other's row.
                            both.wait().await;
                        }
                        sqlx::query(add).bind(second).execute(&mut *tx).await?;
                        Ok::<_, Error>(())
                    }
                })
                .await
        })
    };

    let (one, other) = (task(1, 2), task(2, 1));
    one.await.expect("no panic").expect("one");
    other.await.expect("no panic").expect("the other");

    // The victim may lock its row again before the other transaction wakes up, which leads to another victim.
    let runs = runs.load(Ordering::SeqCst);
    assert!(runs >= 3, "{runs} runs");
    assert_eq!(sum(&db).await, 4);
}

#[db_testkit::test]
async fn mistakes_and_constraint_violations_are_not_repeated(db: TestDb) {
    accounts(&db).await;
    let pool = patient_pool(&db, 1);
    for (sql, code) in [("selekt 1", "42601"), ("insert into account values (1, 0)", "23505")] {
        let runs = Cell::new(0);
        let result = quick(MANY)
            .run(|| {
                runs.set(runs.get() + 1);
                run(&pool, sql)
            })
            .await;
        assert_eq!(result.expect_err(sql).sqlstate().as_deref(), Some(code));
        assert_eq!(runs.get(), 1, "{sql}");

        let runs = &AtomicU32::new(0);
        let result = pool
            .handle()
            .tx_retry(TxOptions::default(), quick(MANY), || {
                async move |tx| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    sqlx::query(sql).execute(&mut *tx).await?;
                    Ok::<_, Error>(())
                }
            })
            .await;
        assert_eq!(result.expect_err(sql).sqlstate().as_deref(), Some(code));
        assert_eq!(runs.load(Ordering::SeqCst), 1, "{sql}");
    }
}

#[db_testkit::test]
async fn an_exhausted_pool_is_not_retried(db: TestDb) {
    let pool = impatient(&config(&db));
    // The first connection may take longer on a busy machine.
    let mut held = pool.handle().acquire().await;
    while held.is_err() {
        held = pool.handle().acquire().await;
    }
    let runs = Cell::new(0);

    let result = quick(2)
        .run(|| {
            runs.set(runs.get() + 1);
            run(&pool, "select 1")
        })
        .await;

    assert!(matches!(result, Err(Error::Acquire(_))), "{result:?}");
    assert_eq!(runs.get(), 1);
}
