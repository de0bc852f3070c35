//! What each statement of a file does to the tables that were there before, as the server tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use db_core::sql::Position;
use serde::{Deserialize, Serialize, Serializer};
use sqlx::migrate::Migration;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};

use super::catalog::{self, Catalog, Effects, Of};
use super::lost::{Lost, lost, still_lost};
use super::rule::Hazard;
use super::rules::{self, Seen};
use crate::outside::is_refused_in_transaction;
use crate::statements::{Place, Step, steps};
use crate::table::set_role;

/// A statement, and what it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Traced {
    /// Where it begins in the file.
    pub position: Position,
    /// How long it took. On an empty database, this tells nothing about one with data.
    #[serde(rename = "milliseconds", serialize_with = "in_milliseconds")]
    pub took: Duration,
    /// The locks that it added on tables that were there before. Those of a statement that PostgreSQL refuses in a transaction are released
    /// when it ends, and are not here.
    pub locks: Vec<Lock>,
    /// The tables and materialized views that it has written anew.
    pub rewritten: Vec<String>,
    /// The tables and materialized views that it has read as a whole.
    pub scanned: Vec<String>,
}

impl Traced {
    fn without_effect(position: Position, took: Duration) -> Self {
        Self { position, took, locks: Vec::new(), rewritten: Vec::new(), scanned: Vec::new() }
    }
}

/// A lock on a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Lock {
    /// The table, with its schema.
    pub table: String,
    /// The lock.
    pub mode: Mode,
}

/// The locks on tables, from the weakest to the strongest. From PostgreSQL's manual, chapter 13.3.1 "Table-Level Locks".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Mode {
    /// Of readers.
    AccessShareLock,
    /// Of `SELECT … FOR UPDATE`.
    RowShareLock,
    /// Of writers.
    RowExclusiveLock,
    /// Of `VACUUM`, `VALIDATE CONSTRAINT`, `CREATE INDEX CONCURRENTLY`. Readers and writers go on.
    ShareUpdateExclusiveLock,
    /// Of `CREATE INDEX`. Writers wait.
    ShareLock,
    /// Of `CREATE TRIGGER`, `ADD FOREIGN KEY`. Writers wait.
    ShareRowExclusiveLock,
    /// Of `REFRESH MATERIALIZED VIEW CONCURRENTLY`. Writers wait.
    ExclusiveLock,
    /// Of most forms of `ALTER TABLE`. Readers and writers wait.
    AccessExclusiveLock,
}

/// What running a file statement by statement has shown.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub(super) statements: Vec<Traced>,
    pub(super) hazards: Vec<Hazard>,
    /// The one that failed, which ended it.
    pub(super) failed: Option<db_core::Error>,
}

/// Runs the statements of a file, and looks after each. The database is not to be used afterwards: sequences go on, and a file may commit.
///
/// `old` has the tables that count; none means all that are there when the file begins.
pub(super) async fn run(
    connection: &mut PgConnection,
    migration: &Migration,
    role: Option<&str>,
    old: Option<&Catalog>,
    own: &[i64],
) -> Result<Trace, db_core::Error> {
    let all = catalog::read(connection, Of::All { own }).await?.0;
    let mut tracer = Tracer {
        connection,
        own,
        start: match old {
            Some(old) => all.only(old),
            None => all,
        },
        now: Catalog::default(),
        effects: Effects::default(),
        trace: Trace { statements: Vec::new(), hazards: Vec::new(), failed: None },
        lost: BTreeMap::new(),
    };
    tracer.now = tracer.start.clone();
    if role.is_some() {
        raw(tracer.connection, &set_role(role)).await?;
    }
    if !migration.no_tx {
        raw(tracer.connection, "begin").await?;
    }
    for step in steps(migration) {
        let position = Position::of(migration.sql.as_str(), step.statement.start);
        let done = if migration.no_tx {
            tracer.alone(&step, position).await
        } else {
            tracer.statement(&step, position, true).await
        };
        if let Err(error) = done {
            tracer.trace.failed = Some(error);
            return Ok(tracer.trace);
        }
    }
    if !tracer.lost.is_empty() {
        let end = catalog::read(tracer.connection, Of::All { own }).await?.0;
        let gone = tracer.lost.iter();
        let gone = gone.filter_map(|(lost, nth)| still_lost(*nth, lost, &tracer.start, &end));
        tracer.trace.hazards.extend(gone);
    }
    if !migration.no_tx {
        raw(tracer.connection, "rollback").await?;
    }
    Ok(tracer.trace)
}

