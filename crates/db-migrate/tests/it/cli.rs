//! The command `db-migrate`, as a user runs it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use boon::{Compiler, Schemas};
use db_core::Config;
use db_testkit::TestDb;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::batches::as_role;
use crate::history::NEWER;
use crate::{SHOP, exists, folder, migrations};

const PROGRAM: &str = env!("CARGO_BIN_EXE_db-migrate");

fn command(folder: &Path, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).arg("--source").arg(folder).env("DATABASE_URL", url).env_remove("RUST_LOG");
    command.stdin(Stdio::null());
    command
}

/// Its exit code, and what it printed.
async fn run(folder: &Path, url: &str, args: &[&str]) -> (i32, String, String) {
    let mut command = command(folder, url, args);
    let output = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
    said(output.await.expect("no panic"))
}

fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

/// Runs it in a terminal, and types this.
async fn in_a_terminal(folder: &Path, url: &str, args: &[&str], typed: &'static str) -> (i32, String) {
    let words = [&[PROGRAM], args, &["--source", folder.to_str().expect("UTF-8")]].concat();
    let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("DATABASE_URL", url);
    command.env_remove("RUST_LOG").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut script = command.spawn().expect("script runs");
        script.stdin.take().expect("piped").write_all(typed.as_bytes()).expect("typed");
        script.wait_with_output().expect("it ends")
    });
    let (code, out, err) = said(output.await.expect("no panic"));
    (code, out + &err)
}

fn document(document: &str, kind: &str) -> Value {
    let schema = include_str!("../../schema/db-migrate.schema.json");
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    let schema = serde_json::from_str(schema).expect("JSON");
    compiler.add_resource("mem:///schema.json", schema).expect("a schema");
    let kind = format!("mem:///schema.json#/$defs/{kind}");
    let index = compiler.compile(&kind, &mut schemas).expect("a schema");
    let document: Value = serde_json::from_str(document).expect("JSON");
    if let Err(error) = schemas.validate(&document, index) {
        panic!("{kind}: {error:#}\n{document:#}");
    }
    document
}

