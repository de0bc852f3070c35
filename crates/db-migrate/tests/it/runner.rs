//! What a migration does to its session, its record and its lock; and the same results as sqlx on folders of real projects.

use std::path::{Path, PathBuf};
use std::process::Command;

use db_core::{Config, ConnectRetry};
use db_embedded::Programs;
use db_migrate::{Error, Migrations, Migrator, State};
use db_testkit::{Cluster, TestDb, until};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::TempDir;

use crate::{config, exists, folder, migrations, states};

async fn execute(db: &TestDb, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&db.pool()).await.expect("executed");
}

/// A migration that fails if what it reads differs.
fn expects(sql: &str, value: &str) -> String {
    format!(
        "do $$ begin
            if ({sql})::text is distinct from '{value}' then raise exception 'found %', ({sql})::text; end if;
         end $$"
    )
}

#[db_testkit::test]
async fn a_migration_finds_nothing_of_what_another_left_in_the_session_and_the_lock_is_kept(db: TestDb) {
    let role = format!("left_{}", db.name());
    execute(&db, &format!("create role {role}")).await;
    let advisory = "(select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
    let no_sequence = "do $$ begin
            perform lastval();
            raise exception 'found';
         exception when object_not_in_prerequisite_state then null;
         end $$";
    let left = [
        (format!("set role {role}"), expects("current_user", "postgres")),
        (format!("set session authorization {role}"), expects("session_user", "postgres")),
        ("set search_path to pg_catalog".into(), expects("current_setting('search_path')", "\"$user\", public")),
        (
            "set standard_conforming_strings = off".into(),
            expects("current_setting('standard_conforming_strings')", "on"),
        ),
        ("create temp table left_over ()".into(), expects("to_regclass('pg_temp.left_over') is null", "true")),
        ("prepare left_over as select 1".into(), expects("(select count(*) from pg_prepared_statements)", "0")),
        (
            "declare left_over cursor with hold for select 1".into(),
            expects("(select count(*) from pg_cursors)", "0"),
        ),
        ("listen left_over".into(), expects("(select count(*) from pg_listening_channels())", "0")),
        ("create sequence left_over; select nextval('left_over')".into(), no_sequence.into()),
        (
            "select pg_advisory_lock(1), pg_advisory_lock(1), pg_advisory_lock_shared(1), pg_advisory_lock(-1, -2),
                 pg_advisory_lock_shared(1, 2), pg_advisory_lock_shared(-9), pg_advisory_lock(-9)"
                .into(),
            expects(advisory, "1"),
        ),
        ("set statement_timeout = '1h'".into(), expects("current_setting('statement_timeout')", "0")),
    ];
    let files = folder(&[]);
    for (n, (leaves, looks)) in left.iter().enumerate() {
        let write = |name: String, sql: &str| std::fs::write(files.path().join(name), sql).expect("written");
        write(format!("{}_leaves.sql", 2 * n + 1), leaves);
        write(format!("{}_looks.sql", 2 * n + 2), looks);
    }

    let report = Migrations::from_dir(files.path()).await.expect("migrations").up(&config(&db)).await;

    execute(&db, &format!("drop role {role}")).await;
    assert_eq!(report.expect("up").version, 22);
}

#[db_testkit::test]
async fn limits_of_the_session_that_is_given_end_no_migration(db: TestDb) {
    let sleeps = "select pg_sleep(0.1)";
    let migrations = migrations(&[("1_sleeps.sql", sleeps), ("2_sleeps.sql", sleeps)]).await;
    let mut given = db.options().connect().await.expect("a connection");
    let limits = "set statement_timeout = '50ms'; set default_transaction_read_only = on";
    sqlx::raw_sql(limits).execute(&mut given).await.expect("set");

    let report = migrations.up_on(given, &config(&db), ConnectRetry::default()).await.expect("up");

    assert_eq!(report.changed, [1, 2]);
}