async fn raw(connection: &mut PgConnection, sql: &str) -> Result<(), db_core::Error> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await?;
    Ok(())
}

struct Tracer<'c> {
    connection: &'c mut PgConnection,
    own: &'c [i64],
    start: Catalog,
    now: Catalog,
    /// In this transaction.
    effects: Effects,
    trace: Trace,
    /// What was taken away, and the number of the statement.
    lost: BTreeMap<Lost, usize>,
}

impl Tracer<'_> {
    /// A statement outside of a transaction: in one of its own, unless the server refuses it there.
    async fn alone(&mut self, step: &Step<'_>, position: Position) -> Result<(), db_core::Error> {
        if step.place == Place::Transaction {
            raw(self.connection, "begin").await?;
            // The server adds up what a session did within a second.
            self.effects = catalog::read(self.connection, Of::All { own: self.own }).await?.1;
            let done = self.statement(step, position, true).await;
            match done {
                Err(error) if is_refused_in_transaction(&error) => raw(self.connection, "rollback").await?,
                done => {
                    done?;
                    return raw(self.connection, "commit").await;
                }
            }
        }
        self.effects = Effects::default();
        self.statement(step, position, false).await
    }

    async fn statement(
        &mut self,
        step: &Step<'_>,
        position: Position,
        in_transaction: bool,
    ) -> Result<(), db_core::Error> {
        let began = Instant::now();
        raw(self.connection, step.statement.text).await?;
        let took = began.elapsed();
        let tokens: Vec<_> = step.statement.tokens().collect();
        if tokens.first().is_some_and(|token| token.is_any(&["set", "reset"])) {
            // It changes no table, and `set transaction` has to stand before any query, also of ours.
            self.trace.statements.push(Traced::without_effect(position, took));
            return Ok(());
        }
        let (after, effects) = if in_transaction {
            catalog::read(self.connection, Of::Locked(&self.now)).await?
        } else {
            // Its locks are gone, and what it counted may be.
            let all = catalog::read(self.connection, Of::All { own: self.own }).await?.0;
            (all.only(&self.start), Effects::default())
        };
        let nth = self.trace.statements.len();
        let seen = Seen {
            tokens: &tokens,
            before: &self.now,
            after: &after,
            held: &self.effects,
            effects: &effects,
            in_transaction,
        };
        self.trace.statements.push(traced(&seen, position, took));
        self.trace.hazards.extend(rules::hazards(nth, &seen));
        for gone in lost(&self.now, &after) {
            self.lost.entry(gone).or_insert(nth);
        }
        self.now = after;
        self.effects = effects;
        Ok(())
    }
}

fn traced(seen: &Seen<'_>, position: Position, took: Duration) -> Traced {
    let names = |oids: BTreeSet<i64>| oids.into_iter().filter_map(|oid| seen.name(oid)).collect();
    let added = seen.effects.locks.iter().filter_map(|(oid, modes)| {
        let held = seen.held.locks.get(oid).map_or(&[][..], Vec::as_slice);
        let mode = modes.iter().filter(|mode| !held.contains(mode)).max()?;
        Some(Lock { table: seen.name(*oid)?, mode: *mode })
    });
    Traced {
        position,
        took,
        locks: added.collect(),
        rewritten: names(seen.rewritten()),
        scanned: names(seen.scanned()),
    }
}

fn in_milliseconds<S: Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
    // Rounded to thousandths.
    to.serialize_f64((took.as_secs_f64() * 1e6).round() / 1e3)
}
