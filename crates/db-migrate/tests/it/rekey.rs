//! Re-keying of sealed columns.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use clap::Parser;
use db_core::Config;
use db_core::encryption::{
    Column, Columns, Context, Declared, EncryptionError, Fallback, Key, KeyId, KeyType, Keyring,
    NoEncryption, Sealed, Strategy, Zeroizing,
};
use db_migrate::batches::Pace;
use db_migrate::command::{CommandError, SealedColumns};
use db_migrate::rekey::{
    AtOpen, Counts, Mode, MoveIn, Rekey, RekeyError, Rekeyed, at_open, obstacles, verify,
};
use db_testkit::{Proxy, TestDb, until};
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use crate::batches::{as_role, at_once, count, sql};
use crate::config;

pub(crate) fn key(first: u8) -> Key {
    Key::from_bytes((first..first + 32).collect()).expect("32 bytes")
}

/// Seals under the first key, and unseals under all.
pub(crate) fn keyring(keys: &[u8]) -> Arc<Keyring> {
    let (first, rest) = keys.split_first().expect("a key");
    let keyring = rest.iter().fold(Keyring::new(&key(*first)), |keyring, retired| {
        keyring.with_retired(&key(*retired)).expect("another id")
    });
    Arc::new(keyring)
}

pub(crate) fn iban() -> Declared {
    Declared::new("customers", "iban").stored_in("clients", "iban").key("id", KeyType::BigInt)
}

fn place(id: i64) -> Context {
    iban().place(vec![id.to_string()]).expect("one column")
}

/// Clients 1 to `rows` with the values `value 1` and so on, sealed by this strategy.
async fn clients(pool: &PgPool, rows: i64, strategy: &dyn Strategy) {
    sql(pool, "create table clients (id bigint primary key, iban bytea)").await;
    let ids: Vec<i64> = (1..=rows).collect();
    let values: Vec<Vec<u8>> = ids
        .iter()
        .map(|id| strategy.seal(format!("value {id}").as_bytes(), &place(*id)).expect("sealed"))
        .collect();
    sqlx::query("insert into clients select * from unnest($1::bigint[], $2::bytea[])")
        .bind(ids)
        .bind(values)
        .execute(pool)
        .await
        .expect("stored");
}

async fn put(pool: &PgPool, id: i64, value: Option<&[u8]>) {
    let put = sqlx::query("update clients set iban = $2 where id = $1").bind(id).bind(value).execute(pool);
    put.await.expect("stored");
}

async fn stored(pool: &PgPool) -> BTreeMap<i64, Option<Vec<u8>>> {
    let rows: Vec<_> = sqlx::query_as("select id, iban from clients").fetch_all(pool).await.expect("rows");
    rows.into_iter().collect()
}

fn rekey(strategy: Arc<dyn Strategy>, mode: Mode) -> Rekey {
    Rekey::new(iban(), strategy, mode).pace(Pace::flat_out())
}

async fn run(rekey: &Rekey, config: &Config) -> Result<Rekeyed, RekeyError> {
    let run = rekey.run(config, pending());
    tokio::time::timeout(Duration::from_mins(1), run).await.expect("an end in time")
}

async fn counts(config: &Config) -> Counts {
    verify(config, &[iban()]).await.expect("counts").remove(0)
}

fn id(first: u8) -> String {
    key(first).id().to_string()
}

