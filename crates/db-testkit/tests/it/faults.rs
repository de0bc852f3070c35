//! What a client behind the proxy sees of each fault, and what the server sees.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use db_testkit::{Error, Proxy, Session, TestDb, TestServer, until};
use nix::unistd::Uid;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::time::timeout;

use crate::support::PATIENCE;

/// Longer than an answer takes, for tests in which none may come.
const SILENCE: Duration = Duration::from_millis(300);

async fn connect(proxy: &Proxy) -> PgConnection {
    timeout(PATIENCE, proxy.options().connect()).await.unwrap().unwrap()
}

/// Runs a statement by the simple protocol: one message, one answer.
async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())));
    timeout(PATIENCE, done).await.expect("an answer or an error").map(drop)
}

async fn is_silent(connection: &mut PgConnection) -> bool {
    timeout(SILENCE, connection.execute(sqlx::raw_sql("select 1"))).await.is_err()
}

fn is_reset(result: Result<(), sqlx::Error>) -> bool {
    match result {
        // Which error it is depends on whether the client was writing or reading.
        Err(sqlx::Error::Io(error)) => {
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        }
        other => panic!("{other:?}"),
    }
}

async fn rows(db: &TestDb) -> i64 {
    sqlx::query_scalar("select count(*) from word").fetch_one(&db.pool()).await.unwrap()
}

async fn table(db: &TestDb) {
    db.pool().execute("create table word (t text)").await.unwrap();
}

#[db_testkit::test]
async fn the_proxy_leads_to_the_database(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut by_address = PgConnection::connect(&proxy.url()).await.unwrap();

    assert_eq!(database(&mut by_address).await, db.name());
    assert_eq!((proxy.accepted(), proxy.open_connections(), proxy.refused()), (1, 1, 0));
    by_address.close().await.unwrap();
    until("the closed connection is gone", async || proxy.open_connections() == 0).await;
    db.until_sessions("none", <[_]>::is_empty).await;
    assert_eq!(proxy.accepted(), 1);
}

#[db_testkit::test]
async fn much_passes_in_both_directions(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    let text = "x".repeat(20_000_000);

    let echo: String =
        sqlx::query_scalar("select $1::text").bind(&text).fetch_one(&mut connection).await.unwrap();

    assert!(echo == text);
}

