//! The order of a check.

use std::fmt::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use db_core::sql::{Position, Token, split};
use db_core::{Config, ConnectRetry};
use serde::Serialize;
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::allow::Allowed;
use super::catalog::{self, Catalog, Of};
use super::error::CheckError;
use super::rules::{Finding, Rule};
use super::schema::{Difference, Rights, Schema, own_tables};
use super::throwaway::Throwaway;
use super::trace::{self, Trace, Traced};
use crate::look::{newest, problems_of_files};
use crate::outside::is_refused_in_transaction;
use crate::run::close;
use crate::table::Table;
use crate::{Action, Error, Migrations, session};

/// The differences that a finding shows.
const SHOWN: usize = 10;

/// The database that only goes up.
const LINE: &str = "line";

/// A copy that is changed and thrown away.
const COPY: &str = "copy";

/// A check of migrations on a server of its own. See the [module's documentation](super).
#[must_use = "nothing happens before `run`"]
pub struct Check<'m> {
    migrations: &'m Migrations,
    after: Option<i64>,
    dump: Option<PathBuf>,
    setup: Option<String>,
    skipped: Vec<String>,
    without: Vec<Rule>,
    ignored: Vec<String>,
}

// The statements that prepare the server may hold passwords.
impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, dump, skipped, without, ignored, .. } = self;
        let mut shown = f.debug_struct("Check");
        shown.field("after", after).field("dump", dump).field("skipped", skipped);
        shown.field("without", without).field("ignored", ignored);
        shown.finish_non_exhaustive()
    }
}

/// What a check has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checked {
    /// The files that were applied, in that order. If one fails, it is the last.
    pub files: Vec<CheckedFile>,
    /// The major version of the PostgreSQL that the check ran on.
    pub server: u32,
}

/// What a check has seen of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckedFile {
    /// Its version.
    pub version: i64,
    /// The name in its file's name, with spaces for underscores.
    pub description: String,
    /// The statements of its up file.
    pub statements: Vec<Traced>,
    /// What became of going down and up again.
    pub way_back: WayBack,
    /// What was found, without what comments allow.
    pub findings: Vec<Finding>,
}

/// What became of a file's way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WayBack {
    /// There is no down file.
    Missing,
    /// The schema is the same again.
    Same,
    /// It is not, or the way back failed.
    Broken,
    /// It was not tried: the file could not be applied, or the way back drops a role, which belongs to all databases of the server, and which
    /// another one of the check needs.
    NotTried,
}

/// What differs between a database and what its migrations make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Drift {
    /// The version that was compared.
    pub version: i64,
    /// The objects that differ.
    pub differences: Vec<Difference>,
    /// The major version of the database's PostgreSQL.
    pub server: u32,
    /// The major version of the PostgreSQL that it was compared on. If they differ, some definitions are written in another way.
    pub compared_on: u32,
}

impl<'m> Check<'m> {
    /// A check of all files, each on a database with those before it applied.
    pub fn new(migrations: &'m Migrations) -> Self {
        Self {
            migrations,
            after: None,
            dump: None,
            setup: None,
            skipped: Vec::new(),
            without: Vec::new(),
            ignored: Vec::new(),
        }
    }

    /// Checks only files after this version. Those up to it are applied before, and only the tables that these have made count: what a
    /// checked file has made, nobody uses yet.
    pub fn after(mut self, version: i64) -> Self {
        self.after = Some(version);
        self
    }

    /// Restores a dump first, so that the statements meet data, and their durations mean something. The files that the dump has on record as
    /// applied are taken as they are. `pg_dump`'s custom format, tar files and folders are read by `pg_restore`, scripts by `psql`, of the same folder
    /// as the server or from the path.
    pub fn dump(mut self, file: impl Into<PathBuf>) -> Self {
        self.dump = Some(file.into());
        self
    }

    /// Statements that the server runs first, such as `create role app`. The files run in a database that is named `line`: if they name yours, as in
    /// `alter database shop set …`, make one of that name here.
    pub fn setup(mut self, sql: impl Into<String>) -> Self {
        self.setup = Some(sql.into());
        self
    }

    /// Leaves out the statements that make, change or drop this extension, which the server of the check does not have. Of a dump, only one that is
    /// no script.
    pub fn without_extension(mut self, name: impl Into<String>) -> Self {
        self.skipped.push(name.into());
        self
    }

