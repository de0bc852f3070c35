//! Repeatable files: applied after the others whenever they say something new.

use std::path::Path;
use std::time::Duration;

use db_core::{Config, Pool, PoolOptions};
use db_migrate::check::{Check, CheckedRepeatable, Finding, WayBack};
use db_migrate::{Action, Error, Migrations, Migrator, Outcome, State};
use db_testkit::{TestDb, until};
use harness::Log;
use tempfile::TempDir;

use crate::batches::as_role;
use crate::{SHOP, config, execute, exists, folder, locks};

const ALL: &str = "create or replace view all_shops as select * from shop";
const CHEAP: &str = "create or replace view cheap_shops as select id from all_shops where price < 10";

/// The shop's migrations, with these repeatable files.
fn with(repeatables: &[(&str, &str)]) -> TempDir {
    let files = folder(&SHOP);
    write(files.path(), repeatables);
    files
}

fn write(folder: &Path, repeatables: &[(&str, &str)]) {
    let folder = folder.join("repeatable");
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, sql) in repeatables {
        std::fs::write(folder.join(format!("{name}.sql")), sql).expect("written");
    }
}

async fn of(files: &TempDir) -> Migrations {
    Migrations::from_dir(files.path()).await.expect("migrations")
}

/// The repeatable files that a run has applied.
async fn repeated(files: &TempDir, config: &Config) -> Vec<String> {
    of(files).await.up(config).await.expect("up").repeated
}

/// Version, name and outcome of each time that a repeatable file was applied, or was to be.
async fn attempts(files: &TempDir, config: &Config) -> Vec<(i64, String, Outcome)> {
    let history = of(files).await.history(config).await.expect("a history");
    let those = history.into_iter().filter(|attempt| attempt.action == Action::Repeat);
    those.map(|attempt| (attempt.version, attempt.description, attempt.outcome)).collect()
}

#[db_testkit::test]
async fn they_are_applied_after_the_others_in_order_of_names_and_again_when_they_say_something_new(
    db: TestDb,
) {
    let files = with(&[("2_cheap", CHEAP), ("1_all", ALL)]);
    let to = config(&db);

    let plan = of(&files).await.plan_up(&to, None).await.expect("a plan");
    let planned: Vec<_> = plan.steps.iter().map(|step| (step.action, &*step.description)).collect();
    let expected =
        [(Action::Up, "shop"), (Action::Up, "price"), (Action::Repeat, "1_all"), (Action::Repeat, "2_cheap")];
    assert_eq!(planned, expected);
    assert!(plan.repeatables.iter().all(|file| file.state == State::Pending));

    let report = of(&files).await.up(&to).await.expect("up");
    assert_eq!((report.changed, report.repeated), (vec![1, 2], vec!["1_all".into(), "2_cheap".into()]));
    assert_eq!(repeated(&files, &to).await, [""; 0], "they say what they said");
    write(files.path(), &[("1_all", &format!("-- Every shop.\n{}", ALL.to_uppercase()))]);
    assert_eq!(repeated(&files, &to).await, [""; 0], "a comment says nothing");

    write(files.path(), &[("2_cheap", &CHEAP.replace("10", "20"))]);
    let plan = of(&files).await.plan_up(&to, None).await.expect("a plan");
    let states: Vec<_> = plan.repeatables.iter().map(|file| (&*file.name, file.state)).collect();
    assert_eq!(states, [("1_all", State::Applied), ("2_cheap", State::Pending)]);
    assert_eq!(repeated(&files, &to).await, ["2_cheap"]);
    write(files.path(), &[("2_cheap", CHEAP)]);
    assert_eq!(repeated(&files, &to).await, ["2_cheap"], "as it was before");
    write(files.path(), &[("1_all", &format!("-- db-migrate: revision 2\n{ALL}"))]);
    assert_eq!(repeated(&files, &to).await, ["1_all"]);

    let names: Vec<_> = attempts(&files, &to).await.into_iter().map(|(_, name, _)| name).collect();
    assert_eq!(names, ["1_all", "2_cheap", "2_cheap", "2_cheap", "1_all"]);
    assert!(attempts(&files, &to).await.iter().all(|it| (it.0, it.2) == (2, Outcome::Done)));
    until("no lock is left", async || locks(&db).await == 0).await;
}

