//! sqlx's own pool.

use sqlx::postgres::PgPoolOptions;

use super::{SELECT, Selects, Takes, UPDATE, Updates};

#[derive(Debug, Clone)]
pub(crate) struct PgPool(sqlx::PgPool);

/// Whether a connection is pinged before it is handed out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Test {
    Default,
    Off,
}

impl PgPool {
    pub(crate) async fn new(url: &str, connections: u32, test: Test) -> anyhow::Result<Self> {
        let options = PgPoolOptions::new().max_connections(connections);
        let options = match test {
            Test::Default => options,
            Test::Off => options.test_before_acquire(false),
        };
        Ok(Self(options.connect(url).await?))
    }

    pub(super) fn into_inner(self) -> sqlx::PgPool {
        self.0
    }
}

impl Selects for PgPool {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(SELECT).bind(n).fetch_one(&self.0).await?)
    }
}

impl Takes for PgPool {
    async fn take(&self) -> anyhow::Result<()> {
        drop(self.0.acquire().await?);
        Ok(())
    }
}

impl Updates for PgPool {
    async fn update(&self, id: i64) -> anyhow::Result<u64> {
        let mut tx = self.0.begin().await?;
        let done = sqlx::query(UPDATE).bind(id).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}
