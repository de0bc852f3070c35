//! A session that reads and stores batches.

use std::time::Duration;

use db_core::{Config, ConnectRetry};
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use tokio::time::timeout;

use super::ranges::{KeyTexts, Range};
use super::table::{Same, Table, failed};
use super::{BatchError, Row};
use crate::session::{answer, open};
use crate::table::set_role;

/// How long a statement waits for a lock. Below `deadlock_timeout` (1 s), so that in a deadlock with a writer this session gives way.
const LOCK_TIMEOUT: &str = "100ms";
/// The session's own limits, so that those of the role do not end a batch.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Ends a wait when the server cannot.
const LONGEST: Duration = Duration::from_secs(40);

/// A row that is to be stored.
pub(super) struct Write {
    pub(super) row: Row,
    /// The new values of the columns that are written.
    pub(super) new: Vec<Option<Vec<u8>>>,
}

pub(super) struct Session {
    connection: PgConnection,
}

impl Session {
    pub(super) async fn open(
        config: &Config,
        retry: ConnectRetry,
        relation: &str,
        role: Option<&str>,
        without_triggers: bool,
    ) -> Result<Self, BatchError> {
        let mut connection = open(config, retry).await?;
        if role.is_some() {
            let set = sqlx::raw_sql(sqlx::AssertSqlSafe(set_role(role))).execute(&mut connection);
            answer(set).await.map_err(failed("take the role for", relation))?;
        }
        detect_lost_client(&mut connection).await;
        // Row security: an error, instead of rows that are not seen. Plans: a batch is small, and the table is not, though the
        // statistics may say so.
        let set = sqlx::query(
            "select set_config(name, value, false)
             from (values ('row_security', 'off'), ('statement_timeout', $1), ('lock_timeout', $2),
               ('idle_in_transaction_session_timeout', '0'), ('enable_seqscan', 'off'), ('enable_hashjoin', 'off'),
               ('enable_mergejoin', 'off'), ('jit', 'off')) as wanted (name, value)",
        )
        .bind(STATEMENT_TIMEOUT.as_millis().to_string())
        .bind(LOCK_TIMEOUT)
        .execute(&mut connection);
        answer(set).await.map_err(failed("prepare a session for", relation))?;
        if without_triggers {
            let set = sqlx::query("set session_replication_role = replica").execute(&mut connection);
            answer(set).await.map_err(|error| {
                match BatchError::from_sqlx("prepare a session for", relation, error) {
                    refused if refused.code().as_deref() == Some("42501") => {
                        BatchError::Triggers { relation: relation.to_owned() }
                    }
                    other => other,
                }
            })?;
        }
        Ok(Self { connection })
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// The next rows of a range, at most `rows`.
    pub(super) async fn read(
        &mut self,
        table: &Table,
        range: &Range,
        rows: usize,
    ) -> Result<Vec<(Row, bool)>, BatchError> {
        let mut query =
            sqlx::query(sqlx::AssertSqlSafe(table.read(range.from().is_some(), range.to.is_some())));
        for key in [range.from(), range.to.as_ref()].into_iter().flatten() {
            for text in table.walked(key) {
                query = query.bind(text.clone());
            }
        }
        let limit = i64::try_from(rows).unwrap_or(i64::MAX);
        let read = within(query.bind(limit).fetch_all(&mut self.connection));
        let read = read.await.map_err(failed("read rows of", &table.relation))?;
        read.iter()
            .map(|row| decoded(table, row))
            .collect::<Result<_, _>>()
            .map_err(failed("read rows of", &table.relation))
    }

    /// The keys that cut the table into parts of about one size.
    pub(super) async fn cuts(&mut self, table: &Table, ranges: usize) -> Result<Vec<KeyTexts>, sqlx::Error> {
        let rows =
            within(sqlx::query(sqlx::AssertSqlSafe(table.cuts(ranges))).fetch_all(&mut self.connection))
                .await?;
        rows.iter().map(|row| (0..table.key_len()).map(|nth| row.try_get(nth)).collect()).collect()
    }

    /// Rows by their keys, those that may still need a change.
    pub(super) async fn read_again(
        &mut self,
        table: &Table,
        keys: &[KeyTexts],
    ) -> Result<Vec<Row>, BatchError> {
        let mut query = sqlx::query(sqlx::AssertSqlSafe(table.read_again()));
        for column in 0..table.key_len() {
            query = query.bind(keys.iter().map(|key| key[column].clone()).collect::<Vec<_>>());
        }
        let read = within(query.fetch_all(&mut self.connection));
        let read = read.await.map_err(failed("read rows again of", &table.relation))?;
        read.iter()
            .map(|row| decoded(table, row).map(|(row, _)| row))
            .collect::<Result<_, _>>()
            .map_err(failed("read rows again of", &table.relation))
    }

    /// Stores what is unchanged since it was read, by one statement, and returns the keys of the other rows: changed meanwhile, or locked.
    pub(super) async fn write(
        &mut self,
        table: &Table,
        writes: Vec<Write>,
    ) -> Result<Vec<KeyTexts>, BatchError> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        let mut given = Given::of(table, writes);
        let stored = self.store(table.write(given.same), &given).await;
        let stored = match stored.map_err(failed("store rows of", &table.relation)) {
            Err(error) if error.is_locked() => {
                let stored = self.store(table.write_unlocked(given.same), &given).await;
                stored.map_err(failed("store unlocked rows of", &table.relation))?
            }
            other => other?,
        };
        let mut is_stored = vec![false; given.rows];
        for nth in stored {
            is_stored[usize::try_from(nth).expect("a number of a row")] = true;
        }
        let left = (0..given.rows).filter(|nth| !is_stored[*nth]);
        Ok(left
            .map(|nth| given.keys.iter_mut().map(|column| std::mem::take(&mut column[nth])).collect())
            .collect())
    }