#[db_testkit::test]
async fn sqlx_does_not_see_them_and_neither_migrator_is_disturbed(db: TestDb) {
    let files = with(&[("all", ALL)]);
    let theirs = Migrator::new(files.path()).await.expect("a migrator");

    theirs.run(&db.pool()).await.expect("sqlx applies the versioned ones");
    assert!(!exists(&db, "all_shops").await);
    let report = of(&files).await.up(&config(&db)).await.expect("up");
    assert_eq!((report.changed, report.repeated), (vec![], vec!["all".to_owned()]));
    theirs.run(&db.pool()).await.expect("sqlx finds nothing to do");
    assert_eq!(repeated(&files, &config(&db)).await, [""; 0]);
}

#[db_testkit::test]
async fn one_that_fails_is_named_those_before_stay_and_the_next_run_goes_on(db: TestDb) {
    let broken = "create or replace view broken as\n  select nothing from shop";
    let files = with(&[("1_all", ALL), ("2_broken", broken), ("3_last", CHEAP)]);
    let to = config(&db);

    let error = of(&files).await.up(&to).await.expect_err("it is broken");

    let text = error.to_string();
    assert!(text.starts_with("the repeatable file `2_broken` failed at line 2, column 10: "), "{text}");
    assert!(matches!(error, Error::Failed { repeatable: Some(name), .. } if &*name == "2_broken"));
    assert!(exists(&db, "all_shops").await && !exists(&db, "cheap_shops").await);
    let done = |name: &str| (2, name.to_owned(), Outcome::Done);
    let failed = (2, "2_broken".to_owned(), Outcome::Failed);
    assert_eq!(attempts(&files, &to).await, [done("1_all"), failed.clone()]);

    write(files.path(), &[("2_broken", "create or replace view broken as select id from shop")]);
    assert_eq!(repeated(&files, &to).await, ["2_broken", "3_last"]);
    assert_eq!(attempts(&files, &to).await, [done("1_all"), failed, done("2_broken"), done("3_last")]);
}

#[db_testkit::test]
async fn they_are_those_of_the_newest_version_and_of_its_program(db: TestDb) {
    let files = with(&[("all", ALL)]);
    let to = config(&db);

    let report = of(&files).await.up_to(&to, 1).await.expect("up");
    assert_eq!((report.changed, report.repeated), (vec![1], vec![]));
    let report = of(&files).await.up_to(&to, 2).await.expect("up");
    assert_eq!((report.changed, report.repeated), (vec![2], vec!["all".to_owned()]));

    let newer = with(&[("all", "create or replace view all_shops as select *, 1 as more from shop")]);
    std::fs::write(newer.path().join("3_more.sql"), "select 1").expect("written");
    assert_eq!(repeated(&newer, &to).await, ["all"]);
    let older = of(&files).await.with_newer_databases(true).up(&to).await.expect("a newer database is taken");
    assert_eq!((older.version, older.repeated), (3, vec![]));
}

#[db_testkit::test]
async fn after_a_way_back_they_are_applied_again(db: TestDb) {
    let files = with(&[("all", ALL)]);
    let price = "drop view if exists all_shops; alter table shop drop price";
    std::fs::write(files.path().join("2_price.down.sql"), price).expect("written");
    let to = config(&db);
    of(&files).await.up(&to).await.expect("up");

    let report = of(&files).await.down_to(&to, 0).await.expect("down");
    assert_eq!((report.changed, report.repeated), (vec![2, 1], vec![]));
    assert_eq!(
        of(&files).await.plan_up(&to, None).await.expect("a plan").repeatables[0].state,
        State::Pending
    );
    let report = of(&files).await.up(&to).await.expect("up");

    assert_eq!((report.changed, report.repeated), (vec![1, 2], vec!["all".to_owned()]));
    assert!(exists(&db, "all_shops").await);
    assert_eq!(repeated(&files, &to).await, [""; 0]);
}

#[db_testkit::test]
async fn what_cannot_run_in_a_transaction_is_refused_before_anything_runs(db: TestDb) {
    for (name, sql, reason) in [
        ("outside", "-- no-transaction\nvacuum", "line 1, column 1: a repeatable file runs in a transaction"),
        ("copied", "select 1;\nCOPY shop FROM stdin;\n1\n\\.\n", "line 2, column 1: "),
        ("typo", "\n-- db-migrate: revison 2\nselect 1", "line 2, column 1: the directives are"),
    ] {
        let files = with(&[("1_all", ALL), (name, sql)]);

        let error = of(&files).await.up(&config(&db)).await.expect_err(name).to_string();

        assert!(error.contains(&format!("repeatable/{name}.sql, {reason}")), "{error}");
        assert!(!exists(&db, "shop").await, "{name}");
    }
}

