//! Event logs, ours and the peers', and their events.

use anyhow::{Context, ensure};
use db_core::Config;
use db_layer::{EventLogs, LogId, NewEvent, db_events};
use sqlx::postgres::PgConnection;
use sqlx::types::time::OffsetDateTime;
use sqlx::{ConnectOptions, Connection, Executor};

/// The kind of all events.
pub(crate) const KIND: &str = "line";

/// The rows in one of the peers' pages.
const PAGE: i64 = 2000;

/// The events in one append while a log is filled.
const BATCH: i64 = 100;

/// One row for each event, found by its id. Without autovacuum, which would take disk time from an arm.
const TABLES: [&str; 2] = [
    "create table bench_events (
         log int8 not null,
         id int8 not null,
         type text not null,
         data text not null,
         at timestamptz not null default now(),
         primary key (log, id)
     ) with (autovacuum_enabled = off)",
    "alter table event_log_batches set (autovacuum_enabled = off)",
];

/// Creates the tables of `db-events`, and the peers' table.
pub(crate) async fn make_tables(config: &Config) -> anyhow::Result<()> {
    let mut conn = config.as_sqlx().connect().await?;
    for statement in db_events::SCHEMA.iter().map(|schema| schema.up).chain(TABLES) {
        conn.execute(sqlx::raw_sql(statement)).await?;
    }
    conn.close().await?;
    Ok(())
}

/// About 150 bytes of JSON that begin with a number and compress badly.
pub(crate) fn data(number: i64) -> String {
    // Two steps of splitmix64 turn the number into a pseudo-random one.
    let mix = |salt: u64| {
        let mut mixed = number.cast_unsigned().wrapping_add(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    };
    let [trace, rest, span, parent, next] = [1, 2, 3, 4, 5].map(mix);
    format!(
        "{{\"n\":{number:08},\"trace\":\"{trace:016x}{rest:016x}\",\"span\":\"{span:016x}\",\"parent\":\"{parent:016x}\",\
         \"line\":\"step done, next is {next:016x}\"}}"
    )
}

/// The number at the beginning of the data.
pub(crate) fn number(data: &str) -> Option<i64> {
    data.get(5..13)?.parse().ok()
}

/// Events numbered from `first` on.
pub(crate) fn batch(first: i64, count: i64) -> Vec<NewEvent> {
    (first..first + count).map(|number| NewEvent::new(KIND, data(number))).collect()
}

/// The id of the next event to read.
#[derive(Debug)]
pub(crate) struct Next(pub(crate) i64);

impl Next {
    /// Counts an event, and checks its id and data.
    pub(crate) fn count(&mut self, id: i64, data: &str) -> anyhow::Result<()> {
        ensure!(id == self.0, "event {id} came instead of event {}", self.0);
        ensure!(number(data) == Some(id), "event {id} has the data of another event: {data}");
        self.0 += 1;
        Ok(())
    }
}

/// Creates a finished log of `count` events, and the peers' copy of it.
pub(crate) async fn fill(config: &Config, events: &EventLogs, count: i64) -> anyhow::Result<LogId> {
    let log = events.create().await?;
    for first in (1..=count).step_by(usize::try_from(BATCH)?) {
        let batch = batch(first, BATCH.min(count + 1 - first));
        if first + BATCH > count {
            events.finish(log, &batch).await?;
        } else {
            events.append(log, &batch).await?;
        }
    }
    let mut conn = config.as_sqlx().connect().await?;
    let copied = sqlx::query(
        "insert into bench_events (log, id, type, data, at)
         select log, id, type, data, at from event_log_events where log = $1 order by id",
    )
    .bind(log.0)
    .execute(&mut conn)
    .await?;
    ensure!(i64::try_from(copied.rows_affected())? == count, "{} rows were copied", copied.rows_affected());
    // In the state that a table reaches after some time.
    for statement in ["vacuum (analyze) bench_events", "vacuum (analyze) event_log_batches"] {
        conn.execute(sqlx::raw_sql(statement)).await?;
    }
    conn.close().await?;
    Ok(log)
}

/// A row of the peers' table: id, kind, data and time.
pub(crate) type Row = (i64, String, String, OffsetDateTime);

/// The peers' next page after a cursor. Fewer rows than a page mean the end.
pub(crate) async fn page<'c>(
    executor: impl Executor<'c, Database = sqlx::Postgres>,
    log: LogId,
    after: i64,
) -> anyhow::Result<(Vec<Row>, bool)> {
    let rows: Vec<Row> = sqlx::query_as(
        "select id, type, data, at from bench_events where log = $1 and id > $2 order by id limit $3",
    )
    .bind(log.0)
    .bind(after)
    .bind(PAGE)
    .fetch_all(executor)
    .await?;
    let is_full = i64::try_from(rows.len())? == PAGE;
    Ok((rows, is_full))
}

/// A session of the driver. Over TCP, sqlx 0.9.0 leaves Nagle's algorithm on: two writes, such as those of a COPY, then
/// wait 40 ms for an acknowledgement. A Unix socket has no such wait.
pub(crate) async fn connect_by_socket(config: &Config) -> anyhow::Result<PgConnection> {
    let options = config.as_sqlx().disable_statement_logging();
    let is_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    ensure!(
        is_socket,
        "{config} is not a Unix socket, and over TCP the peer would be slowed down by Nagle's algorithm"
    );
    options.connect().await.context("connecting with the driver")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_has_about_150_bytes_and_begins_with_its_number() {
        for n in [1, 77, 99_999_999] {
            let data = data(n);

            assert!((140..=160).contains(&data.len()), "{} bytes: {data}", data.len());
            assert_eq!(number(&data), Some(n));
        }
    }

    #[test]
    fn a_missing_repeated_or_wrong_event_is_an_error() {
        let of = |events: &[(i64, i64)]| {
            let mut next = Next(1);
            events.iter().try_for_each(|(id, n)| next.count(*id, &data(*n)))
        };

        assert!(of(&[(1, 1), (2, 2)]).is_ok());
        assert!(of(&[(1, 1), (3, 3)]).is_err());
        assert!(of(&[(1, 1), (1, 1)]).is_err());
        assert!(of(&[(1, 2)]).is_err());
    }
}