#[db_testkit::test]
async fn a_folder_is_made_applied_listed_and_reverted(db: TestDb) {
    let files = tempfile::tempdir().expect("a folder");
    let folder = files.path().join("migrations");
    let url = db.url();

    let (code, out, _) = run(&folder, &url, &["new", "add shop"]).await;
    assert_eq!(code, 0);
    let [up, down] = out.lines().collect::<Vec<_>>().try_into().expect("two files");
    assert!(up.ends_with("_add_shop.up.sql") && down.ends_with("_add_shop.down.sql"), "{out}");
    fs::write(up, "create table shop (id int);\nselect 1").expect("written");
    fs::write(down, "drop table shop").expect("written");
    let version =
        Path::new(up).file_name().and_then(|name| name.to_str()?.split('_').next()).expect("a version");

    let (code, out, _) = run(&folder, &url, &["plan"]).await;
    assert_eq!((code, &*out), (0, &*format!("{version}  up    add shop  (2 statements)\n")));
    assert_eq!(run(&folder, &url, &["plan", "--check"]).await.0, 2);
    assert_eq!(run(&folder, &url, &["status", "--check"]).await.0, 2);
    assert!(!exists(&db, "_sqlx_migrations").await);

    let (code, out, _) = run(&folder, &url, &["up"]).await;
    assert_eq!((code, &*out), (0, &*format!("{version}  applied\nthe database is at version {version}\n")));
    let (code, out, _) = run(&folder, &url, &["status", "--check"]).await;
    let expected = format!(
        "{version}  applied      add shop\nthe database is at version {version}, the folder at {version}\n"
    );
    assert_eq!((code, out), (0, expected));
    assert_eq!(
        run(&folder, &url, &["plan", "--check"]).await,
        (0, "nothing to do\n".to_owned(), String::new())
    );
    assert_eq!(run(&folder, &url, &["validate"]).await, (0, "nothing is wrong\n".to_owned(), String::new()));

    let (code, _, err) = run(&folder, &url, &["down"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("no terminal to ask on: add --yes"), "{err}");
    assert!(exists(&db, "shop").await);
    let (code, out, err) = run(&folder, &url, &["redo", "--yes"]).await;
    assert_eq!(
        (code, out),
        (0, format!("{version}  reverted\n{version}  applied\nthe database is at version {version}\n")),
        "{err}"
    );
    let (code, out, _) = run(&folder, &url, &["down", "--yes"]).await;
    assert_eq!((code, out), (0, format!("{version}  reverted\nthe database is at version 0\n")));
    assert!(!exists(&db, "shop").await);

    let (code, out, _) = run(&folder, &url, &["history"]).await;
    let program = concat!("with db-migrate ", env!("CARGO_PKG_VERSION"));
    assert_eq!((code, out.lines().filter(|line| line.ends_with(program)).count()), (0, 4), "{out}");
}

#[db_testkit::test]
async fn each_answer_is_one_document_of_the_schema(db: TestDb) {
    let files = folder(&NEWER);
    let (folder, url) = (files.path(), db.url());
    let json = async |args: &[&str], kind: &str| {
        let (code, out, err) = run(folder, &url, &[args, &["--json"]].concat()).await;
        assert!(code == 0 || code == 2, "{args:?}: {err}");
        document(&out, kind)
    };

    let plan = json(&["plan", "--sql"], "plan").await;
    assert_eq!(plan["steps"][2]["in_transaction"], json!(false));
    assert_eq!(plan["steps"][2]["sql"], json!(NEWER[4].1));
    let baseline = json(&["baseline", "1", "--reason", "there", "--unchecked"], "recorded").await;
    assert_eq!(baseline, json!({ "recorded": [1] }));
    let up = json(&["up", "--to", "2"], "changes").await;
    assert_eq!(up, json!({ "changed": [{ "version": 2, "action": "up" }], "repeated": [], "version": 2 }));
    let redo = json(&["redo", "--yes"], "changes").await;
    let both = json!([{ "version": 2, "action": "down" }, { "version": 2, "action": "up" }]);
    assert_eq!(redo["changed"], both);
    fs::write(folder.join(NEWER[2].0), "-- Now with a comment.\ncreate table two (id int)").expect("written");
    let status = json(&["status"], "status").await;
    let found: Vec<_> =
        status["migrations"].as_array().expect("a list").iter().map(|it| &it["state"]).collect();
    assert_eq!(found, ["applied", "reformatted", "pending"]);
    let valid = json(&["validate"], "validate").await;
    assert_eq!((&valid["problems"], &valid["warnings"][0]["version"]), (&json!([]), &json!(2)));
    assert_eq!(json(&["rebless", "--reason", "a comment"], "recorded").await, json!({ "recorded": [2] }));
    fs::write(folder.join(NEWER[2].0), "create table two (id bigint)").expect("written");
    fs::write(folder.join("4_four.sql"), "-- no transaction\nselect 'no end").expect("written");
    let valid = json(&["validate"], "validate").await;
    let problems: Vec<_> =
        valid["problems"].as_array().expect("a list").iter().map(|it| it["version"].clone()).collect();
    assert_eq!(problems, [json!(2), json!(4), json!(null)], "{valid:#}");
    assert!(
        valid["problems"][0]["message"].as_str().expect("text").contains("+create table two (id bigint)")
    );
    fs::write(folder.join(NEWER[2].0), NEWER[2].1).expect("written");
    fs::write(folder.join("4_four.sql"), "\n  select nothing").expect("written");
    let (code, out, err) = run(folder, &url, &["up", "--json"]).await;
    assert_eq!((code, &*out), (1, ""));
    assert!(err.contains("migration 2") || err.contains("migration 4"), "{err}");
    let history = json(&["history"], "history").await;
    let actions: Vec<_> =
        history["attempts"].as_array().expect("a list").iter().map(|it| &it["action"]).collect();
    assert_eq!(actions[..5], ["baseline", "up", "down", "up", "reblessed"]);
    json(&["down", "--to", "1", "--yes"], "changes").await;
    json(&["plan", "--down-to", "0"], "plan").await;
    assert_eq!(json(&["new", "five"], "new").await["files"].as_array().map(Vec::len), Some(2));
}

#[db_testkit::test]
async fn the_address_may_stand_in_a_file_as_for_sqlx(db: TestDb) {
    let files = folder(&SHOP);
    let here = tempfile::tempdir().expect("a folder");
    let status = async |text: &str| {
        fs::write(here.path().join(".env"), text).expect("written");
        let mut command = command(files.path(), "", &["status"]);
        command.env_remove("DATABASE_URL").current_dir(here.path());
        let output = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
        said(output.await.expect("no panic"))
    };

    let (code, out, err) = status(&format!("DATABASE_URL='{}'\n", db.url())).await;
    assert_eq!((code, out.lines().count()), (0, 3), "{err}");
    let (code, _, err) = status("DATABASE_URL='hunter2\n").await;
    assert_eq!(code, 1);
    assert!(
        err.contains(".env cannot be read") && err.contains("no database") && !err.contains("hunter2"),
        "{err}"
    );
}

#[db_testkit::test]
async fn a_check_in_ci_is_one_command(db: TestDb) {
    let files = folder(&[
        ("0001_shop.up.sql", "create table shop (id int primary key)"),
        ("0001_shop.down.sql", "drop table shop"),
        (
            "0002_name, and more.up.sql",
            "-- A name.\nalter table shop\n  add name text not null;\ncreate index on shop (name)",
        ),
        (
            "0002_name, and more.down.sql",
            "alter table shop drop name;\ncreate view left_over as select id from shop",
        ),
    ]);
    let (folder, url) = (files.path(), db.url());
    let check = async |args: &[&str]| run(folder, &url, &[&["check"], args].concat()).await;

    // Nothing is applied, so nobody uses what the files make.
    let (code, out, err) = check(&[]).await;
    assert_eq!((code, &*err), (2, ""));
    assert!(!out.contains("adding-required-field") && out.contains("down-differs"), "{out}");
    assert_eq!(run(folder, &url, &["up", "--to", "1"]).await.0, 0);
    let (code, out, _) = check(&["--github", "--trace"]).await;
    assert_eq!(code, 2);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "2 name, and more");
    assert!(
        lines[1].starts_with("  line 2, column 1: ")
            && lines[1].ends_with(", AccessExclusiveLock on public.shop, reads all of public.shop"),
        "{out}"
    );
    assert!(
        lines[3].starts_with("  line 2, column 1: adding-required-field: public.shop.name is not null"),
        "{out}"
    );
    assert!(out.contains("  down file: down-differs: the schema is not what it was:\n      view public.left_over is there and should not be\n"), "{out}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("files checked on PostgreSQL ")
                && line.contains(": 1; findings: 3; ")),
        "{out}"
    );
    let annotations: Vec<&str> = lines.iter().filter(|line| line.starts_with("::error ")).copied().collect();
    let path = folder.join("0002_name, and more.up.sql").display().to_string().replace(',', "%2C");
    let start = format!(
        "::error file={path},line=2,col=1,title=adding-required-field::public.shop.name is not null and "
    );
    assert!(annotations[0].starts_with(&start), "{out}");
    let down = path.replace(".up.", ".down.");
    let start = format!(
        "::error file={down},line=1,col=1,title=down-differs::the schema is not what it was:%0A    view public.left_over is "
    );
    assert!(annotations[2].starts_with(&start), "{out}");
    assert_eq!(annotations.len(), 3, "{out}");

    let (code, out, _) = check(&["--all", "--json"]).await;
    assert_eq!(code, 2);
    let document = document(&out, "check");
    assert_eq!(document["files"][0]["way_back"], json!("same"));
    assert_eq!(document["files"][1]["findings"][0]["rule"], json!("adding-required-field"));
    // No address is needed.
    let (code, out, err) = run(folder, "", &["check", "--after", "2"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(": 0; findings: 0; "), "{out}");
    assert_eq!(run(folder, &url, &["status"]).await.1.lines().count(), 3, "nothing was applied");
}