#[db_testkit::test]
async fn values_are_sealed_under_the_key_that_seals_now_and_the_rest_is_told(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    clients(&pool, 3000, &*keyring(&[1])).await;
    let anew = keyring(&[2]).seal(b"value 10", &place(10)).expect("sealed");
    let unknown = keyring(&[9]).seal(b"value 11", &place(11)).expect("sealed");
    let moved = keyring(&[1]).seal(b"value 1", &place(1)).expect("sealed");
    for (id, value) in [
        (10, Some(&anew[..])),
        (11, Some(&unknown)),
        (12, Some(b"plain")),
        (13, Some(b"")),
        (14, None),
        (15, Some(&anew[..30])),
        (16, Some(&[3, 1, 2])),
        (17, Some(&moved)),
    ] {
        put(&pool, id, value).await;
    }

    let done = run(&rekey(keyring(&[2, 1]), Mode::Rotate), &config).await.expect("re-keyed");

    let Rekeyed { report, left, .. } = &done;
    assert_eq!((report.written, report.refused, *left, done.is_complete()), (2992, 6, Some(6), false));
    let refusals: Vec<_> = report.refusals.iter().map(ToString::to_string).collect();
    let of =
        |id: i64, why: &str| format!("the row ({id}) cannot be changed: customers.iban of row {id}: {why}");
    assert_eq!(refusals[0], of(11, &format!("sealed under key {}, which is not in the keyring", id(9))));
    assert_eq!(refusals[1], of(12, "this is not a sealed value"));
    assert_eq!(refusals[3], of(15, "this is not a whole sealed value: it was cut off"));
    assert!(refusals[5].contains("was altered, or sealed for another row"), "{}", refusals[5]);
    let after = stored(&pool).await;
    assert_eq!(after[&10].as_ref(), Some(&anew), "it is not sealed again");
    for (id, value) in after.iter().filter(|(id, _)| !(11..=17).contains(*id)) {
        let plain =
            keyring(&[2]).unseal(value.as_deref().expect("a value"), &place(*id)).expect("the new key alone");
        assert_eq!(plain.as_slice(), format!("value {id}").as_bytes());
    }
    let counts = counts(&config).await;
    assert_eq!(counts.keys, BTreeMap::from([(id(1), 1), (id(2), 2993), (id(9), 1)]));
    assert_eq!((counts.plain, counts.empty, counts.newer, counts.cut, counts.null), (2, 1, 1, 1, 1));
    assert_eq!((counts.rows(), counts.other_than(key(2).id())), (3000, 6));

    let error = run(&rekey(keyring(&[2, 1]), Mode::Rotate).stop_at_refusals(true), &config).await;
    let error = error.expect_err("row 11");
    assert!(error.to_string().contains(&refusals[0]), "{error}");
}

#[db_testkit::test]
async fn plain_values_are_sealed_and_sealed_ones_become_plain(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    clients(&pool, 200, &NoEncryption).await;
    put(&pool, 1, Some(&keyring(&[1]).seal(b"value 1", &place(1)).expect("sealed"))).await;
    put(&pool, 2, Some(b"")).await;
    put(&pool, 3, None).await;
    let strategy: Arc<dyn Strategy> = Arc::new(Fallback::new(keyring(&[2, 1]), NoEncryption));

    let done = run(&rekey(Arc::clone(&strategy), Mode::Encrypt), &config).await.expect("sealed");
    assert!(done.is_complete(), "{done:?}");
    assert_eq!((done.report.written, counts(&config).await.keys), (199, BTreeMap::from([(id(2), 199)])));
    assert_eq!(stored(&pool).await[&2].as_ref().map(Vec::len), Some(47), "an empty value is a value");

    let risky = keyring(&[2]).seal(b"\x01 looks sealed", &place(9)).expect("sealed");
    put(&pool, 9, Some(&risky)).await;
    let done = run(&rekey(strategy, Mode::Decrypt), &config).await.expect("decrypted");
    assert_eq!((done.report.written, done.report.refused, done.left), (198, 1, Some(1)));
    assert_eq!(stored(&pool).await[&4].as_deref(), Some(&b"value 4"[..]));
    assert_eq!(stored(&pool).await[&9].as_ref(), Some(&risky), "it would be taken for a sealed value");

    let error = run(&rekey(Arc::new(NoEncryption), Mode::Encrypt), &config).await.expect_err("no key");
    assert!(matches!(error, RekeyError::NoSealingKey { .. }), "{error}");
}

