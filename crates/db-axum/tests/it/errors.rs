//! Errors as answers.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use db_layer::Db;
use db_testkit::TestDb;
use serde_json::Value;

use crate::support::{client, open, serve};

/// Runs one of the statements below, as a handler would.
async fn run(State(db): State<Db>, Path(which): Path<usize>) -> db_axum::Result<&'static str> {
    let (statement, _) = STATEMENTS[which];
    sqlx::query_scalar::<_, i32>(statement).fetch_one(db.api()).await?;
    Ok("fine")
}

const STATEMENTS: [(&str, u16); 10] = [
    ("select 1", 200),
    ("select 1 where false", 404),
    ("insert into t values (1, 1) returning 1", 409),
    ("insert into t values (2, null) returning 1", 422),
    ("insert into t values (2, -7) returning 1", 422),
    ("insert into child values (99) returning 1", 422),
    ("select ('secret'::text)::int", 400),
    ("select 1 from no_such_table", 500),
    ("syntax error", 500),
    ("select pg_terminate_backend(pg_backend_pid())::int", 503),
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

    for (which, (statement, status)) in STATEMENTS.iter().enumerate() {
        let answer = client().get(format!("{}/{which}", served.address)).send().await.expect("an answer");

        assert_eq!(answer.status().as_u16(), *status, "{statement}");
        let retry_after = answer.headers().get("retry-after").cloned();
        assert_eq!(retry_after.is_some(), *status == 503, "{statement}");
        if *status != 200 {
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            let problem: Value = answer.json().await.expect("JSON");
            assert_eq!(problem["status"], *status);
            // The status and its own name, and nothing else.
            assert_eq!(problem.as_object().expect("an object").len(), 2, "{problem}");
        }
    }
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