#[tokio::test]
async fn what_the_server_of_a_check_lacks_is_given_by_flags() {
    let files = folder(&[
        (
            "1_shop.sql",
            "create extension no_such_one; create table shop (id int); alter table shop owner to clerk_of_a_check",
        ),
        ("2_index.sql", "create index on shop (id); alter table shop add name text not null"),
    ]);
    let setup = files.path().join("setup");
    fs::write(&setup, "create role clerk_of_a_check; create database another").expect("written");
    let check = async |args: &[&str]| run(files.path(), "", &[&["check"], args].concat()).await;

    let (code, _, err) = check(&[]).await;
    assert_eq!(code, 1);
    assert!(err.contains("no extension no_such_one") && err.contains("--skip-extension"), "{err}");
    let (code, out, _) = check(&["--skip-extension", "no_such_one"]).await;
    assert_eq!(code, 2);
    assert!(out.contains("up-fails: ") && out.contains("\"clerk_of_a_check\" does not exist"), "{out}");
    let setup = ["--skip-extension", "no_such_one", "--setup", setup.to_str().expect("UTF-8")];
    let (code, out, err) = check(&[&setup[..], &["--without", "adding-required-field"]].concat()).await;
    assert_eq!(code, 2, "{err}");
    assert!(
        out.contains("require-concurrent-index-creation") && !out.contains("adding-required-field"),
        "{out}"
    );
    let (code, _, err) = check(&["--without", "no-such-rule"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("the rules are up-fails, "), "{err}");
}

/// The folders of servers.
fn servers(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("listed").map(|entry| entry.expect("an entry").path()).collect()
}

#[tokio::test]
async fn a_check_that_is_interrupted_leaves_no_server() {
    let files = folder(&[("1_sleeps.sql", "select pg_sleep(60)")]);
    // The account that runs the server has to write there.
    let data = tempfile::tempdir_in("/tmp").expect("a folder");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).expect("set");
    let mut check = command(files.path(), "", &["check"]);
    let child = check.env("TMPDIR", data.path()).stderr(Stdio::piped()).spawn().expect("it runs");
    let is_ready = |server: &PathBuf| {
        let file = fs::read_to_string(server.join("data/postmaster.pid"));
        file.is_ok_and(|text| text.contains("ready"))
    };
    db_testkit::until("its server is ready", async || servers(data.path()).iter().any(is_ready)).await;

    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");

    assert!(killed.success());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().expect("it ends"));
    let (code, _, err) = said(output.await.expect("no panic"));
    assert!(code == 1 && err.contains("nothing else was changed"), "{err}");
    db_testkit::until("nothing is left", async || servers(data.path()).is_empty()).await;
}

