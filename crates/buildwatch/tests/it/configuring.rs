//! Settings by flags and environment.

use db_testkit::TestDb;

use crate::support::{Home, err, out};

/// The columns of a setting's line in `buildwatch config`.
fn line(text: &str, name: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name)).expect("a line");
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[db_testkit::test]
async fn config_shows_each_value_with_its_source_and_without_secrets(db: TestDb) {
    let home = Home::on(&db);
    let mut command = home.buildwatch(["config", "--api-max-conns", "7"]);
    command.env("API_MAX_CONNS", "8").env("BACKEND_MAX_CONNS", "9").env("ENCRYPTION_KEY", "hunter2 hunter2!");

    let output = command.output().expect("it runs");

    assert!(output.status.success(), "{}", err(&output));
    let text = out(&output);
    assert_eq!(line(&text, "api-max-conns"), ["7", "--api-max-conns"]);
    assert_eq!(line(&text, "backend-max-conns"), ["9", "BACKEND_MAX_CONNS"]);
    assert_eq!(line(&text, "db-notification-bus-queue-size"), ["10000", "default"]);
    assert_eq!(line(&text, "database-url"), ["(hidden)", "DATABASE_URL"]);
    assert_eq!(line(&text, "encryption-key"), ["(hidden)", "ENCRYPTION_KEY"]);
    assert_eq!(line(&text, "postgres-user"), ["-", "default"]);
    assert!(!format!("{text}{}", err(&output)).contains("hunter2"), "{text}");
    assert!(err(&output).contains(&format!("/{}\n", db.name())), "{}", err(&output));
}

#[db_testkit::test]
async fn config_as_json_is_a_line_for_each_setting(db: TestDb) {
    let lines = Home::on(&db).json(["config", "--json"]);

    let url = lines.iter().find(|line| line["name"] == "database-url").expect("a line");
    assert_eq!((url["value"].as_str(), url["source"].as_str()), (Some("(hidden)"), Some("DATABASE_URL")));
    assert_eq!(lines.len(), db_layer::Settings::default().effective().count());
}

#[test]
fn config_fails_on_everything_that_is_wrong_and_starts_nothing() {
    let home = Home::embedded();
    let output = home.output(["config", "--api-max-conns", "none", "--encryption-key-hex", "hunter2"]);

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        err(&output),
        "buildwatch: 2 settings cannot be used:\n  --api-max-conns must be a whole number from 1 to 262143\n  \
         --encryption-key-hex cannot be used: an encryption key is not valid hexadecimal\n"
    );

    let output = home.output(["list", "--api-max-conns", "none"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!home.data().join("postgres").exists(), "what is wrong is found before a server is started");
}

#[db_testkit::test]
async fn a_database_may_be_named_by_the_parts_of_its_address(db: TestDb) {
    let home = Home::on(&db);
    let build = home.run("echo hello");
    assert!(build.status.success(), "{}", err(&build));
    let address = db.options();
    let host =
        address.get_socket().map_or(address.get_host().into(), |socket| socket.clone().into_os_string());

    let mut list = home.buildwatch(["list", "--json", "--postgres-user", address.get_username()]);
    list.env_remove("DATABASE_URL").arg("--postgres-host").arg(host);
    list.env("POSTGRES_PORT", address.get_port().to_string()).env("POSTGRES_DATABASE", db.name());
    let output = list.output().expect("it runs");

    assert!(output.status.success(), "{}", err(&output));
    assert!(out(&output).contains("\"echo hello\""), "{}", out(&output));
}

#[db_testkit::test]
async fn a_key_that_is_given_replaces_the_one_in_the_data_folder(db: TestDb) {
    let home = Home::without_keys_of(&db);
    let run = |key: Option<&str>| {
        let mut command = home.buildwatch(["run", "--", "true"]);
        if let Some(key) = key {
            command.env("ENCRYPTION_KEY_HEX", key);
        }
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", err(&output));
    };

    run(Some("000102030405060708090a0b0c0d0e0f"));
    assert!(!home.data().join("key").exists(), "none is made when one is given");

    run(None);
    assert!(home.data().join("key").exists());
}

