//! A host becomes a standby while a pool has sessions there, and its address then leads to the new primary.

use db_core::{Class, Config, Error, Pool, PoolOptions, Repeat};
use db_testkit::{Cluster, Proxy, until};
use futures_util::future::join_all;
use sqlx::{Connection, PgConnection};

use crate::support::{PATIENCE, take};

const MAX: u32 = 4;

async fn write(pool: &Pool) -> Result<(), Error> {
    sqlx::query("insert into t values (1)").execute(pool.handle()).await?;
    Ok(())
}

fn is_read_only(error: &Error) -> bool {
    error.sqlstate().as_deref() == Some("25006")
}

/// Whether all connections that the pool may open lead to a standby, or all to a primary.
async fn all_lead_to(pool: &Pool, standby: bool) -> bool {
    let mut all = true;
    for mut conn in take(pool, MAX as usize).await {
        let asked = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut conn).await;
        all &= asked.is_ok_and(|is_standby: bool| is_standby == standby);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_to_a_host_that_became_a_standby_are_refused_until_its_address_leads_to_the_new_primary() {
    let mut cluster = Cluster::start().await.expect("a cluster");
    let (old, new) = (cluster.primary(), cluster.standby(0));
    let mut setup = PgConnection::connect(&old.url()).await.expect("a connection");
    sqlx::raw_sql("create table t (n int)").execute(&mut setup).await.expect("a table");
    setup.close().await.expect("closed");
    let proxy = Proxy::to_address(&old.url()).expect("a proxy");
    let config = Config::from_url(&proxy.url()).expect("the proxy's address");
    let pool = Pool::new(&config, PoolOptions::api().max(MAX).acquire_timeout(PATIENCE));
    assert!(all_lead_to(&pool, false).await);
    write(&pool).await.expect("the primary accepts writes");

    cluster.switch_over(&new).await.expect("changed places");

    // The sessions of the old primary were ended. Sessions dialled now read from the standby.
    until("the pool has its sessions at the standby", async || all_lead_to(&pool, true).await).await;
    for _ in 0..2 * MAX {
        let error = write(&pool).await.expect_err("a standby refuses writes");
        assert!(is_read_only(&error), "{error}");
        assert_eq!((error.class(), error.repeat()), (Class::ReadOnly, Repeat::Later), "{error}");
        assert!(error.retry_after().is_some(), "{error}");
    }
    assert!(all_lead_to(&pool, true).await, "reads still work");

    proxy.lead_to(&new.url()).expect("redirected");

    // The sessions at the standby still work, so each of them may fail one write.
    let users = join_all((0..16).map(|_| async {
        let mut refused = 0;
        while let Err(error) = write(&pool).await {
            assert!(is_read_only(&error), "{error}");
            refused += 1;
        }
        refused
    }));
    let refused: Vec<u32> = users.await;
    assert!(refused.iter().sum::<u32>() <= MAX, "{refused:?}");
    until("the pool has its sessions at the primary", async || all_lead_to(&pool, false).await).await;
    let mut after = 0;
    for _ in 0..40 {
        after += u32::from(write(&pool).await.is_err());
    }
    assert_eq!(after, 0);
}