#[db_testkit::test]
async fn a_database_that_is_not_what_its_migrations_make_is_told_and_gets_no_baseline(db: TestDb) {
    let files = folder(&SHOP);
    let (folder, url) = (files.path(), db.url());
    sqlx::raw_sql("create table shop (id bigint)").execute(&db.pool()).await.expect("made");
    let baseline = ["baseline", "1", "--reason", "it is there"];

    let (code, _, err) = run(folder, &url, &baseline).await;
    assert_eq!(code, 1);
    assert!(
        err.contains("nothing was recorded")
            && err.contains("column public.shop.id differs:\n    -integer\n    +bigint"),
        "{err}"
    );
    assert!(!exists(&db, "_sqlx_migrations").await);
    let sql = "alter table shop alter id type int; create table schema_migrations (version bigint primary key, dirty boolean)";
    sqlx::raw_sql(sql).execute(&db.pool()).await.expect("mended");
    let (_, _, err) = run(folder, &url, &baseline).await;
    assert!(err.contains("table public.schema_migrations is there and should not be"), "{err}");
    let ignoring = [&baseline[..], &["--ignore", "schema_migrations"]].concat();
    let (code, out, err) = run(folder, &url, &ignoring).await;
    assert_eq!((code, &*out), (0, "1  applied, and not run\n"), "{err}");

    sqlx::raw_sql("drop table schema_migrations").execute(&db.pool()).await.expect("dropped");
    let (code, out, _) = run(folder, &url, &["drift"]).await;
    assert_eq!(code, 0);
    assert!(out.ends_with("is what its migrations make, up to version 1\n"), "{out}");
    sqlx::raw_sql("create index by_hand on shop (id)").execute(&db.pool()).await.expect("made");
    let (code, out, _) = run(folder, &url, &["drift"]).await;
    assert_eq!((code, &*out), (2, "index public.by_hand is there and should not be\n"));
    let (code, out, _) = run(folder, &url, &["drift", "--json"]).await;
    assert_eq!((code, &document(&out, "drift")["version"]), (2, &json!(1)));
}

