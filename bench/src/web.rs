//! Requests over HTTP: a handler with one query, beside the same on sqlx's pool; the routes of health while the pool is full; and twice as many
//! requests as can be answered.

mod overload;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use db_layer::{Db, Options, PoolOptions};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::load::{Load, Work};
use crate::peers::SELECT;
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;

const CONNECTIONS: u32 = 10;

const CLIENTS: u32 = 64;

const SLICE: Duration = Duration::from_secs(2);

/// Those who hold the pool's connections, and wait for them.
const HOLDERS: usize = 200;

/// Three rounds of it are half a minute.
const SATURATED: Duration = Duration::from_secs(10);

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let _inside = runtime.enter();
        let db = runtime.block_on(open(database))?;
        let ours = Router::new().route("/", get(select)).with_state(db);
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_lazy(database.url())?;
        let theirs = Router::new().route("/", get(select_by_sqlx)).with_state(pool);
        let (ours, theirs) = (runtime.block_on(serve(ours))?, runtime.block_on(serve(theirs))?);

        let full = runtime.block_on(open(database))?;
        let health = runtime.block_on(serve(db_axum::health::routes(full.clone())))?;
        let routes = ["/health/live", "/health/startup", "/health/ready", "/health", "/health/db"];
        let asking = Arc::new(Get::new(&health, &routes, 4));

        let mut arms = vec![
            arm(runtime, "web.select.ours", &ours),
            arm(runtime, "web.select.axum_sqlx", &theirs),
            Arm::new("web.health.saturated", SATURATED, |slice| {
                let mut holders = JoinSet::new();
                for _ in 0..HOLDERS {
                    holders.spawn(hold(full.clone()));
                }
                let asked = Load { tasks: 4, slice, timed: true }.run(runtime, &asking);
                ensure!(full.health().is_ready(), "a busy service is ready");
                ensure!(full.api().pool().stats().waiting > 0, "the pool is not full");
                // Those who wait are dropped, and those who hold with them.
                drop(holders);
                asked
            }),
        ];
        arms.extend(overload::arms(runtime, database)?);
        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        let rows = vec![
            measured.rates("web.select.vs_axum_sqlx", "web.select.ours", "web.select.axum_sqlx"),
            measured.p99_ms("web.ready_p99_ms", "web.health.saturated"),
            measured.share("web.overload.goodput", overload::OURS, overload::MOST),
        ];
        Ok(measured.report(what, rows))
    })
}

async fn open(database: &Database) -> anyhow::Result<Db> {
    let api = PoolOptions::api().max(CONNECTIONS).acquire_timeout(Duration::from_mins(1));
    let options = Options::new(database.config()?).api(api).backend(PoolOptions::backend().max(1));
    Ok(db_layer::open(options).await?)
}

async fn select(State(db): State<Db>) -> db_axum::Result<String> {
    let n: i64 = sqlx::query_scalar(SELECT).bind(7_i64).fetch_one(db.api()).await?;
    Ok(n.to_string())
}

async fn select_by_sqlx(State(pool): State<PgPool>) -> Result<String, String> {
    let n: Result<i64, _> = sqlx::query_scalar(SELECT).bind(7_i64).fetch_one(&pool).await;
    n.map(|n| n.to_string()).map_err(|error| error.to_string())
}

/// Holds a connection for 20 ms, again and again.
async fn hold(db: Db) {
    while sqlx::query("select pg_sleep(0.02)").execute(db.api()).await.is_ok() {}
}

/// A server, which ends with this.
struct Served {
    address: String,
    _server: AbortOnDropHandle<()>,
}

async fn serve(routes: Router) -> anyhow::Result<Served> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let server = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            eprintln!("the server has ended: {error}");
        }
    });
    Ok(Served { address, _server: AbortOnDropHandle::new(server) })
}

fn arm<'a>(runtime: &'a Runtime, name: &str, served: &Served) -> Arm<'a> {
    let work = Arc::new(Get::new(served, &["/"], CLIENTS));
    Arm::new(name, SLICE, move |slice| Load { tasks: CLIENTS, slice, timed: true }.run(runtime, &work))
}

/// Clients that keep their connection, as a proxy does, and do as little else as they can.
struct Get {
    address: String,
    requests: Vec<String>,
    connections: Vec<Mutex<Option<TcpStream>>>,
}

impl Get {
    fn new(served: &Served, paths: &[&str], clients: u32) -> Self {
        let request = |path: &&str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let connections = (0..clients).map(|_| Mutex::default()).collect();
        Self { address: served.address.clone(), requests: paths.iter().map(request).collect(), connections }
    }
}

impl Work for Get {
    async fn once(&self, task: u32, n: i64) -> anyhow::Result<()> {
        let mut connection = self.connections[task as usize].lock().await;
        if connection.is_none() {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            *connection = Some(stream);
        }
        let stream = connection.as_mut().context("it was made just now")?;
        let turn = usize::try_from(n)? % self.requests.len();
        stream.write_all(self.requests[turn].as_bytes()).await?;
        let mut answer = Vec::with_capacity(4096);
        while !is_whole(&answer)? {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the server has closed the connection");
        }
        // `/health/db` says that the queue is long, which it is.
        let is_busy =
            self.requests[turn].starts_with("GET /health/db ") && answer.starts_with(b"HTTP/1.1 503");
        ensure!(answer.starts_with(b"HTTP/1.1 200") || is_busy, "{}", String::from_utf8_lossy(&answer));
        Ok(())
    }
}

/// Whether an answer has its head, and as much of a body as that says.
fn is_whole(answer: &[u8]) -> anyhow::Result<bool> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(false) };
    let head = std::str::from_utf8(&answer[..end])?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    Ok(answer.len() >= end + 4 + length.parse::<usize>()?)
}
