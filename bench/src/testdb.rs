//! A migrated database for each test: the test kit's copy of a template, beside `#[sqlx::test]`, which applies the migrations each
//! time. And a script, which has no database.
//!
//! Each operation is a test: a runtime, a database, a pool, the first row, and the end of all three. The peer is sqlx's own code,
//! as its attribute calls it.

use std::env;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context;
use db_testkit::__private::{Plan, run_test};
use db_testkit::TestDb;
use db_testkit::script::{Rows, Rule, Script};
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::testing::{TestArgs, TestFn};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::latency::{Latency, nanoseconds};
use crate::load::Slice;
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;
use crate::times::Times;
use crate::workers;

/// The tables of the schema, each made by a migration of its own.
const TABLES: u32 = 30;

/// Of the last table, so that all migrations were applied.
const FIRST_ROW: &str = "select count(*) from item_30";

/// Several tests of the slower arm.
const SLICE: Duration = Duration::from_secs(2);

const SCRIPT_SLICE: Duration = Duration::from_millis(200);

/// Runs this program again with a database of the benchmark as its `DATABASE_URL`, since sqlx reads the address nowhere else. The server is
/// in memory, as the test kit's own is.
pub(crate) fn in_child(runtime: &Runtime) -> anyhow::Result<ExitCode> {
    Database::in_memory(runtime, |database| {
        let status = Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .args(["--on", database.what()])
            .env("DATABASE_URL", database.url())
            .status()?;
        let code = status.code().context("the benchmark's process was killed")?;
        Ok(ExitCode::from(u8::try_from(code)?))
    })
}

/// Measures on the server of `DATABASE_URL`. With `only`, runs these arms without ratios.
pub(crate) fn measure(rounds: usize, only: &[String], what: String) -> anyhow::Result<Report> {
    let folder = migrations()?;
    let migrator = workers()?.block_on(Migrator::new(folder.path()))?;
    // The attribute has a static one, which was read at compile time.
    let migrator: &'static Migrator = Box::leak(Box::new(migrator));
    let path: &'static str = folder.path().to_str().context("a path that is no text")?.to_owned().leak();
    let plan = Plan { migrations: Some(path), ..Plan::DEFAULT };
    let mut arms = vec![
        Arm::new("testdb.ours", SLICE, |slice| timed(slice, || ours(&plan))),
        Arm::new("testdb.sqlx_test", SLICE, |slice| timed(slice, || sqlx_test(migrator))),
        Arm::new("testdb.script", SCRIPT_SLICE, |slice| timed(slice, script)),
    ];

    if narrow(&mut arms, only)? {
        return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
    }
    let measured = interleave(&arms, rounds)?;
    let rows = vec![
        measured.p50_gains("testdb.vs_sqlx_test", "testdb.ours", "testdb.sqlx_test"),
        measured.p50_ms("testdb.script_ms", "testdb.script"),
    ];
    Ok(measured.report(what, rows))
}

fn timed(slice: Duration, test: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Slice> {
    let mut times = Times::new(slice);
    let mut took = Vec::new();
    while times.again() {
        let began = Instant::now();
        test()?;
        took.push(nanoseconds(began.elapsed()));
    }
    Ok(Slice { latency: Latency::of(took), ..times.over(1.0) })
}

/// As `#[db_testkit::test(migrations = "…")]` does it, with the look at what is left.
fn ours(plan: &Plan) -> anyhow::Result<()> {
    Ok(run_test(plan, async |[db]: [TestDb; 1]| first_row(db.pool()).await)?)
}

/// As `#[sqlx::test(migrations = "…")]` does it.
fn sqlx_test(migrator: &'static Migrator) -> anyhow::Result<()> {
    let test: fn(PgPool) -> _ = first_row;
    let mut args = TestArgs::new("bench::testdb");
    args.migrator(migrator);
    Ok(test.run_test(args)?)
}

fn script() -> anyhow::Result<()> {
    workers()?.block_on(async {
        let script = Script::start([Rule::statement(FIRST_ROW).reply(Rows::new(["n"]).row((0_i64,)))])?;
        first_row(PgPool::connect(&script.url()).await?).await?;
        script.finish();
        Ok(())
    })
}

async fn first_row(pool: PgPool) -> sqlx::Result<()> {
    sqlx::query_scalar::<_, i64>(FIRST_ROW).fetch_one(&pool).await?;
    Ok(())
}

/// A table with its keys and an index in each file.
fn migrations() -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for n in 1..=TABLES {
        let parent = (n - 1).max(1);
        let sql = format!(
            "create table item_{n} (
                id bigint generated always as identity primary key,
                parent bigint references item_{parent} (id),
                name text not null unique,
                created_at timestamptz not null default now()
            );
            create index on item_{n} (created_at);"
        );
        fs::write(folder.path().join(format!("{n}_item.sql")), sql)?;
    }
    Ok(folder)
}