#[db_testkit::test]
async fn time_limits_that_a_migration_has_left_do_not_end_its_record(db: TestDb) {
    migrations(&[("1_one.sql", "")]).await.up(&config(&db)).await.expect("up");
    let limits = "set statement_timeout = '500ms'; set lock_timeout = '500ms'";
    let migrations = migrations(&[("1_one.sql", ""), ("2_limits.sql", limits)]).await;
    let mut reader = db.pool().begin().await.expect("a transaction");
    let lock = "lock table _sqlx_migrations in share mode";
    sqlx::raw_sql(lock).execute(&mut *reader).await.expect("locked");
    let config = config(&db);
    let waits = "select exists (select from pg_stat_activity where datname = current_database()
                 and wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '1s')";
    let waited_longer = async {
        until("the record waits for longer than its limits", async || {
            sqlx::query_scalar(waits).fetch_one(&db.pool()).await.expect("an answer")
        })
        .await;
        reader.rollback().await.expect("rolled back");
    };

    let (report, ()) = tokio::join!(migrations.up(&config), waited_longer);

    assert_eq!(report.expect("up").changed, [2]);
}

#[db_testkit::test]
async fn each_migration_runs_as_the_role_that_is_given_and_is_on_record(db: TestDb) {
    let role = format!("own\"er_{}", db.name());
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    execute(&db, &format!("create role {quoted}; grant create on schema public to {quoted}")).await;
    let files = [
        ("1_one.up.sql", "create table one (); reset role"),
        ("1_one.down.sql", "drop table one"),
        ("2_two.sql", "-- no-transaction\ncreate table two ();"),
        ("3_three.up.sql", "create table three ();"),
        ("3_three.down.sql", "drop table three"),
    ];
    let migrations = migrations(&files).await.with_role(&role);

    let report = migrations.up(&config(&db)).await;
    let owners =
        "select array_agg(tableowner::text order by tablename) from pg_tables where schemaname = 'public'";
    let owners: Vec<String> = sqlx::query_scalar(owners).fetch_one(&db.pool()).await.expect("owners");
    let down = migrations.down_to(&config(&db), 2).await;
    let unknown = migrations.with_role("nobody of that name").up(&config(&db)).await;
    execute(&db, &format!("drop owned by {quoted}; drop role {quoted}")).await;

    assert_eq!(report.expect("up").changed, [1, 2, 3]);
    assert_eq!(owners, ["postgres", "postgres", &role, &role, &role]);
    assert_eq!(down.expect("down").changed, [3]);
    assert!(matches!(&unknown, Err(Error::Failed { version: 3, .. })), "{unknown:?}");
}

#[db_testkit::test]
async fn nobody_gets_the_lock_between_two_migrations(db: TestDb) {
    let files = folder(&[]);
    for n in 1..=200 {
        std::fs::write(files.path().join(format!("{n}_locks.sql")), "select pg_advisory_lock(7)")
            .expect("written");
    }
    let migrations = Migrations::from_dir(files.path()).await.expect("migrations");
    let key = 0x3d32_ad9e * i64::from(crc32fast::hash(db.name().as_bytes()));
    let rival = async {
        let mut rival = db.pool().acquire().await.expect("a connection");
        let mut was_held = false;
        loop {
            let sql = "select pg_try_advisory_xact_lock($1)";
            let got: bool =
                sqlx::query_scalar(sql).bind(key).fetch_one(&mut *rival).await.expect("an answer");
            if got && was_held {
                let applied = "select count(*) from _sqlx_migrations";
                let applied: i64 = sqlx::query_scalar(applied).fetch_one(&mut *rival).await.expect("a count");
                assert_eq!(applied, 200, "the lock was free after that many");
                return;
            }
            was_held |= !got;
        }
    };

    let config = config(&db);
    let (report, ()) = tokio::join!(migrations.up(&config), rival);

    assert_eq!(report.expect("up").version, 200);
}

#[db_testkit::test]
async fn a_migration_that_releases_the_lock_is_on_record_and_the_last_one_until_the_next_run(db: TestDb) {
    let files = [
        ("1_unlocks.sql", "create table one (); select pg_advisory_unlock_all()"),
        ("2_more.sql", "create table two ()"),
    ];
    let migrations = migrations(&files).await;

    let error = migrations.up(&config(&db)).await.expect_err("the lock is gone");

    assert!(matches!(error, Error::Unlocked { version: 1 }), "{error}");
    assert!(exists(&db, "one").await && !exists(&db, "two").await);
    assert_eq!(migrations.up(&config(&db)).await.expect("up").changed, [2]);
}

