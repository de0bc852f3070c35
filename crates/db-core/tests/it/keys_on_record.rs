//! The keys on record, on a real server.

use std::sync::Arc;
use std::time::Duration;

use db_core::encryption::{
    Columns, Context, Key, KeyHolder, KeyId, KeyRecord, KeyRecordError, KeyState, KeyType, Keyring, Keys,
    MissingKeys, Promotion, SCHEMA, Standing, Strategy,
};
use db_core::{Config, Pool, PoolOptions};
use db_testkit::{Proxy, TestDb, poll_then_drop, until};

use crate::support::{PATIENCE, patient_pool};

const LEASE: Duration = Duration::from_mins(5);

fn key() -> Key {
    Key::generate().expect("a key")
}

fn ring(keys: &[&Key]) -> Keyring {
    keys[1..].iter().try_fold(Keyring::new(keys[0]), |ring, old| ring.with_retired(old)).expect("other ids")
}

fn process(name: &str) -> KeyHolder {
    KeyHolder::new(name, LEASE).expect("random bytes")
}

async fn record(db: &TestDb) -> KeyRecord {
    for schema in SCHEMA {
        sqlx::raw_sql(schema.up).execute(&db.pool()).await.expect("the tables");
    }
    KeyRecord::new(&patient_pool(db, 2))
}

async fn register(record: &KeyRecord, holder: &KeyHolder, keys: &[&Key]) -> Standing {
    record.register(holder, &ring(keys), MissingKeys::Refuse).await.expect("on record")
}

/// The keys on record and their states.
async fn states(record: &KeyRecord) -> Vec<(KeyId, KeyState)> {
    let mut states: Vec<_> =
        record.status().await.expect("read").keys.iter().map(|row| (row.key.id, row.key.state)).collect();
    states.sort_by_key(|(id, _)| *id);
    states
}

fn sorted<const N: usize>(mut wanted: [(KeyId, KeyState); N]) -> [(KeyId, KeyState); N] {
    wanted.sort_by_key(|(id, _)| *id);
    wanted
}

#[db_testkit::test]
async fn a_key_becomes_primary_when_every_living_process_has_it(db: TestDb) {
    let record = record(&db).await;
    let (old, new) = (key(), key());
    let [first, second, third, fourth] = ["first", "second", "third", "fourth"].map(process);

    assert_eq!(register(&record, &first, &[&old]).await.seals_under, Some(old.id()));
    register(&record, &second, &[&old]).await;
    let waiting = register(&record, &third, &[&new, &old]).await;
    assert_eq!((waiting.seals_under, waiting.candidate), (Some(old.id()), Some(new.id())));
    assert_eq!(waiting.waits_for, ["first", "second"]);
    assert_eq!(states(&record).await, sorted([(old.id(), KeyState::Primary), (new.id(), KeyState::Known)]));

    record.leave(&first).await.expect("gone");
    let promotion = record.promote(new.id(), false, "a person").await.expect("asked");
    assert_eq!(promotion, Promotion::WaitsFor(vec!["second".to_owned()]));
    record.leave(&second).await.expect("gone");
    let last = register(&record, &fourth, &[&new, &old]).await;

    assert_eq!((last.seals_under, last.candidate), (Some(new.id()), None));
    assert_eq!(states(&record).await, sorted([(old.id(), KeyState::Retired), (new.id(), KeyState::Primary)]));
    let rows =
        record.renew(&third, &ring(&[&new, &old]), Some(old.id())).await.expect("renewed").expect("a lease");
    assert!(rows.iter().any(|row| row.id == new.id() && row.state == KeyState::Primary), "{rows:?}");
}

#[db_testkit::test]
async fn a_process_that_has_died_holds_a_promotion_up_until_its_lease_ends(db: TestDb) {
    let record = record(&db).await;
    let (old, new) = (key(), key());
    let dead = KeyHolder::new("dead", Duration::from_millis(700)).expect("random bytes");
    let alive = process("alive");
    register(&record, &dead, &[&old]).await;
    assert_eq!(register(&record, &alive, &[&new, &old]).await.waits_for, ["dead"]);

    until("its lease ends", async || {
        record.promote(new.id(), false, "test").await.expect("asked") == Promotion::Done
    })
    .await;

    let back = record.renew(&dead, &ring(&[&old]), Some(old.id())).await.expect("asked");
    assert!(back.is_none(), "its lease has ended");
    let error =
        record.register(&dead, &ring(&[&old]), MissingKeys::Refuse).await.expect_err("it lacks the key");
    assert!(matches!(error, KeyRecordError::Missing { .. }), "{error}");
    let status = record.status().await.expect("read");
    let lease = |name: &str| status.holders.iter().find(|row| row.name == name).expect("a row").lease_s;
    assert!(lease("dead") < 0.0 && lease("alive") > 0.0, "{status:?}");
}

