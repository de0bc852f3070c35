//! After any use of a lent sqlx connection, each statement gets its own answer, and each commit its true outcome.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use db_core::{Class, CloseReason, Config, Conn, Error, Isolation, Pool, PoolOptions, Reset, TxOptions};
use db_testkit::{Proxy, Session, TestDb, poll_then_drop, until};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, SqlSafeStr};
use tokio::io::{AsyncRead, ReadBuf};

use crate::support::{PATIENCE, config, patient_pool, until_repaired};

/// Uses the connection, for at most this number of polls. Returns whether the use was done.
type Use = for<'a> fn(&'a mut PgConnection, usize) -> BoxFuture<'a, bool>;

/// Uses that leave the session in step with sqlx, so that the connection is kept.
const IN_STEP: &[(&str, Use)] = &[
    ("a COPY FROM, finished", |raw, _| {
        async move {
            let mut copy = raw.copy_in_raw("copy sink from stdin").await.expect("begun");
            copy.send(b"1\n2\n".as_slice()).await.expect("sent");
            copy.finish().await.expect("finished");
            true
        }
        .boxed()
    }),
    ("a COPY FROM, aborted", |raw, _| {
        async move {
            let mut copy = raw.copy_in_raw("copy sink from stdin").await.expect("begun");
            copy.send(b"1\n2\n".as_slice()).await.expect("sent");
            copy.abort("no more").await.expect("aborted");
            true
        }
        .boxed()
    }),
    ("a COPY FROM with a bad row, finished", |raw, _| {
        async move {
            let mut copy = raw.copy_in_raw("copy sink from stdin").await.expect("begun");
            copy.send(b"x\n".as_slice()).await.expect("sent");
            copy.finish().await.expect_err("a bad row");
            true
        }
        .boxed()
    }),
    ("a COPY FROM that cannot start", |raw, _| {
        async move { raw.copy_in_raw("copy nowhere from stdin").await.is_err() }.boxed()
    }),
    ("a COPY TO, read to its end", |raw, _| {
        async move {
            let rows =
                raw.copy_out_raw("copy (select generate_series(1, 9)) to stdout").await.expect("begun");
            rows.try_collect::<Vec<_>>().await.expect("rows");
            true
        }
        .boxed()
    }),
    ("a COPY TO, read to its error", |raw, _| {
        async move {
            let rows = raw.copy_out_raw("copy (select 1 / (3 - n) from generate_series(1, 9) n) to stdout");
            rows.await.expect("begun").try_collect::<Vec<_>>().await.expect_err("a division by zero");
            true
        }
        .boxed()
    }),
    ("a statement, dropped", |raw, polls| {
        async move { poll_then_drop(sqlx::query("select 1 from pg_sleep(0)").execute(raw), polls).await.is_some() }.boxed()
    }),
    ("a failing statement, dropped", |raw, polls| {
        async move { poll_then_drop(sqlx::query("select 1 / 0").execute(raw), polls).await.is_some() }.boxed()
    }),
    ("a statement that cannot be prepared, dropped", |raw, polls| {
        async move {
            poll_then_drop(raw.prepare("select * from nowhere".into_sql_str()), polls).await.is_some()
        }
        .boxed()
    }),
    ("a stream of several statements of which one fails, dropped", |raw, polls| {
        async move {
            let mut results =
                sqlx::raw_sql("select 1; select n from generate_series(1, 9) n; select 1 / 0; select 2")
                    .fetch(raw);
            let read = async { while let Ok(Some(_)) = results.try_next().await {} };
            poll_then_drop(read, polls).await.is_some()
        }
        .boxed()
    }),
    ("a transaction of sqlx's own, dropped", |raw, polls| {
        async move {
            let work = async {
                let mut tx = raw.begin().await?;
                sqlx::query("insert into sink values (1)").execute(&mut *tx).await?;
                let mut inner = tx.begin().await?;
                sqlx::query("insert into sink values (2)").execute(&mut *inner).await?;
                inner.rollback().await?;
                tx.rollback().await
            };
            poll_then_drop(work, polls).await.is_some()
        }
        .boxed()
    }),
];

