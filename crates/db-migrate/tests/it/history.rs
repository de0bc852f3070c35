//! What is on record: edited files, attempts, ways back, and what others have done meanwhile.

use std::time::Duration;

use db_core::sql::Position;
use db_core::{Config, ConnectRetry, connect};
use db_migrate::{Action, Attempt, Edits, Error, Migrations, Migrator, Outcome, State};
use db_testkit::{Proxy, TestDb, until};
use harness::Log;
use sqlx::migrate::MigrateError;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::batches::as_role;
use crate::{SHOP, config, execute, exists, folder, migrations, states};

/// No versions.
const NONE: [i64; 0] = [];

async fn history(db: &TestDb) -> Vec<Attempt> {
    migrations(&[]).await.history(&config(db)).await.expect("a history")
}

/// Version, action and outcome of each attempt.
async fn attempts(db: &TestDb) -> Vec<(i64, Action, Outcome)> {
    history(db).await.iter().map(|it| (it.version, it.action, it.outcome)).collect()
}

async fn by_sqlx(files: &TempDir, db: &TestDb) -> Result<(), MigrateError> {
    // With a pool of its own: sqlx leaves its lock in a connection after an error.
    let pool = sqlx::PgPool::connect_with(db.options()).await.expect("a pool");
    let done = Migrator::new(files.path()).await.expect("a migrator").run(&pool).await;
    pool.close().await;
    done
}

const LIST: &str = "-- The list of all things.\ncreate table list (\n    id int primary key,\n    name text default '-- none'\n);\n";

/// What people have done to files that were applied, and nothing of it changes what they do.
fn reformatted() -> Vec<(&'static str, String)> {
    vec![
        ("a typo in a comment is corrected", LIST.replace("The list", "A list")),
        ("a licence is put before it", format!("-- SPDX-License-Identifier: MIT\n\n{LIST}")),
        ("a formatter indents it", LIST.replace("\n    ", " ").replace(',', " ,")),
        (
            "a formatter writes keywords in capitals",
            LIST.replace("create table", "CREATE TABLE").replace("default", "DEFAULT"),
        ),
        ("git converts line ends", LIST.replace('\n', "\r\n")),
        ("an editor adds a byte order mark", format!("\u{feff}{LIST}")),
        ("a hook takes the last line end", LIST.trim_end().to_owned()),
    ]
}

#[db_testkit::test]
async fn a_file_whose_comments_or_formatting_were_edited_does_not_stop_the_next_one(db: TestDb) {
    execute(&db, "create table first_seen (by_ours bool)").await;
    for (n, (edit, text)) in reformatted().into_iter().enumerate() {
        let by_ours = n % 2 == 0;
        let files = folder(&[("1_list.sql", LIST)]);
        if by_ours {
            Migrations::from_dir(files.path()).await.expect(edit).up(&config(&db)).await.expect(edit);
        } else {
            by_sqlx(&files, &db).await.expect(edit);
            // Nothing is to be done, and the program sees the file before it is edited.
            let report = Migrations::from_dir(files.path()).await.expect(edit).up(&config(&db)).await;
            assert_eq!(report.expect(edit).changed, NONE, "{edit}");
        }
        std::fs::write(files.path().join("1_list.sql"), text).expect(edit);
        std::fs::write(files.path().join("2_more.sql"), "create table more ()").expect(edit);
        let ours = Migrations::from_dir(files.path()).await.expect(edit);

        assert_eq!(states(&ours, &db).await, [(1, State::Reformatted), (2, State::Pending)], "{edit}");
        assert_eq!(ours.up(&config(&db)).await.expect(edit).changed, [2], "{edit}");
        assert_eq!(ours.up(&config(&db)).await.expect(edit).changed, NONE, "{edit}");

        let error = by_sqlx(&files, &db).await.expect_err(edit);
        assert!(matches!(error, MigrateError::VersionMismatch(1)), "{edit}: {error}");
        assert_eq!(ours.rebless(&config(&db), &[], edit).await.expect(edit), [1], "{edit}");
        assert_eq!(states(&ours, &db).await, [(1, State::Applied), (2, State::Applied)], "{edit}");
        by_sqlx(&files, &db).await.expect(edit);
        let last = history(&db).await.pop().expect("an entry");
        assert_eq!((last.version, last.action, last.reason.as_deref()), (1, Action::Reblessed, Some(edit)));

        execute(&db, "drop table list, more, _sqlx_migrations, _sqlx_migrations_history").await;
    }
}

