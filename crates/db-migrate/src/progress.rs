//! The table with the progress of files outside of a transaction. A row is there while its file is under way.

use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::table::{Table, bytes, hex, literal};

/// How far a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Whether it goes down.
    pub(crate) reverts: bool,
    /// The number of its first statements that are done.
    pub(crate) done: usize,
    /// The digest of those, and of the one that has begun, in hex digits.
    digest: String,
    /// Whether the statement after them has begun outside of a transaction.
    pub(crate) has_begun: bool,
    /// The ids of what was there before it, as far as its rule looks at it.
    pub(crate) before: Vec<i64>,
}

impl Progress {
    /// Whether the statements that were begun are still those of the file. `digest` is that of the file's.
    pub(crate) fn is_of(&self, digest: &[u8]) -> bool {
        (self.done == 0 && !self.has_begun) || self.digest == hex(digest)
    }

    /// The query for the progress of a version.
    pub(crate) fn query(table: &Table, version: i64) -> String {
        format!(
            "select reverts, done, encode(digest, 'hex'), has_begun, array_to_string(before, ' ')
             from {} where version = {version};",
            table.progress
        )
    }

    /// A row of the query.
    pub(crate) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let done: i32 = row.try_get(1)?;
        let before: String = row.try_get(4)?;
        Ok(Self {
            reverts: row.try_get(0)?,
            done: usize::try_from(done).unwrap_or_default(),
            digest: row.try_get(2)?,
            has_begun: row.try_get(3)?,
            before: before.split(' ').filter_map(|id| id.parse().ok()).collect(),
        })
    }

    /// The statements that make the table, unless it is there.
    pub(crate) fn make(table: &Table) -> String {
        if table.has_progress {
            return String::new();
        }
        format!(
            "create table if not exists {} (
    version bigint primary key,
    reverts boolean not null,
    done integer not null default 0,
    digest bytea not null default '',
    has_begun boolean not null default false,
    before bigint[] not null default '{{}}',
    nanoseconds bigint not null default 0
);",
            table.progress
        )
    }

    /// The statement that drops the table if it is empty.
    pub(crate) fn drop(table: &Table) -> String {
        let name = &table.progress;
        format!(
            "do {} language plpgsql;",
            literal(&format!("begin if not exists (select from {name}) then drop table {name}; end if; end"))
        )
    }

    /// The statement that puts a version under way, from its first statement on.
    pub(crate) fn begun(table: &Table, version: i64, reverts: bool) -> String {
        format!(
            "insert into {} (version, reverts) values ({version}, {reverts})
             on conflict (version) do update
             set reverts = {reverts}, done = 0, digest = '', has_begun = false, before = '{{}}', nanoseconds = 0;",
            table.progress
        )
    }

    /// The statement that records the first statements as done, the last of which took so long.
    pub(crate) fn done(table: &Table, version: i64, done: usize, digest: &[u8], nanoseconds: u128) -> String {
        format!(
            "update {} set done = {done}, digest = {}, has_begun = false, before = '{{}}', nanoseconds = nanoseconds + {nanoseconds}
             where version = {version};",
            table.progress,
            bytes(digest),
        )
    }

    /// The statement that records that the next statement begins outside of a transaction.
    pub(crate) fn begins(table: &Table, version: i64, digest: &[u8], before: &[i64]) -> String {
        let before: Vec<_> = before.iter().map(ToString::to_string).collect();
        format!(
            "update {} set has_begun = true, digest = {}, before = '{{{}}}' where version = {version};",
            table.progress,
            bytes(digest),
            before.join(","),
        )
    }

    /// The statement that records that the next statement left nothing.
    pub(crate) fn undone(table: &Table, version: i64, digest: &[u8]) -> String {
        format!(
            "update {} set has_begun = false, digest = {}, before = '{{}}' where version = {version};",
            table.progress,
            bytes(digest),
        )
    }

    /// The statement that ends a version's progress.
    pub(crate) fn end(table: &Table, version: i64) -> String {
        format!("delete from {} where version = {version};", table.progress)
    }

    /// The time that a version has taken, in nanoseconds, as an expression.
    pub(crate) fn nanoseconds(table: &Table, version: i64) -> String {
        format!("(select nanoseconds from {} where version = {version})", table.progress)
    }
}