/// Uses that leave the session out of step.
const OUT_OF_STEP: &[(&str, Use)] = &[
    ("a COPY FROM, dropped", |raw, _| {
        async move {
            let mut copy = raw.copy_in_raw("copy sink from stdin").await.expect("begun");
            copy.send(b"1\n".as_slice()).await.expect("sent");
            true
        }
        .boxed()
    }),
    ("a COPY FROM without a row, dropped", |raw, _| {
        async move { raw.copy_in_raw("copy sink from stdin").await.is_ok() }.boxed()
    }),
    ("a COPY FROM, forgotten", |raw, _| {
        async move {
            std::mem::forget(raw.copy_in_raw("copy sink from stdin").await.expect("begun"));
            true
        }
        .boxed()
    }),
    ("a COPY FROM, dropped at each point", |raw, polls| {
        async move {
            let copy = async {
                let mut copy = raw.copy_in_raw("copy sink from stdin").await.expect("begun");
                assert!(copy.send(vec![b'\n'; 3_000_000]).await.is_ok());
                copy.finish().await.expect_err("a bad row");
            };
            poll_then_drop(copy, polls).await.is_some()
        }
        .boxed()
    }),
    ("a COPY FROM with a bad row, aborted", |raw, _| {
        async move {
            let mut copy = raw.copy_in_raw("copy sink from stdin").await.expect("begun");
            copy.send(b"x\n".as_slice()).await.expect("sent");
            copy.abort("no more").await.expect_err("a bad row");
            true
        }
        .boxed()
    }),
    ("a COPY FROM whose source fails", |raw, _| {
        async move {
            let mut copy = raw.copy_in_raw("copy sink from stdin").await.expect("begun");
            assert!(copy.read_from(Gone).await.is_err());
            true
        }
        .boxed()
    }),
    ("two statements with a COPY FROM", |raw, _| {
        async move {
            let copy = raw.copy_in_raw("copy sink from stdin; select 1").await.expect("begun");
            copy.finish().await.expect_err("more than one answer");
            true
        }
        .boxed()
    }),
    ("no COPY, as a COPY FROM", |raw, _| {
        async move { raw.copy_in_raw("select 1, false").await.is_err() }.boxed()
    }),
    ("a COPY TO, as a COPY FROM", |raw, _| {
        async move { raw.copy_in_raw("copy (select generate_series(1, 9)) to stdout").await.is_err() }.boxed()
    }),
    ("a COPY TO that cannot start", |raw, _| {
        async move { raw.copy_out_raw("copy nowhere to stdout").await.is_err() }.boxed()
    }),
    ("no COPY, as a COPY TO", |raw, _| {
        async move { raw.copy_out_raw("select 1, false").await.is_err() }.boxed()
    }),
    ("an empty text, as a COPY TO", |raw, _| async move { raw.copy_out_raw("").await.is_err() }.boxed()),
    ("a COPY FROM, as a COPY TO", |raw, _| {
        async move { raw.copy_out_raw("copy sink from stdin").await.is_err() }.boxed()
    }),
    ("a COPY TO, dropped after a row", |raw, _| {
        async move {
            let rows = raw.copy_out_raw("copy (select generate_series(1, 100000)) to stdout");
            rows.await.expect("begun").try_next().await.expect("a row").is_some()
        }
        .boxed()
    }),
    ("a COPY TO, dropped at each point", |raw, polls| {
        async move {
            let copy = async {
                let rows =
                    raw.copy_out_raw("copy (select generate_series(1, 9)) to stdout").await.expect("begun");
                rows.try_collect::<Vec<_>>().await.expect("rows");
            };
            poll_then_drop(copy, polls).await.is_some()
        }
        .boxed()
    }),
];

/// A source whose read fails.
struct Gone;

impl AsyncRead for Gone {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Err(std::io::Error::other("gone")))
    }
}

/// A pool of one connection, and tables by which answers are told apart.
struct Ground {
    db: TestDb,
    pool: Pool,
}

impl Ground {
    async fn new(db: TestDb) -> Self {
        sqlx::raw_sql(
            "create table sink (n int);
             create table kept (n bigint);
             create table parent (n int primary key);
             create table child (n int references parent deferrable initially deferred)",
        )
        .execute(&db.pool())
        .await
        .expect("tables");
        let pool = patient_pool(&db, 1);
        Self { db, pool }
    }