#[db_testkit::test]
async fn an_edit_is_told_refused_or_taken_as_the_program_says(db: TestDb) {
    let version = 20_261_128_000_001;
    let name = format!("{version}_list.sql");
    migrations(&[(&name, LIST)]).await.up(&config(&db)).await.expect("up");
    let edited = LIST.replace("The list", "A list");
    let files = [(&*name, &*edited)];
    let log = Log::of_this_process("db_migrate=info");
    let told = || log.count(&["comments or formatting", &version.to_string()]);

    migrations(&files).await.with_edits(Edits::Allow).up(&config(&db)).await.expect("allowed");
    assert_eq!(told(), 0);
    migrations(&files).await.up(&config(&db)).await.expect("told");
    assert_eq!(told(), 1);
    let error = migrations(&files).await.with_edits(Edits::Refuse).up(&config(&db)).await;

    assert!(matches!(error, Err(Error::Reformatted { version: found }) if found == version), "{error:?}");
}

#[db_testkit::test]
async fn a_file_that_says_something_else_is_refused_with_the_difference(db: TestDb) {
    let files = folder(&[("1_list.sql", LIST)]);
    by_sqlx(&files, &db).await.expect("applied");
    std::fs::write(files.path().join("1_list.sql"), LIST.replace("-- none", "no name")).expect("written");
    let changed = Migrations::from_dir(files.path()).await.expect("migrations");

    let error = changed.up(&config(&db)).await.expect_err("changed before it was seen");
    assert!(matches!(&error, Error::Changed { version: 1, difference: None }), "{error:?}");
    assert_eq!(error.to_string(), "migration 1 was changed after it was applied to this database");

    migrations(&[("1_list.sql", LIST)]).await.up(&config(&db)).await.expect("adopted");
    let error = changed.up(&config(&db)).await.expect_err("changed after it was seen").to_string();
    for line in ["--- applied", "-    name text default '-- none'", "+    name text default 'no name'"] {
        assert!(error.lines().any(|found| found == line), "{error}");
    }
    assert_eq!(attempts(&db).await, [(1, Action::Adopted, Outcome::Done)]);

    // A person may answer for it.
    assert_eq!(changed.rebless(&config(&db), &[], "none").await.expect("no comment was edited"), NONE);
    assert_eq!(changed.rebless(&config(&db), &[1], "by hand").await.expect("named"), [1]);
    assert_eq!(changed.up(&config(&db)).await.expect("up").changed, NONE);
    let error = changed.rebless(&config(&db), &[1], "again").await.expect_err("it is the one on record");
    assert!(matches!(error, Error::NothingToRebless { version: 1 }), "{error:?}");
}

#[db_testkit::test]
async fn without_stored_sql_edits_are_known_and_differences_are_not(db: TestDb) {
    let secret = "create role app_% password 'hunter2'".replace('%', db.name());
    let files = [("1_list.up.sql", LIST), ("1_list.down.sql", "drop table list"), ("2_role.sql", &*secret)];
    let error = migrations(&files[..2]).await.with_stored_sql(false).up(&config(&db)).await;
    error.expect("up");
    let failing = format!("{secret}; select 1 from nowhere");
    let failing = migrations(&[files[0], files[1], ("2_role.sql", &*failing)]).await.with_stored_sql(false);
    failing.up(&config(&db)).await.expect_err("nowhere");

    let edited = LIST.replace("The list", "A list");
    let changed = LIST.replace("-- none", "no name");
    let [edited, changed] = [edited, changed]
        .map(|text| async move { migrations(&[("1_list.up.sql", &*text)]).await.with_stored_sql(false) });
    assert_eq!(states(&edited.await, &db).await, [(1, State::Reformatted)]);
    let error = changed.await.up(&config(&db)).await;

    assert!(matches!(error, Err(Error::Changed { version: 1, difference: None })), "{error:?}");
    let texts: i64 = sqlx::query_scalar(
        "select count(*) from _sqlx_migrations_history as h where h::text like '%hunter2%' or h::text like '%name text%'",
    )
    .fetch_one(&db.pool())
    .await
    .expect("a count");
    assert_eq!(texts, 0);
}