#[db_testkit::test]
async fn of_processes_that_start_at_once_all_seal_under_one_key(db: TestDb) {
    let record = record(&db).await;
    let keys: Vec<Key> = (0..6).map(|_| key()).collect();
    let all: Vec<&Key> = keys.iter().collect();

    let starts = (0..keys.len()).map(|nth| {
        let (record, mut mine) = (record.clone(), all.clone());
        mine.swap(0, nth);
        async move { register(&record, &process(&format!("p{nth}")), &mine).await }
    });
    futures_util::future::join_all(starts).await;

    let primaries =
        states(&record).await.into_iter().filter(|(_, state)| *state == KeyState::Primary).count();
    assert_eq!(primaries, 1);
}

#[db_testkit::test]
async fn a_promotion_by_force_leaves_processes_without_the_key(db: TestDb) {
    let record = record(&db).await;
    let (old, new) = (key(), key());
    let process = process("old");
    register(&record, &process, &[&old]).await;
    record.add(&ring(&[&new]), "a person").await.expect("known");

    assert_eq!(record.promote(new.id(), true, "a person").await.expect("asked"), Promotion::Done);

    let status = record.status().await.expect("read");
    let row = status.keys.iter().find(|row| row.key.id == new.id()).expect("a row");
    assert_eq!(
        (row.key.state, &*row.changed_by, &row.waits_for[..]),
        (KeyState::Primary, "a person", &["old".to_owned()][..])
    );
    let left = record.register(&process, &ring(&[&old]), MissingKeys::Warn).await.expect("warned");
    assert_eq!((left.seals_under, left.warnings.len()), (None, 1), "{left:?}");
}

#[db_testkit::test]
async fn only_a_known_key_is_retired_and_then_no_process_makes_it_primary(db: TestDb) {
    let record = record(&db).await;
    let (old, new, absent) = (key(), key(), key());
    register(&record, &process("first"), &[&old]).await;
    record.add(&ring(&[&new]), "a person").await.expect("known");

    record.retire(new.id(), "a person").await.expect("retired");
    record.retire(new.id(), "a person").await.expect("it is");
    let standing = register(&record, &process("second"), &[&new, &old]).await;

    assert_eq!((standing.seals_under, standing.candidate), (Some(old.id()), None));
    assert_eq!(standing.warnings.len(), 1, "{standing:?}");
    let primary = record.retire(old.id(), "a person").await.expect_err("it is primary");
    assert!(matches!(primary, KeyRecordError::WrongState { .. }), "{primary}");
    for error in [
        record.retire(absent.id(), "a person").await.expect_err("absent"),
        record.promote(absent.id(), true, "a person").await.expect_err("absent"),
    ] {
        assert_eq!(error.to_string(), format!("the key {} is not on record", absent.id()));
    }
}

#[db_testkit::test]
async fn without_the_tables_the_error_says_where_they_come_from(db: TestDb) {
    let record = KeyRecord::new(&patient_pool(&db, 1));

    let error =
        record.register(&process("p"), &ring(&[&key()]), MissingKeys::Refuse).await.expect_err("no tables");

    assert!(matches!(error, KeyRecordError::NoTables), "{error}");
    assert!(matches!(record.status().await, Err(KeyRecordError::NoTables)));
}

/// Whether the record has exactly one primary key, which each of its transactions leaves.
async fn primaries(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from sealing_keys where state = 'primary'")
        .fetch_one(&db.pool())
        .await
        .expect("counted")
}

#[db_testkit::test]
async fn a_promotion_that_is_cut_off_anywhere_is_done_or_undone_as_a_whole(db: TestDb) {
    record(&db).await;
    // The proxy delays answers, or one may be there before it is awaited.
    let proxy = Proxy::start(&db).expect("a proxy");
    proxy.latency(Duration::from_millis(1));
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let options = PoolOptions::api().max(2).acquire_timeout(PATIENCE);
    let record = KeyRecord::new(&Pool::new(&config, options));
    let keys = [key(), key()];
    let holder = process("p");
    register(&record, &holder, &[&keys[0], &keys[1]]).await;
    let (mut polls, mut done) = (0, false);
    while !done {
        polls += 1;
        let primary = states(&record).await.into_iter().find(|(_, state)| *state == KeyState::Primary);
        let other =
            keys.iter().map(Key::id).find(|id| Some(*id) != primary.map(|(id, _)| id)).expect("two keys");
        // Dropped after this number of polls.
        let promoted = poll_then_drop(record.promote(other, false, "p"), polls).await.transpose();
        done = promoted.expect("a promotion").is_some();
        until("the session is free again", async || primaries(&db).await == 1).await;
    }
    assert!(polls > 4, "it was cut off at {polls} places");
    tokio::time::timeout(PATIENCE, register(&record, &holder, &[&keys[0], &keys[1]]))
        .await
        .expect("no lock is left");
}