    fn with(self, reset: Reset) -> Self {
        let address = config(&self.db);
        self.at(&address, reset)
    }

    fn at(mut self, address: &Config, reset: Reset) -> Self {
        let options = PoolOptions::api().max(1).acquire_timeout(PATIENCE).reset(reset);
        self.pool = Pool::new(address, options);
        self
    }

    async fn conn(&self) -> Conn {
        self.pool.handle().acquire().await.expect("a connection")
    }

    /// Runs all uses of a lent connection, each dropped at every await point.
    async fn each(
        &self,
        uses: &[(&str, Use)],
        then: impl for<'a> Fn(&'a Self, Use, usize, &'a str) -> BoxFuture<'a, bool>,
    ) {
        for (name, with) in uses {
            for polls in 0.. {
                let what = format!("{name}, {polls} polls");
                let done = then(self, *with, polls, &what).await;
                self.check_next_callers(&what).await;
                if done {
                    break;
                }
            }
        }
    }

    /// Checks that the next callers get their own answers: numbers, errors, refused settings and refused commits.
    async fn check_next_callers(&self, what: &str) {
        for _ in 0..2 {
            let number = fastrand::i64(..);
            let answer =
                sqlx::query_scalar::<_, i64>("select $1").bind(number).fetch_one(self.pool.handle()).await;
            assert_eq!(
                answer.map_err(Error::from).unwrap_or_else(|error| panic!("{what}: {error}")),
                number,
                "{what}"
            );
        }
        let missing = sqlx::raw_sql("insert into nowhere values (1)").execute(self.pool.handle()).await;
        let missing = Error::from(missing.expect_err("no such table"));
        assert_eq!(missing.sqlstate().as_deref(), Some("42P01"), "{what}: {missing}");

        let unknown_role = TxOptions::default().role("nobody of that name").tenant("t");
        let refused = self.pool.handle().begin_with(unknown_role).await.expect_err("no such role");
        assert_eq!(refused.sqlstate().as_deref(), Some("22023"), "{what}: {refused}");

        let ran = Arc::new(AtomicBool::new(false));
        let hook = Arc::clone(&ran);
        let orphan = self
            .pool
            .handle()
            .tx(async move |tx| {
                tx.after_commit(move || hook.store(true, Ordering::SeqCst));
                sqlx::query("insert into child values (7)").execute(&mut *tx).await?;
                Ok::<_, Error>(())
            })
            .await;
        let orphan = orphan.expect_err("a child without a parent");
        assert_eq!(orphan.sqlstate().as_deref(), Some("23503"), "{what}: {orphan}");
        assert!(!ran.load(Ordering::SeqCst), "{what}: the hook of a refused commit has run");
    }

    async fn is_kept(&self, number: i64) -> bool {
        sqlx::query_scalar("select exists (select from kept where n = $1)")
            .bind(number)
            .fetch_one(&self.db.pool())
            .await
            .expect("an answer")
    }
}

/// Whether a use leaves the session in step if it was not dropped.
fn ends_well(what: &str) -> bool {
    what.contains("dropped at each point")
}

/// Whether a statement was answered, and not refused before it was sent. Asserts that the answer is its own.
fn is_answered(answer: Result<i64, sqlx::Error>, number: i64, what: &str) -> bool {
    match answer.map_err(Error::from) {
        Ok(answer) => {
            assert_eq!(answer, number, "{what}");
            true
        }
        Err(Error::Lent(_)) => false,
        Err(error) if error.sqlstate().as_deref() == Some("25P02") => false,
        Err(error) => panic!("{what}: {error}"),
    }
}

fn store(number: i64) -> sqlx::query::QueryScalar<'static, sqlx::Postgres, i64, sqlx::postgres::PgArguments> {
    sqlx::query_scalar("insert into kept values ($1) returning n").bind(number)
}

