//! The effect of a full backend pool on callers of the API pool.
//!
//! Statements that sleep on the server hold all backend connections, and a queue waits for them. Meanwhile the API pool runs the same
//! small query as when the backend pool is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use db_core::{Pool, PoolOptions};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::load::{Load, Work};
use crate::peers::{Ours, Select};
use crate::report::Report;
use crate::rounds::{Arm, interleave};
use crate::server::Database;

const CONNECTIONS: u32 = 10;

/// As many tasks as API connections, so that the pool is measured and not its queue.
const TASKS: u32 = 10;

/// The connections of the backend pool, all held.
const HOLDERS: u32 = 50;

/// Callers that wait for a backend connection.
const WAITERS: u32 = 200;

const SLICE: Duration = Duration::from_millis(500);

pub(crate) fn measure(runtime: &Runtime, rounds: usize) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let config = database.config()?;
        let _inside = runtime.enter();
        let api = Arc::new(Select(Ours::new(&config, CONNECTIONS)));
        let backend =
            Pool::new(&config, PoolOptions::backend().max(HOLDERS).acquire_timeout(Duration::from_mins(5)));
        let arms = [
            arm(runtime, "isolation.idle", &api, None),
            arm(runtime, "isolation.saturated", &api, Some(backend)),
        ];
        let measured = interleave(&arms, rounds)?;
        let rows = vec![measured.p99s("isolation.p99", "isolation.saturated", "isolation.idle")];
        Ok(measured.report(database.what().to_owned(), rows))
    })
}

fn arm<'a>(runtime: &'a Runtime, name: &str, work: &Arc<impl Work>, backend: Option<Pool>) -> Arm<'a> {
    let work = Arc::clone(work);
    Arm::new(name, SLICE, move |slice| {
        let load = Load { tasks: TASKS, slice, timed: true };
        match &backend {
            None => load.run(runtime, &work),
            Some(backend) => {
                let crowd = runtime.block_on(Crowd::gather(backend))?;
                let measured = load.run(runtime, &work);
                runtime.block_on(crowd.leave())?;
                measured
            }
        }
    })
}

/// Holders and waiters of the backend pool.
struct Crowd {
    tasks: JoinSet<anyhow::Result<()>>,
    over: Arc<AtomicBool>,
    backend: Pool,
}

impl Crowd {
    /// Returns once all connections are held and all other tasks wait.
    async fn gather(backend: &Pool) -> anyhow::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..HOLDERS + WAITERS {
            let (backend, over) = (backend.clone(), Arc::clone(&over));
            tasks.spawn(async move {
                let mut conn = backend.handle().acquire().await?;
                while !over.load(Ordering::Relaxed) {
                    sqlx::query("select pg_sleep(0.5)").execute(&mut conn).await?;
                }
                Ok(())
            });
        }
        let crowd = Self { tasks, over, backend: backend.clone() };
        while crowd.backend.stats().in_use < HOLDERS || crowd.backend.stats().waiting < WAITERS {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(crowd)
    }

    async fn leave(mut self) -> anyhow::Result<()> {
        let stats = self.backend.stats();
        ensure!(
            stats.in_use == HOLDERS && stats.waiting == WAITERS,
            "the pool must stay saturated: {stats:?}"
        );
        self.over.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task??;
        }
        Ok(())
    }
}
