//! The environment of commands.

use std::fs;
use std::os::fd::AsRawFd;

use db_testkit::TestDb;

use crate::serving::{client, serve_by};
use crate::support::{Home, err, out};

/// Variables that a command gets, and variables that it does not get.
const KEPT: [(&str, &str); 2] =
    [("HOMEPAGE", "https://ada:lovelace@example.org/"), ("POSTGRES_NOTE", "a note")];
const KEPT_BACK: [(&str, &str); 7] = [
    ("ENCRYPTION_KEY_BASE64", "aHVudGVyMiBodW50ZXIyIQ=="),
    ("PGPASSWORD", "hunter2-by-libpq"),
    ("REDIS_URL", "redis://:hunter2-by-cache@127.0.0.1:1"),
    ("PGPASSFILE", "/hunter2/pgpass"),
    ("ENCRYPTION_KEY_HEX_FILE", "/hunter2/key"),
    ("TEST_DATABASE", "postgres://app:hunter2-by-url@127.0.0.1/shop"),
    ("NOTIFY_SOCKET", "/hunter2/notify"),
];

fn check(environment: &str) {
    for (name, value) in KEPT {
        assert!(environment.contains(&format!("{name}={value}")), "{name} is missing: {environment}");
    }
    for (name, value) in KEPT_BACK {
        assert!(!environment.contains(&format!("{name}=")), "{name} is there: {environment}");
        assert!(!environment.contains(value), "{value}: {environment}");
    }
    assert!(!environment.contains("DATABASE_URL="), "{environment}");
}

#[db_testkit::test]
async fn a_command_of_run_gets_the_environment_without_our_secrets(db: TestDb) {
    let home = Home::on(&db);
    let output = home.buildwatch(["run", "--", "env"]).envs(KEPT).envs(KEPT_BACK).output().expect("it runs");

    assert!(output.status.success(), "{}", err(&output));
    check(&out(&output));
}

#[db_testkit::test]
async fn a_command_of_serve_gets_neither_our_secrets_nor_our_open_files(db: TestDb) {
    let home = Home::on(&db);
    let secret = home.path("secret");
    fs::write(&secret, "hunter2 in a file").expect("written");
    let file = fs::File::open(&secret).expect("a file");
    // The shell opens a file without close-on-exec, which Rust would set.
    let script = format!("exec 3<{}; exec \"$0\" \"$@\"", secret.display());
    let mut shell = std::process::Command::new("sh");
    let program = home.buildwatch(["serve", "--json", "--listen", "127.0.0.1:0", "--allow-start"]);
    shell.arg("-c").arg(script).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.envs(KEPT).envs(KEPT_BACK);
    let served = serve_by(shell);
    assert!(file.as_raw_fd() > 2);

    let started = client()
        .post(format!("{}/api/builds", served.address))
        .bearer_auth(served.token.clone().expect("a token"))
        .json(&serde_json::json!({ "command": ["sh", "-c", "env; cat <&3; ls /proc/self/fd"] }))
        .send()
        .await
        .expect("an answer");
    assert_eq!(started.status(), 201);
    let (_, events) = served.get("/api/builds/1/events").await;

    check(&events);
    assert!(!events.contains("hunter2"), "{events}");
}

/// The watchdog's shell runs as the same user as the command, which could read its environment.
#[db_testkit::test]
async fn no_process_beside_a_command_has_our_secrets_in_its_environment(db: TestDb) {
    let home = Home::on(&db);
    let gate = home.fifo("gate");
    let mut run =
        home.buildwatch(["run", "--", "sh", "-c", &format!("echo ready; read go < {}", gate.display())]);
    run.envs(KEPT_BACK);
    let mut run = crate::support::Live::new(run);
    assert_eq!(run.line(), "ready");

    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid())).unwrap_or_default();
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", run.pid())).expect("tasks").flatten() {
        let children = fs::read_to_string(task.path().join("children")).expect("children");
        all.extend(children.split_whitespace().map(str::to_owned));
    }
    assert!(all.len() >= 2, "the command and its watchdog: {all:?} {children}");
    for child in all {
        let environment = fs::read(format!("/proc/{child}/environ")).expect("an environment");
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(!environment.contains("hunter2") && !environment.contains("aHVudGVy"), "{environment}");
    }

    fs::write(&gate, "go\n").expect("written");
    assert!(run.ended().success());
}

/// Root may read all of `/proc`, so the command runs as another user, which only root can arrange.
#[test]
fn a_command_cannot_read_the_environment_of_its_buildwatch() {
    use std::os::unix::fs::chown;
    use std::os::unix::process::CommandExt;

    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let home = Home::embedded();
    let (program, folder) = (home.path("buildwatch"), home.path("folder"));
    fs::copy(env!("CARGO_BIN_EXE_buildwatch"), &program).expect("a program");
    fs::create_dir(&folder).expect("a folder");
    chown(&folder, Some(65534), Some(65534)).expect("given away");
    let mut run = std::process::Command::new(&program);
    run.arg("--data").arg(folder.join("data")).args(["run", "--", "sh", "-c"]);
    run.arg("cat /proc/$PPID/environ; cat /proc/$PPID/cmdline");
    run.env_remove("DATABASE_URL")
        .env("HOME", &folder)
        .envs(KEPT_BACK)
        .uid(65534)
        .gid(65534)
        .current_dir("/");

    let output = run.output().expect("it runs");

    assert!(output.status.success(), "{}", err(&output));
    assert!(out(&output).contains("--data"), "the right process: {}", out(&output));
    assert!(err(&output).contains("Permission denied"), "{}", err(&output));
    assert!(!out(&output).contains("hunter2"), "{}", out(&output));
}

#[db_testkit::test]
async fn a_secret_in_the_list_of_processes_is_warned_of(db: TestDb) {
    let home = Home::on(&db);
    let output =
        home.output(["run", "--encryption-key-hex", "000102030405060708090a0b0c0d0e0f", "--", "true"]);

    let text = err(&output);
    assert!(text.contains("--encryption-key-hex") && text.contains("ENCRYPTION_KEY_HEX"), "{text}");
    assert!(!text.contains("000102"), "{text}");
}