#[db_testkit::test]
async fn a_migration_that_moves_the_migration_table_is_named_and_rolled_back(db: TestDb) {
    let files = [
        ("1_one.sql", "create table one ()"),
        ("2_moves.sql", "create schema other; alter table _sqlx_migrations set schema other"),
    ];
    let migrations = migrations(&files).await;

    let error = migrations.up(&config(&db)).await.expect_err("the table is gone");

    assert!(
        matches!(&error, Error::Moved { version: 2, table } if table == "public._sqlx_migrations"),
        "{error}"
    );
    assert_eq!(states(&migrations, &db).await, [(1, State::Applied), (2, State::Pending)]);
}

#[db_testkit::test]
async fn a_migration_that_replaces_the_migration_table_is_named(db: TestDb) {
    let replaces =
        "alter table _sqlx_migrations rename to old; create table _sqlx_migrations (like old including all)";
    let files = [("1_replaces.sql", replaces), ("2_more.sql", "create table two ()")];

    let error = migrations(&files).await.up(&config(&db)).await.expect_err("the table is another one");

    assert!(matches!(error, Error::Moved { version: 1, .. }), "{error}");
    assert!(!exists(&db, "two").await);
}

#[db_testkit::test]
async fn a_migration_whose_record_is_not_there_afterwards_is_named(db: TestDb) {
    let files = [("1_rule.sql", "create rule none as on insert to _sqlx_migrations do instead nothing")];

    let error = migrations(&files).await.up(&config(&db)).await.expect_err("nothing is recorded");

    assert!(matches!(error, Error::Moved { version: 1, .. }), "{error}");
}

#[db_testkit::test]
async fn a_name_with_a_quote_and_a_backslash_is_recorded_as_by_sqlx(db: TestDb) {
    let files = folder(&[(r"1_it's_a\b.sql", "set standard_conforming_strings = off; create table one ()")]);
    Migrations::from_dir(files.path()).await.expect("migrations").up(&config(&db)).await.expect("up");

    let description: String = sqlx::query_scalar("select description from _sqlx_migrations")
        .fetch_one(&db.pool())
        .await
        .expect("a record");

    let theirs = Migrator::new(files.path()).await.expect("a migrator");
    assert_eq!(description, theirs.iter().next().expect("one").description);
    assert_eq!(description, r"it's a\b");
}

/// As hook0 and underway do.
#[db_testkit::test]
async fn a_migration_that_leaves_a_search_path_or_makes_a_table_of_that_name_changes_no_record(db: TestDb) {
    let files = [
        ("1_path.sql", "set search_path to pg_catalog, public; create table public.one ()"),
        (
            "2_other.sql",
            "create schema other; set search_path to other; create table _sqlx_migrations (like public._sqlx_migrations)",
        ),
        ("3_local.sql", "set local search_path to other; create table three ()"),
    ];
    let migrations = migrations(&files).await;

    assert_eq!(migrations.up(&config(&db)).await.expect("up").changed, [1, 2, 3]);
    assert_eq!(migrations.up(&config(&db)).await.expect("up").changed, [0; 0]);
    let rows: i64 = sqlx::query_scalar("select count(*) from other._sqlx_migrations")
        .fetch_one(&db.pool())
        .await
        .expect("a count");
    assert_eq!(rows, 0);
}

#[db_testkit::test]
async fn limits_of_the_database_and_its_read_only_default_do_not_stop_migrations(db: TestDb) {
    let name = db.name();
    execute(
        &db,
        &format!(
            "alter database {name} set statement_timeout = '100ms';
             alter database {name} set lock_timeout = '100ms';
             alter database {name} set default_transaction_read_only = on"
        ),
    )
    .await;
    let files = [
        ("1_slow.sql", "create table one (); select pg_sleep(0.3)"),
        ("2_again.sql", "select pg_sleep(0.3)"),
    ];

    assert_eq!(migrations(&files).await.up(&config(&db)).await.expect("up").changed, [1, 2]);
}

#[db_testkit::test]
async fn a_limit_of_the_database_ends_no_look_at_the_record(db: TestDb) {
    let migrations = migrations(&[("1_one.sql", "")]).await;
    migrations.up(&config(&db)).await.expect("up");
    let mut owner = db.pool().begin().await.expect("a transaction");
    sqlx::raw_sql("lock table _sqlx_migrations").execute(&mut *owner).await.expect("locked");
    execute(&db, &format!("alter database {} set statement_timeout = '300ms'", db.name())).await;
    let config = config(&db);
    let waits = "select exists (select from pg_stat_activity where datname = current_database()
                 and wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '600ms')";
    let waited_longer = async {
        until("the look waits for longer than the limit", async || {
            sqlx::query_scalar(waits).fetch_one(&db.pool()).await.expect("an answer")
        })
        .await;
        owner.rollback().await.expect("rolled back");
    };

    let (status, ()) = tokio::join!(migrations.status(&config), waited_longer);

    assert_eq!(status.expect("a status")[0].state, State::Applied);
}

