//! No type shows a secret: the tests plant a password, key material and bound values, and format everything that has seen them.
//!
//! **Keeping it complete.** A public type that holds, or was made from, an address, a key or a bound value must be formatted
//! here after it has seen a secret: add it to one of the lists below. `every_public_type_is_shown_or_has_its_reason_not_to_be`
//! fails until a new public type is either in the list `SHOWN` or, with the reason, in `NOT_SHOWN`.
//!
//! Not hidden, on purpose: `Event`, `NewEvent` and `Notification` are data that a program has asked for, as a row is, and
//! `StatementError::as_sqlx` documents that it shows the values. The types that only carry such data do not show it.

use std::error::Error as StdError;
use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::time::Duration;

use db_layer::db_core::settings::{Reader, Values};
use db_layer::db_core::{
    self, AcquireError, Class, Closed, ConnectFailure, ConnectRetry, Holder, Limits, Pooler, Repeat, Reset,
    RetryBudget, Savepoint, Session, Stats, Tracking, WarmUpError,
};
use db_layer::db_migrate::batches::{Batches, Change};
use db_layer::db_migrate::rekey::{Mode, MoveIn, Rekey, verify};
use db_layer::db_notify::link::{Link, Listener, Sender};
use db_layer::db_notify::{PostgresLink, WatchOptions};
use db_layer::encryption::{
    Columns, ColumnsError, Context, Declared, EncryptionError, Fallback, Key, KeyId, KeyReader,
    KeyRecordError, KeySource, KeySources, KeyType, Keyring, Keys, NoEncryption, Sealed, Strategy,
};
use db_layer::{
    Bus, BusOptions, Channel, Config, ConfigError, Db, Error, Isolation, NewEvent, NotifyAfterCommit,
    OpenError, Options, Pool, PoolOptions, Settings, Topic, TxOptions, TxRetry, WatchedTopics, db_events,
};
use db_testkit::{Proxy, TestDb, TestServer, until};
use harness::Log;
use sqlx::{ConnectOptions, Connection};

use crate::PATIENCE;

const PASSWORD: &str = "Qw7PasswordPlanted";
const KEY: &str = "Zk4SealingKey!16";
const VALUE: &str = "Vb9BoundValuePlanted";

/// The formatted texts, each with the name it has in this test.
#[derive(Default)]
struct Shown(Vec<(String, String)>);

impl Shown {
    fn debug(&mut self, name: &str, value: &dyn Debug) {
        self.0.push((name.to_owned(), format!("{value:?}\n{value:#?}")));
    }

    /// Formats an error in all its forms, with its sources, and as a binary that uses anyhow prints it.
    fn error<E: StdError + Send + Sync + 'static>(&mut self, name: &str, error: E) {
        let mut text = format!("{error} {error:?} {error:#?}");
        let mut source = error.source();
        while let Some(cause) = source {
            write!(text, "\n{cause} {cause:?}").expect("writing to a string");
            source = cause.source();
        }
        let error = anyhow::Error::from(error).context("opening");
        write!(text, "\n{error:#} {error:?}").expect("writing to a string");
        self.0.push((name.to_owned(), text));
    }

    /// Fails with the names of all texts that show a secret.
    fn check(&self) {
        let leaks: Vec<_> =
            self.0.iter().filter_map(|(name, text)| Some((name, leak(text)?, text))).collect();
        assert!(leaks.is_empty(), "{} of {} leak: {leaks:#?}", leaks.len(), self.0.len());
    }
}

/// Formats each expression under its own source text.
macro_rules! debug {
    ($shown:expr; $($value:expr),+ $(,)?) => {
        $($shown.debug(stringify!($value), &$value);)+
    };
}

/// The secret that a text shows, in any form.
fn leak(text: &str) -> Option<&'static str> {
    [PASSWORD, KEY, VALUE].into_iter().find(|secret| {
        let bytes = secret.as_bytes();
        let hex: String = bytes.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a string");
            hex
        });
        let list = |separator: &str| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(separator);
        // Half of a secret counts, too.
        [&secret[3..secret.len() - 3], &hex[..12], &list(", ")[..20], &list(",\n    ")[..20]]
            .iter()
            .any(|form| text.contains(form))
            || text.to_lowercase().contains(&hex)
    })
}

#[test]
fn a_secret_would_be_found_in_each_of_its_forms() {
    let config = Config::from_url(&format!("postgres://app:{PASSWORD}@db/shop")).expect("an address");
    // The driver's own type shows the password; its documentation and ours say so.
    assert_eq!(leak(&format!("{:?}", config.as_sqlx())), Some(PASSWORD));
    assert_eq!(leak(&format!("{:#?}", config.as_sqlx())), Some(PASSWORD));
    let bytes = KEY.as_bytes().to_vec();
    for shown in [
        format!("{bytes:?}"),
        format!("{bytes:#?}"),
        Key::from_bytes(bytes).map(|key| hex(&key)).expect("a key"),
    ] {
        assert_eq!(leak(&shown), Some(KEY), "{shown}");
    }
    assert_eq!(leak("Password and the like"), None);
}

fn hex(key: &Key) -> String {
    use secrecy::ExposeSecret;
    key.to_hex().expose_secret().to_owned()
}

