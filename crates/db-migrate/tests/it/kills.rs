//! A process that re-keys is killed again and again, while others write under the old key and the new one, and read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use db_core::Config;
use db_core::encryption::Strategy;
use db_migrate::SCHEMA;
use db_migrate::batches::Pace;
use db_migrate::rekey::{Mode, Rekey, verify};
use db_testkit::{TestDb, until};
use harness::Process;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, PgPool};
use tokio::task::JoinHandle;

use crate::batches::{count, sql};
use crate::config;
use crate::rekey::{iban, key, keyring};

const ROWS: i64 = 4000;
const KILLS: u32 = 50;

/// The process: it re-keys from one key to the other and back, as it is told, and notes each pass.
#[tokio::test]
async fn a_process_that_re_keys() {
    let Some((address, mut orders)) = harness::told() else { return };
    let config = Config::from_url(&address).expect("an address");
    while let Some(order) = orders.recv().await {
        let keys: Vec<u8> = order.split(' ').map(|key| key.parse().expect("a number")).collect();
        let pace = Pace::flat_out().rows_per_second(Some(8000)).workers(2);
        let rekey = Rekey::new(iban(), keyring(&keys), Mode::Rotate).pace(pace);
        harness::answer("begun");
        // The session of a process that was killed may still hold the lock.
        while let Err(error) = rekey.run(&config, std::future::pending()).await {
            assert!(error.to_string().contains("another process works on"), "{error}");
            tokio::task::yield_now().await;
        }
        harness::answer("done");
    }
}

/// Writes numbers that only grow to rows of its own, until it is told to stop. Returns the last number of each row.
fn writer(
    options: &PgConnectOptions,
    first: i64,
    strategy: Arc<dyn Strategy>,
    stop: &Arc<AtomicBool>,
) -> JoinHandle<HashMap<i64, u64>> {
    let (options, stop) = (options.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut connection = PgConnection::connect_with(&options).await.expect("a connection");
        let mut written = HashMap::new();
        for number in 1_u64.. {
            if stop.load(Relaxed) {
                break;
            }
            let id = first + i64::from(fastrand::u32(0..1000)) * 4;
            let place = iban().place(vec![id.to_string()]).expect("one column");
            let sealed = strategy.seal(number.to_string().as_bytes(), &place).expect("sealed");
            let update = sqlx::query("update clients set iban = $2 where id = $1").bind(id).bind(sealed);
            update.execute(&mut connection).await.expect("written");
            written.insert(id, number);
        }
        connection.close().await.expect("closed");
        written
    })
}

/// Reads rows, and unseals each by a keyring with both keys.
fn reader(options: &PgConnectOptions, stop: &Arc<AtomicBool>, reads: &Arc<AtomicU64>) -> JoinHandle<()> {
    let (options, stop, reads) = (options.clone(), Arc::clone(stop), Arc::clone(reads));
    tokio::spawn(async move {
        let mut connection = PgConnection::connect_with(&options).await.expect("a connection");
        let keyring = keyring(&[2, 1]);
        while !stop.load(Relaxed) {
            let from = i64::from(fastrand::u32(0..4000));
            let rows: Vec<(i64, Vec<u8>)> =
                sqlx::query_as("select id, iban from clients where id > $1 order by id limit 20")
                    .bind(from)
                    .fetch_all(&mut connection)
                    .await
                    .expect("rows");
            for (id, sealed) in rows {
                let place = iban().place(vec![id.to_string()]).expect("one column");
                keyring.unseal(&sealed, &place).expect("every row unseals at any time");
                reads.fetch_add(1, Relaxed);
            }
        }
        connection.close().await.expect("closed");
    })
}

async fn written(pool: &PgPool) -> i64 {
    count(
        pool,
        "select coalesce(sum(n_tup_upd), 0)::bigint from pg_stat_user_tables where relname = 'clients'",
    )
    .await
}

