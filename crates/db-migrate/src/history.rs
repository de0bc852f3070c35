//! The table beside sqlx's with what was done: each attempt, and the SQL that was applied with its way back.

use std::fmt::Write;

use db_core::sql::Position;
use serde::Serialize;
use sqlx::migrate::Migration;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::session::answer;
use crate::step::FileToRun;
use crate::table::{Table, bytes, literal};
use crate::{Error, contents};

/// The form of the rows that this program writes. They have their number.
const FORM: i16 = 1;

/// The longest line of a file that is stored with an error, in characters.
const LONGEST_LINE: usize = 200;

/// "Insufficient privilege."
const NOT_ALLOWED: &str = "42501";

/// "Undefined column."
pub(crate) const NO_COLUMN: &str = "42703";

/// An attempt on record, or another change of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number: later attempts have higher ones.
    pub id: i64,
    /// The version. Of a repeatable file, the newest one when it was applied.
    pub version: i64,
    /// What was done.
    pub action: Action,
    /// The name in the file's name, with spaces for underscores. Of a repeatable file, its name without `.sql`.
    pub description: String,
    /// When it began, in UTC, as RFC 3339 writes it.
    pub began_at: String,
    /// How long it took, in milliseconds; none if it was cut off, or still runs.
    pub milliseconds: Option<i64>,
    /// How it ended.
    pub outcome: Outcome,
    /// The role that connected.
    pub done_by: String,
    /// The machine that the program ran on.
    pub host: Option<String>,
    /// The program.
    pub program: Option<String>,
    /// Its version.
    pub program_version: Option<String>,
    /// The code of the server's error.
    pub sqlstate: Option<String>,
    /// The place in the file of the server's error.
    pub at: Option<Position>,
    /// The line of the file there.
    pub line: Option<String>,
    /// What a person has said, or more about what was done.
    pub reason: Option<String>,
}

/// What an attempt was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Apply a version.
    Up,
    /// Revert a version.
    Down,
    /// Found on record in sqlx's table, with the file's checksum: sqlx has applied it, or a program from before this table.
    Adopted,
    /// Found reverted: sqlx did it.
    Gone,
    /// The file's new checksum was put on record: see [`Migrations::rebless`](crate::Migrations::rebless).
    Reblessed,
    /// Put on record without being run: see [`Migrations::baseline`](crate::Migrations::baseline).
    Baseline,
    /// A person has said what is true: see [`Migrations::repair`](crate::Migrations::repair).
    Repaired,
    /// Apply a repeatable file: see [`Migrations::with_repeatable`](crate::Migrations::with_repeatable).
    Repeat,
}

impl Action {
    const ALL: [Self; 8] = [
        Self::Up,
        Self::Down,
        Self::Adopted,
        Self::Gone,
        Self::Reblessed,
        Self::Baseline,
        Self::Repaired,
        Self::Repeat,
    ];

    /// Its name in the table, which is that of its JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Adopted => "adopted",
            Self::Gone => "gone",
            Self::Reblessed => "reblessed",
            Self::Baseline => "baseline",
            Self::Repaired => "repaired",
            Self::Repeat => "repeat",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed, and was rolled back. Outside of a transaction, the statements before are done.
    Failed,
    /// It has not ended: it runs, or was cut off.
    Open,
}

impl Outcome {
    /// By the column `succeeded`.
    fn of(succeeded: Option<bool>) -> Self {
        match succeeded {
            Some(true) => Self::Done,
            Some(false) => Self::Failed,
            None => Self::Open,
        }
    }
}

/// Who writes the history.
#[derive(Debug, Clone)]
pub(crate) struct Author {
    pub(crate) program: Option<String>,
    pub(crate) version: Option<String>,
    /// Whether the SQL of files is stored.
    pub(crate) stores_sql: bool,
}

/// The table, open for writing by the holder of the migration lock.
#[derive(Debug)]
pub(crate) struct History {
    name: String,
    author: Author,
    host: Option<String>,
    next_id: i64,
    /// The attempt that is on record as begun.
    open: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    id: i64,
    version: i64,
    action: Action,
    description: String,
}

impl Begun {
    fn is_of(&self, file: FileToRun<'_>) -> bool {
        let FileToRun { migration, action, .. } = file;
        (self.version, self.action, &*self.description)
            == (migration.version, action, &*migration.description)
    }
}

