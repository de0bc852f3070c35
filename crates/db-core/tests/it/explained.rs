//! The texts of errors, and their answers to questions.

use std::time::Duration;

use db_core::{AcquireError, AcquirePhase, Class, Config, Error, Pool, PoolOptions};
use db_testkit::{Proxy, Session, TestDb, until};
use tokio::task::JoinSet;

use crate::support::{Guarded, PATIENCE, config};

fn pool(config: &Config, acquire_timeout: Duration) -> Pool {
    let options = PoolOptions::api().name("shop").max(1).acquire_timeout(acquire_timeout);
    Pool::new(config, options)
}

fn through(proxy: &Proxy) -> Config {
    Config::from_url(&proxy.url()).expect("the proxy's address")
}

async fn refused(pool: &Pool) -> AcquireError {
    pool.handle().acquire().await.expect_err("no connection")
}

#[db_testkit::test]
async fn a_timeout_in_the_queue_reports_the_oldest_checkout_without_values(db: TestDb) {
    let pool = pool(&config(&db), Duration::from_secs(1));
    let (line, handle) = (line!(), pool.handle());
    let mut tx = handle.begin().await.expect("begun");
    let sleep = sqlx::query("select pg_sleep(60), 'hunter2', $1::text").bind("hunter3").execute(&mut tx);
    let asking = async {
        db.until_sessions("the statement runs", |all| all.iter().any(Session::is_sleeping)).await;
        refused(&pool).await
    };

    let error = tokio::select! {
        _ = sleep => unreachable!("the statement takes a minute"),
        error = asking => error,
    };

    assert_eq!((error.pool(), error.phase()), ("shop", AcquirePhase::Queue));
    assert!(error.waited() >= Duration::from_secs(1) && error.waited() < PATIENCE);
    assert_eq!((error.stats().in_use, error.stats().max, error.stats().waiting), (1, 1, 0));
    let oldest = error.oldest_holder().expect("a holder");
    assert_eq!((oldest.at.to_string(), oldest.in_transaction), (format!("{}:{line}", file!()), true));
    assert!(error.last_dial_failure().is_none());
    let text = error.to_string();
    let waited = error.waited().as_secs_f64();
    assert!(
        text.starts_with(&format!(
            "pool `shop`: no connection came free within {waited:.1} s, 1 of 1 in use, 0 more waiting; \
             oldest checkout: {}:{line} for ",
            file!()
        )),
        "{text}"
    );
    assert!(text.contains(": select pg_sleep(60), '…', $1::text"), "{text}");
    assert!(!format!("{text} {error:?}").contains("hunter"), "{error:?}");
    assert_eq!(Error::from(error).class(), Class::NotReached);
}

#[db_testkit::test]
async fn a_timeout_while_dialling_reports_the_dial_failure(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.refuse();
    let pool = pool(&through(&proxy), Duration::from_millis(300));

    let error = refused(&pool).await;

    assert_eq!(error.phase(), AcquirePhase::Dial);
    let (failure, ago) = error.last_dial_failure().expect("a dial failure");
    assert!(!failure.is_empty() && ago <= error.waited() + Duration::from_secs(1), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("pool `shop`: no connection could be opened within "), "{text}");
    assert!(text.contains(" s, 0 of 1 in use, "), "{text}");
    assert!(
        text.contains(&format!("; the last dial failed {:.1} s ago: {failure}", ago.as_secs_f64())),
        "{text}"
    );
    assert!(text.contains("explained.rs:"), "{text}");
    let error = Error::from(error);
    assert_eq!((error.class(), error.is_transient()), (Class::NotReached, true));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
}

#[db_testkit::test]
async fn a_timeout_without_any_answer_reports_the_wait(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.black_hole();
    let pool = pool(&through(&proxy), Duration::from_millis(300));

    let error = refused(&pool).await;

    assert_eq!(error.phase(), AcquirePhase::Dial);
    assert!(error.waited() < Duration::from_secs(5), "{error}");
    let dials = format!("{} dialling", error.stats().dialling);
    assert!(error.to_string().contains(&dials), "{error}");
}

#[db_testkit::test]
async fn a_timeout_without_an_answer_to_a_ping_is_reported_as_such(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let options = PoolOptions::api()
        .name("shop")
        .max(1)
        .acquire_timeout(Duration::from_millis(250))
        .ping_after(Duration::ZERO);
    let pool = Pool::new(&through(&proxy), options);
    // The first connection may take longer on a busy machine.
    until("a connection is open", async || pool.handle().acquire().await.is_ok()).await;
    proxy.freeze();

    let error = refused(&pool).await;

    assert_eq!(error.phase(), AcquirePhase::Verify, "{error}");
    assert!(error.waited() >= Duration::from_millis(250), "{error}");
    assert!(error.to_string().starts_with("pool `shop`: no connection answered a ping within 0."), "{error}");
    let error = Error::from(error);
    assert_eq!((error.class(), error.retry_after()), (Class::NotReached, Some(Duration::from_secs(1))));
}