/// A table with a sealed column, the column, and values of two keys in it.
async fn sealed_rows(db: &TestDb, old: &Key, new: &Key) -> Columns {
    sqlx::raw_sql("create table \"Customers\" (id bigint primary key, \"I\" bytea, j bytea)")
        .execute(&db.pool())
        .await
        .expect("a table");
    let columns = Columns::default();
    let declare = |column, stored| {
        columns
            .declare::<String>("customers", column)
            .stored_in("Customers", stored)
            .key("id", KeyType::BigInt)
    };
    let (iban, _) = (declare("iban", "I").text(), declare("j", "j").text());
    let keys = Arc::new(Keys::away("not yet"));
    columns.unlock(keys.clone()).expect("no keys yet");
    for (id, key) in [(1_i64, old), (2, old), (3, new)] {
        keys.put(Keyring::new(key), None);
        sqlx::query("insert into \"Customers\" values ($1, $2)")
            .bind(id)
            .bind(iban.seal(id, &"DE02".to_owned()).expect("sealed"))
            .execute(&db.pool())
            .await
            .expect("stored");
    }
    sqlx::raw_sql("insert into \"Customers\" values (4, null), (5, ''), (6, '\\x01'), (7, 'plain text')")
        .execute(&db.pool())
        .await
        .expect("stored");
    columns
}

#[db_testkit::test]
async fn a_key_is_destroyed_when_nothing_needs_it_and_then_its_values_are_refused(db: TestDb) {
    let record = record(&db).await;
    let (old, new) = (key(), key());
    let columns = sealed_rows(&db, &old, &new).await;
    register(&record, &process("first"), &[&old]).await;
    let primary = record.destroy(old.id(), &columns, "a person").await.expect_err("it seals");
    assert!(matches!(primary, KeyRecordError::WrongState { .. }), "{primary}");
    record.promote(new.id(), true, "a person").await.expect_err("absent");
    record.add(&ring(&[&new]), "a person").await.expect("known");
    record.promote(new.id(), true, "a person").await.expect("by force");
    let in_use = record.destroy(old.id(), &columns, "a person").await.expect_err("a process seals under it");
    assert_eq!(
        in_use.to_string(),
        format!("the key {} cannot be destroyed: first may still seal under it", old.id())
    );
    sqlx::raw_sql("truncate sealing_key_holders").execute(&db.pool()).await.expect("gone");
    let needed = record.destroy(old.id(), &columns, "a person").await.expect_err("values need it");
    assert_eq!(
        needed.to_string(),
        format!("the key {} cannot be destroyed: customers.iban has 2 of its values", old.id())
    );
    let late: Vec<u8> = sqlx::query_scalar("delete from \"Customers\" where id <= 2 returning \"I\"")
        .fetch_one(&db.pool())
        .await
        .expect("a value of the old key");

    record.destroy(old.id(), &columns, "a person").await.expect("destroyed");

    assert_eq!(
        states(&record).await,
        sorted([(old.id(), KeyState::Destroyed), (new.id(), KeyState::Primary)])
    );
    let write = |column: &str| format!("insert into \"Customers\" (id, {column}) values (9, $1)");
    for column in ["\"I\"", "j"] {
        let error = sqlx::query(sqlx::AssertSqlSafe(write(column)))
            .bind(&late)
            .execute(&db.pool())
            .await
            .expect_err("a writer that was frozen");
        assert_eq!(
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
            Some("23514"),
            "{error}"
        );
    }
    sqlx::query("update \"Customers\" set j = \"I\"")
        .execute(&db.pool())
        .await
        .expect("all that is there is allowed");
    let again = record.destroy(old.id(), &columns, "a person").await.expect_err("it is destroyed");
    assert!(matches!(again, KeyRecordError::WrongState { state: KeyState::Destroyed, .. }), "{again}");
    let returned = record.register(&process("second"), &ring(&[&old, &new]), MissingKeys::Refuse).await;
    assert!(matches!(returned, Err(KeyRecordError::Destroyed(_))), "{returned:?}");
}

