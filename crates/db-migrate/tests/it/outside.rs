//! Files outside of a transaction: statement by statement, resumed, and cleaned up.

use std::fmt::Write;
use std::time::Duration;

use db_core::{Config, ConnectRetry};
use db_migrate::{Error, Migrations, Migrator, Outcome, Repair, State};
use db_testkit::{Proxy, TestDb, until};
use harness::Log;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::{config, exists, folder, migrations, states};

/// A run that does not connect again, as a process that is killed.
fn once() -> ConnectRetry {
    ConnectRetry::default().deadline(Duration::ZERO)
}

async fn execute(db: &TestDb, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&db.pool()).await.expect("executed");
}

async fn texts(db: &TestDb, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&db.pool()).await.expect("texts")
}

async fn text(db: &TestDb, sql: &str) -> String {
    texts(db, sql).await.concat()
}

/// All indexes of `t`, and whether they are valid.
async fn indexes(db: &TestDb) -> Vec<String> {
    let sql = "select indexrelid::regclass::text || case when indisvalid then '' else ' invalid' end
               from pg_index where indrelid = 't'::regclass order by 1";
    texts(db, sql).await
}

async fn up(db: &TestDb, sql: &str) -> Result<Vec<i64>, Error> {
    let sql = format!("-- no-transaction\n{sql}");
    Ok(migrations(&[("1_t.up.sql", &sql)]).await.up(&config(db)).await?.changed)
}

/// The tables of the migrator.
const TABLES: &str =
    "select relname::text from pg_class where relname like '\\_sqlx%' and relkind = 'r' order by relname";

/// Those that stay.
const ON_RECORD: [&str; 2] = ["_sqlx_migrations", "_sqlx_migrations_history"];

/// Each of its statements says that it ran. It has those of `../shared/research`: an index, a set that is meant for the next
/// statement, several statements in a line.
const MIXED: &str = r"create table t (n int, note text) /* s0 */;
create procedure note(said text) language sql begin atomic insert into notes values (said); select 1; end /* s1 */;
call note('s2'); call note('s3') ; call note('; s4')
;set application_name = 's5';
insert into notes select current_setting('application_name') || ' s6';
create index concurrently t_n on t (n) /* s7 */; create unique index concurrently if not exists t_note on t (note) /* s8 */;
vacuum t /* s9 */;
reindex (concurrently) index t_n /* s10 */;
reindex table concurrently t /* s11 */;
create index concurrently on t (n, note) /* s12 */;
drop index concurrently t_n /* s13 */;
create table whole (n int) partition by list (n) /* s14 */;
create table part partition of whole for values in (1) /* s15 */;
alter table whole detach partition part concurrently /* s16 */;
do $$ begin insert into notes values ('s17'); commit; insert into notes values ('more of s17'); end $$;
create materialized view seen as select count(*) as n from notes where false /* s18 */;
set role none /* s19 */; reset all /* s20 */;
insert into notes select 's21 ' || current_setting('lock_timeout')";

async fn state(db: &TestDb) -> Vec<String> {
    let mut state = texts(db, "select note from notes order by note").await;
    state.extend(indexes(db).await);
    state.extend(texts(db, "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind <> 'i' and relname <> '_sqlx_migrations_progress' order by 1").await);
    state.extend(texts(db, "select concat_ws(' ', version, description, success, encode(checksum, 'hex'), execution_time > 0) from _sqlx_migrations").await);
    state
}

fn mixed() -> String {
    format!("-- no-transaction\n{MIXED}")
}

#[db_testkit::test]
async fn each_statement_runs_where_it_may_and_sqlx_sees_one_migration(db: TestDb) {
    execute(&db, "create table notes (note text)").await;
    let sql = mixed();
    let files = folder(&[
        ("1_mixed_one.up.sql", &sql),
        ("1_mixed_one.down.sql", "-- no-transaction\nvacuum;drop table t"),
    ]);
    let ours = Migrations::from_dir(files.path()).await.expect("migrations");

    assert_eq!(ours.up(&config(&db)).await.expect("up").changed, [1]);

    let notes = texts(&db, "select note from notes order by note").await;
    assert_eq!(notes, ["; s4", "more of s17", "s17", "s2", "s21 5s", "s3", "s5 s6"]);
    assert_eq!(indexes(&db).await, ["t_n_note_idx", "t_note"]);
    assert_eq!(texts(&db, TABLES).await, ON_RECORD, "no other table stays");
    let theirs = Migrator::new(files.path()).await.expect("a migrator");
    theirs.run(&db.pool()).await.expect("sqlx finds nothing to do");
    assert_eq!(ours.down_to(&config(&db), 0).await.expect("down").changed, [1]);
    assert!(!exists(&db, "t").await);
    assert_eq!(texts(&db, TABLES).await, ON_RECORD);
    theirs.undo(&db.pool(), 0).await.expect("sqlx finds nothing to undo");
}

