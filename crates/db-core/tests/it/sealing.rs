//! Sealed values in columns.

use db_core::encryption::{Context, EncryptionError, Key, Keyring, Sealed, Strategy};
use db_testkit::TestDb;

use crate::support::pool;

#[db_testkit::test]
async fn a_sealed_value_unseals_only_in_its_own_row(db: TestDb) {
    let pool = pool(&db, 1);
    let keyring = Keyring::new(&Key::generate().expect("a key"));
    let place = |id: i32| Context::new("card", "number", id);
    sqlx::raw_sql("create table card (id int primary key, number bytea)")
        .execute(&db.pool())
        .await
        .expect("a table");
    for (id, number) in [(1, "4111"), (2, "5500")] {
        let sealed = keyring.seal_json(&number.to_owned(), &place(id)).expect("sealed");
        sqlx::query("insert into card values ($1, $2)")
            .bind(id)
            .bind(sealed)
            .execute(pool.handle())
            .await
            .expect("stored");
    }
    let stored = async |id: i32| -> Sealed<String> {
        sqlx::query_scalar("select number from card where id = $1")
            .bind(id)
            .fetch_one(pool.handle())
            .await
            .expect("a row")
    };

    assert_eq!(keyring.unseal_json(&stored(1).await, &place(1)).expect("the value of its own row"), "4111");

    // An attacker with access to the table but not to the key swaps two rows.
    sqlx::query("update card set number = (select number from card where id = 2) where id = 1")
        .execute(pool.handle())
        .await
        .expect("swapped");
    let moved = keyring.unseal_json(&stored(1).await, &place(1)).expect_err("the value of another row");
    assert!(matches!(moved, EncryptionError::NotAuthentic { .. }), "{moved}");
    assert!(moved.to_string().starts_with("card.number of row 1:"), "{moved}");
}
