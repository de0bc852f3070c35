//! The check at opening whether the server has room for the pools.

use db_embedded::Server;
use db_layer::{Config, OpenError, Options, PoolOptions};
use db_testkit::{TestDb, TestServer};

use crate::{PATIENCE, config};

/// A server whose connections a test can use up.
pub(crate) async fn small(settings: &[(&str, &str)]) -> (TestServer, TestDb) {
    let builder =
        settings.iter().fold(Server::throwaway(), |builder, (name, value)| builder.setting(*name, *value));
    let server = TestServer::start(builder).await.expect("a server");
    let db = server.empty().await.expect("a database");
    (server, db)
}

fn sized(config: &Config, api: u32, backend: u32, instances: u32) -> Options {
    Options::new(config.clone())
        .instances(instances)
        .api(PoolOptions::api().max(api))
        .backend(PoolOptions::backend().max(backend))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_fit_below_max_connections_less_what_superusers_keep() {
    let (_server, db) = small(&[("max_connections", "40"), ("superuser_reserved_connections", "7")]).await;
    let config = config(&db);

    // Each pool may have five more for a time, the bus has two, and the pulse has one: 4 + 5 + 16 + 5 + 2 + 1 = 33 = 40 - 7.
    let Err(OpenError::ConnectionBudgetExceeded(exceeded)) = db_layer::open(sized(&config, 4, 17, 1)).await
    else {
        panic!("there is no room")
    };
    assert_eq!(
        (exceeded.needed(), exceeded.available(), exceeded.largest_backend_that_fits()),
        (34, 33, Some(16))
    );
    let text = exceeded.to_string();
    for part in
        ["max_connections 40 less 7 reserved", "lower backend-max-conns to 16", "raise max_connections to 41"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.ends_with("twice the server's cores plus its disks do not raise throughput"), "{text}");
    let two = db_layer::open(sized(&config, 1, 5, 2)).await;
    assert!(
        matches!(&two, Err(OpenError::ConnectionBudgetExceeded(exceeded)) if exceeded.needed() == 2 * 19),
        "{two:?}"
    );

    let layer = db_layer::open(sized(&config, 4, 16, 1)).await.expect("it fits");
    let mut conns = Vec::new();
    for _ in 0..4 {
        conns.push(layer.api().acquire().await.expect("one of the api's"));
    }
    for _ in 0..16 {
        conns.push(layer.backend().acquire().await.expect("one of the backend's"));
    }
    drop(conns);
    assert!(layer.shutdown(PATIENCE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_reserved_for_roles_count_on_servers_that_have_them() {
    let (server, db) = small(&[("max_connections", "30"), ("superuser_reserved_connections", "3")]).await;
    // `reserved_connections` came with PostgreSQL 16; an older server refuses the setting, and the check must still work.
    let knows: bool = sqlx::query_scalar("select current_setting('server_version_num')::int4 >= 160000")
        .fetch_one(&db.pool())
        .await
        .expect("a version");
    let (_server, db, available) = if knows {
        let settings = [
            ("max_connections", "30"),
            ("superuser_reserved_connections", "3"),
            ("reserved_connections", "4"),
        ];
        let (server, db) = small(&settings).await;
        (server, db, 23)
    } else {
        (server, db, 27)
    };

    let Err(OpenError::ConnectionBudgetExceeded(exceeded)) =
        db_layer::open(sized(&config(&db), 10, 50, 1)).await
    else {
        panic!("there is no room")
    };
    assert_eq!(exceeded.available(), available);
}
