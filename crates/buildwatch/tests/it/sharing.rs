//! Several buildwatches on one embedded server.

use std::fs;
use std::process::Command;

use crate::support::{Home, err, out, processes, until};

#[test]
fn later_users_find_the_server_and_the_last_user_stops_it() {
    let home = Home::embedded();
    let gate = home.fifo("gate");
    let mut run =
        home.start(["run", "--", "sh", "-c", &format!("echo first; read word < {}", gate.display())]);
    assert_eq!(run.line(), "first");
    let postmaster = crate::support::server_processes(&home)[0];

    let list = home.json(["list", "--json"]);
    assert_eq!(list[0]["status"], "running");
    assert_eq!(crate::support::server_processes(&home)[0], postmaster, "the same server");

    fs::write(&gate, "go\n").expect("written");
    assert!(run.ended().success());
    until("no process is left", || processes(&home.data()).is_empty());
    assert_eq!(home.json(["list", "--json"])[0]["status"], "succeeded", "and the data is still there");
}

#[test]
fn a_build_survives_the_process_that_started_the_server() {
    let home = Home::embedded();
    let mut serve = home.start(["serve", "--listen", "127.0.0.1:0"]);
    serve.line();
    let gate = home.fifo("gate");
    let mut run = home.start([
        "run",
        "--",
        "sh",
        "-c",
        &format!("echo first; read word < {}; echo $word", gate.display()),
    ]);
    assert_eq!(run.line(), "first");

    serve.kill();
    fs::write(&gate, "second\n").expect("written");

    assert_eq!(run.line(), "second");
    assert!(run.ended().success(), "{:?}", run.errors());
    until("no process is left", || processes(&home.data()).is_empty());
}

#[test]
fn many_that_start_at_once_share_one_server() {
    let home = Home::embedded();

    let runs: Vec<_> = (0..5).map(|n| home.start(["run", "--", "echo", &n.to_string()])).collect();

    for (mut run, n) in runs.into_iter().zip(0..) {
        assert_eq!(run.rest(), [n.to_string()], "{:?}", run.errors());
        assert!(run.ended().success());
    }
    let mut ids: Vec<i64> =
        home.json(["list", "--json"]).iter().map(|build| build["id"].as_i64().expect("an id")).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    until("no process is left", || processes(&home.data()).is_empty());
}

/// Only root can become another user; as an ordinary user the test checks the permissions.
#[test]
fn another_user_of_the_machine_cannot_connect() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;

    let home = Home::embedded();
    let gate = home.fifo("gate");
    let mut run =
        home.start(["run", "--", "sh", "-c", &format!("echo first; read word < {}", gate.display())]);
    assert_eq!(run.line(), "first");
    let sockets = home.data().join("postgres/run");
    let psql = |user: Option<u32>| {
        let mut psql = Command::new("psql");
        psql.args([
            "-h",
            sockets.to_str().expect("UTF-8"),
            "-U",
            "postgres",
            "-Atc",
            "select 1",
            "buildwatch",
        ]);
        if let Some(user) = user {
            psql.uid(user).gid(user);
        }
        psql.current_dir("/").output().expect("psql runs")
    };

    assert_eq!(out(&psql(None)), "1\n", "the user who started it");
    assert_eq!(fs::metadata(&sockets).expect("the sockets' folder").permissions().mode() & 0o777, 0o700);
    if nix::unistd::geteuid().is_root() {
        // `nobody`, and the account that runs the server.
        for user in [65534, fs::metadata(&sockets).expect("the sockets' folder").uid()] {
            let stranger = psql(Some(user));
            assert!(!stranger.status.success() && out(&stranger).is_empty(), "{user}: {}", err(&stranger));
        }
    }

    fs::write(&gate, "go\n").expect("written");
    assert!(run.ended().success());
}