    async fn store(&mut self, sql: String, given: &Given) -> Result<Vec<i32>, sqlx::Error> {
        let numbers: Vec<i32> = (0..).take(given.rows).collect();
        let mut query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(numbers);
        for column in &given.keys {
            query = query.bind(column);
        }
        if given.same == Same::Version {
            query = query.bind(&given.versions);
        }
        for column in given.old.iter().chain(&given.new) {
            query = query.bind(column);
        }
        let stored: Option<Vec<i32>> = within(query.fetch_one(&mut self.connection)).await?;
        Ok(stored.unwrap_or_default())
    }
}

/// The parameters of a statement that stores rows, each the values of one column.
struct Given {
    rows: usize,
    same: Same,
    keys: Vec<Vec<String>>,
    versions: Vec<Option<String>>,
    /// Empty if versions are compared.
    old: Vec<Vec<Option<Vec<u8>>>>,
    new: Vec<Vec<Option<Vec<u8>>>>,
}

impl Given {
    fn of(table: &Table, writes: Vec<Write>) -> Self {
        let rows = writes.len();
        let has_versions = writes.iter().all(|write| write.row.version.is_some());
        let same = if has_versions { Same::Version } else { Same::Values };
        let old = if has_versions { 0 } else { table.values() };
        let written = (0..table.values()).filter(|nth| table.is_written(*nth)).count();
        let mut given = Self {
            rows,
            same,
            keys: vec![Vec::with_capacity(rows); table.key_len()],
            versions: Vec::with_capacity(rows),
            old: vec![Vec::with_capacity(rows); old],
            new: vec![Vec::with_capacity(rows); written],
        };
        for Write { row, new } in writes {
            given.keys.iter_mut().zip(row.key).for_each(|(column, text)| column.push(text));
            given.versions.push(row.version);
            given.old.iter_mut().zip(row.values).for_each(|(column, value)| column.push(value));
            given.new.iter_mut().zip(new).for_each(|(column, value)| column.push(value));
        }
        given
    }
}

fn decoded(table: &Table, row: &PgRow) -> Result<(Row, bool), sqlx::Error> {
    let keys = table.key_len();
    let key = (0..keys).map(|nth| row.try_get(nth)).collect::<Result<_, _>>()?;
    let values = (keys..keys + table.values()).map(|nth| row.try_get(nth)).collect::<Result<_, _>>()?;
    let pending = keys + table.values();
    Ok((Row { key, values, version: row.try_get(pending + 1)? }, row.try_get(pending)?))
}

async fn within<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(LONGEST, asked)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Makes the server notice while a statement runs that this process is gone: its session holds a lock until then.
pub(crate) async fn detect_lost_client(connection: &mut PgConnection) {
    let set = sqlx::query(
        "select set_config(wanted.name, wanted.value, false)
         from (values ('client_connection_check_interval', '1s'), ('tcp_keepalives_idle', '15s'),
           ('tcp_keepalives_interval', '5s'), ('tcp_keepalives_count', '3')) as wanted (name, value)
         join pg_settings using (name)",
    )
    .execute(connection);
    if let Err(error) = answer(set).await {
        // Some operating systems do not support it. If the connection is lost, the next statement fails, too.
        tracing::debug!(%error, "the server will not notice that this client is gone");
    }
}
