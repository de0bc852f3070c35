//! Sessions that the server refuses for good.

use db_core::{
    AcquirePhase, ConnectFailure, ConnectRetry, Error, Pool, PoolOptions, Repeat, connect::connect,
};
use db_testkit::TestDb;

use crate::support::{Guarded, PATIENCE};

async fn run(db: &TestDb, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&db.pool()).await.expect(sql);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_refused_for_good_is_not_waited_for_nor_dialled_again_and_again() {
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
        assert!(matches!(error.failure(), ConnectFailure::Refused(said) if said.contains(code)), "{error:?}");
        assert!(error.failure().is_final() && error.attempts() == 1, "{error:?}");

        // It looks after its connections every 20 ms.
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
        assert_eq!(error.repeat(), Repeat::Later, "somebody may let it in: {error}");

        // Nobody asks for a second of the server's.
        run(admin, "select pg_sleep(1)").await;
        let dials = pool.stats().totals.dial_failures;
        assert!(dials <= 8, "{dials} dials, and nobody asked");

        // Whoever asks is not kept waiting for the rest.
        run(admin, &admit).await;
        pool.handle().acquire().await.expect("let in");
        pool.warm_up(PATIENCE).await.expect("warm");
    }
}