#[db_testkit::test]
async fn an_attempt_is_on_record_with_who_where_how_long_and_the_line_that_failed(db: TestDb) {
    let ours = |files: &[(&str, &str)]| {
        let files = folder(files);
        async move {
            let ours = Migrations::from_dir(files.path()).await.expect("migrations");
            ours.with_program("shop", "1.2.3")
        }
    };
    let good = ("1_shop.sql", "create table shop (id int); select pg_sleep(0.05)");
    let bad = "create table price (id int);\n\n    select amount from price;\n";
    let outside = "-- no-transaction\nselect 1;\nvacuum nowhere";

    ours(&[good, ("2_bad.sql", bad)]).await.up(&config(&db)).await.expect_err("no such column");
    ours(&[good, ("2_bad.sql", outside)]).await.up(&config(&db)).await.expect_err("no such table");

    let [first, second, third] = history(&db).await.try_into().expect("three attempts");
    assert_eq!((first.version, first.action, first.outcome), (1, Action::Up, Outcome::Done));
    assert!(first.milliseconds.is_some_and(|took| took >= 50), "{first:?}");
    assert_eq!((first.program.as_deref(), first.program_version.as_deref()), (Some("shop"), Some("1.2.3")));
    let user: String =
        sqlx::query_scalar("select session_user::text").fetch_one(&db.pool()).await.expect("a user");
    assert_eq!(first.done_by, user);
    let host = std::process::Command::new("uname").arg("-n").output().expect("uname").stdout;
    assert_eq!(first.host.as_deref(), Some(String::from_utf8(host).expect("a name").trim()));
    assert_eq!(
        (second.version, second.outcome, second.sqlstate.as_deref()),
        (2, Outcome::Failed, Some("42703"))
    );
    assert_eq!(second.at, Some(Position { line: 3, column: 12 }));
    assert_eq!(second.line.as_deref(), Some("    select amount from price;"));
    assert_eq!((third.outcome, third.sqlstate.as_deref()), (Outcome::Failed, Some("42P01")));
    assert_eq!(third.description, "bad");
    let began: bool = sqlx::query_scalar("select $1::timestamptz between now() - interval '1 h' and now()")
        .bind(&first.began_at)
        .fetch_one(&db.pool())
        .await
        .expect("a time");
    assert!(began, "{}", first.began_at);
}

#[db_testkit::test]
async fn an_attempt_that_was_cut_off_stays_open(db: TestDb) {
    let ours = migrations(&[("1_one.sql", ""), ("2_sleeps.sql", "select pg_sleep(60)")]).await;
    let config = config(&db);
    let sleeps = "select exists (select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep')";
    let begun = until("the migration sleeps", async || {
        sqlx::query_scalar(sleeps).fetch_one(&db.pool()).await.expect("an answer")
    });
    tokio::select! {
        report = ours.up(&config) => panic!("{report:?}"),
        () = begun => {}
    }

    let expected = [(1, Action::Up, Outcome::Done), (2, Action::Up, Outcome::Open)];
    assert_eq!(attempts(&db).await, expected);
}

#[db_testkit::test]
async fn one_that_was_announced_and_did_not_begin_is_no_attempt(db: TestDb) {
    let files = [("1_unlocks.sql", "select pg_advisory_unlock_all()"), ("2_two.sql", "")];

    let error = migrations(&files).await.up(&config(&db)).await;

    assert!(matches!(error, Err(Error::Unlocked { version: 1 })), "{error:?}");
    assert_eq!(attempts(&db).await, [(1, Action::Up, Outcome::Done)]);
}

