//! What a test leaves on its server fails it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use db_testkit::__private::{Plan, run_test};
use db_testkit::{Session, Stop, TestDb};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};

const ORDER: &str = "DB_TESTKIT_TEST_LEAVES";

/// The message that a test fails with.
fn failure(plan: &Plan, test: impl AsyncFnOnce(TestDb)) -> Option<String> {
    let ran = catch_unwind(AssertUnwindSafe(|| run_test(plan, async |[db]| test(db).await)));
    ran.err().map(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast_ref::<&str>().expect("a text")).to_owned(),
    })
}

/// A session that stays when the test ends, since a task has it. Its last statement may fail.
async fn leave(db: &TestDb, statements: &[&str]) {
    let mut connection = connect(db).await;
    for statement in statements {
        // Some abort their transaction.
        let _ = connection.execute(AssertSqlSafe(*statement)).await;
    }
    tokio::spawn(async move {
        let _stays = connection;
        std::future::pending::<()>().await;
    });
}

async fn connect(db: &TestDb) -> PgConnection {
    db.options().application_name("the leaver").connect().await.unwrap()
}

/// What the session of these statements leaves fails the test with a message that has these parts; after the last statement
/// nothing is left.
fn fails_until(statements: &[&str], end: &str, parts: &[&str]) {
    let ended = [statements, &[end]].concat();

    let message = failure(&Plan::DEFAULT, async |db| leave(&db, statements).await).expect("a failure");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }

    assert_eq!(failure(&Plan::DEFAULT, async |db| leave(&db, &ended).await), None);
}

#[test]
fn an_open_transaction_fails_its_test() {
    let parts =
        ["the test left something on the server:", "\"the leaver\", idle in transaction", "select 'it'"];
    fails_until(&["begin", "select 'it'"], "rollback", &parts);
}

#[test]
fn an_aborted_transaction_fails_its_test() {
    fails_until(
        &["begin", "nonsense"],
        "rollback",
        &["\"the leaver\", idle in transaction (aborted)", "nonsense"],
    );
}

#[test]
fn a_locked_table_fails_its_test() {
    let parts = ["\"the leaver\", idle in transaction", "holds AccessExclusiveLock on the relation word"];
    fails_until(&["create table word (t text)", "begin", "lock table word"], "rollback", &parts);
}

#[test]
fn an_advisory_lock_of_a_session_fails_its_test() {
    let parts =
        ["\"the leaver\", idle", "select pg_advisory_lock(42)", "holds ExclusiveLock on the advisory 42"];
    fails_until(&["select pg_advisory_lock(42)"], "select pg_advisory_unlock(42)", &parts);
}

async fn run_a_statement(db: &TestDb, sql: &'static str) {
    let mut connection = connect(db).await;
    tokio::spawn(async move { connection.execute(sql).await.map(drop) });
    db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)).await;
}

#[test]
fn a_running_statement_fails_its_test() {
    let sql = "select pg_sleep(60)";

    let message = failure(&Plan::DEFAULT, async |db| run_a_statement(&db, sql).await).expect("a failure");

    assert!(message.contains("\"the leaver\", active") && message.contains(sql), "{message}");
}

#[test]
fn a_statement_whose_client_has_gone_fails_its_test() {
    let message = failure(&Plan::DEFAULT, async |db| {
        let mut connection = connect(&db).await;
        tokio::select! {
            _ = connection.execute("select pg_sleep(60)") => unreachable!(),
            _ = db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)) => {}
        }
    });

    assert!(message.is_some_and(|it| it.contains("select pg_sleep(60)")));
}

#[test]
fn a_statement_that_ends_within_a_second_is_waited_for() {
    assert_eq!(failure(&Plan::DEFAULT, async |db| run_a_statement(&db, "select pg_sleep(0.3)").await), None);
}

#[test]
fn a_session_that_stays_connected_fails_a_strict_test_only() {
    let strict = Plan { strict: true, ..Plan::DEFAULT };
    let stays = async |db| leave(&db, &["select 'connected'"]).await;

    assert_eq!(failure(&Plan::DEFAULT, stays), None);
    let message = failure(&strict, stays).expect("a failure");
    assert!(message.contains("\"the leaver\", idle") && message.contains("select 'connected'"), "{message}");
    let closed = async |db: TestDb| {
        connect(&db).await.execute("select 'connected'").await.unwrap();
        // The connections of this pool stay, since it is the kit's.
        db.pool().execute("select 'connected'").await.unwrap();
    };
    assert_eq!(failure(&strict, closed), None);
}

