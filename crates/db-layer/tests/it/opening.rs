//! Opening succeeds as soon as the server allows it, whatever happens to the server meanwhile.

use std::fs::{self, Permissions, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use db_layer::db_core::{ConnectFailure, ConnectRetry};
use db_layer::{Config, Db, Migrations, OpenError, Options, PoolOptions, db_migrate, db_notify};
use db_testkit::{Proxy, Stop, TestDb, TestServer, poll_then_drop, until};
use harness::Log;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::task::JoinHandle;

use crate::{PATIENCE, config};

/// A deadline longer than any test needs, with short pauses, so that a delay in opening shows.
fn long() -> ConnectRetry {
    ConnectRetry::default()
        .deadline(Duration::from_mins(1))
        .attempt(Duration::from_secs(10))
        .min_pause(Duration::from_millis(10))
        .max_pause(Duration::from_millis(100))
}

/// Each migration adds a row, so that one which ran twice would add two. The second waits while the table `obstacle` exists,
/// which outlives a restart of the server.
async fn migrations() -> Migrations {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, sql) in [
        ("1_ran.up.sql", "create table ran (version int); insert into ran values (1)"),
        (
            "2_waits.up.sql",
            "insert into ran values (2); \
             do $$ begin while exists (select from pg_class where relname = 'obstacle') \
             loop perform pg_sleep(0.01); end loop; end $$",
        ),
        ("3_more.up.sql", "insert into ran values (3)"),
    ] {
        fs::write(folder.path().join(name), sql).expect("written");
    }
    Migrations::from_dir(folder.path()).await.expect("migrations")
}

async fn options(config: &Config) -> Options {
    let migrations = migrations().await;
    Options::new(config.clone()).wait(long()).migrations(migrations)
}

fn spawn(options: Options) -> JoinHandle<Result<Db, OpenError>> {
    tokio::spawn(db_layer::open(options))
}

async fn joined(opening: JoinHandle<Result<Db, OpenError>>) -> Db {
    let opened = tokio::time::timeout(long().deadline, opening).await.expect("in time");
    opened.expect("no panic").expect("opened")
}

/// The database works, each migration was applied once, and the shutdown leaves no session.
async fn is_whole(layer: Db, db: &TestDb) {
    let ran: Vec<i32> = sqlx::query_scalar("select version from ran order by version")
        .fetch_all(layer.api())
        .await
        .expect("an answer");
    assert_eq!(ran, [1, 2, 3], "each once");
    assert!(layer.bus().state().is_connected());
    assert!(layer.shutdown(PATIENCE).await.is_clean());
    is_clean(db).await;
}

async fn is_clean(db: &TestDb) {
    db.until_sessions("no session is left", <[_]>::is_empty).await;
    db.until_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_before_the_server_it_is_done_when_the_server_has_recovered() {
    let log = Log::of_this_process("trace");
    let folder = tempfile::tempdir().expect("a folder");
    // When the test runs as root, the server runs as another user, who must be able to enter the folder.
    set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("permissions");
    let data = folder.path().join("server");
    let go = folder.path().join("go");
    let url = format!("postgres://postgres@/postgres?host={}", data.join("run").display());
    let config = Config::from_url(&url).expect("an address");
    made_to_recover(&data).await;

    let opening = spawn(options(&config).await);
    let seen = |what: &str| log.lines_with(&["database not reached yet", &config.to_string(), what]);
    until("two attempts failed", async || seen("no server answers").len() >= 2).await;
    let starting = {
        let (data, go) = (data.clone(), go.clone());
        // The archive command of a server in recovery: it finds nothing, and answers only after the file `go` exists.
        let command = format!("while ! test -e '{}'; do sleep 0.02; done; false", go.display());
        let builder =
            db_embedded::Server::kept(data).setting("restore_command", command).setting("hot_standby", "off");
        tokio::task::spawn_blocking(move || builder.start())
    };
    until("it recovers", async || seen("the server is up but takes no connections now").len() >= 2).await;
    assert!(!opening.is_finished());

    fs::write(&go, "").expect("written");
    let layer = joined(opening).await;

    let server = starting.await.expect("no panic").expect("a server");
    let ran: Vec<i32> =
        sqlx::query_scalar("select version from ran").fetch_all(layer.api()).await.expect("an answer");
    assert_eq!(ran, [1, 2, 3]);
    // One line for each failed attempt.
    let attempts = seen("attempt=");
    for (number, line) in attempts.iter().enumerate() {
        assert!(line.contains(&format!("attempt={} ", number + 1)), "{number}: {line}");
    }
    assert!(layer.shutdown(PATIENCE).await.is_clean());
    drop(server);
}

/// Makes the data of a server that recovers from an archive at its next start.
async fn made_to_recover(data: &Path) {
    let data = data.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        let server = db_embedded::Server::kept(data).start().expect("a server");
        let folder = server.data_dir().to_owned();
        server.release().expect("stopped");
        let signal = folder.join("recovery.signal");
        fs::write(&signal, "").expect("written");
        let owner = fs::metadata(&folder).expect("the data folder");
        chown(&signal, Some(owner.uid()), Some(owner.gid())).expect("handed over");
    });
    made.await.expect("no panic");
}