#[db_testkit::test]
async fn what_sqlx_does_in_between_is_found_and_told(db: TestDb) {
    let files = folder(&SHOP);
    let ours = Migrations::from_dir(files.path()).await.expect("migrations");
    let theirs = Migrator::new(files.path()).await.expect("a migrator");
    ours.up_to(&config(&db), 1).await.expect("up");

    theirs.run(&db.pool()).await.expect("sqlx applies the second");
    assert_eq!(ours.up(&config(&db)).await.expect("up").changed, NONE);
    theirs.undo(&db.pool(), 1).await.expect("sqlx reverts the second");
    assert_eq!(ours.up(&config(&db)).await.expect("up").changed, [2]);

    ours.down_to(&config(&db), 1).await.expect("down");
    theirs.run(&db.pool()).await.expect("sqlx applies it after our down");
    assert_eq!(ours.up(&config(&db)).await.expect("up").changed, NONE);

    let expected = [
        (1, Action::Up, Outcome::Done),
        (2, Action::Adopted, Outcome::Done),
        (2, Action::Gone, Outcome::Done),
        (2, Action::Up, Outcome::Done),
        (2, Action::Down, Outcome::Done),
        (2, Action::Adopted, Outcome::Done),
    ];
    assert_eq!(attempts(&db).await, expected);
}

#[db_testkit::test]
async fn an_emptied_history_is_filled_from_the_files(db: TestDb) {
    let ours = migrations(&SHOP).await;
    ours.up(&config(&db)).await.expect("up");
    execute(&db, "delete from _sqlx_migrations_history").await;

    // The session that has migrated may hold the lock until the server has ended it, and a start does not wait for it.
    until("it is filled", async || {
        assert_eq!(ours.up(&config(&db)).await.expect("up").changed, NONE);
        !attempts(&db).await.is_empty()
    })
    .await;

    let adopted = [(1, Action::Adopted, Outcome::Done), (2, Action::Adopted, Outcome::Done)];
    assert_eq!(attempts(&db).await, adopted);
}

#[db_testkit::test]
async fn a_history_of_a_newer_form_stops_migrations_and_no_start(db: TestDb) {
    migrations(&SHOP[..2]).await.up(&config(&db)).await.expect("up");
    execute(&db, "update _sqlx_migrations_history set form = 2").await;

    assert_eq!(migrations(&SHOP[..2]).await.up(&config(&db)).await.expect("nothing to do").changed, NONE);
    let ours = migrations(&SHOP).await;
    for error in [ours.up(&config(&db)).await.map(drop), ours.history(&config(&db)).await.map(drop)] {
        let error = error.expect_err("a newer form");
        assert!(
            matches!(&error, Error::NewerHistory { table, form: 2 } if table == "public._sqlx_migrations_history"),
            "{error:?}"
        );
    }
    assert_eq!(states(&ours, &db).await, [(1, State::Applied), (2, State::Pending)]);
}

#[db_testkit::test]
async fn a_table_of_its_name_that_somebody_else_made_is_left_alone(db: TestDb) {
    execute(&db, "create table _sqlx_migrations_history (mine int)").await;

    assert_eq!(migrations(&SHOP).await.up(&config(&db)).await.expect("up").changed, [1, 2]);

    execute(&db, "insert into _sqlx_migrations_history values (1)").await;
}

#[tokio::test]
async fn a_role_that_may_not_make_the_history_migrates_without_one() {
    let setup = "create table _sqlx_migrations (version bigint primary key, description text not null,
            installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
            execution_time bigint not null);
         grant select, insert, update, delete on _sqlx_migrations to app; create schema app authorization app;
         revoke create on schema public from public";
    let (db, _server, config) = as_role(setup).await;
    let files = [("1_mine.sql", "create table app.mine ()"), ("2_more.sql", "create table app.more ()")];

    assert_eq!(migrations(&files).await.up(&config).await.expect("up").changed, [1, 2]);
    assert_eq!(migrations(&files).await.up(&config).await.expect("up").changed, NONE);

    assert!(!exists(&db, "_sqlx_migrations_history").await);
}

