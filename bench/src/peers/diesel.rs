//! `diesel-async` on its deadpool, which regards a connection as good unless a transaction on it is broken.

use diesel::IntoSql;
use diesel::sql_types::BigInt;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::Selects;

#[derive(Clone)]
pub(crate) struct Diesel(Pool<AsyncPgConnection>);

impl Diesel {
    pub(crate) fn new(url: &str, connections: usize) -> anyhow::Result<Self> {
        let mut fast = ManagerConfig::default();
        fast.recycling_method = RecyclingMethod::Fast;
        let manager = AsyncDieselConnectionManager::new_with_config(url, fast);
        Ok(Self(Pool::builder(manager).max_size(connections).build()?))
    }
}

impl Selects for Diesel {
    /// Uses the query builder, since diesel prepares raw text each time.
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        let mut conn = self.0.get().await?;
        Ok(diesel::select(n.into_sql::<BigInt>()).get_result(&mut conn).await?)
    }
}
