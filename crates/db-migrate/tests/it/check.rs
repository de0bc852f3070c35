//! Trying migrations on a server of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use db_migrate::check::{Check, CheckError, Checked, CheckedFile, Finding, Mode, Rule, WayBack};
use db_migrate::{Action, Error, Migrations};
use db_testkit::TestDb;

use crate::batches::as_role;
use crate::runner::{pg_dump, real_folders};
use crate::{SHOP, config, folder, migrations};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check")
}

fn text(name: &str) -> String {
    fs::read_to_string(data().join(name)).expect("a file")
}

/// The files of a folder beside the base schema, by name.
fn files(kind: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(data().join(kind)).expect("listed");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    names.map(|name| (name.clone(), text(&format!("{kind}/{name}")))).collect()
}

/// Removes all that the base schema and a file on it have made, and leaves the migration tables.
const AWAY: &str = "
do $away$ declare it record; begin
  for it in select nspname from pg_namespace where nspname not like 'pg\\_%' and nspname not in ('information_schema', 'public') loop
    execute format('drop schema %I cascade', it.nspname);
  end loop;
  for it in select oid::regclass as name, case relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' else 'table' end as kind
            from pg_class where relnamespace = 'public'::regnamespace and relkind in ('v', 'm', 'r', 'p', 'S') and relname not like '\\_sqlx%'
            order by relkind = 'S' loop
    if exists (select from pg_class where oid = it.name) then execute format('drop %s %s cascade', it.kind, it.name); end if;
  end loop;
  for it in select oid::regprocedure as name from pg_proc where pronamespace = 'public'::regnamespace loop
    execute format('drop routine if exists %s cascade', it.name);
  end loop;
  for it in select oid::regtype as name from pg_type where typnamespace = 'public'::regnamespace and typtype in ('e', 'd') loop
    execute format('drop type if exists %s cascade', it.name);
  end loop;
end $away$;
";

/// After more on one server, the catalog is full of what was made and removed, and slow.
const AT_ONCE: usize = 16;

/// Checks files one after the other, each on the base schema. One that fails ends a check, so it goes on with the next.
async fn each_on_the_base(files: &BTreeMap<String, String>) -> BTreeMap<String, CheckedFile> {
    let base = text("base.sql");
    let mut left: Vec<&String> = files.keys().collect();
    let mut checked = BTreeMap::new();
    while !left.is_empty() {
        let dir = folder(&[("1_base.sql", &base)]);
        for (nth, name) in left.iter().take(AT_ONCE).enumerate() {
            let version = 2 * nth + 2;
            fs::write(dir.path().join(format!("{version}_file.sql")), &files[*name]).expect("written");
            // As one statement, since each is looked at.
            let again = format!("do $do$ begin execute $again${AWAY}{base}$again$; end $do$");
            fs::write(dir.path().join(format!("{}_base.sql", version + 1)), again).expect("written");
        }
        let migrations = Migrations::from_dir(dir.path()).await.expect("migrations");
        let seen = Check::new(&migrations).run().await.expect("checked");
        let (of_files, of_bases): (Vec<_>, Vec<_>) =
            seen.files.into_iter().partition(|file| file.version % 2 == 0);
        let fails = of_bases.iter().flat_map(|base| &base.findings).find(|it| it.rule == Rule::UpFails);
        assert!(fails.is_none() && !of_files.is_empty(), "{fails:?}");
        let names = left.drain(..of_files.len()).cloned();
        checked.extend(names.zip(of_files));
    }
    checked
}

fn rules(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().map(|finding| finding.rule.name()).collect::<BTreeSet<_>>().into_iter().collect()
}

