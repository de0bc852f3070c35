//! Ctrl-C and SIGKILL.

use std::time::Duration;

use db_testkit::TestDb;

use crate::support::{Home, PATIENCE, out, processes, until};

#[db_testkit::test]
async fn an_interrupted_run_ends_the_command_and_marks_the_build_as_aborted(db: TestDb) {
    let home = Home::on(&db);
    let marker = home.path("marker");
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let script = format!(
            "trap 'echo caught; exit 0' INT; echo ready; : {}; sleep 300; echo never",
            marker.display()
        );
        let mut run = home.start(["run", "--", "sh", "-c", &script]);
        let id = run.build();
        assert_eq!(run.line(), "ready");

        run.signal(name);

        assert_eq!(run.ended().code(), Some(code), "{name}");
        until("the command is gone", || processes(&marker).is_empty());
        let build = home.json(["list", "--json"]).remove(0);
        assert_eq!((build["id"].as_i64(), build["status"].as_str()), (Some(id), Some("aborted")), "{name}");
        let mut events = home.events(id);
        let end = events.pop().expect("an end");
        let last = events.pop().expect("a last word");
        assert_eq!(last["data"]["text"], "caught", "the command may put its things in order");
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
async fn a_terminal_that_closes_ends_the_command(db: TestDb) {
    let home = Home::on(&db);
    let marker = home.path("marker");
    for (name, code) in [("HUP", 129), ("QUIT", 131)] {
        let mut run =
            home.start(["run", "--", "sh", "-c", &format!("echo ready; : {}; sleep 300", marker.display())]);
        assert_eq!(run.line(), "ready");

        run.signal(name);

        assert_eq!(run.ended().code(), Some(code), "{name}");
        until("the command is gone", || processes(&marker).is_empty());
        assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
    }
}

async fn until_count(db: &TestDb, query: &'static str, wanted: i64) {
    let reached = tokio::time::timeout(PATIENCE, async {
        while sqlx::query_scalar::<_, i64>(query).fetch_one(&db.pool()).await.expect("a number") < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(reached.await.is_ok(), "never {wanted}: {query}");
}

#[db_testkit::test]
async fn an_interrupt_works_while_nobody_reads_the_output(db: TestDb) {
    let home = Home::on(&db);
    let unread = |args: &[&str]| {
        let mut command = home.buildwatch(args);
        // A pipe that is open and never read.
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        command.spawn().expect("it starts")
    };
    assert!(home.output(["migrate"]).status.success());
    let mut run = unread(&["run", "--", "sh", "-c", "seq 1 200000; sleep 300"]);
    // More is stored than a pipe holds.
    until_count(&db, "select coalesce(max(last), 0) from event_log_batches", 200_000).await;
    let mut watch = unread(&["watch", "1"]);
    // Both listen only after they catch signals.
    let listening = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'bus'";
    until_count(&db, listening, 2).await;

    crate::support::signal("INT", &[watch.id(), run.id()]);

    let mut codes = [None, None];
    until("both have ended", || {
        for (child, code) in [&mut watch, &mut run].into_iter().zip(&mut codes) {
            *code = code.or_else(|| child.try_wait().expect("a status").and_then(|status| status.code()));
        }
        codes.iter().all(Option::is_some)
    });
    assert_eq!(codes, [Some(0), Some(130)]);
    assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
}

#[db_testkit::test]
async fn a_killed_run_takes_its_command_with_it_and_a_watcher_ends_the_build(db: TestDb) {
    let home = Home::on(&db);
    let marker = home.path("marker");
    let script = format!("echo ready; : {}; sleep 300", marker.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    let id = run.build();
    assert_eq!(run.line(), "ready");

    run.kill();
    until("the command is gone", || processes(&marker).is_empty());

    // The watcher ends the build after half a minute without an update of its row.
    let watch = home.start(["watch", &id.to_string(), "--json"]);
    assert!(watch.line().contains("ready"));
    let end = watch.line();
    assert!(end.contains("the process that ran it has died"), "{end}");
    assert_eq!(home.json(["list", "--json"])[0]["status"], "aborted");
}