#[tokio::test]
async fn a_plan_has_no_effect_and_needs_no_more_than_the_right_to_read() {
    let setup = "alter role app set default_transaction_read_only = on";
    let (db, _server, reader) = as_role(setup).await;
    let files = folder(&SHOP);
    let ours = migrations(&SHOP).await;
    ours.up_to(&Config::from_url(&db.url()).expect("an address"), 1).await.expect("up");
    let sql = "grant select on all tables in schema public to app";
    sqlx::raw_sql(sql).execute(&db.pool()).await.expect("granted");
    let url = url_of(&reader);
    let effects = async || {
        let sql = "select json_build_array(
                 (select json_agg(t order by relname) from (select relname, n_tup_ins, n_tup_upd, n_tup_del from pg_stat_user_tables) as t),
                 (select json_agg(relname order by relname) from pg_class))::text";
        // Seen at once, and not when the sessions report their counts.
        sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).fetch_one(&db.pool()).await.expect("counts")
    };
    let before = effects().await;
    // Who wanted it would fail after a minute.
    let mut migrating = db.pool().acquire().await.expect("a connection");
    sqlx::migrate::Migrate::lock(&mut *migrating).await.expect("sqlx's lock");

    for args in
        [&["plan", "--sql"][..], &["plan", "--down-to", "0"], &["status"], &["validate"], &["history"]]
    {
        let (code, out, err) = run(files.path(), &url, args).await;
        assert_eq!(code, 0, "{args:?}: {err}");
        assert!(!out.is_empty() && err.is_empty(), "{args:?}: {err}");
    }

    sqlx::migrate::Migrate::unlock(&mut *migrating).await.expect("unlocked");
    assert_eq!(effects().await, before);
}

/// The address of [`as_role`], which needs no password.
fn url_of(config: &Config) -> String {
    let text = config.to_string();
    let (user, rest) = text.split_once('@').expect("a role");
    let (place, database) = rest.rsplit_once('/').expect("a database");
    let (dir, port) = place.rsplit_once(':').expect("a port");
    format!("postgres://{user}@{}:{port}/{database}", dir.replace('/', "%2F"))
}