/// Each key gives the value a place of its own: of two columns, of a uuid, in a padded column.
#[db_testkit::test]
async fn values_of_every_kind_of_key_stay_readable_by_their_column(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    sql(
        &pool,
        "create table two (tenant text collate \"C\", nr integer, note bytea, primary key (nr, tenant));
         create table one (id uuid primary key, note bytea)",
    )
    .await;
    let declare = |columns: &Columns| {
        let two =
            columns.declare::<String>("two", "note").key("tenant", KeyType::Text).key("nr", KeyType::Integer);
        let one = columns.declare::<String>("one", "note").key("id", KeyType::Uuid).padded(64);
        (two.text(), one.text())
    };
    let (old, new) = (Columns::default(), Columns::default());
    let (two, one) = declare(&old);
    old.unlock(keyring(&[1])).expect("no keys yet");
    let uuid = "0198a9c2-7d3f-7000-8000-0000000000ff";
    for nr in 1..=50 {
        let sealed = two.seal(("a,\"b", nr), &format!("note {nr}")).expect("sealed");
        let put =
            sqlx::query("insert into two values ('a,\"b', $1, $2)").bind(nr).bind(sealed).execute(&pool);
        put.await.expect("stored");
    }
    let sealed = one.seal(uuid, &"note".to_owned()).expect("sealed");
    sqlx::query("insert into one values ($1::uuid, $2)")
        .bind(uuid)
        .bind(sealed)
        .execute(&pool)
        .await
        .expect("stored");

    for column in old.declared() {
        let done = Rekey::new(column, keyring(&[2, 1]), Mode::Rotate).run(&config, pending()).await;
        assert!(done.expect("re-keyed").is_complete());
    }

    let (two, one) = declare(&new);
    new.unlock(keyring(&[2])).expect("no keys yet");
    let unsealed = async |column: &Column<String>, select: &'static str, nr: i32| -> String {
        let sealed: Sealed<String> =
            sqlx::query_scalar(select).bind(nr).fetch_one(&pool).await.expect("a row");
        if nr == 0 { column.unseal(uuid, &sealed) } else { column.unseal(("a,\"b", nr), &sealed) }
            .expect("unsealed")
    };
    assert_eq!(unsealed(&two, "select note from two where nr = $1", 7).await, "note 7");
    assert_eq!(unsealed(&one, "select note from one where $1 = 0", 0).await, "note");
    assert_eq!(count(&pool, "select octet_length(note)::bigint from one").await, 47 + 64, "still padded");
}

/// Keys in which a writer changes rows at the moment at which the value of row 50 is unsealed.
#[derive(Debug)]
struct Interrupted {
    keys: Arc<Keyring>,
    options: PgConnectOptions,
    writes: &'static str,
    is_done: AtomicBool,
}

impl Strategy for Interrupted {
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        self.keys.seal(plain, place)
    }

    fn unseal(&self, sealed: &[u8], at: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        if *at == place(50) && !self.is_done.swap(true, Relaxed) {
            at_once(&self.options, self.writes);
        }
        self.keys.unseal(sealed, at)
    }

    fn sealing_key(&self) -> Option<KeyId> {
        self.keys.sealing_key()
    }
}

#[db_testkit::test]
async fn a_key_that_a_writer_changes_meanwhile_is_named_if_its_value_was_not_sealed_anew(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    clients(&pool, 100, &*keyring(&[1])).await;
    let anew = keyring(&[1]).seal(b"value 51", &place(1001)).expect("sealed");
    sqlx::query("create table anew as select $1 as iban").bind(anew).execute(&pool).await.expect("a table");
    let writes = "update clients set id = 1000 where id = 50;
         update clients set id = 1001, iban = anew.iban from anew where id = 51";
    let keys = keyring(&[2, 1]);
    let interrupted = Interrupted {
        keys: Arc::clone(&keys),
        options: db.options(),
        writes,
        is_done: AtomicBool::new(false),
    };

    let done = run(&rekey(Arc::new(interrupted), Mode::Rotate), &config).await.expect("re-keyed");

    let report = &done.report;
    assert_eq!((report.written, report.missed, report.refused, done.left), (99, 2, 1, Some(1)));
    assert_eq!(report.refusals[0].key, ["1000"]);
    let value = stored(&pool).await[&1001].clone().expect("a value");
    assert_eq!(*keys.unseal(&value, &place(1001)).expect("unsealed"), b"value 51");
}

