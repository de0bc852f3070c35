//! Finding a row by a blind index, beside finding it by its plain text.

use std::sync::Arc;

use anyhow::ensure;
use db_core::Pool;
use db_core::PoolOptions;
use db_core::encryption::{BlindIndex, Columns, Key, Keyring};
use sqlx::Connection;
use tokio::runtime::Runtime;

use crate::load::Work;
use crate::report::Report;
use crate::rounds::{interleave, narrow};
use crate::rows::{CONNECTIONS, arm};
use crate::server::Database;

/// The rows of the table.
const ROWS: i64 = 100_000;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with(runtime, |database| {
        let keys: Vec<Key> = (0..3).map(|_| Key::generate()).collect::<Result<_, _>>()?;
        let indexes: Vec<BlindIndex> =
            (1..=keys.len()).map(|live| index(&keys[..live])).collect::<Result<_, _>>()?;
        runtime.block_on(make_rows(database, &indexes[0]))?;
        let _inside = runtime.enter();
        let pool = Pool::new(&database.config()?, PoolOptions::api().max(CONNECTIONS));
        let mut arms = vec![arm(runtime, "index.text", ByText(pool.clone()))];
        for (live, index) in (1..).zip(indexes) {
            arms.push(arm(runtime, &format!("index.{live}"), ByIndex { pool: pool.clone(), index }));
        }

        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        let rows = (1..=keys.len())
            .map(|live| {
                measured.rates(format!("index.{live}.vs_text"), &format!("index.{live}"), "index.text")
            })
            .collect();
        Ok(measured.report(what, rows))
    })
}

/// The index under these keys, of which the last one seals: the first one has made what is stored.
fn index(keys: &[Key]) -> anyhow::Result<BlindIndex> {
    let columns = Columns::default();
    let index = columns.index("customers", "email").build();
    let mut keys = keys.iter().rev();
    let first = keys.next().expect("at least one key");
    let keyring = keys.try_fold(Keyring::new(first), Keyring::with_retired)?;
    columns.unlock(Arc::new(keyring))?;
    Ok(index)
}

fn email(n: i64) -> String {
    format!("customer.{}@example.org", n.rem_euclid(ROWS))
}

async fn make_rows(database: &Database, index: &BlindIndex) -> anyhow::Result<()> {
    let mut conn = sqlx::PgConnection::connect_with(&database.config()?.as_sqlx()).await?;
    sqlx::raw_sql(
        "create table bench_customers (id int8 primary key, email text not null, email_index bytea not null)",
    )
    .execute(&mut conn)
    .await?;
    let ids: Vec<i64> = (0..ROWS).collect();
    let emails: Vec<String> = ids.iter().map(|id| email(*id)).collect();
    let indexes: Vec<Vec<u8>> = emails.iter().map(|email| index.of(email)).collect::<Result<_, _>>()?;
    sqlx::query("insert into bench_customers select * from unnest($1::int8[], $2::text[], $3::bytea[])")
        .bind(ids)
        .bind(emails)
        .bind(indexes)
        .execute(&mut conn)
        .await?;
    sqlx::raw_sql(
        "create index on bench_customers (email); create index on bench_customers (email_index); analyze bench_customers",
    )
    .execute(&mut conn)
    .await?;
    conn.close().await?;
    Ok(())
}

/// Spreads the rows that are looked for, so that neither arm has a row's page at hand.
fn wanted(task: u32, n: i64) -> i64 {
    (n.wrapping_mul(7919).wrapping_add(i64::from(task) * 104_729)).rem_euclid(ROWS)
}

struct ByText(Pool);

impl Work for ByText {
    async fn once(&self, task: u32, n: i64) -> anyhow::Result<()> {
        let wanted = wanted(task, n);
        let found: i64 = sqlx::query_scalar("select id from bench_customers where email = $1")
            .bind(email(wanted))
            .fetch_one(&self.0)
            .await?;
        ensure!(found == wanted, "looked for {wanted}, and found {found}");
        Ok(())
    }
}

struct ByIndex {
    pool: Pool,
    index: BlindIndex,
}

impl Work for ByIndex {
    async fn once(&self, task: u32, n: i64) -> anyhow::Result<()> {
        let wanted = wanted(task, n);
        let found: i64 = sqlx::query_scalar(
            "select id from bench_customers where email_index = any((select $1::bytea[])::bytea[])",
        )
        .bind(self.index.any(&email(wanted))?)
        .fetch_one(&self.pool)
        .await?;
        ensure!(found == wanted, "looked for {wanted}, and found {found}");
        Ok(())
    }
}