#[db_testkit::test]
async fn values_that_come_while_a_key_is_being_destroyed_are_counted_and_nothing_stays_behind(db: TestDb) {
    let record = record(&db).await;
    let (old, new) = (key(), key());
    let columns = sealed_rows(&db, &old, &new).await;
    record.add(&ring(&[&new, &old]), "a person").await.expect("primary and retired");
    let late: Vec<u8> = sqlx::query_scalar("delete from \"Customers\" where id <= 2 returning \"I\"")
        .fetch_one(&db.pool())
        .await
        .expect("a value of the old key");
    // A writer that has sealed under the old key and has not committed yet: a count does not see its row.
    let mut writer = db.pool().begin().await.expect("begun");
    sqlx::query("insert into \"Customers\" (id, j) values (9, $1)")
        .bind(&late)
        .execute(&mut *writer)
        .await
        .expect("stored");
    let destroying = tokio::spawn({
        let (record, id) = (record.clone(), old.id());
        async move { record.destroy(id, &columns, "a person").await }
    });
    db.until_sessions("it waits for the writer", |sessions| {
        sessions.iter().any(|session| session.wait.as_deref().is_some_and(|wait| wait.starts_with("Lock")))
    })
    .await;

    writer.commit().await.expect("committed");

    let error = destroying.await.expect("no panic").expect_err("a value needs it");
    assert!(error.to_string().contains("customers.j has values of it since a moment ago"), "{error}");
    assert_eq!(states(&record).await, sorted([(old.id(), KeyState::Retired), (new.id(), KeyState::Primary)]));
    let constraints: i64 =
        sqlx::query_scalar("select count(*) from pg_constraint where conname like 'not_sealed%'")
            .fetch_one(&db.pool())
            .await
            .expect("counted");
    assert_eq!(constraints, 0);
}

#[db_testkit::test]
async fn data_keys_are_on_record_wrapped_and_the_root_key_is_replaced_without_touching_a_value(db: TestDb) {
    let record = record(&db).await;
    let (old, new, direct) = (key(), key(), key());
    let by = "a person";
    let data = record.data_keys(&ring(&[&old]), None, by).await.expect("made");
    let place = Context::new("t", "c", 1);
    let sealed = data.seal(b"plain", &place).expect("sealed");

    let again = record.data_keys(&ring(&[&old]), None, by).await.expect("there is one");
    assert_eq!(**again.unseal(&sealed, &place).expect("the same key"), *b"plain");
    let wrong = record.data_keys(&ring(&[&direct]), None, by).await.expect_err("another root key");
    assert!(matches!(&wrong, KeyRecordError::RootKey(why) if why.contains(&old.id().to_string())), "{wrong}");

    let mut holder = process("first");
    holder.set_roots(&ring(&[&old]));
    record.register(&holder, &again, MissingKeys::Refuse).await.expect("on record");
    let root = ring(&[&new, &old]);
    let waiting = record.rewrap(&root, false).await.expect("asked");
    assert_eq!(waiting, Promotion::WaitsFor(vec!["first".to_owned()]));
    holder.set_roots(&root);
    record.renew(&holder, &again, None).await.expect("renewed").expect("a lease");
    assert_eq!(record.rewrap(&root, false).await.expect("asked"), Promotion::Done);

    let alone = record.data_keys(&ring(&[&new]), None, by).await.expect("without the old root key");
    assert_eq!(**alone.unseal(&sealed, &place).expect("untouched"), *b"plain");
    let (second, state) = record.add_data_key(&root, by).await.expect("made");
    assert_eq!(state, KeyState::Known);
    let both = record.data_keys(&root, None, by).await.expect("both");
    assert_eq!(both.keys().map(Key::id).collect::<Vec<_>>(), [second, data.keys().next().expect("one").id()]);
}

#[db_testkit::test]
async fn processes_that_start_at_once_make_one_data_key(db: TestDb) {
    let record = record(&db).await;
    let root = ring(&[&key()]);

    let starts = (0..6).map(|_| record.data_keys(&root, None, "a process"));
    let rings = futures_util::future::join_all(starts).await;

    let ids = |ring: &Keyring| ring.keys().map(Key::id).collect::<Vec<_>>();
    let first = ids(rings[0].as_ref().expect("data keys"));
    assert_eq!(first.len(), 1);
    for ring in &rings {
        assert_eq!(ids(ring.as_ref().expect("data keys")), first);
    }
}

#[db_testkit::test]
async fn values_of_given_keys_stay_readable_when_data_keys_take_over(db: TestDb) {
    let record = record(&db).await;
    let direct = key();
    register(&record, &process("before"), &[&direct]).await;

    let data = record.data_keys(&ring(&[&direct]), Some(&ring(&[&direct])), "after").await.expect("made");

    let ids: Vec<KeyId> = data.keys().map(Key::id).collect();
    assert_eq!((ids.len(), ids[1]), (2, direct.id()));
    let standing = record.register(&process("after"), &data, MissingKeys::Refuse).await.expect("on record");
    assert_eq!((standing.seals_under, standing.candidate), (Some(direct.id()), Some(ids[0])));
}
