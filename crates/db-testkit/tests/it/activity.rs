//! The server's view of a test's sessions.

use std::time::Duration;

use db_testkit::{Session, TestDb, until};
use futures_util::FutureExt;
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Executor};

async fn connect(db: &TestDb, name: &str) -> PgConnection {
    db.options().application_name(name).connect().await.unwrap()
}

#[db_testkit::test]
async fn sessions_are_those_of_the_tested_and_not_of_the_kit(db: TestDb) {
    let other = TestDb::empty().await.unwrap();
    let _elsewhere = connect(&other, "elsewhere").await;
    let _kit = db.pool().acquire().await.unwrap();
    assert_eq!(db.sessions().await.unwrap(), []);
    let mut one = connect(&db, "one").await;
    let mut two = connect(&db, "two").await;

    one.execute("begin").await.unwrap();
    two.execute("select 'the last'").await.unwrap();
    let sessions = db.sessions().await.unwrap();

    let names: Vec<&str> = sessions.iter().map(|it| it.application_name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(sessions[0].state, "idle in transaction");
    assert!(sessions[0].is_in_transaction() && !sessions[0].is_running(), "{sessions:?}");
    assert!(!sessions[1].is_in_transaction() && sessions[1].query == "select 'the last'", "{sessions:?}");
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut one).await.unwrap();
    assert_eq!(sessions[0].pid, pid);
}

#[db_testkit::test(leaves = "pg_sleep")]
async fn open_transactions_are_idle_aborted_or_running(db: TestDb) {
    let (mut idle, mut aborted, mut running) =
        (connect(&db, "idle").await, connect(&db, "aborted").await, connect(&db, "running").await);
    let _none = connect(&db, "none").await;

    idle.execute("begin").await.unwrap();
    aborted.execute("begin").await.unwrap();
    aborted.execute("nonsense").await.unwrap_err();
    let names = async || -> Vec<String> {
        let open = db.open_transactions().await.unwrap();
        open.into_iter().map(|it| it.application_name).collect()
    };
    tokio::select! {
        _ = running.execute("select pg_sleep(60)") => unreachable!(),
        () = until("all three", async || names().await == ["idle", "aborted", "running"]) => {}
    }
}

#[db_testkit::test]
async fn locks_name_what_they_are_on(db: TestDb) {
    db.pool().execute("create table word (t text)").await.unwrap();
    let (mut holder, mut waiter) = (connect(&db, "holder").await, connect(&db, "waiter").await);
    holder.execute("select pg_advisory_lock(-5), pg_advisory_lock(7, -8)").await.unwrap();
    holder.execute("begin; lock table word").await.unwrap();

    let locks = async || -> Vec<String> {
        let locks = db.locks().await.unwrap();
        let mut locks: Vec<String> =
            locks.iter().map(|it| format!("{} {} {} {}", it.kind, it.what, it.mode, it.granted)).collect();
        locks.sort();
        locks
    };
    let all = [
        "advisory -5 ExclusiveLock true",
        "advisory 7, -8 ExclusiveLock true",
        "relation word AccessExclusiveLock true",
        "relation word AccessShareLock false",
    ];
    tokio::select! {
        _ = waiter.execute("select from word") => unreachable!(),
        () = until("the waiter's is there", async || locks().await == all) => {}
    }
}

#[db_testkit::test]
async fn it_is_quiet_when_transaction_statement_and_lock_are_gone(db: TestDb) {
    let mut connection = connect(&db, "loud").await;
    for (begin, end) in
        [("begin", "rollback"), ("select pg_advisory_lock(1)", "select pg_advisory_unlock(1)")]
    {
        connection.execute(begin).await.unwrap();
        // `until_quiet` checks at least once, which is before the timeout.
        let quiet = async { tokio::time::timeout(Duration::from_millis(300), db.until_quiet()).await };
        assert!(quiet.await.is_err(), "not quiet after {begin}");
        connection.execute(end).await.unwrap();
        db.until_quiet().await;
    }
}

#[tokio::test]
async fn a_wait_in_vain_ends_with_a_list_of_the_sessions() {
    let db = TestDb::empty().await.unwrap();
    let mut connection = connect(&db, "the loud one").await;
    connection.execute("begin; select pg_advisory_lock(42)").await.unwrap();
    let (sessions, locks) = (db.sessions().await.unwrap(), db.locks().await.unwrap());

    let shown = format!("{} / {}", sessions[0], locks[0]);

    assert!(shown.contains("\"the loud one\", idle in transaction, in a transaction for"), "{shown}");
    assert!(shown.contains("holds ExclusiveLock on the advisory 42"), "{shown}");
    let wait = std::panic::AssertUnwindSafe(db.until_sessions("peace on earth", <[Session]>::is_empty));
    let mut wait = Box::pin(wait.catch_unwind());
    // By now it has checked once and waits. From here on, the paused clock jumps to the next deadline.
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut wait).await.is_err());
    #[expect(clippy::disallowed_methods, reason = "the deadline must pass, and no answer is awaited")]
    tokio::time::pause();
    let panic = wait.await.unwrap_err();

    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("peace on earth. There is:\n  session"), "{message}");
    assert!(message.contains("the loud one"), "{message}");
}