/// Three versions, as a newer program has applied them.
pub(crate) const NEWER: [(&str, &str); 6] = [
    ("1_one.up.sql", "create table one ()"),
    ("1_one.down.sql", "drop table one"),
    ("2_two.up.sql", "create table two (id int)"),
    ("2_two.down.sql", "drop table two"),
    ("3_three.up.sql", "-- no-transaction\ncreate index concurrently three on two (id)"),
    ("3_three.down.sql", "-- no-transaction\ndrop index concurrently three"),
];

#[db_testkit::test]
async fn an_old_program_goes_down_over_versions_that_it_never_saw_when_it_is_told_to(db: TestDb) {
    migrations(&NEWER).await.up(&config(&db)).await.expect("up");
    let old = migrations(&NEWER[..2]).await;

    let error = old.down_to(&config(&db), 1).await;
    assert!(matches!(error, Err(Error::Unknown { version: 2 })), "{error:?}");
    let old = old.with_stored_downs(true);
    assert_eq!(old.down_to(&config(&db), 2).await.expect("to a version it never saw").changed, [3]);
    assert_eq!(old.down_to(&config(&db), 1).await.expect("down").changed, [2]);

    assert!(exists(&db, "one").await && !exists(&db, "two").await);
    let downs = [(3, Action::Down, Outcome::Done), (2, Action::Down, Outcome::Done)];
    assert_eq!(attempts(&db).await[3..], downs);
    let error = old.down_to(&config(&db), 3).await;
    assert!(matches!(error, Err(Error::NoSuchVersion { version: 3 })), "{error:?}");
}

#[db_testkit::test]
async fn a_way_back_on_record_that_was_cut_off_goes_on_where_it_was(db: TestDb) {
    let down = "-- no-transaction\ndrop table three; drop index concurrently two_id; drop table after";
    let files = [
        &NEWER[..4],
        &[(
            "3_three.up.sql",
            "create table three (); create table after (); create index two_id on two (id)",
        )],
        &[("3_three.down.sql", down)],
    ]
    .concat();
    migrations(&files).await.up(&config(&db)).await.expect("up");
    let old = migrations(&NEWER[..4]).await.with_stored_downs(true);
    let proxy = Proxy::start(&db).expect("a proxy");
    let through = Config::from_url(&proxy.url()).expect("an address");
    proxy.cut_before("drop index");
    old.down_to(&through, 2).await.expect_err("cut off");
    assert_eq!(states(&old, &db).await[2], (3, State::UnderWay));
    assert!(!exists(&db, "three").await && exists(&db, "after").await);
    let error = old.up(&config(&db)).await;
    assert!(matches!(error, Err(Error::Unknown { version: 3 })), "{error:?}");

    assert_eq!(old.down_to(&config(&db), 2).await.expect("goes on").changed, [3]);

    assert!(!exists(&db, "after").await);
    assert_eq!(states(&old, &db).await, [(1, State::Applied), (2, State::Applied)]);
}

#[db_testkit::test]
async fn what_another_migrator_has_begun_and_not_ended_is_not_reverted_by_the_record(db: TestDb) {
    migrations(&NEWER).await.up(&config(&db)).await.expect("up");
    execute(&db, "update _sqlx_migrations set success = false where version = 3").await;

    let error = migrations(&NEWER[..4]).await.with_stored_downs(true).down_to(&config(&db), 2).await;

    assert!(matches!(error, Err(Error::Dirty { version: 3 })), "{error:?}");
}

#[db_testkit::test]
async fn only_what_was_planned_is_reverted(db: TestDb) {
    let ours = migrations(&NEWER).await;
    ours.up_to(&config(&db), 2).await.expect("up");
    let plan = ours.plan_down(&config(&db), 1).await.expect("a plan");
    ours.up(&config(&db)).await.expect("up");

    let error = ours.down_by(&config(&db), &plan).await;
    assert!(matches!(error, Err(Error::NotAsPlanned)), "{error:?}");
    let up = ours.plan_up(&config(&db), None).await.expect("a plan");
    assert!(matches!(ours.down_by(&config(&db), &up).await, Err(Error::NotAsPlanned)));

    let plan = ours.plan_down(&config(&db), 1).await.expect("a plan");
    assert_eq!(ours.down_by(&config(&db), &plan).await.expect("as planned").changed, [3, 2]);
}