#[db_testkit::test]
async fn the_next_caller_gets_its_own_answer_after_any_use_of_a_lent_connection(db: TestDb) {
    // It delays answers, or one may be there before it is awaited, and the use costs no connection.
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.latency(Duration::from_millis(1));
    let address = Config::from_url(&proxy.url()).expect("the proxy's address");
    let mut ground = Ground::new(db).await;
    for reset in [Reset::Rollback, Reset::Commit, Reset::Keep, Reset::DiscardAll] {
        ground = ground.at(&address, reset);
        for (uses, costs) in [(IN_STEP, false), (OUT_OF_STEP, true)] {
            let before = ground.pool.stats().totals.repair_failed;
            ground
                .each(uses, |ground, with, polls, _| {
                    async move { with(ground.conn().await.as_sqlx().await.expect("lent"), polls).await }
                        .boxed()
                })
                .await;
            until_repaired(&ground.pool).await;
            let closed = ground.pool.stats().totals.repair_failed - before;
            assert_eq!(closed >= uses.len() as u64, costs, "{closed} closed, {reset:?}");
            assert!(costs || closed == 0, "{closed} closed, {reset:?}");
        }
        assert_eq!(ground.pool.stats().totals.closed.of(CloseReason::Lost), 0, "no link counts as lost");
    }
}

#[db_testkit::test]
async fn the_next_statement_after_a_loan_gets_its_own_answer_or_is_not_sent(db: TestDb) {
    let ground = Ground::new(db).await;
    for (uses, is_well) in [(IN_STEP, true), (OUT_OF_STEP, false)] {
        ground
            .each(uses, |ground, with, polls, what| {
                async move {
                    let mut conn = ground.conn().await;
                    let done = with(conn.as_sqlx().await.expect("lent"), polls).await;
                    let number = fastrand::i64(..);

                    let first = is_answered(store(number).fetch_one(&mut conn).await, number, what);
                    let again = fastrand::i64(..);
                    let second = is_answered(store(again).fetch_one(&mut conn).await, again, what);
                    drop(conn);

                    ground.conn().await.ping().await.expect("repaired");
                    assert_eq!(ground.is_kept(number).await, first, "{what}");
                    assert_eq!(ground.is_kept(again).await, second, "{what}");
                    assert!(!done || first == (is_well || ends_well(what)), "{what}: {first}");
                    done
                }
                .boxed()
            })
            .await;
    }
}

#[db_testkit::test]
async fn a_begin_after_a_loan_begins_a_transaction_or_is_not_sent(db: TestDb) {
    let ground = Ground::new(db).await;
    for (uses, is_well) in [(IN_STEP, true), (OUT_OF_STEP, false)] {
        ground
            .each(uses, |ground, with, polls, what| {
                async move {
                    let mut conn = ground.conn().await;
                    let done = with(conn.as_sqlx().await.expect("lent"), polls).await;
                    let number = fastrand::i64(..);

                    let begun =
                        conn.begin_with(TxOptions::default().isolation(Isolation::Serializable)).await;
                    let committed = match begun {
                        Ok(mut tx) => {
                            assert!(
                                is_answered(store(number).fetch_one(&mut tx).await, number, what),
                                "{what}"
                            );
                            tx.commit().await.expect("committed");
                            true
                        }
                        Err(Error::Lent(_)) => false,
                        Err(error) => panic!("{what}: {error}"),
                    };

                    assert_eq!(ground.is_kept(number).await, committed, "{what}");
                    assert!(!done || committed == (is_well || ends_well(what)), "{what}");
                    done
                }
                .boxed()
            })
            .await;
    }
}

/// Stores a row in a transaction, optionally with a row that the server refuses at the commit, and lends the connection; then runs
/// an optional statement, and commits. A successful commit must have stored the row and run its hook, and a failed one neither.
async fn commit_after(
    ground: &Ground,
    with: Use,
    polls: usize,
    what: &str,
    (orphan, asks): (bool, bool),
) -> (bool, Result<(), Error>) {
    let (number, ran) = (fastrand::i64(..), Arc::new(AtomicBool::new(false)));
    let mut tx = ground.pool.handle().begin().await.expect("begun");
    assert!(is_answered(store(number).fetch_one(&mut tx).await, number, what));
    if orphan {
        sqlx::query("insert into child values (7)").execute(&mut tx).await.expect("inserted");
    }
    let hook = Arc::clone(&ran);
    tx.after_commit(move || hook.store(true, Ordering::SeqCst));

    let done = with(tx.as_sqlx().await.expect("lent"), polls).await;
    if asks {
        let own = sqlx::query_scalar("select $1 + 1").bind(number / 2).fetch_one(&mut tx).await;
        is_answered(own, number / 2 + 1, what);
    }
    let committed = tx.commit().await;

    let what = format!("{what}: {committed:?}, orphan: {orphan}, asks: {asks}");
    assert_eq!(ground.is_kept(number).await, committed.is_ok(), "{what}");
    assert_eq!(ran.load(Ordering::SeqCst), committed.is_ok(), "{what}");
    assert!(committed.is_err() || !orphan, "{what}");
    (done, committed)
}

