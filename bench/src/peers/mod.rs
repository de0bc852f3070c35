//! Our pool and the peers', configured as their users do.

mod alone;
mod bb8;
mod deadpool;
mod diesel;
mod observed;
mod ours;
pub(crate) mod pgbench;
mod pgpool;
mod seaorm;

use anyhow::ensure;

pub(crate) use alone::Alone;
pub(crate) use bb8::Bb8;
pub(crate) use deadpool::Deadpool;
pub(crate) use diesel::Diesel;
pub(crate) use observed::Observed;
pub(crate) use ours::Ours;
pub(crate) use pgpool::{PgPool, Test};
pub(crate) use seaorm::{OursOrm, SeaOrm};

use crate::load::Work;

/// The statement that every driver prepares once on each connection.
pub(crate) const SELECT: &str = "select $1::int8";

/// Reads one row by its key, in the words of `SeaORM`.
const FIND: &str =
    r#"SELECT "bench_rows"."id", "bench_rows"."n" FROM "bench_rows" WHERE "bench_rows"."id" = $1 LIMIT $2"#;

/// Updates one row by its key.
const UPDATE: &str = "update bench_rows set n = n + 1 where id = $1";

/// Acquires a connection, runs one query, and releases it.
pub(crate) trait Selects: Send + Sync + 'static {
    fn select(&self, n: i64) -> impl Future<Output = anyhow::Result<i64>> + Send;
}

/// Acquires a connection and releases it.
pub(crate) trait Takes: Send + Sync + 'static {
    fn take(&self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Updates a row in a transaction of its own. Returns the number of updated rows.
pub(crate) trait Updates: Send + Sync + 'static {
    fn update(&self, id: i64) -> impl Future<Output = anyhow::Result<u64>> + Send;
}

/// Reads one row by its key, and returns its number.
pub(crate) trait Finds: Send + Sync + 'static {
    fn find(&self, id: i64) -> impl Future<Output = anyhow::Result<i64>> + Send;
}

pub(crate) struct Select<P>(pub(crate) P);

impl<P: Selects> Work for Select<P> {
    async fn once(&self, _task: u32, n: i64) -> anyhow::Result<()> {
        let answer = self.0.select(n).await?;
        ensure!(answer == n, "asked for {n}, and got {answer}");
        Ok(())
    }
}

pub(crate) struct Take<P>(pub(crate) P);

impl<P: Takes> Work for Take<P> {
    async fn once(&self, _task: u32, _n: i64) -> anyhow::Result<()> {
        self.0.take().await
    }
}

pub(crate) struct Update<P>(pub(crate) P);

impl<P: Updates> Work for Update<P> {
    /// Each task has a row of its own, so that no task waits for a lock.
    async fn once(&self, task: u32, _n: i64) -> anyhow::Result<()> {
        let rows = self.0.update(i64::from(task)).await?;
        ensure!(rows == 1, "{rows} rows were updated");
        Ok(())
    }
}

pub(crate) struct Find<P>(pub(crate) P);

impl<P: Finds> Work for Find<P> {
    async fn once(&self, task: u32, _n: i64) -> anyhow::Result<()> {
        self.0.find(i64::from(task)).await?;
        Ok(())
    }
}
