//! Steps that are written in Rust, between files of SQL.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use db_core::{Config, Tx};
use db_migrate::batches::{BatchError, Batches, Change, Pace, Row};
use db_migrate::check::Check;
use db_migrate::{DataStep, Error, Migrations, Migrator, Outcome, RowsLeft, SCHEMA, State, StepError};
use db_testkit::{TestDb, until};
use harness::{Log, Process};
use sqlx::migrate::MigrateError;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::batches::{as_role, count};
use crate::{config, execute, exists, folder, locks};

/// What a file of a step is, as `db-migrate new --step` writes it.
const RAISES: &str = "do $$ begin raise exception 'the program runs this'; end $$;";

fn step(name: &str) -> String {
    format!("-- db-migrate: step {name}\n{RAISES}")
}

fn in_batches(name: &str) -> String {
    format!("-- no-transaction\n{}", step(name))
}

/// A table, a step, and a file that needs what the step does.
fn files() -> TempDir {
    folder(&[
        (
            "1_people.up.sql",
            "create table people (id int primary key, name text, last text); insert into people values (1, 'Ada Lovelace')",
        ),
        ("1_people.down.sql", "drop table people"),
        ("2_split.up.sql", &step("split")),
        ("2_split.down.sql", &step("join")),
        ("3_needed.up.sql", "alter table people alter last set not null"),
        ("3_needed.down.sql", "alter table people alter last drop not null"),
    ])
}

async fn of(files: &TempDir) -> Migrations {
    Migrations::from_dir(files.path()).await.expect("migrations")
}

struct Split;

impl DataStep for Split {
    async fn run(&self, tx: &mut Tx) -> Result<(), StepError> {
        let people: Vec<(i32, String)> =
            sqlx::query_as("select id, name from people").fetch_all(&mut *tx).await?;
        for (id, name) in people {
            let last = name.split(' ').next_back();
            let update = sqlx::query("update people set last = $2 where id = $1").bind(id).bind(last);
            update.execute(&mut *tx).await?;
        }
        Ok(())
    }
}

