//! Applying migrations, and finding that none is pending, beside sqlx's own runner; splitting a file; and the wait of a writer behind a
//! migration that waits.
//!
//! Each operation on the server has a database of its own, which is made before and dropped after the measured time. Connecting is measured,
//! too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use db_core::Config;
use db_layer::Migrations;
use db_layer::db_migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::report::{Report, Row};
use crate::server::Database;

/// Of the row `migrate.500`.
const SMALL: u32 = 500;

/// Of the row `migrate.split`, in bytes and milliseconds.
const LARGE: usize = 1_000_000;
const SPLIT_LIMIT: f64 = 20.0;

/// Of the row `migrate.writer`: what a writer may wait for beyond the lock timeout, in milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
const WRITER_LIMIT: f64 = 100.0;

/// Folders of real projects, from the archive beside the checkout.
const SETS: [&str; 2] = ["artifact-keeper", "zksync-core"];

const ARCHIVE: &str = "../shared/data/migrations/folders.tar.gz";

/// Measures on the server of `DATABASE_URL`, or on a throwaway one. Without the archive, the row of the real folders is left out.
pub(crate) fn measure(runtime: &Runtime, rounds: usize) -> anyhow::Result<Report> {
    let small = small()?;
    let real = real()?;
    let sets: Vec<PathBuf> =
        real.iter().flat_map(|folder| SETS.map(|name| folder.path().join(name))).collect();
    let text = large();
    Database::with(runtime, |database| {
        let url = database.url();
        runtime.block_on(async {
            let (mut applied, mut noop, mut all) = (Vec::new(), Vec::new(), Vec::new());
            let (mut split, mut writer) = (Vec::new(), Vec::new());
            for n in 0..rounds {
                split.push((splitting(&text)?, SPLIT_LIMIT));
                writer.push((writing(url).await?, LOCK_TIMEOUT.as_secs_f64() * 1000.0 + WRITER_LIMIT));
                let turn = n % 2 == 0;
                applied.push(pair(url, &[small.path()], false, turn).await?);
                noop.push(pair(url, &[small.path()], true, turn).await?);
                if !sets.is_empty() {
                    let sets: Vec<&Path> = sets.iter().map(PathBuf::as_path).collect();
                    all.push(pair(url, &sets, false, turn).await?);
                }
            }
            let mut rows = vec![
                Row::new("migrate.500.vs_sqlx", "ms", &applied),
                Row::new("migrate.noop.vs_sqlx", "ms", &noop),
                Row::new("migrate.split.vs_limit", "ms", &split),
                Row::new("migrate.writer.vs_limit", "ms", &writer),
            ];
            if !all.is_empty() {
                rows.push(Row::new("migrate.sets.vs_sqlx", "ms", &all));
            }
            Ok(Report { server: database.what().to_owned(), arms: Vec::new(), rows })
        })
    })
}

/// Milliseconds of ours and of sqlx. The order alternates, since the first finds the server in another state.
async fn pair(url: &str, folders: &[&Path], again: bool, ours_first: bool) -> anyhow::Result<(f64, f64)> {
    if ours_first {
        let ours = took(url, folders, again, ours).await?;
        Ok((ours, took(url, folders, again, theirs).await?))
    } else {
        let theirs = took(url, folders, again, theirs).await?;
        Ok((took(url, folders, again, ours).await?, theirs))
    }
}

/// Milliseconds for all folders, each on a new database; or for the second run, with `again`.
async fn took(
    url: &str,
    folders: &[&Path],
    again: bool,
    run: impl AsyncFn(&Migrator, &str) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let mut admin = PgConnection::connect(url).await?;
    let mut milliseconds = 0.0;
    for folder in folders {
        let migrator = Migrator::new(*folder).await?;
        let name = format!("bench_migrate_{}", std::process::id());
        admin
            .execute(sqlx::raw_sql(AssertSqlSafe(format!("create database {name} template template0"))))
            .await?;
        let address = at(url, &name)?;
        if again {
            run(&migrator, &address).await?;
        }
        let began = Instant::now();
        let done = run(&migrator, &address).await;
        milliseconds += began.elapsed().as_secs_f64() * 1000.0;
        admin.execute(sqlx::raw_sql(AssertSqlSafe(format!("drop database {name} with (force)")))).await?;
        done?;
    }
    admin.close().await?;
    Ok(milliseconds)
}