#[db_testkit::test]
async fn a_commit_after_a_loan_reports_its_true_outcome_and_runs_its_hooks_accordingly(db: TestDb) {
    let ground = Ground::new(db).await;
    for (orphan, asks) in [(false, false), (false, true), (true, false), (true, true)] {
        ground
            .each(IN_STEP, |ground, with, polls, what| {
                async move { commit_after(ground, with, polls, what, (orphan, asks)).await.0 }.boxed()
            })
            .await;
        ground
            .each(OUT_OF_STEP, |ground, with, polls, what| {
                async move {
                    let (done, committed) = commit_after(ground, with, polls, what, (orphan, asks)).await;
                    if done && !ends_well(what) {
                        let error = committed.expect_err("the session is out of step");
                        assert!(matches!(error, Error::Lent(_) | Error::Aborted), "{what}: {error}");
                    }
                    done
                }
                .boxed()
            })
            .await;
    }
}

#[db_testkit::test]
async fn a_savepoint_after_a_loan_is_undone_or_nothing_is_committed(db: TestDb) {
    let ground = Ground::new(db).await;
    for uses in [IN_STEP, OUT_OF_STEP] {
        for ends in ["rollback", "release", "drop"] {
            ground
                .each(uses, |ground, with, polls, what| {
                    async move {
                        let (before, inside, after) =
                            (fastrand::i64(..), fastrand::i64(..), fastrand::i64(..));
                        let mut tx = ground.pool.handle().begin().await.expect("begun");
                        assert!(is_answered(store(before).fetch_one(&mut tx).await, before, what));
                        let mut outer = tx.savepoint().await.expect("a savepoint");
                        let mut inner = outer.savepoint().await.expect("another");
                        assert!(is_answered(store(inside).fetch_one(&mut inner).await, inside, what));
                        let done = with(inner.as_sqlx().await.expect("lent"), polls).await;
                        let ended = match ends {
                            "rollback" => inner.rollback().await,
                            "release" => inner.release().await,
                            _ => {
                                drop(inner);
                                Ok(())
                            }
                        };
                        let stays = ends == "release" && ended.is_ok();
                        let released = match outer.release().await {
                            Ok(()) => is_answered(store(after).fetch_one(&mut tx).await, after, what),
                            Err(_) => false,
                        };
                        let committed = tx.commit().await;

                        let what = format!("{what}, {ends}: {ended:?}, {committed:?}");
                        let is_ok = committed.is_ok();
                        assert_eq!(ground.is_kept(before).await, is_ok, "{what}");
                        assert_eq!(ground.is_kept(inside).await, is_ok && stays, "{what}");
                        assert_eq!(ground.is_kept(after).await, is_ok && released, "{what}");
                        done
                    }
                    .boxed()
                })
                .await;
        }
    }
}

#[db_testkit::test]
async fn a_lent_transaction_recovers_from_a_failed_statement_by_a_raw_savepoint(db: TestDb) {
    let ground = Ground::new(db).await;
    let mut tx = ground.pool.handle().begin().await.expect("begun");
    store(1).fetch_one(&mut tx).await.expect("stored");
    sqlx::query("savepoint a").execute(tx.as_sqlx().await.expect("lent")).await.expect("a savepoint");
    sqlx::query("select 1 / 0")
        .execute(tx.as_sqlx().await.expect("lent"))
        .await
        .expect_err("a division by zero");

    let error = Error::from(store(2).fetch_one(&mut tx).await.expect_err("aborted"));
    assert_eq!(error.sqlstate().as_deref(), Some("25P02"), "the server's own answer: {error}");
    sqlx::query("rollback to savepoint a").execute(&mut tx).await.expect("recovered");
    store(3).fetch_one(&mut tx).await.expect("stored");
    tx.commit().await.expect("committed");

    assert!(ground.is_kept(1).await && !ground.is_kept(2).await && ground.is_kept(3).await);
}

