//! Encryption keys that change while a service runs.

use std::time::Duration;

use db_layer::db_core::encryption::{
    Column, Columns, Key, KeyRecord, KeyRecordError, KeySource, KeySources, KeyState, KeyType, Keyring,
    MissingKeys, SCHEMA,
};
use db_layer::{AtOpen, Config, Db, KeyOptions, OpenError, Options};
use db_testkit::{TestDb, until};
use harness::{Process, answer, told};
use secrecy::ExposeSecret;

use crate::{PATIENCE, config};

pub(crate) async fn keys_on_record(db: &TestDb) {
    for schema in SCHEMA {
        sqlx::raw_sql(schema.up).execute(&db.pool()).await.expect("the tables");
    }
}

async fn tables(db: &TestDb) {
    keys_on_record(db).await;
    sqlx::raw_sql(
        "create table customers (id bigint primary key, iban bytea);
         insert into customers select n from generate_series(1, 20) n",
    )
    .execute(&db.pool())
    .await
    .expect("tables");
}

fn key() -> Key {
    Key::generate().expect("a key")
}

fn ring(keys: &[&Key]) -> Keyring {
    keys[1..].iter().try_fold(Keyring::new(keys[0]), |ring, old| ring.with_retired(old)).expect("other ids")
}

fn often() -> KeyOptions {
    KeyOptions::default().renew(Duration::from_millis(50))
}

/// A service with one sealed column.
struct Service {
    db: Db,
    iban: Column<String>,
}

impl Service {
    async fn open(
        config: Config,
        keys: impl Into<KeySources>,
        holding: KeyOptions,
    ) -> Result<Self, OpenError> {
        let columns = Columns::default();
        let iban = columns.declare("customers", "iban").key("id", KeyType::BigInt).text();
        let options = Options::new(config).keys(keys).holding(holding).columns(columns);
        Ok(Self { db: db_layer::open(options).await?, iban })
    }

    async fn write(&self, id: i64) -> anyhow::Result<()> {
        let sealed = self.iban.seal(id, &format!("DE{id}"))?;
        sqlx::query("update customers set iban = $2 where id = $1")
            .bind(id)
            .bind(sealed)
            .execute(self.db.backend())
            .await?;
        Ok(())
    }

    async fn read(&self, id: i64) -> anyhow::Result<()> {
        let found = sqlx::query_scalar("select iban from customers where id = $1").bind(id);
        let Some(sealed) = found.fetch_one(self.db.api()).await? else { return Ok(()) };
        anyhow::ensure!(self.iban.unseal(id, &sealed)? == format!("DE{id}"), "another value");
        Ok(())
    }
}

/// How many rows are sealed under a key.
async fn rows_under(db: &TestDb, key: &Key) -> i64 {
    sqlx::query_scalar("select count(*) from customers where substr(iban, 4, 4) = $1")
        .bind(key.id().as_bytes())
        .fetch_one(&db.pool())
        .await
        .expect("counted")
}

async fn state(service: &Service, key: &Key) -> Option<KeyState> {
    let status = KeyRecord::new(service.db.backend().pool()).status().await.expect("read");
    status.keys.iter().find(|row| row.key.id == key.id()).map(|row| row.key.state)
}

#[db_testkit::test]
async fn a_wrong_key_ends_the_opening_with_the_ids_of_both(db: TestDb) {
    tables(&db).await;
    let (right, wrong) = (key(), key());
    let first = Service::open(config(&db), right.clone(), often()).await.expect("opened");
    first.write(1).await.expect("written");

    let error = Service::open(config(&db), wrong.clone(), often()).await.err().expect("a wrong key");

    assert!(matches!(error, OpenError::Keys(KeyRecordError::Missing { .. })), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("{} (primary)", right.id()))
            && text.contains(&format!("given {}:", wrong.id())),
        "{text}"
    );

    let by_choice = often().missing(MissingKeys::Warn);
    let other = Service::open(config(&db), wrong, by_choice).await.expect("opened by choice");
    let refused = other.write(2).await.expect_err("the primary key is missing");
    assert!(
        refused.to_string().starts_with("customers.iban of row 2: the encryption keys are away: "),
        "{refused}"
    );
    let unknown = other.read(1).await.expect_err("its key is missing");
    assert!(unknown.to_string().contains(&right.id().to_string()), "{unknown}");
    let health = other.db.health().sealing.expect("keys");
    assert_eq!((health.primary, health.totals.away, health.totals.unknown_key), (None, 1, 1), "{health:?}");
}