#[tokio::test]
async fn what_hurts_a_running_service_is_found_and_the_right_way_is_left_alone() {
    let (unsafe_files, safe) = (files("unsafe"), files("safe"));
    let (unsafe_ones, right_ways) = tokio::join!(each_on_the_base(&unsafe_files), each_on_the_base(&safe));

    let expected = text("expected.tsv");
    let expected: BTreeMap<&str, Vec<&str>> = expected
        .lines()
        .map(|line| {
            let mut parts = line.split('\t');
            let name = parts.next().expect("a name");
            (name, parts.next().expect("rules").split(',').filter(|rule| *rule != "none").collect())
        })
        .collect();
    let found: BTreeMap<&str, Vec<&str>> =
        unsafe_ones.iter().map(|(name, file)| (&**name, rules(&file.findings))).collect();
    let differ: Vec<_> = found.iter().filter(|(name, rules)| expected.get(*name) != Some(rules)).collect();
    assert!(differ.is_empty(), "found, and not expected so: {differ:#?}");
    assert_eq!(found.len(), expected.len());
    assert!(found.values().filter(|rules| !rules.is_empty()).count() >= 84, "of 91");

    assert!(right_ways.len() >= 60);
    let alarms: Vec<_> = right_ways.iter().filter(|(_, file)| !file.findings.is_empty()).collect();
    assert!(alarms.is_empty(), "{alarms:#?}");
}

async fn check(files: &[(&str, &str)]) -> Checked {
    Check::new(&migrations(files).await).run().await.expect("checked")
}

fn only(findings: &[Finding]) -> &Finding {
    let [finding] = findings else { panic!("{findings:#?}") };
    finding
}

#[tokio::test]
async fn a_way_back_is_tried_and_compared() {
    let checked = check(&[
        ("1_good.up.sql", "create table good (id int primary key); create index good_id on good (id)"),
        ("1_good.down.sql", "drop table good"),
        ("2_none.sql", "create table none ()"),
        ("3_fails.up.sql", "create table fails ()"),
        ("3_fails.down.sql", "drop table fails;\ndrop tabel fails"),
        ("4_differs.up.sql", "alter table good add column name text default 'x'; create table more ()"),
        ("4_differs.down.sql", "drop table more"),
        ("5_blocks.up.sql", "create type mood as enum ('ok'); create table moods (it mood)"),
        ("5_blocks.down.sql", "drop table moods"),
        ("6_order.up.sql", "alter table good drop column name"),
        ("6_order.down.sql", "alter table good add column name text default 'x'"),
        ("7_rights.up.sql", "create role reader; grant select on good to reader"),
        ("7_rights.down.sql", "drop owned by reader; drop role reader"),
        ("8_comment.up.sql", "create table late ()"),
        ("8_comment.down.sql", "drop table late; comment on table good is 'good'"),
        ("9_runs.sql", "create table runs (it int)"),
        (
            "10_twice.up.sql",
            "insert into runs values (1);
             do $$ begin if (select count(*) from runs) > 1 then create table second (); end if; end $$",
        ),
        ("10_twice.down.sql", "drop table if exists second"),
    ])
    .await;

    let of = |version: usize| &checked.files[version - 1];
    let way_backs: Vec<WayBack> = checked.files.iter().map(|file| file.way_back).collect();
    let (same, missing, broken) = (WayBack::Same, WayBack::Missing, WayBack::Broken);
    assert_eq!(
        way_backs,
        [same, missing, broken, broken, broken, same, WayBack::NotTried, broken, missing, broken]
    );
    assert!(of(1).findings.is_empty() && of(2).findings.is_empty(), "{checked:#?}");

    let fails = only(&of(3).findings);
    assert_eq!((fails.rule, fails.action), (Rule::DownFails, Action::Down));
    let position = fails.position.expect("a place");
    assert_eq!((position.line, position.column), (2, 6));
    assert!(fails.message.contains("syntax error at or near \"tabel\""), "{fails}");

    let [differs, again] = &*of(4).findings else { panic!("{:#?}", of(4)) };
    assert_eq!((differs.rule, again.rule), (Rule::DownDiffers, Rule::UpAgainFails));
    assert!(differs.message.contains("column public.good.name is there and should not be"), "{differs}");
    assert!(!differs.message.contains("more"), "{differs}");
    assert!(again.message.contains("column \"name\" of relation \"good\" already exists"), "{again}");

    let [left, again] = &*of(5).findings else { panic!("{:#?}", of(5)) };
    assert_eq!((left.rule, again.rule), (Rule::DownDiffers, Rule::UpAgainFails));
    assert!(left.message.contains("type public.mood is there and should not be"), "{left}");

    assert_eq!(rules(&of(6).findings), ["ban-drop-column"], "the order of columns is no difference");
    assert!(of(7).findings.is_empty(), "a role belongs to the whole server: {:#?}", of(7));
    let twice = only(&of(10).findings);
    assert_eq!(twice.rule, Rule::UpAgainDiffers);
    assert!(twice.message.contains("table public.second is there and should not be"), "{twice}");
    let comment = only(&of(8).findings);
    assert!(comment.message.contains("comment"), "{comment}");
}