/// Statements, as a step.
struct Sql(&'static str);

impl DataStep for Sql {
    async fn run(&self, tx: &mut Tx) -> Result<(), StepError> {
        Ok(sqlx::raw_sql(self.0).execute(&mut *tx).await.map(drop)?)
    }
}

fn with_steps(migrations: Migrations) -> Migrations {
    migrations.with_step("split", Split).with_step("join", Sql("update people set last = null"))
}

async fn last_name(db: &TestDb) -> Option<String> {
    sqlx::query_scalar("select last from people").fetch_one(&db.pool()).await.expect("a row")
}

async fn outcomes(migrations: &Migrations, config: &Config, version: i64) -> Vec<Outcome> {
    let history = migrations.history(config).await.expect("a history");
    history.iter().filter(|attempt| attempt.version == version).map(|attempt| attempt.outcome).collect()
}

#[db_testkit::test]
async fn a_step_runs_between_files_in_one_transaction_with_its_record_and_sqlx_stops_at_it(db: TestDb) {
    let files = files();
    let theirs = Migrator::new(files.path()).await.expect("a migrator");
    let pool = sqlx::PgPool::connect_with(db.options()).await.expect("a pool");
    let error = theirs.run(&pool).await.expect_err("sqlx does not have the step");
    assert!(error.to_string().contains("the program runs this"), "{error}");
    pool.close().await;
    let ours = with_steps(of(&files).await);

    let plan = ours.plan_up(&config(&db), None).await.expect("a plan");
    assert_eq!((plan.steps[0].version, plan.steps[0].step.as_deref()), (2, Some("split")));
    assert!(plan.problems.is_empty(), "{:?}", plan.problems);
    let report = ours.up(&config(&db)).await.expect("up");

    assert_eq!((report.changed, report.version), (vec![2, 3], 3));
    assert_eq!(last_name(&db).await.as_deref(), Some("Lovelace"));
    assert_eq!(outcomes(&ours, &config(&db), 2).await, [Outcome::Done]);
    let took: i64 = sqlx::query_scalar("select execution_time from _sqlx_migrations where version = 2")
        .fetch_one(&db.pool())
        .await
        .expect("a time");
    assert!(took > 0);
    theirs.run(&db.pool()).await.expect("sqlx finds nothing to do");

    let report = ours.down_to(&config(&db), 1).await.expect("down");
    assert_eq!((report.changed, last_name(&db).await), (vec![3, 2], None));
    until("no lock is left", async || locks(&db).await == 0).await;
}

#[db_testkit::test]
async fn a_step_that_fails_is_rolled_back_named_and_run_again(db: TestDb) {
    let files = files();
    let to = config(&db);
    let failing = "update people set last = 'x'; insert into people values (1)";
    let failing = of(&files).await.with_step("split", Sql(failing));

    let error = failing.up(&to).await.expect_err("the step fails");

    let text = error.to_string();
    assert!(text.starts_with("migration 2 failed in its step `split`: "), "{text}");
    assert!(text.contains("duplicate key") && text.contains("23505"), "{text}");
    assert!(matches!(error, Error::Step { version: 2, .. }));
    assert_eq!(last_name(&db).await, None);
    let attempt = failing.history(&to).await.expect("a history").pop().expect("an attempt");
    assert_eq!((attempt.outcome, attempt.sqlstate.as_deref()), (Outcome::Failed, Some("23505")));

    let ours = with_steps(of(&files).await);
    assert_eq!(ours.up(&to).await.expect("up").changed, [2, 3]);
    assert_eq!(outcomes(&ours, &to, 2).await, [Outcome::Failed, Outcome::Done]);
}

/// Constraints that are checked at the end of the transaction fail it as a step's own statements do.
#[db_testkit::test]
async fn what_only_the_commit_refuses_leaves_nothing_either(db: TestDb) {
    let files = folder(&[
        (
            "1_pair.sql",
            "create table pair (id int primary key, other int references pair deferrable initially deferred)",
        ),
        ("2_row.sql", &step("row")),
    ]);
    let ours = of(&files).await.with_step("row", Sql("insert into pair values (1, 2)"));

    let error = ours.up(&config(&db)).await.expect_err("there is no 2");

    assert!(error.to_string().contains("23503"), "{error}");
    assert_eq!(count(&db.pool(), "select count(*) from pair").await, 0);
    assert_eq!(count(&db.pool(), "select count(*) from _sqlx_migrations").await, 1);
}

/// Changes something, and then does not end.
struct Hangs;

impl DataStep for Hangs {
    async fn run(&self, tx: &mut Tx) -> Result<(), StepError> {
        sqlx::query("update people set last = 'hung'").execute(&mut *tx).await?;
        std::future::pending().await
    }
}

struct Panics;

impl DataStep for Panics {
    async fn run(&self, tx: &mut Tx) -> Result<(), StepError> {
        sqlx::query("update people set last = 'panic'").execute(&mut *tx).await?;
        panic!("a mistake in the step");
    }
}

#[db_testkit::test]
async fn a_step_that_panics_or_is_dropped_leaves_nothing_and_the_next_run_does_it(db: TestDb) {
    let files = files();
    let to = config(&db);
    let panics = of(&files).await.with_step("split", Panics);
    let panicked = tokio::spawn({
        let to = to.clone();
        async move { panics.up(&to).await }
    });
    assert!(panicked.await.expect_err("it panics").is_panic());

    let hangs = of(&files).await.with_step("split", Hangs);
    tokio::select! {
        done = hangs.up(&to) => panic!("{done:?}"),
        _ = db.until_sessions("it hangs", |all| all.iter().any(|it| it.query.contains("'hung'") && it.state == "idle in transaction")) => {}
    }

    let ours = with_steps(of(&files).await);
    assert_eq!(ours.up(&to).await.expect("up").changed, [2, 3]);
    assert_eq!(last_name(&db).await.as_deref(), Some("Lovelace"));
    assert_eq!(outcomes(&ours, &to, 2).await, [Outcome::Open, Outcome::Open, Outcome::Done]);
    until("no lock is left", async || locks(&db).await == 0).await;
}

/// An error of the program's own.
#[derive(Debug, thiserror::Error)]
#[error("cannot change the people")]
struct Ours(#[source] sqlx::Error);

/// Runs statements, and counts how often.
struct Counted {
    runs: Arc<AtomicU32>,
    may_run_again: bool,
    sql: &'static str,
}

impl DataStep for Counted {
    async fn run(&self, tx: &mut Tx) -> Result<(), StepError> {
        self.runs.fetch_add(1, Relaxed);
        sqlx::raw_sql(self.sql).execute(&mut *tx).await.map_err(Ours)?;
        Ok(())
    }

    fn may_run_again(&self) -> bool {
        self.may_run_again
    }
}

#[db_testkit::test]
async fn a_step_that_waits_for_a_lock_gives_way_and_is_tried_again_if_it_may_be(db: TestDb) {
    let files = files();
    let to = config(&db);
    of(&files).await.up_to(&to, 1).await.expect("up");
    let counted = async |may_run_again: bool| {
        let runs = Arc::<AtomicU32>::default();
        let sql = "update people set last = 'counted'";
        let step = Counted { runs: Arc::clone(&runs), may_run_again, sql };
        let ours = of(&files).await.with_step("split", step);
        (ours.with_lock_timeout(Duration::from_millis(100)), runs)
    };
    let mut writer = db.pool().begin().await.expect("begun");
    sqlx::query("select from people for update").execute(&mut *writer).await.expect("locked");

    let (once, runs) = counted(false).await;
    let once = once.with_patience(Duration::from_secs(1));
    let error = once.up(&to).await.expect_err("it may not run again");
    assert!(matches!(error, Error::Step { may_run_again: false, .. }), "{error}");
    assert_eq!(runs.load(Relaxed), 1);

    let (never, runs) = counted(true).await;
    let error = never.with_patience(Duration::from_millis(500)).up(&to).await.expect_err("the writer stays");
    assert!(
        error.to_string().contains(
            "cannot change the people: canceling statement due to lock timeout (55P03); it waited for"
        ),
        "{error}"
    );
    let Error::Blocked { version: 2, tries, blockers, .. } = error else { panic!("{error}") };
    assert_eq!((tries, blockers.len()), (runs.load(Relaxed), 1));

    let (again, runs) = counted(true).await;
    let (report, ()) = tokio::join!(again.up(&to), async {
        until("it was tried twice", async || runs.load(Relaxed) >= 2).await;
        writer.rollback().await.expect("rolled back");
    });
    assert_eq!(report.expect("up").changed, [2, 3]);
    assert_eq!(last_name(&db).await.as_deref(), Some("counted"));
}

/// The step has not begun then.
#[db_testkit::test]
async fn a_step_that_may_not_run_again_waits_for_its_record(db: TestDb) {
    let files = files();
    let to = config(&db);
    of(&files).await.up_to(&to, 1).await.expect("up");
    let runs = Arc::<AtomicU32>::default();
    let sql = "update people set last = 'once'";
    let step = Counted { runs: Arc::clone(&runs), may_run_again: false, sql };
    let ours = of(&files).await.with_step("split", step).with_lock_timeout(Duration::from_millis(100));
    let mut other = db.pool().begin().await.expect("begun");
    sqlx::query("lock table _sqlx_migrations in share mode").execute(&mut *other).await.expect("locked");
    let log = Log::of_this_process("db_migrate=warn");

    let (report, ()) = tokio::join!(ours.up(&to), async {
        let told = ["a migration gave way", "version=2", &format!("process {}", pid(&mut other).await)];
        until("it has given way", async || log.count(&told) > 0).await;
        other.rollback().await.expect("rolled back");
    });

    assert_eq!(report.expect("up").changed, [2, 3]);
    assert_eq!((runs.load(Relaxed), last_name(&db).await.as_deref()), (1, Some("once")));
}

async fn pid(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.expect("a number")
}

#[db_testkit::test]
async fn a_step_whose_connection_is_lost_runs_again_if_it_may(db: TestDb) {
    let files = files();
    let to = config(&db);
    of(&files).await.up_to(&to, 1).await.expect("up");
    // It ends its own session while there is such a table.
    execute(&db, "create table ended ()").await;
    let sql = "update people set last = 'again'; select pg_terminate_backend(pg_backend_pid()) where to_regclass('ended') is not null";
    for may_run_again in [false, true] {
        let runs = Arc::<AtomicU32>::default();
        let ours =
            of(&files).await.with_step("split", Counted { runs: Arc::clone(&runs), may_run_again, sql });
        let (done, ()) = tokio::join!(ours.up(&to), async {
            if may_run_again {
                until("it has run twice", async || runs.load(Relaxed) > 1).await;
                execute(&db, "drop table ended").await;
            }
        });

        if may_run_again {
            assert_eq!(done.expect("once it may").changed, [2, 3]);
            assert_eq!(last_name(&db).await.as_deref(), Some("again"));
        } else {
            assert!(matches!(done.expect_err("lost"), Error::Step { may_run_again: false, .. }));
            assert_eq!((runs.load(Relaxed), last_name(&db).await), (1, None));
        }
    }
}

/// Waits until it is told to go on.
struct Waits {
    runs: Arc<AtomicU32>,
    go_on: Arc<Notify>,
}

impl DataStep for Waits {
    async fn run(&self, tx: &mut Tx) -> Result<(), StepError> {
        self.runs.fetch_add(1, Relaxed);
        sqlx::query("update people set last = coalesce(last, '') || 'once'").execute(&mut *tx).await?;
        tokio::time::timeout(Duration::from_mins(1), self.go_on.notified()).await?;
        Ok(())
    }
}

/// The migration lock is lost with its session, and the step's own session lives on.
#[db_testkit::test]
async fn the_next_holder_of_the_lock_waits_for_the_step_of_the_one_before_and_does_not_do_it_again(
    db: TestDb,
) {
    let files = files();
    let to = config(&db);
    let (runs, go_on) = (Arc::<AtomicU32>::default(), Arc::new(Notify::new()));
    let ours = async || {
        let step = Waits { runs: Arc::clone(&runs), go_on: Arc::clone(&go_on) };
        of(&files).await.with_step("split", step).with_lock_timeout(Duration::from_millis(100))
    };
    let (first, next) = (ours().await, ours().await);

    let (first, next, ()) = tokio::join!(
        first.up(&to),
        async {
            until("the first runs its step", async || runs.load(Relaxed) == 1).await;
            assert_eq!(count(&db.pool(), &end_the_holder(&db)).await, 1);
            next.up(&to).await
        },
        async {
            let blocked = "insert into public._sqlx_migrations";
            db.until_sessions("the next one waits", |all| {
                all.iter().any(|it| {
                    it.query.contains(blocked)
                        && it.wait.as_deref().is_some_and(|wait| wait.starts_with("Lock"))
                })
            })
            .await;
            go_on.notify_one();
        }
    );

    assert_eq!(next.expect("the next").version, 3);
    assert_eq!(first.expect("the first").version, 3);
    assert_eq!((runs.load(Relaxed), last_name(&db).await.as_deref()), (1, Some("once")));
}

#[db_testkit::test]
async fn a_step_that_replaces_the_migration_table_is_told(db: TestDb) {
    let files = files();
    let moves = "alter table _sqlx_migrations rename to moved; create table _sqlx_migrations (like moved including all)";

    let error = of(&files).await.with_step("split", Sql(moves)).up(&config(&db)).await.expect_err("moved");

    assert!(matches!(error, Error::Moved { version: 2, .. }), "{error}");
}

/// Before and after the end of the step's own work, its record and its commit.
#[db_testkit::test]
async fn a_connection_that_is_lost_at_the_end_of_a_step_is_replaced_if_the_step_may_run_again(_db: TestDb) {
    for text in ["set constraints all immediate", "COMMIT"] {
        for after in [false, true] {
            for may_run_again in [true, false] {
                let db = TestDb::empty().await.expect("a database");
                let files = files();
                of(&files).await.up_to(&config(&db), 1).await.expect("up");
                let proxy = db_testkit::Proxy::start(&db).expect("a proxy");
                let through = Config::from_url(&proxy.url()).expect("an address");
                let runs = Arc::<AtomicU32>::default();
                let sql = "update people set last = coalesce(last, '') || 'once'";
                let step = Counted { runs: Arc::clone(&runs), may_run_again, sql };
                let ours = of(&files).await.with_step("split", step);
                if after {
                    proxy.cut_answer_to(text);
                } else {
                    proxy.cut_before(text);
                }

                let done = ours.up(&through).await;

                let case = format!("{text}, {after}, {may_run_again}: {done:?}");
                if may_run_again {
                    assert_eq!(done.expect(&case).version, 3, "{case}");
                } else {
                    assert_eq!(runs.load(Relaxed), 1, "{case}");
                    ours.up(&config(&db)).await.expect(&case);
                }
                assert_eq!(last_name(&db).await.as_deref(), Some("once"), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn limits_of_the_role_do_not_end_a_step() {
    let setup = "alter role app set statement_timeout = '200ms'; alter role app set idle_in_transaction_session_timeout = '200ms';
                 grant create on schema public to app;
                 do $$ begin
                     if current_setting('server_version_num')::int4 >= 170000 then
                         alter role app set transaction_timeout = '200ms'; alter role app set idle_session_timeout = '200ms';
                     end if;
                 end $$";
    let (_db, _server, config) = as_role(setup).await;
    let files = folder(&[("1_slow.sql", &step("slow"))]);

    let ours = of(&files).await.with_step("slow", Sql("select pg_sleep(0.6)"));

    assert_eq!(ours.up(&config).await.expect("up").changed, [1]);
}

#[db_testkit::test]
async fn batches_of_a_process_that_has_lost_the_lock_are_waited_for(db: TestDb) {
    let files = things(2000);
    let to = config(&db);
    let slow = async || {
        let slow = fill().pace(Pace::flat_out().rows_per_second(Some(1000)));
        of(&files).await.with_batches("fill", slow)
    };
    let (first, next) = (slow().await, slow().await);

    let (first, next) = tokio::join!(first.up(&to), async {
        until("the table is there", async || exists(&db, "batch_runs").await).await;
        let begun = "select count(*) from batch_runs";
        until("the first fills", async || count(&db.pool(), begun).await > 0).await;
        assert_eq!(count(&db.pool(), &end_the_holder(&db)).await, 1);
        next.up(&to).await
    });

    assert_eq!((first.expect("the first").version, next.expect("the next").version), (3, 3));
    assert_eq!(count(&db.pool(), "select count(*) from things where length <> 32").await, 0);
}

#[db_testkit::test]
async fn the_history_has_the_code_of_batches_that_failed(db: TestDb) {
    let files = things(100);
    let to = config(&db);
    let ours = of(&files).await.with_batches("fill", fill());
    ours.up_to(&to, 1).await.expect("up");
    execute(&db, "alter table things add check (length < 5)").await;

    ours.up(&to).await.expect_err("too long");

    let attempt = ours.history(&to).await.expect("a history").pop().expect("an attempt");
    assert_eq!((attempt.version, attempt.sqlstate.as_deref()), (2, Some("23514")));
}

#[db_testkit::test]
async fn a_program_without_the_step_or_a_file_that_others_would_run_is_refused_before_anything_runs(
    db: TestDb,
) {
    let to = config(&db);
    let all = |name: &str, sql: &str| folder(&[("1_one.sql", "create table one ()"), (name, sql)]);
    let refused = async |files: &TempDir, expected: &str| {
        let ours = of(files).await.with_step("here", Split).with_batches("rows", fill());
        let error = ours.up(&to).await.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        let problems = ours.plan_up(&to, None).await.expect("a plan").problems;
        assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [error]);
        assert!(!exists(&db, "one").await, "{expected}");
    };

    refused(
        &all("2_x.sql", &step("gone")),
        "migration 2 is the step `gone`, which this program does not have",
    )
    .await;
    let comment = format!("-- do this if it is needed\n{}", step("gone-if-do"));
    refused(&all("2_x.sql", &comment), "migration 2 is the step `gone-if-do`, which").await;
    refused(&all("2_x.sql", &in_batches("here")), "migration 2 is the step `here`: the file begins").await;
    refused(&all("2_x.sql", &step("rows")), "migration 2 is the step `rows`: the file begins").await;
    for passes in [
        "",
        "select 1",
        "do $$ begin null; end $$",
        "create table x (); do $$ begin raise exception 'x'; end $$",
        "do $$ begin -- raise exception 'x';\n end $$",
    ] {
        let sql = format!("select 0 where false; -- the rest\n{passes}");
        let sql = sql.replace("select 0 where false; -- the rest", "-- db-migrate: step here");
        refused(&all("2_x.sql", &sql), "2_x.sql, line 1, column 1: the rest of a file with").await;
    }
    let repeatable = all("2_x.sql", "select 1");
    std::fs::create_dir(repeatable.path().join("repeatable")).expect("a folder");
    std::fs::write(repeatable.path().join("repeatable/r.sql"), step("here")).expect("written");
    refused(&repeatable, "repeatable/r.sql, line 1, column 1: a repeatable file cannot be a step").await;
}

#[db_testkit::test]
async fn where_there_is_nothing_to_do_a_program_without_the_step_passes_as_sqlx_does(db: TestDb) {
    let if_any =
        "do $$ begin if exists (select from people) then raise exception 'people are there'; end if; end $$";
    for before in ["-- db-migrate: step gone", "-- no-transaction\n-- db-migrate: step gone"] {
        let files = folder(&[
            ("1_people.sql", "create table people (id int)"),
            ("2_gone.sql", &format!("{before}\n{if_any}")),
            ("3_more.sql", "create table more ()"),
        ]);
        let to = config(&db);
        let ours = of(&files).await;
        ours.up_to(&to, 1).await.expect("up");

        execute(&db, "insert into people values (1)").await;
        let error = ours.up(&to).await.expect_err("somebody is there").to_string();
        assert!(error.starts_with("migration 2 failed") && error.contains("people are there"), "{error}");
        execute(&db, "delete from people").await;
        assert_eq!(ours.up(&to).await.expect("nobody is there").changed, [2, 3]);
        execute(&db, "drop table people, more, _sqlx_migrations, _sqlx_migrations_history").await;
    }
}

#[tokio::test]
async fn a_step_runs_as_the_role_of_the_migrations_and_its_record_is_written_by_the_one_that_connects() {
    let setup = "create role owner; grant owner to app; create table seen (by_role text); grant all on seen to owner;
                 create schema app authorization app; alter role app set search_path = app, public; grant usage on schema app to owner; grant create on schema public to owner";
    let (db, _server, config) = as_role(setup).await;
    let files = folder(&[
        ("1_seen.sql", &step("seen")),
        ("2_made.sql", "create table public.made ()"),
        ("3_rows.sql", &in_batches("rows")),
    ]);
    execute(&db, "create table rows (id int primary key, by_role text default ''); insert into rows values (1); alter table rows owner to owner;
                  create function by_role() returns trigger language plpgsql as $$ begin new.by_role = current_user; return new; end $$;
                  create trigger by_role before update on rows for each row execute function by_role()").await;
    let rows =
        Batches::new("rows", "public.rows", |_| Change::To(vec![Some(b"x".to_vec())])).writes("by_role");
    let ours = of(&files).await.with_role("owner").with_batches("rows", rows.pending("by_role = ''"));
    let ours = ours.with_step("seen", Sql("insert into seen values (current_user)"));

    assert_eq!(ours.up(&config).await.expect("up").changed, [1, 2, 3]);

    let by: Vec<String> = sqlx::query_scalar("select by_role from seen union all select by_role from rows union all select tableowner from pg_tables where tablename = 'made'")
        .fetch_all(&db.pool())
        .await
        .expect("rows");
    assert_eq!(by, ["owner", "owner", "owner"]);
    let history = ours.history(&config).await.expect("a history");
    assert!(history.iter().all(|attempt| attempt.done_by == "app"), "{history:?}");
}

/// Ends the session with the migration lock.
fn end_the_holder(db: &TestDb) -> String {
    let key = 0x3d32_ad9e * i64::from(crc32fast::hash(db.name().as_bytes()));
    format!(
        "select count(pg_terminate_backend(pid)) from pg_locks
         where locktype = 'advisory' and objsubid = 1 and (classid::bigint << 32) | objid::bigint = {key}"
    )
}

/// Fills the length of each name, where it is not there.
fn fill() -> Batches {
    let length = |row: &Row| match (row.text(0), row.text(1)) {
        (None, Some(name)) => Change::To(vec![Some(name.len().to_string().into_bytes())]),
        _ => Change::Unchanged,
    };
    Batches::new("fill", "things", length).writes("length").reads("name").pending("length is null")
}

/// `rows` rows, their lengths filled in batches, and a file that needs them.
fn things(rows: u32) -> TempDir {
    let things = format!(
        "create table things (id int primary key, name text not null, length int) with (fillfactor = 60);
         insert into things select n, md5(n::text) from generate_series(1, {rows}) n; analyze things; {}",
        SCHEMA[0].up
    );
    folder(&[
        ("1_things.sql", &things),
        ("2_fill.sql", &in_batches("fill")),
        ("3_needed.sql", "alter table things alter length set not null"),
    ])
}

#[db_testkit::test]
async fn rows_that_cannot_be_changed_fail_the_version_and_the_next_run_goes_on(db: TestDb) {
    let files = things(1000);
    let to = config(&db);
    let refusing = |row: &Row| match row.key() {
        [id] if id == "7" => Change::Cannot("seven is not ours".to_owned()),
        _ => Change::To(vec![Some(b"1".to_vec())]),
    };
    let refusing = Batches::new("fill", "things", refusing).writes("length").pending("length is null");

    let error = of(&files).await.with_batches("fill", refusing).up(&to).await.expect_err("seven");

    let expected = "migration 2 failed in its step `fill`: rows that cannot be changed: 1, such as the row (7) cannot be changed: seven is not ours";
    assert_eq!(error.to_string(), expected);
    let Error::Step { cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.downcast_ref::<RowsLeft>().expect("rows").0.refused, 1);
    let states = async |migrations: &Migrations| -> Vec<State> {
        migrations.status(&to).await.expect("a status").iter().map(|status| status.state).collect()
    };
    let ours = of(&files).await.with_batches("fill", fill());
    assert_eq!(states(&ours).await, [State::Applied, State::UnderWay, State::Pending]);
    let pool = sqlx::PgPool::connect_with(db.options()).await.expect("a pool");
    let theirs = Migrator::new(files.path()).await.expect("a migrator").run(&pool).await;
    assert!(matches!(theirs, Err(MigrateError::Dirty(2))), "{theirs:?}");
    pool.close().await;

    assert_eq!(ours.up(&to).await.expect("up").changed, [2, 3]);
    assert_eq!(count(&db.pool(), "select count(*) from things where length = 1").await, 999);
    assert_eq!(outcomes(&ours, &to, 2).await, [Outcome::Failed, Outcome::Done]);
}

#[db_testkit::test]
async fn batches_that_do_not_fit_their_table_leave_no_version_under_way(db: TestDb) {
    let files = things(10);
    let misfit = Batches::new("fill", "things", |_| Change::Unchanged).writes("no_column");
    let ours = of(&files).await.with_batches("fill", misfit);

    let error = ours.up(&config(&db)).await.expect_err("no such column");

    let Error::Step { cause, .. } = &error else { panic!("{error}") };
    assert!(matches!(cause.downcast_ref(), Some(BatchError::Misfit { .. })), "{error}");
    let status = ours.status(&config(&db)).await.expect("a status");
    assert_eq!(status[1].state, State::Pending);
}

#[db_testkit::test]
async fn batches_end_when_the_session_with_the_lock_is_lost_and_go_on_with_a_new_one(db: TestDb) {
    let files = things(3000);
    let to = config(&db);
    let slow = fill().pace(Pace::flat_out().rows_per_second(Some(1000)));
    let ours = of(&files).await.with_batches("fill", slow);
    let filled = async || {
        count(&db.pool(), "select count(length) from things where to_regclass('things') is not null").await
    };

    let (report, ()) = tokio::join!(ours.up(&to), async {
        until("the table is there", async || exists(&db, "things").await).await;
        until("some rows are filled", async || filled().await > 0).await;
        assert_eq!(count(&db.pool(), &end_the_holder(&db)).await, 1);
    });

    assert_eq!(report.expect("up").changed, [1, 2, 3]);
    assert_eq!(count(&db.pool(), "select count(*) from things where length <> 32").await, 0);
}

#[db_testkit::test]
async fn the_check_runs_the_programs_steps_and_names_those_that_it_does_not_have(_db: TestDb) {
    let files = files();
    let all = [with_steps(of(&files).await), of(&files).await];
    let mut seen = Vec::new();
    for migrations in &all {
        let checked = Check::new(migrations).run().await.expect("checked");
        let findings = checked.files.iter().flat_map(|file| &file.findings);
        let rules: Vec<_> = findings.map(|finding| finding.rule.name()).collect();
        seen.push((checked.files[1].step_not_run.clone(), rules));
    }
    // Without the step, the last name is null in the row that the first file has made.
    let expected = [(None, vec!["adding-not-nullable-field"]), (Some("split".to_owned()), vec!["up-fails"])];
    assert_eq!(seen, expected);
}

const ROWS: u32 = 1_000_000;
const KILLS: u32 = 5;

/// The process: it migrates.
#[tokio::test]
async fn a_process_that_fills() {
    let Some((address, mut orders)) = harness::told() else { return };
    let config = Config::from_url(&address).expect("an address");
    let folder = orders.recv().await.expect("a folder");
    let pace = Pace::flat_out().workers(2);
    let migrations = Migrations::from_dir(&folder).await.expect("migrations");
    harness::answer("begun");
    migrations.with_batches("fill", fill().pace(pace)).up(&config).await.expect("up");
    harness::answer("done");
}

#[db_testkit::test]
async fn a_million_rows_are_filled_while_others_write_and_the_process_is_killed(db: TestDb) {
    let files = things(ROWS);
    of(&files).await.up_to(&config(&db), 1).await.expect("up");
    let pool = db.pool();
    let stop = Arc::<AtomicBool>::default();
    let writer = tokio::spawn({
        let (options, stop) = (db.options(), Arc::clone(&stop));
        async move {
            let mut connection = PgConnection::connect_with(&options).await.expect("a connection");
            let mut written = HashMap::new();
            while !stop.load(Relaxed) {
                let id = i32::try_from(fastrand::u32(1..=ROWS)).expect("a small number");
                let name = "x".repeat(fastrand::usize(1..30));
                let update = sqlx::query("update things set name = $2, length = length($2) where id = $1")
                    .bind(id)
                    .bind(&name);
                update.execute(&mut connection).await.expect("written");
                written.insert(id, name);
            }
            connection.close().await.expect("closed");
            written
        }
    });
    // Without reading the table, which would keep the machine busy.
    let filled = async || count(&pool, "select coalesce(sum(rows_written), 0)::bigint from batch_runs").await;
    let start = || Process::start("data_steps::a_process_that_fills", &db.url());
    let folder = files.path().to_str().expect("UTF-8");

    let mut before = 0;
    for kill in 0..KILLS {
        let mut process = start();
        assert_eq!(process.ask(folder).await, "begun");
        until(&format!("kill {kill}: more is filled"), async || filled().await > before).await;
        process.kill();
        before = filled().await;
        let state = of(&files).await.status(&config(&db)).await.expect("a status")[1].state;
        assert_eq!(state, State::UnderWay, "after kill {kill}");
    }
    assert!(before < i64::from(ROWS), "killed in the middle");
    let mut process = start();
    assert_eq!(process.ask(folder).await, "begun");
    assert_eq!(process.hear().await, "done");
    stop.store(true, Relaxed);

    let written = writer.await.expect("no panic");
    assert_eq!(
        count(&pool, "select count(*) from things where length is distinct from length(name)").await,
        0
    );
    let names: Vec<(i32, String)> = sqlx::query_as("select id, name from things where name like 'x%'")
        .fetch_all(&pool)
        .await
        .expect("rows");
    assert_eq!(names.into_iter().collect::<HashMap<_, _>>(), written);
    let status = of(&files).await.status(&config(&db)).await.expect("a status");
    assert!(status.iter().all(|status| status.state == State::Applied), "{status:?}");
}
