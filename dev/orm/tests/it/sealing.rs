//! Sealed values in entities.

use std::sync::Arc;

use db_core::encryption::{Columns, Key, KeyType, Keyring};
use db_testkit::TestDb;
use orm::sealed::{create_table, customer};
use sea_orm::ActiveValue::Set;
use sea_orm::IntoActiveModel;
use sea_orm::prelude::*;

use crate::support;

#[db_testkit::test]
async fn an_entity_loads_and_saves_sealed_values_byte_for_byte_and_the_column_unseals_them(db: TestDb) {
    let pool = support::pool(&db, 1);
    let orm = pool.handle().orm();
    create_table(&orm).await.expect("a table");
    let columns = Columns::default();
    let declare = |column| columns.declare::<String>("customer", column).key("id", KeyType::BigInt);
    let (iban, note) = (declare("iban").text(), declare("note").text());
    columns.unlock(Arc::new(Keyring::new(&Key::generate().expect("a key")))).expect("no keys yet");
    columns.check(&pool).await.expect("the schema of the entity fits");

    let sealed = iban.seal(7, &"DE02".to_owned()).expect("sealed");
    let new = customer::ActiveModel {
        id: Set(7),
        name: Set("Ada".to_owned()),
        iban: Set(sealed.clone()),
        note: Set(None),
    };
    new.insert(&orm).await.expect("stored");

    let loaded = customer::Entity::find_by_id(7).one(&orm).await.expect("an answer").expect("a row");
    assert_eq!((&loaded.iban, &loaded.note), (&sealed, &None));
    assert_eq!(iban.unseal(loaded.id, &loaded.iban).expect("its row"), "DE02");
    assert!(format!("{loaded:?}").contains("iban: Sealed(51 bytes)"), "{loaded:?}");

    let mut changed = loaded.into_active_model();
    changed.name = Set("Grace".to_owned());
    changed.note = Set(Some(note.seal(7, &"pays late".to_owned()).expect("sealed")));
    let saved = changed.update(&orm).await.expect("updated");
    let stored: Vec<u8> =
        sqlx::query_scalar("select iban from customer where id = 7").fetch_one(&pool).await.expect("a row");

    assert_eq!((saved.name.as_str(), saved.iban.as_bytes()), ("Grace", sealed.as_bytes()));
    assert_eq!(stored, sealed.as_bytes());
    assert_eq!(note.unseal(7, saved.note.as_ref().expect("a note")).expect("its row"), "pays late");
}