#[db_testkit::test]
async fn a_writer_under_the_old_key_is_re_keyed_after_the_pass_that_missed_it(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    clients(&pool, 400, &*keyring(&[1])).await;
    // Re-keyed rows go back to the old key, once, behind the run.
    sql(
        &pool,
        "create table late (id bigint, iban bytea); insert into late select * from clients where id <= 5;
         create function again() returns trigger language plpgsql as $$
         begin
           if new.id = 300 and exists (select from late) then
             update clients set iban = late.iban from late where late.id = clients.id;
             delete from late;
           end if;
           return null;
         end $$;
         create trigger again after update on clients for each row execute function again()",
    )
    .await;

    let slowly = rekey(keyring(&[2, 1]), Mode::Rotate).pace(Pace::flat_out().rows_per_second(Some(1000)));
    let done = run(&slowly, &config).await.expect("re-keyed");

    assert!(done.is_complete(), "{done:?}");
    assert_eq!(counts(&config).await.keys, BTreeMap::from([(id(2), 400)]));
    assert_eq!(done.report.written, 405);
}

#[tokio::test]
async fn rows_that_row_security_would_hide_are_not_left_out_of_a_count() {
    let setup = "create table clients (id bigint primary key, iban bytea); alter table clients owner to app;
         alter table clients enable row level security, force row level security; create policy none on clients using (false)";
    let (_db, _server, config) = as_role(setup).await;

    let counted = verify(&config, &[iban()]).await.expect_err("row security").to_string();
    let left = rekey(keyring(&[1]), Mode::Rotate).left(&config).await.expect_err("row security").to_string();

    assert!(
        counted.contains("row-level security") && left.contains("row-level security"),
        "{counted}, {left}"
    );
}

#[db_testkit::test]
async fn what_re_keying_would_meet_is_listed(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    sql(
        &pool,
        "create table clients (id bigint primary key, iban bytea) partition by range (id);
         create table clients_1 partition of clients for values from (1) to (100);
         create function note() returns trigger language plpgsql as $$ begin return null; end $$;
         create trigger noted after update on clients_1 for each row execute function note();
         create trigger inserted after insert on clients_1 for each row execute function note();
         create policy mine on clients using (true)",
    )
    .await;

    let met = obstacles(&config, &[iban()]).await.expect("a list").remove(0);

    assert_eq!(met.triggers, ["clients_1.noted"]);
    assert_eq!(met.policies, ["clients.mine"]);
    assert!(met.foreign_tables.is_empty());

    sql(
        &pool,
        "drop table clients; create table clients (id bigint primary key, iban bytea);
         create foreign data wrapper none; create server far foreign data wrapper none;
         create foreign table distant () inherits (clients) server far",
    )
    .await;
    let met = obstacles(&config, &[iban()]).await.expect("a list").remove(0);
    assert_eq!(met.foreign_tables, ["distant"]);
}

#[db_testkit::test]
async fn opening_does_not_even_look_when_it_is_to_leave_the_values(db: TestDb) {
    clients(&db.pool(), 1, &*keyring(&[1])).await;
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("an address");

    let background = at_open(&config, vec![iban()], keyring(&[2, 1]), Mode::Rotate, AtOpen::Leave).await;

    assert!(background.expect("opened").is_none());
    assert_eq!(proxy.accepted(), 0);
}

