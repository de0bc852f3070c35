//! The examples as processes: `orders`, which a signal ends, as any service, and `answer`, which ends by itself.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use db_layer::db_notify::Delivery;
use db_layer::{Options, Settings, Topic};
use db_testkit::{TestDb, until};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{PATIENCE, config};

/// A running service. Killed when the test ends, if it still runs.
struct Orders {
    child: Child,
    address: String,
    log: Receiver<String>,
}

impl Orders {
    async fn start(db: &TestDb) -> Self {
        sqlx::query("create table orders (item text not null)").execute(&db.pool()).await.expect("created");
        let mut command = Command::new(program("orders"));
        for (setting, ..) in Settings::default().effective() {
            command.env_remove(setting.variable());
        }
        command
            .env("DATABASE_URL", db.url())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the example starts");
        let said = lines(child.stdout.take().expect("stdout is piped"));
        let log = lines(child.stderr.take().expect("stderr is piped"));
        let mut orders = Self { child, address: String::new(), log };
        orders.address =
            said.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{error}: {:?}", orders.log()));
        orders
    }

    fn order(&self, item: &str) -> JoinHandle<reqwest::Result<u16>> {
        let request = client().post(format!("{}/orders/{item}", self.address));
        tokio::spawn(async move { Ok(request.send().await?.status().as_u16()) })
    }

    async fn follow(&self) -> Stream {
        let answer = client().get(format!("{}/orders", self.address)).send().await.expect("an answer");
        let mut stream = Stream(answer);
        assert_eq!(stream.next().await.as_deref(), Some("listening\n"));
        stream
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success(), "{name}");
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the service has ended", async || {
            status = self.child.try_wait().expect("a status");
            status.is_some()
        })
        .await;
        status.expect("the condition above")
    }

    /// The log so far; all of it once the service has ended.
    fn log(&self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Ok(line) = self.log.recv_timeout(Duration::from_millis(200)) {
            lines.push(line);
        }
        lines
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        // The process has mostly ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a client that follows the orders receives.
struct Stream(reqwest::Response);

impl Stream {
    /// Nothing more comes after `None`.
    async fn next(&mut self) -> Option<String> {
        let chunk =
            timeout(PATIENCE, self.0.chunk()).await.expect("in time").expect("an end in good order")?;
        Some(String::from_utf8(chunk.to_vec()).expect("text"))
    }
}

/// `cargo test` builds the examples of a package beside its tests.
fn program(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program's path");
    let program =
        test.parent().and_then(|deps| deps.parent()).expect("target/…/deps").join("examples").join(example);
    assert!(program.exists(), "build it first: cargo build -p db-layer --example {example}");
    program
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client")
}

/// Makes the service's next order wait until the returned transaction is committed.
async fn hold_orders(db: &TestDb) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut tx = db.pool().begin().await.expect("begun");
    sqlx::query("lock table orders in access exclusive mode").execute(&mut *tx).await.expect("locked");
    tx
}

async fn until_an_order_waits(db: &TestDb) {
    db.until_sessions("an order waits for the table", |all| {
        all.iter().any(|session| session.wait.as_deref() == Some("Lock: relation"))
    })
    .await;
}