#[db_testkit::test]
async fn a_way_back_on_record_is_shown_and_run_after_a_confirmation(db: TestDb) {
    let (all, old) = (folder(&NEWER), folder(&NEWER[..2]));
    let url = db.url();
    assert_eq!(run(all.path(), &url, &["up"]).await.0, 0);

    let (code, _, err) = run(old.path(), &url, &["down", "--yes"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("the folder has no way back of 3:") && err.contains("--from-record"), "{err}");
    let (code, said) = in_a_terminal(old.path(), &url, &["down"], "no\n").await;
    assert_eq!(code, 1);
    assert!(said.contains("drop index concurrently three") && said.contains("nothing was changed"), "{said}");
    assert_eq!(run(old.path(), &url, &["status"]).await.1.lines().count(), 4);

    let (code, said) = in_a_terminal(old.path(), &url, &["down"], "yes\n").await;
    assert_eq!(code, 0, "{said}");
    let (code, out, err) = run(old.path(), &url, &["down", "--to", "1", "--yes", "--from-record"]).await;
    assert_eq!((code, &*out), (0, "2  reverted\nthe database is at version 1\n"), "{err}");
    assert!(exists(&db, "one").await && !exists(&db, "two").await);

    assert_eq!(run(all.path(), &url, &["up"]).await.0, 0);
    let (code, _, err) = run(old.path(), &url, &["redo", "--yes", "--from-record"]).await;
    assert_eq!(code, 1, "it could not be applied again");
    assert!(err.contains("there is no migration 3") && exists(&db, "three").await, "{err}");
}

#[db_testkit::test]
async fn exit_codes_tell_a_failure_from_a_finding_and_no_message_has_the_password(db: TestDb) {
    let files = folder(&[("1_bad.sql", "select 1;\nselect nothing;")]);
    let url = db.url();
    let code = async |url: &str, args: &[&str]| run(files.path(), url, args).await;

    assert_eq!(code(&url, &["--help"]).await.0, 0);
    assert_eq!(code(&url, &["up", "--no-such-flag"]).await.0, 1);
    assert_eq!(code(&url, &["up", "--to", "7"]).await.0, 1);
    let (failed, _, err) = code(&url, &["up"]).await;
    assert_eq!(failed, 1);
    assert!(err.starts_with("db-migrate: migration 1 failed at line 2, column 8: "), "{err}");
    let (found, out, _) = code(&url, &["validate"]).await;
    assert_eq!((found, &*out), (0, "nothing is wrong\n"));
    let (twice, out, _) = run(folder(&[("1_a.sql", ""), ("1_b.sql", "")]).path(), &url, &["validate"]).await;
    assert_eq!(twice, 2);
    assert!(out.starts_with("error: ") && out.contains("1_a.sql and 1_b.sql have one version"), "{out}");
    let (code_of_wrong, _, err) = code("postgres://app:hunter2@host:port/shop", &["status"]).await;
    assert_eq!(code_of_wrong, 1);
    assert!(!err.contains("hunter2") && err.contains("the database's address"), "{err}");
    let (code_of_none, _, err) = code("", &["status"]).await;
    assert_eq!(code_of_none, 1, "{err}");
    let (_, out, _) = code(&url, &["history"]).await;
    assert!(out.contains("SQLSTATE 42703: line 2, column 8: select nothing;"), "{out}");
}

#[db_testkit::test]
async fn ctrl_c_rolls_the_migration_back(db: TestDb) {
    let files = folder(&[("1_sleeps.sql", "create table half (); select pg_sleep(60)")]);
    let child = command(files.path(), &db.url(), &["up"]).stderr(Stdio::piped()).spawn().expect("it runs");
    let sleeps = "select exists (select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep')";
    let is_asleep = async || sqlx::query_scalar(sleeps).fetch_one(&db.pool()).await.expect("an answer");
    db_testkit::until("the migration sleeps", is_asleep).await;

    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &pid]).status().expect("kill runs");
    assert!(killed.success());

    let output = tokio::task::spawn_blocking(move || child.wait_with_output().expect("it ends"));
    let (code, _, err) = said(output.await.expect("no panic"));
    assert_eq!(code, 1);
    assert!(err.contains("interrupted"), "{err}");
    db_testkit::until("the session ends", async || {
        let asleep: bool = sqlx::query_scalar(sleeps).fetch_one(&db.pool()).await.expect("an answer");
        !asleep
    })
    .await;
    assert!(!exists(&db, "half").await);
}

