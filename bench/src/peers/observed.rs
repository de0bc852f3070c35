//! sqlx's own pool, measured by `sqlx-otel`.

use sqlx::Postgres;
use sqlx_otel::{Pool, PoolBuilder};

use super::{PgPool, SELECT, Selects};

pub(crate) struct Observed(Pool<Postgres>);

impl Observed {
    /// With the pool's name, as ours has it, and without what only spans carry.
    pub(crate) fn new(pool: PgPool) -> Self {
        Self(PoolBuilder::from(pool.into_inner()).with_pool_name("api").build())
    }
}

impl Selects for Observed {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(SELECT).bind(n).fetch_one(&self.0).await?)
    }
}
