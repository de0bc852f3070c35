//! Incidents, staged: each is named by the alerts, and found from the routes of monitoring and the log alone.
//!
//! `just incidents` prints what an on-call person would see of each.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use axum::Router;
use db_layer::encryption::{Key, KeySource, KeySources};
use db_layer::{Config, Db, KeyOptions, NewEvent, Options, PoolOptions};
use db_testkit::{Proxy, TestDb, until};
use harness::Log;
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::monitoring::serve_with_peers;
use crate::support::{PATIENCE, Served, client, options};

/// How long after its beginning an incident must be named.
const NAMED: Duration = Duration::from_mins(1);

/// A service with its routes of monitoring, and what was seen of its incident.
struct Incident {
    db: Db,
    served: Served,
    log: &'static Log,
    seen: String,
}

impl Incident {
    async fn prepare(options: Options) -> Self {
        let log = Log::of_this_process("info");
        let db = db_layer::open(options).await.expect("an open database");
        let routes = Router::new()
            .merge(db_axum::health::routes(db.clone()))
            .nest("/ops", db_axum::monitoring(db.clone()).for_this_machine());
        let served = serve_with_peers(routes).await;
        let incident = Self { db, served, log, seen: String::new() };
        let lines = incident.get("/ops/connections/alerts").await;
        assert_eq!(lines["count"], 0, "all is well before: {lines}");
        incident
    }

