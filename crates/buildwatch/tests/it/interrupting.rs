//! Ctrl-C, and being killed.

use std::time::Duration;

use db_testkit::TestDb;

use crate::support::{Home, out, processes, until};

#[db_testkit::test]
async fn an_interrupted_run_ends_the_command_and_marks_the_build_as_aborted(db: TestDb) {
    let home = Home::on(&db);
    let marker = home.path("marker");
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let script = format!("echo ready; : {}; sleep 300; echo never", marker.display());
        let mut run = home.start(["run", "--", "sh", "-c", &script]);
        let id = run.build();
        assert_eq!(run.line(), "ready");

        run.signal(name);

        assert_eq!(run.ended().code(), Some(code), "{name}");
        until("the command is gone", || processes(&marker).is_empty());
        let build = home.json(["list", "--json"]).remove(0);
        assert_eq!((build["id"].as_i64(), build["status"].as_str()), (Some(id), Some("aborted")), "{name}");
        let end = home.events(id).pop().expect("an end");
        assert_eq!((&end["type"], &end["data"]["status"]), (&"end".into(), &"aborted".into()));
    }
}

#[db_testkit::test]
async fn a_command_that_ignores_the_signal_is_killed_at_the_second(db: TestDb) {
    let home = Home::on(&db);
    let marker = home.path("marker");
    let script = format!("trap '' INT TERM; echo ready; : {}; while :; do sleep 0.1; done", marker.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!(run.line(), "ready");

    run.signal("INT");
    assert_eq!(run.line_within(Duration::from_millis(300)), None, "it ignores the first");
    run.signal("INT");

    assert_eq!(run.ended().code(), Some(130));
    until("the command is gone", || processes(&marker).is_empty());
    assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
}

#[db_testkit::test]
async fn an_interrupted_watch_ends_cleanly_and_the_build_goes_on(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let script = format!("echo first; read word < {}; echo $word", gate.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    let mut watch = home.start(["watch", &run.build().to_string()]);
    assert_eq!(watch.line(), "first");

    watch.signal("INT");
    assert_eq!(watch.ended().code(), Some(0));

    std::fs::write(&gate, "second\n").expect("written");
    assert!(run.ended().success());
    assert_eq!(out(&home.output(["watch", "1"])), "first\nsecond\n");
}

#[db_testkit::test]
async fn a_build_whose_process_was_killed_is_ended_by_whoever_watches(db: TestDb) {
    let home = Home::on(&db);
    let mut run = home.start(["run", "--", "sh", "-c", "echo ready; exec sleep 300"]);
    let id = run.build();
    assert_eq!(run.line(), "ready");
    run.kill();

    // The watcher looks again and again, and after half a minute without a sign of life ends the build.
    let watch = home.start(["watch", &id.to_string(), "--json"]);
    assert!(watch.line().contains("ready"));
    let end = watch.line();
    assert!(end.contains("the process that ran it is gone"), "{end}");
    assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
}
