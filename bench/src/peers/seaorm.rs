//! `SeaORM` on its default pool, which is sqlx's.

use anyhow::Context;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};

use super::{SELECT, Selects};

#[derive(Debug, Clone)]
pub(crate) struct SeaOrm(DatabaseConnection);

impl SeaOrm {
    pub(crate) async fn new(url: &str, connections: u32) -> anyhow::Result<Self> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(connections);
        Ok(Self(Database::connect(options).await?))
    }
}

impl Selects for SeaOrm {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, SELECT, [n.into()]);
        let row = self.0.query_one_raw(statement).await?.context("no row")?;
        Ok(row.try_get_by_index(0)?)
    }
}