#[tokio::test]
async fn a_role_that_works_as_another_one_writes_the_history_as_that_one() {
    let setup = "create role keeper; alter role app noinherit; grant keeper to app; grant create on schema public to keeper;
         alter role app set role = keeper";
    let (db, _server, app) = as_role(setup).await;
    let ours = migrations(&NEWER).await;

    assert_eq!(ours.up(&app).await.expect("up").changed, [1, 2, 3]);

    let old = migrations(&NEWER[..2]).await.with_stored_downs(true);
    assert_eq!(old.down_to(&app, 1).await.expect("down").changed, [3, 2]);
    assert_eq!(attempts(&db).await.len(), 5);
}

#[tokio::test]
async fn who_administers_the_migrating_role_does_not_end_its_history() {
    let setup = "create role boss; grant app to boss with admin option; grant create on schema public to app";
    let (db, _server, app) = as_role(setup).await;

    assert_eq!(migrations(&NEWER).await.up(&app).await.expect("up").changed, [1, 2, 3]);

    assert_eq!(attempts(&db).await.len(), 3);
    let old = migrations(&NEWER[..2]).await.with_stored_downs(true);
    assert_eq!(old.down_to(&app, 1).await.expect("down").changed, [3, 2]);
}

#[db_testkit::test]
async fn a_way_back_that_is_not_on_record_is_named_and_nothing_is_reverted(db: TestDb) {
    let newer = migrations(&NEWER).await.with_stored_sql(false);
    newer.up(&config(&db)).await.expect("up");

    let error = migrations(&NEWER[..2]).await.with_stored_downs(true).down_to(&config(&db), 0).await;

    assert!(matches!(error, Err(Error::NoDown { version: 3, target: 0 })), "{error:?}");
    assert!(exists(&db, "two").await);
}

#[db_testkit::test]
async fn a_history_that_others_may_write_is_not_run_and_not_written(db: TestDb) {
    let [writer, owner, member] = ["writer", "owner", "member"].map(|role| format!("{role}_{}", db.name()));
    execute(
        &db,
        &format!(
            "create role {writer}; create role {owner}; create role {member} noinherit in role {owner};
             alter default privileges in schema public grant all on tables to {writer}, public"
        ),
    )
    .await;
    migrations(&NEWER).await.up(&config(&db)).await.expect("up");
    let old = migrations(&NEWER[..2]).await.with_stored_downs(true);
    let more =
        [&NEWER[..], &[("4_four.up.sql", "create table four ()"), ("4_four.down.sql", "drop table four")]];
    let more = migrations(&more.concat()).await;
    let table = "_sqlx_migrations_history";
    let count = attempts(&db).await.len();
    let rights = [
        (
            format!("grant insert on {table} to {writer}"),
            format!("revoke insert on {table} from {writer}"),
            &writer,
        ),
        (
            format!("grant trigger on {table} to public"),
            format!("revoke trigger on {table} from public"),
            &writer,
        ),
        (
            format!("grant update (way_back) on {table} to {writer}"),
            format!("revoke update (way_back) on {table} from {writer}"),
            &writer,
        ),
        (
            format!("grant pg_write_all_data to {writer}"),
            format!("revoke pg_write_all_data from {writer}"),
            &writer,
        ),
        (
            format!("alter table {table} owner to {owner}"),
            format!("alter table {table} owner to session_user"),
            &member,
        ),
    ];
    for (right, back, role) in rights {
        execute(&db, &right).await;
        let error = old.down_to(&config(&db), 1).await;
        assert!(
            matches!(&error, Err(Error::WritableHistory { roles, .. }) if roles.contains(role)),
            "{right}: {error:?}"
        );
        assert_eq!(more.up(&config(&db)).await.expect(&right).changed, [4]);
        assert_eq!(more.down_to(&config(&db), 3).await.expect(&right).changed, [4]);
        execute(&db, &back).await;
        assert_eq!(attempts(&db).await.len(), count, "{right}");
    }

    // What the schema gives on each new table was taken back, and the right to read may be given.
    execute(&db, &format!("grant select on {table} to {writer}")).await;
    assert_eq!(old.down_to(&config(&db), 1).await.expect("down").changed, [3, 2]);
    execute(&db, &format!("drop owned by {writer}, {owner}; drop role {writer}, {owner}, {member}")).await;
}