/// Runs `buildwatch config` with only these flags and variables: whether it succeeded, its stdout, and its stderr.
fn said(flags: &[&str], variables: &[(&str, &str)]) -> (bool, String, String) {
    let home = Home::embedded();
    let mut command = home.buildwatch(["config"]);
    command.args(flags).env("USER", "somebody");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") || name.to_string_lossy().starts_with("POSTGRES_") {
            command.env_remove(name);
        }
    }
    command.env_remove("DATABASE_URL").env_remove("DATABASE_URL_DIRECT").envs(variables.iter().copied());
    let output = command.output().expect("it runs");
    assert!(!format!("{}{}", out(&output), err(&output)).contains("hunter2"), "{}", err(&output));
    (output.status.success(), out(&output), err(&output))
}

#[test]
fn variables_of_kubernetes_and_compose_for_a_service_named_postgres_are_ignored() {
    let kubernetes = [
        ("POSTGRES_PORT", "tcp://10.0.0.1:5432"),
        ("POSTGRES_PORT_5432_TCP", "tcp://10.0.0.1:5432"),
        ("POSTGRES_SERVICE_HOST", "10.0.0.1"),
        ("POSTGRES_SERVICE_PORT", "5432"),
    ];
    let compose =
        [("POSTGRES_USER", "postgres"), ("POSTGRES_PASSWORD", "hunter2"), ("POSTGRES_DB", "postgres")];
    let address = ("DATABASE_URL", "postgres://app:hunter2hunter2@db/shop");

    for around in [&kubernetes[..], &compose[..]] {
        let (done, shown, text) = said(&[], &[around, &[address]].concat());
        assert!(done && text.contains("app@db:5432/shop"), "{text}");
        assert_eq!(line(&shown, "postgres-password")[0], "-");
        let (done, _, text) =
            said(&["--database-url", "postgres://app@other/shop"], &[around, &[address]].concat());
        assert!(done && text.contains("app@other:5432/shop"), "{text}");
    }
    for around in [&kubernetes[..], &compose[..]] {
        let (done, _, text) = said(&[], around);
        assert!(done && text.contains("an embedded server"), "{text}");
    }
}

#[test]
fn sources_are_compared_and_a_source_that_contradicts_itself_is_refused() {
    let address = ("DATABASE_URL", "postgres://app:hunter2@db/shop");
    let parts = ["--postgres-host", "other", "--postgres-user", "else", "--postgres-database", "store"];

    let (done, shown, text) = said(&parts, &[address]);
    assert!(done && text.contains("else@other:5432/store"), "{text}");
    assert_eq!(line(&shown, "database-url"), ["-", "DATABASE_URL"]);

    let (done, _, text) = said(&["--postgres-port", "6432"], &[address]);
    assert!(!done && text.contains("DATABASE_URL is ignored"), "{text}");

    let (done, _, text) = said(&[], &[address, ("POSTGRES_HOST", "other")]);
    assert!(!done && text.contains("DATABASE_URL conflicts with POSTGRES_HOST"), "{text}");

    let (done, shown, text) = said(&["--postgres-sslmode", "require"], &[address]);
    assert!(done && text.contains("app@db:5432/shop"), "{text}");
    assert_eq!(line(&shown, "postgres-sslmode"), ["require", "--postgres-sslmode"]);
}

#[test]
fn a_variable_of_libpqs_that_is_heard_is_shown() {
    let address = ("DATABASE_URL", "postgres://db/shop");
    let variables = [
        address,
        ("PGUSER", "me"),
        ("PGPASSWORD", "hunter2"),
        ("PGOPTIONS", "-cgeqo=off"),
        ("PGAPPNAME", "mine"),
    ];

    let (done, shown, text) = said(&[], &variables);

    assert!(done && text.contains("me@db:5432/shop"), "{text}");
    assert_eq!(line(&shown, "postgres-user"), ["me", "PGUSER"]);
    assert_eq!(line(&shown, "postgres-password"), ["(hidden)", "PGPASSWORD"]);
    assert_eq!(line(&shown, "postgres-options"), ["-cgeqo=off", "PGOPTIONS"]);
    assert!(!shown.contains("mine"), "{shown}");
    let (done, _, text) = said(&["--postgres-options", "-cjit=off"], &variables);
    assert!(
        !done && text.contains("PGOPTIONS is set, and the address or the settings set session options"),
        "{text}"
    );
    let (done, _, text) =
        said(&[], &[address, ("PGSSLCERT", "/no/such/file"), ("PGSSLKEY", "/no/such/file")]);
    assert!(!done && text.contains("PGSSLCERT must be PEM"), "{text}");
}