#[test]
fn a_forgotten_transaction_of_the_kits_pool_fails_its_test() {
    let message = failure(&Plan::DEFAULT, async |db| {
        let mut tx = db.pool().begin().await.unwrap();
        tx.execute("select 'forgotten'").await.unwrap();
        std::mem::forget(tx);
    })
    .expect("a failure");

    assert!(message.contains("idle in transaction") && message.contains("select 'forgotten'"), "{message}");
    assert!(message.contains("(on `db.pool()`)"), "{message}");
}

#[test]
fn a_transaction_of_the_kits_pool_that_a_task_holds_fails_its_test() {
    let message = failure(&Plan::DEFAULT, async |db| {
        let mut tx = db.pool().begin().await.unwrap();
        tx.execute("select 'held'").await.unwrap();
        tokio::spawn(async move {
            let _held = (tx, db);
            std::future::pending::<()>().await;
        });
    });

    assert!(message.is_some_and(|it| it.contains("select 'held'")));
}

#[test]
fn a_dropped_transaction_and_a_held_connection_of_the_kits_pool_are_nothing() {
    let message = failure(&Plan::DEFAULT, async |db| {
        let mut tx = db.pool().begin().await.unwrap();
        tx.execute("select 'dropped'").await.unwrap();
        std::mem::forget(db.pool().acquire().await.unwrap());
    });

    assert_eq!(message, None);
}

#[test]
fn what_is_named_may_be_left() {
    for leaves in [&["select 'it'"][..], &["nothing like it", "the leave"]] {
        let plan = Plan { leaves, ..Plan::DEFAULT };
        assert_eq!(
            failure(&plan, async |db| leave(&db, &["begin", "select 'it'"]).await),
            None,
            "{leaves:?}"
        );
    }
    let another = Plan { leaves: &["select 'another'"], ..Plan::DEFAULT };
    assert!(failure(&another, async |db| leave(&db, &["begin", "select 'it'"]).await).is_some());
}

#[test]
fn a_leftover_in_any_of_the_databases_fails_the_test() {
    let ran = catch_unwind(|| {
        run_test(&Plan::DEFAULT, async |[_first, second]: [TestDb; 2]| {
            leave(&second, &["begin", "select 'it'"]).await;
        });
    });

    assert!(ran.unwrap_err().downcast_ref::<String>().unwrap().contains("select 'it'"));
}

#[test]
fn a_database_that_the_test_has_dropped_is_not_looked_at() {
    let message = failure(&Plan::DEFAULT, async |db| {
        leave(&db, &["begin"]).await;
        db.drop_now().await.unwrap();
    });

    assert_eq!(message, None);
}

#[test]
fn the_look_outlives_the_server_that_the_database_was_made_by() {
    let plan = Plan { throwaway: true, ..Plan::DEFAULT };
    let restart = async |db: &TestDb| db.test_server().restart(Stop::Fast).await.unwrap();

    assert_eq!(failure(&plan, async |db| restart(&db).await), None);
    let message = failure(&plan, async |db| {
        restart(&db).await;
        leave(&db, &["begin", "select 'it'"]).await;
    });
    assert!(message.is_some_and(|it| it.contains("select 'it'")));
}

/// In a child: fails by itself, and leaves a transaction. In a normal run: nothing.
#[db_testkit::test]
async fn fails_and_leaves_when_told_to(db: TestDb) -> Result<(), String> {
    let Ok(order) = std::env::var(ORDER) else { return Ok(()) };
    leave(&db, &["begin", "select 'left'"]).await;
    assert_ne!(order, "panic", "its own failure");
    Err("its own failure".to_owned())
}

#[test]
fn a_test_that_fails_by_itself_keeps_its_failure_and_prints_what_it_left() {
    for (order, own) in [("panic", "its own failure"), ("error", "Error: \"its own failure\"")] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["looks::fails_and_leaves_when_told_to", "--exact", "--nocapture"])
            .env(ORDER, order)
            .output()
            .unwrap();

        let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
        assert!(said.contains("test result: FAILED. 0 passed; 1 failed"), "{said}");
        assert!(said.contains(own), "{said}");
        assert!(said.contains("db-testkit: the test left something on the server:"), "{said}");
        assert!(said.contains("select 'left'"), "{said}");
        assert!(!said.contains("panicked") || order == "panic", "{said}");
    }
}