    /// Leaves a table out of comparisons, such as that of another migrator. The name may have a schema.
    pub fn without_table(mut self, name: impl Into<String>) -> Self {
        self.ignored.push(name.into());
        self
    }

    /// Leaves out a rule.
    pub fn without_rule(mut self, rule: Rule) -> Self {
        self.without.push(rule);
        self
    }

    /// Runs the check. Needs a Tokio runtime with I/O and time. The statements of the files have no time limit. Dropping the future ends the server.
    ///
    /// A role that the migrations run as ([`Migrations::with_role`]) is made as a superuser, unless `setup` makes it.
    ///
    /// # Errors
    ///
    /// [`CheckError`] if the check cannot be made. What it finds is no error.
    pub async fn run(self) -> Result<Checked, CheckError> {
        let (mut throwaway, migrations) = self.prepare().await?;
        let checked = self.checked(&mut throwaway, &migrations).await;
        end(throwaway).await;
        checked
    }

    /// Compares the schema of a database with what its applied migrations make, or those up to a version. Owners and privileges do not
    /// count, nor does the order of columns. Changes nothing in the database, and needs no more than the right to read the migration table. A dump
    /// and a version to begin after play no part. Dropping the future ends the server and the session.
    ///
    /// # Errors
    ///
    /// [`CheckError`] if they cannot be compared, and so if a migration that is applied is not among these.
    pub async fn drift(mut self, config: &Config, version: Option<i64>) -> Result<Drift, CheckError> {
        let version = match version {
            Some(version) => version,
            None => self.applied(config).await?,
        };
        self.dump = None;
        let mut connection = session::open(config, ConnectRetry::default()).await.map_err(Error::from)?;
        let mut found = self.schema(&mut connection, Rights::DoNotCount).await?;
        let server = connection_major(&mut connection).await?;
        close(connection).await;
        for name in &self.skipped {
            found.without_extension(name);
        }

        let (throwaway, migrations) = self.prepare().await?;
        let expected = async {
            up(&migrations, &throwaway.config(LINE), version).await?;
            let mut session = throwaway.session(LINE).await?;
            let expected = self.schema(&mut session, Rights::DoNotCount).await?;
            close(session).await;
            Ok::<_, CheckError>(expected)
        };
        let expected = expected.await;
        let compared_on = throwaway.major();
        end(throwaway).await;
        Ok(Drift { version, differences: expected?.differences(&found), server, compared_on })
    }

    /// The newest applied version of a database, whose files have to be there.
    async fn applied(&self, config: &Config) -> Result<i64, CheckError> {
        let plan = self.migrations.plan_up(config, None).await?;
        match plan.problems.into_iter().next() {
            Some(problem) => Err(problem.into()),
            None => Ok(plan.current_version),
        }
    }

    /// Starts a server with the database that the check begins with.
    async fn prepare(&self) -> Result<(Throwaway, Migrations), CheckError> {
        let mut throwaway = Throwaway::start(self.dump.is_none()).await?;
        let migrations = self.without_skipped();
        let all = migrations.migrator.iter().flat_map(|file| extensions(file.sql.as_str()));
        let made = all.filter(|it| it.is_made).map(|it| it.name);
        let names = throwaway.missing(made.collect()).await?;
        if !names.is_empty() {
            return Err(CheckError::NoExtension { names });
        }
        throwaway.make(LINE, "template1").await?;
        if let Some(sql) = &self.setup {
            throwaway.set_up(LINE, sql).await?;
        }
        if let Some(role) = &migrations.role {
            throwaway.make_role(role).await?;
        }
        if let Some(file) = &self.dump {
            throwaway.restore(LINE, file, &self.skipped).await?;
        }
        // As each run makes them before its first file.
        let Migrator { table_name, create_schemas, .. } = &migrations.migrator;
        let mut session = throwaway.session(LINE).await?;
        let made = Table::make(&mut session, table_name, create_schemas).await;
        close(session).await;
        made?;
        Ok((throwaway, migrations))
    }