#[tokio::test]
async fn a_standby_is_named_before_anything_is_tried() {
    let cluster = Cluster::start().await.expect("a cluster");
    let standby = Config::from_url(&cluster.standby(0).url()).expect("its address");

    let error = migrations(&[("1_one.sql", "create table one ()")]).await.up(&standby).await;

    assert!(matches!(error, Err(Error::Standby)), "{error:?}");
}

#[db_testkit::test]
async fn a_deferred_constraint_fails_its_migration_and_sees_the_sessions_settings(db: TestDb) {
    let deferred = "create table parent (id int primary key);
        create table child (id int references parent deferrable initially deferred);
        insert into child values (7)";
    let error = migrations(&[("1_bad.sql", deferred)]).await.up(&config(&db)).await.expect_err("no parent");
    assert!(matches!(error, Error::Failed { version: 1, .. }), "{error}");
    assert!(!exists(&db, "child").await);

    let role = format!("deferred_{}", db.name());
    let trigger = format!(
        "create role {role};
         create schema apart;
         create table apart.seen (by text);
         create function note() returns trigger language plpgsql as $$
            begin insert into seen values (current_user); return null; end
         $$;
         create table watched (n int);
         create constraint trigger notes after insert on watched deferrable initially deferred
            for each row execute function note();
         grant usage on schema apart to {role};
         grant insert on apart.seen, watched to {role};
         set local search_path to apart, public;
         set local role {role};
         insert into watched values (1)"
    );
    let done = migrations(&[("1_trigger.sql", trigger.as_str())]).await.up(&config(&db)).await;
    let by: Option<String> =
        sqlx::query_scalar("select max(by) from apart.seen").fetch_one(&db.pool()).await.expect("an answer");
    execute(&db, &format!("drop owned by {role}; drop role {role}")).await;
    done.expect("up");
    assert_eq!(by, Some(role));
}

#[db_testkit::test]
async fn a_line_that_almost_says_no_transaction_is_refused_while_the_migration_is_pending(db: TestDb) {
    let files = [
        ("1_one.up.sql", "-- no transaction\ncreate table one ()"),
        ("1_one.down.sql", "--no-transaction\ndrop table one"),
    ];
    let ours = migrations(&files).await;

    let error = ours.up(&config(&db)).await.expect_err("refused");
    assert!(
        matches!(&error, Error::Directive { version: 1, line } if line == "-- no transaction"),
        "{error}"
    );
    assert!(!exists(&db, "one").await);

    Migrator::new(folder(&files).path()).await.expect("a migrator").run(&db.pool()).await.expect("by sqlx");
    assert_eq!(ours.up(&config(&db)).await.expect("it is applied").changed, [0; 0]);
    let error = ours.down_to(&config(&db), 0).await.expect_err("refused");
    assert!(matches!(&error, Error::Directive { line, .. } if line == "--no-transaction"), "{error}");
}

#[tokio::test]
async fn all_that_is_wrong_with_the_names_of_a_folder_is_one_error() {
    let folder = folder(&[
        ("1_one.sql", "select 1"),
        ("1_two.up.sql", "select 1"),
        ("2_fine.up.sql", "select 1"),
        ("2_fine.down.sql", "select 1"),
        ("add_users.sql", "select 1"),
        ("123456789012345678901_long.sql", "select 1"),
        ("3_ignored.SQL", "select 1"),
        ("README.md", ""),
    ]);

    let error = Migrations::from_dir(folder.path()).await.expect_err("two of one version").to_string();

    for part in [
        "1_one.sql and 1_two.up.sql have one version",
        "add_users.sql does not",
        "123456789012345678901_long.sql does not",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("fine") && !error.contains("ignored"), "{error}");
}

#[db_testkit::test]
async fn a_migration_that_another_migrator_did_not_end_is_named(db: TestDb) {
    let migrations = migrations(&[("1_one.sql", "create table one ()")]).await;
    migrations.up(&config(&db)).await.expect("up");
    execute(&db, "update _sqlx_migrations set success = false").await;

    let error = migrations.up(&config(&db)).await.expect_err("dirty");

    assert!(matches!(error, Error::Dirty { version: 1 }), "{error}");
    assert_eq!(states(&migrations, &db).await, [(1, State::Dirty)]);
}