#[tokio::test]
async fn a_history_that_another_role_has_put_in_its_place_runs_nothing_of_it() {
    let setup = "grant create on schema public to app";
    let (db, _server, config_of_app) = as_role(setup).await;
    let mut app = connect::connect(&config_of_app, ConnectRetry::default()).await.expect("a session");
    let trap = "create table trapped (by text); grant all on trapped to public;
         create function trap() returns text language plpgsql as
             $$ begin insert into trapped values (current_user); return ''; end $$;
         create function trap_row() returns trigger language plpgsql as $$ begin perform trap(); return new; end $$;
         create table _sqlx_migrations_history (id bigint, version bigint, form smallint default 1, action text, description text,
             began_at timestamptz, ended_at timestamptz, succeeded bool, done_by text, host text, program text,
             program_version text, sqlstate text, line int, \"column\" int, line_text text, reason text, checksum bytea,
             digest bytea, sql text, way_back text, primary key (version, id));
         create trigger trap before insert or update on _sqlx_migrations_history for each row execute function trap_row();
         create rule trap as on delete to _sqlx_migrations_history do also select trap();
         insert into _sqlx_migrations_history (id, version, action, succeeded, sql, way_back, description)
             select 1, 2, 'up', true, '', 'select trap()', '';
         delete from trapped";
    sqlx::raw_sql(trap).execute(&mut app).await.expect("set");
    let ours = migrations(&SHOP).await.with_stored_downs(true);

    assert_eq!(ours.up(&config(&db)).await.expect("up").changed, [1, 2]);
    assert_eq!(states(&ours, &db).await, [(1, State::Applied), (2, State::Applied)]);
    assert_eq!(attempts(&db).await, []);
    let old = migrations(&SHOP[..2]).await.with_stored_downs(true);
    let error = old.down_to(&config(&db), 1).await;

    assert!(
        matches!(&error, Err(Error::WritableHistory { roles, .. }) if roles.contains(&"app".to_owned())),
        "{error:?}"
    );
    let trapped: Vec<String> =
        sqlx::query_scalar("select by from trapped").fetch_all(&db.pool()).await.expect("a table");
    assert_eq!(trapped, Vec::<String>::new());
}

#[db_testkit::test]
async fn a_newer_database_is_taken_as_it_is_on_request_and_never_migrated(db: TestDb) {
    migrations(&NEWER).await.up(&config(&db)).await.expect("up");
    let old = migrations(&NEWER[..4]).await;
    assert!(matches!(old.up(&config(&db)).await, Err(Error::Unknown { version: 3 })));

    let old = old.with_newer_databases(true);
    let report = old.up(&config(&db)).await.expect("up");
    assert_eq!((report.changed, report.version), (vec![], 3));
    assert_eq!(
        (old.supported_version(), old.current_version(&config(&db)).await.expect("a version")),
        (2, 3)
    );

    let other = [NEWER[0], NEWER[1], ("4_four.sql", "create table four ()")];
    let error = migrations(&other).await.with_newer_databases(true).up(&config(&db)).await;
    assert!(matches!(error, Err(Error::Unknown { version: 2 })), "{error:?}");
    let error = old.down_to(&config(&db), 1).await;
    assert!(matches!(error, Err(Error::Unknown { version: 3 })), "{error:?}");
    execute(&db, "delete from _sqlx_migrations where version = 2").await;
    let error = old.up(&config(&db)).await;
    assert!(matches!(error, Err(Error::OutOfOrder { version: 2, newest: 3 })), "one is pending: {error:?}");
}