#[tokio::test]
async fn a_comment_with_a_reason_allows_what_it_names_and_nothing_else() {
    let checked = check(&[
        ("1_shop.sql", "create table shop (id int, name text, price int)"),
        (
            "2_allowed.up.sql",
            "-- db-migrate: allow ban-drop-column nobody reads it since version 7\nalter table shop drop column price;\n\
             create index shop_id on shop (id); -- squawk-ignore require-concurrent-index-creation\n\
             alter table shop rename column name to title",
        ),
        ("2_allowed.down.sql", "-- db-migrate: allow down-differs the prices are gone\nalter table shop rename column title to name; alter table shop add column price bigint;\ndrop index shop_id"),
        ("3_bad.sql", "-- db-migrate: allow renaming-table\nalter table shop rename to shops"),
    ])
    .await;

    let renames = only(&checked.files[1].findings);
    assert_eq!((renames.rule, renames.position.map(|it| it.line)), (Rule::RenamesColumn, Some(4)));
    assert_eq!(checked.files[1].way_back, WayBack::Same);
    assert_eq!(rules(&checked.files[2].findings), ["bad-allow", "renaming-table"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_applied_is_found_and_ends_the_check() {
    let shop = ("1_shop.sql", "create table shop (id int)");
    for (second, rule, line, says) in [
        ("select 1;\n\nselect nothing", Rule::UpFails, Some(3), "column \"nothing\" does not exist"),
        ("create index concurrently shop_id on shop (id)", Rule::ConcurrentInTransaction, Some(1), "25001"),
        ("select 1;\nselect 'no end", Rule::UpFails, Some(2), "does not end"),
        ("-- no-transaction\nselect 1;\nbegin", Rule::UpFails, Some(3), "controls none"),
        ("-- no transaction\nselect 1", Rule::UpFails, None, "-- no transaction"),
    ] {
        let checked =
            check(&[shop, ("2_second.up.sql", second), ("2_second.down.sql", ""), ("3_third.sql", "")]).await;

        assert_eq!(checked.files.len(), 2, "{second}");
        let finding = only(&checked.files[1].findings);
        assert_eq!((finding.rule, finding.position.map(|it| it.line)), (rule, line), "{finding}");
        assert!(finding.message.contains(says), "{finding}");
        assert_eq!(checked.files[1].way_back, WayBack::NotTried);
    }
}

/// Statements on `t (id int primary key, note varchar(20), n int)` and `other (id int primary key)`; the strongest lock on `t`; whether it writes `t`
/// anew; whether it reads all of it. By PostgreSQL's manual: "ALTER TABLE", "Notes", and chapter 13.3.1.
const DDL: [(&str, Option<Mode>, bool, bool); 24] = {
    use Mode::{
        AccessExclusiveLock as Exclusive, AccessShareLock as Reads, RowExclusiveLock as Writes,
        ShareLock as Share, ShareRowExclusiveLock as ShareRow, ShareUpdateExclusiveLock as Update,
    };
    [
        ("alter table t add column a int", Some(Exclusive), false, false),
        ("alter table t add column a int default 7", Some(Exclusive), false, false),
        ("alter table t add column a timestamptz default now()", Some(Exclusive), false, false),
        ("alter table t add column a timestamptz default clock_timestamp()", Some(Exclusive), true, true),
        ("alter table t add column a int generated always as (n + 1) stored", Some(Exclusive), true, true),
        ("alter table t alter column n set not null", Some(Exclusive), false, true),
        ("alter table t alter column n type bigint", Some(Exclusive), true, true),
        ("alter table t alter column note type varchar(40)", Some(Exclusive), false, false),
        ("alter table t alter column note type text", Some(Exclusive), false, false),
        ("alter table t alter column note type varchar(10)", Some(Exclusive), true, true),
        ("alter table t add constraint c check (n > 0)", Some(Exclusive), false, true),
        ("alter table t add constraint c check (n > 0) not valid", Some(Exclusive), false, false),
        ("alter table t validate constraint later", Some(Update), false, true),
        (
            "alter table t add constraint f foreign key (n) references other not valid",
            Some(ShareRow),
            false,
            false,
        ),
        ("alter table t add constraint f foreign key (n) references other", Some(ShareRow), false, true),
        ("alter table t alter column note set storage plain", Some(Exclusive), false, false),
        ("alter table t alter column n set statistics 200", Some(Update), false, false),
        ("alter table t set (fillfactor = 70)", Some(Update), false, false),
        ("alter table t set unlogged", Some(Exclusive), true, true),
        ("create index on t (n)", Some(Share), false, true),
        (
            "create trigger g before update on t for each row execute function suppress_redundant_updates_trigger()",
            Some(ShareRow),
            false,
            false,
        ),
        ("insert into t values (77, 'x', 7)", Some(Writes), false, false),
        ("create view v as select id from t", Some(Reads), false, false),
        ("create table fresh (id int primary key); create index on fresh (id)", None, false, false),
    ]
};

#[tokio::test]
async fn locks_rewriting_and_scans_are_what_the_manual_says() {
    let before = "create table t (id int primary key, note varchar(20), n int);
                  insert into t select n, n, n from generate_series(1, 10) as n;
                  create table other (id int primary key); insert into other select id from t;
                  alter table t add constraint later check (n < 1000) not valid;";
    let dir = folder(&[("1_before.sql", before)]);
    for (nth, (sql, ..)) in DDL.iter().enumerate() {
        fs::write(dir.path().join(format!("{}_ddl.sql", 2 * nth + 2)), sql).expect("written");
        let again = format!("drop table t, other cascade; {before}");
        fs::write(dir.path().join(format!("{}_again.sql", 2 * nth + 3)), again).expect("written");
    }
    let migrations = Migrations::from_dir(dir.path()).await.expect("migrations");

    let checked = Check::new(&migrations).run().await.expect("checked");

    assert_eq!(checked.files.len(), 2 * DDL.len() + 1);
    for ((sql, lock, is_rewritten, is_scanned), file) in DDL.iter().zip(checked.files[1..].iter().step_by(2))
    {
        let t = "public.t".to_owned();
        let locks = file.statements.iter().flat_map(|it| &it.locks).filter(|it| it.table == t);
        assert_eq!(locks.map(|it| it.mode).max(), *lock, "{sql}");
        let is_in = |tables: fn(&db_migrate::check::Traced) -> &Vec<String>| {
            file.statements.iter().any(|it| tables(it).contains(&t))
        };
        // A table that is written anew is read, by whichever way.
        let seen = (is_in(|it| &it.rewritten), is_in(|it| &it.scanned) || *is_rewritten);
        assert_eq!(seen, (*is_rewritten, *is_scanned), "{sql}");
    }
}

#[tokio::test]
async fn the_guides_change_in_three_deployments_hurts_nobody() {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide.md"))
        .expect("the guide");
    // The blocks of SQL that begin with the name of a file.
    let named = guide.split("```sql\n-- ").skip(1).filter_map(|block| {
        let (name, rest) = block.split_once('\n')?;
        name.ends_with(".up.sql").then_some((name, rest.split_once("```")?.0))
    });
    let files: Vec<(&str, &str)> = named.collect();
    assert_eq!(files.len(), 5);

    let checked = check(&files).await;

    assert_eq!(checked.files.len(), files.len());
    assert!(checked.files.iter().all(|file| file.findings.is_empty()), "{checked:#?}");
}

#[tokio::test]
async fn after_a_version_only_the_tables_of_the_files_up_to_it_count() {
    let files = [
        ("1_old.sql", "create table old (id int)"),
        ("2_young.sql", "create table young (id int)"),
        ("3_indexes.sql", "create index on old (id); create index on young (id)"),
        (
            "4_type.sql",
            "create type mood as enum ('ok'); create function f() returns int language sql as 'select 1'",
        ),
        ("5_renamed.sql", "alter type mood rename to feeling; drop function f()"),
    ];
    let migrations = migrations(&files).await;

    let all = Check::new(&migrations).run().await.expect("checked");
    let after = Check::new(&migrations).after(1).run().await.expect("checked");

    let lines = |checked: &Checked| -> Vec<(i64, usize)> {
        checked.files.iter().map(|file| (file.version, file.findings.len())).collect()
    };
    assert_eq!(lines(&all), [(1, 0), (2, 0), (3, 2), (4, 0), (5, 3)]);
    assert_eq!(lines(&after), [(2, 0), (3, 1), (4, 0), (5, 0)]);
    assert!(only(&after.files[1].findings).message.contains("public.old"));
    let beyond = Check::new(&migrations).after(7).run().await.expect("checked");
    assert_eq!(lines(&beyond), []);
}

#[db_testkit::test]
async fn a_dump_is_restored_and_goes_on_where_it_ends(db: TestDb) {
    let Ok(pg_dump) = pg_dump() else {
        eprintln!("not tested: there is no pg_dump");
        return;
    };
    let all = migrations(&SHOP).await;
    all.up_to(&config(&db), 1).await.expect("up");
    let sql = "insert into shop select n from generate_series(1, 1000) as n; create role clerk_of_this_test; alter table shop owner to clerk_of_this_test";
    sqlx::raw_sql(sql).execute(&db.pool()).await.expect("filled");
    let dir = tempfile::tempdir().expect("a folder");
    for (format, is_restored) in [("custom", true), ("plain", true), ("plain", false)] {
        let file = dir.path().join(format);
        let url = db.direct_url();
        let (program, to) = (pg_dump.clone(), file.clone());
        let dumped = tokio::task::spawn_blocking(move || {
            Command::new(program)
                .arg(format!("--format={format}"))
                .arg("-f")
                .arg(to)
                .args(["-d", &url])
                .status()
        });
        assert!(dumped.await.expect("no panic").expect("it runs").success());
        let setup = if is_restored { "create role clerk_of_this_test" } else { "" };

        let checked = Check::new(&all).dump(&file).setup(setup).run().await;

        if is_restored {
            let checked = checked.expect("checked");
            let [price] = &*checked.files else { panic!("{format}: {checked:#?}") };
            assert_eq!((price.version, price.way_back), (2, WayBack::Same));
            assert!(
                price.findings.is_empty() && price.statements[0].locks[0].table == "public.shop",
                "{price:#?}"
            );
        } else {
            let error = checked.expect_err("no such role").to_string();
            assert!(
                error.contains("was not restored") && error.contains("\"clerk_of_this_test\" does not exist"),
                "{error}"
            );
        }
    }
    let missing = Check::new(&all).dump("no/such/dump").run().await.expect_err("no file");
    assert!(matches!(&missing, CheckError::Dump { .. }), "{missing}");
    sqlx::raw_sql("drop owned by clerk_of_this_test; drop role clerk_of_this_test")
        .execute(&db.pool())
        .await
        .expect("removed");
}

#[db_testkit::test]
async fn a_comparison_does_not_wait_for_ever_for_who_changes_a_table(db: TestDb) {
    let files = [("1_shop.sql", "create table shop (id int); create view ids as select id from shop")];
    let shop = migrations(&files).await;
    shop.up(&config(&db)).await.expect("up");
    let pool = db.pool();
    let mut changing = pool.begin().await.expect("begun");
    sqlx::raw_sql("lock table ids in access exclusive mode").execute(&mut *changing).await.expect("locked");

    let error = Check::new(&shop).drift(&config(&db), None).await.expect_err("it is locked");

    assert!(
        error.to_string().starts_with("read the schema: ") && error.to_string().contains("(55P03)"),
        "{error}"
    );
    changing.rollback().await.expect("rolled back");
}

#[db_testkit::test]
async fn an_extension_of_a_dump_is_left_out_on_request(db: TestDb) {
    let is_there: bool =
        sqlx::query_scalar("select exists (select from pg_available_extensions where name = 'pg_trgm')")
            .fetch_one(&db.pool())
            .await
            .expect("an answer");
    let Some(pg_dump) = pg_dump().ok().filter(|_| is_there) else {
        eprintln!("not tested: there is no pg_dump, or no pg_trgm");
        return;
    };
    sqlx::raw_sql("create extension pg_trgm; comment on extension pg_trgm is 'words'")
        .execute(&db.pool())
        .await
        .expect("made");
    let dir = tempfile::tempdir().expect("a folder");
    let (file, url) = (dir.path().join("dump.tar"), db.direct_url());
    let to = file.clone();
    let dumped = tokio::task::spawn_blocking(move || {
        Command::new(pg_dump).arg("--format=tar").arg("-f").arg(to).args(["-d", &url]).status()
    });
    assert!(dumped.await.expect("no panic").expect("it runs").success());
    let sql = "do $$ begin assert not exists (select from pg_extension where extname = 'pg_trgm'); end $$";
    let asks = migrations(&[("1_asks.sql", sql)]).await;

    let with = Check::new(&asks).dump(&file).run().await.expect("checked");
    let without = Check::new(&asks).dump(&file).without_extension("pg_trgm").run().await.expect("checked");

    let made = migrations(&[("1_made.sql", "create extension pg_trgm; create table made ()")]).await;
    let other = TestDb::empty().await.expect("a database");
    made.up(&config(&other)).await.expect("up");
    let drift =
        Check::new(&made).without_extension("pg_trgm").drift(&config(&other), None).await.expect("compared");

    assert!(drift.differences.is_empty(), "{drift:#?}");
    assert_eq!(only(&with.files[0].findings).rule, Rule::UpFails);
    assert!(without.files[0].findings.is_empty(), "{without:#?}");
}

#[tokio::test]
async fn what_a_trace_leaves_behind_does_not_spoil_the_check() {
    // Sequences that go on, a file that commits, roles, which belong to the whole server, and settings of the database, which no copy has.
    let checked = check(&[
        ("1_seeds.sql", "create table roles (id serial primary key, name text); create table rights (role_id int references roles)"),
        ("2_rows.sql", "insert into roles (name) values ('a'), ('b'); insert into rights values (1), (2)"),
        ("3_commits.sql", "create table committed (); commit; begin; create table again ()"),
        ("4_role.sql", "-- no-transaction\ncreate role reporting_of_this_test;\nvacuum roles"),
        ("5_reads.sql", "do $$ begin assert (select count(*) from _sqlx_migrations) = 4; end $$"),
        (
            "6_path.sql",
            "create schema app;
             do $$ begin execute format('alter database %I set search_path to app, public', current_database()); end $$",
        ),
        ("7_there.up.sql", "create table there ()"),
        ("7_there.down.sql", "drop table app.there"),
    ])
    .await;

    assert_eq!(checked.files.len(), 7, "{checked:#?}");
    assert!(checked.files.iter().all(|file| file.findings.is_empty()), "{checked:#?}");
}

#[tokio::test]
async fn a_file_that_is_not_looked_at_to_its_end_is_found() {
    // Our look comes between them, and takes a snapshot.
    let sql =
        "lock table shop in share mode;\nset transaction isolation level serializable;\ncreate table two ()";
    let allowed = format!("{sql};\n-- db-migrate: allow not-traced I have looked at it");
    let again = allowed.replace("two", "three");
    let checked =
        check(&[("1_shop.sql", "create table shop ()"), ("2_late.sql", sql), ("3_again.sql", &again)]).await;

    let finding = only(&checked.files[1].findings);
    assert_eq!((finding.rule, finding.position.map(|it| it.line)), (Rule::NotTraced, Some(2)), "{finding}");
    assert_eq!(checked.files[1].statements.len(), 1);
    assert!(checked.files[2].findings.is_empty(), "{checked:#?}");
}

#[tokio::test]
async fn schemas_of_sqlx_toml_are_there_and_rules_can_be_left_out() {
    let parent = tempfile::tempdir().expect("a folder");
    let dir = parent.path().join("migrations");
    fs::create_dir(&dir).expect("a folder");
    let toml = "[migrate]\ntable-name = \"app.done\"\ncreate-schemas = [\"app\"]\n";
    fs::write(parent.path().join("sqlx.toml"), toml).expect("written");
    for (name, sql) in [
        ("1_shop.up.sql", "create table app.shop (id int)"),
        ("1_shop.down.sql", "drop table app.shop"),
        ("2_index.sql", "create index on app.shop (id); alter table app.shop add name text not null"),
    ] {
        fs::write(dir.join(name), sql).expect("written");
    }
    let migrations = Migrations::from_dir(&dir).await.expect("migrations");

    let checked = Check::new(&migrations).without_rule(Rule::AddsRequired).run().await.expect("checked");

    assert_eq!(
        (checked.files[0].way_back, checked.files[0].findings.len()),
        (WayBack::Same, 0),
        "{checked:#?}"
    );
    assert_eq!(rules(&checked.files[1].findings), ["require-concurrent-index-creation"]);
    let setup = Check::new(&migrations).setup("create role app_of_this_check password 'hunter2-planted'");
    assert!(!format!("{setup:?}").contains("hunter2"), "{setup:?}");
}

#[tokio::test]
async fn files_run_as_the_role_of_the_migrations() {
    let asks = "do $$ begin assert (select tableowner from pg_tables where tablename = 'owned') = 'the \"owner\"'; end $$";
    let files = migrations(&[("1_owned.sql", "create table owned ()"), ("2_asks.sql", asks)]).await;
    let files = files.with_role("the \"owner\"");

    let made = Check::new(&files).run().await.expect("checked");
    let setup = "create role \"the \"\"owner\"\"\"; grant create on schema public to public";
    let set_up = Check::new(&files).setup(setup).run().await.expect("checked");

    for checked in [made, set_up] {
        assert!(
            checked.files.len() == 2 && checked.files.iter().all(|file| file.findings.is_empty()),
            "{checked:#?}"
        );
    }
}

#[tokio::test]
async fn extensions_that_are_not_there_are_named_and_left_out_on_request() {
    let files = migrations(&[
        ("1_a.sql", "create extension if not exists no_such_one; create table a ()"),
        ("2_b.sql", "drop extension if exists never_there; comment on extension no_such_one is 'für'; create extension no_such_one; create extension \"nor-this\" with schema public; create extension plpgsql_no"),
    ])
    .await;

    let error = Check::new(&files).run().await.expect_err("they are missing");
    let partly =
        Check::new(&files).without_extension("no_such_one").run().await.expect_err("others are missing");
    let mut check = Check::new(&files);
    for name in ["no_such_one", "nor-this", "plpgsql_no"] {
        check = check.without_extension(name);
    }
    let checked = check.run().await.expect("checked");

    let names = |error: &CheckError| match error {
        CheckError::NoExtension { names } => names.join(" "),
        error => panic!("{error}"),
    };
    assert_eq!(names(&error), "no_such_one nor-this plpgsql_no");
    assert_eq!(names(&partly), "nor-this plpgsql_no");
    assert_eq!(checked.files.len(), 2);
    assert!(checked.files.iter().all(|file| file.findings.is_empty()), "{checked:#?}");
}

#[tokio::test]
async fn what_was_changed_by_hand_is_drift_and_a_role_that_only_reads_can_see_it() {
    let (db, _server, reader) = as_role("alter role app set default_transaction_read_only = on").await;
    let files = [
        SHOP[0],
        SHOP[2],
        (
            "3_more.sql",
            "create index shop_price on shop (price); create view prices as select price from shop",
        ),
    ];
    let shop = migrations(&files).await;
    let config = config(&db);
    // A table of the server of this test alone.
    sqlx::raw_sql("drop table people").execute(&db.pool()).await.expect("dropped");
    shop.up(&config).await.expect("up");
    let sql = "grant select on _sqlx_migrations, _sqlx_migrations_history to app";
    sqlx::raw_sql(sql).execute(&db.pool()).await.expect("granted");

    let none = Check::new(&shop).dump("no/such/dump").after(2).drift(&reader, None).await.expect("compared");
    assert!(none.differences.is_empty(), "{none:#?}");
    assert_eq!((none.version, none.server), (3, none.compared_on));

    let by_hand = "alter table shop alter column price type bigint using price; drop index shop_price; create table by_hand ();
                   grant select on shop to app"
        .replace("alter table shop alter", "drop view prices; alter table shop alter")
        + "; create view prices as select price from shop";
    sqlx::raw_sql(sqlx::AssertSqlSafe(by_hand)).execute(&db.pool()).await.expect("changed");
    let drift = Check::new(&shop).drift(&reader, None).await.expect("compared");
    let lines: Vec<String> = drift.differences.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "column public.shop.price differs:\n    -integer\n    +bigint",
            "index public.shop_price is missing",
            "table public.by_hand is there and should not be",
        ]
    );

    let old = migrations(&files[..1]).await;
    let unknown = Check::new(&old).drift(&reader, None).await.expect_err("it cannot know");
    assert!(matches!(unknown, CheckError::Migrate(Error::Unknown { version: 2 })), "{unknown}");
}

/// The versions of zksync-core whose down files are not SQL, such as `DROP COLUMN name BYTEA`.
const NOT_SQL: [i64; 12] = [
    20_220_204_223_302,
    20_220_815_130_828,
    20_220_930_085_018,
    20_221_001_090_302,
    20_221_002_190_817,
    20_221_202_102_801,
    20_240_112_194_527,
    20_240_205_123_456,
    20_240_925_103_531,
    20_241_011_081_834,
    20_250_402_131_932,
    20_250_822_160_137,
];

#[tokio::test]
async fn broken_ways_back_of_real_projects_are_found() {
    let Some((_unpacked, folders)) = real_folders() else {
        eprintln!("not tested: there is no ../shared/data/migrations");
        return;
    };
    let folder = |name: &str| folders.iter().find(|folder| folder.ends_with(name)).expect("a folder");
    // Its 269 ups, and some of the other downs: to try them all takes more than a minute.
    let some = tempfile::tempdir().expect("a folder");
    let entries = fs::read_dir(folder("zksync-core")).expect("listed");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let file = path.file_name().expect("a name").to_str().expect("UTF-8");
        let version: i64 = file.split('_').next().and_then(|part| part.parse().ok()).expect("a version");
        if !file.ends_with(".down.sql") || NOT_SQL.contains(&version) || version % 20 == 1 {
            fs::copy(&path, some.path().join(file)).expect("copied");
        }
    }
    let zksync = Migrations::from_dir(some.path()).await.expect("migrations");
    let svix = Migrations::from_dir(folder("svix")).await.expect("migrations");

    let (zksync, svix) = tokio::join!(Check::new(&zksync).run(), Check::new(&svix).run());

    let failed = |checked: Checked, sqlstate: &str| -> Vec<i64> {
        let fails = |it: &Finding| it.rule == Rule::DownFails && it.message.contains(sqlstate);
        let files = checked.files.iter().filter(|file| file.findings.iter().any(fails));
        files.map(|file| file.version).collect()
    };
    assert_eq!(failed(zksync.expect("checked"), "(42601)"), NOT_SQL);
    // It drops an index that is not there.
    assert_eq!(failed(svix.expect("checked"), ""), [20_220_428_190_104]);
}
