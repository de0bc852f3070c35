//! The settings of a service, from flags, environment and the program.

use std::fmt::Write;

use db_layer::db_notify::BusOptions;
use db_layer::encryption::{Context, Key, KeyReader, Keyring, Strategy};
use db_layer::{OpenError, Options, PoolOptions, SettingSource, Settings};
use db_testkit::{Proxy, TestDb};
use harness::Log;

const BASE64: &str = "AAECAwQFBgcICQoLDA0ODw==";
const HEX: &str = "000102030405060708090a0b0c0d0e0f";

fn settings(said: &[(&str, &str)]) -> Settings {
    said.iter().fold(Settings::default(), |settings, (name, value)| settings.set(name, value))
}

fn options(said: &[(&str, &str)]) -> Options {
    settings(said).options().expect("nothing is wrong")
}

#[test]
fn an_address_may_be_given_whole_or_in_parts() {
    for (said, place) in [
        (&[("database-url", "postgres://app:secret@db:6432/shop")][..], "app@db:6432/shop"),
        (&[("postgres-user", "app"), ("postgres-database", "shop")], "app@127.0.0.1:5432/shop"),
        (
            &[
                ("postgres-host", "db.example"),
                ("postgres-port", "6432"),
                ("postgres-user", "a@b"),
                ("postgres-password", "p/w:?#%"),
                ("postgres-database", "my shop"),
            ],
            "a@b@db.example:6432/my shop",
        ),
        (
            &[("postgres-host", "/run/postgresql"), ("postgres-user", "app"), ("postgres-database", "shop")],
            "app@/run/postgresql:5432/shop",
        ),
    ] {
        let options = options(said);

        assert_eq!(options.database.to_string(), place);
        assert!(options.direct.is_none() && options.keys.is_none());
    }
}

#[cfg(feature = "redis")]
#[test]
fn the_address_of_redis_is_read_and_not_shown() {
    let database = ("database-url", "postgres://app@db/shop");
    assert!(options(&[database]).redis.is_none());
    let redis =
        options(&[database, ("redis-url", "redis://app:geheim@cache:6380/1\n")]).redis.expect("it was given");
    assert_eq!(redis.to_string(), "redis://cache:6380/1");

    for url in ["cache:6379", "postgres://app:geheim@db/shop", "redis://app:geheim@/x"] {
        let error = settings(&[database, ("redis-url", url)]).options().expect_err(url).to_string();
        assert!(error.starts_with("redis-url is not the address of a Redis: redis://"), "{error}");
        assert!(!error.contains("geheim"), "{error}");
    }
    let shown = settings(&[database, ("redis-url", "redis://:geheim@cache")]);
    let (_, shown, _) =
        shown.effective().find(|(setting, ..)| setting.name == "redis-url").expect("a setting");
    assert_eq!(shown.as_deref(), Some("(hidden)"));
}

#[test]
fn each_setting_reaches_what_it_is_for() {
    let options = options(&[
        ("database-url", "postgres://app@db/shop"),
        ("database-url-direct", "postgres://app@direct/shop"),
        ("api-max-conns", "7"),
        ("backend-max-conns", "70"),
        ("instances", "3"),
        ("db-notification-bus-queue-size", "7000"),
    ]);

    assert_eq!(options.direct.map(|direct| direct.to_string()).as_deref(), Some("app@direct:5432/shop"));
    assert_eq!((options.api.max, options.backend.max, options.bus.queue), (7, 70, 7000));
    assert_eq!(options.instances, 3);
}