#[db_testkit::test]
async fn a_baseline_is_on_record_and_not_run_and_sqlx_takes_it(db: TestDb) {
    execute(&db, "create table shop (id int)").await;
    let files = folder(&SHOP);
    let ours = Migrations::from_dir(files.path()).await.expect("migrations");

    assert_eq!(ours.baseline(&config(&db), 1, "from the dump").await.expect("a baseline"), [1]);
    assert_eq!(ours.baseline(&config(&db), 1, "again").await.expect("nothing is left"), NONE);
    assert!(matches!(ours.baseline(&config(&db), 9, "").await, Err(Error::NoSuchVersion { version: 9 })));

    by_sqlx(&files, &db).await.expect("sqlx applies the second");
    let [entry] = history(&db).await.try_into().expect("one entry");
    assert_eq!(
        (entry.version, entry.action, entry.reason.as_deref()),
        (1, Action::Baseline, Some("from the dump"))
    );
    assert_eq!(ours.down_to(&config(&db), 0).await.expect("down").changed, [2, 1]);
}

#[db_testkit::test]
async fn up_to_a_version_leaves_the_later_ones_pending(db: TestDb) {
    let ours = migrations(&NEWER).await;
    assert_eq!(ours.supported_version(), 3);

    assert_eq!(ours.up_to(&config(&db), 2).await.expect("up").changed, [1, 2]);
    assert_eq!(ours.up_to(&config(&db), 1).await.expect("up").changed, NONE);
    assert!(matches!(ours.up_to(&config(&db), 7).await, Err(Error::NoSuchVersion { version: 7 })));

    assert_eq!(states(&ours, &db).await[2], (3, State::Pending));
    assert_eq!(attempts(&db).await, [(1, Action::Up, Outcome::Done), (2, Action::Up, Outcome::Done)]);
}

#[db_testkit::test]
async fn many_programs_that_meet_a_database_at_once_adopt_it_once(db: TestDb) {
    let files = folder(&SHOP);
    by_sqlx(&files, &db).await.expect("applied");
    let starts = (0..8).map(|_| {
        let (folder, config) = (files.path().to_owned(), config(&db));
        tokio::spawn(async move { Migrations::from_dir(folder).await.expect("migrations").up(&config).await })
    });
    for start in starts.collect::<Vec<_>>() {
        assert_eq!(start.await.expect("no panic").expect("up").changed, NONE);
    }

    let adopted = [(1, Action::Adopted, Outcome::Done), (2, Action::Adopted, Outcome::Done)];
    assert_eq!(attempts(&db).await, adopted);
}

#[db_testkit::test]
async fn a_start_with_nothing_to_apply_does_not_wait_for_who_migrates(db: TestDb) {
    let files = folder(&SHOP);
    by_sqlx(&files, &db).await.expect("applied");
    let mut other = db.pool().acquire().await.expect("a connection");
    sqlx::migrate::Migrate::lock(&mut *other).await.expect("sqlx's lock");

    let ours = Migrations::from_dir(files.path()).await.expect("migrations");
    let ours = ours.with_lock_deadline(Duration::from_hours(1));
    let report = timeout(Duration::from_mins(1), ours.up(&config(&db))).await.expect("no wait");
    assert_eq!(report.expect("up").changed, NONE);
    assert_eq!(attempts(&db).await, []);

    sqlx::migrate::Migrate::unlock(&mut *other).await.expect("unlocked");
    ours.up(&config(&db)).await.expect("up");
    assert_eq!(attempts(&db).await.len(), 2);
}

#[db_testkit::test]
async fn a_session_that_is_given_adopts_too(db: TestDb) {
    let files = folder(&SHOP);
    by_sqlx(&files, &db).await.expect("applied");
    let given = sqlx::ConnectOptions::connect(&db.options()).await.expect("a connection");

    let ours = Migrations::from_dir(files.path()).await.expect("migrations");
    ours.up_on(given, &config(&db), ConnectRetry::default()).await.expect("up");

    assert_eq!(attempts(&db).await.len(), 2);
}