#[db_testkit::test]
async fn opening_refuses_warns_or_re_keys_in_the_background(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    clients(&pool, 100, &*keyring(&[1])).await;
    let open = async |strategy: Arc<dyn Strategy>, choice| {
        at_open(&config, vec![iban()], strategy, Mode::Rotate, choice).await
    };

    let refused = open(keyring(&[2, 1]), AtOpen::Refuse).await.expect_err("100 rows");
    assert_eq!(
        refused.to_string(),
        "customers.iban has 100 values that are not sealed under the key that seals now: run `rekey`, or open with re-keying"
    );
    assert!(open(keyring(&[2, 1]), AtOpen::Warn).await.expect("a warning").is_none());
    assert!(open(keyring(&[1]), AtOpen::Refuse).await.expect("nothing to do").is_none());
    assert!(open(Arc::new(NoEncryption), AtOpen::Refuse).await.expect("no keys").is_none());
    assert_eq!(counts(&config).await.keys, BTreeMap::from([(id(1), 100)]));

    let background = open(keyring(&[2, 1]), AtOpen::Run).await.expect("opened").expect("a task");
    until("all is re-keyed", async || background.state().left == Some(0)).await;
    assert_eq!(counts(&config).await.keys, BTreeMap::from([(id(2), 100)]));
    background.stop().await;
}

/// As after a handshake: the key that seals is not the one that sealed when the database was opened.
#[derive(Debug)]
struct Promoted {
    first: Arc<Keyring>,
    then: Arc<Keyring>,
    is_second: AtomicBool,
}

impl Promoted {
    fn now(&self) -> &Keyring {
        let is_second = self.is_second.load(Relaxed);
        if is_second { &self.then } else { &self.first }
    }
}

impl Strategy for Promoted {
    fn seal(&self, plain: &[u8], place: &Context) -> Result<Vec<u8>, EncryptionError> {
        self.now().seal(plain, place)
    }

    fn unseal(&self, sealed: &[u8], place: &Context) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        self.now().unseal(sealed, place)
    }

    fn sealing_key(&self) -> Option<KeyId> {
        self.now().sealing_key()
    }
}

#[db_testkit::test]
async fn the_background_re_keys_again_when_another_key_seals(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    clients(&pool, 100, &*keyring(&[1])).await;
    let strategy = Arc::new(Promoted {
        first: keyring(&[1, 2]),
        then: keyring(&[2, 1]),
        is_second: AtomicBool::new(false),
    });
    let of: Arc<dyn Strategy> = Arc::clone(&strategy) as _;
    let background = at_open(&config, vec![iban()], of, Mode::Rotate, AtOpen::Run).await.expect("opened");
    let background = background.expect("a task");
    until("nothing is left under the first key", async || background.state().left == Some(0)).await;
    assert_eq!(counts(&config).await.keys, BTreeMap::from([(id(1), 100)]));

    strategy.is_second.store(true, Relaxed);

    until("all is re-keyed", async || counts(&config).await.keys == BTreeMap::from([(id(2), 100)])).await;
    drop(background);
}

/// The command line of a program.
#[derive(Debug, Parser)]
enum Cli {
    #[command(flatten)]
    Sealed(SealedColumns),
}

/// Runs a line of words. Returns what it printed, and whether nothing is left.
async fn command(
    db: &TestDb,
    declared: &[Declared],
    strategy: Arc<dyn Strategy>,
    words: &[&str],
) -> Result<(String, bool), CommandError> {
    let Cli::Sealed(command) = Cli::try_parse_from(["shop"].iter().chain(words)).expect("a command");
    let mut printed = Vec::new();
    let is_done = command.run(&config(db), declared, strategy, &mut printed, pending()).await?;
    Ok((String::from_utf8(printed).expect("text"), is_done))
}