#[db_testkit::test]
async fn a_file_that_is_cut_off_at_any_statement_goes_on_there(_db: TestDb) {
    let whole = TestDb::empty().await.expect("a database");
    execute(&whole, "create table notes (note text)").await;
    let sql = mixed();
    let files = [("1_mixed_one.up.sql", sql.as_str())];
    migrations(&files).await.up(&config(&whole)).await.expect("up");
    let expected = state(&whole).await;
    let marks: Vec<String> = (0..=21).map(|nth| format!("s{nth}")).collect();
    // The records, too: each statement in a transaction has one after it, each other one before and after it.
    let records = [
        "insert into public._sqlx_migrations ",
        "has_begun = true",
        "set done = 1,",
        "set done = 8,",
        "set success = true",
    ];
    let mut seen_under_way = 0;
    for mark in marks.iter().map(String::as_str).chain(records) {
        for after in [false, true] {
            let what = format!("{mark}, {}", if after { "answer lost" } else { "not sent" });
            let db = TestDb::empty().await.expect("a database");
            execute(&db, "create table notes (note text)").await;
            let proxy = Proxy::start(&db).expect("a proxy");
            let through = Config::from_url(&proxy.url()).expect("an address");
            let is_word = |word: &str| word == mark;
            let words = |text: &str| text.split(|c: char| !c.is_alphanumeric()).any(is_word);
            let text = MIXED.split(';').find(|text| words(text)).map_or(mark, str::trim);
            if after {
                proxy.cut_answer_to(text);
            } else {
                proxy.cut_before(text);
            }

            let cut = migrations(&files).await.up_within(&through, once()).await;

            let cut = cut.expect_err(&what);
            assert!(cut.is_transient(), "{what}: {cut}");
            let ours = migrations(&files).await;
            if states(&ours, &db).await == [(1, State::UnderWay)] {
                // sqlx keeps its lock after an error.
                let mut connection = db.options().connect().await.expect("a connection");
                let sqlx = Migrator::new(folder(&files).path())
                    .await
                    .expect("a migrator")
                    .run(&mut connection)
                    .await;
                connection.close().await.expect("closed");
                assert!(matches!(sqlx, Err(sqlx::migrate::MigrateError::Dirty(1))), "{what}: {sqlx:?}");
                seen_under_way += 1;
            }

            ours.up(&config(&db)).await.unwrap_or_else(|error| panic!("{what}: {error}"));

            assert_eq!(state(&db).await, expected, "{what}");
        }
    }
    assert!(seen_under_way > 30, "{seen_under_way}");
}

#[db_testkit::test]
async fn what_may_not_stand_in_a_file_is_refused_with_its_place_before_anything_runs(db: TestDb) {
    let error = migrations(&[
        ("1_one.up.sql", "create table one ()"),
        ("2_begin.up.sql", "-- no-transaction\nvacuum;\n  begin; select 1; commit"),
        ("3_copy.up.sql", "create table three (n int);\ncopy three from stdin;\n1\n\\.\n"),
        ("4_a_dump.up.sql", "\\restrict x\nselect 1"),
        ("5_string.up.sql", "select 'never closed"),
        ("6_nul.up.sql", "select 1;\0drop table one"),
        ("6_nul.down.sql", "-- no-transaction\nset local lock_timeout = 1"),
    ])
    .await
    .up(&config(&db))
    .await
    .expect_err("refused");

    let Error::Refused { findings } = &error else { panic!("{error}") };
    let places: Vec<_> = findings
        .iter()
        .map(|finding| (finding.file.as_str(), finding.position.line, finding.position.column))
        .collect();
    assert_eq!(
        places,
        [
            ("2_begin.up.sql", 3, 3),
            ("3_copy.up.sql", 2, 1),
            ("4_a_dump.up.sql", 1, 1),
            ("5_string.up.sql", 1, 8),
            ("6_nul.up.sql", 1, 10)
        ]
    );
    assert!(error.to_string().contains("; 4_a_dump.up.sql, line 1, column 1: a backslash"), "{error}");
    assert!(!exists(&db, "one").await, "nothing runs");

    let down = migrations(&[
        ("1_one.up.sql", "create table one ()"),
        ("1_one.down.sql", "-- no-transaction\nset local lock_timeout = 1"),
    ])
    .await;
    down.up(&config(&db)).await.expect("up");
    let error = down.down_to(&config(&db), 0).await.expect_err("refused");
    assert!(error.to_string().contains("1_one.down.sql, line 2, column 1: its effect ends"), "{error}");
}

#[db_testkit::test]
async fn a_statement_that_fails_is_named_and_its_file_goes_on_there_when_it_is_mended(db: TestDb) {
    let error = up(&db, "create table t (n int);\ninsert into t values (1); select nowhere from t").await;
    let error = error.expect_err("there is no such column");
    assert!(error.to_string().starts_with("migration 1 failed at line 3, column 34: "), "{error}");
    assert!(error.to_string().contains("42703"), "{error}");

    let edited = up(&db, "create table t (n bigint); insert into t values (1); select 1").await;
    assert!(matches!(edited, Err(Error::Edited { version: 1, statements: 2 })), "{edited:?}");
    let shorter = up(&db, "create table t (n int);").await;
    assert!(matches!(shorter, Err(Error::Edited { version: 1, statements: 2 })), "{shorter:?}");

    let files = [("1_t.up.sql", "create table t (n int); insert into t values (1)")];
    let in_transaction = migrations(&files).await.up(&config(&db)).await;
    assert!(matches!(in_transaction, Err(Error::Edited { version: 1, .. })), "{in_transaction:?}");

    // White space, comments between statements, and what comes later may differ.
    let mended = "create table t (n int); -- one\n\ninsert into t values (1); insert into t values (2)";
    assert_eq!(up(&db, mended).await.expect("up"), [1]);
    assert_eq!(text(&db, "select string_agg(n::text, ' ' order by n) from t").await, "1 2", "each once");
    let sql = format!("-- no-transaction\n{mended}");
    let theirs = Migrator::new(folder(&[("1_t.up.sql", &sql)]).path()).await.expect("a migrator");
    theirs.run(&db.pool()).await.expect("sqlx knows the file as it is now");
}