#[tokio::test]
async fn without_a_history_nothing_is_run() {
    let setup = "create table _sqlx_migrations (version bigint primary key, description text not null,
           installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, execution_time bigint not null);
         grant select, insert, update, delete on _sqlx_migrations to app; revoke create on schema public from public;
         create schema app authorization app; alter role app set search_path = app, public";
    let (db, _server, config) = as_role(setup).await;
    let files = with(&[("all", ALL)]);

    let error = of(&files).await.up(&config).await.expect_err("no history can be made");

    assert!(
        matches!(&error, Error::NoHistory { table } if table == "public._sqlx_migrations_history"),
        "{error}"
    );
    assert!(!exists(&db, "app.shop").await);
}

/// A service that starts on a database whose migrations are done needs no more than to see that.
#[tokio::test]
async fn a_role_that_may_not_read_what_was_applied_starts_where_nothing_else_is_to_do() {
    let (db, _server, service) = as_role("create table unused ()").await;
    let files = with(&[("all", ALL)]);
    of(&files).await.up(&config(&db)).await.expect("up");
    execute(&db, "grant select on _sqlx_migrations to app").await;
    let log = Log::of_this_process("db_migrate=warn");

    let report = of(&files).await.up(&service).await.expect("nothing is to do");

    assert_eq!((report.version, report.repeated), (2, vec![]));
    assert!(log.count(&["whether repeatable files are to be applied is not known"]) > 0);
}

#[db_testkit::test]
async fn replicas_that_start_at_once_apply_each_once(db: TestDb) {
    let files = with(&[("1_all", ALL), ("2_cheap", CHEAP)]);
    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (migrations, config) = (of(&files).await, config(&db));
        replicas.spawn(async move { migrations.up(&config).await });
    }

    let mut repeated = Vec::new();
    while let Some(replica) = replicas.join_next().await {
        repeated.extend(replica.expect("no panic").expect("up").repeated);
    }

    repeated.sort_unstable();
    assert_eq!(repeated, ["1_all", "2_cheap"]);
    assert_eq!(attempts(&files, &config(&db)).await.len(), 2);
}

async fn rolled_back(db: &TestDb) -> i64 {
    let sql = "select xact_rollback from pg_stat_database where datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(&db.pool()).await.expect("a number")
}

#[db_testkit::test]
async fn one_that_waits_for_readers_gives_way_to_them(db: TestDb) {
    let files = with(&[("1_all", ALL), ("2_cheap", CHEAP)]);
    of(&files).await.up(&config(&db)).await.expect("up");
    let pool = db.pool();
    let mut reader = pool.begin().await.expect("begun");
    sqlx::query("select from cheap_shops").execute(&mut *reader).await.expect("read");
    write(
        files.path(),
        &[("1_all", &format!("{ALL} where true")), ("2_cheap", &format!("{CHEAP} and true"))],
    );
    let migrations = of(&files).await.with_lock_timeout(Duration::from_millis(100));
    let config = config(&db);
    let before = rolled_back(&db).await;

    let (report, ()) = tokio::join!(migrations.up(&config), async {
        until("it has given way", async || rolled_back(&db).await > before).await;
        // Behind it, if it waited for ever.
        sqlx::query("select from cheap_shops").execute(&db.pool()).await.expect("read");
        reader.rollback().await.expect("rolled back");
    });

    assert_eq!(report.expect("up").repeated, ["1_all", "2_cheap"]);
    let done = attempts(&files, &config).await;
    assert_eq!(done.len(), 4, "{done:?}");
}

#[db_testkit::test]
async fn a_connection_that_is_lost_on_the_way_is_replaced_and_each_is_applied_once(_db: TestDb) {
    let counted = "create table if not exists ran (n int); insert into ran values (1)";
    for text in ["create table if not exists ran", "update public._sqlx_migrations_history", "second"] {
        for after in [false, true] {
            let db = TestDb::empty().await.expect("a database");
            let proxy = db_testkit::Proxy::start(&db).expect("a proxy");
            let through = Config::from_url(&proxy.url()).expect("an address");
            let files = folder(&[("1_one.sql", "select 1")]);
            write(files.path(), &[("first", counted), ("second", counted)]);
            if after {
                proxy.cut_answer_to(text);
            } else {
                proxy.cut_before(text);
            }

            let report = of(&files).await.up(&through).await.expect(text);

            assert_eq!(report.repeated, ["first", "second"], "{text}, {after}");
            let ran: i64 =
                sqlx::query_scalar("select count(*) from ran").fetch_one(&db.pool()).await.expect("a count");
            assert_eq!(ran, 2, "{text}, {after}");
        }
    }
}

