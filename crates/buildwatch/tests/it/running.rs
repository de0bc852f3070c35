//! `run`: output, exit codes and stored data.

use std::path::Path;

use db_testkit::TestDb;
use serde_json::Value;
use sqlx::PgPool;
use sqlx::migrate::Migrator;

use crate::support::{Home, err, lines, out};

#[db_testkit::test]
async fn stdout_goes_to_stdout_stderr_to_stderr_and_the_exit_code_is_the_commands(db: TestDb) {
    let home = Home::on(&db);

    let output = home.run("echo one; echo two >&2; echo three; exit 7");

    assert_eq!(out(&output), "one\nthree\n");
    assert_eq!(err(&output), "buildwatch: build 1\ntwo\n");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(home.run("true").status.code(), Some(0));
    assert_eq!(home.run("kill -KILL $$").status.code(), Some(137));
}

#[db_testkit::test]
async fn a_hundred_thousand_lines_come_out_exactly_and_their_ids_are_dense(db: TestDb) {
    let home = Home::on(&db);

    let output = home.run("seq 1 100000 | sed 's/^/line /'");

    let expected = lines(100_000, "line ");
    assert!(out(&output) == expected, "{} bytes of {}", output.stdout.len(), expected.len());
    let mut events = home.events(1);
    for (event, id) in events.iter().zip(1..) {
        assert_eq!(event["id"], id);
    }
    let end = events.pop().expect("an end");
    assert_eq!((end["type"].as_str(), end["data"]["status"].as_str()), (Some("end"), Some("succeeded")));
    // A line is one event, unless the command stopped in its middle.
    let texts = events.iter().map(|event| {
        let line_end = if event["data"]["newline"] == false { "" } else { "\n" };
        format!("{}{line_end}", event["data"]["text"].as_str().expect("a text"))
    });
    assert!(texts.collect::<Vec<_>>().concat() == expected);
    assert!((100_000..100_100).contains(&events.len()), "{} events", events.len());
}

#[db_testkit::test]
async fn the_plan_is_sealed_in_the_database_and_holds_names_of_the_environment_only(db: TestDb) {
    let home = Home::on(&db);
    let mut run = home.buildwatch(["run", "--", "sh", "-c", ": hunter2 in the command"]);
    let output = run.env("BUILD_SECRET", "hunter2 in the environment").output().expect("it runs");
    assert!(output.status.success(), "{}", err(&output));

    let dump: String = sqlx::query_scalar(
        "select concat(
             (select string_agg(b::text || encode(plan, 'escape'), '') from builds b),
             (select string_agg(e::text, '') from event_log_events e)
         )",
    )
    .fetch_one(&db.pool())
    .await
    .expect("all there is");
    assert!(dump.contains("succeeded"), "{dump}");
    assert!(!dump.contains("hunter2") && !dump.contains("BUILD_SECRET"), "{dump}");

    let list = home.json(["list", "--json"]);
    assert_eq!(list[0]["command"][2], ": hunter2 in the command", "the key's owner can read it");
    assert_eq!(list[0]["status"], "succeeded");
    assert_eq!(list[0]["exit_code"], 0);
    assert_eq!(list[0]["folder"], std::env::current_dir().expect("a folder").to_str().expect("UTF-8"));
}

#[db_testkit::test]
async fn a_plan_under_another_key_is_shown_as_such_and_hides_nothing_else(db: TestDb) {
    let (here, elsewhere) = (Home::on(&db), Home::without_keys_of(&db));
    assert!(here.run("echo hello").status.success());

    let list = elsewhere.json(["list", "--json"]);
    assert!(list[0]["command"].is_null(), "{list:?}");
    assert_eq!(list[0]["status"], "succeeded");
    assert!(out(&elsewhere.output(["list"])).contains("(sealed under another key)"));
    assert_eq!(out(&elsewhere.output(["watch", "1"])), "hello\n");
}

#[db_testkit::test]
async fn processes_that_the_command_leaves_behind_do_not_keep_the_build(db: TestDb) {
    let home = Home::on(&db);
    let marker = home.path("left-behind");

    let output = home.run(&format!("echo first; (sleep 300; : {}) & echo last", marker.display()));

    assert_eq!(out(&output), "first\nlast\n");
    assert!(output.status.success());
    crate::support::until("what was left behind is gone", || crate::support::processes(&marker).is_empty());
}