#[db_testkit::test]
async fn a_place_in_a_migration_within_a_transaction_is_named(db: TestDb) {
    let files = [("1_t.up.sql", "create table t (n int);\r\ninsert into t values ('é'),\r\n ('x')")];
    let error = migrations(&files).await.up(&config(&db)).await.expect_err("no number");
    assert!(error.to_string().starts_with("migration 1 failed at line 2, column 23: "), "{error}");
}

#[db_testkit::test]
async fn an_index_that_fails_is_dropped_and_others_stay(db: TestDb) {
    execute(&db, "create table t (n int); insert into t values (1), (1)").await;
    let mut other = db.options().connect().await.expect("a connection");
    let failed = sqlx::raw_sql("create unique index concurrently other on t (n)").execute(&mut other).await;
    failed.expect_err("two rows are equal");
    assert_eq!(indexes(&db).await, ["other invalid"]);

    for sql in [
        "create unique index concurrently mine on t (n)",
        "create unique index concurrently on t (n)",
        "create unique index concurrently if not exists \"Mine\" on public.t (n)",
    ] {
        let error = up(&db, sql).await.expect_err("two rows are equal");
        assert!(
            matches!(&error, Error::Failed { cause, .. } if cause.sqlstate().as_deref() == Some("23505")),
            "{error}"
        );
        assert_eq!(indexes(&db).await, ["other invalid"], "{sql}");
    }

    execute(&db, "delete from t").await;
    let sql = "create unique index concurrently if not exists other on t (n)";
    let error = up(&db, sql).await.expect_err("it would stay invalid");
    assert!(matches!(&error, Error::InvalidIndex { version: 1, index } if index == "other"), "{error}");
    execute(&db, "drop index other").await;
    assert_eq!(up(&db, sql).await.expect("up"), [1]);
    assert_eq!(indexes(&db).await, ["other"]);
    other.close().await.expect("closed");
}

/// A session that an index waits for.
async fn holder(db: &TestDb) -> PgConnection {
    let mut holder = db.options().connect().await.expect("a connection");
    sqlx::raw_sql("begin; insert into t values (0)").execute(&mut holder).await.expect("written");
    holder
}

async fn is_waiting(db: &TestDb, statement: &str) -> bool {
    let sql = format!(
        "select pid::text from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '{statement}%'"
    );
    !texts(db, &sql).await.is_empty()
}

