//! The query log: each statement with its duration and rows.

use std::time::Instant;

use sqlx::Either;
use sqlx::postgres::{PgQueryResult, PgRow};

use crate::redact::redacted;
use crate::{CallSite, PoolOptions, sql};

/// The duration and the rows of one statement.
#[derive(Debug)]
pub(crate) struct StatementTiming {
    pub(crate) started: Instant,
    pub(crate) rows: u64,
    pub(crate) affected: u64,
}

impl StatementTiming {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { started: now, rows: 0, affected: 0 }
    }

    pub(crate) fn count(&mut self, result: &Either<PgQueryResult, PgRow>) {
        match result {
            Either::Left(done) => self.affected += done.rows_affected(),
            Either::Right(_) => self.rows += 1,
        }
    }

    /// Logs the statement to the target `db_core::statement`: slow ones at `warn`, others at `debug`. Whether it was slow.
    pub(crate) fn log(
        &self,
        ended: Instant,
        options: &PoolOptions,
        at: CallSite,
        name: Option<&'static str>,
        sql: &str,
        error: Option<&sqlx::Error>,
    ) -> bool {
        let took = ended.duration_since(self.started);
        let is_slow = took >= options.slow_statement;
        if !is_slow && !tracing::enabled!(target: "db_core::statement", tracing::Level::DEBUG) {
            return is_slow;
        }
        let Self { rows, affected, .. } = *self;
        let (pool, ms) = (&options.name, took.as_secs_f64() * 1000.0);
        let sql = sql::redact_sql(sql);
        let error = error.map(redacted).map(tracing::field::display);
        if is_slow {
            tracing::warn!(target: "db_core::statement", pool, name, ms, rows, affected, error, "slow: {sql} ({at})");
        } else {
            tracing::debug!(target: "db_core::statement", pool, name, ms, rows, affected, error, "{sql} ({at})");
        }
        is_slow
    }
}