#[db_testkit::test]
async fn a_service_that_is_asked_to_end_admits_nobody_ends_its_streams_and_finishes_what_it_has(db: TestDb) {
    let mut orders = Orders::start(&db).await;
    let other = db_layer::open(Options::new(config(&db))).await.expect("another process, as it were");
    let mut heard = other.bus().subscribe(&Topic::new("orders").expect("a topic"), 10);
    let mut stream = orders.follow().await;
    let held = hold_orders(&db).await;
    let order = orders.order("tea");
    until_an_order_waits(&db).await;

    orders.signal("TERM");

    assert_eq!(stream.next().await.as_deref(), Some("the service ends\n"));
    assert_eq!(stream.next().await, None);
    // Asked of the stream, since an order that was just admitted would wait for the table, longer than the service has.
    until("nobody is admitted any more", async || {
        client().get(&orders.address).send().await.is_err_and(|error| error.is_connect())
    })
    .await;
    assert!(!order.is_finished(), "what was admitted before has its time");
    held.commit().await.expect("committed");
    assert_eq!(order.await.expect("no panic").expect("an answer"), 201);
    // The bus outlives the pools: the last transaction's notification goes out.
    let delivery = timeout(PATIENCE, heard.recv()).await.expect("in time").expect("an open bus");
    assert!(matches!(&delivery, Delivery::Notification(order) if order.payload() == "tea"), "{delivery:?}");
    assert_eq!(orders.ended().await.code(), Some(0));
    let log = orders.log();
    let at = |what: &str| {
        log.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("no `{what}` in {log:#?}"))
    };
    let phases = ["shutting down: signal received", "service ended", "pools closed", "bus closed"].map(at);
    assert!(phases.is_sorted() && log[phases[0]].contains("SIGTERM"), "{log:#?}");
    assert!(log[phases[1]..].iter().all(|line| line.contains("took=")), "{log:#?}");
    assert!(other.shutdown(PATIENCE).await.is_clean());
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn a_service_that_is_idle_ends_at_ctrl_c(db: TestDb) {
    let mut orders = Orders::start(&db).await;
    assert_eq!(orders.order("tea").await.expect("no panic").expect("an answer"), 201);

    orders.signal("INT");

    assert_eq!(orders.ended().await.code(), Some(0), "{:#?}", orders.log());
    db.until_sessions("none is left", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn a_second_signal_ends_a_service_at_once(db: TestDb) {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        sqlx::query("drop table if exists orders").execute(&db.pool()).await.expect("dropped");
        let mut orders = Orders::start(&db).await;
        let mut stream = orders.follow().await;
        let held = hold_orders(&db).await;
        let order = orders.order("tea");
        until_an_order_waits(&db).await;
        orders.signal("TERM");
        assert_eq!(stream.next().await.as_deref(), Some("the service ends\n"));

        let signalled = Instant::now();
        orders.signal(name);

        assert_eq!(orders.ended().await.code(), Some(code), "{:#?}", orders.log());
        // Its phases would have taken more than 15 s.
        assert!(signalled.elapsed() < Duration::from_secs(10), "{:?}", signalled.elapsed());
        assert!(order.await.expect("no panic").is_err(), "nobody answered");
        drop(held);
        db.until_sessions("the server has noticed", <[_]>::is_empty).await;
    }
}

/// The text between the marks must equal the example.
#[db_testkit::test(migrations = "../../migrations")]
async fn readers_that_come_late_or_go_away_read_the_same_answer(db: TestDb) {
    let mut command = Command::new(program("answer"));
    for (setting, ..) in Settings::default().effective() {
        command.env_remove(setting.variable());
    }
    let ended =
        command.env("DATABASE_URL", db.url()).stdin(Stdio::null()).output().expect("the example runs");

    let said = String::from_utf8(ended.stdout).expect("text");
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    let answers: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once(':')?.1.trim())).collect();
    assert_eq!(answers.len(), 3, "{said}");
    assert!(answers[0].starts_with("A cursor is") && answers[0].ends_with("remember you."), "{said}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{said}");
}

#[test]
fn the_guide_shows_the_example_as_it_is() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| {
        std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let (guide, example) = (read("../../docs/guide.md"), read("examples/orders.rs"));
    let main = example
        .split_once("#[tokio::main]\n")
        .and_then(|(_, rest)| rest.split_once("\n}\n"))
        .expect("a main")
        .0;

    let shown = guide
        .split_once("<!-- orders -->\n```rust,ignore\n")
        .and_then(|(_, rest)| rest.split_once("```\n<!-- end of orders -->"))
        .map(|(shown, _)| shown);

    let wanted = format!("#[tokio::main]\n{main}\n}}\n");
    assert_eq!(shown, Some(wanted.as_str()), "docs/guide.md needs this between its marks:\n{wanted}");
}