#[db_testkit::test]
async fn two_lines_of_migrations_have_a_table_each_as_with_sqlx(db: TestDb) {
    execute(&db, "create schema \"Second\"").await;
    let files = folder(&[("1_two.sql", "create table two ()")]);
    let second = r#""Second"."my migrations""#;
    let theirs = async || {
        let mut migrator = Migrator::new(files.path()).await.expect("a migrator");
        migrator.dangerous_set_table_name(second);
        migrator
    };
    migrations(&[("1_one.sql", "create table one ()")]).await.up(&config(&db)).await.expect("the first line");

    let ours = Migrations::from_dir(files.path()).await.expect("migrations").with_table(second);
    assert_eq!(ours.up(&config(&db)).await.expect("the second line").changed, [1]);

    theirs().await.run(&db.pool()).await.expect("sqlx finds nothing to do");
    let again =
        Migrations::new(&theirs().await).up(&config(&db)).await.expect("with the migrator's own name");
    assert_eq!(again.changed, [0; 0]);
}

#[db_testkit::test]
async fn the_sqlx_toml_beside_a_folder_is_read_as_sqlx_reads_it(db: TestDb) {
    let project = tempfile::tempdir().expect("a folder");
    let dir = project.path().join("migrations");
    std::fs::create_dir(&dir).expect("made");
    std::fs::write(dir.join("1_one.sql"), "create table one ();\r\n").expect("written");
    let toml = |text: &str| std::fs::write(project.path().join("sqlx.toml"), text).expect("written");
    let section = r#"[migrate]
        table-name = "ci.versions"
        create-schemas = ["ci"]
        ignored-chars = ["\r", "\n"]
        defaults.migration-type = "reversible"
        "#;
    toml(section);
    let theirs = async || {
        let mut ignored = sqlx::migrate::ResolveConfig::new();
        ignored.ignore_chars(['\r', '\n']);
        let mut migrator =
            Migrator::new(sqlx::migrate::ResolveWith(dir.clone(), ignored)).await.expect("a migrator");
        migrator.dangerous_set_table_name("ci.versions");
        migrator.run(&db.pool()).await
    };

    let ours = Migrations::from_dir(&dir).await.expect("migrations");
    assert_eq!(ours.up(&config(&db)).await.expect("up").changed, [1]);

    theirs().await.expect("sqlx finds nothing to do");
    std::fs::write(dir.join("1_one.sql"), "create table one ();\n").expect("written");
    theirs().await.expect("the line's end does not count for sqlx");
    let again = Migrations::from_dir(&dir).await.expect("migrations").up(&config(&db)).await;
    assert_eq!(again.expect("nor for us").changed, [0; 0]);

    toml(&section.replace("defaults", "migrations-dir = \"elsewhere\"\ndefaults"));
    let other = Migrations::from_dir(&dir).await.expect("migrations");
    assert_eq!(states(&other, &db).await, [(1, State::Pending)], "the file is about another folder");
    for wrong in ["[migrate]\ntable_name = 'x'", "[migrate"] {
        toml(wrong);
        let error = Migrations::from_dir(&dir).await.expect_err("unreadable");
        assert!(error.to_string().contains("cannot be read: sqlx.toml beside it: "), "{error}");
    }
}

/// The folders of `../shared/data/migrations`, unpacked, if they are there.
pub(crate) fn real_folders() -> Option<(TempDir, Vec<PathBuf>)> {
    let archive =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/migrations/folders.tar.gz");
    if !archive.exists() {
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let unpacked = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(folder.path()).status();
    assert!(unpacked.expect("tar").success());
    let entries = std::fs::read_dir(folder.path()).expect("listed");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    Some((folder, folders))
}

/// Packages of the server alone lack it.
pub(crate) fn pg_dump() -> Result<PathBuf, db_embedded::Error> {
    Programs::find(None)?.path("pg_dump")
}

/// The schema, line by line, but for the history, which is ours alone.
async fn schema(db: &TestDb) -> Vec<String> {
    let pg_dump = pg_dump().expect("pg_dump");
    let url = db.direct_url();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(pg_dump).args(["-s", "-T", "*._sqlx_migrations_history", "-d", &url]).output()
    });
    let output = output.await.expect("no panic").expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    // Words that are others in each dump.
    let lines =
        text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.map(str::to_owned).collect()
}