#[db_testkit::test]
async fn after_fifty_kills_every_row_unseals_and_has_what_its_last_writer_wrote(db: TestDb) {
    let pool = db.pool();
    sql(&pool, SCHEMA[0].up).await;
    sql(&pool, "create table clients (id bigint primary key, iban bytea) with (fillfactor = 50)").await;
    let old = keyring(&[1, 2]);
    let ids: Vec<i64> = (1..=ROWS).collect();
    let seal =
        |id: &i64| old.seal(b"0", &iban().place(vec![id.to_string()]).expect("one column")).expect("sealed");
    sqlx::query("insert into clients select * from unnest($1::bigint[], $2::bytea[])")
        .bind(&ids)
        .bind(ids.iter().map(seal).collect::<Vec<_>>())
        .execute(&pool)
        .await
        .expect("stored");
    sql(&pool, "analyze clients").await;
    let (stop, reads) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let writers = [
        writer(&db.options(), 1, keyring(&[1, 2]), &stop),
        writer(&db.options(), 2, keyring(&[2, 1]), &stop),
    ];
    let readers = [reader(&db.options(), &stop, &reads), reader(&db.options(), &stop, &reads)];

    let mut in_the_middle = 0;
    for kill in 0..KILLS {
        let mut process = Process::start("kills::a_process_that_re_keys", &db.url());
        // Now to one key, now to the other, so that there is work each time.
        let keys = if kill % 2 == 0 { "2 1" } else { "1 2" };
        assert_eq!(process.ask(keys).await, "begun");
        let (key, before) = (keys.split(' ').next().expect("a key"), id(keys));
        let under = format!(
            "select count(*) from clients where encode(substring(iban from 4 for 4), 'hex') = '{before}' and id % 4 in (0, 3)"
        );
        let rest = ROWS / 2;
        let target = i64::from(fastrand::u32(1..1900));
        until(&format!("kill {kill}: some rows are under key {key}"), async || {
            count(&pool, &under).await >= target
        })
        .await;
        process.kill();
        in_the_middle += u32::from(count(&pool, &under).await < rest);
    }
    stop.store(true, Relaxed);
    let mut expected: HashMap<i64, u64> = ids.iter().map(|id| (*id, 0)).collect();
    for writer in writers {
        expected.extend(writer.await.expect("no panic"));
    }
    for reader in readers {
        reader.await.expect("every row unsealed");
    }

    let stored = async || -> Vec<(i64, Vec<u8>)> {
        sqlx::query_as("select id, iban from clients").fetch_all(&pool).await.expect("rows")
    };
    let check = |rows: Vec<(i64, Vec<u8>)>, keys: &[u8]| {
        let keyring = keyring(keys);
        for (id, sealed) in rows {
            let place = iban().place(vec![id.to_string()]).expect("one column");
            let plain = keyring.unseal(&sealed, &place).expect("unsealed");
            assert_eq!(*plain, expected[&id].to_string().as_bytes(), "row {id}");
        }
    };
    check(stored().await, &[2, 1]);

    let mut process = Process::start("kills::a_process_that_re_keys", &db.url());
    assert_eq!(process.ask("2 1").await, "begun");
    assert_eq!(process.hear().await, "done");

    check(stored().await, &[2]);
    let counts = verify(&config(&db), &[iban()]).await.expect("counts").remove(0);
    let by_hand = "select count(*) from clients where substring(iban from 4 for 4) = decode('KEY', 'hex')";
    let by_hand = count(&pool, &by_hand.replace("KEY", &key(2).id().to_string())).await;
    assert_eq!((counts.keys.len(), by_hand, counts.other_than(key(2).id())), (1, ROWS, 0));
    assert!(in_the_middle > KILLS / 2, "only {in_the_middle} kills came before the end");
    println!("{} reads, {} rows were stored", reads.load(Relaxed), written(&pool).await);
}

/// The id of the first key of an order.
fn id(keys: &str) -> String {
    key(keys.split(' ').next().and_then(|key| key.parse().ok()).expect("a key")).id().to_string()
}
