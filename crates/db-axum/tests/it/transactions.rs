//! One transaction for a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use db_axum::{Deadline, Json, Tx, transactions};
use db_layer::{Db, Options, PoolOptions};
use db_testkit::{TestDb, until};
use harness::Log;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::{PATIENCE, Served, client, options, serve};

/// A database with one table, and a pool of one connection.
async fn layer(db: &TestDb) -> Db {
    let tables = "create table word (t text, constraint once unique (t) deferrable initially deferred)";
    sqlx::raw_sql(tables).execute(&db.pool()).await.expect("a table");
    let api = PoolOptions::api().max(1).acquire_timeout(PATIENCE);
    open(options(db).await.api(api)).await
}

async fn open(options: Options) -> Db {
    db_layer::open(options).await.expect("an open database")
}

async fn served(layer: &Db, routes: Router<Db>) -> Served {
    serve(routes.layer(from_fn(transactions)).with_state(layer.clone())).await
}

async fn insert(tx: &mut Tx, word: &str) -> db_axum::Result<()> {
    sqlx::query("insert into word values ($1)").bind(word).execute(&mut **tx.begin().await?).await?;
    Ok(())
}

async fn ask(served: &Served, path: &str) -> (u16, String) {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client");
    let answer = client.get(format!("{}{path}", served.address)).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("text"))
}

async fn words(db: &TestDb) -> Vec<String> {
    sqlx::query_scalar("select t from word order by t").fetch_all(&db.pool()).await.expect("words")
}

async fn until_quiet(layer: &Db) {
    until("the pool is quiet", async || {
        let stats = layer.api().pool().stats();
        (stats.in_use, stats.repairing, stats.waiting) == (0, 0, 0)
    })
    .await;
}

#[db_testkit::test]
async fn a_transaction_is_committed_below_400_and_rolled_back_otherwise(db: TestDb) {
    async fn ok(mut tx: Tx) -> db_axum::Result<&'static str> {
        insert(&mut tx, "ok").await?;
        Ok("ok")
    }
    async fn moved(mut tx: Tx) -> db_axum::Result<Redirect> {
        insert(&mut tx, "moved").await?;
        Ok(Redirect::to("/ok"))
    }
    async fn refused(mut tx: Tx) -> db_axum::Result<StatusCode> {
        insert(&mut tx, "refused").await?;
        Ok(StatusCode::BAD_REQUEST)
    }
    async fn failed(mut tx: Tx) -> db_axum::Result<()> {
        insert(&mut tx, "failed").await?;
        sqlx::query("select 1 / 0").execute(&mut **tx.begin().await?).await?;
        Ok(())
    }
    async fn ignored(mut tx: Tx) -> db_axum::Result<&'static str> {
        insert(&mut tx, "ignored").await?;
        let failed = sqlx::query("select 1 / 0").execute(&mut **tx.begin().await?).await;
        assert!(failed.is_err());
        Ok("stored, the handler believes")
    }
    let layer = layer(&db).await;
    let routes = Router::new()
        .route("/ok", get(ok))
        .route("/moved", get(moved))
        .route("/refused", get(refused))
        .route("/failed", get(failed))
        .route("/ignored", get(ignored));
    let served = served(&layer, routes).await;

    assert_eq!(ask(&served, "/ok").await, (200, "ok".to_owned()));
    assert_eq!(ask(&served, "/moved").await.0, 303);
    assert_eq!(ask(&served, "/refused").await.0, 400);
    assert_eq!(ask(&served, "/failed").await.0, 500);
    let (status, told) = ask(&served, "/ignored").await;
    assert_eq!(status, 500, "the server rolls back: {told}");

    assert_eq!(words(&db).await, ["moved", "ok"]);
    let pool = layer.api().pool().stats();
    assert_eq!((pool.in_use, pool.repairing), (0, 0), "each was ended before the answer");
    assert_eq!(pool.totals.dialled, 1);
}

#[db_testkit::test]
async fn a_commit_that_fails_becomes_the_answer(db: TestDb) {
    async fn twice(mut tx: Tx) -> db_axum::Result<&'static str> {
        insert(&mut tx, "same").await?;
        insert(&mut tx, "same").await?;
        // The constraint is deferred: nobody knows yet.
        Ok("both are stored, the handler believes")
    }
    let layer = layer(&db).await;
    let served = served(&layer, Router::new().route("/", get(twice))).await;

    let (status, told) = ask(&served, "/").await;

    let problem: Value = serde_json::from_str(&told).expect("a problem");
    assert_eq!((status, &problem["type"]), (409, &"urn:db-axum:taken".into()), "{told}");
    assert!(words(&db).await.is_empty());
    until_quiet(&layer).await;
}

