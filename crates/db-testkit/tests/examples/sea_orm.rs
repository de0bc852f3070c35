use db_testkit::TestDb;
use sea_orm::entity::prelude::*;
use sea_orm::{Set, SqlxPostgresConnector};

#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "word")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i32,
    pub t: String,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

#[db_testkit::test]
async fn a_word_is_stored(db: TestDb) -> Result<(), Box<dyn std::error::Error>> {
    sqlx::query("create table word (id serial primary key, t text not null)").execute(&db.pool()).await?;
    let orm = SqlxPostgresConnector::from_sqlx_postgres_pool(db.pool());

    let word = ActiveModel { t: Set("hello".to_owned()), ..Default::default() }.insert(&orm).await?;

    assert_eq!(Entity::find_by_id(word.id).one(&orm).await?.map(|found| found.t), Some("hello".to_owned()));
    Ok(())
}