#[db_testkit::test]
async fn without_the_tables_opening_says_so_and_by_choice_needs_none(db: TestDb) {
    sqlx::raw_sql("create table customers (id bigint primary key, iban bytea)")
        .execute(&db.pool())
        .await
        .expect("a table");

    let error = Service::open(config(&db), key(), often()).await.err().expect("no tables");
    assert!(matches!(error, OpenError::Keys(KeyRecordError::NoTables)), "{error}");

    let service = Service::open(config(&db), key(), often().recorded(false)).await.expect("opened");
    service.write(1).await.expect("sealed");
}

#[db_testkit::test]
async fn values_that_are_not_sealed_yet_are_read_by_choice_only(db: TestDb) {
    tables(&db).await;
    sqlx::raw_sql("update customers set iban = 'DE1' where id = 1").execute(&db.pool()).await.expect("plain");
    let key = key();
    let strict = Service::open(config(&db), key.clone(), often()).await.expect("opened");
    let lenient = Service::open(config(&db), key, often().reads_plain(true)).await.expect("opened");

    lenient.read(1).await.expect("as it is");
    let refused = strict.read(1).await.expect_err("it is not sealed");
    assert_eq!(refused.to_string(), "customers.iban of row 1: this is not a sealed value");
    lenient.write(1).await.expect("sealed from now on");
    strict.read(1).await.expect("sealed");
}

#[db_testkit::test]
async fn a_lazy_opening_neither_seals_nor_unseals_before_it_is_on_record(db: TestDb) {
    tables(&db).await;
    let columns = Columns::default();
    let iban = columns.declare::<String>("customers", "iban").key("id", KeyType::BigInt).text();
    let options = Options::new(config(&db)).keys(key()).holding(often()).columns(columns).lazy();
    let layer = db_layer::open(options).await.expect("opened");
    db.until_sessions("nothing is connected", <[_]>::is_empty).await;

    let early = iban.seal(1, &"DE".to_owned()).expect_err("not on record");
    assert!(early.to_string().contains("the database was not asked yet which key seals"), "{early}");
    until("the attempt has put it on record", async || iban.seal(1, &"DE".to_owned()).is_ok()).await;
    tokio::time::timeout(PATIENCE, layer.keys().expect("keys").ready()).await.expect("they are there");
}

#[db_testkit::test]
async fn a_shutdown_takes_the_process_off_the_record_and_others_go_on_at_once(db: TestDb) {
    tables(&db).await;
    let (old, new) = (key(), key());
    let first = Service::open(config(&db), old.clone(), often()).await.expect("opened");
    let second = Service::open(config(&db), ring(&[&new, &old]), often()).await.expect("opened");
    until("it is waited for", async || {
        let health = second.db.health().sealing.expect("keys");
        health.candidate == Some(new.id()) && health.waits_for.len() == 1 && health.primary == Some(old.id())
    })
    .await;

    assert!(first.db.shutdown(PATIENCE).await.is_clean());

    until("the new key seals", async || second.db.keys().expect("keys").seals_under() == Some(new.id()))
        .await;
    assert_eq!(state(&second, &old).await, Some(KeyState::Retired));
}

#[db_testkit::test]
async fn values_under_the_former_key_are_sealed_anew_once_another_key_is_primary(db: TestDb) {
    tables(&db).await;
    let (old, new) = (key(), key());
    let first = Service::open(config(&db), old.clone(), often()).await.expect("opened");
    for id in 1..=20 {
        first.write(id).await.expect("sealed");
    }
    let second = Service::open(config(&db), ring(&[&new, &old]), often()).await.expect("opened");
    assert_eq!(rows_under(&db, &new).await, 0);

    first.db.shutdown(PATIENCE).await;

    until("all rows are sealed under the new key", async || rows_under(&db, &new).await == 20).await;
    until("nothing is left", async || {
        let health = second.db.health().sealing.expect("keys");
        health.rekeying.is_some_and(|state| state.left == Some(0))
    })
    .await;
    for id in 1..=20 {
        second.read(id).await.expect("what was written");
    }
    assert!(second.db.shutdown(PATIENCE).await.is_clean());
}

