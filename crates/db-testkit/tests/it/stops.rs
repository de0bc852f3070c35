//! Stopping a test's own server.

use std::time::Duration;

use db_testkit::{Error, Proxy, Stop, TestDb, TestServer};
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::time::timeout;

use crate::support::{PATIENCE, ask};

/// A server with a database, and a row in it.
async fn server() -> (TestServer, TestDb) {
    let server = TestServer::throwaway().await.unwrap();
    let db = server.empty().await.unwrap();
    db.pool().execute("create table word as select 'kept' as t").await.unwrap();
    (server, db)
}

fn log(server: &TestServer) -> String {
    let folder = server.embedded().unwrap().data_dir().parent().unwrap();
    std::fs::read_to_string(folder.join("log")).unwrap()
}

async fn comes_back(how: Stop, told: &str) {
    let (server, db) = server().await;
    let pid = || server.embedded().unwrap().postmaster_pid().unwrap();
    let mut lost = db.options().connect().await.unwrap();
    let before = pid();

    timeout(PATIENCE, server.restart(how)).await.unwrap().unwrap();

    assert_ne!(pid(), before);
    assert!(log(&server).contains(told), "{}", log(&server));
    assert!(lost.ping().await.is_err());
    assert_eq!(ask(&db.options(), "select t from word").await, "kept");
}

#[tokio::test]
async fn after_a_fast_stop_the_server_comes_back() {
    comes_back(Stop::Fast, "received fast shutdown request").await;
}

#[tokio::test]
async fn after_an_immediate_stop_the_server_comes_back() {
    comes_back(Stop::Immediate, "received immediate shutdown request").await;
}

#[tokio::test]
async fn after_a_kill_the_server_comes_back() {
    comes_back(Stop::Kill, "database system was not properly shut down").await;
}

#[tokio::test]
async fn a_killed_backend_takes_all_sessions_along_and_the_server_recovers() {
    let (server, db) = server().await;
    let pid = || server.embedded().unwrap().postmaster_pid().unwrap();
    let (mut killed, mut other) =
        (db.options().connect().await.unwrap(), db.options().connect().await.unwrap());
    let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut killed).await.unwrap();
    let before = pid();

    timeout(PATIENCE, server.kill_backend(backend)).await.unwrap().unwrap();
    server.until_up().await.unwrap();

    assert_eq!(pid(), before);
    assert!(killed.ping().await.is_err());
    assert!(other.ping().await.is_err());
    assert_eq!(ask(&db.options(), "select t from word").await, "kept");
}

#[tokio::test]
async fn only_sessions_of_the_server_are_killed() {
    let (server, _db) = server().await;
    let us = std::process::id().cast_signed();

    match server.kill_backend(us).await {
        Err(Error::Signal { pid, .. }) => assert_eq!(pid, us),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_others_use_is_not_stopped() {
    let shared = TestServer::shared().await.unwrap();

    assert!(matches!(shared.stop(Stop::Kill).await, Err(Error::NotPrivate { .. })));
    assert!(matches!(shared.kill_backend(1).await, Err(Error::NotPrivate { .. })));
}

#[tokio::test]
async fn a_proxy_follows_its_server_through_a_restart() {
    let (server, db) = server().await;
    let proxy = Proxy::to_server(&server).unwrap();
    let through = async || timeout(PATIENCE, PgConnection::connect(&proxy.url_of(db.name()))).await.unwrap();
    let mut lost = through().await.unwrap();

    server.restart(Stop::Fast).await.unwrap();

    assert!(timeout(Duration::from_secs(10), lost.ping()).await.unwrap().is_err());
    let word: String =
        sqlx::query_scalar("select t from word").fetch_one(&mut through().await.unwrap()).await.unwrap();
    assert_eq!(word, "kept");
}
