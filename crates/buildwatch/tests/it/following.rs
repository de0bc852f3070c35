//! `watch`: resuming.

use db_testkit::TestDb;
use serde_json::Value;

use crate::support::{Home, Live, err, out};

#[db_testkit::test]
async fn a_watcher_killed_and_resumed_ten_times_sees_every_event_once_and_in_order(db: TestDb) {
    let home = Home::on(&db);
    // The command writes until the watchers below have finished.
    let enough = home.path("enough");
    let script =
        format!("i=1; while [ ! -e {} ]; do echo line $i; i=$((i + 1)); sleep 0.005; done", enough.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    let id = run.build().to_string();
    let mut seen: Vec<Value> = Vec::new();
    let last =
        |seen: &[Value]| seen.last().map_or(0, |event| event["id"].as_i64().expect("an id")).to_string();

    for _ in 0..10 {
        let mut watch = home.start(["watch", &id, "--json", "--from", &last(&seen)]);
        for _ in 0..20 {
            seen.push(serde_json::from_str(&watch.line()).expect("JSON"));
        }
        watch.kill();
    }
    std::fs::write(&enough, "").expect("written");
    let mut watch: Live = home.start(["watch", &id, "--json", "--from", &last(&seen)]);
    seen.extend(watch.rest().iter().map(|line| serde_json::from_str::<Value>(line).expect("JSON")));

    assert!(watch.ended().success() && run.ended().success());
    let end = seen.pop().expect("an end");
    assert_eq!(end["type"], "end");
    assert!(seen.len() >= 200);
    for (event, id) in seen.iter().zip(1..) {
        assert_eq!(event["id"], id);
        assert_eq!(event["data"]["text"], format!("line {id}"));
    }
    assert_eq!(end["id"].as_u64(), Some(seen.len() as u64 + 1));
}

#[db_testkit::test]
async fn watching_from_the_end_of_an_ended_build_prints_nothing_and_ends(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run("echo one; echo two").status.success());

    for (from, expected) in [("0", "one\ntwo\n"), ("1", "two\n"), ("2", ""), ("3", "")] {
        let output = home.output(["watch", "1", "--from", from]);
        assert_eq!((out(&output).as_str(), output.status.code()), (expected, Some(0)), "from {from}");
    }
}

#[db_testkit::test]
async fn watching_from_beyond_the_end_says_where_the_end_is(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run("echo one; echo two").status.success());

    let output = home.output(["watch", "1", "--from", "99"]);

    assert_eq!((out(&output).as_str(), output.status.code()), ("", Some(1)));
    assert!(err(&output).contains("`buildwatch watch 1 --from 3`"), "{}", err(&output));
}

#[db_testkit::test]
async fn a_build_that_does_not_exist_is_one_line_and_exit_code_1(db: TestDb) {
    let home = Home::on(&db);

    let output = home.output(["watch", "4711"]);

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), "buildwatch: there is no build 4711\n");
    assert_eq!(out(&output), "");
}

#[db_testkit::test]
async fn a_reader_that_goes_away_ends_watch_quietly_and_leaves_run_running(db: TestDb) {
    let home = Home::on(&db);
    let script = format!(
        "{} --data {} run -- sh -c 'seq 1 200000; echo done > {}' | head -n 1",
        env!("CARGO_BIN_EXE_buildwatch"),
        home.data().display(),
        home.path("done").display(),
    );
    let piped = std::process::Command::new("sh").args(["-c", &script]).env("DATABASE_URL", db.url()).output();
    assert_eq!(out(&piped.expect("it runs")), "1\n");
    assert!(home.path("done").exists(), "the build went on to its end");
    assert_eq!(home.json(["list", "--json"])[0]["status"], "succeeded");

    let script =
        format!("{} --data {} watch 1 | head -n 1", env!("CARGO_BIN_EXE_buildwatch"), home.data().display());
    let piped = std::process::Command::new("sh").args(["-c", &script]).env("DATABASE_URL", db.url()).output();
    let piped = piped.expect("it runs");
    assert_eq!((out(&piped).as_str(), err(&piped).as_str()), ("1\n", ""));
}

#[db_testkit::test]
async fn watch_says_how_a_build_ended_and_ends_like_it_when_asked_to(db: TestDb) {
    let home = Home::on(&db);
    for (script, result, code) in [
        ("exit 3", "build 1 failed with exit code 3", 3),
        ("true", "build 2 succeeded", 0),
        ("kill -KILL $$", "build 3 failed with exit code 137: ended by SIGKILL", 137),
    ] {
        home.run(script);
        let id = result.split(' ').nth(1).expect("a number");
        for (args, expected) in [(&["watch", id][..], 0), (&["watch", id, "--exit-code"], code)] {
            let output = home.output(args);
            assert_eq!(
                (err(&output), output.status.code()),
                (format!("buildwatch: {result}\n"), Some(expected))
            );
        }
    }
    // Also with nothing left to print.
    let output = home.output(["watch", "1", "--from", "1", "--exit-code"]);
    assert_eq!((out(&output), output.status.code()), (String::new(), Some(3)));
    assert_eq!(home.output(["watch", "4711", "--exit-code"]).status.code(), Some(125));
}

#[db_testkit::test]
async fn a_result_that_was_not_seen_is_none(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let script = format!("exec 2>/dev/null; echo first; read word < {}", gate.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    let mut watch = home.start(["watch", &run.build().to_string(), "--exit-code"]);
    assert_eq!(watch.line(), "first");

    watch.signal("INT");

    assert_eq!(watch.ended().code(), Some(130));
    run.signal("INT");
    assert_eq!(run.ended().code(), Some(130));
    let output = home.output(["watch", "1", "--exit-code"]);
    assert_eq!((err(&output).as_str(), output.status.code()), ("buildwatch: build 1 aborted\n", Some(125)));
}
