//! An entity with sealed columns.

use sea_orm::{ConnectionTrait, DbErr, Schema};

pub mod customer {
    use db_core::encryption::Sealed;
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "customer")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i64,
        pub name: String,
        pub iban: Sealed<String>,
        pub note: Option<Sealed<String>>,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// The table of the entity, made by its own schema.
///
/// # Errors
///
/// Those of the server.
pub async fn create_table(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    let schema = Schema::new(db.get_database_backend());
    db.execute(&schema.create_table_from_entity(customer::Entity)).await?;
    Ok(())
}
