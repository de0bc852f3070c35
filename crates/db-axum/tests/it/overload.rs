//! A service of which more is asked than it can do, some of whose clients go away, and which is told to end.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use db_axum::sse::{self, Selection};
use db_axum::{Admission, Api, Deadline, Json, Path, RequestId, Tx, request_ids, transactions};
use db_layer::{Config, Db, Deadlines, LogId, Migrations, NewEvent, Options, PoolOptions, Signals};
use db_testkit::TestDb;
use futures_util::StreamExt;
use harness::{Process, answer, told};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{PATIENCE, client, open};

/// Clients that ask without a pause.
const CLIENTS: usize = 200;

/// Clients that follow the log.
const READERS: usize = 20;

/// One request in this number is dropped by its client.
const CANCELS: u32 = 100;

/// How long the load lasts; `just overload` says a minute.
fn load() -> Duration {
    let seconds = std::env::var("DB_AXUM_OVERLOAD_SECONDS").ok().map(|text| text.parse().expect("a number"));
    Duration::from_secs(seconds.unwrap_or(6))
}

async fn double(Api(api): Api, Path(n): Path<i64>) -> db_axum::Result<Json<i64>> {
    let double = "select $1 * 2 from pg_sleep(0.01)";
    Ok(Json(sqlx::query_scalar(double).bind(n).fetch_one(&api).await?))
}

async fn store(mut tx: Tx, Json(word): Json<String>) -> db_axum::Result<()> {
    let store = "insert into word select $1 from pg_sleep(0.005)";
    sqlx::query(store).bind(word).execute(&mut **tx.begin().await?).await?;
    Ok(())
}

async fn follow(
    State(db): State<Db>,
    Path(log): Path<i64>,
    selection: Selection,
) -> db_axum::Result<Response> {
    sse::events(&db, LogId(log), selection).await
}

/// The requests whose handlers have begun, and those whose handlers have ended.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(Vec<String>, Vec<String>)>>);

async fn note(State(seen): State<Seen>, request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().expect("an id").as_str().to_owned();
    seen.0.lock().expect("no panic").0.push(id.clone());
    let answer = next.run(request).await;
    seen.0.lock().expect("no panic").1.push(id);
    answer
}

/// The service, in a process of its own, until SIGTERM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service() {
    let Some((address, _orders)) = told() else { return };
    let mut signals = Signals::catch().expect("signals");
    let config = Config::from_url(&address).expect("an address");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let migrations = Migrations::from_dir(folder).await.expect("migrations");
    let api = PoolOptions::api().queue_target(Some(Duration::from_millis(100)));
    let db =
        db_layer::open(Options::new(config).migrations(migrations).api(api)).await.expect("an open database");
    let seen = Seen::default();
    let routes = Router::new()
        .route("/double/{n}", get(double))
        .route("/words", post(store))
        .layer(from_fn(transactions))
        .layer(Admission::new(db.api()))
        .layer(Deadline::within(PATIENCE))
        .layer(from_fn_with_state(seen.clone(), note))
        .route("/events/{log}", get(follow))
        .layer(from_fn(request_ids))
        .with_state(db.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    answer(&format!("{} {}", listener.local_addr().expect("an address"), std::process::id()));
    let closing = db.closing();
    let serving =
        axum::serve(listener, routes).with_graceful_shutdown(async move { closing.cancelled().await });

    let ended = db.shutdown_on_signal(&mut signals, Deadlines::default(), serving).await;

    let pool = db.api().pool().stats();
    let (begun, done) = std::mem::take(&mut *seen.0.lock().expect("no panic"));
    let report = json!({
        "in_time": ended.is_clean(),
        "closed": format!("{:?}", ended.closed),
        "left": [pool.in_use, pool.open, pool.repairing, pool.waiting, pool.dialling],
        "leaked": pool.totals.leaked,
        "begun": begun,
        "done": done,
    });
    answer(&report.to_string());
}

struct Service {
    process: Process,
    pid: String,
}

impl Service {
    async fn start(db: &TestDb) -> (Self, SocketAddr) {
        let mut process = Process::start("overload::a_service", &db.url());
        let said = process.hear().await;
        let (address, pid) = said.split_once(' ').expect("an address and a process id");
        let address = address.parse().expect("an address");
        (Self { pid: pid.to_owned(), process }, address)
    }