#[db_testkit::test]
async fn an_answer_of_unknown_length_is_refused_and_the_log_names_the_route(db: TestDb) {
    async fn streamed(mut tx: Tx) -> db_axum::Result<Response> {
        insert(&mut tx, "streamed").await?;
        let parts = futures_util::stream::iter([Ok::<_, std::io::Error>("part")]);
        Ok(Body::from_stream(parts).into_response())
    }
    async fn without() -> Response {
        Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("part")])).into_response()
    }
    let log = Log::of_this_process("info");
    let layer = layer(&db).await;
    let routes = Router::new().route("/streamed/{id}", get(streamed)).route("/without", get(without));
    let served = served(&layer, routes).await;

    assert_eq!(ask(&served, "/streamed/7").await.0, 500);
    assert_eq!(ask(&served, "/without").await, (200, "part".to_owned()), "without a `Tx`, it passes");

    let line = ["ERROR", "an answer of unknown length cannot have a `Tx`", "route=\"/streamed/{id}\""];
    assert!(log.count(&line) > 0, "{}", log.text());
    until_quiet(&layer).await;
    assert!(words(&db).await.is_empty());
}

#[db_testkit::test]
async fn no_connection_is_taken_before_the_first_use(db: TestDb) {
    async fn unused(tx: Tx) -> &'static str {
        drop(tx);
        "nothing was asked"
    }
    async fn order(mut tx: Tx, Json(word): Json<String>) -> db_axum::Result<()> {
        insert(&mut tx, &word).await
    }
    let layer = layer(&db).await;
    let routes = Router::new().route("/unused", get(unused)).route("/order", post(order));
    let served = served(&layer, routes).await;

    let held = layer.api().acquire().await.expect("the only connection");
    assert_eq!(ask(&served, "/unused").await.0, 200);
    drop(held);

    let mut slow =
        raw(&served, "POST /order HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 7\r\n").await;
    slow.write_all(b"\r\n\"hel").await.expect("sent");
    let taken = layer.api().pool().stats().totals.acquired;
    // The others are answered, while the rest of the body is to come.
    assert_eq!(ask(&served, "/unused").await.0, 200);
    assert_eq!(layer.api().pool().stats().totals.acquired, taken);
    slow.write_all(b"lo\"").await.expect("sent");
    until("it is stored", async || words(&db).await == ["hello"]).await;
    until_quiet(&layer).await;
}

#[db_testkit::test]
async fn middleware_and_handler_share_one_transaction(db: TestDb) {
    async fn audited(State(db): State<Db>, mut tx: Tx, request: Request, next: Next) -> Response {
        insert(&mut tx, "audit").await.expect("stored");
        drop(tx);
        assert_eq!(db.api().pool().stats().in_use, 1, "the transaction is open");
        next.run(request).await
    }
    async fn work(mut tx: Tx) -> db_axum::Result<Json<i64>> {
        insert(&mut tx, "work").await?;
        let count =
            sqlx::query_scalar("select count(*) from word").fetch_one(&mut **tx.begin().await?).await?;
        Ok(Json(count))
    }
    let layer = layer(&db).await;
    let routes = Router::new().route("/", get(work)).route_layer(from_fn_with_state(layer.clone(), audited));
    let served = served(&layer, routes).await;

    assert_eq!(ask(&served, "/").await, (200, "2".to_owned()));

    assert_eq!(words(&db).await, ["audit", "work"]);
}