#[test]
fn addresses_good_and_bad_do_not_show_their_password() {
    let mut shown = Shown::default();
    for address in [
        format!("postgres://app:{PASSWORD}@db/shop"),
        format!("postgres://app@db/shop?password={PASSWORD}"),
        format!("postgres://app@db/shop?sslcert=-----BEGIN%20A-----&sslkey=-----BEGIN%20A-----{PASSWORD}"),
        format!("host=db user=app dbname=shop password='{PASSWORD}'"),
        format!("postgres://app@db/shop?options=-capp.token%3D{PASSWORD}"),
        format!("postgres://app@db/shop?options[app.token]={PASSWORD}&schema={PASSWORD}"),
    ] {
        let config = Config::from_url(&address).expect("a good address");
        shown.debug("Config", &config);
        shown.debug("Config's Display", &format_args!("{config}"));
        shown.debug("Config, parsed", &address.parse::<Config>());
    }
    for address in [
        PASSWORD.to_owned(),
        format!("{PASSWORD}://app@db/shop"),
        format!("postgres:/app:{PASSWORD}@db/shop"),
        format!("mysql://app:{PASSWORD}@db/shop"),
        format!("postgres://app:{PASSWORD}@db"),
        format!("postgres://app:{PASSWORD}@db:port/shop"),
        format!("postgres://app@db:{PASSWORD}/shop"),
        format!("postgres://app@{PASSWORD},other/shop"),
        format!("postgres://app:{PASSWORD}@[::x]/shop"),
        format!("postgres://app:{PASSWORD}%ff@db/shop"),
        format!("postgres://app:a/{PASSWORD}@db/shop"),
        format!("postgres://app:a?{PASSWORD}@db/shop"),
        format!("postgres://app:a#{PASSWORD}@db/shop"),
        format!("postgres://app@db/shop?{PASSWORD}=1"),
        format!("postgres://app@db/shop?a=b?{PASSWORD}"),
        format!("postgres://app@db/shop#{PASSWORD}"),
        format!("postgres://app@db/shop?sslmode={PASSWORD}"),
        format!("postgres://app@db/shop?port={PASSWORD}"),
        format!("postgres://app@db/shop?sslrootcert=/no/{PASSWORD}"),
        format!("postgres://app@db/shop?sslkey=/no/{PASSWORD}"),
        format!("postgres://app@db/shop?sslkey=-----BEGIN%20A-----{PASSWORD}"),
        format!("postgres://app@db/shop?sslrootcert=-----BEGIN%20PRIVATE%20KEY-----{PASSWORD}"),
        format!("postgres://app:{PASSWORD}🦀@db/shop"),
        format!("postgres://app:{PASSWORD}%00@db/shop"),
        format!("postgres://app:{PASSWORD}\n@db/shop"),
        format!("postgres://app:{PASSWORD}@h1:1,h2:2/shop"),
        format!("postgres://app@db/shop?channel_binding={PASSWORD}"),
        format!("postgres://app@db/shop?sslpassword={PASSWORD}"),
        format!("postgres://app@db/shop?target_session_attrs={PASSWORD}"),
        format!("postgres://app@db/shop?options={PASSWORD}"),
        format!("postgres://app@db/shop?options=-c{PASSWORD}"),
        format!("postgres://app@db/shop?options[{PASSWORD}]=1&options[{PASSWORD}]=2"),
        format!("postgres://app@db/shop?password={PASSWORD}&password=other"),
        format!("postgres://app@db/shop?search_path=a&schema={PASSWORD}"),
        format!("host=db password={PASSWORD} {PASSWORD}"),
        format!("host=db password='{PASSWORD}"),
        format!("host=db {PASSWORD}=1 user=app dbname=shop"),
        format!("Server=db;Password={PASSWORD};"),
        format!("jdbc:postgresql://db/shop?password={PASSWORD}"),
    ] {
        let error: ConfigError = Config::from_url(&address).expect_err(&address);
        shown.error(&address.replace(PASSWORD, "…"), error.clone());
        shown.error(&address.replace(PASSWORD, "…"), Error::from(error));
    }
    shown.check();
}

#[test]
fn settings_and_options_do_not_show_what_they_were_told() {
    let mut shown = Shown::default();
    let url = format!("postgres://app:{PASSWORD}@db/shop");
    let settings = Settings::default()
        .set("database-url", &*url)
        .set("database-url-direct", &*url)
        .set("encryption-key", KEY)
        .set("old-encryption-key-hex", "000102030405060708090a0b0c0d0e0f");
    let options = settings.options().expect("nothing is wrong");
    let mut values = Values::new(db_core::settings::DATABASE);
    values.set("postgres-password", PASSWORD);
    values.set("postgres-port", PASSWORD);
    let mut reader = Reader::new(&values);
    assert!(db_core::settings::database(&mut reader).is_none());
    debug!(shown; settings, options, values, reader, settings.effective().collect::<Vec<_>>());
    shown.error("SettingsError", reader.finish().expect_err("a port"));
    let all_wrong = settings.effective().fold(Settings::default(), |wrong, (setting, ..)| {
        // A value without a secret: a role, a name, or a size.
        if setting.is_secret || setting.name.ends_with("conns") {
            wrong.set(setting.name, PASSWORD)
        } else {
            wrong
        }
    });
    debug!(shown; all_wrong);
    for (one, other) in [
        (("database-url", url.clone()), ("postgres-password", format!("other{PASSWORD}"))),
        (("database-url", url.clone()), ("postgres-database", PASSWORD.to_owned())),
        (("postgres-database", "shop".to_owned()), ("postgres-password", format!("{PASSWORD}\n"))),
        (("postgres-database", "shop".to_owned()), ("postgres-options", format!("-c {PASSWORD}"))),
        (("encryption-key", KEY.to_owned()), ("encryption-key-hex", PASSWORD.to_owned())),
    ] {
        let twice = Settings::default().set(one.0, one.1).set(other.0, other.1);
        debug!(shown; twice);
        shown.error("SettingsError of two that differ", twice.options().expect_err(other.0));
    }
    shown.error("SettingsError of everything", all_wrong.options().expect_err("it is all wrong"));
    debug!(
        shown;
        TxOptions::default().set("app.token", VALUE).tenant(VALUE).isolation(Isolation::Serializable),
        PoolOptions::api(), BusOptions::default(), ConnectRetry::default(), TxRetry::default(),
        RetryBudget::new(ConnectRetry::default()), Tracking::default(), Reset::default(), Class::Lost, Repeat::Never,
    );
    shown.check();
}