#[db_testkit::test]
async fn an_index_whose_build_is_killed_is_built_again(db: TestDb) {
    execute(&db, "create table t (n int); create table u (n int); create index t_old on t (n)").await;
    for (sql, what, expected) in [
        ("create index concurrently mine on t (n)", "create", vec!["mine", "t_old"]),
        (
            "set application_name = 'x'; create index concurrently if not exists mine on t (n); drop index concurrently mine",
            "create",
            vec!["t_old"],
        ),
        ("create index concurrently on t (n)", "create", vec!["t_n_idx", "t_old"]),
        ("reindex table concurrently t; drop index t_n_idx", "reindex", vec!["t_old"]),
        ("drop index concurrently t_old", "drop", vec![]),
    ] {
        let holder = holder(&db).await;
        let config = config(&db);
        let killed = async {
            until("it waits", async || is_waiting(&db, what).await).await;
            execute(&db, &format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '{what}%'")).await;
        };
        let migrations = migrations(&[("1_t.up.sql", &format!("-- no-transaction\n{sql}"))]).await;
        let (cut, ()) = tokio::join!(migrations.up_within(&config, once()), killed);
        assert!(cut.expect_err("killed").is_transient());
        assert_eq!(states(&migrations, &db).await, [(1, State::UnderWay)], "{sql}");
        holder.close().await.expect("closed");

        assert_eq!(migrations.up(&config).await.expect(sql).changed, [1]);

        assert_eq!(indexes(&db).await, expected, "{sql}");
        execute(&db, "drop index if exists mine; delete from _sqlx_migrations").await;
    }
}

#[db_testkit::test]
async fn an_index_that_ends_in_a_deadlock_is_built_again(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    execute(&db, "create table t (n int)").await;
    let mut holder = db.options().connect().await.expect("a connection");
    // The index is the one that looks for deadlocks first.
    sqlx::raw_sql("set deadlock_timeout = '1h'; begin; insert into t values (1)")
        .execute(&mut holder)
        .await
        .expect("written");
    let files = [("74_t.up.sql", "-- no-transaction\ncreate index concurrently mine on t (n)")];
    let (migrations, config) = (migrations(&files).await, config(&db));
    let index = migrations.up(&config);
    let locked = async {
        until("it waits", async || is_waiting(&db, "create index").await).await;
        sqlx::raw_sql("lock table t in share update exclusive mode")
            .execute(&mut holder)
            .await
            .expect("locked");
        sqlx::raw_sql("commit").execute(&mut holder).await.expect("committed");
    };

    let (done, ()) = tokio::join!(index, locked);

    assert_eq!(done.expect("up").changed, [74]);
    assert_eq!(indexes(&db).await, ["mine"]);
    assert!(log.count(&["a migration gave way", "version=74", "deadlock detected"]) > 0);
    holder.close().await.expect("closed");
}

#[db_testkit::test]
async fn a_partition_whose_detaching_is_killed_is_detached(db: TestDb) {
    let version = text(&db, "select current_setting('server_version_num')").await;
    assert!(version.parse::<i32>().is_ok_and(|version| version >= 140_000), "{version}");
    execute(
        &db,
        "create table t (n int) partition by list (n); create table part partition of t for values in (1)",
    )
    .await;
    let mut reader = db.options().connect().await.expect("a connection");
    sqlx::raw_sql("begin; select * from t").execute(&mut reader).await.expect("read");
    let sql = "-- no-transaction\nalter table t detach partition part concurrently";
    let migrations = migrations(&[("1_t.up.sql", sql)]).await;
    let config = config(&db);
    let killed = async {
        until("it waits", async || is_waiting(&db, "alter table t").await).await;
        execute(&db, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like 'alter table t%'").await;
    };
    let (cut, ()) = tokio::join!(migrations.up_within(&config, once()), killed);
    assert!(cut.expect_err("killed").is_transient());
    assert_eq!(
        text(&db, "select inhdetachpending::text from pg_inherits where inhrelid = 'part'::regclass").await,
        "true"
    );
    reader.close().await.expect("closed");

    assert_eq!(migrations.up(&config).await.expect("up").changed, [1]);

    assert_eq!(
        text(&db, "select count(*)::text from pg_inherits where inhrelid = 'part'::regclass").await,
        "0"
    );
}

const HALF: &str = "create table t (n int);
create procedure half() language plpgsql as $$ begin
    insert into t values (1); commit; perform pg_sleep(600);
end $$;
  call half(); insert into t values (2)";

/// Ends the migrating session within `call half()`.
async fn cut_in_half(db: &TestDb, migrations: &Migrations) {
    let config = config(db);
    let killed = async {
        until("it sleeps", async || {
            !texts(db, "select query from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'").await.is_empty()
        })
        .await;
        execute(db, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'").await;
    };
    let (cut, ()) = tokio::join!(migrations.up(&config), killed);
    let error = cut.expect_err("a person has to decide");
    let Error::Interrupted { version: 1, position, .. } = &error else { panic!("{error}") };
    assert_eq!((position.line, position.column), (6, 3));
    assert!(error.to_string().contains("it may be done, in part or not at all"), "{error}");
    let again = migrations.up(&config).await.expect_err("nobody has decided");
    assert!(matches!(again, Error::Interrupted { .. }), "{again}");
}

#[db_testkit::test]
async fn what_the_catalog_does_not_tell_is_decided_by_a_person(db: TestDb) {
    let sql = format!("-- no-transaction\n{HALF}");
    let migrations = migrations(&[("1_t.up.sql", &sql)]).await;
    let nothing = migrations.repair(&config(&db), 1, Repair::StatementDone).await;
    assert!(matches!(nothing, Err(Error::NothingToRepair { version: 1 })), "{nothing:?}");
    for (repair, expected) in [(Repair::StatementDone, "1 2"), (Repair::Applied, "1")] {
        cut_in_half(&db, &migrations).await;

        migrations.repair(&config(&db), 1, repair).await.expect("repaired");

        migrations.up(&config(&db)).await.expect("up");
        assert_eq!(text(&db, "select string_agg(n::text, ' ' order by n) from t").await, expected);
        assert_eq!(states(&migrations, &db).await, [(1, State::Applied)]);
        execute(&db, "drop procedure half; drop table t; delete from _sqlx_migrations").await;
    }
    cut_in_half(&db, &migrations).await;
    execute(
        &db,
        "create or replace procedure half() language sql begin atomic insert into t values (3); end",
    )
    .await;
    migrations.repair(&config(&db), 1, Repair::StatementUndone).await.expect("repaired");
    migrations.up(&config(&db)).await.expect("up");
    assert_eq!(text(&db, "select string_agg(n::text, ' ' order by n) from t").await, "1 2 3");
    execute(&db, "drop procedure half; drop table t; delete from _sqlx_migrations").await;

    cut_in_half(&db, &migrations).await;
    migrations.repair(&config(&db), 1, Repair::NotApplied).await.expect("repaired");
    assert_eq!(states(&migrations, &db).await, [(1, State::Pending)]);
    let error = migrations.up(&config(&db)).await.expect_err("from its beginning");
    assert!(error.to_string().contains("already exists"), "{error}");
}

#[db_testkit::test]
async fn a_migration_that_another_migrator_did_not_end_can_be_repaired(db: TestDb) {
    let migrations = migrations(&[("1_t.up.sql", "create table t ()")]).await;
    for (repair, expected) in [(Repair::Applied, State::Applied), (Repair::NotApplied, State::Pending)] {
        migrations.up(&config(&db)).await.expect("up");
        execute(&db, "update _sqlx_migrations set success = false").await;
        assert_eq!(states(&migrations, &db).await, [(1, State::Dirty)]);
        let nothing = migrations.repair(&config(&db), 1, Repair::StatementUndone).await;
        assert!(matches!(nothing, Err(Error::NothingToRepair { version: 1 })), "{nothing:?}");

        migrations.repair(&config(&db), 1, repair).await.expect("repaired");

        assert_eq!(states(&migrations, &db).await, [(1, expected)]);
    }
}

#[db_testkit::test]
async fn a_new_session_has_the_settings_of_the_statements_before_and_what_is_lost_is_told(db: TestDb) {
    execute(&db, "create table t (n int, note text)").await;
    let sql = "-- no-transaction
        set search_path = pg_catalog, public; select set_config('application_name', 'mine', false);
        prepare p as insert into t values (1, current_setting('application_name'));
        create index concurrently t_n on t (n);
        execute p";
    for lost in ["", "create temp table gone (n int);"] {
        let sql = sql.replace("create index", &format!("{lost} create index"));
        let migrations = migrations(&[("1_t.up.sql", &sql)]).await;
        let proxy = Proxy::start(&db).expect("a proxy");
        let through = Config::from_url(&proxy.url()).expect("an address");
        proxy.cut_answer_to("create index");

        let done = migrations.up(&through).await;

        if lost.is_empty() {
            assert_eq!(done.expect("up").changed, [1]);
            assert_eq!(text(&db, "select note from t").await, "mine");
            execute(&db, "drop index t_n; delete from t; delete from _sqlx_migrations").await;
        } else {
            let error = done.expect_err("the table is lost");
            assert!(error.to_string().contains("lost with its session"), "{error}");
            assert!(matches!(&error, Error::Interrupted { position, .. } if position.line == 4), "{error}");
        }
    }
}

#[db_testkit::test]
async fn a_way_down_that_was_cut_off_goes_on_down_and_not_up(db: TestDb) {
    let down =
        "-- no-transaction\ndrop index concurrently t_n; insert into notes values ('down'); drop table t";
    let up = "-- no-transaction\ncreate table t (n int); create index concurrently t_n on t (n)";
    let migrations = migrations(&[("1_t.up.sql", up), ("1_t.down.sql", down)]).await;
    execute(&db, "create table notes (note text)").await;
    migrations.up(&config(&db)).await.expect("up");
    let proxy = Proxy::start(&db).expect("a proxy");
    let through = Config::from_url(&proxy.url()).expect("an address");
    for text in ["drop index", "insert into notes"] {
        proxy.cut_answer_to(text);
        let cut = migrations.down_to(&through, 0).await.expect_err("cut off");
        assert!(cut.is_transient(), "{cut}");
        assert_eq!(states(&migrations, &db).await, [(1, State::UnderWay)]);
    }
    let error = migrations.up(&config(&db)).await.expect_err("it goes down");
    assert!(matches!(error, Error::UnderWay { version: 1, reverts: true }), "{error}");

    assert_eq!(migrations.down_to(&config(&db), 0).await.expect("down").changed, [1]);

    assert_eq!(texts(&db, "select note from notes").await, ["down"], "once");
    assert_eq!(states(&migrations, &db).await, [(1, State::Pending)]);
    assert!(!exists(&db, "t").await);
}

#[db_testkit::test]
async fn records_are_written_by_the_role_that_connects_whatever_the_file_sets(db: TestDb) {
    let role = format!("mine_{}", db.name());
    execute(&db, &format!("create role {role}; create schema s authorization {role}")).await;
    let mut sql = "-- no-transaction\nset role %; set search_path = s; set statement_timeout = '1s'; set lock_timeout = '1s';
         create table t (n int); create index concurrently t_n on t (n); set default_transaction_read_only = on;
         select 1; vacuum t;"
        .replace('%', &role);
    let _ = write!(sql, "set default_transaction_read_only = off; create table u (n int)");

    let done = migrations(&[("1_t.up.sql", &sql)]).await.up(&config(&db)).await;

    let owners = texts(&db, "select tableowner::text from pg_tables where schemaname = 's'").await;
    execute(&db, &format!("drop owned by {role}; drop role {role}")).await;
    assert_eq!(done.expect("up").changed, [1]);
    assert_eq!(owners, [role.clone(), role], "later statements have what is set");
}

#[db_testkit::test]
async fn a_statement_of_a_file_gives_way_by_itself(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    execute(&db, "create table t (n int)").await;
    let mut reader = db.options().application_name("slow reader").connect().await.expect("a connection");
    sqlx::raw_sql("begin; select * from t").execute(&mut reader).await.expect("read");
    let pid = sqlx::query_scalar::<_, i32>("select pg_backend_pid()")
        .fetch_one(&mut reader)
        .await
        .expect("a number");
    let sql = "-- no-transaction\nset application_name = 'mine'; alter table t add color text; vacuum t";
    let migrations = migrations(&[("1_t.up.sql", sql)]).await.with_lock_timeout(Duration::from_millis(200));
    let config = config(&db);
    let written = async {
        until("it waits", async || is_waiting(&db, "alter table t").await).await;
        // Behind the migration, so it gets in only when that gives way.
        execute(&db, "insert into t values (1)").await;
        let blocker = format!("process {pid} (slow reader)");
        until("the reader is told", async || log.count(&["a migration gave way", &blocker]) > 1).await;
        reader.close().await.expect("closed");
    };

    let (done, ()) = tokio::join!(migrations.up(&config), written);

    assert_eq!(done.expect("up").changed, [1]);
}

#[db_testkit::test]
async fn an_index_that_is_done_and_not_on_record_is_not_built_again(db: TestDb) {
    execute(&db, "create table t (n int)").await;
    for sql in ["create index concurrently mine on t (n)", "create index concurrently on t (n)"] {
        let migrations = migrations(&[("1_t.up.sql", &format!("-- no-transaction\n{sql}"))]).await;
        let proxy = Proxy::start(&db).expect("a proxy");
        proxy.cut_answer_to("create index");
        let through = Config::from_url(&proxy.url()).expect("an address");
        migrations.up_within(&through, once()).await.expect_err("cut off");
        let oids = "select string_agg(indexrelid::text, ' ') from pg_index where indrelid = 't'::regclass";
        let built = text(&db, oids).await;

        assert_eq!(migrations.up(&config(&db)).await.expect("up").changed, [1]);

        assert_eq!(text(&db, oids).await, built, "{sql}");
        execute(&db, "drop index if exists mine; delete from _sqlx_migrations").await;
    }
}

#[db_testkit::test]
async fn a_statement_that_the_server_refuses_outside_of_a_transaction_leaves_nothing_to_decide(db: TestDb) {
    let error = up(&db, &format!("create database {}", db.name())).await.expect_err("it exists");
    assert!(
        matches!(&error, Error::Failed { cause, .. } if cause.sqlstate().as_deref() == Some("42P04")),
        "{error}"
    );

    assert_eq!(up(&db, "create table t (n int)").await.expect("another statement in its place"), [1]);
}

/// Waits within a transaction for a row in `gate`, and then sets a limit that is shorter than the lock timeouts here.
const GATE: &str = "do $$ begin
    while not exists (select from gate) loop perform pg_sleep(0.01); end loop;
    perform set_config('statement_timeout', '100', false);
end $$";

async fn is_at_the_gate(db: &TestDb) {
    let sql =
        "select query from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
    until("it is at the gate", async || !texts(db, sql).await.is_empty()).await;
}

#[db_testkit::test]
async fn a_record_waits_for_others_longer_than_a_statement_of_the_file_may_and_gives_way(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    execute(&db, "create table gate ()").await;
    for (version, table) in [(71, "_sqlx_migrations_progress"), (72, "_sqlx_migrations")] {
        let (name, sql) = (format!("{version}_t.up.sql"), format!("-- no-transaction\n{GATE}"));
        let migrations = migrations(&[(&name, &sql)]).await.with_lock_timeout(Duration::from_millis(300));
        let config = config(&db);
        let mut other = db.options().connect().await.expect("a connection");
        let locked = async {
            is_at_the_gate(&db).await;
            let lock = format!("begin; lock table {table} in share mode");
            sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut other).await.expect("locked");
            execute(&db, "insert into gate default values").await;
            let told = format!("version={version}");
            until("the record gives way", async || log.count(&["a migration gave way", &told]) > 0).await;
            other.close().await.expect("closed");
        };

        let (done, ()) = tokio::join!(migrations.up(&config), locked);

        assert_eq!(done.expect(table).changed, [version]);
        execute(&db, "delete from gate; delete from _sqlx_migrations").await;
    }
}

#[db_testkit::test]
async fn a_file_whose_record_is_committed_ends_when_the_record_can_be_read(db: TestDb) {
    let log = Log::of_this_process("db_migrate=info");
    execute(&db, "create table gate ()").await;
    let sql = format!("-- no-transaction\n{GATE}");
    let files = [("73_t.up.sql", &*sql), ("74_next.sql", "create table next ()")];
    let migrations = migrations(&files).await.with_lock_timeout(Duration::from_secs(2));
    let config = config(&db);
    let mut keeper = db.options().connect().await.expect("a connection");
    let mut other = db.options().connect().await.expect("a connection");
    let locked = async {
        is_at_the_gate(&db).await;
        // The last record deletes the row, after it has locked sqlx's table.
        let keep = sqlx::raw_sql("begin; select from _sqlx_migrations_progress for key share");
        keep.execute(&mut keeper).await.expect("locked");
        execute(&db, "insert into gate default values").await;
        until("the last record waits", async || is_waiting(&db, "begin read write; set statement").await)
            .await;
        // From the commit on, another session has that table.
        let locking = tokio::spawn(async move {
            sqlx::raw_sql("begin; lock table _sqlx_migrations").execute(&mut other).await.expect("locked");
            other
        });
        until("another session queues", async || is_waiting(&db, "begin; lock table").await).await;
        keeper.close().await.expect("closed");
        let other = locking.await.expect("it has the lock after the commit");
        until("the look gives way", async || log.count(&["a migration gave way", "version=73"]) > 0).await;
        other.close().await.expect("closed");
    };

    let (done, ()) = tokio::join!(migrations.up(&config), locked);

    assert_eq!(done.expect("up").changed, [73, 74]);
    let took = "select (success and execution_time > 0)::text from _sqlx_migrations where version = 73";
    assert_eq!(text(&db, took).await, "true");
    let history = migrations.history(&config).await.expect("a history");
    let history: Vec<_> = history.iter().map(|it| (it.version, it.outcome)).collect();
    assert_eq!(history, [(73, Outcome::Done), (74, Outcome::Done)]);
}

#[db_testkit::test]
async fn a_file_whose_first_statement_fails_is_not_under_way(db: TestDb) {
    let down = "-- no-transaction\nselect nowhere; drop table t";
    let files = [("1_t.up.sql", "create table t ()"), ("1_t.down.sql", down)];
    let ours = migrations(&files).await;
    ours.up(&config(&db)).await.expect("up");

    let error = ours.down_to(&config(&db), 0).await.expect_err("there is no such column");

    assert!(error.to_string().starts_with("migration 1 failed at line 2, column 8: "), "{error}");
    assert_eq!(states(&ours, &db).await, [(1, State::Applied)]);
    let more = [
        &files[..],
        &[("2_u.up.sql", "-- no-transaction\ncreate database nowhere template nowhere; select 1")],
    ]
    .concat();
    let more = migrations(&more).await;
    more.up(&config(&db)).await.expect_err("there is no such template");
    assert_eq!(states(&more, &db).await, [(1, State::Applied), (2, State::Pending)]);
    assert_eq!(texts(&db, TABLES).await, ON_RECORD);
}

#[db_testkit::test]
async fn a_backslash_in_a_string_is_one_whatever_the_database_says(db: TestDb) {
    execute(
        &db,
        &format!(
            "create table notes (note text); alter database {} set standard_conforming_strings = off",
            db.name()
        ),
    )
    .await;

    let done = up(&db, r"insert into notes values ('\'); insert into notes values (E'\\;')").await;

    assert_eq!(done.expect("up"), [1]);
    assert_eq!(texts(&db, "select note from notes order by length(note)").await, [r"\", r"\;"]);
}

#[db_testkit::test]
async fn what_was_never_there_is_neither_dropped_nor_detached(db: TestDb) {
    execute(&db, "create table t (n int) partition by list (n); create table u (n int)").await;
    for (sql, code) in [
        ("drop index concurrently nowhere", "42704"),
        ("alter table t detach partition nowhere concurrently", "42P01"),
        ("alter table t detach partition u concurrently", "42P01"),
    ] {
        let error = up(&db, sql).await.expect_err("it is not there");
        assert!(
            matches!(&error, Error::Failed { cause, .. } if cause.sqlstate().as_deref() == Some(code)),
            "{sql}: {error}"
        );
    }
    assert_eq!(up(&db, "drop index concurrently if exists nowhere").await.expect("up"), [1]);
}

#[db_testkit::test]
async fn an_index_of_the_same_name_in_another_schema_is_not_dropped_when_the_first_one_is(db: TestDb) {
    execute(
        &db,
        "create schema a; create table a.t (n int); create index i on a.t (n);
         create schema b; create table b.t (n int); create index i on b.t (n)",
    )
    .await;
    let migrations =
        migrations(&[("1_t.up.sql", "-- no-transaction\nset search_path = a, b; drop index concurrently i")])
            .await;
    let proxy = Proxy::start(&db).expect("a proxy");
    let through = Config::from_url(&proxy.url()).expect("an address");
    proxy.cut_answer_to("drop index");

    assert_eq!(migrations.up(&through).await.expect("up").changed, [1]);

    let left = "select indexrelid::regclass::text from pg_index where indexrelid::regclass::text ~ 'i$'";
    assert_eq!(texts(&db, left).await, ["b.i"]);
}

#[db_testkit::test]
async fn indexes_that_were_there_before_are_found_as_the_role_of_the_migrations_finds_them(db: TestDb) {
    let role = format!("owner_{}", db.name());
    execute(
        &db,
        &format!(
            "create role {role}; create schema {role} authorization {role}; set role {role};
             create table {role}.t (n int); create index old on {role}.t (n); insert into {role}.t values (1), (1); reset role"
        ),
    )
    .await;
    // By the default of `search_path`, the table is found by that role alone.
    let sql = "-- no-transaction\ncreate unique index concurrently on t (n)";
    let failed = migrations(&[("1_t.up.sql", sql)]).await.with_role(role.clone()).up(&config(&db)).await;

    let left = texts(
        &db,
        &format!("select relname::text from pg_class where relnamespace = '{role}'::regnamespace order by 1"),
    )
    .await;
    execute(&db, &format!("drop owned by {role}; drop role {role}")).await;
    let error = failed.expect_err("two rows are equal");
    assert!(
        matches!(&error, Error::Failed { cause, .. } if cause.sqlstate().as_deref() == Some("23505")),
        "{error}"
    );
    assert_eq!(left, ["old", "t"]);
    assert_eq!(text(&db, "select count(*)::text from _sqlx_migrations").await, "0", "nothing is under way");
}

/// Cuts a statement off while it waits, and runs something before it is resumed.
async fn cut_off(db: &TestDb, sql: &str, meanwhile: &str) -> Migrations {
    let holder = holder(db).await;
    let migrations = migrations(&[("1_t.up.sql", &format!("-- no-transaction\n{sql}"))]).await;
    let config = config(db);
    let what = sql.split(' ').next().expect("a word");
    let killed = async {
        until("it waits", async || is_waiting(db, what).await).await;
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        execute(db, kill).await;
    };
    let (cut, ()) = tokio::join!(migrations.up_within(&config, once()), killed);
    assert!(cut.expect_err("killed").is_transient());
    holder.close().await.expect("closed");
    let mut other = db.options().connect().await.expect("a connection");
    // It may fail, and leave an invalid index.
    let _ = sqlx::raw_sql(AssertSqlSafe(meanwhile.to_owned())).execute(&mut other).await;
    other.close().await.expect("closed");
    migrations
}

#[db_testkit::test]
async fn an_index_that_somebody_else_made_meanwhile_is_neither_dropped_nor_taken_for_ours(db: TestDb) {
    execute(&db, "create table t (n int); create table u (n int); insert into u values (1), (1)").await;

    let migrations = cut_off(&db, "create index concurrently on t (n)", "create index theirs on t (n)").await;
    let error = migrations.up(&config(&db)).await.expect_err("one of two");
    assert!(matches!(error, Error::Interrupted { version: 1, .. }), "{error}");
    assert_eq!(indexes(&db).await, ["t_n_idx invalid", "theirs"]);
    execute(&db, "drop index t_n_idx").await;
    migrations.repair(&config(&db), 1, Repair::StatementUndone).await.expect("repaired");
    migrations.up(&config(&db)).await.expect("up");
    assert_eq!(indexes(&db).await, ["t_n_idx", "theirs"]);

    execute(&db, "delete from _sqlx_migrations").await;
    for sql in ["reindex table concurrently t", "reindex index concurrently theirs"] {
        let meanwhile = "create unique index concurrently u_ccnew on u (n)";
        let migrations = cut_off(&db, sql, meanwhile).await;
        migrations.up(&config(&db)).await.expect(sql);
        assert_eq!(indexes(&db).await, ["t_n_idx", "theirs"], "{sql}");
        let left = "select indexrelid::regclass::text from pg_index where not indisvalid";
        assert_eq!(texts(&db, left).await, ["u_ccnew"], "{sql}");
        execute(&db, "drop index u_ccnew; delete from _sqlx_migrations").await;
    }
}

#[db_testkit::test]
async fn a_file_that_was_edited_and_is_said_to_be_applied_is_on_record_as_it_is(db: TestDb) {
    up(&db, "create table t (n int); select nowhere").await.expect_err("there is no such column");
    let sql = "-- no-transaction\ncreate table t (n bigint)";
    let migrations = migrations(&[("1_t.up.sql", sql)]).await;
    let edited = migrations.up(&config(&db)).await;
    assert!(matches!(edited, Err(Error::Edited { version: 1, statements: 1 })), "{edited:?}");

    migrations.repair(&config(&db), 1, Repair::Applied).await.expect("repaired");

    assert_eq!(migrations.up(&config(&db)).await.expect("nothing to do").changed, [0; 0]);
}

#[db_testkit::test]
async fn an_index_is_not_dropped_while_somebody_builds_one_on_its_table(db: TestDb) {
    execute(&db, "create table t (n int)").await;
    let migrations = cut_off(&db, "create index concurrently mine on t (n)", "").await;
    let holder = holder(&db).await;
    let mut other = db.options().connect().await.expect("a connection");
    let theirs = async {
        let built = sqlx::raw_sql("create index concurrently theirs on t (n)").execute(&mut other).await;
        built.expect("built");
    };
    let ours = async {
        until("they build theirs", async || is_waiting(&db, "create index concurrently theirs").await).await;
        let config = config(&db);
        // Dropping it would wait for the other build.
        let told = tokio::time::timeout(Duration::from_secs(20), migrations.up(&config)).await;
        let error = told.expect("in time").expect_err("which one is built is not told");
        assert!(matches!(error, Error::Interrupted { version: 1, .. }), "{error}");
        assert_eq!(indexes(&db).await, ["mine invalid", "theirs invalid"]);
        holder.close().await.expect("closed");
    };
    tokio::join!(theirs, ours);
    other.close().await.expect("closed");

    assert_eq!(migrations.up(&config(&db)).await.expect("up").changed, [1]);

    assert_eq!(indexes(&db).await, ["mine", "theirs"]);
}
