//! Runs on a server that become files, and the files that answer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use db_testkit::script::{Recorder, Script};
use db_testkit::{Error, TestDb};
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Executor, PgConnection, Row};
use tempfile::TempDir;

const SHOP: &str = "create table shop (
    id bigint primary key,
    name text not null constraint shop_name unique,
    tags text[],
    price numeric,
    opened timestamptz not null default now()
)";

async fn shop(db: &TestDb) {
    db.pool().execute(SHOP).await.unwrap();
}

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recordings/shop.json");
    (folder, file)
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

fn panic(finish: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(finish)).expect_err("the recording is refused");
    *panic.downcast::<String>().unwrap()
}

/// What code under test sees: rows of several types, NULL, tags, errors with their fields, a failed transaction.
async fn seen(url: &str) -> Vec<String> {
    let mut connection = connect(url).await;
    let mut seen = Vec::new();
    let insert = "insert into shop (id, name, tags) values ($1, $2, $3) returning id, name, tags, price";
    for (id, name, tags) in [(1_i64, "first", Some(vec!["a", "b, \"c\""])), (2, "second", None)] {
        let row =
            sqlx::query(insert).bind(id).bind(name).bind(tags).fetch_one(&mut connection).await.unwrap();
        let tags: Option<Vec<String>> = row.get("tags");
        seen.push(format!("{} {} {tags:?}", row.get::<i64, _>("id"), row.get::<String, _>("name")));
    }

    let mut tx = connection.begin().await.unwrap();
    let taken =
        sqlx::query("insert into shop (id, name) values (3, $1)").bind("first").execute(&mut *tx).await;
    let taken = taken.unwrap_err().into_database_error().unwrap();
    seen.push(format!("{:?} {:?} {} {:?}", taken.code(), taken.constraint(), taken.message(), taken.table()));
    let ignored = sqlx::query("select 'ignored'").execute(&mut *tx).await.unwrap_err();
    seen.push(ignored.into_database_error().unwrap().code().unwrap().into_owned());
    tx.rollback().await.unwrap();

    let price = "update shop set price = $1::text::numeric where price is null";
    let done = sqlx::query(price).bind("1.50").execute(&mut connection).await.unwrap();
    seen.push(done.rows_affected().to_string());
    let rows = sqlx::query(
        "select price, id::int2, 1.5::float8 as half, true as yes, '\\x00ff'::bytea as bytes from shop",
    );
    for row in rows.fetch_all(&mut connection).await.unwrap() {
        let price = row.try_get_raw("price").unwrap().as_bytes().unwrap().to_vec();
        let bytes: Vec<u8> = row.get("bytes");
        let (id, half, yes): (i16, f64, bool) = (row.get("id"), row.get("half"), row.get("yes"));
        seen.push(format!("{price:?} {id} {half} {yes} {bytes:?}"));
    }
    connection.execute("drop table if exists nothing").await.unwrap();
    let unknown = sqlx::query("select * from nothing").execute(&mut connection).await.unwrap_err();
    seen.push(unknown.into_database_error().unwrap().code().unwrap().into_owned());
    let simple = sqlx::raw_sql("select 1 as n; select name, tags, opened from shop where id = 1");
    let row = connection.fetch_all(simple).await.unwrap().pop().unwrap();
    seen.push(format!("{} {:?}", row.get::<String, _>("name"), row.get::<Vec<String>, _>("tags")));
    seen.push(row.get::<OffsetDateTime, _>("opened").to_string());
    seen
}

