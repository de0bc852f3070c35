//! Waiting for servers, and failing at once where waiting cannot help.

use std::time::{Duration, Instant};

use db_core::{Config, ConnectFailure, ConnectRetry, RetryBudget, connect::connect};
use db_testkit::TestDb;
use sqlx::Connection;

use crate::support::{Guarded, config};

/// A policy that waits long enough for a wrong wait to be noticed.
fn long() -> ConnectRetry {
    ConnectRetry::default()
        .deadline(Duration::from_mins(1))
        .attempt(Duration::from_secs(5))
        .min_pause(Duration::from_millis(20))
        .max_pause(Duration::from_millis(100))
}

async fn fails_at_once(config: &Config) -> String {
    let started = Instant::now();
    let error = connect(config, long()).await.expect_err("no connection");
    assert!(started.elapsed() < Duration::from_secs(20), "waited {:?} for {error}", started.elapsed());
    assert!(error.failure().is_final() && error.attempts() == 1, "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    error.to_string()
}

#[db_testkit::test]
async fn an_unknown_database_fails_at_once_with_its_name(db: TestDb) {
    let text = fails_at_once(&config(&db).with_database("nope")).await;

    assert!(text.contains("there is no database `nope` on this server (3D000)"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_a_forbidden_role_fail_at_once_with_the_role() {
    let server = Guarded::start().await;

    let wrong = fails_at_once(&server.config("app:hunter2")).await;
    assert!(wrong.contains("the password of role `app` was refused (28P01)"), "{wrong}");

    let stranger = fails_at_once(&server.config("stranger:hunter2")).await;
    assert!(stranger.contains("role `stranger` may not log in from here"), "{stranger}");
}

#[db_testkit::test]
async fn connect_waits_for_a_server_that_starts_later(_db: TestDb) {
    let folder = tempfile::tempdir().expect("a folder");
    open_to_all(folder.path());
    let data = folder.path().join("server");
    let socket = data.join("run");
    let config = Config::from_url(&format!("postgres://postgres@/postgres?host={}", socket.display()))
        .expect("an address");

    let waiting = tokio::spawn(async move { connect(&config, long()).await });
    let server = tokio::task::spawn_blocking(|| db_embedded_start(data)).await.expect("no panic");
    let connection = waiting.await.expect("no panic").expect("connected");

    connection.close().await.expect("closed");
    drop(server);
}

/// As root, the server runs as another user, who must be able to enter the folder.
fn open_to_all(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).expect("permissions");
}

fn db_embedded_start(data: std::path::PathBuf) -> db_embedded::Server {
    db_embedded::Server::kept(data).start().expect("a server")
}

#[tokio::test]
async fn an_unreachable_server_fails_at_the_deadline_with_the_number_of_attempts() {
    let unreachable = Config::from_url("postgres://app:hunter2@127.0.0.1:1/shop").expect("an address");
    let retry = long().deadline(Duration::from_millis(400));
    let started = Instant::now();

    let error = connect(&unreachable, retry).await.expect_err("no server listens");

    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(matches!(error.failure(), ConnectFailure::NotReached(_)), "{error:?}");
    assert!(error.attempts() > 1, "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("could not connect to app@127.0.0.1:1/shop: no server answers"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_silent_server_fails_at_the_limit_of_an_attempt() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let port = silent.local_addr().expect("an address").port();
    let config = Config::from_url(&format!("postgres://app@127.0.0.1:{port}/shop")).expect("an address");
    let retry = long().deadline(Duration::ZERO).attempt(Duration::from_millis(200));

    let error = connect(&config, retry).await.expect_err("no answer");

    assert!(error.to_string().ends_with("no answer within 0.2 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_scram_cannot_use_is_refused_before_connecting() {
    let server = Guarded::start().await;
    let good = server.config("app:right");
    for bad in ["crab🦀", "ends\n", "both\u{5e9}ways"] {
        let address = format!("postgres://app@db/shop?password={}", percent_encoded(bad));

        let error = Config::from_url(&address).expect_err(bad);

        assert!(error.to_string().contains("SASLprep"), "{error}");
        assert!(!format!("{error} {error:?}").contains(bad) && !error.to_string().contains('🦀'), "{error}");
    }

    // Without a password, the driver does not check the role, and the server decides.
    let unsupported =
        Config::from_url(&format!("postgres://{}@db/shop", "%F0%9F%A6%80")).expect("no password");
    assert_eq!(unsupported.user(), "🦀");
    let none_given = server.config("%F0%9F%A6%80");
    let error = connect(&none_given, long()).await.expect_err("no such role");
    assert!(error.failure().is_final() && !error.to_string().contains("TLS"), "{error}");
    connect(&good, long()).await.expect("the right password").close().await.expect("closed");
}

fn percent_encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn the_last_error_of_a_retry_budget_counts_all_attempts_and_the_whole_wait() {
    let unreachable = Config::from_url("postgres://app@127.0.0.1:1/shop").expect("an address");
    let retry = long().deadline(Duration::from_millis(400));
    let mut budget = RetryBudget::new(long());
    let (mut attempts, mut waited) = (0, Duration::ZERO);
    let mut last = None;
    for _ in 0..2 {
        let mut error = connect(&unreachable, retry).await.expect_err("no server listens");
        attempts += error.attempts();
        waited += error.waited();
        budget.count(&mut error);
        last = Some(error);
    }

    let last = last.expect("an error");
    assert_eq!(last.attempts(), attempts);
    assert!(last.waited() >= waited, "{:?} of {waited:?}", last.waited());
    assert!(last.to_string().contains(&format!("(tried {attempts} times in ")), "{last}");
}
