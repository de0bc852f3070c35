//! `buildwatch keys`.

use std::process::{Command, Output};

use db_testkit::TestDb;
use serde_json::{Value, json};

use crate::serving::serve_by;
use crate::support::{Home, err, out, until};

const OLD: &str = "000102030405060708090a0b0c0d0e0f";
const NEW: &str = "101112131415161718191a1b1c1d1e1f";

/// A command with these keys, the one that seals first.
fn command(home: &Home, keys: &[&str], args: &[&str]) -> Command {
    let mut command = home.buildwatch(args);
    command.env("ENCRYPTION_KEY_HEX", keys[0]).env("OLD_ENCRYPTION_KEY_HEX", keys[1..].join("\n"));
    command
}

fn with(home: &Home, keys: &[&str], args: &[&str]) -> Output {
    command(home, keys, args).output().expect("it runs")
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", err(output));
    out(output)
}

/// The keys on record: id and state.
fn states(home: &Home) -> Vec<(String, String)> {
    let status: Value =
        serde_json::from_str(&done(&with(home, &[OLD], &["keys", "status", "--json"]))).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    status["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .map(|key| (text(&key["id"]), text(&key["state"])))
        .collect()
}

#[db_testkit::test]
async fn a_key_is_added_promoted_retired_and_destroyed_by_hand(db: TestDb) {
    let home = Home::on(&db);
    done(&with(&home, &[OLD], &["run", "--", "echo", "hello"]));
    let (old, _) = states(&home).remove(0);

    let added = done(&with(&home, &[NEW], &["keys", "add"]));
    let new = added.split_whitespace().next().expect("an id").to_owned();
    assert_eq!(added, format!("{new}  known\n"));
    let table = done(&with(&home, &[OLD], &["keys", "status"]));
    assert!(
        table.contains(&format!("{old}  primary    since 20")) && table.contains(&format!("{new}  known")),
        "{table}"
    );
    assert_eq!(done(&with(&home, &[OLD], &["keys", "promote", &new])), format!("{new}  primary\n"));
    assert_eq!(states(&home), [(old.clone(), "retired".to_owned()), (new.clone(), "primary".to_owned())]);

    let refused = with(&home, &[OLD], &["list"]);
    assert!(err(&refused).contains(&format!("{new} (primary)")), "{}", err(&refused));
    let needed = with(&home, &[NEW, OLD], &["keys", "destroy", &old]);
    assert!(err(&needed).contains("builds.plan has 1 of its values"), "{}", err(&needed));
    let listed = done(&with(&home, &[NEW, OLD], &["list"]));
    assert!(listed.contains("echo hello"), "{listed}");
    sqlx::query("delete from builds").execute(&db.pool()).await.expect("deleted");
    assert_eq!(done(&with(&home, &[NEW, OLD], &["keys", "destroy", &old])), format!("{old}  destroyed\n"));

    done(&with(&home, &[NEW], &["run", "--", "true"]));
    let unknown = with(&home, &[NEW], &["keys", "retire", "00000000"]);
    assert_eq!(err(&unknown), "buildwatch: the key 00000000 is not on record\n");
}

/// The values of the plan's column by the key that they are sealed under, as `verify` counts them.
fn counts(home: &Home, keys: &[&str]) -> (Option<i32>, Value) {
    let verified = with(home, keys, &["verify", "--json"]);
    let mut counts: Value = serde_json::from_str(&out(&verified)).expect("JSON");
    (verified.status.code(), counts["keys"].take())
}

#[db_testkit::test]
async fn plans_are_re_keyed_verified_and_read_while_the_key_changes(db: TestDb) {
    let home = Home::on(&db);
    for n in 1..=3 {
        done(&with(&home, &[OLD], &["run", "--", "echo", &format!("hello {n}")]));
    }
    let (old, _) = states(&home).remove(0);
    let added = done(&with(&home, &[NEW], &["keys", "add"]));
    let new = added.split_whitespace().next().expect("an id").to_owned();
    done(&with(&home, &[OLD], &["keys", "promote", &new]));
    assert_eq!(counts(&home, &[NEW, OLD]), (Some(1), json!({ &old: 3 })));

    let planned = done(&with(&home, &[NEW, OLD], &["rekey", "--dry-run"]));
    assert!(planned.contains("to be changed: 3"), "{planned}");
    done(&with(&home, &[NEW, OLD], &["list"]));
    assert_eq!(counts(&home, &[NEW, OLD]), (Some(1), json!({ &old: 3 })), "neither has changed anything");
    let rekeyed = done(&with(&home, &[NEW, OLD], &["rekey"]));
    assert!(rekeyed.contains("builds.plan: 3 values stored") && rekeyed.contains(", 0 left"), "{rekeyed}");

    assert_eq!(counts(&home, &[NEW, OLD]), (Some(0), json!({ &new: 3 })));
    done(&with(&home, &[NEW, OLD], &["keys", "destroy", &old]));
    let listed = done(&with(&home, &[NEW], &["list"]));
    assert!((1..=3).all(|n| listed.contains(&format!("hello {n}"))), "{listed}");
    let unknown = with(&home, &[NEW], &["rekey", "--column", "builds.name"]);
    assert_eq!(
        err(&unknown),
        "buildwatch: no sealed column builds.name is declared; these are: builds.plan\n"
    );
}

#[db_testkit::test]
async fn a_server_re_keys_plans_in_the_background(db: TestDb) {
    let home = Home::on(&db);
    done(&with(&home, &[OLD], &["run", "--", "echo", "hello"]));
    let added = done(&with(&home, &[NEW], &["keys", "add"]));
    let new = added.split_whitespace().next().expect("an id").to_owned();
    done(&with(&home, &[OLD], &["keys", "promote", &new]));

    let _served = serve_by(command(&home, &[NEW, OLD], &["serve", "--json", "--listen", "127.0.0.1:0"]));

    until("its plan is re-keyed", || counts(&home, &[NEW, OLD]) == (Some(0), json!({ &new: 1 })));
}

#[db_testkit::test]
async fn a_root_key_wraps_data_keys_and_is_replaced(db: TestDb) {
    let home = Home::on(&db);
    let wrap = ["--encryption-key-use", "wrap"];
    done(&with(&home, &[OLD], &[&wrap[..], &["run", "--", "echo", "hello"]].concat()));
    assert_eq!(states(&home).len(), 1, "the given key is not on record");

    let rewrapped = done(&with(&home, &[NEW, OLD], &[&wrap[..], &["keys", "rewrap"]].concat()));
    assert!(rewrapped.ends_with("  wraps the data keys\n"), "{rewrapped}");
    let listed = done(&with(&home, &[NEW], &[&wrap[..], &["list"]].concat()));
    assert!(listed.contains("echo hello"), "{listed}");
    let added = done(&with(&home, &[NEW], &[&wrap[..], &["keys", "add"]].concat()));
    assert!(added.ends_with("  known\n"), "{added}");
    done(&with(&home, &[NEW], &[&wrap[..], &["run", "--", "true"]].concat()));
    assert_eq!(states(&home)[1].1, "primary", "the first process that has it made it primary");
}