#[db_testkit::test]
async fn the_command_line_shows_what_is_to_be_done_does_it_and_verifies(db: TestDb) {
    let pool = db.pool();
    clients(&pool, 100, &*keyring(&[1])).await;
    sql(
        &pool,
        "create function note() returns trigger language plpgsql as $$ begin return null; end $$;
         create trigger noted after update on clients for each row execute function note()",
    )
    .await;
    let columns = [iban()];
    let say = async |words: &[&str]| command(&db, &columns, keyring(&[2, 1]), words).await.expect("done");

    let dry = say(&["rekey", "--dry-run"]).await;
    let expected = format!(
        "customers.iban: 100 rows\n  under key {}: 100\n  to be changed: 100\n  triggers that would fire: clients.noted\n",
        id(1)
    );
    assert_eq!(dry, (expected, true));
    assert!(!say(&["verify"]).await.1, "they are under the old key");

    put(&pool, 7, Some(&keyring(&[9]).seal(b"x", &place(7)).expect("sealed"))).await;
    let (printed, is_done) = say(&["rekey", "--pause", "0", "--workers", "2"]).await;
    let lines: Vec<_> = printed.lines().collect();
    assert!(lines[0].starts_with("customers.iban: 99 values stored in "), "{printed}");
    assert!(
        lines[0].ends_with(", 1 left") && lines[1].starts_with("  the row (7) cannot be changed: "),
        "{printed}"
    );
    assert!(!is_done);

    put(&pool, 7, None).await;
    assert!(say(&["rekey", "rotate", "--json"]).await.1);
    let (printed, is_done) = say(&["verify", "--column", "customers.iban", "--json"]).await;
    let counts = format!(
        "{{\"column\":\"customers.iban\",\"keys\":{{\"{}\":99}},\"plain\":0,\"empty\":0,\"newer\":0,\"cut\":0,\"null\":1}}\n",
        id(2)
    );
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    assert_eq!((read(&printed), is_done), (read(&counts), true));

    let error =
        command(&db, &columns, keyring(&[2]), &["verify", "--column", "t.c"]).await.expect_err("unknown");
    assert_eq!(error.to_string(), "no sealed column t.c is declared; these are: customers.iban");
}

/// The sealed columns of Concourse, with the tables' keys.
const CONCOURSE: [(&str, &str, &str, KeyType); 8] = [
    ("teams", "legacy_auth", "id", KeyType::Integer),
    ("resources", "config", "id", KeyType::Integer),
    ("jobs", "config", "id", KeyType::Integer),
    ("resource_types", "config", "id", KeyType::Integer),
    ("prototypes", "config", "id", KeyType::Integer),
    ("builds", "private_plan", "id", KeyType::Integer),
    ("cert_cache", "cert", "domain", KeyType::Text),
    ("pipelines", "var_sources", "id", KeyType::Integer),
];

/// A key, the sealed value, and the old one with its nonce.
type Moved = (String, Option<Vec<u8>>, Option<String>, Option<String>);

