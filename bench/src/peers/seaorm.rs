//! `SeaORM`: on its default pool, which is sqlx's, and on ours.

use anyhow::Context;
use db_core::{Config, Pool, PoolOptions};
use sea_orm::ActiveValue::{Set, Unchanged};
use sea_orm::entity::prelude::*;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionSession,
    TransactionTrait,
};

use super::{Finds, SELECT, Selects, Test, Updates};

mod row {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "bench_rows")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) id: i64,
        pub(crate) n: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[derive(Debug, Clone)]
pub(crate) struct SeaOrm(DatabaseConnection);

impl SeaOrm {
    pub(crate) async fn new(url: &str, connections: u32, test: Test) -> anyhow::Result<Self> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(connections);
        if let Test::Off = test {
            options.test_before_acquire(false);
        }
        Ok(Self(Database::connect(options).await?))
    }
}

/// The same entities by `orm()` of `db-core`.
#[derive(Debug, Clone)]
pub(crate) struct OursOrm(Pool);

impl OursOrm {
    /// The shipped defaults, but for the size. Must be called inside a runtime.
    pub(crate) fn new(config: &Config, connections: u32) -> Self {
        Self(Pool::new(config, PoolOptions::api().max(connections)))
    }
}

async fn find(db: &impl ConnectionTrait, id: i64) -> anyhow::Result<i64> {
    Ok(row::Entity::find_by_id(id).one(db).await?.context("no row")?.n)
}

/// Begin, update the row by its key, commit.
async fn update(db: &impl TransactionTrait, id: i64) -> anyhow::Result<u64> {
    let tx = db.begin().await?;
    let row = row::ActiveModel { id: Unchanged(id), n: Set(id) };
    let done = row::Entity::update_many().set(row).filter(row::Column::Id.eq(id)).exec(&tx).await?;
    tx.commit().await?;
    Ok(done.rows_affected)
}

impl Selects for SeaOrm {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, SELECT, [n.into()]);
        let row = self.0.query_one_raw(statement).await?.context("no row")?;
        Ok(row.try_get_by_index(0)?)
    }
}

impl Finds for SeaOrm {
    async fn find(&self, id: i64) -> anyhow::Result<i64> {
        find(&self.0, id).await
    }
}

impl Finds for OursOrm {
    async fn find(&self, id: i64) -> anyhow::Result<i64> {
        find(&self.0.handle().orm(), id).await
    }
}

impl Updates for SeaOrm {
    async fn update(&self, id: i64) -> anyhow::Result<u64> {
        update(&self.0, id).await
    }
}

impl Updates for OursOrm {
    async fn update(&self, id: i64) -> anyhow::Result<u64> {
        update(&self.0.handle().orm(), id).await
    }
}