    async fn checked(
        &self,
        throwaway: &mut Throwaway,
        migrations: &Migrations,
    ) -> Result<Checked, CheckError> {
        let config = throwaway.config(LINE);
        let mut at = match &self.dump {
            Some(_) => newest(migrations.status(&config).await?.iter()),
            None => 0,
        };
        let mut is_after = self.dump.is_some();
        if let Some(after) = self.after {
            is_after = true;
            if after > at {
                let is_known = migrations.file(after, false).is_some();
                let before =
                    migrations.ups().map(|file| file.version).filter(|version| *version <= after).max();
                match before {
                    Some(version) if is_known || self.dump.is_none() => {
                        up(migrations, &config, version).await?;
                    }
                    _ => {}
                }
                at = after;
            }
        }

        let mut session = throwaway.session(LINE).await?;
        let own = self.own(&mut session).await?;
        let counts = if is_after { Some(catalog_of(&mut session, &own).await?) } else { None };
        close(session).await;
        // As the file before has left it, if that was read.
        let mut before = None;

        let mut files = Vec::new();
        let versions: Vec<i64> = migrations.ups().map(|file| file.version).collect();
        for (nth, version) in versions.iter().enumerate().filter(|(_, version)| **version > at) {
            let Some(file) = migrations.file(*version, false) else { continue };
            let target = nth.checked_sub(1).map_or(0, |nth| versions[nth]);
            let mut checking =
                Checking { check: self, throwaway, migrations, file, target, findings: Vec::new() };
            let down = migrations.file(*version, true);
            if down.is_some() && before.is_none() {
                before = Some(checking.schema(LINE).await?);
            }
            let (statements, is_applied) = checking.up(counts.as_ref()).await?;
            let mut after = None;
            let way_back = match (down, before) {
                _ if !is_applied => WayBack::NotTried,
                (Some(down), Some(before)) => {
                    let now = after.insert(checking.schema(LINE).await?);
                    checking.back(down, &before, now).await?
                }
                _ => WayBack::Missing,
            };
            let findings = checking.findings;
            let Migration { version, description, .. } = file;
            files.push(CheckedFile {
                version: *version,
                description: description.to_string(),
                statements,
                way_back,
                findings,
            });
            if !is_applied {
                break;
            }
            before = after;
        }
        Ok(Checked { files, server: throwaway.major() })
    }

    async fn own(&self, connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
        own_tables(connection, &self.migrations.migrator.table_name, &self.ignored).await
    }

    async fn schema(&self, connection: &mut PgConnection, rights: Rights) -> Result<Schema, Error> {
        let own = self.own(connection).await?;
        Schema::read(connection, &own, rights).await
    }

    /// The migrations, with blanks for what makes an extension that is skipped. The checksums are those of the files.
    fn without_skipped(&self) -> Migrations {
        let files = self.migrations.migrator.iter().map(|file| {
            let mut sql = file.sql.as_str().to_owned();
            // From the end, since a blank may have fewer bytes than what it stands for.
            for Extension { at, .. } in
                extensions(file.sql.as_str()).into_iter().rev().filter(|it| self.skipped.contains(&it.name))
            {
                let blank: String =
                    sql[at.clone()].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
                sql.replace_range(at, &blank);
            }
            Migration { sql: AssertSqlSafe(sql).into_sql_str(), ..file.clone() }
        });
        let mut migrator = Migrator::with_migrations(files.collect());
        migrator.dangerous_set_table_name(self.migrations.migrator.table_name.clone());
        migrator.create_schemas.clone_from(&self.migrations.migrator.create_schemas);
        let migrations = Migrations::new(&migrator).with_patience(Duration::ZERO);
        match &self.migrations.role {
            Some(role) => migrations.with_role(role),
            None => migrations,
        }
    }
}

/// One file.
struct Checking<'c> {
    check: &'c Check<'c>,
    throwaway: &'c mut Throwaway,
    migrations: &'c Migrations,
    file: &'c Migration,
    /// The version before.
    target: i64,
    findings: Vec<Finding>,
}

