//! Errors as answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use db_layer::{Config, Db, Options, Pool, PoolOptions};
use db_testkit::{Cluster, Proxy, TestDb, until};
use serde_json::Value;
use sqlx::error::DatabaseError;
use sqlx::{Connection, PgConnection};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::{client, open, serve};

/// Runs one of the statements below, as a handler does.
async fn run(State(db): State<Db>, Path(which): Path<usize>) -> db_axum::Result<&'static str> {
    let (statement, ..) = STATEMENTS[which];
    sqlx::query_scalar::<_, i32>(statement).fetch_one(db.api()).await?;
    Ok("fine")
}

const STATEMENTS: [(&str, u16, &str); 12] = [
    ("select 1", 200, ""),
    ("select 1 where false", 404, "not-found"),
    ("insert into t values (1, 1) returning 1", 409, "taken"),
    ("insert into t values (2, null) returning 1", 422, "not-allowed"),
    ("insert into t values (2, -7) returning 1", 422, "not-allowed"),
    ("insert into child values (99) returning 1", 422, "not-allowed"),
    ("select ('secret'::text)::int", 400, "bad-value"),
    ("select 1 from no_such_table", 500, "internal"),
    ("syntax error", 500, "internal"),
    ("do $$ begin raise sqlstate '53100'; end $$", 503, "unavailable"),
    ("do $$ begin raise sqlstate '53400'; end $$", 500, "internal"),
    ("select pg_terminate_backend(pg_backend_pid())::int", 503, "unavailable"),
];

#[db_testkit::test]
async fn each_error_is_the_answer_it_deserves_and_tells_nothing(db: TestDb) {
    sqlx::raw_sql(
        "create table t (id int primary key, n int not null check (n > 0)); insert into t values (1, 1);
         create table child (t int references t)",
    )
    .execute(&db.pool())
    .await
    .expect("tables");
    let layer = open(&db).await;
    let served = serve(Router::new().route("/{which}", get(run)).with_state(layer)).await;

    for (which, (statement, status, kind)) in STATEMENTS.iter().enumerate() {
        let answer = client().get(format!("{}/{which}", served.address)).send().await.expect("an answer");

        assert_eq!(answer.status().as_u16(), *status, "{statement}");
        let retry_after = answer.headers().get("retry-after").cloned();
        assert_eq!(retry_after.is_some(), *status == 503, "{statement}");
        if *status != 200 {
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            let problem: Value = answer.json().await.expect("JSON");
            assert_eq!(problem["status"], *status);
            assert_eq!(problem["type"], format!("urn:db-axum:{kind}"));
            // The kind, the status and its title, and nothing else.
            assert_eq!(problem.as_object().expect("an object").len(), 3, "{problem}");
        }
    }
}

#[db_testkit::test]
async fn a_crowded_pool_is_told_apart_from_a_server_that_is_away(db: TestDb) {
    async fn one(State(db): State<Db>) -> db_axum::Result<()> {
        sqlx::query("select 1").execute(db.api()).await?;
        Ok(())
    }
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let api = PoolOptions::api().max(1).acquire_timeout(Duration::from_millis(200)).max_waiting(Some(0));
    let layer = db_layer::open(Options::new(config).api(api)).await.expect("an open database");
    let served = serve(Router::new().route("/", get(one)).with_state(layer.clone())).await;
    let kind = async || {
        let answer = client().get(&served.address).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON")["type"].take())
    };

    let held = layer.api().acquire().await.expect("a connection");
    assert_eq!(kind().await, (503, "urn:db-axum:overloaded".into()), "turned away");
    let limits = layer.api().pool().limits().max_waiting(None);
    layer.api().pool().set_limits(limits);
    assert_eq!(kind().await, (503, "urn:db-axum:overloaded".into()), "after a wait");
    drop(held);
    proxy.refuse();
    proxy.reset();
    until("it is away", async || kind().await == (503, "urn:db-axum:unavailable".into())).await;
}

