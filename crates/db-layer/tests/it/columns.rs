//! Declared columns of a database that is opened.

use db_layer::encryption::{Column, Columns, ColumnsError, Key, KeyType, Keyring};
use db_layer::{OpenError, Options};
use db_testkit::TestDb;

use crate::config;
use crate::keys::keys_on_record;

fn keyring() -> Keyring {
    Keyring::new(&Key::generate().expect("a key"))
}

fn iban(columns: &Columns) -> Column<String> {
    columns.declare("customers", "iban").key("id", KeyType::BigInt).text()
}

async fn customers(db: &TestDb) {
    sqlx::raw_sql("create table customers (id bigint primary key, iban bytea)")
        .execute(&db.pool())
        .await
        .expect("a table");
    keys_on_record(db).await;
}

#[db_testkit::test]
async fn opening_gives_the_columns_their_keys_and_they_seal(db: TestDb) {
    customers(&db).await;
    let columns = Columns::default();
    let iban = iban(&columns);

    let layer =
        db_layer::open(Options::new(config(&db)).keys(keyring()).columns(columns)).await.expect("opened");

    let sealed = iban.seal(1, &"DE02".to_owned()).expect("sealed");
    sqlx::query("insert into customers values (1, $1)")
        .bind(&sealed)
        .execute(layer.api())
        .await
        .expect("stored");
    assert_eq!(iban.unseal(1, &sealed).expect("unsealed"), "DE02");
}

#[db_testkit::test]
async fn columns_that_do_not_fit_end_the_opening_with_all_of_them(db: TestDb) {
    let columns = Columns::default();
    let _ = iban(&columns);
    let _ = columns.declare::<String>("orders", "note").key("id", KeyType::BigInt).text();

    let error = db_layer::open(Options::new(config(&db)).keys(keyring()).columns(columns))
        .await
        .expect_err("no table");

    assert!(
        matches!(&error, OpenError::Columns(ColumnsError::Misfits(misfits)) if misfits.len() == 2),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "the declared columns do not fit the database:\n  \
         customers.iban: there is no table \"customers\"\n  \
         orders.note: there is no table \"orders\""
    );
    db.until_sessions("every connection is closed", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn without_a_key_columns_end_the_opening_before_it_connects(db: TestDb) {
    let columns = Columns::default();
    let _ = iban(&columns);

    let nowhere = Options::new(config(&db).with_database("nope")).columns(columns);
    let error = db_layer::open(nowhere).await.expect_err("no key");

    assert!(matches!(error, OpenError::NoEncryptionKey), "{error}");
}

#[db_testkit::test]
async fn a_lazy_opening_does_not_compare(db: TestDb) {
    let columns = Columns::default();
    let _ = iban(&columns);
    let options = Options::new(config(&db)).keys(keyring()).columns(columns.clone()).lazy();

    let layer = db_layer::open(options).await.expect("nothing is connected to");

    assert!(matches!(columns.check(layer.api().pool()).await, Err(ColumnsError::Misfits(_))));
    customers(&db).await;
    columns.check(layer.api().pool()).await.expect("it fits now");
}