impl Checking<'_> {
    /// Traces the file and applies it. Returns whether it is applied.
    async fn up(&mut self, counts: Option<&Catalog>) -> Result<(Vec<Traced>, bool), CheckError> {
        if self.is_refused(self.file, Rule::UpFails, Action::Up) {
            return Ok((Vec::new(), false));
        }
        let traced = self.trace(counts).await?;
        let allowed = Allowed::of(self.file.sql.as_str());
        for hazard in traced.hazards {
            if !allowed.in_statement(hazard.rule, hazard.statement) {
                let position = traced.statements.get(hazard.statement).map(|it| it.position);
                self.found(hazard.rule, Action::Up, position, hazard.message);
            }
        }
        for (position, reason) in &allowed.bad {
            self.found(Rule::BadAllow, Action::Up, Some(*position), reason.clone());
        }
        let applied = up(self.migrations, &self.throwaway.config(LINE), self.file.version).await;
        let is_applied = applied.is_ok();
        match (applied, traced.failed) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) if allowed.in_file(Rule::NotTraced) => {}
            (Ok(()), Some(error)) => {
                let position = statement_at(self.file.sql.as_str(), traced.statements.len());
                let message =
                    format!("the file is applied as a whole, and not statement by statement: {error}");
                self.found(Rule::NotTraced, Action::Up, position, message);
            }
            (Err(Error::Failed { at, cause, .. }), _) => {
                // Others of this code are about the order of statements.
                let is_concurrent = is_refused_in_transaction(&cause)
                    && cause.to_string().contains("inside a transaction block");
                let rule = if is_concurrent { Rule::ConcurrentInTransaction } else { Rule::UpFails };
                let nth = traced.statements.len();
                let position = at.or_else(|| statement_at(self.file.sql.as_str(), nth));
                self.found(rule, Action::Up, position, cause.to_string());
            }
            (Err(error), _) => self.found(Rule::UpFails, Action::Up, None, error.to_string()),
        }
        Ok((traced.statements, is_applied))
    }

    /// In a copy: sequences go on although a transaction is rolled back, and a file may commit.
    async fn trace(&mut self, counts: Option<&Catalog>) -> Result<Trace, CheckError> {
        let shared = self.throwaway.shared().await?;
        self.throwaway.make(COPY, LINE).await?;
        let mut session = self.throwaway.session(COPY).await?;
        let own = self.check.own(&mut session).await?;
        let role = self.migrations.role.as_deref();
        let traced = trace::run(&mut session, self.file, role, counts, &own).await;
        close(session).await;
        self.throwaway.remove(COPY).await?;
        self.throwaway.remove_new(&shared).await?;
        traced.map_err(|cause| CheckError::Database { what: "trace a file", cause })
    }

    /// Goes down and up again, in a copy: what is in the database does not come back by itself.
    async fn back(
        &mut self,
        down: &Migration,
        before: &Schema,
        after: &Schema,
    ) -> Result<WayBack, CheckError> {
        if self.is_refused(down, Rule::DownFails, Action::Down) {
            return Ok(WayBack::Broken);
        }
        self.throwaway.make(COPY, LINE).await?;
        let allowed = Allowed::of(down.sql.as_str());
        for (position, reason) in &allowed.bad {
            self.found(Rule::BadAllow, Action::Down, Some(*position), reason.clone());
        }
        let bad = self.findings.len();
        let is_tried = self.there_and_back(&allowed, before, after).await?;
        self.throwaway.remove(COPY).await?;
        Ok(match (is_tried, self.findings.len() > bad) {
            (false, _) => WayBack::NotTried,
            (true, true) => WayBack::Broken,
            (true, false) => WayBack::Same,
        })
    }

    /// Returns whether it could be tried.
    async fn there_and_back(
        &mut self,
        allowed: &Allowed,
        before: &Schema,
        after: &Schema,
    ) -> Result<bool, CheckError> {
        let config = self.throwaway.config(COPY);
        if let Err(error) = self.migrations.down_to(&config, self.target).await {
            if is_shared(&error) {
                return Ok(false);
            }
            if !allowed.in_file(Rule::DownFails) {
                let (position, message) = match error {
                    Error::Failed { at, cause, .. } => (at, cause.to_string()),
                    error => (None, error.to_string()),
                };
                self.found(Rule::DownFails, Action::Down, position, message);
            }
            return Ok(true);
        }
        self.compare(before, Rule::DownDiffers, allowed).await?;
        if let Err(error) = up(self.migrations, &config, self.file.version).await {
            if !allowed.in_file(Rule::UpAgainFails) {
                self.found(Rule::UpAgainFails, Action::Down, None, error.to_string());
            }
            return Ok(true);
        }
        // What the way back has left is told already.
        if self.findings.iter().all(|it| it.rule != Rule::DownDiffers) {
            self.compare(after, Rule::UpAgainDiffers, allowed).await?;
        }
        Ok(true)
    }

    async fn compare(&mut self, expected: &Schema, rule: Rule, allowed: &Allowed) -> Result<(), CheckError> {
        let now = self.schema(COPY).await?;
        let differences = expected.differences(&now);
        if !differences.is_empty() && !allowed.in_file(rule) {
            let mut message = "the schema is not what it was:".to_owned();
            for difference in differences.iter().take(SHOWN) {
                // Writing to a string does not fail.
                let _ = write!(message, "\n    {difference}");
            }
            if let more @ 1.. = differences.len().saturating_sub(SHOWN) {
                let _ = write!(message, "\n    and {more} more differences");
            }
            self.found(rule, Action::Down, None, message);
        }
        Ok(())
    }

    async fn schema(&self, database: &str) -> Result<Schema, CheckError> {
        let mut session = self.throwaway.session(database).await?;
        let schema = self.check.schema(&mut session, Rights::Count).await?;
        close(session).await;
        Ok(schema)
    }

    /// Whether no run would begin a file as it is, which is then found.
    fn is_refused(&mut self, file: &Migration, rule: Rule, action: Action) -> bool {
        let problems = problems_of_files([file].into_iter());
        let is_refused = !problems.is_empty();
        for problem in problems {
            match problem {
                Error::Refused { findings } => {
                    for finding in findings {
                        self.found(rule, action, Some(finding.position), finding.reason);
                    }
                }
                problem => self.found(rule, action, None, problem.to_string()),
            }
        }
        is_refused
    }

    fn found(&mut self, rule: Rule, action: Action, position: Option<Position>, message: String) {
        if self.check.without.contains(&rule) {
            return;
        }
        self.findings.push(Finding { rule, action, position, message, advice: rule.advice() });
    }
}