/// The readers' pools have prepared statements whose result the change makes wider.
#[db_testkit::test]
async fn ten_readers_of_a_view_see_it_change_and_none_an_error(db: TestDb) {
    const READERS: usize = 10;
    let view = |width: usize| {
        let more: Vec<String> = (2..=width).map(|n| format!(", {n} as c{n}")).collect();
        format!("create or replace view wide as select 1 as a{}", more.concat())
    };
    let files = folder(&[("1_one.sql", "select 1")]);
    let to = config(&db);
    write(files.path(), &[("wide", &view(1))]);
    of(&files).await.up(&to).await.expect("up");
    let pool = Pool::new(&to, PoolOptions::api().max(5));
    let (seen, _) = tokio::sync::watch::channel([0_usize; READERS]);
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..READERS {
        let (handle, seen) = (pool.handle(), seen.clone());
        readers.spawn(async move {
            while seen.borrow()[reader] < 4 {
                let row = sqlx::query("select * from wide").fetch_one(&handle).await?;
                seen.send_modify(|seen| seen[reader] = sqlx::Row::len(&row));
            }
            Ok::<_, db_core::Error>(())
        });
    }

    for width in 1..=4 {
        if width > 1 {
            write(files.path(), &[("wide", &view(width))]);
            assert_eq!(repeated(&files, &to).await, ["wide"]);
        }
        let mut seen = seen.subscribe();
        let all = seen.wait_for(|seen| seen.iter().all(|columns| *columns == width));
        tokio::time::timeout(Duration::from_secs(30), all)
            .await
            .expect("each reader has it")
            .expect("readers");
    }

    while let Some(reader) = readers.join_next().await {
        reader.expect("no panic").expect("no reader has an error");
    }
    pool.close(Duration::from_secs(5)).await;
}

#[db_testkit::test]
async fn those_of_a_program_are_given_by_name(db: TestDb) {
    let none = || Migrations::new(&Migrator::with_migrations(Vec::new()));
    let migrations =
        none().with_repeatable("b", "select broken").with_repeatable("a", "create view a as select 1");
    let migrations = migrations.with_repeatable("b", "create view b as select * from a");

    let report = migrations.up(&config(&db)).await.expect("up");

    assert_eq!((report.repeated, report.version), (vec!["a".into(), "b".into()], 0));
    execute(&db, "select * from b").await;
    let again = migrations.up(&config(&db)).await.expect("up");
    assert_eq!(again.repeated, [""; 0]);
}

#[tokio::test]
async fn the_check_applies_them_and_has_them_run_again() {
    let files = with(&[
        ("1_all", ALL),
        ("2_rebuilt", "drop view if exists rebuilt;\ncreate view rebuilt as select 1 as n"),
        ("3_once", "-- Once.\ncreate view once as select 1 as n"),
        (
            "4_allowed",
            "-- db-migrate: allow not-repeatable somebody drops it before\ncreate view allowed as select 1 as n",
        ),
        (
            "5_heavy",
            "create or replace view heavy as select 1 as n;\ncreate index if not exists i on shop (id);\ndrop index i;\ncreate index i on shop (id)",
        ),
        ("6_broken", "select 1;\nselect broken"),
        ("7_never", ALL),
    ]);

    let checked = Check::new(&of(&files).await).run().await.expect("checked");

    let findings = |file: &CheckedRepeatable| {
        let place = |it: &Finding| (it.rule.name(), it.position.map_or(0, |position| position.line));
        (file.name.clone(), file.findings.iter().map(place).collect::<Vec<_>>())
    };
    let found: Vec<_> = checked.repeatables.iter().map(findings).collect();
    let expected = [
        ("1_all", vec![]),
        ("2_rebuilt", vec![]),
        ("3_once", vec![("not-repeatable", 2)]),
        ("4_allowed", vec![]),
        ("5_heavy", vec![("require-concurrent-index-deletion", 3), ("require-concurrent-index-creation", 4)]),
        ("6_broken", vec![("up-fails", 2)]),
    ];
    assert_eq!(found, expected.map(|(name, found)| (name.to_owned(), found)));
    assert!(checked.files.iter().all(|file| file.findings.is_empty() && file.way_back == WayBack::Same));
}

