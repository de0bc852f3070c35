//! How far opening is.

use std::path::Path;

use db_layer::encryption::{Key, Keyring};
use db_layer::{Config, Migrations, Options, StartupPhase};
use db_testkit::{Proxy, TestDb, until};

use crate::{config, options};

#[db_testkit::test]
async fn each_step_of_opening_is_told(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    // The tables of keys are there, so that they can be locked.
    drop(db_layer::open(options(&db).await).await.expect("opened"));
    proxy.refuse();
    let keys = Keyring::new(&Key::generate().expect("a key"));
    let through = Config::from_url(&proxy.url()).expect("the proxy's address");
    // With something to do, or the lock is not taken.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let migrations =
        Migrations::from_dir(folder).await.expect("migrations").with_repeatable("extra", "select 1");
    let options = options(&db).await.database(through).migrations(migrations).keys(keys);
    let startup = options.startup();
    assert_eq!(startup.phase(), StartupPhase::Waiting);

    let mut other = db.pool().acquire().await.expect("a connection");
    sqlx::migrate::Migrate::lock(&mut *other).await.expect("sqlx's lock");
    let mut tx = db.pool().begin().await.expect("a transaction");
    let lock = "do $$ declare t record; begin
        for t in select oid::regclass as name from pg_class where relkind = 'r' and relname like 'sealing_key%'
        loop execute format('lock table %s', t.name); end loop; end $$";
    sqlx::raw_sql(lock).execute(&mut *tx).await.expect("locked");
    let opening = tokio::spawn(db_layer::open(options));
    until("it waits for the server", async || startup.phase() == StartupPhase::Connecting).await;
    proxy.heal();
    until("it migrates", async || startup.phase() == StartupPhase::Migrating).await;
    sqlx::migrate::Migrate::unlock(&mut *other).await.expect("unlocked");
    until("it compares the keys", async || startup.phase() == StartupPhase::CheckingKeys).await;
    assert!(!startup.is_over());
    tx.rollback().await.expect("unlocked");
    let layer = opening.await.expect("no panic").expect("opened");

    assert!(startup.is_over());
    drop(layer);
    assert_eq!(startup.phase(), StartupPhase::Opened, "it stays so");
}

#[db_testkit::test]
async fn opening_that_fails_or_is_given_up_is_told(db: TestDb) {
    let wrong = Options::new(config(&db).with_database("nope"));
    let startup = wrong.startup();
    db_layer::open(wrong).await.expect_err("no database");
    assert_eq!(startup.phase(), StartupPhase::Failed);

    let given_up = options(&db).await;
    let startup = given_up.startup();
    drop(db_layer::open(given_up));
    assert_eq!(startup.phase(), StartupPhase::Failed);
}
