//! The memory of clients that request a log and do not read. A program of its own, since its allocator counts.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use db_axum::sse::{self, Cursor};
use db_layer::{Config, Db, LogId, Migrations, Options};
use db_testkit::{TestDb, until};
use peak_alloc::PeakAlloc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// How soon the memory of clients is freed after they have gone.
const SOON: Duration = Duration::from_secs(5);

async fn open(db: &TestDb) -> Db {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let migrations = Migrations::from_dir(folder).await.expect("migrations");
    db_layer::open(Options::new(config).migrations(migrations)).await.expect("an open database")
}

/// A log of `batches` batches of `events` events of `bytes` bytes.
async fn filled(db: &TestDb, layer: &Db, batches: i64, events: i64, bytes: i64) -> LogId {
    let log = layer.events().create().await.expect("a log");
    sqlx::query(
        "insert into event_log_batches (log, first, last, bytes, types, data, is_final)
         select $1, (n - 1) * $3 + 1, n * $3, $3 * $4, '{line}', array_fill(repeat('x', $4::int), array[$3::int]), n = $2
         from generate_series(1, $2) as n",
    )
    .bind(log.0)
    .bind(batches)
    .bind(events)
    .bind(bytes)
    .execute(&db.pool())
    .await
    .expect("filled");
    log
}

async fn events(
    State((db, log)): State<(Db, LogId)>,
    cursor: Cursor,
) -> db_axum::Result<axum::response::Response> {
    sse::events(&db, log, cursor).await
}

async fn serve(layer: &Db, log: LogId) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let routes = Router::new().route("/", get(events)).with_state((layer.clone(), log));
    let server = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
    (address, AbortOnDropHandle::new(server))
}

/// Requests the log, and reads only the first byte.
async fn stall(address: SocketAddr, from: i64) -> TcpStream {
    // Kernel buffers are not heap; with small ones a client stalls sooner.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 << 10).expect("a small buffer");
    let mut socket = socket.connect(address).await.expect("connected");
    let request = format!("GET /?from={from} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("asked");
    socket.read_exact(&mut [0]).await.expect("it is answered");
    socket
}

/// Opens stalled clients. Returns the memory of each, and the memory that remains after they have gone.
async fn cost(layer: &Db, log: LogId, clients: usize, apart: i64) {
    const EACH: usize = 256 << 10;
    let (address, _server) = serve(layer, log).await;
    drop(stall(address, 0).await);
    until("the first one has gone", async || layer.events().state().followed == 0).await;
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();

    let mut sockets = Vec::new();
    for n in 0..clients {
        sockets.push(stall(address, i64::try_from(n).expect("a small number") * apart).await);
    }
    until("no client holds more than it may", async || {
        let pages = layer.events().state().pages;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let all = HEAP.current_usage().saturating_sub(before);
        all <= clients * EACH && layer.events().state().pages == pages
    })
    .await;

    let all = HEAP.current_usage().saturating_sub(before);
    println!(
        "{clients} clients: {} KiB each, {} MiB together, {} MiB at most",
        (all / clients) >> 10,
        all >> 20,
        HEAP.peak_usage() >> 20
    );
    assert!(all <= clients * EACH, "{} bytes for each of {clients}", all / clients);
    drop(sockets);
    let gone = Instant::now();
    let left = || HEAP.current_usage().saturating_sub(before);
    timeout(SOON, until("what they took is given back", async || left() * 10 <= all)).await.unwrap_or_else(
        |_| panic!("{} KiB of {} KiB are left {SOON:?} after they went", left() >> 10, all >> 10),
    );
    println!("{} KiB of {} KiB are left {:?} after they went", left() >> 10, all >> 10, gone.elapsed());
}

#[db_testkit::test]
async fn clients_that_do_not_read_cost_little_each_and_nothing_when_they_have_gone(db: TestDb) {
    let layer = open(&db).await;
    // A million lines, read by clients that start together, and by clients at different positions.
    let log = filled(&db, &layer, 1000, 1000, 80).await;
    cost(&layer, log, 500, 0).await;
    cost(&layer, log, 100, 1000).await;
    // Events of 15 MiB: the connections that read them keep no room for one.
    let log = filled(&db, &layer, 4, 1, 15 << 20).await;
    cost(&layer, log, 200, 0).await;
}