#[db_testkit::test]
async fn migrations_are_shown_and_run_both_ways(db: TestDb) {
    /// Those of the workspace, and one repeatable.
    const FILES: usize = 8;
    let home = Home::on(&db);
    let states = || -> Vec<String> {
        let rows = home.json(["migrate", "info", "--json"]);
        rows.iter().map(|row| row["state"].as_str().expect("a state").to_owned()).collect()
    };
    assert_eq!(states(), ["pending"; FILES]);

    assert_eq!(home.json(["migrate", "--json"]).len(), FILES);
    assert_eq!(states(), ["applied"; FILES]);
    assert!(home.run("echo hello").status.success());

    assert_eq!(home.json(["migrate", "down", "--to", "0", "--yes", "--json"]).len(), FILES - 1);
    assert_eq!(states(), ["pending"; FILES]);
    assert!(home.run("echo hello").status.success(), "and the next use brings them back");
    let text = out(&home.output(["migrate", "info"]));
    assert!(text.starts_with("20261120000001  applied   event logs\n"), "{text}");
}

/// A program from before the column has run a build, and the view of the repeatable file is there for both.
#[db_testkit::test]
async fn builds_from_before_are_given_how_long_they_ran_and_sqlx_leaves_that_to_buildwatch(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run("sleep 0.1").status.success());
    let took = |rows: &[Value]| rows[0]["took_ms"].as_i64().expect("milliseconds");
    let stored = took(&home.json(["list", "--json"]));
    assert!(stored >= 100, "{stored}");
    assert!(home.output(["migrate", "down", "--to", "20261128000002", "--yes"]).status.success());

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let pool = PgPool::connect_with(db.options()).await.expect("a pool");
    let error = Migrator::new(folder).await.expect("migrations").run(&pool).await.expect_err("sqlx");
    pool.close().await;
    assert!(error.to_string().contains("run `buildwatch migrate up`"), "{error}");
    let filled = took(&home.json(["list", "--json"]));

    assert!((stored - filled).abs() <= 1, "{stored} and {filled}");
    let seen: i64 =
        sqlx::query_scalar("select took_ms from build_overview").fetch_one(&db.pool()).await.expect("a row");
    assert_eq!(seen, filled);
}

#[db_testkit::test]
async fn nothing_is_reverted_unless_somebody_means_it(db: TestDb) {
    let home = Home::on(&db);
    let down = ["migrate", "down", "--to", "0"];
    assert!(home.output(down).status.success(), "there is nothing to revert");
    assert!(home.run("echo hello").status.success());

    let output = home.output(down);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("add --yes"), "{}", err(&output));

    for (answer, says) in [("no", "nothing was reverted"), ("", "nothing was reverted"), ("yes", "reverted")]
    {
        let line = format!(
            "echo {answer} | script -qec '{} --data {} migrate down --to 0' /dev/null",
            env!("CARGO_BIN_EXE_buildwatch"),
            home.data().display()
        );
        assert_eq!(home.json(["list", "--json"]).len(), 1);
        let asked =
            std::process::Command::new("sh").args(["-c", &line]).env("DATABASE_URL", db.url()).output();
        let text = out(&asked.expect("it runs"));
        assert!(text.contains("delete their data?") && text.contains("builds"), "{text}");
        assert!(text.contains(says), "{text}");
    }
    assert!(home.json(["list", "--json"]).is_empty(), "yes was meant");
}

#[db_testkit::test]
async fn each_other_key_is_warned_of_once_and_not_for_each_row(db: TestDb) {
    let [first, second, here] = [&db; 3].map(Home::without_keys_of);
    for home in [&first, &first, &first, &second, &second] {
        assert!(home.run("true").status.success());
    }
    sqlx::query("update builds set plan = 'damaged' where id = 5")
        .execute(&db.pool())
        .await
        .expect("damaged");

    let list = err(&here.output(["list"]));
    assert_eq!(list.matches("cannot show").count(), 3, "two keys, and a row with another fault: {list}");

    let served = crate::serving::serve(&here, &[]);
    for _ in 0..3 {
        assert_eq!(served.json("/api/builds").await.as_array().map(Vec::len), Some(5));
        served.json("/api/builds/1").await;
    }
    // The log is written before the answers are sent.
    let said = served.live.errors();
    assert_eq!(said.iter().filter(|line| line.contains("cannot show")).count(), 3, "{said:?}");
}

#[test]
fn the_command_that_is_suggested_next_finds_the_same_place() {
    let home = Home::embedded();
    let data = home.path("a folder's");
    let list = |data: &Path, args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_buildwatch"));
        command.arg("--data").arg(data).args(args).env_remove("DATABASE_URL").output().expect("it runs")
    };

    let first = list(
        &data,
        &["list", "--api-max-conns", "7", "--encryption-key-hex", "000102030405060708090a0b0c0d0e0f"],
    );
    let text = err(&first);

    let folder = data.display().to_string().replace('\'', r"'\''");
    let suggested = format!(
        "try: buildwatch --data '{folder}' --api-max-conns 7 --encryption-key-hex ... run -- echo hello"
    );
    assert!(text.contains(&suggested), "{text}");
}
