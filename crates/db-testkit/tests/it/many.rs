//! Many tests at once leave nothing.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use db_testkit::__private::{Plan, run_test};
use db_testkit::TestDb;
use sqlx::{ConnectOptions, Executor};

use crate::support::{ask, databases, eventually, is_named_by_a_process, maintenance, open_dir};

const ORDER: &str = "DB_TESTKIT_TEST_MANY";
const TESTS: usize = 500;
const AT_ONCE: usize = 16;

/// In a child: runs the tests. In a normal run: nothing.
#[tokio::test]
async fn runs_when_told_to() {
    if std::env::var_os(ORDER).is_none() {
        return;
    }
    let watch = TestDb::empty().await.unwrap();
    tokio::task::spawn_blocking(|| {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while next.fetch_add(1, Ordering::Relaxed) < TESTS {
                        one_test();
                    }
                });
            }
        });
    })
    .await
    .unwrap();

    let mut left = databases(&maintenance(&watch), "tk_").await;
    left.retain(|name| !name.starts_with("tk_template_"));
    assert_eq!(left, [watch.name()]);
    let sql = "select count(*)::text from pg_stat_activity where backend_type = 'client backend'";
    eventually("only the session that asks and that of the last database are left", async || {
        ask(&maintenance(&watch), sql).await == "2"
    })
    .await;
}

fn one_test() {
    let plan = Plan { migrations: Some("tests/migrations"), ..Plan::DEFAULT };
    run_test(&plan, async |[db]: [TestDb; 1]| {
        let mut tx = db.pool().begin().await.unwrap();
        tx.execute("insert into builds (name) values ('second')").await.unwrap();
        // A session that a task keeps, and a transaction that is dropped.
        let connection = db.options().connect().await.unwrap();
        tokio::spawn(async move {
            let _stays = connection;
            std::future::pending::<()>().await;
        });
    });
}

#[tokio::test]
async fn five_hundred_tests_leave_no_database_no_session_no_process_and_no_folder() {
    let base = open_dir();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["many::runs_when_told_to", "--exact", "--nocapture"]).env(ORDER, "yes");
    child.env_remove("DATABASE_URL").env("TMPDIR", base.path());

    let output = tokio::task::spawn_blocking(move || child.output()).await.unwrap().unwrap();

    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("test result: ok. 1 passed"), "{said}");
    eventually("the folder of the server is gone", async || {
        std::fs::read_dir(base.path()).unwrap().next().is_none()
    })
    .await;
    eventually("no process names the folder", async || !is_named_by_a_process(base.path())).await;
}