/// Keeps new sessions out of the server while existing ones go on: a new session waits for this lock before it has started.
struct Gate(PgConnection);

impl Gate {
    async fn close(db: &TestDb) -> Self {
        let mut gate = db.options().application_name("db-testkit").connect().await.expect("a connection");
        sqlx::raw_sql("begin; lock table pg_database in access exclusive mode")
            .execute(&mut gate)
            .await
            .expect("locked");
        Self(gate)
    }

    /// Waits until `count` new sessions wait for the lock.
    async fn until(&mut self, count: i64) {
        let waiting = "select count(distinct pid) from pg_locks
                       where not granted and relation = 'pg_database'::regclass
                           and pid not in (select pid from pg_stat_get_activity(null) where datid <> 0)";
        let started = Instant::now();
        loop {
            let seen: i64 = sqlx::query_scalar(waiting).fetch_one(&mut self.0).await.expect("a count");
            if seen >= count {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{seen} of {count} wait at the gate");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_at_each_step_is_opened_as_soon_as_it_is_back() {
    let log = Log::of_this_process("trace");
    let builder = db_embedded::Server::throwaway()
        .setting("synchronous_commit", "on")
        // Autovacuum workers would wait for the lock, too, and be counted.
        .setting("autovacuum", "off");
    let server = TestServer::start(builder).await.expect("a server");
    let db = server.empty().await.expect("a database");
    let pool = PoolOptions::named("gc").min_idle(1);

    // The first step: reaching the server.
    sqlx::raw_sql("create table obstacle ()").execute(&db.pool()).await.expect("an obstacle");
    let mut gate = Gate::close(&db).await;
    let opening = spawn(options(&config(&db)).await.pool(pool));
    gate.until(1).await;
    server.stop(Stop::Kill).await.expect("stopped");
    server.until_up().await.expect("up");

    // During the migrations: the restart also removes their lock.
    let waits = |sessions: &[db_testkit::Session]| {
        sessions.iter().any(|it| it.wait.as_deref() == Some("Timeout: PgSleep"))
    };
    db.until_sessions("a migration waits", waits).await;
    server.stop(Stop::Immediate).await.expect("stopped");
    server.until_up().await.expect("up");

    // A second run, so that the gate closes before the pools and the bus connect.
    db.until_sessions("a migration waits", waits).await;
    let mut blocker = db.options().application_name("db-testkit").connect().await.expect("a connection");
    let mut gate = Gate::close(&db).await;
    sqlx::raw_sql("drop table obstacle").execute(&mut blocker).await.expect("out of the way");
    blocker.close().await.expect("closed");
    // The pool's idle connection and the bus's.
    gate.until(2).await;
    server.stop(Stop::Fast).await.expect("stopped");
    server.until_up().await.expect("up");
    let up = Instant::now();

    let layer = joined(opening).await;
    assert!(up.elapsed() < Duration::from_secs(10), "{:?} after the server", up.elapsed());
    for step in ["step=\"migrate\"", "step=\"listen\""] {
        assert!(!log.lines_with(&["a step failed and is tried again", db.name(), step]).is_empty(), "{step}");
    }
    is_whole(layer, &db).await;
}

#[db_testkit::test]
async fn a_link_that_is_cut_at_any_statement_costs_one_more_attempt(_db: TestDb) {
    let log = Log::of_this_process("trace");
    // At least one statement of each step: room, history, session, lock, a migration, its record with the commit, LISTEN.
    for text in [
        "superuser_reserved_connections",
        "to_regclass",
        "pg_is_in_recovery",
        "pg_try_advisory_lock",
        "insert into ran values (3)",
        "insert into public._sqlx_migrations",
        "LISTEN",
    ] {
        for after in [false, true] {
            let db = TestDb::empty().await.expect("a database");
            let proxy = Proxy::start(&db).expect("a proxy");
            let through = Config::from_url(&proxy.url()).expect("an address");
            let options = options(&through).await.direct(Some(through.clone()));
            let options =
                if text == "superuser_reserved_connections" { options.direct(None) } else { options };
            if after {
                proxy.cut_answer_to(text);
            } else {
                proxy.cut_before(text);
            }

            let layer = joined(spawn(options)).await;

            let lines = log.lines_with(&["a step failed and is tried again", db.name()]);
            assert_eq!(lines.len(), 1, "{text}, {after}: {lines:?}");
            is_whole(layer, &db).await;
        }
    }
}

#[db_testkit::test]
async fn a_final_error_ends_the_opening_at_once_at_each_step(db: TestDb) {
    let log = Log::of_this_process("trace");
    let nowhere = config(&db).with_database(format!("no_{}", db.name()));
    let is_unknown = |failure: &ConnectFailure| matches!(failure, ConnectFailure::NoSuchDatabase(_));

    let first = db_layer::open(options(&nowhere).await).await;
    assert!(matches!(&first, Err(OpenError::Connect(error)) if is_unknown(error.failure())), "{first:?}");
    let direct = options(&config(&db)).await.direct(Some(nowhere.clone()));
    let migrating = db_layer::open(direct).await;
    assert!(
        matches!(&migrating, Err(OpenError::Migrate(db_migrate::Error::Connect(error))) if is_unknown(error.failure())),
        "{migrating:?}"
    );
    let mut direct = options(&config(&db)).await.direct(Some(nowhere));
    direct.migrations = None;
    let listening = db_layer::open(direct).await;
    assert!(
        matches!(&listening, Err(OpenError::Bus(db_notify::OpenError::Listen { failure, .. })) if is_unknown(failure)),
        "{listening:?}"
    );
    // Nothing was retried.
    assert_eq!(log.lines_with(&["pause_ms", db.name()]), [""; 0]);
    is_clean(&db).await;
}

#[db_testkit::test]
async fn all_steps_have_one_deadline_together(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let gone = Config::from_url(&proxy.url()).expect("an address");
    proxy.refuse();
    let wait = long().deadline(Duration::from_millis(300));
    for migrate in [true, false] {
        let mut options = options(&config(&db)).await.wait(wait).direct(Some(gone.clone()));
        if !migrate {
            options.migrations = None;
        }
        let (started, before) = (Instant::now(), proxy.refused());

        let opening = tokio::time::timeout(PATIENCE, db_layer::open(options));
        let error = opening.await.expect("in time").expect_err("nobody is there");

        assert!(matches!(&error, OpenError::Migrate(_)) == migrate, "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert!(proxy.refused() > before + 1, "it was tried again");
    }
    is_clean(&db).await;
}

#[db_testkit::test]
async fn a_later_step_has_no_more_time_than_an_earlier_one_has_left(db: TestDb) {
    let (first, second) = (Proxy::start(&db).expect("a proxy"), Proxy::start(&db).expect("a proxy"));
    let [through, direct] = [&first, &second].map(|it| Config::from_url(&it.url()).expect("an address"));
    let wait = long().deadline(Duration::from_secs(4));
    let options = options(&through).await.wait(wait).direct(Some(direct));
    first.refuse();
    second.refuse();
    let started = Instant::now();
    let opening = spawn(options);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(second.refused(), 0);
    first.heal();

    let error = opening.await.expect("no panic").expect_err("nobody is there");

    assert!(matches!(error, OpenError::Migrate(_)) && second.refused() > 0, "{error:?}");
    // With a deadline of its own, the later step would take 7 s.
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_free_connection_is_waited_for() {
    let log = Log::of_this_process("trace");
    let builder = db_embedded::Server::throwaway().setting("max_connections", "6");
    let server = TestServer::start(builder).await.expect("a server");
    let db = server.empty().await.expect("a database");
    let mut taken = Vec::new();
    while let Ok(connection) = db.options().application_name("db-testkit").connect().await {
        taken.push(connection);
    }

    // `instances(0)`, or the server would be refused as too small. The connections are opened on demand.
    let opening = spawn(options(&config(&db)).await.instances(0));
    until("attempts found no free connection", async || {
        log.lines_with(&["database not reached yet", db.name(), "too many clients"]).len() >= 2
    })
    .await;
    assert!(!opening.is_finished());
    for connection in taken {
        connection.close().await.expect("closed");
    }

    is_whole(joined(opening).await, &db).await;
}

#[db_testkit::test]
async fn dropped_wherever_it_waits_it_leaves_nothing_behind(db: TestDb) {
    let pool = || PoolOptions::named("gc").min_idle(2);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    // The proxy delays answers, or one may be there before it is awaited.
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.latency(Duration::from_millis(1));
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let mut polls = 0;
    let layer = loop {
        let opening = db_layer::open(options(&config).await.pool(pool()));
        if let Some(opened) = poll_then_drop(opening, polls).await {
            break opened.expect("opened");
        }
        is_clean(&db).await;
        until(&format!("no task is left after {polls} polls"), async || tasks() <= before).await;
        polls += 1;
    };
    assert!(polls > 10, "{polls} polls are too few to reach each await");
    is_whole(layer, &db).await;
}