    /// Asks it to end, and returns what it has seen.
    async fn end(mut self) -> Value {
        let sent = std::process::Command::new("kill").args(["-TERM", &self.pid]).status().expect("kill");
        assert!(sent.success());
        serde_json::from_str(&self.process.hear().await).expect("a report")
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Told {
    right: usize,
    refused: usize,
    dropped: HashSet<String>,
    /// Words by whether their client was told that they are stored; `None` if it does not know.
    words: BTreeMap<String, Option<bool>>,
    /// Requests without an answer, and why.
    failed: Vec<(String, String)>,
}

/// The services that take requests now.
struct Services {
    addresses: [SocketAddr; 2],
    current: AtomicUsize,
    is_over: AtomicBool,
}

impl Services {
    fn current(&self) -> SocketAddr {
        self.addresses[self.current.load(Ordering::Relaxed)]
    }
}

/// Asks without a pause until the load is over.
async fn ask(services: Arc<Services>, number: usize, all: Arc<Mutex<Told>>) {
    let client = client();
    let mut round = 0u64;
    while !services.is_over.load(Ordering::Relaxed) {
        round += 1;
        let id = format!("{number}-{round}");
        let n = i64::try_from(round).expect("few") * 1000 + i64::try_from(number).expect("few");
        let stores = round.is_multiple_of(4);
        let address = services.current();
        let request = if stores {
            client.post(format!("http://{address}/words")).json(&id)
        } else {
            client.get(format!("http://{address}/double/{n}"))
        };
        let asked = async {
            let got = request.header("x-request-id", &id).send().await?;
            let (status, waits) = (got.status().as_u16(), got.headers().contains_key("retry-after"));
            Ok::<_, reqwest::Error>((status, waits, got.text().await?))
        };
        if fastrand::u32(..CANCELS) == 0 {
            let patience = Duration::from_micros(fastrand::u64(..30_000));
            if timeout(patience, asked).await.is_err() {
                let mut all = all.lock().expect("no panic");
                all.dropped.insert(id.clone());
                if stores {
                    all.words.insert(id, None);
                }
                continue;
            }
            // It was answered before; what was said does not matter.
            if stores {
                all.lock().expect("no panic").words.insert(id, None);
            }
            continue;
        }
        let got = asked.await;
        let mut all = all.lock().expect("no panic");
        let is_stored = match &got {
            Ok((200, _, _)) => Some(true),
            Ok((503, _, _)) => Some(false),
            _ => None,
        };
        if stores {
            all.words.insert(id.clone(), is_stored);
        }
        match got {
            Ok((200, _, text)) => {
                let expected = if stores { "null".to_owned() } else { (2 * n).to_string() };
                assert!(text == expected || (stores && text.is_empty()), "{id}: {text}");
                all.right += 1;
            }
            Ok((503, true, text)) => {
                assert!(
                    text.contains("urn:db-axum:overloaded") || text.contains("urn:db-axum:unavailable"),
                    "{text}"
                );
                all.refused += 1;
            }
            Ok(other) => panic!("{id}: {other:?}"),
            Err(error) => {
                // Not admitted, as is checked in the end: the next service is there.
                services.current.store(1, Ordering::Relaxed);
                all.failed.push((id, format!("{error:?}")));
            }
        }
    }
}

/// Follows the log from its beginning until its end, and goes on after what it has when an answer ends. Returns the events.
async fn read(services: Arc<Services>, log: LogId) -> Vec<String> {
    let (mut events, mut last, mut ends) = (Vec::new(), None::<String>, BTreeSet::new());
    loop {
        let mut request = client().get(format!("http://{}/events/{log}", services.current()));
        if let Some(last) = &last {
            request = request.header("Last-Event-ID", last);
        }
        let Ok(answer) = request.send().await else {
            tokio::task::yield_now().await;
            continue;
        };
        if answer.status() == 204 {
            assert!(ends.contains("closing"), "the service had ended in between: {ends:?}");
            return events;
        }
        let (mut chunks, mut text) = (answer.bytes_stream(), String::new());
        while let Some(Ok(chunk)) = chunks.next().await {
            text += std::str::from_utf8(&chunk).expect("text");
            while let Some((message, rest)) = text.split_once("\n\n") {
                let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
                if let Some(id) = field("id: ") {
                    last = Some(id.to_owned());
                }
                match (field("event: "), field("data: ")) {
                    (Some("stream-end"), Some(why)) => drop(ends.insert(why.to_owned())),
                    (Some("n"), Some(data)) => events.push(data.to_owned()),
                    _ => {}
                }
                text = rest.to_owned();
            }
        }
    }
}

#[db_testkit::test]
async fn an_overloaded_service_answers_right_or_503_and_a_new_one_takes_over_without_loss(db: TestDb) {
    sqlx::query("create table word (t text primary key)").execute(&db.pool()).await.expect("a table");
    let layer = open(&db).await;
    let log = layer.events().create().await.expect("a log");
    let ((old, first), (new, second)) = tokio::join!(Service::start(&db), Service::start(&db));
    let services = Arc::new(Services {
        addresses: [first, second],
        current: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let all = Arc::<Mutex<Told>>::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| AbortOnDropHandle::new(tokio::spawn(ask(services.clone(), number, all.clone()))))
        .collect();
    let readers: Vec<_> =
        (0..READERS).map(|_| AbortOnDropHandle::new(tokio::spawn(read(services.clone(), log)))).collect();
    let writer = AbortOnDropHandle::new(tokio::spawn({
        let (layer, services) = (layer.clone(), services.clone());
        async move {
            let mut written = Vec::new();
            while !services.is_over.load(Ordering::Relaxed) {
                written.push(written.len().to_string());
                let event = NewEvent::new("n", written.last().expect("one"));
                layer.events().append(log, &[event]).await.expect("appended");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            layer.events().finish(log, &[NewEvent::new("end", "")]).await.expect("finished");
            written
        }
    }));

    tokio::time::sleep(load() / 2).await;
    let before = std::mem::take(&mut all.lock().expect("no panic").failed);
    assert!(before.is_empty(), "the service has failed before it was told to end: {before:?}");
    let old = old.end().await;
    tokio::time::sleep(load() / 2).await;
    services.is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("each answer is right");
    }
    let written = writer.await.expect("no panic");
    for reader in readers {
        let read = timeout(PATIENCE, reader).await.expect("in time").expect("no panic");
        assert_eq!(read, written, "each event once and in order");
    }
    let new = new.end().await;

    let told = Arc::into_inner(all).expect("all have ended").into_inner().expect("no panic");
    assert!(told.right > CLIENTS && told.refused > 0, "{} right, {} refused", told.right, told.refused);
    let list = |report: &Value, name: &str| -> HashSet<String> {
        report[name]
            .as_array()
            .expect("a list")
            .iter()
            .map(|id| id.as_str().expect("an id").to_owned())
            .collect()
    };
    for report in [&old, &new] {
        assert_eq!(report["in_time"], true, "{}", report["closed"]);
        assert_eq!(report["left"], json!([0, 0, 0, 0, 0]), "no slot is stuck");
        assert_eq!(report["leaked"], 0);
        let (begun, done) = (list(report, "begun"), list(report, "done"));
        assert!(begun.len() > CLIENTS, "it has served");
        let cut: Vec<_> = begun.difference(&done).filter(|id| !told.dropped.contains(*id)).collect();
        assert!(cut.is_empty(), "admitted, and not answered: {cut:?}");
        for (id, error) in &told.failed {
            assert!(!begun.contains(id), "{id} was admitted, and its client got {error}");
        }
    }
    let stored: Vec<String> =
        sqlx::query_scalar("select t from word").fetch_all(&db.pool()).await.expect("words");
    let stored: HashSet<String> = stored.into_iter().collect();
    for (word, is_stored) in &told.words {
        if let Some(is_stored) = is_stored {
            assert_eq!(stored.contains(word), *is_stored, "{word}");
        }
    }
    eprintln!(
        "{} right, {} refused, {} dropped by their clients, {} not connected",
        told.right,
        told.refused,
        told.dropped.len(),
        told.failed.len()
    );
}
