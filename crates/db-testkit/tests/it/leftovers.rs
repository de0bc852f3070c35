//! What killed test processes leave behind.

use db_embedded::Server;
use sqlx::postgres::PgConnectOptions;
use std::str::FromStr;

use crate::child::Holder;
use crate::support::{databases, eventually, is_named_by_a_process, open_dir};

/// The tests' databases, without templates.
async fn test_databases(options: &PgConnectOptions) -> Vec<String> {
    let mut all = databases(options, "tk_").await;
    all.retain(|name| !name.starts_with("tk_template_"));
    all
}

#[tokio::test]
async fn on_a_given_server_the_next_test_drops_what_a_killed_one_left_and_spares_the_living() {
    let server = tokio::task::spawn_blocking(|| Server::throwaway().start()).await.unwrap().unwrap();
    let address = server.url("postgres");
    let options = PgConnectOptions::from_str(&address).unwrap();
    let hold = || {
        Holder::start(|command| {
            command.env("DATABASE_URL", &address);
        })
    };
    let (living, killed) = (hold(), hold());
    let left = killed.database.clone();
    killed.kill();
    assert!(test_databases(&options).await.contains(&left), "a killed process cannot drop its database");

    eventually("a later test drops it", async || {
        hold().end();
        !test_databases(&options).await.contains(&left)
    })
    .await;

    assert_eq!(test_databases(&options).await, [living.database.as_str()]);
    assert_eq!(living.data, "", "DATABASE_URL names the server, so the kit has started none");
    living.end();
    assert_eq!(test_databases(&options).await, [""; 0]);
    assert_eq!(databases(&options, "tk_template_").await.len(), 1, "the template stays for the next run");
}

#[tokio::test]
async fn on_our_own_server_a_killed_test_leaves_nothing() {
    let base = open_dir();
    let hold = || {
        Holder::start(|command| {
            command.env_remove("DATABASE_URL").env("TMPDIR", base.path());
        })
    };
    let (one, other) = (hold(), hold());
    assert_eq!(one.data, other.data, "test processes share the server");

    one.kill();
    other.kill();

    eventually("the server and its folder are gone", async || {
        std::fs::read_dir(base.path()).unwrap().next().is_none()
    })
    .await;
    eventually("no process names the folder", async || !is_named_by_a_process(base.path())).await;
}