#[test]
fn certificates_are_given_as_pem_or_as_files_and_no_pem_is_shown() {
    let place = [("postgres-host", "db.example"), ("postgres-user", "app"), ("postgres-database", "shop")];
    let pem = "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem").display().to_string();
    std::fs::write(&file, pem).expect("written");
    let tls = [
        ("postgres-sslmode", "verify-ca"),
        ("postgres-ca-cert", &file),
        ("postgres-client-cert", pem),
        ("postgres-client-key", pem),
    ];
    let settings = settings(&[&place[..], &tls[..]].concat());

    let database = settings.options().expect("nothing is wrong").database;

    assert_eq!(format!("{:?}", database.as_sqlx().get_ssl_mode()), "VerifyCa");
    let seen = format!("{database:?}");
    assert!(
        seen.contains(&format!("root_cert: Some({file}), cert: Some((PEM)), key: Some((PEM))")),
        "{seen}"
    );
    let shown: Vec<_> = settings
        .effective()
        .filter(|(setting, ..)| tls.iter().any(|(name, _)| *name == setting.name))
        .map(|(_, value, _)| value.expect("it was said"))
        .collect();
    assert_eq!(shown, ["verify-ca", &file, "(PEM)", "(hidden)"]);
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let options = options(&[("database-url", "postgres://app@db/shop")]);

    assert_eq!(options.api.max, PoolOptions::api().max);
    assert_eq!(options.backend.max, PoolOptions::backend().max);
    assert_eq!(options.bus.queue, BusOptions::default().queue);
}

/// The keys that these settings give.
async fn keyring(said: &[(&str, &str)]) -> Keyring {
    let mut all = vec![("database-url", "postgres://app@db/shop")];
    all.extend(said);
    let sources = options(&all).keys.expect("keys");
    KeyReader::new(sources).read(true).await.expect("readable").expect("the first reading")
}

#[tokio::test]
async fn a_key_is_read_from_each_form_and_an_old_one_unseals() {
    let place = Context::new("t", "c", 1);
    let raw = "sixteen letters!";
    let sealed = keyring(&[("encryption-key-base64", BASE64)]).await.seal(b"plain", &place).expect("sealed");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("key"), HEX).expect("written");
    let (file, all) = (folder.path().join("key").display().to_string(), folder.path().display().to_string());
    let command = format!("cat '{file}'");
    let forms = [("hex", HEX), ("file", &*file), ("folder", &*all), ("command", &*command)];

    for (form, text) in forms {
        let keys = keyring(&[(&*format!("encryption-key-{form}"), text)]).await;
        assert_eq!(**keys.unseal(&sealed, &place).expect("the same key"), *b"plain", "{form}");
        let both = keyring(&[("encryption-key", raw), (&*format!("old-encryption-key-{form}"), text)]).await;
        assert_eq!(**both.unseal(&sealed, &place).expect("the old key"), *b"plain", "{form}");
        let new = both.seal(b"plain", &place).expect("sealed");
        keyring(&[("encryption-key", raw)]).await.unseal(&new, &place).expect("sealed under the new key");
    }
}

#[tokio::test]
async fn there_may_be_several_old_keys_in_several_forms() {
    let ids = |keyring: &Keyring| keyring.keys().map(|key| key.id().to_string()).collect::<Vec<_>>();
    let other = "101112131415161718191a1b1c1d1e1f";
    let wanted = [other, HEX].map(|hex| Key::from_hex(hex).expect("a key").id().to_string());

    for old in [format!("{other},{HEX}"), format!("{other}\n{HEX}\n"), format!("{other}\r\n\r\n{HEX}")] {
        let keys = keyring(&[("encryption-key", "sixteen letters!"), ("old-encryption-key-hex", &old)]).await;
        assert_eq!(ids(&keys)[1..], wanted, "{old:?}");
    }
    let forms = [("old-encryption-key-hex", other), ("old-encryption-key-base64", BASE64)];
    let keys = keyring(&[&[("encryption-key", "sixteen letters!")][..], &forms].concat()).await;
    assert_eq!(ids(&keys).len(), 3);
}

#[test]
fn a_key_of_ascii_characters_is_used_and_logged_as_a_warning_by_its_id() {
    let log = Log::of_this_process("trace");
    let typed = "a password, typed by a person ..";
    let (id, random) =
        (Key::from_bytes(typed.into()).expect("a key").id(), Key::from_hex(HEX).expect("a key").id());
    let before = log.count(&["WARN", &id.to_string(), "ASCII"]);

    let url = ("database-url", "postgres://app@db/shop");
    let options = options(&[url, ("encryption-key", typed), ("old-encryption-key-hex", HEX)]);

    assert!(options.keys.is_some());
    assert_eq!(log.count(&["WARN", &id.to_string(), "ASCII"]), before + 1);
    assert_eq!((log.count(&[&random.to_string(), "ASCII"]), log.count(&[typed])), (0, 0));
}