#[db_testkit::test]
async fn a_dropped_proxy_closes_its_connections_and_sessions(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;

    drop(proxy);

    assert!(run(&mut connection, "select 1").await.is_err());
    db.until_sessions("none", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn after_a_reset_open_connections_fail_and_new_ones_work(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let (mut one, mut other) = (connect(&proxy).await, connect(&proxy).await);

    proxy.reset();

    assert_eq!(proxy.open_connections(), 0);
    assert!(is_reset(run(&mut one, "select 1").await));
    assert!(is_reset(run(&mut other, "select 1").await));
    db.until_sessions("none", <[_]>::is_empty).await;
    run(&mut connect(&proxy).await, "select 1").await.unwrap();
    assert_eq!(proxy.accepted(), 3);
}

#[db_testkit::test(leaves = "pg_sleep")]
async fn a_reset_ends_a_statement_that_waits_for_its_answer(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    let query = run(&mut connection, "select pg_sleep(5)");
    let reset = async {
        db.until_sessions("the statement runs", |all| all.iter().any(Session::is_running)).await;
        proxy.reset();
    };

    let (result, ()) = tokio::join!(query, reset);

    assert!(is_reset(result));
}

#[db_testkit::test]
async fn latency_is_added_in_each_direction_and_not_to_each_chunk(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    let each_way = Duration::from_millis(150);
    proxy.latency(each_way);

    let begun = Instant::now();
    run(&mut connection, "select 1").await.unwrap();
    let one = begun.elapsed();
    // One delay for each of some hundred chunks would add up to a minute.
    let begun = Instant::now();
    run(&mut connection, "select repeat('x', 1000) from generate_series(1, 10000)").await.unwrap();
    let many = begun.elapsed();
    proxy.heal();
    let begun = Instant::now();
    run(&mut connection, "select 1").await.unwrap();

    assert!(one >= 2 * each_way, "{one:?}");
    assert!(many < Duration::from_secs(10), "{many:?}");
    assert!(begun.elapsed() < one, "{:?}", begun.elapsed());
}

#[db_testkit::test]
async fn in_a_black_hole_nothing_answers_and_healing_resets_what_lost_something(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let (mut talks, mut idle) = (connect(&proxy).await, connect(&proxy).await);
    proxy.black_hole();

    assert!(is_silent(&mut talks).await);
    let options = proxy.options();
    let mut dial = Box::pin(options.connect());
    assert!(timeout(SILENCE, &mut dial).await.is_err(), "a new connection gets no answer either");
    assert_eq!(proxy.accepted(), 3, "although it is accepted");
    assert!(db.sessions().await.unwrap().iter().all(|it| !it.query.contains("select 1")));
    proxy.heal();

    assert!(is_reset(run(&mut talks, "select 1").await));
    assert!(is_reset(timeout(PATIENCE, dial).await.unwrap().map(drop)));
    run(&mut idle, "select 1").await.unwrap();
    run(&mut connect(&proxy).await, "select 1").await.unwrap();
}

#[db_testkit::test]
async fn the_server_does_not_learn_of_a_close_in_a_black_hole(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let connection = connect(&proxy).await;
    proxy.black_hole();

    connection.close().await.unwrap();

    // Without the black hole, the session would be gone within some milliseconds.
    tokio::time::sleep(SILENCE).await;
    assert_eq!(db.sessions().await.unwrap().len(), 1);
    proxy.heal();
    db.until_sessions("none", <[_]>::is_empty).await;
}

#[db_testkit::test]
async fn frozen_connections_go_on_where_they_were(db: TestDb) {
    table(&db).await;
    let proxy = Proxy::start(&db).unwrap();
    let mut old = connect(&proxy).await;
    proxy.freeze();

    let mut insert = Box::pin(run(&mut old, "insert into word values ('sent in the frost')"));
    assert!(timeout(SILENCE, &mut insert).await.is_err());
    let options = proxy.options();
    let mut dial = Box::pin(options.connect());
    assert!(timeout(SILENCE, &mut dial).await.is_err(), "a new connection is frozen, too");
    assert_eq!((rows(&db).await, proxy.accepted()), (0, 2));
    proxy.thaw();

    insert.await.unwrap();
    run(&mut timeout(PATIENCE, dial).await.unwrap().unwrap(), "select 1").await.unwrap();
    assert_eq!(rows(&db).await, 1);
}

#[db_testkit::test]
async fn when_only_open_connections_are_frozen_new_ones_work(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut old = connect(&proxy).await;
    proxy.freeze_open();

    let mut query = Box::pin(run(&mut old, "select 1"));
    assert!(timeout(SILENCE, &mut query).await.is_err());
    run(&mut connect(&proxy).await, "select 1").await.unwrap();
    proxy.heal();

    query.await.unwrap();
}

#[db_testkit::test]
async fn a_half_open_connection_has_no_session_and_no_answer(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut old = connect(&proxy).await;
    db.until_sessions("one", |all| all.len() == 1).await;

    proxy.half_open();

    db.until_sessions("none", <[_]>::is_empty).await;
    assert!(is_silent(&mut old).await);
    assert_eq!(proxy.open_connections(), 1);
    run(&mut connect(&proxy).await, "select 1").await.unwrap();
    proxy.heal();
    assert!(is_reset(run(&mut old, "select 1").await));
}

#[db_testkit::test]
async fn a_cut_ends_one_connection_after_so_many_bytes_of_the_server(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    proxy.cut_after(100_000);

    assert!(is_reset(run(&mut connection, "select repeat('x', 1000000)").await));

    let mut next = connect(&proxy).await;
    run(&mut next, "select repeat('x', 1000000)").await.unwrap();
}

#[db_testkit::test]
async fn a_cut_from_the_client_keeps_a_commit_from_the_server(db: TestDb) {
    table(&db).await;
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    run(&mut connection, "begin; insert into word values ('lost')").await.unwrap();
    proxy.cut_after_from_client(5);

    assert!(is_reset(run(&mut connection, "COMMIT").await));

    db.until_sessions("none", <[_]>::is_empty).await;
    assert_eq!(rows(&db).await, 0);
}

#[db_testkit::test]
async fn when_the_answer_to_a_commit_is_cut_the_rows_are_there(db: TestDb) {
    table(&db).await;
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    let mut tx = connection.begin().await.unwrap();
    sqlx::query("insert into word values ('kept')").execute(&mut *tx).await.unwrap();
    proxy.cut_answer_to("COMMIT");

    let committed = tx.commit().await;

    assert_eq!(rows(&db).await, 1, "at the moment of the error");
    assert!(is_reset(committed));
    run(&mut connect(&proxy).await, "begin; COMMIT").await.unwrap();
}

#[db_testkit::test]
async fn the_answer_to_a_prepared_statement_is_cut_after_it_ran(db: TestDb) {
    table(&db).await;
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    proxy.cut_answer_to("insert");

    let inserted = sqlx::query("insert into word values ($1)").bind("kept").execute(&mut connection).await;

    assert_eq!(rows(&db).await, 1);
    assert!(is_reset(inserted.map(drop)));
}

#[db_testkit::test]
async fn when_a_commit_is_cut_before_it_is_sent_the_rows_are_not_there(db: TestDb) {
    table(&db).await;
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    let mut tx = connection.begin().await.unwrap();
    sqlx::query("insert into word values ('lost')").execute(&mut *tx).await.unwrap();
    proxy.cut_before("COMMIT");

    assert!(is_reset(tx.commit().await));

    db.until_sessions("none", <[_]>::is_empty).await;
    assert_eq!(rows(&db).await, 0);
}

#[db_testkit::test]
async fn refused_are_new_connections_only_and_until_healed(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut old = connect(&proxy).await;
    proxy.refuse();

    let refused = timeout(PATIENCE, proxy.options().connect()).await.unwrap();

    assert!(is_reset(refused.map(drop)));
    assert_eq!((proxy.accepted(), proxy.refused()), (1, 1));
    run(&mut old, "select 1").await.unwrap();
    proxy.heal();
    run(&mut connect(&proxy).await, "select 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn led_elsewhere_are_new_connections_only_and_a_reset_moves_the_others() {
    let (one, other) = (TestServer::throwaway().await.unwrap(), TestServer::throwaway().await.unwrap());
    let (here, there) = (one.empty().await.unwrap(), other.empty().await.unwrap());
    let proxy = Proxy::start(&here).unwrap();
    let mut old = connect(&proxy).await;

    proxy.lead_to(&there.direct_url()).unwrap();

    run(&mut old, "select 1").await.unwrap();
    assert_eq!(database(&mut old).await, here.name());
    let elsewhere = proxy.options().database(there.name());
    assert_eq!(database(&mut elsewhere.connect().await.unwrap()).await, there.name());
    let error = proxy.options().connect().await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "3D000", "the first one's database");
    proxy.heal();
    assert_eq!(database(&mut elsewhere.connect().await.unwrap()).await, there.name());
    proxy.reset();
    assert!(is_reset(run(&mut old, "select 1").await));
    let error = proxy.lead_to("nowhere").unwrap_err();
    assert!(matches!(error, Error::Address { .. }), "{error}");
}

async fn database(connection: &mut PgConnection) -> String {
    sqlx::query_scalar("select current_database()::text").fetch_one(connection).await.unwrap()
}

#[db_testkit::test]
async fn a_terminated_client_hears_why_as_without_a_proxy(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    let mut connection = connect(&proxy).await;
    proxy.freeze();
    let [session] = &db.sessions().await.unwrap()[..] else { panic!("one session") };
    sqlx::query("select pg_terminate_backend($1)").bind(session.pid).execute(&db.pool()).await.unwrap();
    db.until_sessions("none", <[_]>::is_empty).await;

    // The client has written already when the server's last message arrives.
    let mut query = Box::pin(run(&mut connection, "select 1"));
    assert!(timeout(SILENCE, &mut query).await.is_err());
    proxy.thaw();
    let error = query.await.unwrap_err();

    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "57P01");
}

#[db_testkit::test]
async fn a_connection_is_reset_even_before_the_proxy_has_looked_at_it(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    for round in 1..=50 {
        let mut client = dial(&proxy);
        proxy.reset();

        let error = client.read(&mut [0]).unwrap_err();

        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(proxy.accepted(), round);
    }
}

#[db_testkit::test]
async fn a_cut_lets_just_so_many_bytes_through(db: TestDb) {
    let proxy = Proxy::start(&db).unwrap();
    for (bytes, begins) in [(0, &b""[..]), (1, b"R"), (5, b"R\0\0\0\x08")] {
        let mut client = dial(&proxy);
        proxy.cut_after(bytes);

        // A startup message, which the server would accept.
        let start = format!("user\0{}\0database\0{}\0\0", db.options().get_username(), db.name());
        let length = u32::try_from(start.len() + 8).unwrap().to_be_bytes();
        client.write_all(&[&length[..], &[0, 3, 0, 0], start.as_bytes()].concat()).unwrap();
        let mut received = Vec::new();
        let error = client.read_to_end(&mut received).unwrap_err();

        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(received, begins);
    }
}

#[db_testkit::test]
async fn another_user_of_the_machine_is_turned_away(db: TestDb) {
    if !Uid::effective().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let proxy = Proxy::start(&db).unwrap();
    let connects_as = |uid| {
        // Waits until the other side closes, and exits with the way it did.
        let script = r#"exec 3<>"/dev/tcp/127.0.0.1/$0" && read -r -n 1 -t 20 <&3"#;
        let port = proxy.options().get_port().to_string();
        Command::new("bash").args(["-c", script, &port]).uid(uid).gid(uid).current_dir("/").spawn().unwrap()
    };

    let mut stranger = connects_as(65_534);
    until("the stranger was turned away", async || proxy.refused() == 1).await;
    stranger.wait().unwrap();
    assert_eq!(proxy.accepted(), 0);
    let mut own = connects_as(0);
    until("the same program as ourselves is let in", async || proxy.accepted() == 1).await;
    proxy.reset();
    own.wait().unwrap();
    assert_eq!(proxy.refused(), 1);
}

/// A raw connection, without a driver that reads ahead.
fn dial(proxy: &Proxy) -> TcpStream {
    let client = TcpStream::connect(("127.0.0.1", proxy.options().get_port())).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}