#[db_testkit::test]
async fn what_they_make_is_no_drift_and_what_was_changed_by_hand_is(db: TestDb) {
    let files = with(&[("1_all", ALL), ("2_cheap", CHEAP)]);
    let migrations = of(&files).await;
    migrations.up(&config(&db)).await.expect("up");

    let drift = Check::new(&migrations).drift(&config(&db), None).await.expect("compared");
    assert!(drift.differences.is_empty(), "{drift:#?}");
    execute(&db, &CHEAP.replace("10", "20")).await;
    let drift = Check::new(&migrations).drift(&config(&db), None).await.expect("compared");

    let objects: Vec<_> = drift.differences.iter().map(ToString::to_string).collect();
    assert!(objects.len() == 1 && objects[0].contains("view public.cheap_shops differs"), "{objects:?}");
}

/// What is pending is no drift: neither a version, nor a repeatable file that says something new, nor one that is new.
#[db_testkit::test]
async fn drift_compares_with_what_was_applied_and_not_with_what_is_pending(db: TestDb) {
    let files = with(&[("1_all", ALL), ("2_cheap", CHEAP)]);
    of(&files).await.up(&config(&db)).await.expect("up");
    std::fs::write(files.path().join("3_more.sql"), "create table more ()").expect("written");
    write(
        files.path(),
        &[
            ("2_cheap", &CHEAP.replace("10", "20")),
            ("3_new", "create or replace view new as select from more"),
        ],
    );
    let migrations = of(&files).await;

    // What stands in the database is not run on this machine.
    execute(
        &db,
        "update _sqlx_migrations_history set sql = 'create view planted as select 1' where action = 'repeat'",
    )
    .await;

    let drift = Check::new(&migrations).drift(&config(&db), None).await.expect("compared");

    assert!(drift.differences.is_empty() && drift.version == 2, "{drift:#?}");
}

#[db_testkit::test]
async fn a_database_of_another_migrator_may_have_the_views_or_not(db: TestDb) {
    let files = with(&[("1_all", ALL)]);
    let migrations = of(&files).await;
    execute(&db, "create table shop (id int, price int)").await;
    for view in ["", ALL] {
        execute(&db, view).await;

        let drift = Check::new(&migrations).drift(&config(&db), Some(2)).await.expect("compared");

        assert!(drift.differences.is_empty(), "{view}: {drift:#?}");
    }
}

/// As in production, where the view is there when the next version is applied.
#[tokio::test]
async fn a_check_finds_a_version_that_a_view_is_in_the_way_of() {
    let files = with(&[("1_all", ALL)]);
    std::fs::write(files.path().join("3_type.sql"), "alter table shop alter price type bigint")
        .expect("written");

    let checked = Check::new(&of(&files).await).after(2).run().await.expect("checked");

    let rules: Vec<_> = checked.files[0].findings.iter().map(|finding| finding.rule.name()).collect();
    assert_eq!(rules, ["up-fails"], "{checked:#?}");
}

#[db_testkit::test]
async fn what_sqlx_reverts_is_noted_by_its_own_name_and_they_are_applied_again(db: TestDb) {
    let files = with(&[("all", ALL)]);
    let price = "drop view if exists all_shops; alter table shop drop price";
    std::fs::write(files.path().join("2_price.down.sql"), price).expect("written");
    let to = config(&db);
    of(&files).await.up(&to).await.expect("up");
    Migrator::new(files.path()).await.expect("a migrator").undo(&db.pool(), 1).await.expect("sqlx reverts 2");

    let report = of(&files).await.up(&to).await.expect("up");

    assert_eq!((report.changed, report.repeated), (vec![2], vec!["all".to_owned()]));
    let history = of(&files).await.history(&to).await.expect("a history");
    let gone: Vec<_> = history.iter().filter(|attempt| attempt.action == Action::Gone).collect();
    assert_eq!(gone.iter().map(|attempt| &*attempt.description).collect::<Vec<_>>(), ["price"]);
}

#[db_testkit::test]
async fn one_that_was_only_announced_is_no_attempt(db: TestDb) {
    let files = with(&[("1_unlocks", "select pg_advisory_unlock_all()"), ("2_next", ALL)]);
    let to = config(&db);

    let error = of(&files).await.up(&to).await.expect_err("the lock is gone");

    assert!(matches!(error, Error::Unlocked { .. }), "{error}");
    assert_eq!(attempts(&files, &to).await, [(2, "1_unlocks".to_owned(), Outcome::Done)]);
    assert_eq!(repeated(&files, &to).await, ["2_next"]);
}