#[db_testkit::test]
async fn values_under_another_key_end_the_opening_by_choice(db: TestDb) {
    tables(&db).await;
    let (old, new) = (key(), key());
    let first = Service::open(config(&db), old.clone(), often()).await.expect("opened");
    first.write(1).await.expect("sealed");
    first.db.shutdown(PATIENCE).await;
    let columns = Columns::default();
    let _: Column<String> = columns.declare("customers", "iban").key("id", KeyType::BigInt).text();

    let options = Options::new(config(&db)).keys(ring(&[&new, &old])).holding(often()).columns(columns);
    let error = db_layer::open(options.rekey(AtOpen::Refuse)).await.expect_err("a value is left");

    assert!(matches!(error, OpenError::Rekey(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "customers.iban has 1 values that are not sealed under the key that seals now: run `rekey`, or open with re-keying"
    );
}

#[db_testkit::test]
async fn a_process_whose_row_is_gone_registers_again(db: TestDb) {
    tables(&db).await;
    let service = Service::open(config(&db), key(), often()).await.expect("opened");
    sqlx::raw_sql("truncate sealing_key_holders").execute(&db.pool()).await.expect("gone");

    until("it is there again", async || {
        let count: i64 = sqlx::query_scalar("select count(*) from sealing_key_holders")
            .fetch_one(&db.pool())
            .await
            .expect("counted");
        count == 1
    })
    .await;
    service.write(1).await.expect("sealed");
}

/// A folder of keys.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(name: &str, key: &Key) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.put(name, key);
        folder
    }

    fn put(&self, name: &str, key: &Key) {
        self.write(name, key.to_hex().expose_secret());
    }

    /// Replaces a file as a whole, as a mounted secret is.
    fn write(&self, name: &str, text: &str) {
        let new = self.0.path().join(".new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.0.path().join(name)).expect("replaced");
    }

    fn source(&self) -> KeySources {
        KeySources::new(KeySource::Folder(self.0.path().into()))
    }

    fn file(&self, name: &str) -> KeySource {
        KeySource::File(self.0.path().join(name))
    }
}

fn alarm(service: &Service) -> Option<String> {
    service.db.health().sealing.expect("keys").alarm
}

#[db_testkit::test]
async fn a_process_that_lacks_the_primary_key_seals_nothing_until_it_has_it(db: TestDb) {
    tables(&db).await;
    let (old, new) = (key(), key());
    let folder = Folder::of("1", &old);
    let late = Service::open(config(&db), folder.source(), often()).await.expect("opened");
    late.write(1).await.expect("sealed");

    // As if it had been frozen for longer than its lease, while another process made its key primary.
    sqlx::raw_sql("truncate sealing_key_holders").execute(&db.pool()).await.expect("gone");
    let record = KeyRecord::new(late.db.backend().pool());
    record.add(&ring(&[&new]), "test").await.expect("known");
    record.promote(new.id(), true, "test").await.expect("promoted");
    until("it notices", async || late.db.keys().expect("keys").seals_under().is_none()).await;
    let refused = late.write(2).await.expect_err("it lacks the primary key");
    assert!(refused.to_string().contains("the encryption keys are away"), "{refused}");
    until("somebody is told", async || alarm(&late).is_some()).await;

    folder.put("2", &new);
    folder.write("primary", "2");
    until("it has the key", async || late.write(2).await.is_ok()).await;
    assert_eq!(rows_under(&db, &new).await, 1);
    late.read(1).await.expect("under the old key");
    until("nobody needs to look", async || alarm(&late).is_none()).await;
}

#[db_testkit::test]
async fn a_new_key_in_the_folder_seals_without_a_restart_once_all_have_it(db: TestDb) {
    tables(&db).await;
    let (old, new) = (key(), key());
    let folders = [Folder::of("2026-01", &old), Folder::of("2026-01", &old)];
    let mut services = Vec::new();
    for folder in &folders {
        services.push(Service::open(config(&db), folder.source(), often()).await.expect("opened"));
    }
    let change = |folder: &Folder| {
        folder.put("2026-07", &new);
        folder.write("primary", "2026-07");
    };

    change(&folders[0]);
    until("the first one waits", async || {
        let health = services[0].db.health().sealing.expect("keys");
        health.candidate == Some(new.id()) && health.waits_for.len() == 1
    })
    .await;
    services[0].write(1).await.expect("sealed");
    assert_eq!(rows_under(&db, &new).await, 0);
    change(&folders[1]);

    for service in &services {
        until("the new key seals", async || service.db.keys().expect("keys").seals_under() == Some(new.id()))
            .await;
        service.read(1).await.expect("under the old key");
    }
}

#[db_testkit::test]
async fn a_wrong_or_empty_key_file_raises_an_alarm_and_the_keys_stay(db: TestDb) {
    tables(&db).await;
    let right = key();
    let folder = Folder::of("key", &right);
    let service =
        Service::open(config(&db), KeySources::new(folder.file("key")), often()).await.expect("opened");
    service.write(1).await.expect("sealed");

    for (text, complaint) in [
        (
            key().to_hex().expose_secret(),
            format!("the database has values under the keys {} (primary)", right.id()),
        ),
        ("", "the encryption keys cannot be read again: the key file".to_owned()),
        ("no key", "the encryption keys cannot be read again: the key file".to_owned()),
    ] {
        folder.write("key", text);
        until("somebody is told", async || alarm(&service).is_some_and(|text| text.starts_with(&complaint)))
            .await;
        service.write(2).await.expect("sealed under the key that is right");
        folder.put("key", &right);
        until("it is over", async || alarm(&service).is_none()).await;
    }
    assert_eq!(rows_under(&db, &right).await, 2);
}

#[db_testkit::test]
async fn age_gives_the_key_as_a_command(db: TestDb) {
    tables(&db).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (identity, plain, sealed) = (path("identity"), path("plain"), path("key.age"));
    let run = |program: &str, arguments: &[&str]| {
        let ran = std::process::Command::new(program).args(arguments).output();
        let output = ran.unwrap_or_else(|error| panic!("{program}: {error}: install the package `age`"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = key();
    std::fs::write(&plain, key.to_hex().expose_secret()).expect("written");
    run("age-keygen", &["-o", &identity]);
    run("age", &["--encrypt", "--identity", &identity, "--output", &sealed, &plain]);

    let command =
        |identity: &str| KeySources::new(KeySource::Command(format!("age -d -i {identity} {sealed}")));
    let service = Service::open(config(&db), command(&identity), often()).await.expect("opened");
    service.write(1).await.expect("sealed");
    assert_eq!(rows_under(&db, &key).await, 1);

    let other = path("other");
    run("age-keygen", &["-o", &other]);
    let error = Service::open(config(&db), command(&other), often()).await.err().expect("another identity");
    let text = error.to_string();
    assert!(
        text.starts_with("the key command `age`: it failed, exit status: 1; its last line was: "),
        "{text}"
    );
}

/// A process of the service under load. Orders: `open KEYS` with the key that seals first, as hexadecimal digits with commas
/// between them; `stop`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_as_told() {
    let Some((address, mut orders)) = told() else { return };
    let config = Config::from_url(&address).expect("an address");
    let order = orders.recv().await.expect("an order");
    let keys: Vec<Key> =
        order.trim_start_matches("open ").split(',').map(|hex| Key::from_hex(hex).expect("a key")).collect();
    let keys: Vec<&Key> = keys.iter().collect();
    let service = match Service::open(config, ring(&keys), often()).await {
        Ok(service) => service,
        Err(error) => return answer(&format!("refused: {error}")),
    };
    answer("open");
    let (mut requests, mut failed) = (0, Vec::new());
    loop {
        for id in 1..=20 {
            requests += 2;
            failed.extend(service.write(id).await.err());
            failed.extend(service.read(21 - id).await.err());
        }
        if orders.try_recv().is_ok() {
            break;
        }
    }
    service.db.shutdown(PATIENCE).await;
    let first = failed.first().map(ToString::to_string).unwrap_or_default();
    answer(&format!("{requests} requests, {} failed: {first}", failed.len()));
}

async fn start(db: &TestDb, keys: &[&Key]) -> Process {
    let mut process = Process::start("keys::serve_as_told", &db.url());
    let hex: Vec<_> = keys.iter().map(|key| key.to_hex().expose_secret().to_owned()).collect();
    assert_eq!(process.ask(&format!("open {}", hex.join(","))).await, "open");
    process
}

async fn stop(mut process: Process) {
    let said = process.ask("stop").await;
    assert!(said.contains(" requests, 0 failed") && !said.starts_with("0 "), "{said}");
}

#[db_testkit::test]
async fn three_processes_are_replaced_one_by_one_and_no_request_fails(db: TestDb) {
    tables(&db).await;
    let (old, new) = (key(), key());
    let mut before = Vec::new();
    for _ in 0..3 {
        before.push(start(&db, &[&old]).await);
    }
    let mut after = Vec::new();
    for process in before {
        after.push(start(&db, &[&new, &old]).await);
        assert_eq!(rows_under(&db, &new).await, 0, "while a process lacks the key");
        stop(process).await;
    }
    until("all rows are sealed under the new key", async || rows_under(&db, &new).await == 20).await;
    for process in after {
        stop(process).await;
    }

    // Rolled back: the program of before, which needs the new key as an old one.
    let mut refused = Process::start("keys::serve_as_told", &db.url());
    let said = refused.ask(&format!("open {}", old.to_hex().expose_secret())).await;
    assert!(said.contains("give it the missing ones as old keys"), "{said}");
    stop(start(&db, &[&old, &new]).await).await;
    assert_eq!(rows_under(&db, &new).await, 20);
}

#[db_testkit::test]
async fn no_row_has_a_key_that_is_not_on_record_when_processes_are_killed(db: TestDb) {
    tables(&db).await;
    let keys: Vec<Key> = (0..12).map(|_| key()).collect();
    // A lease that has ended holds nothing up, and that of a killed process lasts for a minute.
    let end_leases = "update sealing_key_holders set expires = clock_timestamp()";
    for nth in 1..keys.len() {
        let given: Vec<&Key> = keys[..=nth].iter().rev().collect();
        let mut process = Process::start("keys::serve_as_told", &db.url());
        let hex: Vec<_> = given.iter().map(|key| key.to_hex().expose_secret().to_owned()).collect();
        process.tell(&format!("open {}", hex.join(",")));
        // Killed somewhere between its first statement on the record and its first rows.
        until("it has begun", async || {
            db.sessions().await.expect("sessions").iter().any(|session| session.application_name == "backend")
        })
        .await;
        for _ in 0..nth {
            tokio::task::yield_now().await;
        }
        process.kill();
        db.until_sessions("its sessions have ended", |sessions| {
            sessions.iter().all(|session| session.application_name != "backend")
        })
        .await;

        let (unknown, primaries): (i64, i64) = sqlx::query_as(
            "select (select count(*) from customers c where iban is not null
                       and not exists (select from sealing_keys k where k.id = substr(c.iban, 4, 4))),
                    (select count(*) from sealing_keys where state = 'primary')",
        )
        .fetch_one(&db.pool())
        .await
        .expect("counted");
        assert_eq!(unknown, 0, "after {nth} kills");
        assert!(primaries <= 1, "after {nth} kills");
        sqlx::raw_sql(end_leases).execute(&db.pool()).await.expect("ended");
    }
    let all: Vec<&Key> = keys.iter().rev().collect();
    stop(start(&db, &all).await).await;
    assert_eq!(rows_under(&db, &keys[11]).await, 20);
}