#[db_testkit::test]
async fn the_error_of_a_closed_pool_says_so_and_is_not_transient(db: TestDb) {
    let pool = pool(&config(&db), PATIENCE);
    let held = pool.handle().acquire().await.expect("the only connection");
    let handle = pool.handle();
    let waiting = tokio::spawn(async move { handle.acquire().await.expect_err("closed") });
    until("the caller waits", async || pool.stats().waiting == 1).await;
    let closing = pool.close(PATIENCE);
    let returned = async {
        let error = waiting.await.expect("no panic");
        drop(held);
        error
    };

    let (closed, while_waiting) = tokio::join!(closing, returned);

    assert!(closed.is_clean(), "{closed:?}");
    for error in [while_waiting, refused(&pool).await] {
        assert!(error.is_closed());
        assert_eq!(error.phase(), AcquirePhase::Closed);
        assert!(error.to_string().starts_with("pool `shop` is closed (acquire at "), "{error}");
        let error = Error::from(error);
        assert_eq!((error.class(), error.is_transient()), (Class::Other, false));
        assert_eq!(error.retry_after(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_fails_at_once_and_is_not_shown() {
    let server = Guarded::start().await;
    let pool = pool(&server.config("app:hunter2"), Duration::from_hours(1));

    let error = tokio::time::timeout(PATIENCE, refused(&pool)).await.expect("an answer before the limit");

    assert_eq!(error.phase(), AcquirePhase::Dial);
    let text = error.to_string();
    assert!(text.contains("the password of role `app` was refused (28P01)"), "{text}");
    assert!(!text.contains(".c:") && !text.contains(" line "), "{text}");
    assert!(!format!("{text} {error:?} {pool:?}").contains("hunter2"), "{error:?}");
}

#[db_testkit::test]
async fn retry_after_grows_with_the_queue(db: TestDb) {
    let pool = pool(&config(&db), Duration::from_hours(1));
    let held = pool.handle().acquire().await.expect("the only connection");
    until("the connection was held for a while", async || pool.holders()[0].held > Duration::from_secs(1))
        .await;
    drop(held);
    let _held = pool.handle().acquire().await.expect("the only connection");

    let hasty = || pool.handle().acquire_timeout(Duration::from_millis(100));
    let refused = async || Error::from(hasty().acquire().await.expect_err("no connection"));
    let mut crowd = JoinSet::new();
    for _ in 0..60 {
        let handle = pool.handle();
        crowd.spawn(async move { handle.acquire().await.map(drop) });
    }
    until("the crowd waits", async || pool.stats().waiting == 60).await;
    let crowded = refused().await.retry_after().expect("a time to wait");
    crowd.shutdown().await;
    until("the crowd has gone", async || pool.stats().waiting == 0).await;
    let alone = refused().await.retry_after().expect("a time to wait");

    assert_eq!(alone, Duration::from_secs(1));
    assert!(crowded > Duration::from_secs(3) && crowded <= Duration::from_secs(30), "{crowded:?}");
}

#[db_testkit::test]
async fn errors_of_statements_are_classified_by_their_code(db: TestDb) {
    let pool = pool(&config(&db), PATIENCE);
    sqlx::raw_sql(
        "create table parent (n int constraint parent_key primary key, positive int constraint above_zero check (positive > 0));
         create table child (n int constraint child_parent references parent)",
    )
    .execute(&db.pool())
    .await
    .expect("tables");
    sqlx::query("insert into parent values (4711)").execute(pool.handle()).await.expect("a row");
    let soon = Some(Duration::from_millis(10));
    let later = Some(Duration::from_secs(1));

    for (sql, code, class, retry_after, constraint) in [
        ("insert into parent values (4711)", "23505", Class::Constraint, None, Some("parent_key")),
        ("insert into child values (4712)", "23503", Class::Constraint, None, Some("child_parent")),
        ("insert into parent values (1, -4711)", "23514", Class::Constraint, None, Some("above_zero")),
        ("selekt 4711", "42601", Class::Other, None, None),
        ("select 4711 from nowhere", "42P01", Class::Other, None, None),
        ("select 4711 / 0", "22012", Class::Other, None, None),
        ("do $$ begin raise 'x' using errcode = '40001'; end $$", "40001", Class::Conflict, soon, None),
        ("do $$ begin raise 'x' using errcode = '40P01'; end $$", "40P01", Class::Conflict, soon, None),
        ("do $$ begin raise 'x' using errcode = '55P03'; end $$", "55P03", Class::TimedOut, None, None),
        ("select pg_cancel_backend(pg_backend_pid()), pg_sleep(60)", "57014", Class::TimedOut, None, None),
        ("select pg_terminate_backend(pg_backend_pid()), pg_sleep(60)", "57P01", Class::Lost, later, None),
    ] {
        let error = sqlx::query(sql).execute(pool.handle()).await.expect_err(sql);
        let error = Error::from(error);

        assert_eq!(error.sqlstate().as_deref(), Some(code), "{sql}");
        assert_eq!((error.class(), error.retry_after()), (class, retry_after), "{sql}");
        assert_eq!(error.is_transient(), matches!(class, Class::Conflict | Class::Lost), "{sql}");
        assert_eq!((error.constraint(), error.is_unique_violation()), (constraint, code == "23505"), "{sql}");
        let text = error.to_string();
        assert!(text.ends_with(&format!("({code})")), "{text}");
        assert!(!text.contains("4711") && !text.contains(".c:") && !text.contains("line "), "{text}");
    }
}