#[test]
fn keys_and_what_they_seal_show_neither() {
    let mut shown = Shown::default();
    let key = Key::from_bytes(KEY.as_bytes().to_vec()).expect("a key");
    let keyring = Keyring::new(&key).with_retired(&Key::generate().expect("a key")).expect("another id");
    let place = Context::new("t", "c", 1);
    let sealed: Sealed<String> = keyring.seal_json(&VALUE.to_owned(), &place).expect("sealed");
    debug!(shown; key, keyring, sealed, place);
    let keys = Keys::away("not yet");
    debug!(shown; keys);
    shown.error(
        "EncryptionError of keys that are away",
        keys.seal(VALUE.as_bytes(), &place).expect_err("away"),
    );
    keys.put(keyring.clone(), None);
    debug!(shown; keys, KeySources::from(keyring.clone()), KeyReader::new(key.clone().into()));
    let plain = Sealed::from_bytes(VALUE.as_bytes().to_vec());
    let mut newer = sealed.as_bytes().to_vec();
    newer[0] = 3;
    let neither = Fallback::new(Keyring::new(&Key::generate().expect("a key")), NoEncryption);
    debug!(shown; neither, key.id());
    let errors: [Result<String, EncryptionError>; 12] = [
        Key::from_bytes(PASSWORD.as_bytes().to_vec()).map(|key| hex(&key)),
        Key::from_hex(PASSWORD).map(|key| hex(&key)),
        Key::from_base64(&format!("!{PASSWORD}")).map(|key| hex(&key)),
        keyring.unseal_json(&sealed, &Context::new("t", "c", 2)),
        Keyring::new(&Key::generate().expect("a key")).unseal_json(&sealed, &place),
        keyring.unseal_json(&plain, &place),
        keyring.unseal_json(&Sealed::from_bytes(sealed.as_bytes()[..50].to_vec()), &place),
        keyring.unseal_json(&Sealed::from_bytes(newer), &place),
        NoEncryption.seal(format!("\u{1}{VALUE}").as_bytes(), &place).map(|bytes| format!("{bytes:?}")),
        neither.unseal(sealed.as_bytes(), &place).map(|bytes| format!("{bytes:?}")),
        Key::from_bytes(vec![b'k'; 32]).map(|key| hex(&key)),
        VALUE.parse::<KeyId>().map(|id| id.to_string()),
    ];
    for error in errors {
        shown.error("EncryptionError", error.expect_err("it cannot be done"));
    }
    let columns = Columns::default();
    let iban = columns.declare::<String>("t", "c").key("id", KeyType::BigInt);
    let index = columns.index("t", "c");
    debug!(shown; iban, index);
    let (iban, index) = (iban.text(), index.build());
    shown.error(
        "EncryptionError of columns without keys",
        iban.seal(1, &VALUE.to_owned()).expect_err("no keys"),
    );
    columns.unlock(Arc::new(Keyring::new(&key))).expect("no keys yet");
    debug!(shown; columns, iban, index);
    shown.error(
        "EncryptionError of a key of two columns",
        iban.seal((1, VALUE), &VALUE.to_owned()).expect_err("two"),
    );
    shown.error("EncryptionError of another column", iban.unseal(2, &sealed).expect_err("another place"));
    let misfit = ColumnsError::Misfits(vec!["t.c: there is no table \"t\"".to_owned()]);
    shown.error("ColumnsError", misfit);
    let number: Result<u8, _> = keyring.unseal_json(&Sealed::from_bytes(sealed.as_bytes().to_vec()), &place);
    shown.error("EncryptionError of another type", number.expect_err("it is no number"));
    shown.check();
}

/// A server of the test's own where the role `app` needs a password, reached by TCP through a proxy.
struct Guarded {
    proxy: Proxy,
    db: TestDb,
    _server: TestServer,
}

impl Guarded {
    async fn start() -> Self {
        let server = TestServer::throwaway().await.expect("a server");
        let db = server.empty().await.expect("a database");
        let role = format!("create role app login superuser password '{PASSWORD}'");
        // Not by the pool, whose statements sqlx logs in full.
        let mut admin = db.options().disable_statement_logging().connect().await.expect("a connection");
        sqlx::raw_sql(sqlx::AssertSqlSafe(role)).execute(&mut admin).await.expect("a role");
        admin.close().await.expect("closed");
        for schema in db_events::SCHEMA.iter().chain(db_core::encryption::SCHEMA) {
            sqlx::raw_sql(schema.up).execute(&db.pool()).await.expect("the event logs");
        }
        let hba = server.embedded().expect("one of its own").data_dir().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).expect("the rules");
        std::fs::write(&hba, format!("local all app scram-sha-256\n{rules}")).expect("a rule");
        sqlx::raw_sql("select pg_reload_conf()").execute(&db.pool()).await.expect("read again");
        let proxy = Proxy::start(&db).expect("a proxy");
        let guarded = Self { proxy, db, _server: server };
        let config = guarded.config(PASSWORD, "disable");
        until("the rule is in force", async || {
            db_core::connect::connect(&config, ConnectRetry::default().deadline(Duration::ZERO)).await.is_ok()
        })
        .await;
        guarded
    }

    fn config(&self, password: &str, sslmode: &str) -> Config {
        let port = self.proxy.options().get_port();
        let name = self.db.name();
        Config::from_url(&format!("postgres://app:{password}@127.0.0.1:{port}/{name}?sslmode={sslmode}"))
            .expect("an address")
    }
}

