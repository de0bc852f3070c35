//! The table with the migrations on record.

use std::fmt::Write;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::Error;
use crate::session::answer;

/// What the name of the table of progress ends with.
const PROGRESS: &str = "_progress";

/// What the name of the history's table ends with.
const HISTORY: &str = "_history";

/// `BOOTSTRAP_SUPERUSERID` in PostgreSQL's `pg_authid.h`. Whether another role is a superuser costs each session a look into a catalog.
const FIRST_SUPERUSER: u32 = 10;

/// A name of PostgreSQL has this many bytes at most.
const LONGEST_NAME: usize = 63;

/// The table, found once: by its name under the session's search path, which a migration may change.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) oid: i64,
    /// With its schema, quoted.
    pub(crate) name: String,
    /// Without its schema and quotes.
    pub(crate) relation: String,
    /// The table beside it with the progress of files outside of a transaction, with its schema, quoted.
    pub(crate) progress: String,
    pub(crate) has_progress: bool,
    pub(crate) history: Beside,
}

/// The table of the history, as it was found.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of the catalog")]
pub(crate) struct Beside {
    /// With its schema, quoted.
    pub(crate) name: String,
    pub(crate) exists: bool,
    /// Whether this role may read it.
    pub(crate) can_be_read: bool,
    /// Whether it is a table of this role's, of the cluster's first superuser's, or of the owner's of sqlx's table. What others own may run their code as this
    /// role, when it is read or written: as a view, a policy or a trigger.
    pub(crate) is_trusted: bool,
    /// Whether this role may add rows, or make the table.
    pub(crate) can_be_written: bool,
}

impl Beside {
    /// Whether there are rows for this role to read.
    pub(crate) fn is_readable(&self) -> bool {
        self.can_be_read && self.is_trusted
    }
}

impl Table {
    /// The table of this name, as a statement would find it.
    pub(crate) async fn find(connection: &mut PgConnection, name: &str) -> Result<Option<Self>, Error> {
        // The simple protocol needs one round trip for each query, which every start of a service pays.
        let beside = |suffix: &str| {
            format!(
                "quote_ident(n.nspname) || '.' || quote_ident(
                     case when octet_length(c.relname) <= {most} then c.relname else md5(c.relname) end || '{suffix}')",
                most = LONGEST_NAME - suffix.len()
            )
        };
        let sql = format!(
            "select oid, name, relation, progress, coalesce(has_table_privilege(to_regclass(progress), 'select'), false),
               history, to_regclass(history) is not null, coalesce(has_table_privilege(to_regclass(history), 'select'), false),
               coalesce(has_table_privilege(to_regclass(history), 'insert'), has_schema_privilege(schema, 'create')),
               exists (select from pg_class as h where h.oid = to_regclass(history) and h.relkind = 'r'
                       and (h.relowner in (owner, {FIRST_SUPERUSER}) or pg_get_userbyid(h.relowner) in (session_user, current_user)))
             from (select c.oid::int8, quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name, c.relname::text as relation,
                     {progress} as progress, {history} as history, n.oid as schema, c.relowner as owner
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace
                   where c.oid = to_regclass({name})) as found",
            progress = beside(PROGRESS),
            history = beside(HISTORY),
            name = literal(name)
        );
        let asked = connection.fetch_optional(sqlx::raw_sql(AssertSqlSafe(sql)));
        let found = answer(asked).await.and_then(|row| {
            let table = |row: PgRow| {
                Ok(Self {
                    oid: row.try_get(0)?,
                    name: row.try_get(1)?,
                    relation: row.try_get(2)?,
                    progress: row.try_get(3)?,
                    has_progress: row.try_get(4)?,
                    history: Beside {
                        name: row.try_get(5)?,
                        exists: row.try_get(6)?,
                        can_be_read: row.try_get(7)?,
                        can_be_written: row.try_get(8)?,
                        is_trusted: row.try_get(9)?,
                    },
                })
            };
            row.map(table).transpose()
        });
        found.map_err(Error::database("look for the migration table"))
    }

    /// Makes the table as sqlx does, with the schemas that sqlx would make, unless it exists.
    pub(crate) async fn make(
        connection: &mut PgConnection,
        name: &str,
        schemas: &[impl AsRef<str>],
    ) -> Result<Self, Error> {
        let mut sql = String::new();
        for schema in schemas {
            // Writing to a string does not fail.
            let _ = write!(sql, "create schema if not exists {};", schema.as_ref());
        }
        let _ = write!(
            sql,
            "create table if not exists {name} (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
)"
        );
        let made = connection.execute(sqlx::raw_sql(AssertSqlSafe(sql)));
        answer(made).await.map_err(Error::database("make the migration table"))?;
        Self::find(connection, name).await?.ok_or_else(|| Error::NoTable { name: name.to_owned() })
    }
}

/// A name in SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The statement that takes a role, if there is one to take.
pub(crate) fn set_role(role: Option<&str>) -> String {
    role.map(|role| format!("set role {};", quoted(role))).unwrap_or_default()
}

/// A string in SQL, whatever `standard_conforming_strings` is: a migration may have changed it.
pub(crate) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

/// Bytes in SQL.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    format!(r"E'\\x{}'::pg_catalog.bytea", hex(bytes))
}

/// Every start of a service makes one of each migration's checksum, so it is no formatting.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