#[db_testkit::test]
async fn a_dump_of_concourse_is_moved_in_by_the_command_line_while_it_is_read(db: TestDb) {
    let pool = db.pool();
    sql(&pool, include_str!("concourse.sql")).await;
    let mut words =
        vec!["rekey".to_owned(), "move-in".to_owned(), "--rows-per-second".to_owned(), "100".to_owned()];
    for key in [
        "4145533235364b65792d33324368617261637465727331323334353637383930",
        "4145533132384b65792d313643686172",
    ] {
        words.extend(["--original-key-hex".to_owned(), key.to_owned()]);
    }
    for (table, column, key, kind) in CONCOURSE {
        sql(&pool, &format!("alter table {table} add {column}_sealed bytea")).await;
        words.extend(["--move".to_owned(), format!("{table}.{column}_sealed={column},nonce({key} {kind})")]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let strategy = keyring(&[1]);
    let original = db_core::encryption::Original::default()
        .with_key(b"AES256Key-32Characters1234567890")
        .and_then(|original| original.with_key(b"AES128Key-16Char"))
        .expect("keys");

    // What a program reads while it is moved: the sealed value, else the old one.
    let read = async || {
        for (table, column, key, kind) in CONCOURSE {
            let declared = Declared::new(table, format!("{column}_sealed")).key(key, kind);
            let rows: Vec<Moved> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
                "select {key}::text, {column}_sealed, {column}, nonce from {table}"
            )))
            .fetch_all(&pool)
            .await
            .expect("rows");
            assert_eq!(rows.len(), 10);
            for (key, sealed, value, nonce) in rows {
                let place = declared.place(vec![key.clone()]).expect("one column");
                let plain = match (sealed, value) {
                    (Some(sealed), None) => Some(strategy.unseal(&sealed, &place).expect("unsealed")),
                    (None, Some(value)) => Some(original.read(&value, nonce.as_deref()).expect("read")),
                    (None, None) => None,
                    (Some(_), Some(_)) => panic!("{place} has two values"),
                };
                let n: String = key.chars().filter(char::is_ascii_digit).collect();
                let expected = match &*n {
                    "9" => Some(String::new()),
                    "10" => None,
                    n => Some(format!("{{\"table\":\"{table}\",\"n\":{n},\"text\":\"grüße\"}}")),
                };
                assert_eq!(
                    plain.map(|plain| String::from_utf8(plain.to_vec()).expect("text")),
                    expected,
                    "{place}"
                );
            }
        }
    };
    read().await;
    let moving = command(&db, &[], Arc::clone(&strategy) as _, &words);
    let mut moving = std::pin::pin!(moving);
    let (printed, is_done) = loop {
        tokio::select! {
            done = &mut moving => break done.expect("moved"),
            () = read() => {}
        }
    };
    read().await;

    assert!(is_done, "{printed}");
    assert_eq!(printed.matches(": 9 values stored in").count(), 8, "{printed}");
    for (table, column, ..) in CONCOURSE {
        assert_eq!(
            count(
                &pool,
                &format!("select count(*) from {table} where {column} is not null or nonce is not null")
            )
            .await,
            0
        );
        assert_eq!(
            count(&pool, &format!("select count(*) from {table} where {column}_sealed is not null")).await,
            9
        );
    }
}

#[db_testkit::test]
async fn old_columns_are_kept_on_request_and_any_old_form_is_read_by_a_function(db: TestDb) {
    let (pool, config) = (db.pool(), config(&db));
    sql(
        &pool,
        "create table clients (id bigint primary key, iban bytea, old text);
         insert into clients (id, old) select n, 'old:' || n from generate_series(1, 50) n; update clients set old = 'bad' where id = 3",
    )
    .await;
    let from = MoveIn::new(["old"], |texts| {
        let Some(text) = texts[0] else { return Ok(None) };
        let plain = text.strip_prefix("old:").ok_or("it is not of the old form")?;
        Ok(Some(plain.as_bytes().to_vec().into()))
    });

    let kept =
        run(&rekey(keyring(&[1]), Mode::MoveIn(from.clone().keep_old())), &config).await.expect("moved");
    assert_eq!((kept.report.written, kept.report.refused, kept.left), (49, 1, Some(1)));
    assert_eq!(count(&pool, "select count(*) from clients where old is null").await, 0);
    // With both, the old value is the newer one: an old program has written it since.
    let moved = run(&rekey(keyring(&[1]), Mode::MoveIn(from)), &config).await.expect("moved");
    assert_eq!((moved.report.written, moved.report.refused), (49, 1));
    assert_eq!(count(&pool, "select count(*) from clients where old is not null").await, 1);
    let refusal = moved.report.refusals[0].to_string();
    assert_eq!(refusal, "the row (3) cannot be changed: it is not of the old form");
}