/// Whether a role could not be dropped. 2BP01 is `dependent_objects_still_exist`.
fn is_shared(error: &Error) -> bool {
    let Error::Failed { cause, .. } = error else { return false };
    cause.sqlstate().as_deref() == Some("2BP01") && cause.to_string().contains("role \"")
}

/// Applies the files up to a version.
async fn up(migrations: &Migrations, config: &Config, version: i64) -> Result<(), Error> {
    if version == 0 {
        return Ok(());
    }
    migrations.up_to(config, version).await.map(drop)
}

async fn catalog_of(connection: &mut PgConnection, own: &[i64]) -> Result<Catalog, CheckError> {
    let read = catalog::read(connection, Of::All { own }).await;
    Ok(read.map_err(CheckError::database("read the catalog"))?.0)
}

async fn connection_major(connection: &mut PgConnection) -> Result<u32, Error> {
    let asked = sqlx::query_scalar::<_, i32>("select current_setting('server_version_num')::int4 / 10000");
    let major = asked.persistent(false).fetch_one(connection).await;
    Ok(major.map_err(Error::database("ask for the server's version"))?.unsigned_abs())
}

fn statement_at(sql: &str, nth: usize) -> Option<Position> {
    Some(Position::of(sql, split(sql).ok()?.get(nth)?.start))
}

/// Stops the server. What the check has seen is not lost if that fails.
async fn end(throwaway: Throwaway) {
    if let Err(error) = throwaway.end().await {
        tracing::warn!(%error, "the server of the check has not ended as it should");
    }
}

/// A statement that makes, changes or drops an extension.
struct Extension {
    at: Range<usize>,
    name: String,
    is_made: bool,
}

fn extensions(sql: &str) -> Vec<Extension> {
    let statements = split(sql).unwrap_or_default();
    let found = statements.iter().filter_map(|statement| {
        let tokens: Vec<Token<'_>> = statement.tokens().collect();
        let (is_made, rest) = match &*tokens {
            [first, second, rest @ ..]
                if first.is_any(&["create", "alter", "drop"]) && second.is("extension") =>
            {
                (first.is("create"), rest)
            }
            [first, on, second, rest @ ..]
                if first.is("comment") && on.is("on") && second.is("extension") =>
            {
                (false, rest)
            }
            _ => return None,
        };
        let name = rest.iter().find(|token| !token.is_any(&["if", "not", "exists"]))?.name()?;
        Some(Extension { at: statement.start..statement.start + statement.text.len(), name, is_made })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::{Extension, extensions};

    #[test]
    fn statements_of_extensions_are_found_with_their_names() {
        let sql = "create table t (); CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" with schema x;\n\
                   drop extension if exists hstore cascade; comment on extension pgcrypto is 'y'; select 'create extension z'";
        let found: Vec<(String, bool)> =
            extensions(sql).into_iter().map(|it| (it.name, it.is_made)).collect();
        let expected = [("uuid-ossp", true), ("hstore", false), ("pgcrypto", false)];
        assert_eq!(found, expected.map(|(name, is_made)| (name.to_owned(), is_made)));
        let Extension { at, .. } = extensions(sql).swap_remove(1);
        assert_eq!(&sql[at], "drop extension if exists hstore cascade");
    }
}