    async fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.served.address);
        client().get(url).send().await.expect("an answer").json().await.expect("JSON")
    }

    /// Waits until the alerts name the incident, and returns how it was put.
    async fn named(&mut self, name: &str, pool: Option<&str>) -> String {
        let began = Instant::now();
        loop {
            let alerts = self.get("/ops/alerts").await["alerts"].take();
            let mut all = alerts.as_array().expect("a list").iter();
            if let Some(alert) = all.find(|alert| alert["name"] == name && alert["pool"].as_str() == pool) {
                let text = alert["text"].as_str().expect("a text").to_owned();
                self.note(&format!(
                    "after {:.1} s: {text}\n  {}",
                    began.elapsed().as_secs_f64(),
                    alert["action"]
                ));
                return text;
            }
            assert!(began.elapsed() < NAMED, "{name} is not among {alerts:#}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The lines of the log with all of these parts, of which there must be some.
    fn logged(&mut self, parts: &[&str]) {
        let lines = self.log.lines_with(parts);
        let line = lines.first().unwrap_or_else(|| panic!("{parts:?} in\n{}", self.log.text())).clone();
        self.note(&format!("log: {}", line.trim()));
    }

    fn note(&mut self, seen: &str) {
        writeln!(self.seen, "{seen}").expect("writing to a string");
    }

    fn end(self, what: &str) {
        println!("{what}\n{}", self.seen);
    }
}

fn here(line: u32) -> String {
    format!("{}:{line}", file!())
}

#[db_testkit::test]
async fn a_leak_is_named_with_its_line(db: TestDb) {
    let api = PoolOptions::api().leak_after(Duration::from_secs(1));
    let mut incident = Incident::prepare(options(&db).await.api(api)).await;

    let (line, handle) = (line!(), incident.db.api());
    let leaked = handle.acquire().await.expect("a connection");

    incident.named("ConnectionLeaked", Some("api")).await;
    let holder = incident.get("/ops/holders").await["holders"][0].take();
    assert_eq!((&holder["leaked"], &holder["line"]), (&true.into(), &here(line).into()), "{holder}");
    incident.note(&format!("holders: {holder}"));
    incident.logged(&["WARN", "held for too long", &here(line)]);
    drop(leaked);
    incident.end("A leak");
}

#[db_testkit::test]
async fn a_slow_query_is_named_with_its_text_and_line_while_it_runs_and_after(db: TestDb) {
    let mut incident = Incident::prepare(options(&db).await).await;
    let (line, handle) = (line!(), incident.db.api());
    let slow = sqlx::query("select pg_sleep(6) as of_customers");
    let running = tokio::spawn(slow.execute(handle));

    incident.named("SlowStatements", Some("api")).await;
    let holder = incident.get("/ops/holders").await["holders"][0].take();
    assert_eq!((&holder["slow"], &holder["line"]), (&true.into(), &here(line).into()), "{holder}");
    assert_eq!(holder["statement"], "select pg_sleep(…) as of_customers");
    incident.note(&format!("holders: {holder}"));
    running.await.expect("no panic").expect("an answer");
    incident.named("SlowStatements", Some("api")).await;
    let statements = incident.get("/ops/statements").await;
    let slowest = &statements["statements"][0];
    assert_eq!(slowest["statement"], "select pg_sleep(…) as of_customers");
    assert_eq!(slowest["lines"][0]["line"], here(line));
    incident.note(&format!("statements: {slowest}"));
    incident.logged(&["WARN", "slow: select pg_sleep(6) as of_customers", &here(line)]);
    incident.end("A slow query");
}

#[db_testkit::test]
async fn a_flood_of_background_work_is_named_with_its_pool_and_does_not_touch_requests(db: TestDb) {
    let backend = PoolOptions::backend().max(5);
    let mut incident = Incident::prepare(options(&db).await.backend(backend)).await;
    let mut flood = JoinSet::new();
    let (line, handle) = (line!(), incident.db.backend());
    for _ in 0..40 {
        let handle = handle.clone();
        flood.spawn(async move {
            let held = handle.acquire().await;
            std::future::pending::<()>().await;
            drop(held);
        });
    }

    incident.named("PoolUtilization", Some("backend")).await;
    incident.named("PoolQueue", Some("backend")).await;
    let pool = incident.get("/ops/connections/pool").await["pools"][1].take();
    assert_eq!((&pool["name"], &pool["in_use"]), (&"backend".into(), &5.into()));
    assert_eq!(pool["waiting"], 35);
    incident
        .note(&format!("pool: in use {} of {}, waiting {}", pool["in_use"], pool["max"], pool["waiting"]));
    let holders = incident.get("/ops/holders").await["holders"].take();
    let lines: Vec<_> = holders.as_array().expect("a list").iter().map(|holder| &holder["line"]).collect();
    assert_eq!(lines, [&Value::from(here(line)); 5], "the work that floods");
    incident.logged(&["WARN", "PoolQueue", "backend", "Callers in the queue of the pool: 35"]);
    sqlx::query("select 1").execute(incident.db.api()).await.expect("requests are served");
    assert_eq!(incident.get("/health/ready").await["status"], "ready");
    drop(flood);
    incident.end("A flood of background work");
}

#[db_testkit::test]
async fn a_dead_link_is_named_and_so_is_what_it_takes_along(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let given = options(&db).await;
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let mut incident = Incident::prepare(given.database(config)).await;
    sqlx::query("select 1").execute(incident.db.api()).await.expect("an answer");

    proxy.black_hole();

    incident.named("NotReady", None).await;
    incident.named("BusDisconnected", None).await;
    let health = incident.get("/health").await;
    assert_eq!(health["reason"], "the database does not answer");
    assert_eq!(health["bus"]["connected"], false);
    incident.note(&format!("health: {}, bus: {}", health["reason"], health["bus"]["trouble"]));
    incident.logged(&["WARN", "not ready", "the database does not answer"]);
    proxy.heal();
    until("ready again", async || incident.db.health().is_ready()).await;
    incident.end("A dead link");
}

#[db_testkit::test]
async fn lost_notifications_are_named_and_readers_miss_nothing(db: TestDb) {
    let proxy = Proxy::start(&db).expect("a proxy");
    let direct = Config::from_url(&proxy.url()).expect("the proxy's address");
    let mut incident = Incident::prepare(options(&db).await.direct(Some(direct))).await;
    let events = incident.db.events().clone();
    let log = events.create().await.expect("a log");
    let mut stream = events.stream(log, 0);
    let (read, mut reads) = tokio::sync::mpsc::unbounded_channel();
    let _reading = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok(Some(batch)) = stream.next_batch().await {
            read.send(batch.len()).expect("somebody listens");
        }
    }));
    until("it follows", async || events.state().followers == 1).await;

    // What is written while nobody listens is announced to nobody.
    proxy.refuse();
    proxy.reset();
    events.append(log, &[NewEvent::new("n", "")]).await.expect("appended");
    proxy.heal();

    incident.named("NotificationsLost", None).await;
    let bus = incident.get("/ops/bus").await;
    assert!(bus["received_gaps"]["reconnected"].as_u64() >= Some(1), "{bus}");
    incident.note(&format!("bus: received gaps {}", bus["received_gaps"]));
    incident.logged(&["WARN", "NotificationsLost", "Subscriptions that may have missed notifications"]);
    let read = tokio::time::timeout(PATIENCE, reads.recv()).await.expect("in time");
    assert_eq!(read, Some(1), "the event is read all the same");
    incident.end("Lost notifications");
}

#[db_testkit::test]
async fn a_wrong_key_file_is_named_and_values_stay_readable(db: TestDb) {
    let (right, wrong) = (Key::generate().expect("a key"), Key::generate().expect("a key"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let write = |key: &Key| std::fs::write(file.path(), key.to_hex().expose_secret()).expect("written");
    write(&right);
    let keys = KeySources::new(KeySource::File(file.path().to_owned()));
    let holding = KeyOptions::default().renew(Duration::from_secs(1));
    let mut incident = Incident::prepare(options(&db).await.keys(keys).holding(holding)).await;

    write(&wrong);

    incident.named("EncryptionKeys", None).await;
    let sealing = incident.get("/health").await["sealing"].take();
    assert_eq!((&sealing["alarm"], &sealing["primary"]), (&true.into(), &right.id().to_string().into()));
    incident.note(&format!("health: primary {}, alarm {}", sealing["primary"], sealing["alarm"]));
    incident.logged(&["ERROR", "The encryption keys need somebody"]);
    incident.logged(&["the database has values under the keys", &right.id().to_string()]);
    write(&right);
    let is_it = |alert: &db_layer::alerts::Alert| alert.rule.name == "EncryptionKeys";
    until("its end", async || !incident.db.alerts().iter().any(is_it)).await;
    incident.end("A wrong key file");
}
