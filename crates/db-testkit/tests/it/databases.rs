//! Each test has its own database, for as long as it runs.

use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use db_testkit::{Error, TestDb, TestServer, poll_then_drop};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::support::{ask, databases, eventually, maintenance};

#[tokio::test]
async fn two_tests_get_different_databases_with_the_same_tables() {
    let (one, other) = (
        TestDb::create("tests/migrations").await.unwrap(),
        TestDb::create("tests/migrations").await.unwrap(),
    );

    sqlx::query("insert into builds (name) values ('of one')").execute(&one.pool()).await.unwrap();

    assert_ne!(one.name(), other.name());
    assert_eq!(ask(&one.options(), "select count(*)::text from builds").await, "2");
    assert_eq!(ask(&other.options(), "select count(*)::text from builds").await, "1");
}

#[tokio::test]
async fn the_address_the_options_and_the_pool_lead_to_the_database() {
    let db = TestDb::empty().await.unwrap();
    let by_address = PgConnectOptions::from_str(&db.url()).unwrap();

    let sql = "select current_database()::text";

    assert_eq!(ask(&by_address, sql).await, db.name());
    assert_eq!(ask(&db.options(), sql).await, db.name());
    let by_pool: String = sqlx::query_scalar(sql).fetch_one(&db.pool()).await.unwrap();
    assert_eq!(by_pool, db.name());
}

#[tokio::test]
async fn a_dropped_database_is_gone_with_its_sessions() {
    let server = TestServer::throwaway().await.unwrap();
    let (stays, goes) = (server.empty().await.unwrap(), server.create("tests/migrations").await.unwrap());
    let _user = goes.pool().acquire().await.unwrap();
    let all = databases(&maintenance(&stays), "tk_").await;
    assert!(all.contains(&goes.name().to_owned()), "{all:?}");

    let (name, begun) = (goes.name().to_owned(), Instant::now());
    drop(goes);
    println!("a drop took {:?}", begun.elapsed());

    let left = databases(&maintenance(&stays), "tk_").await;
    assert!(!left.contains(&name), "{name} is still among {left:?}");
}

#[tokio::test]
async fn drop_now_says_when_it_is_done() {
    let server = TestServer::throwaway().await.unwrap();
    let (stays, goes) = (server.empty().await.unwrap(), server.empty().await.unwrap());

    goes.drop_now().await.unwrap();

    assert_eq!(databases(&maintenance(&stays), "tk_").await, [stays.name()]);
}

#[tokio::test]
async fn a_database_whose_making_is_dropped_anywhere_is_gone() {
    let server = TestServer::throwaway().await.unwrap();
    let stays = server.empty().await.unwrap();
    for polls in 0.. {
        let made = poll_then_drop(server.empty(), polls).await;
        let is_made = made.transpose().unwrap().is_some();

        let sql = "select count(*)::text from pg_stat_activity where state = 'active' and query like 'create data%'";
        eventually("no session makes a database", async || ask(&maintenance(&stays), sql).await == "0").await;
        assert_eq!(databases(&maintenance(&stays), "tk_").await, [stays.name()], "after {polls} polls");
        if is_made {
            break;
        }
    }
}

#[tokio::test]
async fn a_panic_drops_the_database_too() {
    let server = TestServer::throwaway().await.unwrap();
    let stays = server.empty().await.unwrap();
    let test = {
        let server = server.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let db = server.empty().await.unwrap();
                let _user = db.pool().acquire().await.unwrap();
                panic!("with {} open", db.name());
            });
        })
    };

    let panic = test.join().unwrap_err();

    assert!(panic.downcast_ref::<String>().unwrap().starts_with("with tk_"), "{panic:?}");
    assert_eq!(databases(&maintenance(&stays), "tk_").await, [stays.name()]);
}

#[tokio::test]
async fn the_database_can_outlive_its_runtime() {
    let server = TestServer::throwaway().await.unwrap();
    let stays = server.empty().await.unwrap();
    let db = {
        let server = server.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.empty()).unwrap()
        })
        .join()
        .unwrap()
    };

    drop(db);

    assert_eq!(databases(&maintenance(&stays), "tk_").await, [stays.name()]);
}

#[tokio::test]
async fn a_database_alone_keeps_its_server() {
    let server = TestServer::throwaway().await.unwrap();
    let db = server.empty().await.unwrap();
    let folder = db.server().unwrap().data_dir().parent().unwrap().to_path_buf();

    drop(server);
    assert_eq!(ask(&db.options(), "select 'pong'").await, "pong");
    drop(db);

    eventually("the server's folder is gone", async || !folder.exists()).await;
}

#[tokio::test]
async fn a_database_survives_a_crash_of_its_own_server() {
    let server = TestServer::throwaway().await.unwrap();
    let survivor = server.create("tests/migrations").await.unwrap();
    let killed = survivor.server().unwrap().postmaster_pid().unwrap();

    let status = std::process::Command::new("kill").args(["-QUIT", &killed.to_string()]).status().unwrap();
    assert!(status.success());
    let back = || survivor.server().unwrap().postmaster_pid().is_ok_and(|pid| pid != killed);
    eventually("the server is back", async || back() && survivor.options().connect().await.is_ok()).await;
    let newcomer = server.empty().await.unwrap();

    assert_eq!(ask(&survivor.options(), "select name from builds").await, "first");
    let name = survivor.name().to_owned();
    drop(survivor);
    assert!(!databases(&maintenance(&newcomer), "tk_").await.contains(&name));
}

#[tokio::test]
async fn a_folder_without_migrations_is_named() {
    match TestDb::create(Path::new("no/such/folder")).await {
        Err(error @ Error::Migrations { .. }) => {
            assert!(error.to_string().contains("no/such/folder"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn no_form_of_a_database_shows_a_password() {
    let db = TestDb::empty().await.unwrap();

    assert!(!format!("{db:?}").to_lowercase().contains("password"), "{db:?}");
}