#[db_testkit::test]
async fn a_transaction_begun_through_a_loan_must_be_ended_through_it(db: TestDb) {
    let ground = Ground::new(db).await;
    let mut conn = ground.conn().await;
    sqlx::query("begin").execute(conn.as_sqlx().await.expect("lent")).await.expect("begun");

    for _ in 0..2 {
        let error = Error::from(
            store(1).fetch_one(&mut conn).await.expect_err("not sent inside the open transaction"),
        );
        assert!(matches!(&error, Error::Lent(error) if !error.is_out_of_step()), "{error}");
        assert_eq!(error.class(), Class::Other, "{error}");
    }
    sqlx::query("commit").execute(conn.as_sqlx().await.expect("lent")).await.expect("ended");
    store(2).fetch_one(&mut conn).await.expect("stored");

    // A transaction begun with raw SQL on the session itself is tracked.
    sqlx::query("begin").execute(&mut conn).await.expect("begun");
    sqlx::query("select 1").execute(conn.as_sqlx().await.expect("lent")).await.expect("selected");
    store(3).fetch_one(&mut conn).await.expect("stored");
    sqlx::query("commit").execute(&mut conn).await.expect("committed");
    drop(conn);
    assert!(!ground.is_kept(1).await && ground.is_kept(2).await && ground.is_kept(3).await);
    ground.check_next_callers("afterwards").await;
    assert_eq!(ground.pool.stats().totals.repair_failed, 0);
}

#[db_testkit::test]
async fn nothing_is_sent_in_a_transaction_that_was_ended_through_a_loan(db: TestDb) {
    let ground = Ground::new(db).await;
    for word in ["commit", "rollback"] {
        let mut tx = ground.pool.handle().begin().await.expect("begun");
        tx.as_sqlx().await.expect("lent").execute(word).await.expect("ended");
        let error =
            Error::from(store(1).fetch_one(&mut tx).await.expect_err("not sent outside the transaction"));
        assert!(matches!(error, Error::Lent(_)), "{error}");
        assert!(matches!(tx.commit().await, Err(Error::CommitUnknown(_))));

        let mut tx = ground.pool.handle().begin().await.expect("begun");
        tx.as_sqlx().await.expect("lent").execute(word).await.expect("ended");
        tx.rollback().await.expect("no open transaction");
    }
    assert!(!ground.is_kept(1).await);
}

#[db_testkit::test]
async fn an_abandoned_statement_of_a_lent_connection_is_cancelled(db: TestDb) {
    let ground = Ground::new(db).await;
    let mut conn = ground.conn().await;
    tokio::select! {
        _ = sqlx::query("select pg_sleep(600)").execute(conn.as_sqlx().await.expect("lent")) => unreachable!("the statement takes ten minutes"),
        _ = ground.db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)) => {}
    }
    assert!(is_answered(store(1).fetch_one(&mut conn).await, 1, "the next statement"));
    tokio::select! {
        _ = sqlx::query("select pg_sleep(600)").execute(conn.as_sqlx().await.expect("lent")) => unreachable!("the statement takes ten minutes"),
        _ = ground.db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)) => {}
    }
    drop(conn);

    ground.check_next_callers("afterwards").await;
    until("the connection is repaired", async || ground.pool.stats().totals.cancelled == 2).await;
    assert_eq!(ground.pool.stats().totals.repair_failed, 0);
}

