//! Transactions inside web handlers, whose futures must be `Send`.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use db_core::{Error, Isolation, Pool, TxOptions, TxRetry};
use db_testkit::TestDb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::pool;

/// A handler whose transaction borrows local variables.
async fn add(State(pool): State<Pool>) -> String {
    let words = vec!["a".to_owned(), "b".to_owned()];
    let mut lengths = 0;
    let count: Result<i64, Error> = pool
        .handle()
        .tx(async |tx| {
            for word in &words {
                sqlx::query("insert into word values ($1)").bind(word).execute(&mut *tx).await?;
                lengths += word.len();
            }
            Ok(sqlx::query_scalar("select count(*) from word").fetch_one(&mut *tx).await?)
        })
        .await;
    format!("{} {lengths}", count.expect("committed"))
}

/// As `add`, in a transaction that may run several times.
async fn add_again(State(pool): State<Pool>) -> String {
    let words = vec!["c".to_owned(), "d".to_owned()];
    let options = TxOptions::default().isolation(Isolation::Serializable);
    let (words, name) = (&words, pool.name());
    let count: Result<i64, Error> = pool
        .handle()
        .tx_retry(options, TxRetry::default(), || {
            async move |tx| {
                for word in words {
                    sqlx::query("insert into word values ($1)").bind(word).execute(&mut *tx).await?;
                }
                Ok(sqlx::query_scalar("select count(*) from word").fetch_one(&mut *tx).await?)
            }
        })
        .await;
    format!("{} {name}", count.expect("committed"))
}

#[db_testkit::test]
async fn a_handler_runs_a_transaction_that_borrows_its_surroundings(db: TestDb) {
    let pool = pool(&db, 1);
    sqlx::query("create table word (t text)").execute(pool.handle()).await.expect("a table");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let app = Router::new().route("/", get(add)).route("/again", get(add_again)).with_state(pool);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    for (path, expected) in [("/", "2 2"), ("/again", "4 test")] {
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.ends_with(expected), "{answer}");
    }
    server.abort();
}