#[db_testkit::test]
async fn a_request_that_comes_while_the_pools_close_is_503(db: TestDb) {
    async fn one(State(db): State<Db>) -> db_axum::Result<()> {
        sqlx::query("select 1").execute(db.api()).await?;
        Ok(())
    }
    let layer = open(&db).await;
    let served = serve(Router::new().route("/", get(one)).with_state(layer.clone())).await;
    layer.shutdown(Duration::from_secs(5)).await;

    let answer = client().get(&served.address).send().await.expect("an answer");

    assert_eq!(answer.status().as_u16(), 503);
    let problem: Value = answer.json().await.expect("JSON");
    assert_eq!(problem["type"], "urn:db-axum:unavailable");
}

#[db_testkit::test]
async fn a_statement_that_took_too_long_is_504(db: TestDb) {
    async fn slow(State(db): State<Db>) -> db_axum::Result<()> {
        db.api()
            .tx(async |tx| {
                sqlx::query("set local statement_timeout = '20ms'").execute(&mut *tx).await?;
                sqlx::query("select pg_sleep(10)").execute(&mut *tx).await?;
                Ok(())
            })
            .await
    }
    let layer = open(&db).await;
    let served = serve(Router::new().route("/", get(slow)).with_state(layer)).await;

    let answer = client().get(&served.address).send().await.expect("an answer");

    assert_eq!(answer.status().as_u16(), 504);
}

/// Counts log lines by level.
#[derive(Clone, Default)]
struct Levels(Arc<Mutex<Vec<Level>>>);