#[test]
fn each_bad_setting_is_named_and_never_its_value() {
    let url = ("database-url", "postgres://app:hunter2@db/shop");
    for (said, complaint) in [
        (
            &[][..],
            "no database is configured: set DATABASE_URL, or --postgres-database and the other parts that differ from their defaults",
        ),
        (
            &[("database-url", "mysql://app:hunter2@db/shop")],
            "database-url cannot be used: the database address must begin with postgres:// or postgresql://",
        ),
        (
            &[url, ("postgres-host", "hunter2"), ("postgres-port", "5432")],
            "database-url conflicts with postgres-host and postgres-port, since each gives the place of the database: remove one",
        ),
        (
            &[url, ("database-url-direct", "postgres://app:hunter2@db")],
            "database-url-direct cannot be used: the database address has no database: add /name after the host",
        ),
        (
            &[("postgres-user", "app"), ("postgres-database", "shop"), ("postgres-port", "hunter2")],
            "postgres-port must be a whole number from 1 to 65535",
        ),
        (
            &[("postgres-user", "app"), ("postgres-database", "shop"), ("postgres-host", "one,hunter2")],
            "the host in the database address is a list, but only one host is supported",
        ),
        (
            &[("postgres-user", "app"), ("postgres-database", "shop"), ("postgres-sslmode", "hunter2")],
            "postgres-sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        (
            &[
                ("postgres-user", "app"),
                ("postgres-database", "shop"),
                ("postgres-client-cert", "-----BEGIN CERTIFICATE-----"),
                ("postgres-client-key", "/no/hunter2"),
            ],
            "postgres-client-key must be PEM, or the path of a file that can be read",
        ),
        (
            &[
                ("postgres-user", "app"),
                ("postgres-database", "shop"),
                ("postgres-client-key", "-----BEGIN PRIVATE KEY-----hunter2"),
            ],
            "postgres-client-key needs --postgres-client-cert, too: give both",
        ),
        (
            &[("database-url", "postgres://app:hunter2@db/shop?pgbouncer=true")],
            "database-url leads through a pooler (pgbouncer=true), but the bus and migrations need the server's own address: \
             set DATABASE_URL_DIRECT, too",
        ),
        (
            &[url, ("database-url-direct", "postgres://app:hunter2@db/shop?pgbouncer=true")],
            "database-url-direct must lead to the server itself, but has pgbouncer=true",
        ),
        (
            &[("database-url", "postgres://app@db/shop?connection_limit=hunter2")],
            "database-url cannot be used: the parameter `connection_limit` in the database address must be a whole number \
             from 1 to 262143",
        ),
        (
            &[("database-url", "postgres://app@db/shop?hunter=hunter2")],
            "database-url cannot be used: the database address has an unknown parameter `hunter` (known: \
             application_name, channel_binding, connect_timeout, connection_limit, dbname, fallback_application_name, host, \
             keepalives_idle, lock_timeout, options, password, pgbouncer, pool_timeout, port, schema, search_path, sslcert, \
             sslkey, sslmode, sslrootcert, statement_timeout, user)",
        ),
        (&[url, ("api-max-conns", "0")], "api-max-conns must be a whole number from 1 to 262143"),
        (
            &[url, ("backend-max-conns", "-hunter2")],
            "backend-max-conns must be a whole number from 1 to 262143",
        ),
        (
            &[url, ("db-notification-bus-queue-size", "1.5")],
            "db-notification-bus-queue-size must be a whole number from 1000 to 1000000, or 0 for the default",
        ),
        (
            &[url, ("encryption-key", "hunter2")],
            "encryption-key cannot be used: an encryption key must have 16 or 32 bytes, this one has 7",
        ),
        (
            &[url, ("encryption-key-base64", BASE64), ("encryption-key-hex", HEX)],
            "encryption-key-hex gives the same key as encryption-key-base64: remove one",
        ),
        (
            &[url, ("old-encryption-key-hex", HEX)],
            "old-encryption-key-hex is given without a new key: set --encryption-key-base64, too",
        ),
    ] {
        let error = settings(said).options().expect_err(complaint);

        assert_eq!(error.to_string(), complaint);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn a_key_of_equal_bytes_and_two_keys_of_one_id_are_named_and_refused() {
    let url = ("database-url", "postgres://app@db/shop");
    for (said, complaint) in [
        (
            &[url, ("encryption-key-hex", "00000000000000000000000000000000")][..],
            "encryption-key-hex cannot be used: all bytes of an encryption key are equal: make keys of random bytes",
        ),
        (
            &[
                url,
                ("encryption-key-hex", "fdd57dfa0d115cf80bd9424181f5d2c938ce022117134326aae38e69b3614328"),
                (
                    "old-encryption-key-hex",
                    "c4da5b9cf4557f69d7763b87e902997af548952995a7314d482cef15517f78a3",
                ),
            ],
            "old-encryption-key-hex cannot be used: two different encryption keys have the id 045b0a78: make another key",
        ),
    ] {
        assert_eq!(settings(said).options().expect_err(complaint).to_string(), complaint);
    }
}

#[tokio::test]
async fn without_a_way_past_the_pooler_nothing_is_opened() {
    let pooled = "postgres://app@127.0.0.1:1/shop?pgbouncer=true".parse().expect("an address");

    let Err(error) = db_layer::open(Options::new(pooled)).await else { panic!("there is nobody there") };

    assert!(matches!(&error, OpenError::NoDirect(to) if to == "app@127.0.0.1:1/shop"), "{error}");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let settings = settings(&[
        ("database-url", "postgres://app@db/?pool_timeout=0"),
        ("api-max-conns", "many"),
        ("backend-max-conns", "0"),
        ("encryption-key-hex", "no hex"),
    ]);

    let error = settings.options().expect_err("five things are wrong");

    assert_eq!(error.findings().len(), 5, "{error}");
    assert!(error.to_string().starts_with("5 settings cannot be used:\n  database-url "), "{error}");
    let rest =
        settings.check_without_database().expect_err("three of them have nothing to do with the address");
    assert_eq!(rest.findings().len(), 3, "{rest}");
}

#[test]
fn mistakes_in_tls_and_in_the_address_are_found_together() {
    let settings =
        settings(&[("postgres-host", "one,two"), ("postgres-database", "shop"), ("postgres-sslmode", "on")]);

    let error = settings.options().expect_err("two things are wrong");

    assert_eq!(error.findings().len(), 2, "{error}");
}

#[test]
fn nothing_that_is_made_of_settings_shows_a_secret() {
    let said = [
        ("database-url", "postgres://app:hunter2@db/shop"),
        ("database-url-direct", "postgres://app:hunter2@direct/shop"),
        ("encryption-key", "hunter2 hunter2!"),
        ("old-encryption-key", "hunter2hunter2hu"),
    ];
    let settings = settings(&said);
    let options = settings.options().expect("nothing is wrong");

    let mut shown = format!("{settings:?} {options:?} {:?}", settings.effective().collect::<Vec<_>>());
    let parts = said.map(|(name, _)| name);
    let broken = parts.iter().fold(Settings::default(), |settings, name| settings.set(name, "hunter2"));
    let error = broken.options().expect_err("no address");
    write!(shown, "{broken:?} {error} {error:?}").expect("written");

    // The bytes of the key, in the forms in which a slice of bytes may be formatted.
    for secret in ["hunter2", "104, 117, 110", "68756e746572"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

#[test]
fn each_setting_has_the_name_of_its_source() {
    let settings = settings(&[("api-max-conns", "7"), ("database-url", "postgres://app:hunter2@db/shop")]);

    let of = |name: &str| {
        let (_, value, source) =
            settings.effective().find(|(setting, ..)| setting.name == name).expect("a setting");
        (value, source)
    };

    assert_eq!(of("api-max-conns"), (Some("7".to_owned()), SettingSource::Program));
    assert_eq!(of("backend-max-conns"), (Some("50".to_owned()), SettingSource::Default));
    assert_eq!(of("database-url"), (Some("(hidden)".to_owned()), SettingSource::Program));
    assert_eq!(of("postgres-host"), (None, SettingSource::Default), "the address is given whole");
}

#[test]
fn a_password_that_scram_cannot_encode_is_refused_with_the_name_of_its_source() {
    for (said, name) in [
        (&[("database-url", "postgres://app:hunter2🦀@db/shop")][..], "database-url"),
        (&[("postgres-database", "shop"), ("postgres-password", "hunter2🦀")], "postgres-password"),
        (
            &[("database-url", "postgres://app@db/shop"), ("postgres-password", "hunter2\n")],
            "postgres-password",
        ),
    ] {
        let error = settings(said).options().expect_err(name).to_string();

        assert!(
            error.starts_with(&format!("{name} cannot be used: the password cannot be used with SCRAM")),
            "{error}"
        );
        assert!(!error.contains("hunter2") && !error.contains('🦀'), "{error}");
    }
}

#[test]
fn the_parts_of_an_address_are_in_force_when_they_name_the_database() {
    let host = |said: &[(&str, &str)]| {
        let settings = settings(said);
        let (_, value, _) =
            settings.effective().find(|(setting, ..)| setting.name == "postgres-host").expect("a setting");
        value
    };

    assert_eq!(host(&[("postgres-database", "shop")]).as_deref(), Some("127.0.0.1"));
    assert_eq!(host(&[]), None);
}

#[db_testkit::test]
async fn pools_that_the_server_has_no_room_for_are_refused_at_the_start(db: TestDb) {
    let settings = Settings::default().set("database-url", db.url());
    let with = |name, value: &str| settings.clone().set(name, value).options().expect("nothing is wrong");

    let Err(OpenError::ConnectionBudgetExceeded(exceeded)) = db_layer::open(with("instances", "1000")).await
    else {
        panic!("there is no room for a thousand")
    };
    assert_eq!(exceeded.needed(), 1000 * (10 + 5 + 50 + 5 + 2 + 1));

    let (max, reserved): (String, String) = sqlx::query_as(
        "select current_setting('max_connections'), current_setting('superuser_reserved_connections')",
    )
    .fetch_one(&db.pool())
    .await
    .expect("an answer");
    let number = |text: &str| text.parse::<u32>().expect("a number");
    assert_eq!(exceeded.available(), number(&max) - number(&reserved), "what ordinary roles may have");
    let too_large = with("backend-max-conns", &max).instances(1);
    let Err(OpenError::ConnectionBudgetExceeded(exceeded)) = db_layer::open(too_large).await else {
        panic!("there is no room")
    };
    let fitting = exceeded.largest_backend_that_fits().expect("a smaller one fits");
    for (backend, fits) in [(fitting, true), (fitting + 1, false)] {
        let opened = db_layer::open(with("backend-max-conns", &backend.to_string())).await;
        assert_eq!(opened.is_ok(), fits, "{backend}");
    }
    assert!(db_layer::open(with("instances", "0")).await.is_ok(), "the check is off");
    let pooled = settings.clone().set("database-url-direct", db.url()).set("instances", "1000");
    let pooled = pooled.options().expect("nothing is wrong");
    assert!(db_layer::open(pooled).await.is_ok(), "the pooler counts");
}

#[db_testkit::test]
async fn migrations_and_the_bus_go_past_a_pooler_by_the_direct_address(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations");
    let migrations = db_layer::Migrations::from_dir(folder).await.expect("migrations");
    let said = [("database-url", db.url()), ("database-url-direct", proxy.url())];
    let options = said.iter().fold(Settings::default(), |settings, (name, url)| settings.set(name, url));
    let options = options.options().expect("nothing is wrong").migrations(migrations);

    let layer = db_layer::open(options).await.expect("opened");

    assert!(proxy.accepted() >= 2, "one for the migrations, one for the bus");
    let before = proxy.accepted();
    let one: i32 = sqlx::query_scalar("select 1").fetch_one(layer.api()).await.expect("an answer");
    assert_eq!((one, proxy.accepted()), (1, before), "pools go by the other address");
}