/// The schema, and what is on record.
async fn dump(db: &TestDb) -> Vec<String> {
    let mut dump = schema(db).await;
    let sql =
        "select concat_ws(' ', version, description, success, encode(checksum, 'hex'), execution_time > 0)
               from public._sqlx_migrations order by version";
    let records: Vec<String> = sqlx::query_scalar(sql).fetch_all(&db.pool()).await.expect("records");
    dump.extend(records);
    dump
}

async fn by_sqlx(db: &TestDb, folder: &Path, to: Option<i64>) {
    let migrator = Migrator::new(folder).await.expect("a migrator");
    let done = match to {
        Some(to) => migrator.run_to(to, &db.pool()).await,
        None => migrator.run(&db.pool()).await,
    };
    done.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
}

async fn by_ours(db: &TestDb, folder: &Path, to: Option<i64>) {
    let partly = tempfile::tempdir().expect("a folder");
    let folder = match to {
        None => folder,
        Some(to) => {
            for file in std::fs::read_dir(folder).expect("listed") {
                let file = file.expect("a file");
                let name = file.file_name().into_string().expect("a name");
                let version = name.split('_').next().expect("a part").parse::<i64>();
                if version.is_ok_and(|version| version <= to) {
                    std::fs::copy(file.path(), partly.path().join(name)).expect("copied");
                }
            }
            partly.path()
        }
    };
    let migrations = Migrations::from_dir(folder).await.expect("migrations");
    migrations.up(&config(db)).await.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
}

fn same(folder: &Path, what: &str, expected: &[String], found: &[String]) {
    let both = expected.iter().zip(found).find(|(expected, found)| expected != found);
    let lines = (expected.len(), found.len());
    assert!(
        expected == found,
        "{}, {what}: of {lines:?} lines, the first that differ are {both:?}",
        folder.display()
    );
}

#[db_testkit::test]
async fn folders_of_real_projects_give_the_same_dump_as_by_sqlx_alone_and_by_turns(_db: TestDb) {
    let Some((_unpacked, folders)) = real_folders() else {
        eprintln!("not tested: there is no ../shared/data/migrations");
        return;
    };
    if let Err(error) = pg_dump() {
        eprintln!("not tested: {error}");
        return;
    }
    assert_eq!(folders.len(), 9);
    for folder in &folders {
        let sqlx = TestDb::empty().await.expect("a database");
        by_sqlx(&sqlx, folder, None).await;
        let ours = TestDb::empty().await.expect("a database");
        by_ours(&ours, folder, None).await;
        by_ours(&ours, folder, None).await;
        if folder.ends_with("underway") {
            // Its first migration makes a table of that name, in which sqlx then records, and which sqlx does not find in its next run.
            same(folder, "by ours", &schema(&sqlx).await, &schema(&ours).await);
            continue;
        }
        let expected = dump(&sqlx).await;
        same(folder, "by ours", &expected, &dump(&ours).await);

        let migrations = Migrations::from_dir(folder).await.expect("migrations");
        let versions: Vec<i64> =
            migrations.status(&config(&ours)).await.expect("a status").iter().map(|it| it.version).collect();
        let few = (versions.len() < 100).then_some(versions[0]);
        for to in few.into_iter().chain([versions[versions.len() / 2]]) {
            let turns = TestDb::empty().await.expect("a database");
            by_sqlx(&turns, folder, Some(to)).await;
            by_ours(&turns, folder, None).await;
            by_sqlx(&turns, folder, None).await;
            same(folder, &format!("by sqlx to {to}, then by ours"), &expected, &dump(&turns).await);
            let turns = TestDb::empty().await.expect("a database");
            by_ours(&turns, folder, Some(to)).await;
            by_sqlx(&turns, folder, None).await;
            same(folder, &format!("by ours to {to}, then by sqlx"), &expected, &dump(&turns).await);
        }
        if ["docs-rs", "sqlxmq", "zksync-prover"].iter().any(|name| folder.ends_with(name)) {
            migrations.down_to(&config(&ours), 0).await.expect("down");
            by_ours(&ours, folder, None).await;
            same(folder, "down and up again", &expected, &dump(&ours).await);
        }
    }
}
