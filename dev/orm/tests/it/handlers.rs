//! `SeaORM` in web handlers and in tasks, which must be `Send`.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use db_core::{Error, Isolation, Pool, TxOptions, TxRetry};
use db_testkit::TestDb;
use futures_util::TryStreamExt;
use orm::blog::{bob, post as posts, profile, tag, user};
use sea_orm::prelude::*;
use sea_orm::{EntityLoaderTrait, QueryOrder, TransactionTrait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support;

async fn list(State(pool): State<Pool>) -> db_axum::Result<Json<Vec<String>>> {
    let users = user::Entity::find().order_by_asc(user::COLUMN.email).all(&pool.handle().orm()).await?;
    Ok(Json(users.into_iter().map(|user| user.email).collect()))
}

async fn show(State(pool): State<Pool>, Path(id): Path<i32>) -> db_axum::Result<String> {
    let found = user::Entity::load()
        .filter_by_id(id)
        .with(profile::Entity)
        .with((posts::Entity, tag::Entity))
        .one(&pool.handle().orm())
        .await?;
    Ok(found.ok_or(DbErr::RecordNotFound("no user".to_owned()))?.posts[0].tags[0].tag.clone())
}

/// Borrows its surroundings inside of a transaction, of parts of it, and of transactions that are run again.
async fn save(State(pool): State<Pool>, Path(name): Path<String>) -> db_axum::Result<()> {
    let name = &name;
    bob(name).save(&pool.handle().orm()).await?;
    pool.handle()
        .tx(async |tx| {
            bob(&format!("{name} in tx")).save(&tx.orm()).await?;
            tx.nested(async |part| {
                bob(&format!("{name} in nested")).save(&part.orm()).await?;
                sqlx::query(r#"update "user" set name = $1"#).bind(name).execute(&mut *part).await?;
                Ok::<_, db_axum::Error>(())
            })
            .await?;
            let orm = tx.orm();
            let begun = orm.begin().await?;
            bob(&format!("{name} in begin")).save(&begun).await?;
            begun.commit().await?;
            let mut users = orm.stream_as::<user::Model>(&user::Entity::find());
            while users.try_next().await?.is_some() {}
            Ok::<_, db_axum::Error>(())
        })
        .await?;
    let options = TxOptions::default().isolation(Isolation::Serializable);
    pool.handle()
        .tx_retry(options, TxRetry::default(), || {
            async move |tx| {
                bob(&format!("{name} in tx_retry")).save(&tx.orm()).await?;
                Ok::<_, db_axum::Error>(())
            }
        })
        .await?;
    let orm = pool.handle().orm();
    let mut users = user::Entity::find().stream(&orm).await?;
    while users.try_next().await?.is_some() {}
    drop(users);
    let graph = bob(&format!("{name} in transaction"));
    pool.handle().orm().transaction(|tx| Box::pin(async move { graph.save(tx).await.map(drop) })).await?;
    pool.handle()
        .orm()
        .transaction_async(async |tx| bob(&format!("{name} by async")).save(tx).await.map(drop))
        .await?;
    Ok(())
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("asked");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[db_testkit::test]
async fn handlers_save_graphs_and_answer_with_its_errors(db: TestDb) {
    let pool = support::blog(&db, 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let app = Router::new()
        .route("/", get(list))
        .route("/show/{id}", get(show))
        .route("/{name}", post(save))
        .with_state(pool);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let saved = ask(address, "POST /bob").await;
    assert!(saved.starts_with("HTTP/1.0 200"), "{saved}");
    let listed = ask(address, "GET /").await;
    let all = r#"["bob","bob by async","bob in begin","bob in nested","bob in transaction","bob in tx","bob in tx_retry"]"#;
    assert!(listed.ends_with(all), "{listed}");
    let shown = ask(address, "GET /show/1").await;
    assert!(shown.ends_with("sunny for bob"), "{shown}");
    let none = ask(address, "GET /show/4711").await;
    assert!(none.starts_with("HTTP/1.0 404"), "{none}");
    let twice = ask(address, "POST /bob").await;
    assert!(twice.starts_with("HTTP/1.0 409"), "{twice}");
    server.abort();
}

#[db_testkit::test]
async fn tasks_save_on_handles_and_take_transactions_along(db: TestDb) {
    let pool = support::blog(&db, 2).await;
    let orm = pool.handle().orm();
    let spawned = tokio::spawn({
        let orm = orm.clone();
        async move { bob("by a handle").save(&orm).await.map(drop) }
    });
    spawned.await.expect("no panic").expect("saved");

    let begun = orm.begin().await.expect("begun");
    let spawned = tokio::spawn(async move {
        bob("in a transaction").save(&begun).await?;
        begun.commit().await
    });
    spawned.await.expect("no panic").expect("saved");

    let mut tx = pool.handle().begin().await.expect("begun");
    let spawned = tokio::spawn(async move {
        bob("in ours").save(&tx.orm()).await?;
        tx.commit().await
    });
    spawned.await.expect("no panic").expect("saved");
    assert_eq!(support::count(pool.handle(), "user").await, 3);
}

/// Written once for whatever takes statements, and called with each.
async fn add<C: TransactionTrait>(db: &C, email: &str) -> Result<(), Error> {
    bob(email).save(db).await?;
    Ok(())
}

#[db_testkit::test]
async fn a_function_of_sea_orms_is_called_with_a_handle_a_connection_a_transaction_and_a_part(db: TestDb) {
    let pool = support::blog(&db, 1).await;
    add(&pool.handle().orm(), "handle").await.expect("saved");
    let mut conn = pool.handle().acquire().await.expect("a connection");
    add(&conn.orm(), "connection").await.expect("saved");
    let mut tx = conn.begin().await.expect("begun");
    add(&tx.orm(), "transaction").await.expect("saved");
    let mut part = tx.savepoint().await.expect("a part");
    add(&part.orm(), "part").await.expect("saved");
    part.release().await.expect("released");
    tx.commit().await.expect("committed");

    assert_eq!(support::count(pool.handle(), "user").await, 4);
}