impl History {
    /// The table, made if there is none. `None` if this role may not make it, or may not write to it: migrations run without, as
    /// with sqlx.
    ///
    /// # Errors
    ///
    /// [`Error::NewerHistory`].
    pub(crate) async fn open(
        connection: &mut PgConnection,
        table: &Table,
        author: Author,
    ) -> Result<Option<Self>, Error> {
        let name = table.history.name.clone();
        if !table.history.exists {
            if !Self::make(connection, table).await? {
                return Ok(None);
            }
        } else if !table.history.is_trusted {
            tracing::warn!(
                table = name,
                "no history is written: the table of its name belongs to another role"
            );
            return Ok(None);
        }
        let others = writers(connection, &name).await?;
        if !others.is_empty() {
            tracing::warn!(
                table = name,
                ?others,
                "no history is written: these roles may write to its table, too. Revoke their rights"
            );
            return Ok(None);
        }
        let sql = format!(
            "select coalesce(max(id), 0) + 1, max(form) from {name}
             having has_table_privilege({table}, 'insert') and has_table_privilege({table}, 'update')",
            table = literal(&name)
        );
        let found = answer(connection.fetch_optional(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
        let read = |row: PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
        let found: Option<(i64, Option<i16>)> = match found.and_then(|row| row.map(read).transpose()) {
            Err(error) if has_code(&error, NO_COLUMN) => {
                tracing::warn!(
                    table = name,
                    "no history is written: the table of its name was made by somebody else"
                );
                return Ok(None);
            }
            Err(error) if has_code(&error, NOT_ALLOWED) => None,
            found => found.map_err(Error::database("read the history of migrations"))?,
        };
        let Some((next_id, form)) = found else {
            tracing::warn!(table = name, "no history is written: this role may not read and write its table");
            return Ok(None);
        };
        if let Some(form) = form.filter(|form| *form > FORM) {
            return Err(Error::NewerHistory { table: name, form });
        }
        let host = nix::unistd::gethostname().ok().map(|host| host.to_string_lossy().into_owned());
        Ok(Some(Self { name, author, host, next_id, open: None }))
    }

    /// Makes the table. Whether this role may.
    async fn make(connection: &mut PgConnection, table: &Table) -> Result<bool, Error> {
        if !table.history.can_be_written {
            tracing::warn!(
                table = table.history.name,
                "no history is written: this role may not make a table in the schema of the migration table"
            );
            return Ok(false);
        }
        let name = &table.history.name;
        // Neither defaults nor constraints, which each session that looks at the table would read. Rights to write that the schema gives on each new table are taken back: a later `down` may run what stands in this one.
        let sql = format!(
            "begin read write;
             create table if not exists {name} (
    version bigint not null,
    id bigint not null,
    form smallint not null,
    action text not null,
    description text not null,
    began_at timestamptz not null,
    ended_at timestamptz,
    succeeded boolean,
    done_by text not null,
    host text,
    program text,
    program_version text,
    sqlstate text,
    line integer,
    \"column\" integer,
    line_text text,
    reason text,
    checksum bytea,
    digest bytea,
    sql text,
    way_back text,
    primary key (version, id)
);
             {revoke}
             commit;",
            revoke = do_block(&format!(
                "declare
                    other text;
                 begin
                    for other in
                        select distinct case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end
                        from pg_class, aclexplode(relacl)
                        where pg_class.oid = {}::regclass and grantee <> relowner
                    loop
                        execute 'revoke insert, update, delete, truncate, references, trigger on {} from ' || other;
                    end loop;
                 end",
                literal(name),
                name.replace('\'', "''")
            )),
        );
        match answer(connection.execute(sqlx::raw_sql(AssertSqlSafe(sql)))).await {
            Ok(_) => Ok(true),
            Err(error) => {
                let rolled_back = answer(connection.execute(sqlx::raw_sql("rollback"))).await;
                if !has_code(&error, NOT_ALLOWED) {
                    return Err(Error::database("make the history of migrations")(error));
                }
                rolled_back.map_err(Error::database("roll back"))?;
                tracing::warn!(%error, table = name, "no history is written: this role may not make its table");
                Ok(false)
            }
        }
    }

    /// Whether an attempt of this file is on record as begun.
    pub(crate) fn has_begun(&self, file: FileToRun<'_>) -> bool {
        self.open.as_ref().is_some_and(|open| open.is_of(file))
    }

    /// The table, and the condition that the open attempt is on record as done. No row has it if none is open.
    pub(crate) fn open_and_done(&self) -> String {
        let id = self.open.as_ref().map_or(0, |open| open.id);
        format!("{} where id = {id} and succeeded", self.name)
    }

    /// The statement that records that an attempt begins. To be followed by [`Self::advance`] when it is committed.
    pub(crate) fn begins(&self, FileToRun { migration, action, .. }: FileToRun<'_>) -> String {
        let row = self.row(self.next_id, migration.version, action, &migration.description, &[]);
        // It may be sent again after its commit.
        format!("{} on conflict (version, id) do nothing;", row.trim_end_matches(';'))
    }

    /// The statement that records the open attempt as done.
    pub(crate) fn done(&self, migration: &Migration, way_back: Option<&Migration>) -> String {
        let Some(open) = &self.open else { return String::new() };
        let mut set = String::from("ended_at = pg_catalog.clock_timestamp(), succeeded = true");
        for (column, value) in self.contents(migration, way_back) {
            // Writing to a string does not fail.
            let _ = write!(set, ", {column} = {value}");
        }
        format!("update {} set {set} where id = {};", self.name, open.id)
    }

    /// The statement that records how the open attempt failed. One that was only announced is no attempt.
    pub(crate) fn failed(&self, file: FileToRun<'_>, error: &Error) -> String {
        let Some(open) = &self.open else { return String::new() };
        if !open.is_of(file) {
            return format!("delete from {} where id = {} and ended_at is null;", self.name, open.id);
        }
        let mut set = String::from("ended_at = pg_catalog.clock_timestamp(), succeeded = false");
        if let Some(code) = error.sqlstate() {
            let _ = write!(set, ", sqlstate = {}", literal(&code));
        }
        let at = match error {
            Error::Failed { at, .. } => *at,
            Error::Interrupted { position, .. } => Some(*position),
            _ => None,
        };
        if let Some(Position { line, column }) = at {
            let _ = write!(set, ", line = {line}, \"column\" = {column}");
            let text = file.migration.sql.as_str().lines().nth(line.saturating_sub(1) as usize);
            if let Some(text) = text.filter(|_| self.author.stores_sql) {
                let text: String = text.chars().take(LONGEST_LINE).collect();
                let _ = write!(set, ", line_text = {}", literal(&text));
            }
        }
        // An error may have come after the commit of its end, and of what was announced with it.
        format!(
            "update {name} set {set} where id = {id} and ended_at is null; delete from {name} where id > {id} and ended_at is null;",
            name = self.name,
            id = open.id
        )
    }

    /// After an attempt has ended on record, and the next one may be on record as begun.
    pub(crate) fn advance(&mut self, begun: Option<FileToRun<'_>>) {
        self.open = begun.map(|FileToRun { migration, action, .. }| {
            self.next_id += 1;
            let description = migration.description.to_string();
            Begun { id: self.next_id - 1, version: migration.version, action, description }
        });
    }

    /// The statements that record what was done at once.
    pub(crate) fn noted(&mut self, action: Action, reason: Option<&str>, of: &[Noted<'_>]) -> String {
        let mut sql = String::new();
        for noted in of {
            let mut more = vec![
                ("ended_at", "pg_catalog.clock_timestamp()".to_owned()),
                ("succeeded", "true".to_owned()),
            ];
            if let Some(reason) = reason {
                more.push(("reason", literal(reason)));
            }
            if let Some(file) = noted.file {
                more.extend(self.contents(file, noted.way_back));
            }
            sql += &self.row(self.next_id, noted.version, action, noted.description, &more);
            self.next_id += 1;
        }
        sql
    }

    /// The versions that the history has as applied, and sqlx's table has not.
    pub(crate) async fn gone(
        &self,
        connection: &mut PgConnection,
        table: &Table,
    ) -> Result<Vec<(i64, String)>, Error> {
        let sql = format!(
            "select version, description from (
                 select distinct on (version) version, description, {IS_APPLIED} as is_applied from {history} as h
                 where succeeded and action <> 'repeat' order by version, id desc) as last
             where is_applied and not exists (select from {table} as recorded where recorded.version = last.version)
             order by version",
            history = self.name,
            table = table.name
        );
        let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
        let read = |rows: Vec<PgRow>| {
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()
        };
        rows.and_then(read).map_err(Error::database("read the history of migrations"))
    }

    /// What a file says, its SQL, and its way back.
    fn contents(&self, file: &Migration, way_back: Option<&Migration>) -> Vec<(&'static str, String)> {
        let mut contents =
            vec![("checksum", bytes(&file.checksum)), ("digest", bytes(&contents::digest(file)))];
        if self.author.stores_sql {
            contents.push(("sql", literal(file.sql.as_str())));
            contents.extend(way_back.map(|way_back| ("way_back", literal(way_back.sql.as_str()))));
        }
        contents
    }

    fn row(
        &self,
        id: i64,
        version: i64,
        action: Action,
        description: &str,
        more: &[(&str, String)],
    ) -> String {
        let mut columns = String::from("id, version, form, action, description, began_at, done_by");
        let mut values = format!(
            "{id}, {version}, {FORM}, '{}', {}, pg_catalog.clock_timestamp(), session_user",
            action.name(),
            literal(description)
        );
        let optional = [
            ("host", &self.host),
            ("program", &self.author.program),
            ("program_version", &self.author.version),
        ];
        let optional =
            optional.into_iter().filter_map(|(column, value)| Some((column, literal(value.as_deref()?))));
        for (column, value) in optional.chain(more.iter().cloned()) {
            let _ = write!(columns, ", {column}");
            let _ = write!(values, ", {value}");
        }
        format!("insert into {} ({columns}) values ({values});", self.name)
    }
}

/// Whether an entry `h` that succeeded leaves its version applied, in SQL.
pub(crate) const IS_APPLIED: &str =
    "(h.action not in ('down', 'gone') and not (h.action = 'repaired' and h.reason = 'not applied'))";

/// What [`Repair::NotApplied`](crate::Repair::NotApplied) gives as the reason.
pub(crate) const NOT_APPLIED: &str = "not applied";

/// A version that is put on record without an attempt.
pub(crate) struct Noted<'m> {
    pub(crate) version: i64,
    pub(crate) description: &'m str,
    pub(crate) file: Option<&'m Migration>,
    pub(crate) way_back: Option<&'m Migration>,
}

impl<'m> Noted<'m> {
    pub(crate) fn of(file: &'m Migration, way_back: Option<&'m Migration>) -> Self {
        Self { version: file.version, description: &file.description, file: Some(file), way_back }
    }
}

/// The SQL that was applied last under this checksum, in hex digits.
pub(crate) async fn applied_sql(
    connection: &mut PgConnection,
    table: &Table,
    version: i64,
) -> Result<Option<String>, Error> {
    if !table.history.is_readable() {
        return Ok(None);
    }
    let sql = format!(
        "select h.sql from {history} as h join {table} as recorded using (version, checksum)
         where version = {version} and h.succeeded and h.form = {FORM} and h.sql is not null order by h.id desc limit 1",
        history = table.history.name,
        table = table.name
    );
    let row = answer(connection.fetch_optional(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    row.and_then(|row| row.map(|row| row.try_get(0)).transpose())
        .map_err(Error::database("read the SQL that was applied"))
}

/// The roles that may write to the table or make triggers of it, but for this one and superusers: by a right on the table or on a
/// column, as its owner, or as a member of its owner. Who administers the owner is left out, too: on 16 and later, that is who made the
/// role, and can become it at any time.
async fn writers(connection: &mut PgConnection, name: &str) -> Result<Vec<String>, Error> {
    let sql = format!(
        "select array(
             select r.rolname::text from pg_roles as r, pg_class as c
             where c.oid = {}::regclass and not r.rolsuper and r.rolname not in (session_user, current_user) and r.rolname !~ '^pg_'
               and not pg_has_role(r.oid, c.relowner, 'member with admin option')
               and (pg_has_role(r.oid, c.relowner, 'member')
                    or has_table_privilege(r.oid, c.oid, 'insert, update, delete, truncate, trigger')
                    or has_any_column_privilege(r.oid, c.oid, 'insert, update'))
             order by 1)",
        literal(name)
    );
    let row = answer(connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    row.and_then(|row| row.try_get(0))
        .map_err(Error::database("look for the roles that may write the history"))
}

/// The ways back of versions, by the record. Refused if another role may have written them: they are run.
pub(crate) async fn ways_back(
    connection: &mut PgConnection,
    table: &Table,
    versions: &[i64],
) -> Result<Vec<(i64, String, String)>, Error> {
    const WHAT: &str = "read the ways back on record";
    let name = &table.history.name;
    if table.history.exists && !table.history.is_trusted {
        return Err(Error::WritableHistory { table: name.clone(), roles: writers(connection, name).await? });
    }
    if !table.history.is_readable() {
        return Ok(Vec::new());
    }
    let roles = writers(connection, name).await?;
    if !roles.is_empty() {
        return Err(Error::WritableHistory { table: name.clone(), roles });
    }
    let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
    let sql = format!(
        "select distinct on (version) version, h.description, h.way_back
         from {name} as h join {table} as recorded using (version, checksum)
         where h.succeeded and h.action <> 'repeat' and h.form = {FORM} and h.sql is not null and version = any('{{{versions}}}')
         order by version, h.id desc",
        table = table.name,
        versions = versions.join(",")
    );
    let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    let read = |rows: Vec<PgRow>| {
        let mut all = Vec::new();
        for row in rows {
            if let Some(way_back) = row.try_get(2)? {
                all.push((row.try_get(0)?, row.try_get(1)?, way_back));
            }
        }
        Ok::<_, sqlx::Error>(all)
    };
    rows.and_then(read).map_err(Error::database(WHAT))
}

/// The last attempt of a file.
pub(crate) struct Last {
    pub(crate) version: i64,
    /// Of a repeatable file.
    pub(crate) name: Option<String>,
    pub(crate) outcome: Outcome,
}

/// The last attempt of each file on record.
pub(crate) async fn last(connection: &mut PgConnection, table: &Table) -> Result<Vec<Last>, Error> {
    const WHAT: &str = "read the history of migrations";
    if !table.history.is_readable() {
        return Ok(Vec::new());
    }
    // A repeatable file has a name, and the version of others.
    let sql = format!(
        "select distinct on (name, of_version) version, name, succeeded
         from {} as h, lateral (select case when action = 'repeat' then description end as name) as named,
           lateral (select case when name is null then version end as of_version) as versioned
         order by name, of_version, id desc",
        table.history.name
    );
    let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    let rows = match rows {
        // A table of somebody else's.
        Err(error) if has_code(&error, NO_COLUMN) => return Ok(Vec::new()),
        rows => rows.map_err(Error::database(WHAT))?,
    };
    let last = |row: &PgRow| {
        Ok(Last { version: row.try_get(0)?, name: row.try_get(1)?, outcome: Outcome::of(row.try_get(2)?) })
    };
    rows.iter().map(last).collect::<Result<_, sqlx::Error>>().map_err(Error::database(WHAT))
}

/// All attempts on record, in their order.
pub(crate) async fn read(connection: &mut PgConnection, table: &Table) -> Result<Vec<Attempt>, Error> {
    const WHAT: &str = "read the history of migrations";
    if !table.history.exists || !table.history.is_trusted {
        return Ok(Vec::new());
    }
    let sql = format!(
        "select id, version, action, description, to_char(began_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
           (extract(epoch from ended_at - began_at) * 1000)::bigint, succeeded, done_by, host, program, program_version,
           sqlstate, line, \"column\", line_text, reason, form
         from {} order by id",
        table.history.name
    );
    let rows = answer(connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
    let rows = match rows {
        // A table of somebody else's.
        Err(error) if has_code(&error, NO_COLUMN) => return Ok(Vec::new()),
        rows => rows.map_err(Error::database(WHAT))?,
    };
    let form = |row: &PgRow| row.try_get::<i16, _>(16);
    let newest = rows.iter().map(form).collect::<Result<Vec<_>, _>>().map_err(Error::database(WHAT))?;
    if let Some(form) = newest.into_iter().max().filter(|form| *form > FORM) {
        return Err(Error::NewerHistory { table: table.history.name.clone(), form });
    }
    rows.iter().map(attempt).collect::<Result<_, _>>().map_err(Error::database(WHAT))
}

fn attempt(row: &PgRow) -> Result<Attempt, sqlx::Error> {
    let action: String = row.try_get(2)?;
    let unknown = || sqlx::Error::Decode(format!("an unknown action `{action}`").into());
    let at: (Option<i32>, Option<i32>) = (row.try_get(12)?, row.try_get(13)?);
    let number = |n: i32| u32::try_from(n).unwrap_or_default();
    Ok(Attempt {
        id: row.try_get(0)?,
        version: row.try_get(1)?,
        action: Action::of(&action).ok_or_else(unknown)?,
        description: row.try_get(3)?,
        began_at: row.try_get(4)?,
        milliseconds: row.try_get(5)?,
        outcome: Outcome::of(row.try_get(6)?),
        done_by: row.try_get(7)?,
        host: row.try_get(8)?,
        program: row.try_get(9)?,
        program_version: row.try_get(10)?,
        sqlstate: row.try_get(11)?,
        at: at.0.zip(at.1).map(|(line, column)| Position { line: number(line), column: number(column) }),
        line: row.try_get(14)?,
        reason: row.try_get(15)?,
    })
}

fn do_block(body: &str) -> String {
    format!("do {} language plpgsql;", literal(body))
}

pub(crate) fn has_code(error: &sqlx::Error, code: &str) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|found| found == code)
}
