//! Output is shown live, and from the database, not from the pipe.

use std::fs;
use std::time::Duration;

use db_testkit::TestDb;

use crate::support::{Frozen, Home, Live, server_processes, signal};

#[db_testkit::test]
async fn a_watcher_sees_a_line_while_the_command_waits(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let run = home.start([
        "run",
        "--",
        "sh",
        "-c",
        &format!("echo first; read word < {}; echo $word", gate.display()),
    ]);
    let id = run.build();

    let watch = home.start(["watch", &id.to_string()]);
    assert_eq!(watch.line(), "first");
    // The command waits until here.
    fs::write(&gate, "second\n").expect("written");

    assert_eq!(watch.line(), "second");
    assert_eq!((run.line(), run.line()), ("first".to_owned(), "second".to_owned()));
    for mut program in [run, watch] {
        assert!(program.ended().success());
    }
}

#[db_testkit::test]
async fn the_beginning_of_a_line_is_seen_while_its_end_is_awaited(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let script = format!("printf 'name? '; read word < {}; echo $word", gate.display());
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    let watch = home.start(["watch", &run.build().to_string(), "--json"]);

    let prompt = watch.line();
    assert!(prompt.contains(r#"{"text":"name? ","newline":false}"#), "{prompt}");
    fs::write(&gate, "Ada\n").expect("written");

    assert!(run.ended().success());
    assert_eq!(run.line(), "name? Ada");
}

#[test]
fn while_the_database_is_frozen_nothing_is_printed_and_thawed_everything() {
    let home = Home::embedded();
    let (gate, last) = (home.fifo("gate"), home.fifo("last"));
    let script = format!(
        "echo before; read go < {}; seq 1 1000; read go < {}; echo after",
        gate.display(),
        last.display()
    );
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!(run.line(), "before");
    let frozen = Frozen::new(&home);

    // buildwatch reads the pipe, but prints only what the database returns.
    fs::write(&gate, "go\n").expect("written");
    assert_eq!(run.line_within(Duration::from_secs(3)), None);
    drop(frozen);

    for n in 1..=1000 {
        assert_eq!(run.line(), n.to_string());
    }
    fs::write(&last, "go\n").expect("written");
    assert_eq!(run.line(), "after");
    assert!(run.ended().success(), "{:?}", run.errors());
    let ids: Vec<i64> = home.events(1).iter().map(|event| event["id"].as_i64().expect("an id")).collect();
    assert_eq!(ids, (1..=1003).collect::<Vec<_>>(), "each line is stored once");
}

#[test]
fn a_command_that_ends_while_the_database_is_frozen_loses_no_output() {
    let home = Home::embedded();
    let gate = home.fifo("gate");
    let ended = home.path("ended");
    // Less than a pipe holds, so that the command can end; the last line has no line end.
    let script = format!(
        "echo before; read go < {}; seq 1 3000; sleep 0.2; seq 3001 6000; printf last; touch {}",
        gate.display(),
        ended.display()
    );
    let mut run = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!(run.line(), "before");
    let frozen = Frozen::new(&home);
    fs::write(&gate, "go\n").expect("written");
    crate::support::until("the command has ended", || ended.exists());

    // Longer than a background process may hold the pipes.
    assert_eq!(run.line_within(Duration::from_secs(4)), None);
    drop(frozen);

    let mut expected: Vec<String> = (1..=6000).map(|n| n.to_string()).collect();
    expected.push("last".to_owned());
    assert_eq!(run.rest(), expected);
    assert!(run.ended().success(), "{:?}", run.errors());
}

#[db_testkit::test]
async fn output_without_line_ends_is_live_too(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    // A dot every 20 ms, and no end until a watcher has seen one.
    let script = format!("(read go < {}; kill $$) & while :; do printf .; sleep 0.02; done", gate.display());
    let run = home.start(["run", "--", "sh", "-c", &script]);
    let watch = home.start(["watch", &run.build().to_string(), "--json"]);

    let first = watch.line();
    fs::write(&gate, "go\n").expect("written");

    assert!(first.contains(r#".","newline":false"#), "{first}");
    watch.rest();
}

#[test]
fn a_server_that_is_killed_and_comes_back_costs_a_build_nothing() {
    let home = Home::embedded();
    let (gate, last) = (home.fifo("gate"), home.fifo("last"));
    let script = format!(
        "echo before; read go < {}; seq 1 1000; read go < {}; echo after",
        gate.display(),
        last.display()
    );
    let mut run: Live = home.start(["run", "--", "sh", "-c", &script]);
    assert_eq!(run.line(), "before");

    // The supervisor restarts the server, which recovers.
    signal("KILL", &server_processes(&home)[..1]);
    fs::write(&gate, "go\n").expect("written");

    for n in 1..=1000 {
        assert_eq!(run.line(), n.to_string());
    }
    fs::write(&last, "go\n").expect("written");
    assert_eq!(run.line(), "after");
    assert!(run.ended().success(), "{:?}", run.errors());
}
