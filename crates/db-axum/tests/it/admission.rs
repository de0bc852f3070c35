//! Requests that are refused while a pool is overloaded.

use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use db_axum::{Admission, Api, Deadline, Json, Tx, transactions};
use db_layer::{Db, PoolOptions};
use db_testkit::{TestDb, until};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Endless, PATIENCE, client, options, serve};

async fn layer(db: &TestDb, api: PoolOptions) -> Db {
    db_layer::open(options(db).await.api(api.max(1).acquire_timeout(PATIENCE)))
        .await
        .expect("an open database")
}

async fn one(Api(api): Api) -> db_axum::Result<Json<i32>> {
    Ok(Json(sqlx::query_scalar("select 1").fetch_one(&api).await?))
}

#[db_testkit::test]
async fn a_request_is_refused_before_its_body_which_may_never_end(db: TestDb) {
    async fn store(Json(body): Json<String>) -> Json<usize> {
        Json(body.len())
    }
    let layer = layer(&db, PoolOptions::api().max_waiting(Some(0))).await;
    let routes = Router::new().route("/", post(store).layer(Admission::new(layer.api())));
    let served = serve(routes.merge(db_axum::health::routes(layer.clone()))).await;
    let conn = layer.api().acquire().await.expect("the only connection");

    let answer = Endless::begin(&served).await.answer("overloaded").await;

    assert!(answer.starts_with("http/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    let live = client().get(format!("{}/health/ready", served.address)).send().await.expect("an answer");
    assert_eq!(live.status(), 200, "other routes are not refused");
    assert_eq!(layer.api().pool().stats().totals.shed, 1, "it is counted");
    drop(conn);
    let stored = client().post(&served.address).json("later").send().await.expect("an answer");
    assert_eq!(stored.json::<usize>().await.expect("a number"), 5);
}

#[db_testkit::test]
async fn a_body_that_never_ends_is_cut_off_by_the_deadline_and_takes_no_connection(db: TestDb) {
    async fn store(mut tx: Tx, Json(body): Json<String>) -> db_axum::Result<()> {
        sqlx::query("select $1").bind(body).execute(&mut **tx.begin().await?).await?;
        Ok(())
    }
    let layer = layer(&db, PoolOptions::api()).await;
    let routes = Router::new()
        .route("/", post(store))
        .layer(from_fn(transactions))
        .layer(Deadline::within(Duration::from_millis(500)));
    let served = serve(routes.with_state(layer.clone())).await;
    let before = layer.api().pool().stats().totals.acquired;

    let answer = Endless::begin(&served).await.answer("timed-out").await;

    assert!(answer.starts_with("http/1.1 504"), "{answer}");
    assert_eq!(layer.api().pool().stats().totals.acquired, before);
}

#[db_testkit::test]
async fn the_handles_of_a_route_have_the_lane_that_was_asked(db: TestDb) {
    let layer = layer(&db, PoolOptions::api().max_waiting(Some(1))).await;
    let report = get(one).layer(Admission::new(layer.api().patient()));
    let served = serve(Router::new().route("/", report).with_state(layer.clone())).await;
    let conn = layer.api().acquire().await.expect("the only connection");
    let pool = layer.api().pool().clone();
    let asked = tokio::spawn(client().get(&served.address).send());
    until("the request waits", async || pool.stats().waiting == 1).await;

    let handle = layer.api();
    let order = tokio::spawn(async move { handle.acquire().await });

    let answer = asked.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 503, "the order took the place of the report");
    drop(conn);
    order.await.expect("no panic").expect("a connection");
}

#[db_testkit::test]
async fn requests_that_would_wait_for_too_long_are_refused_until_the_queue_is_short(db: TestDb) {
    let target = Duration::from_millis(20);
    let api = PoolOptions::api().queue_target(Some(target)).queue_interval(Duration::from_millis(100));
    let layer = layer(&db, api).await;
    let routes =
        Router::new().route("/", get(one)).route_layer(Admission::new(layer.api())).with_state(layer.clone());
    let served = serve(routes).await;
    let ask = async || client().get(&served.address).send().await.expect("an answer");
    assert_eq!(ask().await.status(), 200);

    let stop = CancellationToken::new();
    let load: Vec<_> = (0..10)
        .map(|_| {
            let (layer, stop) = (layer.clone(), stop.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                while !stop.is_cancelled() {
                    // Some are refused by the pool itself.
                    sqlx::query("select pg_sleep(0.1)").execute(layer.api()).await.ok();
                }
            }))
        })
        .collect();
    until("requests are refused", async || {
        let answer = ask().await;
        let is_refused = answer.status() == 503;
        let has_time = answer.headers().contains_key("retry-after");
        assert_eq!(is_refused, has_time);
        is_refused && answer.json::<Value>().await.expect("JSON")["type"] == "urn:db-axum:overloaded"
    })
    .await;

    stop.cancel();
    for one in load {
        one.await.expect("no panic");
    }
    assert_eq!(ask().await.status(), 200, "the load has ended");
}