/// A large file.
fn large() -> String {
    let mut text = String::with_capacity(LARGE);
    for n in 0.. {
        let more = format!(
            "-- The items of customer {n}; all of them.\ncreate table item_{n} (id bigint primary key, name text not null default 'it''s; {n}');\n\
             create function f_{n}() returns int language plpgsql as $$ begin perform 1; return {n}; end $$;\n\
             insert into item_{n} values (1, 'é; /* no comment */'), (2, E'\\';') /* a comment; */;\n"
        );
        if text.len() + more.len() > LARGE {
            break;
        }
        text.push_str(&more);
    }
    text
}

/// Milliseconds for splitting a text.
fn splitting(text: &str) -> anyhow::Result<f64> {
    let began = Instant::now();
    let statements = db_core::sql::split(text)?.len();
    let took = began.elapsed().as_secs_f64() * 1000.0;
    ensure!(statements > 1000, "{statements} statements");
    Ok(took)
}

/// Milliseconds for which a writer waits behind a migration that waits for a reader.
async fn writing(url: &str) -> anyhow::Result<f64> {
    let mut admin = PgConnection::connect(url).await?;
    let name = format!("bench_writer_{}", std::process::id());
    admin.execute(sqlx::raw_sql(AssertSqlSafe(format!("create database {name} template template0")))).await?;
    let address = at(url, &name)?;
    let waited = behind(&address).await;
    admin.execute(sqlx::raw_sql(AssertSqlSafe(format!("drop database {name} with (force)")))).await?;
    admin.close().await?;
    waited
}

async fn behind(address: &str) -> anyhow::Result<f64> {
    let mut reader = PgConnection::connect(address).await?;
    reader.execute("create table t (n int)").await?;
    reader.execute(sqlx::raw_sql("begin; select * from t")).await?;
    let mut writer = PgConnection::connect(address).await?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("1_color.sql"), "alter table t add color text")?;
    let migrations = Migrations::from_dir(folder.path()).await?.with_lock_timeout(LOCK_TIMEOUT);
    let config = Config::from_url(address)?;
    let migrating = tokio::spawn(async move { migrations.up(&config).await });
    let waits = "select exists (select from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like 'alter table t%')";
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut writer).await? {
        ensure!(!migrating.is_finished(), "the migration does not wait");
    }
    let began = Instant::now();
    writer.execute("insert into t values (1)").await?;
    let waited = began.elapsed().as_secs_f64() * 1000.0;
    reader.close().await?;
    migrating.await??;
    writer.close().await?;
    Ok(waited)
}

async fn ours(migrator: &Migrator, url: &str) -> anyhow::Result<()> {
    Migrations::new(migrator).up(&Config::from_url(url)?).await?;
    Ok(())
}

async fn theirs(migrator: &Migrator, url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    migrator.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// The same address with another database.
fn at(url: &str, database: &str) -> anyhow::Result<String> {
    let mut url = url::Url::parse(url)?;
    ensure!(url.path().len() > 1, "the address has no database");
    url.set_path(database);
    let _: PgConnectOptions = url.as_str().parse()?;
    Ok(url.into())
}

/// A small table, and every other time a column of the one before it.
fn small() -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for n in 1..=SMALL {
        let sql = if n % 2 == 1 {
            format!("create table item_{n} (id bigint primary key, name text not null);")
        } else {
            format!("alter table item_{} add column price numeric;", n - 1)
        };
        fs::write(folder.path().join(format!("{n}_step.sql")), sql)?;
    }
    Ok(folder)
}

/// The archive, unpacked, if it is there.
fn real() -> anyhow::Result<Option<TempDir>> {
    if !Path::new(ARCHIVE).exists() {
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let unpacked = Command::new("tar").args(["xzf", ARCHIVE, "-C"]).arg(folder.path()).status();
    ensure!(unpacked.context("tar")?.success(), "tar cannot unpack {ARCHIVE}");
    Ok(Some(folder))
}
