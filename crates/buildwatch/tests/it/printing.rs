//! Output on a terminal.

use std::process::Command;

use db_testkit::TestDb;

use crate::support::{Home, err, out};

/// Runs buildwatch with a terminal as its stdout, and returns what the terminal received.
fn on_a_terminal(home: &Home, db: &TestDb, args: &str) -> String {
    let line = format!("{} --data {} {args}", env!("CARGO_BIN_EXE_buildwatch"), home.data().display());
    // script(1) makes a terminal.
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("DATABASE_URL", db.url())
        .stdin(std::process::Stdio::null())
        .output()
        .expect("script runs");
    out(&output)
}

#[db_testkit::test]
async fn control_sequences_reach_a_terminal_with_raw_only(db: TestDb) {
    let home = Home::on(&db);
    assert!(home.run(r"printf '\033[31mred\033[0m\tand \302\233 \303\251\n'").status.success());

    let shown = on_a_terminal(&home, &db, "watch 1");
    assert!(shown.contains("^[[31mred^[[0m\tand \\u{9b} é"), "{shown:?}");
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{9b}'), "{shown:?}");

    let raw = on_a_terminal(&home, &db, "watch --raw 1");
    assert!(raw.contains("\u{1b}[31mred\u{1b}[0m"), "{raw:?}");

    let json = on_a_terminal(&home, &db, "watch --json 1");
    assert!(json.contains("\\u001b[31mred") && json.contains("\\u009b"), "{json:?}");
    assert!(!json.contains('\u{1b}') && !json.contains('\u{9b}'), "{json:?}");

    let message = err(&home.output(["run", "--", "no-such\u{1b}[2J\u{9b}"]));
    assert!(message.ends_with("buildwatch: command not found: no-such^[[2J\\u{9b}\n"), "{message:?}");

    let piped = out(&home.output(["watch", "1"]));
    assert_eq!(piped, "\u{1b}[31mred\u{1b}[0m\tand \u{9b} é\n");
}

#[db_testkit::test]
async fn commands_in_the_list_cannot_play_tricks_with_the_terminal(db: TestDb) {
    let home = Home::on(&db);
    home.output(["run", "--", "no-such\u{1b}[2J\ncommand", "two words"]);

    let list = out(&home.output(["list"]));

    assert_eq!(list.lines().count(), 1, "{list}");
    assert!(list.contains(r#""no-such\u{1b}[2J\ncommand" "two words""#), "{list}");
}

#[db_testkit::test]
async fn invisible_characters_are_shown_by_their_numbers(db: TestDb) {
    let home = Home::on(&db);
    let text = "de\u{202e}ni\u{202c}ed a\u{200b}b \u{2066}c\u{2069} \u{2028} \u{3164} 👩\u{200d}🚀";
    let seen = r"de\u{202e}ni\u{202c}ed a\u{200b}b \u{2066}c\u{2069} \u{2028} \u{3164} ";
    assert!(home.output(["run", "--", "printf", "%s\n", text]).status.success());

    let shown = on_a_terminal(&home, &db, "watch 1");
    assert!(shown.contains(seen) && shown.contains("👩\u{200d}🚀"), "{shown:?}");
    assert!(on_a_terminal(&home, &db, "watch --raw 1").contains(text));
    let json = on_a_terminal(&home, &db, "watch --json 1");
    assert!(json.contains(r"de\u202eni\u202ced") && !json.contains('\u{202e}'), "{json:?}");

    let list = out(&home.output(["list"]));
    assert!(list.contains(seen), "{list:?}");
    home.output(["run", "--", "true", "\u{3164}", "\u{115f}"]);
    let list = out(&home.output(["list"]));
    assert!(list.contains(r#""\u{3164}" "\u{115f}""#), "{list:?}");
    let message = err(&home.output(["run", "--", "no-such-\u{202e}dnammoc"]));
    assert!(message.ends_with("command not found: no-such-\\u{202e}dnammoc\n"), "{message:?}");
    let folder = "/dev/null/\u{202e}\u{1b}[2J";
    let failure = Command::new(env!("CARGO_BIN_EXE_buildwatch")).args(["--data", folder, "list"]).output();
    let failure = err(&failure.expect("it runs"));
    assert!(failure.contains(r"/dev/null/\u{202e}^[[2J"), "{failure:?}");

    assert_eq!(out(&home.output(["watch", "1"])), format!("{text}\n"), "a pipe gets what was written");
}

#[db_testkit::test]
async fn json_is_one_object_a_line_with_nothing_else(db: TestDb) {
    let home = Home::on(&db);

    let output = home.output(["run", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);

    let mut events = crate::support::json_lines(&out(&output));
    assert_eq!(events.len(), 3);
    let end = events.pop().expect("an end");
    assert_eq!(
        (end["id"].as_i64(), end["type"].as_str(), end["data"]["exit_code"].as_i64()),
        (Some(3), Some("end"), Some(3))
    );
    events.sort_by_key(|event| event["type"].as_str().map(str::to_owned));
    assert_eq!(
        (events[0]["type"].as_str(), events[0]["data"]["text"].as_str()),
        (Some("stderr"), Some("err"))
    );
    assert_eq!(
        (events[1]["type"].as_str(), events[1]["data"]["text"].as_str()),
        (Some("stdout"), Some("out"))
    );
    assert!(events[0]["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{events:?}");
    assert_eq!(output.status.code(), Some(3));
}
