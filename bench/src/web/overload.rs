//! Twice as many requests as can be answered: how many are, in time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use db_axum::{Admission, Api};
use db_layer::{Db, Options, PoolOptions};
use deadpool_postgres::tokio_postgres::NoTls;
use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{CONNECTIONS, Served, is_whole, serve};
use crate::arrivals::Arrivals;
use crate::load::{Slice, Work};
use crate::rounds::Arm;
use crate::server::Database;

/// The work of a request: 10 connections do 500 a second of it.
const WORK: &str = "select 1 from pg_sleep(0.02)";
pub(super) const MOST: f64 = 500.0;

const PER_SECOND: f64 = 1000.0;

/// How long a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A tenth of it.
const TARGET: Duration = Duration::from_millis(100);

const SLICE: Duration = Duration::from_secs(10);

pub(super) const OURS: &str = "web.overload.ours";

/// Ours with a `queue_target`, ours by default, and the peers. Each client waits for a second, and so do the peers' pools.
pub(super) fn arms<'a>(runtime: &'a Runtime, database: &Database) -> anyhow::Result<Vec<Arm<'a>>> {
    let target = runtime.block_on(ours(database, Some(TARGET)))?;
    let default = runtime.block_on(ours(database, None))?;
    let sqlx = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
    let sqlx = Router::new().route("/", get(by_sqlx)).with_state(sqlx.connect_lazy(database.url())?);
    let fast = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(database.url().parse()?, NoTls, fast);
    let deadpool = deadpool_postgres::Pool::builder(manager).max_size(CONNECTIONS as usize).build()?;
    let deadpool = Router::new().route("/", get(by_deadpool)).with_state(deadpool);
    let arm = |name: &str, routes| -> anyhow::Result<Arm<'a>> {
        let served = runtime.block_on(serve(routes))?;
        let clients = Arc::new(Impatient::new(served));
        Ok(Arm::new(name, SLICE, move |slice| clients.ask(runtime, slice)))
    };
    Ok(vec![
        arm(OURS, target)?,
        arm("web.overload.default", default)?,
        arm("web.overload.axum_sqlx", sqlx)?,
        arm("web.overload.axum_deadpool", deadpool)?,
    ])
}

async fn ours(database: &Database, target: Option<Duration>) -> anyhow::Result<Router> {
    let api = PoolOptions::api().max(CONNECTIONS).queue_target(target);
    let options = Options::new(database.config()?).api(api).backend(PoolOptions::backend().max(1));
    let db = db_layer::open(options).await?;
    let admission = Admission::new(db.api());
    Ok(Router::new().route("/", get(by_us).layer(admission)).with_state::<()>(db))
}

async fn by_us(Api(api): Api, State(_): State<Db>) -> db_axum::Result<&'static str> {
    sqlx::query(WORK).execute(&api).await?;
    Ok("done")
}

async fn by_sqlx(State(pool): State<sqlx::PgPool>) -> Result<&'static str, axum::http::StatusCode> {
    match sqlx::query(WORK).execute(&pool).await {
        Ok(_) => Ok("done"),
        Err(_) => Err(axum::http::StatusCode::SERVICE_UNAVAILABLE),
    }
}

async fn by_deadpool(
    State(pool): State<deadpool_postgres::Pool>,
) -> Result<&'static str, axum::http::StatusCode> {
    let work = async {
        let client = pool.get().await?;
        let statement = client.prepare_cached(WORK).await?;
        client.query(&statement, &[]).await?;
        anyhow::Ok("done")
    };
    work.await.map_err(|_| axum::http::StatusCode::SERVICE_UNAVAILABLE)
}

/// Clients that leave when they have waited for too long. They keep a connection that is whole, as a proxy does.
struct Impatient {
    served: Served,
    connections: Mutex<Vec<TcpStream>>,
    in_time: AtomicU32,
}

impl Impatient {
    fn new(served: Served) -> Self {
        Self { served, connections: Mutex::default(), in_time: AtomicU32::new(0) }
    }

    /// The answers in time for each second.
    fn ask(self: &Arc<Self>, runtime: &Runtime, slice: Duration) -> anyhow::Result<Slice> {
        self.in_time.store(0, Ordering::Relaxed);
        let all = Arrivals { per_second: PER_SECOND, slice }.run(runtime, self)?;
        let whole = slice + crate::load::WARM_UP;
        let rate = f64::from(self.in_time.load(Ordering::Relaxed)) / whole.as_secs_f64();
        Ok(Slice::of(rate, all.latency))
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request was done.
    async fn get(&self) -> anyhow::Result<bool> {
        let kept = self.connections().pop();
        let mut stream = match kept {
            Some(stream) => stream,
            None => TcpStream::connect(&self.served.address).await?,
        };
        stream.set_nodelay(true)?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        let mut answer = Vec::with_capacity(1024);
        while !is_whole(&answer)? {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the server has closed the connection");
        }
        self.connections().push(stream);
        let status = answer.get(9..12).context("a status")?;
        match status {
            b"200" => Ok(true),
            b"503" => Ok(false),
            _ => bail!("{}", String::from_utf8_lossy(&answer)),
        }
    }
}

impl Work for Impatient {
    async fn once(&self, _: u32, _: i64) -> anyhow::Result<()> {
        if let Ok(done) = timeout(PATIENCE, self.get()).await
            && done?
        {
            self.in_time.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
