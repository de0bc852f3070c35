//! Sessions that the server refuses permanently.

use db_core::{
    AcquirePhase, ConnectFailure, ConnectRetry, Error, Pool, PoolOptions, Repeat, connect::connect,
};
use db_testkit::TestDb;

use crate::support::{Guarded, PATIENCE};

async fn run(db: &TestDb, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&db.pool()).await.expect(sql);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_refusal_fails_at_once_and_is_not_dialled_repeatedly() {
    let guarded = Guarded::start().await;
    let admin = guarded.db();
    let shut = guarded.server().empty().await.expect("a database");
    let name = shut.name();
    for (refuse, admit, code) in [
        (
            format!("revoke connect on database \"{name}\" from public"),
            format!("grant connect on database \"{name}\" to public"),
            "42501",
        ),
        (
            format!("alter database \"{name}\" allow_connections false"),
            format!("alter database \"{name}\" allow_connections true"),
            "55000",
        ),
    ] {
        run(admin, &refuse).await;
        let config = guarded.config("app:right").with_database(name);
        let error = connect(&config, ConnectRetry::default()).await.expect_err("refused");
        assert!(
            matches!(error.failure(), ConnectFailure::Refused(message) if message.contains(code)),
            "{error:?}"
        );
        assert!(error.failure().is_final() && error.attempts() == 1, "{error:?}");

        // The keeper runs every 20 ms.
        let pool = Pool::new(
            &config,
            PoolOptions::api()
                .min_idle(2)
                .acquire_timeout(PATIENCE)
                .leak_after(std::time::Duration::from_millis(80)),
        );
        let error = pool.handle().acquire().await.expect_err("refused");
        assert_eq!(error.phase(), AcquirePhase::Dial, "{error}");
        assert!(error.waited() < PATIENCE, "{error}");
        let error = Error::from(error);
        assert_eq!(error.repeat(), Repeat::Later, "an operator may admit it: {error}");

        // There is no caller for one second of the server's time.
        run(admin, "select pg_sleep(1)").await;
        let dials = pool.stats().totals.dial_failures;
        assert!(dials <= 8, "{dials} dials without a caller");

        // A caller does not wait for the end of the pause.
        run(admin, &admit).await;
        pool.handle().acquire().await.expect("a connection");
        pool.warm_up(PATIENCE).await.expect("warm");
    }
}
