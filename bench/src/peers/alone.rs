//! sqlx's connections without a pool, one for each task.

use sqlx::{Connection, PgConnection};
use tokio::sync::Mutex;

use super::SELECT;
use crate::load::Work;

#[derive(Debug)]
pub(crate) struct Alone(Vec<Mutex<PgConnection>>);

impl Alone {
    pub(crate) async fn new(url: &str, tasks: u32) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..tasks {
            connections.push(Mutex::new(PgConnection::connect(url).await?));
        }
        Ok(Self(connections))
    }
}

impl Work for Alone {
    async fn once(&self, task: u32, n: i64) -> anyhow::Result<()> {
        // The lock is never contended; the compiler needs it.
        let mut connection = self.0[usize::try_from(task)?].lock().await;
        let answer: i64 = sqlx::query_scalar(SELECT).bind(n).fetch_one(&mut *connection).await?;
        anyhow::ensure!(answer == n, "asked for {n}, and got {answer}");
        Ok(())
    }
}
