//! Re-keying a column beside other ways to do it, and what readers of the table notice.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use db_core::encryption::{Declared, Key, KeyId, KeyType, Keyring, Strategy};
use db_core::{Config, Pool, PoolOptions};
use db_layer::db_migrate::batches::Pace;
use db_layer::db_migrate::rekey::{Mode, Rekey};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::arrivals::Arrivals;
use crate::load::{Load, Slice, Work};
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::{Commits, Database};

const ROWS: u32 = 100_000;
/// The bytes of a plain value.
const BYTES: usize = 200;
/// How long the ways that store row by row run. Their rate is the same at the beginning and at the end of the table.
const SLICE: Duration = Duration::from_secs(1);
/// Enough for thousands of reads, and shorter than re-keying at the default pace.
const READING: Duration = Duration::from_secs(2);
const CONNECTIONS: u32 = 10;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    Database::with_commits(runtime, Commits::Durable, |database| {
        let _inside = runtime.enter();
        let bed = Bed::make(runtime, database.config()?)?;
        let mut arms = vec![
            bed.arm("rekey.row_by_row", Bed::row_by_row),
            bed.arm("rekey.for_update", Bed::for_update),
            bed.arm("rekey.statement_a_row", Bed::statement_a_row),
            bed.arm("rekey.ours", |bed| bed.ours(Pace::flat_out())),
            bed.arm("rekey.ours_2", |bed| bed.ours(Pace::flat_out().workers(2))),
            bed.arm("rekey.limit", Bed::limit),
        ];
        let per_second = bed.reads_per_second()?;
        for (name, pace) in [
            ("rekey.readers_alone", None),
            ("rekey.readers", Some(Pace::default())),
            ("rekey.readers_flat_out", Some(Pace::flat_out())),
        ] {
            let bed = &bed;
            // At a quarter of what the pool can serve.
            arms.push(Arm::new(name, READING, move |slice| bed.readers(per_second / 4.0, slice, pace)));
        }

        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        let rows = vec![
            measured.rates("rekey.vs_row_by_row", "rekey.ours", "rekey.row_by_row"),
            measured.rates("rekey.2.vs_row_by_row", "rekey.ours_2", "rekey.row_by_row"),
            measured.rates("rekey.vs_for_update", "rekey.ours", "rekey.for_update"),
            measured.rates("rekey.vs_statement_a_row", "rekey.ours", "rekey.statement_a_row"),
            measured.rates("rekey.vs_limit", "rekey.ours", "rekey.limit"),
            measured.p99s("rekey.readers_p99", "rekey.readers", "rekey.readers_alone"),
            measured.p99s("rekey.readers_p99_flat_out", "rekey.readers_flat_out", "rekey.readers_alone"),
        ];
        Ok(measured.report(what, rows))
    })
}

/// A table, and two keyrings that have the same two keys, each with another one first.
struct Bed<'a> {
    runtime: &'a Runtime,
    config: Config,
    column: Declared,
    keyrings: [Arc<Keyring>; 2],
    pool: Pool,
}