impl Subscriber for Levels {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.0.lock().expect("no panic").push(*event.metadata().level());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[db_testkit::test]
async fn a_clients_value_is_400_and_a_mistake_in_the_statement_is_500_with_an_error_line(db: TestDb) {
    sqlx::raw_sql(
        "create table word (w varchar(5)); insert into word values ('a'); create table bits (b bit(4))",
    )
    .execute(&db.pool())
    .await
    .expect("a table");
    let layer = open(&db).await;
    let client = [
        ("insert into word values ($1)", "much too long", "22001"),
        ("select $1::text", "\0", "22021"),
        ("select $1::text::int", "ten", "22P02"),
        ("select $1::text::numeric(3, 1)", "12345", "22003"),
        ("select $1::text::date", "tomorrow morning", "22007"),
        ("select $1::text::date", "2026-13-45", "22008"),
        ("insert into bits values ($1::text::varbit)", "101", "22026"),
        ("select $1::text::jsonb", "{", "22P02"),
        ("select $1::text::jsonb", r#""\u0000""#, "22P05"),
        ("select w ~ $1 from word", "(", "2201B"),
        ("select 'ab' like $1", "a\\", "22025"),
        ("select w from word limit $1::text::int", "-1", "2201W"),
        ("select w from word offset $1::text::int", "-1", "2201X"),
    ];
    let handler = [
        ("select $1 where 1 / 0 = 1", "22012"),
        ("select substring($1 from 1 for -1)", "22011"),
        ("select $1 from generate_series(1, 2, 0)", "22023"),
        ("select $1 where ln(0) = 1", "2201E"),
        ("select $1, jsonb_path_query('{}', 'strict $.a')", "2203A"),
        // The value is in the statement's text, so it is the handler's error, whatever the code.
        ("select $1, 'ten'::int", "22P02"),
        ("select $1, date '2026-13-45'", "22008"),
        ("select $1 where 'a' = '{'::jsonb::text", "22P02"),
    ];
    let client = client.map(|(sql, value, code)| (sql, value, code, 400, Level::DEBUG));
    let handler = handler.map(|(sql, code)| (sql, "fine", code, 500, Level::ERROR));

    for (sql, value, code, status, level) in client.into_iter().chain(handler) {
        let met = sqlx::query(sql).bind(value).fetch_all(layer.api()).await.expect_err(sql);
        assert_eq!(
            met.as_database_error().and_then(DatabaseError::code).as_deref(),
            Some(code),
            "{sql}: {met}"
        );

        let levels = Levels::default();
        let answer = tracing::subscriber::with_default(levels.clone(), || db_axum::Error::from(met));

        assert_eq!(answer.status().as_u16(), status, "{sql}");
        assert_eq!(*levels.0.lock().expect("no panic"), [level], "{sql}");
    }
}

#[db_testkit::test]
async fn a_request_that_may_be_done_is_no_invitation_to_send_it_again(db: TestDb) {
    async fn order(State(db): State<Db>) -> db_axum::Result<()> {
        db.api()
            .tx(async |tx| {
                sqlx::query("insert into orders values (1)").execute(&mut *tx).await?;
                Ok(())
            })
            .await
    }
    async fn order_alone(State(db): State<Db>) -> db_axum::Result<()> {
        sqlx::query("insert into orders values (1)").execute(db.api()).await?;
        Ok(())
    }
    sqlx::raw_sql("create table orders (n int)").execute(&db.pool()).await.expect("a table");
    let proxy = Proxy::start(&db).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let layer = db_layer::open(Options::new(config)).await.expect("an open database");
    let routes = Router::new().route("/", post(order)).route("/alone", post(order_alone));
    let served = serve(routes.with_state(layer)).await;

    proxy.cut_answer_to("COMMIT");
    let answer = client().post(&served.address).send().await.expect("an answer");

    assert_eq!((answer.status().as_u16(), answer.headers().get("retry-after")), (500, None));
    let problem: Value = answer.json().await.expect("JSON");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("not known whether the request was carried out"), "{detail}");

    // A statement outside of a transaction may have been executed, too.
    proxy.cut_answer_to("insert into orders");
    let answer = client().post(format!("{}/alone", served.address)).send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers().get("retry-after")), (503, None));

    let orders: i64 =
        sqlx::query_scalar("select count(*) from orders").fetch_one(&db.pool()).await.expect("a count");
    assert_eq!(orders, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_write_is_503_where_the_host_became_a_standby_and_500_where_the_role_only_reads() {
    async fn order(State(pool): State<Pool>) -> db_axum::Result<()> {
        sqlx::query("insert into orders values (1)").execute(pool.handle()).await?;
        Ok(())
    }
    let mut cluster = Cluster::start().await.expect("a cluster");
    let (old, new) = (cluster.primary(), cluster.standby(0));
    let mut setup = PgConnection::connect(&old.url()).await.expect("a connection");
    sqlx::raw_sql(
        "create table orders (n int); create role reader login; grant insert on orders to reader;
         alter role reader set default_transaction_read_only = on",
    )
    .execute(&mut setup)
    .await
    .expect("a table and a role");
    setup.close().await.expect("closed");
    let pool =
        |address: &str| Pool::new(&Config::from_url(address).expect("an address"), PoolOptions::api().max(2));
    let (writes, reads) = (pool(&old.url()), pool(&old.url().replace("//postgres@", "//reader@")));
    let routes = Router::new().route("/", post(order));
    let served =
        (serve(routes.clone().with_state(writes.clone())).await, serve(routes.with_state(reads)).await);
    let answer = async |address: &str| {
        let answer = client().post(address).send().await.expect("an answer");
        let retry_after = answer.headers().get("retry-after").cloned();
        (answer.status().as_u16(), retry_after.map(|after| after.to_str().expect("text").to_owned()))
    };
    assert_eq!(answer(&served.0.address).await, (200, None));
    assert_eq!(answer(&served.1.address).await, (500, None));

    cluster.switch_over(&new).await.expect("changed places");

    until("the host's new sessions only read", async || {
        let write = sqlx::query("insert into orders values (1)").execute(writes.handle()).await;
        let error = write.expect_err("no write is taken any more");
        error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("25006")
    })
    .await;
    assert_eq!(answer(&served.0.address).await, (503, Some("1".to_owned())));
}