#[db_testkit::test]
async fn a_repeatable_file_is_made_planned_applied_listed_and_checked(db: TestDb) {
    let files = folder(&[("1_shop.sql", "create table shop (id int)")]);
    let (folder, url) = (files.path(), db.url());

    let (code, out, _) = run(folder, &url, &["new", "--repeatable", "all shops"]).await;
    let path = folder.join("repeatable/all_shops.sql");
    assert_eq!((code, out), (0, format!("{}\n", path.display())));
    assert_eq!(run(folder, &url, &["new", "--repeatable", "all shops"]).await.0, 1, "it is there");
    fs::write(&path, "create view all_shops as select * from shop").expect("written");

    let (_, out, _) = run(folder, &url, &["plan"]).await;
    assert_eq!(out, "1  up    shop  (1 statement)\nrepeatable  repeat  all_shops  (1 statement)\n");
    let plan = document(&run(folder, &url, &["plan", "--json"]).await.1, "plan");
    assert_eq!(plan["steps"][1]["action"], json!("repeat"));
    let (_, out, _) = run(folder, &url, &["up"]).await;
    assert_eq!(out, "1  applied\nrepeatable  applied  all_shops\nthe database is at version 1\n");
    let (code, out, _) = run(folder, &url, &["status", "--check"]).await;
    let listed = "1  applied      shop\nrepeatable  applied      all_shops\nthe database is at version 1, the folder at 1\n";
    assert_eq!((code, &*out), (0, listed));

    fs::write(&path, "create or replace view all_shops as select id from shop").expect("written");
    let (code, out, _) = run(folder, &url, &["status", "--check", "--json"]).await;
    let state = &document(&out, "status")["repeatables"];
    assert_eq!((code, state), (2, &json!([{ "name": "all_shops", "state": "pending" }])));
    let changes = document(&run(folder, &url, &["up", "--json"]).await.1, "changes");
    assert_eq!(changes, json!({ "changed": [], "repeated": ["all_shops"], "version": 1 }));
    let history = document(&run(folder, &url, &["history", "--json"]).await.1, "history");
    assert_eq!(history["attempts"][2]["action"], json!("repeat"));

    fs::write(&path, "-- A view.\ncreate view all_shops as select id from shop").expect("written");
    let (code, out, _) = run(folder, &url, &["check", "--all", "--github"]).await;
    assert_eq!(code, 2);
    assert!(out.starts_with("repeatable all_shops\n  line 2, column 1: not-repeatable: "), "{out}");
    assert!(out.contains(": 2; findings: 1; "), "{out}");
    let annotation = format!("::error file={},line=2,col=1,title=not-repeatable::", path.display());
    assert!(out.contains(&annotation), "{out}");
    let checked = document(&run(folder, &url, &["check", "--all", "--json"]).await.1, "check");
    assert_eq!(checked["repeatables"][0]["findings"][0]["action"], json!("repeat"));
}

#[db_testkit::test]
async fn files_of_steps_are_made_and_left_to_the_program_that_has_them(db: TestDb) {
    let files = folder(&[("1_shop.sql", "create table shop (id int)")]);
    let (folder, url) = (files.path(), db.url());
    let make = async |args: &[&str]| run(folder, &url, &[&["new"], args].concat()).await;

    assert_eq!(make(&["split names", "--step", "split"]).await.0, 0);
    assert_eq!(make(&["fill", "--batches", "fill-lengths"]).await.0, 0);
    assert_eq!(make(&["bad", "--step", "two words"]).await.0, 1);
    let text = |name: &str| fs::read_to_string(folder.join(name)).expect("a file");
    let file = text("2_split_names.sql");
    assert!(
        file.starts_with("-- db-migrate: step split\n-- ")
            && file.contains("\ndo $$ begin\n    raise exception '"),
        "{file}"
    );
    assert!(text("3_fill.sql").starts_with("-- no-transaction\n-- db-migrate: step fill-lengths\n"));

    let (_, out, _) = run(folder, &url, &["plan"]).await;
    let expected = "1  up    shop  (1 statement)\n2  up    split names  (the program's step `split`)\n\
                    3  up    fill  (the program's step `fill-lengths`, outside of a transaction)\n\
                    stopped by: migration 2 is the step `split`, which this program does not have: ";
    assert!(out.starts_with(expected), "{out}");
    let plan = document(&run(folder, &url, &["plan", "--json"]).await.1, "plan");
    assert_eq!(plan["steps"][1]["step"], json!("split"));
    let (code, _, err) = run(folder, &url, &["up"]).await;
    assert!(code == 1 && err.contains("migration 2 is the step `split`"), "{err}");
    assert!(!exists(&db, "shop").await);

    let (code, out, _) = run(folder, &url, &["check", "--all"]).await;
    let expected = "2 split names  (no way back)\n  its step `split` is the program's, and was not run\n";
    assert!(code == 0 && out.starts_with(expected), "{out}");
    let checked = document(&run(folder, &url, &["check", "--all", "--json"]).await.1, "check");
    assert_eq!(checked["files"][2]["step_not_run"], json!("fill-lengths"));
}