#[db_testkit::test]
async fn misuse_is_an_error_that_the_log_explains_and_is_rolled_back(db: TestDb) {
    async fn two(mut first: Tx, _second: Tx) -> db_axum::Result<()> {
        insert(&mut first, "two").await
    }
    async fn kept(State(kept): State<Arc<Notify>>, mut tx: Tx) -> db_axum::Result<()> {
        insert(&mut tx, "kept").await?;
        tokio::spawn(async move {
            kept.notified().await;
            drop(tx);
        });
        Ok(())
    }
    async fn panics(mut tx: Tx) -> db_axum::Result<()> {
        insert(&mut tx, "panics").await?;
        panic!("a handler's mistake")
    }
    #[derive(Clone)]
    struct App(Db, Arc<Notify>);
    impl axum::extract::FromRef<App> for Db {
        fn from_ref(app: &App) -> Self {
            app.0.clone()
        }
    }
    impl axum::extract::FromRef<App> for Arc<Notify> {
        fn from_ref(app: &App) -> Self {
            Arc::clone(&app.1)
        }
    }
    let log = Log::of_this_process("info");
    let layer = layer(&db).await;
    let app = App(layer.clone(), Arc::default());
    let routes = Router::new()
        .route("/two", get(two))
        .route("/kept", get(kept))
        .route("/panics", get(panics))
        .layer(from_fn(transactions))
        .route("/bare", get(async |_: Tx| ()));
    let served = serve(routes.with_state(app.clone())).await;

    assert_eq!(ask(&served, "/two").await.0, 500);
    assert!(
        log.count(&["ERROR", "a request has two `Tx` at the same time", "route=\"/two\""]) > 0,
        "{}",
        log.text()
    );
    assert_eq!(ask(&served, "/kept").await.0, 500);
    assert!(
        log.count(&["ERROR", "a `Tx` has outlived the answer of its request", "route=\"/kept\""]) > 0,
        "{}",
        log.text()
    );
    app.1.notify_one();
    until_quiet(&layer).await;
    assert_eq!(ask(&served, "/bare").await.0, 500);
    assert!(
        log.count(&["ERROR", "the route lacks the layer", "route=\"/bare\"", "transactions"]) > 0,
        "{}",
        log.text()
    );
    let cut = client().get(format!("{}/panics", served.address)).send().await;
    assert!(cut.is_err(), "hyper closes the connection");
    until_quiet(&layer).await;

    assert!(words(&db).await.is_empty());
}

#[db_testkit::test]
async fn a_deadline_rolls_back_but_a_commit_is_finished_also_if_the_client_hangs_up(db: TestDb) {
    async fn late(mut tx: Tx) -> db_axum::Result<()> {
        insert(&mut tx, "late").await?;
        std::future::pending().await
    }
    async fn slow(mut tx: Tx) -> db_axum::Result<()> {
        sqlx::query("insert into slow values (1)").execute(&mut **tx.begin().await?).await?;
        Ok(())
    }
    let layer = layer(&db).await;
    let commits = async || {
        db.until_sessions("the commit runs", |all| {
            all.iter().any(|session| session.state == "active" && session.query == "COMMIT")
        })
        .await;
    };
    let slow_commit = "create table slow (n int);
         create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(1); return null; end';
         create constraint trigger slow after insert on slow deferrable initially deferred
           for each row execute function slow()";
    sqlx::raw_sql(slow_commit).execute(&db.pool()).await.expect("a table");
    let routes = Router::new()
        .route("/late", get(late))
        .route("/slow_and_late", get(slow))
        .layer(from_fn(transactions))
        .layer(Deadline::within(Duration::from_millis(500)))
        .layer(Deadline::within(Duration::from_millis(400)))
        .route("/slow", get(slow).layer(from_fn(transactions)));
    let served = serve(routes.with_state(layer.clone())).await;

    assert_eq!(ask(&served, "/late").await.0, 504);
    until_quiet(&layer).await;
    let mut client = raw(&served, "GET /slow HTTP/1.1\r\n").await;
    client.write_all(b"\r\n").await.expect("sent");
    commits().await;
    drop(client);

    until_quiet(&layer).await;
    let stored: i64 =
        sqlx::query_scalar("select count(*) from slow").fetch_one(&db.pool()).await.expect("a count");
    assert_eq!(stored, 1, "what was sent to be committed is committed");
    let (answer, ()) = tokio::join!(ask(&served, "/slow_and_late"), commits());
    assert_eq!(answer.0, 200, "a commit is waited for, although the deadline passes");
    assert!(words(&db).await.is_empty(), "what was late is not");
    assert_eq!(layer.api().pool().stats().totals.dialled, 1, "and the connection is used again");
}

/// A connection that has sent the head of a request, but for its end.
async fn raw(served: &Served, head: &str) -> TcpStream {
    let address: SocketAddr =
        served.address.trim_start_matches("http://").parse().expect("an address with a port");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(format!("{head}host: localhost\r\n").as_bytes()).await.expect("sent");
    stream
}