#[db_testkit::test]
async fn a_loan_after_an_abandoned_statement_gets_none_of_its_answers(db: TestDb) {
    let ground = Ground::new(db).await;
    for polls in 0..6 {
        for sql in ["select 1 / 0", "select 1 from pg_sleep(600)", "select * from nowhere", "select 1"] {
            let what = format!("{sql}, {polls} polls");
            let mut conn = ground.conn().await;
            // A sleeping statement does not wake its future after the first poll.
            let polls = if sql.contains("600") { 1 } else { polls };
            poll_then_drop(sqlx::query(sql).execute(&mut conn), polls).await;
            let own = fastrand::i64(..);
            let answer: i64 = sqlx::query_scalar("select $1")
                .bind(own)
                .fetch_one(conn.as_sqlx().await.expect("lent"))
                .await
                .expect(&what);
            assert_eq!(answer, own, "{what}");
            drop(conn);

            let mut tx = ground.pool.handle().begin().await.expect("begun");
            poll_then_drop(sqlx::query(sql).execute(&mut tx), polls).await;
            let answer = async {
                let asked = sqlx::query_scalar("select $1").bind(own);
                Ok::<i64, Error>(asked.fetch_one(tx.as_sqlx().await?).await?)
            };
            match answer.await {
                Ok(answer) => assert_eq!(answer, own, "{what}"),
                // The answer to the prepare had arrived at the first poll, so the statement slept, and was cancelled.
                Err(Error::Deadline(_)) if sql.contains("600") => {}
                // The statement failed, and the transaction with it.
                Err(error) => assert_eq!(error.sqlstate().as_deref(), Some("25P02"), "{what}: {error}"),
            }
        }
    }
    ground.check_next_callers("afterwards").await;
}

/// The last statement of a session.
async fn last(ground: &Ground, pid: i32) -> String {
    sqlx::query_scalar("select query from pg_stat_activity where pid = $1")
        .bind(pid)
        .fetch_one(&ground.db.pool())
        .await
        .expect("a session")
}

#[db_testkit::test]
async fn the_status_is_queried_only_after_a_loan(db: TestDb) {
    let ground = Ground::new(db).await;
    let pid = ground.conn().await.pid();

    store(1).fetch_one(ground.pool.handle()).await.expect("stored");
    assert!(last(&ground, pid).await.starts_with("insert"), "a statement of a handle");
    let mut tx = ground.pool.handle().begin().await.expect("begun");
    store(2).fetch_one(&mut tx).await.expect("stored");
    tx.commit().await.expect("committed");
    assert_eq!(last(&ground, pid).await, "COMMIT");

    // After a loan, the status is queried once, however many statements follow.
    let mut conn = ground.conn().await;
    conn.as_sqlx().await.expect("lent").execute("select 'lent'").await.expect("selected");
    conn.ping().await.expect("asked");
    assert!(last(&ground, pid).await.contains("statement_timestamp"), "the status query");
    store(3).fetch_one(&mut conn).await.expect("stored");
    conn.ping().await.expect("an answer");
    assert!(last(&ground, pid).await.starts_with("insert"), "the statement");
}

#[db_testkit::test]
async fn a_listening_session_leaves_no_notification_to_the_next_caller(db: TestDb) {
    let mut ground = Ground::new(db).await;
    for reset in [Reset::Rollback, Reset::Commit, Reset::Keep, Reset::DiscardAll] {
        ground = ground.with(reset);
        let mut conn = ground.conn().await;
        let pid = conn.pid();
        sqlx::query("listen somewhere").execute(&mut conn).await.expect("listens");
        // One notification arrives before the connection is returned, and one after.
        notify(&ground).await;
        drop(conn);
        until("the connection is returned", async || ground.pool.stats().idle == 1).await;
        notify(&ground).await;

        assert_eq!(ground.conn().await.pid(), pid, "{reset:?}: the same connection");
        ground.check_next_callers(&format!("{reset:?}")).await;
    }
}

async fn notify(ground: &Ground) {
    sqlx::query("select pg_notify('somewhere', 'something')")
        .execute(&ground.db.pool())
        .await
        .expect("notified");
}

#[db_testkit::test]
async fn reset_keep_keeps_what_a_lent_connection_has_set(db: TestDb) {
    let ground = Ground::new(db).await.with(Reset::Keep);
    let mut conn = ground.conn().await;
    conn.as_sqlx().await.expect("lent").execute("set search_path = nowhere, public").await.expect("set");
    drop(conn);

    let path: String =
        sqlx::query_scalar("show search_path").fetch_one(ground.pool.handle()).await.expect("a path");
    assert_eq!(path, "nowhere, public");
}