#[db_testkit::test]
async fn a_script_answers_from_a_recording_as_the_server_did(db: TestDb) {
    shop(&db).await;
    let (_folder, file) = file();

    let recorder = Script::record(&db).unwrap();
    let on_server = seen(&recorder.url()).await;
    recorder.finish(&file);
    let script = Script::replay(&file).unwrap();
    let on_script = seen(&script.url()).await;

    assert_eq!(on_script, on_server);
    script.finish();
    let text = fs::read_to_string(&file).unwrap();
    // One line for a row, types by name, a notice, and no statement that a session answers by itself.
    for part in [
        r#"["1","first","{a,\"b, \\\"c\\\"\"}",null]"#,
        r#"["id","int8"]"#,
        "does not exist, skipping",
        "hex",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    for part in ["BEGIN", "ROLLBACK", "ignored"] {
        assert!(!text.contains(part), "{part}:\n{text}");
    }
    // The place in the server's source is another in each version.
    assert!(!text.contains("nbtinsert"), "{text}");
}

#[db_testkit::test]
async fn a_refused_commit_is_refused_in_its_turn(db: TestDb) {
    let deferred = "create table item (shop bigint references shop deferrable initially deferred)";
    shop(&db).await;
    db.pool().execute(deferred).await.unwrap();
    db.pool().execute("insert into shop (id, name) values (1, 'first')").await.unwrap();
    let (_folder, file) = file();
    let commits = async |url: &str| {
        let mut connection = connect(url).await;
        let mut codes = Vec::new();
        for shop in [1_i64, 2, 1] {
            let mut tx = connection.begin().await.unwrap();
            sqlx::query("insert into item values ($1)").bind(shop).execute(&mut *tx).await.unwrap();
            let refused = tx.commit().await.err().and_then(sqlx::Error::into_database_error);
            codes.push(refused.and_then(|it| it.code().map(String::from)));
        }
        codes
    };

    let recorder = Script::record(&db).unwrap();
    let on_server = commits(&recorder.url()).await;
    recorder.finish(&file);
    let script = Script::replay(&file).unwrap();

    assert_eq!(on_server, [None, Some("23503".to_owned()), None]);
    assert_eq!(commits(&script.url()).await, on_server);
    script.finish();
}

/// One statement with a value, on a connection of its own.
async fn name_of(url: &str, id: i64) -> String {
    let query = sqlx::query_scalar("select name from shop where id = $1").bind(id);
    query.fetch_one(&mut connect(url).await).await.unwrap()
}

#[db_testkit::test]
async fn a_later_run_that_differs_fails_with_the_difference(db: TestDb) {
    shop(&db).await;
    db.pool().execute("insert into shop (id, name) values (1, 'first'), (2, 'second')").await.unwrap();
    let (_folder, file) = file();
    let run = async |ids: &[i64]| {
        let recorder = Script::record(&db).unwrap();
        for id in ids {
            name_of(&recorder.url(), *id).await;
        }
        recorder
    };
    run(&[1, 1, 2]).await.finish(&file);
    let before = fs::read_to_string(&file).unwrap();

    // In another order it is the same run.
    run(&[2, 1, 1]).await.finish(&file);
    let twice = run(&[1, 1, 2, 2]).await;
    let less = run(&[1, 1]).await;
    db.pool()
        .execute("update shop set name = 'renamed' where id = 1; insert into shop values (3, 'third')")
        .await
        .unwrap();
    let other = run(&[1, 1, 2, 3]).await;
    let (twice, less, other) =
        (panic(|| twice.finish(&file)), panic(|| less.finish(&file)), panic(|| other.finish(&file)));

    let statement = "`select name from shop where id = $1` with";
    assert!(twice.contains(&format!("+ came now): {statement} [\"2\"]")), "{twice}");
    assert!(less.contains(&format!("recorded, and not asked now: {statement} [\"2\"]")), "{less}");
    assert!(other.contains("-       [\"first\"]\n") && other.contains("+       [\"renamed\"]\n"), "{other}");
    assert!(other.contains(&format!("asked now, and not recorded: {statement} [\"3\"]")), "{other}");
    assert!(!other.contains("second"), "{other}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
}

#[db_testkit::test]
async fn what_varies_is_not_compared_and_a_script_takes_any_value_for_it(db: TestDb) {
    shop(&db).await;
    let (_folder, file) = file();
    let insert = async |url: &str, id: i64| -> (i64, OffsetDateTime) {
        let sql = "insert into shop (id, name) values ($1, $2) returning id, opened";
        let query = sqlx::query_as(sql).bind(id).bind("same");
        query.fetch_one(&mut connect(url).await).await.unwrap()
    };
    let record = async |id: i64| {
        db.pool().execute("delete from shop").await.unwrap();
        let recorder = Script::record(&db).unwrap();
        let inserted = insert(&recorder.url(), id).await;
        (recorder, inserted)
    };
    let tolerant = |recorder: Recorder| {
        recorder.varying_column("opened").varying_column("id").varying_value("insert into  shop", 1)
    };

    let (recorder, first) = record(7).await;
    tolerant(recorder).finish(&file);
    let (recorder, _) = record(8).await;
    tolerant(recorder).finish(&file);
    let (recorder, _) = record(7).await;
    let strict = panic(|| recorder.varying_value("insert into shop", 1).finish(&file));

    assert!(strict.contains("another answer"), "{strict}");
    let script = Script::replay(&file).unwrap();
    assert_eq!(insert(&script.url(), 9).await, first);
    script.finish();
}

#[db_testkit::test]
async fn what_cannot_be_kept_is_named(db: TestDb) {
    db.pool().execute("create type mood as enum ('good', 'bad')").await.unwrap();
    let (_folder, file) = file();
    for (sql, reason) in [
        ("copy (select 1) to stdout", "a COPY"),
        ("select 1.5 as price", "`select 1.5 as price`: column price of type 1700 in text form"),
        ("select 'good'::mood as mood", "the type of column mood was made in the database"),
    ] {
        let recorder = Script::record(&db).unwrap();
        let _ = connect(&recorder.url()).await.execute(sql).await;

        let why = panic(|| recorder.finish(&file));
        assert!(why.contains(reason), "{why}");
    }
    assert!(!file.exists());
}

#[test]
fn a_file_that_is_no_recording_is_refused_with_the_reason() {
    let (_folder, file) = file();
    let why = || match Script::replay(&file) {
        Err(Error::Recording { why, file: named }) => {
            assert_eq!(named, file);
            why
        }
        other => panic!("{other:?}"),
    };
    let missing = why();
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let refuse = |text: &str| {
        fs::write(&file, text).unwrap();
        why()
    };
    let statement = |answer: &str| {
        format!(
            r#"{{"form": 1, "statements": [{{"statement": "select 1", "values": [], "answers": [{{"answer": {answer}}}]}}]}}"#
        )
    };

    assert!(missing.contains("No such file"), "{missing}");
    for (text, reason) in [
        ("{", "EOF"),
        (r#"{"form": 2, "statements": []}"#, "a recording of form 2"),
        (
            &statement(r#"{"columns": [["n", "int4"]], "rows": [["x"]]}"#),
            "`select 1`: \"x\" is no value of type int4",
        ),
        (&statement(r#"{"columns": [["n", "nit4"]]}"#), "there is no type \"nit4\""),
        (
            &statement(r#"{"columns": [["n", "int4"]], "rows": [["1", "2"]]}"#),
            "a row of 2 values, and 1 columns",
        ),
        (&statement(r#"{"error": {"message": "m", "severity": "ERROR"}}"#), "an error without sqlstate"),
        (&statement(r#"{"eror": {}}"#), "unknown field"),
    ] {
        let why = refuse(text);
        assert!(why.contains(reason), "{why}");
    }
}