fn one_attempt() -> ConnectRetry {
    ConnectRetry::default().deadline(Duration::from_millis(100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_of_keys_do_not_show_what_they_gave() {
    let mut shown = Shown::default();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    for text in [KEY, PASSWORD] {
        std::fs::write(&file, format!("{text}\n{text}")).expect("written");
        let line = format!("sh -c 'cat {}; exit 1'", file.display());
        for source in [
            KeySource::File(file.clone()),
            KeySource::Folder(folder.path().into()),
            KeySource::Command(line),
            KeySource::Command(format!("cat {}", file.display())),
            KeySource::Command(format!("db-core-no-such-program --token={text}")),
        ] {
            let mut reader = KeyReader::new(KeySources::new(source.clone()));
            let error = reader.read(true).await.expect_err("no key");
            debug!(shown; source, reader);
            shown.error("KeySourceError", error);
        }
    }
    let key = Key::from_bytes(KEY.as_bytes().to_vec()).expect("a key");
    shown.error("KeyRecordError", KeyRecordError::OtherKey(key.id()));
    shown.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_open_used_broken_or_logged_shows_a_secret() {
    let log = Log::of_this_process("trace");
    let server = Guarded::start().await;
    let mut shown = Shown::default();
    failures_to_open(&server, &mut shown).await;

    let options = Options::new(server.config(PASSWORD, "disable"))
        .keys(Keyring::new(&Key::from_bytes(KEY.as_bytes().to_vec()).expect("a key")))
        .pool(PoolOptions::named("one").max(1).acquire_timeout(Duration::from_secs(2)));
    let layer = db_layer::open(options).await.expect("opened");
    failed_statements(&layer, &mut shown).await;
    lost_commits(&layer, &server, &mut shown).await;
    what_is_lent(&layer, &mut shown).await;
    what_waits_to_be_sent(&layer, &server, &mut shown).await;
    let health = layer.health();
    debug!(shown; layer, layer.bus(), layer.events(), layer.keys(), health, health.database, health.sealing);
    let shutdown = layer.shutdown(PATIENCE).await;
    let closed: &Closed = &shutdown.api;
    debug!(shown; shutdown, closed);
    shown.error("AcquireError, closed", layer.api().acquire().await.expect_err("closed"));
    shown.check();

    let text = log.text();
    assert!(text.contains("db_core::statement"), "the log is heard");
    let lines: Vec<_> = text.lines().filter(|line| leak(line).is_some()).collect();
    assert!(lines.is_empty(), "{lines:#?}");
}

async fn failures_to_open(server: &Guarded, shown: &mut Shown) {
    let wrong = format!("not{PASSWORD}");
    let refused =
        Config::from_url(&format!("postgres://app:{PASSWORD}@127.0.0.1:1/shop")).expect("an address");
    for (name, config) in [
        ("wrong password", server.config(&wrong, "disable")),
        ("no TLS there", server.config(PASSWORD, "require")),
        ("no certificate", server.config(PASSWORD, "verify-full")),
        ("unknown database", server.config(PASSWORD, "disable").with_database("nowhere")),
        ("nobody there", refused),
    ] {
        let options = || Options::new(config.clone()).wait(one_attempt());
        let error: OpenError = db_layer::open(options()).await.expect_err(name);
        if let OpenError::Connect(error) = &error {
            let failure: &ConnectFailure = error.failure();
            debug!(shown; error, failure);
            shown.error(name, failure.clone());
        }
        shown.error(name, error);
        let good = server.config(PASSWORD, "disable");
        let direct = options().database(good).direct(Some(config.clone()));
        shown.error(name, db_layer::open(direct).await.expect_err(name));
        let migrations =
            db_layer::Migrations::from_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations"));
        let migrations = migrations.await.expect("migrations");
        shown.error(name, migrations.up_within(&config, one_attempt()).await.expect_err(name));
        let pool = Pool::new(&config, PoolOptions::api().min_idle(1));
        let cold: WarmUpError = pool.warm_up(Duration::from_millis(50)).await.expect_err(name);
        shown.error(name, cold);
        let pooled = options().database(config.clone().with_pooler(Pooler::Transaction));
        shown.error(name, db_layer::open(pooled).await.expect_err(name));
        let lazy = db_layer::open(
            options().lazy().api(PoolOptions::api().acquire_timeout(Duration::from_millis(500))),
        )
        .await
        .expect("nobody is asked");
        let acquired: AcquireError = lazy.api().acquire().await.expect_err(name);
        shown.error(name, Error::from(acquired));
        debug!(shown; lazy, lazy.api(), lazy.api().pool());
        debug!(shown; lazy.health());
    }
    let many = Options::new(server.config(PASSWORD, "disable")).instances(1000);
    shown.error("ConnectionBudgetExceeded", db_layer::open(many).await.expect_err("there is no room"));
    let named = Options::new(server.config(PASSWORD, "disable")).namespace("");
    shown.error("namespace", db_layer::open(named).await.expect_err("no name"));
}

/// Statements that receive the bound value; PostgreSQL repeats it in the message, the detail or the hint of its error.
const FAILING: [&str; 14] = [
    "insert into kept values ($1, 'a')",
    "insert into checked values ($1)",
    "insert into referring values ($1)",
    "insert into kept values (null, $1)",
    "insert into excluded values ($1)",
    "select $1::text::int4",
    "select $1::text::uuid",
    "select $1::text::timestamptz",
    "select $1::text::json",
    "select $1::text::inet",
    "select $1::text::mood",
    "select to_number($1, '9') / 0",
    "select set_config('work_mem', $1, true)",
    "insert into short values ($1)",
];

async fn failed_statements(layer: &Db, shown: &mut Shown) {
    sqlx::raw_sql(
        "create table kept (a text primary key, b text not null);
         create table checked (a text check (length(a) = 0));
         create table referring (a text references kept);
         create table excluded (a text, exclude using btree (a with =));
         create table short (a varchar(3));
         create type mood as enum ('good')",
    )
    .execute(layer.api())
    .await
    .expect("tables");
    for first in ["insert into kept values ($1, 'a')", "insert into excluded values ($1)"] {
        sqlx::query(first).bind(VALUE).execute(layer.api()).await.expect("the first");
    }
    for sql in FAILING {
        let sql = if sql.starts_with("insert into referring") {
            "insert into referring values ($1 || '2')"
        } else {
            sql
        };
        let error = sqlx::query(sql).bind(VALUE).execute(layer.api()).await.expect_err(sql);
        if sql.starts_with("insert into kept") {
            assert!(leak(&format!("{error:?}")).is_some(), "what the server says has it: {error:?}");
        }
        let events = db_events::Error::Database { what: "append", cause: Error::from(error) };
        shown.error(sql, events);
        let in_tx = layer.backend().tx(async |tx| {
            sqlx::query(sql).bind(VALUE).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        });
        shown.error(sql, in_tx.await.expect_err(sql));
    }
    let text = format!("select '{VALUE}'::int4");
    let literal = sqlx::query(sqlx::AssertSqlSafe(text)).execute(layer.api()).await;
    shown.error("a literal", Error::from(literal.expect_err("no number")));
    let decoded: Result<i32, _> =
        sqlx::query_scalar("select $1::text").bind(VALUE).fetch_one(layer.api()).await;
    shown.error("a column of another type", Error::from(decoded.expect_err("no number")));
    let none: Result<String, _> =
        sqlx::query_scalar("select $1 where false").bind(VALUE).fetch_one(layer.api()).await;
    shown.error("no row", Error::from(none.expect_err("no row")));
    let mut tx = layer.backend().begin().await.expect("begun");
    sqlx::query("select $1::text::int4").bind(VALUE).execute(&mut tx).await.expect_err("no number");
    debug!(shown; tx);
    shown.error("Aborted", tx.commit().await.expect_err("aborted"));
    let limited = TxOptions::default().set("app.token", VALUE).timeout(Duration::from_millis(20));
    let slow = layer.backend().tx_with(limited, async |tx| {
        sqlx::query("select pg_sleep(60), $1::text").bind(VALUE).execute(tx).await?;
        Ok::<_, Error>(())
    });
    shown.error("Deadline", slow.await.expect_err("too slow"));
    let odd = TxOptions::default().set("work_mem", VALUE);
    shown.error("TxOptions", layer.backend().begin_with(odd).await.expect_err("no size"));
}

async fn lost_commits(layer: &Db, server: &Guarded, shown: &mut Shown) {
    for options in [TxOptions::default(), TxOptions::default().resolve_commit()] {
        let mut tx = layer.backend().begin_with(options.set("app.token", VALUE)).await.expect("begun");
        sqlx::query("select $1::text").bind(VALUE).execute(&mut tx).await.expect("done");
        server.proxy.cut_before("COMMIT");
        shown.error("a lost commit", tx.commit().await.expect_err("lost"));
    }
    server.proxy.cut_before("select 7");
    let lost = sqlx::query("select 7, $1::text").bind(VALUE).execute(layer.backend()).await;
    shown.error("a lost statement", Error::from(lost.expect_err("lost")));
}

async fn what_is_lent(layer: &Db, shown: &mut Shown) {
    let one = layer.pool("one").expect("a pool");
    let mut conn = one.acquire().await.expect("a connection");
    let text = format!("select '{VALUE}', $1::text");
    sqlx::query(sqlx::AssertSqlSafe(text)).bind(VALUE).execute(&mut conn).await.expect("done");
    let refused: AcquireError = one.acquire().await.expect_err("the only one is lent");
    let holders: Vec<Holder> = one.pool().holders();
    let (stats, limits): (Stats, Limits) = (one.pool().stats(), one.pool().limits());
    debug!(shown; conn, one, one.pool(), holders, stats, limits, refused.oldest_holder());
    shown.error("AcquireError", refused);
    drop(conn);
    let mut tx = layer.backend().begin().await.expect("begun");
    let mut savepoint: Savepoint<'_> = tx.savepoint().await.expect("a savepoint");
    sqlx::query("select $1::text").bind(VALUE).execute(&mut savepoint).await.expect("done");
    let session: &mut Session = &mut savepoint;
    debug!(shown; session, savepoint);
    savepoint.rollback().await.expect("rolled back");
    tx.notify_with(&Topic::new("t").expect("a topic"), VALUE).expect("accepted");
    debug!(shown; tx);
    tx.commit().await.expect("committed");
}

async fn what_waits_to_be_sent(layer: &Db, server: &Guarded, shown: &mut Shown) {
    let topic = Topic::new("t").expect("a topic");
    let mut full = layer.bus().subscribe(&topic, 1);
    let untouched = layer.bus().subscribe(&topic, 10);
    layer.bus().notify_with(&topic, VALUE).await.expect("sent");
    assert!(tokio::time::timeout(PATIENCE, full.recv()).await.expect("in time").is_some());
    let too_much = VALUE.repeat(1000);
    shown.error("NotifyError", layer.bus().notify_soon_with(&topic, &too_much).expect_err("too long"));
    shown.error(
        "NotifyError",
        layer.bus().notify_soon_with(&topic, &format!("{VALUE}\0")).expect_err("a NUL"),
    );
    shown.error("NameError", Topic::new(format!("{VALUE}\0")).expect_err("a NUL"));
    // Now `untouched` holds an undelivered notification, and the outbox one that cannot be sent.
    server.proxy.freeze();
    for n in 0..3 {
        layer.bus().notify_soon_with(&topic, &format!("{VALUE}{n}")).expect("accepted");
    }
    debug!(shown; layer, layer.bus(), full, untouched, layer.bus().state());
    server.proxy.heal();
    what_a_link_is_made_of(layer, server, shown).await;

    let events = layer.events();
    let log = events.create().await.expect("a log");
    let mut writer = events.writer(log, 0);
    writer.append(&[NewEvent::new("line", VALUE)]).await.expect("stored");
    let mut stream = events.stream(log, 0);
    stream.next_batch().await.expect("read").expect("an event");
    let mut history = events.history(log, db_events::Selection::default());
    history.next_batch().await.expect("read").expect("an event");
    debug!(shown; history);
    let appender = events.appender(log);
    appender.push(NewEvent::new("line", VALUE)).await.expect("handed over");
    debug!(shown; appender);
    debug!(shown; log, writer, stream, stream.mark(), events.head(log).await.expect("a head"));
    let source = (db_layer::WriterId(7), 1);
    events.append_once(log, source, &[NewEvent::new("line", VALUE)]).await.expect("stored");
    shown.error(
        "a number that is used",
        events.append_once(log, source, &[NewEvent::new("other", VALUE)]).await.expect_err("other events"),
    );
    for bad in [NewEvent::new(VALUE.repeat(10), ""), NewEvent::new("a", format!("{VALUE}\0"))] {
        shown.error("a bad event", events.append(log, &[bad]).await.expect_err("refused"));
    }
    shown.error(
        "a conflict",
        events.writer(log, 7).append(&[NewEvent::new("a", VALUE)]).await.expect_err("7"),
    );
}

async fn what_a_link_is_made_of(layer: &Db, server: &Guarded, shown: &mut Shown) {
    let channel = Channel::new("c").expect("a channel");
    shown.error("NameError", Channel::new(format!("{VALUE}\0")).expect_err("a NUL"));
    let postgres = PostgresLink::new(&server.config(PASSWORD, "disable"), &BusOptions::default());
    let mut listener = postgres.listener().await.expect("a listener");
    let mut sender = postgres.sender().await.expect("a sender");
    listener.listen(std::slice::from_ref(&channel)).await.expect("listening");
    sender.notify(&channel, &[VALUE.to_owned()]).await.expect("sent");
    let arrived = listener.recv().await.expect("arrived");
    assert_eq!(arrived.payload(), VALUE);
    debug!(shown; postgres, listener, sender, arrived, arrived.clone(), channel);
    shown.error(
        "a refused one",
        postgres.explain(&sender.notify(&channel, &[VALUE.repeat(1000)]).await.expect_err("too long")),
    );

    let watched =
        WatchedTopics::new(layer.bus(), &Topic::new("w").expect("a topic"), &WatchOptions::default());
    let watch = watched.watch(&Topic::new("t").expect("a topic"), 1);
    debug!(shown; watched, watch, watched.state());
    let options = BusOptions::default().queue(1);
    shown.error(
        "BusOptionsError",
        Bus::open(&server.config(PASSWORD, "disable"), options).await.expect_err("too small"),
    );
    let mut tx = layer.backend().begin().await.expect("begun");
    let (topic, too_much) = (Topic::new("t").expect("a topic"), VALUE.repeat(1000));
    shown.error(
        "NotifyInError",
        layer.bus().notify_in(&mut tx, &topic, &too_much).await.expect_err("too long"),
    );
    sqlx::query("select 1 / 0").execute(&mut tx).await.expect_err("it is failed now");
    shown.error(
        "NotifyInError",
        layer.bus().notify_in(&mut tx, &topic, VALUE).await.expect_err("it is failed"),
    );
    tx.rollback().await.expect("rolled back");
}

#[db_testkit::test]
async fn re_keying_shows_neither_values_nor_keys(db: TestDb) {
    let pool = db.pool();
    let table = "create table customers (id bigint primary key, note text, iban bytea check (octet_length(iban) < 40))";
    sqlx::raw_sql(table).execute(&pool).await.expect("a table");
    // Bound, since the driver's log of this process, which another test reads, shows the text of statements.
    let rows = "insert into customers select id, $1, convert_to($1, 'UTF8') from generate_series(1, 2) as id";
    sqlx::query(rows).bind(VALUE).execute(&pool).await.expect("rows");
    let config = Config::from_url(&db.url()).expect("an address");
    let keyring = Arc::new(Keyring::new(&Key::from_bytes(KEY.as_bytes().to_vec()).expect("a key")));
    let column = Declared::new("customers", "iban").key("id", KeyType::BigInt);
    let rekey = |mode| Rekey::new(column.clone(), Arc::clone(&keyring) as _, mode);
    let run = async |rekey: &Rekey| rekey.run(&config, std::future::pending()).await;
    let mut shown = Shown::default();

    let rotation = rekey(Mode::Rotate);
    shown.debug("Rekey", &rotation);
    let rekeyed = run(&rotation).await.expect("values that are refused");
    assert_eq!(rekeyed.report.refusals.len(), 2, "the values are plain");
    shown.debug("Rekeyed", &rekeyed);
    shown.error("RekeyError, refused", run(&rotation.stop_at_refusals(true)).await.expect_err("refused"));
    // The server's detail has the whole row.
    shown.error("RekeyError, failed", run(&rekey(Mode::Encrypt)).await.expect_err("the check fails"));
    let move_in =
        MoveIn::new(["note"], |texts| Err(format!("{} texts are not for this column", texts.len())));
    shown.debug("MoveIn", &move_in);
    shown.debug("Rekeyed, moved in", &run(&rekey(Mode::MoveIn(move_in))).await.expect("refused rows"));
    let batches = Batches::new("look", "customers", |row| {
        let change = Change::To(vec![row.bytes(0).map(<[u8]>::to_vec)]);
        Change::Cannot(format!("{row:?} {change:?}"))
    });
    shown.debug("Batches", &batches);
    shown.debug(
        "Report",
        &batches.writes("iban").run(&config, std::future::pending()).await.expect("a report"),
    );
    shown.debug("Counts", &verify(&config, std::slice::from_ref(&column)).await.expect("counts"));
    let elsewhere = format!("postgres://app:{PASSWORD}@127.0.0.1:1/shop?connect_timeout=1");
    let elsewhere = Config::from_url(&elsewhere).expect("an address");
    shown.error("RekeyError, no server", rekey(Mode::Rotate).left(&elsewhere).await.expect_err("no server"));

    shown.check();
}

#[cfg(feature = "redis")]
#[db_testkit::test]
async fn redis_does_not_show_its_password(db: TestDb) {
    use db_layer::redis::{RedisConfig, client::cmd};
    let mut shown = Shown::default();
    let url = format!("redis://app:{PASSWORD}@127.0.0.1:1");
    let config = RedisConfig::from_url(&url).expect("an address");
    shown.debug("RedisConfig", &config);
    shown.error(
        "RedisConfigError",
        RedisConfig::from_url(&format!("reddis://{PASSWORD}")).expect_err("no address"),
    );

    // One that refuses the password, and one that is away.
    let server = db_testkit::Redis::start().await.expect("a Redis");
    let refuses = RedisConfig::from_url(&format!("{}?pass={PASSWORD}", server.url())).expect("an address");
    for config in [config, refuses] {
        let options = Options::new(Config::from_url(&db.url()).expect("an address")).redis(config);
        shown.debug("Options", &options);
        let layer = db_layer::open(options).await.expect("an open database");
        let redis = layer.redis().expect("it was given");
        let set = redis.within(PATIENCE, async |mut redis| {
            cmd("SET").arg("x").arg(VALUE).query_async::<()>(&mut redis).await
        });
        shown.error("WithoutRedis", set.await.expect_err("no answer"));
        until("it is looked at", async || layer.health().redis.is_some_and(|it| !it.is_connected())).await;
        shown.debug("Redis", redis);
        shown.debug("RedisHealth", &layer.health());
        shown.debug("Db", &layer);
    }

    shown.check();
}

/// The types that the tests above format.
const SHOWN: &[&str] = &[
    "AcquireError",
    "AcquirePhase",
    "Appender",
    "BlindIndex",
    "Bus",
    "BusOptions",
    "BusOptionsError",
    "BusState",
    "Channel",
    "Class",
    "Closed",
    "Column",
    "Columns",
    "ColumnsError",
    "Config",
    "ConfigError",
    "Conn",
    "ConnectError",
    "ConnectFailure",
    "ConnectRetry",
    "ConnectionBudgetExceeded",
    "Context",
    "DatabaseHealth",
    "Db",
    "DeadlineError",
    "Declare",
    "DeclareIndex",
    "EncryptionError",
    "Error",
    "EventLogs",
    "EventStream",
    "Fallback",
    "Handle",
    "Head",
    "Health",
    "History",
    "Holder",
    "Isolation",
    "Key",
    "KeyId",
    "KeyReader",
    "KeyRecordError",
    "KeySource",
    "KeySourceError",
    "KeySources",
    "Keyring",
    "Keys",
    "Limits",
    "LogId",
    "Mark",
    "NameError",
    "NoEncryption",
    "NotifyError",
    "NotifyInError",
    "OpenError",
    "Options",
    "Pool",
    "PoolOptions",
    "PostgresLink",
    "PostgresListener",
    "PostgresSender",
    "RawNotification",
    "Reader",
    "Redis",
    "RedisConfig",
    "RedisConfigError",
    "RedisHealth",
    "Repeat",
    "Reset",
    "RetryBudget",
    "Savepoint",
    "Sealed",
    "SealingHealth",
    "Session",
    "SettingSource",
    "Settings",
    "SettingsError",
    "Shutdown",
    "StatementError",
    "Stats",
    "Subscription",
    "Topic",
    "Totals",
    "Tracking",
    "Tx",
    "TxOptions",
    "TxRetry",
    "Values",
    "WarmUpError",
    "Watch",
    "WatchedState",
    "WatchedTopics",
    "WithoutRedis",
    "Writer",
];

/// The types that no test formats, with the reason.
const NOT_SHOWN: &[(&str, &str)] = &[
    ("Acquired", "numbers"),
    ("Action", "a word"),
    ("Alert", "a rule of ours, the name of a pool, and a number"),
    ("AtOpen", "a word"),
    ("Attempt", "what is on record, with a line of a file"),
    ("Background", "a BackgroundState"),
    ("BackgroundState", "numbers, the name of a column, and an error that is shown"),
    ("Backoff", "numbers"),
    ("BatchError", "the name of a table, and an Error, which is shown"),
    ("Batches", "names that the program has chosen"),
    ("Blocker", "the process and name of a session, and the words of its statement only on request"),
    ("CallSite", "a line of the program"),
    ("Change", "the number of values, or words of the program"),
    ("Check", "its own Debug leaves out what prepares the server, which the tests of db-migrate show"),
    ("CheckError", "names, errors that are shown, and the last line of what a program said of a dump"),
    ("Checked", "CheckedFiles"),
    ("CheckedFile", "names and findings"),
    ("CheckedRepeatable", "a name and findings"),
    ("CloseReason", "a word"),
    ("Closings", "numbers"),
    ("CommandError", "names, and an OriginalError"),
    ("CopyIn", "the name of a pool"),
    ("Counts", "numbers, and ids of keys"),
    ("Deadlines", "numbers"),
    ("Declared", "names that the program has chosen"),
    ("Delivery", "data that a program has asked for"),
    ("Difference", "definitions in a schema"),
    ("Drift", "definitions in a schema"),
    ("Edits", "a word"),
    ("Effect", "words"),
    ("Ended", "a Shutdown, which is shown, and a signal"),
    ("ErrorType", "a SQLSTATE, or a word"),
    ("Event", "data that a program has asked for"),
    ("EventOptions", "a number"),
    ("Events", "data that a program has asked for"),
    ("EventsState", "numbers"),
    ("Finding", "the name of a file, and a Position"),
    ("Flushed", "numbers"),
    ("Gap", "numbers"),
    ("GapReason", "numbers"),
    ("GapTotals", "numbers"),
    ("HolderStatusRow", "ids of keys, and names of processes"),
    ("IntoIter", "data that a program has asked for"),
    ("KeyHolder", "the name of a process"),
    ("KeyOptions", "numbers"),
    ("KeyRecord", "a Pool, which is shown"),
    ("KeyState", "a word"),
    ("KeyStatus", "ids of keys, and names of processes"),
    ("KeyStatusRow", "ids of keys, and names of processes"),
    ("KeyTotals", "numbers"),
    ("KeyType", "a word"),
    ("KeysArgs", "words, and ids of keys; only with the feature `clap`"),
    ("KeysError", "a KeyRecordError, which is shown, or names of processes; only with the feature `clap`"),
    ("Kind", "a word"),
    ("Lasts", "a word"),
    ("Lent", "a Session, which is shown; only with the feature `sea-orm`"),
    ("LentError", "the name of a pool, a line, and words of its own"),
    ("Lock", "the name of a table"),
    ("LogTopics", "names of topics"),
    ("MeasureOptions", "numbers"),
    ("MemoryLink", "numbers; only with a feature for tests"),
    ("MemoryListener", "a number; only with a feature for tests"),
    ("MemorySender", "a number; only with a feature for tests"),
    ("Metric", "words of its own"),
    ("Migrations", "the program's own files"),
    ("MissingKeys", "a word"),
    ("Mode", "names of columns"),
    ("MonitorOptions", "numbers"),
    ("MoveIn", "names of columns"),
    ("Needs", "a word"),
    ("NewEvent", "data that the program has made"),
    ("NoServerCount", "a word"),
    ("Normalization", "a word"),
    ("NotReady", "a word"),
    ("Notification", "data that a program has asked for"),
    ("NotificationSource", "a name that the program has chosen"),
    ("Observers", "what the program has made"),
    ("Obstacles", "names of triggers, policies and tables"),
    ("Original", "the number of keys"),
    ("OriginalError", "words of its own"),
    ("Orm", "a Handle, which is shown; only with the feature `sea-orm`"),
    ("OrmError", "in the tests of `orm`: it leaves out what `SeaORM` says of values"),
    ("OrmSession", "the name of a pool, and a line; only with the feature `sea-orm`"),
    ("OrmTx", "the name of a pool, a line, and numbers; only with the feature `sea-orm`"),
    ("Outcome", "a word"),
    ("Own", "a Conn, which is shown; only with the feature `sea-orm`"),
    ("Pace", "numbers"),
    ("Plan", "versions and names of files, and errors"),
    ("Planned", "a version: its SQL is not shown"),
    ("Pooler", "a word"),
    ("PoolerError", "the name of a pool, a line, and words of its own"),
    ("Position", "numbers"),
    ("Progress", "numbers"),
    ("Promotion", "names of processes"),
    ("RecordedKey", "what is in the table of keys"),
    ("RedisFigures", "numbers"),
    ("Refusal", "the key of a row, and words of the program or an EncryptionError"),
    ("Reindex", "names of columns"),
    ("Rekey", "the name of a column"),
    ("RekeyArgs", "what the user has said, and the number of keys"),
    ("RekeyError", "the name of a column, and a BatchError"),
    ("Rekeyed", "the name of a column, numbers, and Refusals"),
    ("Released", "a line, and a number"),
    ("Removed", "numbers"),
    ("Repair", "a word"),
    ("Repaired", "numbers"),
    ("Repeatable", "a name and a word"),
    ("Report", "versions and names of files; or numbers, keys of rows, and Refusals"),
    ("Retention", "numbers"),
    ("Retried", "a line, numbers, and an ErrorType"),
    ("Row", "the key of a row"),
    ("RowsLeft", "a Report"),
    ("Rule", "words of ours, and numbers"),
    ("Schema", "text of the program"),
    ("SealedColumns", "a RekeyArgs or a VerifyArgs"),
    ("Selection", "numbers, and names that the program has chosen"),
    ("Setting", "text of the program"),
    ("Severity", "a word"),
    ("Signal", "a word"),
    ("Signals", "words"),
    ("SlowQueries", "statements without literals, which the tests of monitoring show"),
    ("SlowQuery", "the same"),
    ("SlowSource", "a word"),
    ("SplitError", "a Position, and a word"),
    ("Standing", "ids of keys, and names of processes"),
    ("Startup", "a StartupPhase"),
    ("StartupPhase", "a word"),
    ("State", "of a version"),
    ("Statement", "a part of a text that a program has given"),
    ("StatementCount", "a statement without literals, which the tests of monitoring show"),
    ("StatementCounts", "the same"),
    ("StatementDone", "its own Debug leaves out literals, which the tests of db-core show"),
    ("Status", "versions and names of files"),
    ("Summary", "numbers"),
    ("Token", "a part of a text that a program has given"),
    ("Tokens", "a text that a program has given"),
    ("Traced", "names of tables, and numbers"),
    ("Trim", "numbers"),
    ("Trouble", "a word"),
    ("Unit", "a word"),
    ("Unsplittable", "a word"),
    ("VerifyArgs", "what the user has said"),
    ("WatchOptions", "a number"),
    ("WayBack", "a word"),
    ("WriterId", "a number"),
];

#[test]
fn every_public_type_is_shown_or_has_its_reason_not_to_be() {
    let crates = ["db-core", "db-notify", "db-events", "db-migrate", "db-layer"];
    let mut types = Vec::new();
    for name in crates {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
        public_types(&folder, &mut types);
    }
    types.sort();
    types.dedup();
    let mut known: Vec<&str> = SHOWN.iter().copied().chain(NOT_SHOWN.iter().map(|(name, _)| *name)).collect();
    known.sort_unstable();

    assert_eq!(types, known, "see the head of this file");
}

/// The names after `pub struct` and `pub enum` in a folder of sources.
fn public_types(folder: &std::path::Path, types: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            public_types(&path, types);
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source");
        let declared = text.lines().filter_map(|line| {
            let line = line.trim_start();
            line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "))
        });
        types.extend(
            declared.map(|rest| rest.chars().take_while(|it| it.is_alphanumeric()).collect::<String>()),
        );
    }
}
