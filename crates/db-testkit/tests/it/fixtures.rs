//! SQL files that fill a test's database.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use db_embedded::Server;
use db_testkit::__private::{Plan, run_test};
use db_testkit::{Error, TestDb};
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;

use crate::support::{ask, databases, open_dir};

const ORDER: &str = "DB_TESTKIT_TEST_FIXTURE";

fn file(text: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = open_dir();
    let file = folder.path().join("fixture.sql");
    fs::write(&file, text).unwrap();
    (folder, file)
}

async fn rows(db: &TestDb) -> Vec<String> {
    sqlx::query_scalar("select of from fixture order by of").fetch_all(&db.pool()).await.unwrap()
}

#[db_testkit::test(migrations = "tests/migrations", fixtures = ["tests/fixtures/one.sql", "tests/fixtures/two.sql"])]
async fn fixtures_run_after_the_migrations_in_their_order(db: TestDb) {
    assert_eq!(rows(&db).await, ["one, after first", "two, after 1"]);
}

#[db_testkit::test(migrations = "tests/migrations", fixtures = "tests/fixtures/one.sql")]
async fn each_database_of_a_test_gets_migrations_and_fixtures(one: TestDb, other: TestDb) {
    assert_ne!(one.name(), other.name());
    assert_eq!(rows(&one).await, ["one, after first"]);
    assert_eq!(rows(&other).await, ["one, after first"]);
}

#[db_testkit::test]
async fn a_byte_order_mark_the_line_ends_of_windows_and_quoted_bodies_are_understood(db: TestDb) {
    let (_folder, file) = file(
        "\u{feff}-- a comment; with a semicolon\r\n\
         create table fixture (of text);\r\n\
         create function fill() returns void language plpgsql as $$\r\n\
         begin\r\n  insert into fixture values ('$1; it''s');\r\nend;\r\n$$;\r\n\
         select fill();\r\n",
    );

    db.load_fixture(&file).await.unwrap();

    assert_eq!(rows(&db).await, ["$1; it's"]);
}

#[db_testkit::test]
async fn an_empty_file_is_a_fixture(db: TestDb) {
    for text in ["", "\u{feff}\r\n", "-- nothing"] {
        let (_folder, file) = file(text);
        db.load_fixture(&file).await.unwrap();
    }
}

#[db_testkit::test]
async fn a_statement_that_fails_is_shown_with_its_file_and_line_and_nothing_is_kept(db: TestDb) {
    let (_folder, file) =
        file("create table fixture (of text);\r\n-- ü\r\ninsert into fixtures values ('x');\r\n");

    let error = db.load_fixture(&file).await.unwrap_err();

    assert_eq!(error.to_string(), format!("cannot run the fixture {}, line 3", file.display()));
    let Error::Fixture { source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("relation \"fixtures\" does not exist"), "{source}");
    assert_eq!(ask(&db.options(), "select coalesce(to_regclass('fixture')::text, 'none')").await, "none");
}

#[db_testkit::test]
async fn a_file_that_leaves_a_transaction_open_is_named_and_one_that_ends_it_is_a_fixture(db: TestDb) {
    for text in
        ["begin; create table fixture (of text);", "create table fixture (of text);\nbegin read only;"]
    {
        let (_folder, file) = file(text);

        let error = db.load_fixture(&file).await.unwrap_err();

        assert!(matches!(error, Error::FixtureOpen { .. }), "{error:?}");
        let told = format!("the fixture {} leaves a transaction open: end it with `commit`", file.display());
        assert_eq!(error.to_string(), told);
    }
    let (_folder, file) =
        file("begin; create table fixture (of text); insert into fixture values ('x'); commit;");
    db.load_fixture(&file).await.unwrap();
    assert_eq!(rows(&db).await, ["x"]);
}

#[db_testkit::test]
async fn a_file_that_cannot_be_read_is_named(db: TestDb) {
    let (_folder, no_text) = file([0xff, 0xfe]);
    for file in [PathBuf::from("no/such.sql"), no_text] {
        let error = db.load_fixture(&file).await.unwrap_err();
        assert!(matches!(error, Error::FixtureFile { .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("cannot read the fixture {}", file.display()));
    }
}

/// In a child: a test that has no database, because its second fixture fails. In a normal run: nothing.
#[test]
fn has_no_database_when_told_to() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let fixtures: &[&str] =
        if order == "missing" { &["tests/fixtures/missing.sql"] } else { &["tests/fixtures/two.sql"] };
    let fixtures: &'static [&'static str] = Box::leak(fixtures.into());
    run_test(&Plan { fixtures, ..Plan::DEFAULT }, async |[db]: [TestDb; 1]| {
        assert_eq!(db.name(), "", "it has a database");
    });
}

#[tokio::test]
async fn a_test_whose_database_is_not_made_leaves_nothing() {
    let server = tokio::task::spawn_blocking(|| Server::throwaway().start()).await.unwrap().unwrap();
    let address = server.url("postgres");
    for (order, told) in [
        ("missing", "cannot read the fixture tests/fixtures/missing.sql\n  because: No such file"),
        (
            "wrong",
            "cannot run the fixture tests/fixtures/two.sql, line 1\n  because: error returned from database: ",
        ),
    ] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["fixtures::has_no_database_when_told_to", "--exact", "--nocapture"])
            .env(ORDER, order)
            .env("DATABASE_URL", &address)
            .output()
            .unwrap();

        let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
        assert!(said.contains("1 failed") && said.contains("this test has no database: "), "{said}");
        assert!(said.contains(told), "{said}");
        assert_eq!(databases(&PgConnectOptions::from_str(&address).unwrap(), "tk_").await, [""; 0]);
    }
}