impl<'a> Bed<'a> {
    fn make(runtime: &'a Runtime, config: Config) -> anyhow::Result<Self> {
        let keys = [Key::generate()?, Key::generate()?];
        let keyring = |first: usize| Keyring::new(&keys[first]).with_retired(&keys[1 - first]).map(Arc::new);
        let column = Declared::new("customers", "iban").key("id", KeyType::BigInt);
        let pool = Pool::new(&config, PoolOptions::api().max(CONNECTIONS));
        let bed = Self { runtime, config, column, keyrings: [keyring(0)?, keyring(1)?], pool };
        runtime.block_on(bed.fill())?;
        Ok(bed)
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        sqlx::raw_sql("create table customers (id bigint primary key, iban bytea not null) with (autovacuum_enabled = off)")
            .execute(&mut connection)
            .await?;
        let ids: Vec<i64> = (1..=i64::from(ROWS)).collect();
        let sealed: Result<Vec<_>, _> = ids.iter().map(|id| self.seal(*id, &[b'a'; BYTES])).collect();
        sqlx::query("insert into customers select * from unnest($1::bigint[], $2::bytea[])")
            .bind(ids)
            .bind(sealed?)
            .execute(&mut connection)
            .await?;
        Ok(connection.close().await?)
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect_with(&self.config.as_sqlx()).await?)
    }

    fn seal(&self, id: i64, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(self.keyrings[0].seal(plain, &self.column.place(vec![id.to_string()])?)?)
    }

    fn anew(&self, id: i64, stored: &[u8]) -> anyhow::Result<Vec<u8>> {
        let plain = self.keyrings[0].unseal(stored, &self.column.place(vec![id.to_string()])?)?;
        self.seal(id, &plain)
    }

    /// An arm that begins with no dead row and no dirty page.
    fn arm<W: Future<Output = anyhow::Result<f64>>>(
        &'a self,
        name: &str,
        run: impl Fn(&'a Self) -> W + 'a,
    ) -> Arm<'a> {
        Arm::new(name, SLICE, move |_| {
            self.runtime.block_on(async {
                self.clean().await?;
                Ok(Slice::of(run(self).await?, None))
            })
        })
    }

    async fn clean(&self) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        sqlx::raw_sql("vacuum (analyze) customers").execute(&mut connection).await?;
        sqlx::raw_sql("checkpoint").execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// The key of the first row, whose header names it.
    async fn sealing_key(&self) -> anyhow::Result<Option<KeyId>> {
        let mut connection = self.connect().await?;
        let sql = format!("select {} from customers order by id limit 1", self.column.header_sql());
        let id: String = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await?;
        connection.close().await?;
        let mut keys = self.keyrings.iter().filter_map(Strategy::sealing_key);
        Ok(keys.find(|key| key.to_string() == id))
    }

    async fn ours(&self, pace: Pace) -> anyhow::Result<f64> {
        let rekey =
            |keyring: &Arc<Keyring>| Rekey::new(self.column.clone(), Arc::clone(keyring) as _, Mode::Rotate);
        // All values are under the other key first.
        rekey(&self.keyrings[1]).pace(Pace::flat_out()).run(&self.config, pending()).await?;
        self.clean().await?;
        let done = rekey(&self.keyrings[0]).pace(pace).run(&self.config, pending()).await?;
        ensure!(done.is_complete() && done.report.written == u64::from(ROWS), "{done:?}");
        // Without the count at the end, as the others have none.
        Ok(rate(done.report.written, done.report.took))
    }

    /// As Concourse does: all rows are read, and each is stored without a condition.
    async fn row_by_row(&self) -> anyhow::Result<f64> {
        let mut connection = self.connect().await?;
        let rows: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("select id, iban from customers order by id limit 20000")
                .fetch_all(&mut connection)
                .await?;
        let began = Instant::now();
        let mut stored = 0;
        for (id, iban) in rows {
            sqlx::query("update customers set iban = $1 where id = $2")
                .bind(self.anew(id, &iban)?)
                .bind(id)
                .execute(&mut connection)
                .await?;
            stored += 1;
            if began.elapsed() > SLICE {
                break;
            }
        }
        let rate = rate(stored, began.elapsed());
        connection.close().await?;
        Ok(rate)
    }

    /// As Cloak does: a transaction for each row, which is read `for update`.
    async fn for_update(&self) -> anyhow::Result<f64> {
        let mut connection = self.connect().await?;
        let began = Instant::now();
        let mut stored = 0;
        for id in 1..=i64::from(ROWS) {
            let mut tx = connection.begin().await?;
            let iban: Vec<u8> = sqlx::query_scalar("select iban from customers where id = $1 for update")
                .bind(id)
                .fetch_one(&mut *tx)
                .await?;
            sqlx::query("update customers set iban = $1 where id = $2")
                .bind(self.anew(id, &iban)?)
                .bind(id)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            stored += 1;
            if began.elapsed() > SLICE {
                break;
            }
        }
        let rate = rate(stored, began.elapsed());
        connection.close().await?;
        Ok(rate)
    }

    /// As Lockbox does: batches of 1000 rows in a transaction, and a statement for each row.
    async fn statement_a_row(&self) -> anyhow::Result<f64> {
        let mut connection = self.connect().await?;
        let began = Instant::now();
        let mut stored = 0;
        let mut last = 0;
        while began.elapsed() < SLICE {
            let mut tx = connection.begin().await?;
            let rows: Vec<(i64, Vec<u8>)> =
                sqlx::query_as("select id, iban from customers where id > $1 order by id limit 1000")
                    .bind(last)
                    .fetch_all(&mut *tx)
                    .await?;
            for (id, iban) in rows {
                sqlx::query("update customers set iban = $1 where id = $2")
                    .bind(self.anew(id, &iban)?)
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
                (last, stored) = (id, stored + 1);
            }
            tx.commit().await?;
        }
        let rate = rate(stored, began.elapsed());
        connection.close().await?;
        Ok(rate)
    }

    /// The server alone, by one statement: as many bytes, and no cipher.
    async fn limit(&self) -> anyhow::Result<f64> {
        let mut connection = self.connect().await?;
        let began = Instant::now();
        // The value is made anew, and is the same.
        let sql = "update customers set iban = set_byte(iban, 240, get_byte(iban, 240))";
        let done = sqlx::query(sql).execute(&mut connection).await?;
        let rate = rate(done.rows_affected(), began.elapsed());
        connection.close().await?;
        Ok(rate)
    }

    /// What the pool can serve.
    fn reads_per_second(&self) -> anyhow::Result<f64> {
        let work = Arc::new(Read(self.pool.clone()));
        let load = Load { tasks: CONNECTIONS, slice: READING, timed: false };
        Ok(load.run(self.runtime, &work)?.rate)
    }

    /// Reads that arrive at fixed times, while the table is re-keyed or not.
    fn readers(&self, per_second: f64, slice: Duration, pace: Option<Pace>) -> anyhow::Result<Slice> {
        self.runtime.block_on(self.clean())?;
        // A pass that finds nothing to change takes a good part of the time.
        let first = usize::from(self.runtime.block_on(self.sealing_key())? == self.keyrings[0].sealing_key());
        let (stop, has_begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let running = pace.map(|pace| {
            let (stop, has_begun) = (Arc::clone(&stop), Arc::clone(&has_begun));
            let (config, column, keyrings) =
                (self.config.clone(), self.column.clone(), self.keyrings.clone());
            self.runtime.spawn(async move {
                has_begun.notify_one();
                // Flat out, the table is done before the readers are: it is re-keyed again then, under the other key.
                let mut stopped = std::pin::pin!(stop.notified());
                let mut written = 0;
                for keyring in keyrings.iter().cycle().skip(first) {
                    let rekey = Rekey::new(column.clone(), Arc::clone(keyring) as _, Mode::Rotate).pace(pace);
                    let done = rekey.run(&config, stopped.as_mut()).await?;
                    written += done.report.written;
                    if done.left.is_none() {
                        return Ok(written);
                    }
                }
                anyhow::bail!("the keyrings never end")
            })
        });
        if running.is_some() {
            self.runtime.block_on(has_begun.notified());
        }
        let measured =
            Arrivals { per_second, slice }.run(self.runtime, &Arc::new(Read(self.pool.clone())))?;
        stop.notify_one();
        if let Some(running) = running {
            let written = self.runtime.block_on(running).context("re-keying panicked")??;
            ensure!(written > 0 || slice < READING, "nothing was re-keyed meanwhile");
        }
        Ok(measured)
    }
}

/// A read of a row by its key.
struct Read(Pool);

impl Work for Read {
    async fn once(&self, task: u32, n: i64) -> anyhow::Result<()> {
        // Rows all over the table.
        let id = (n.wrapping_mul(7919) + i64::from(task) * 104_729).rem_euclid(i64::from(ROWS)) + 1;
        let iban: Vec<u8> = sqlx::query_scalar("select iban from customers where id = $1")
            .bind(id)
            .fetch_one(self.0.handle())
            .await?;
        ensure!(!iban.is_empty(), "no value");
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "thousands of rows")]
fn rate(rows: u64, took: Duration) -> f64 {
    rows as f64 / took.as_secs_f64()
}
