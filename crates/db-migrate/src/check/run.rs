//! The order of a check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use db_core::{Config, ConnectRetry};
use serde::Serialize;
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};

use super::catalog::{self, Catalog, Of};
use super::dump;
use super::error::CheckError;
use super::extensions::{extensions, without};
use super::file::{CheckedFile, Checking, WayBack};
use super::repeatable::CheckedRepeatable;
use super::rule::Rule;
use super::schema::{Difference, Rights, Schema, own_tables};
use super::throwaway::{LINE, Throwaway};
use crate::data_step::{RustStep, step_name};
use crate::look::newest;
use crate::repeatable::is_current;
use crate::run::close;
use crate::session::answer;
use crate::table::{Table, set_role};
use crate::{Error, Migrations, session};

/// A check of migrations on a server of its own. See the [module's documentation](super).
#[must_use = "nothing happens before `run`"]
pub struct Check<'m> {
    migrations: &'m Migrations,
    after: Option<i64>,
    dump: Option<PathBuf>,
    setup: Option<String>,
    skipped: Vec<String>,
    pub(super) without: Vec<Rule>,
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
    /// The repeatable files, in order of their names, if all others could be applied. If one fails, it is the last.
    pub repeatables: Vec<CheckedRepeatable>,
    /// The major version of the PostgreSQL that the check ran on.
    pub server: u32,
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
        let checked = self.checked(&mut throwaway, migrations).await;
        end(throwaway).await;
        checked
    }

    /// Compares the schema of a database with what its applied migrations make, or those up to a version. Owners and privileges do not
    /// count, nor does the order of columns, nor what repeatable files make that are to be applied. Changes nothing in the database, and needs no more than the right to read the migration table. A dump
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
        let look = self.migrations.read(&mut connection).await?;
        let server = connection_major(&mut connection).await?;
        close(connection).await;
        for name in &self.skipped {
            found.without_extension(name);
        }

        let (throwaway, mut migrations) = self.prepare().await?;
        let repeatables = std::mem::take(&mut migrations.repeatables);
        let expected = async {
            up(&migrations, &throwaway.config(LINE), version).await?;
            let mut session = throwaway.session(LINE).await?;
            let role = migrations.role.as_deref();
            // By the file as it is, also if an extension is left out of it.
            let is_current = |name: &str| is_current(&self.migrations.repeatables[name], &look);
            let current = repeatables.iter().filter(|(name, _)| is_current(name)).map(|(_, file)| file);
            repeat(&mut session, role, current).await?;
            let expected = self.schema(&mut session, Rights::DoNotCount).await?;
            // What the others make is there as it was before they were changed, or not at all. What it was is on record, but as SQL that somebody in
            // the database has written: that is not run on this machine.
            repeat(&mut session, role, repeatables.values()).await?;
            let with_pending = self.schema(&mut session, Rights::DoNotCount).await?;
            close(session).await;
            Ok::<_, CheckError>((expected, with_pending))
        };
        let expected = expected.await;
        let compared_on = throwaway.major();
        end(throwaway).await;
        let (expected, with_pending) = expected?;
        let pending: BTreeSet<String> =
            expected.differences(&with_pending).into_iter().map(|it| it.object).collect();
        let mut differences = expected.differences(&found);
        differences.retain(|it| !pending.contains(&it.object));
        Ok(Drift { version, differences, server, compared_on })
    }

    /// The newest applied version of a database, whose files have to be there.
    async fn applied(&self, config: &Config) -> Result<i64, CheckError> {
        let plan = self.migrations.plan_up(config, None).await?;
        // It goes on without the steps of other programs.
        match plan.problems.into_iter().find(|problem| !matches!(problem, Error::NoStep { .. })) {
            Some(problem) => Err(problem.into()),
            None => Ok(plan.current_version),
        }
    }

    /// Starts a server with the database that the check begins with.
    async fn prepare(&self) -> Result<(Throwaway, Migrations), CheckError> {
        let mut throwaway = Throwaway::start(self.dump.is_none()).await?;
        let migrations = self.without_skipped();
        let all = migrations.migrator.iter().chain(migrations.repeatables.values());
        let all = all.flat_map(|file| extensions(file.sql.as_str()));
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
            dump::restore(&throwaway, LINE, file, &self.skipped).await?;
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
        mut migrations: Migrations,
    ) -> Result<Checked, CheckError> {
        let repeatables = std::mem::take(&mut migrations.repeatables);
        let migrations = &mut migrations;
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
        if is_after && self.dump.is_none() {
            // As in use, where they were applied before.
            let mut session = throwaway.session(LINE).await?;
            repeat(&mut session, migrations.role.as_deref(), repeatables.values()).await?;
            close(session).await;
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
            let missing = |name: &&str| !self.migrations.steps.contains_key(*name);
            files.push(CheckedFile {
                version: *version,
                description: description.to_string(),
                step_not_run: step_name(file).filter(missing).map(str::to_owned),
                statements,
                way_back,
                findings,
            });
            if !is_applied {
                return Ok(Checked { files, repeatables: Vec::new(), server: throwaway.major() });
            }
            before = after;
        }

        let repeatables = self.repeatables(throwaway, migrations, repeatables, counts.as_ref()).await?;
        Ok(Checked { files, repeatables, server: throwaway.major() })
    }

    /// Checks the repeatable files, when all others are applied.
    async fn repeatables(
        &self,
        throwaway: &mut Throwaway,
        migrations: &mut Migrations,
        files: BTreeMap<String, Migration>,
        counts: Option<&Catalog>,
    ) -> Result<Vec<CheckedRepeatable>, CheckError> {
        let mut checked = Vec::new();
        let version = migrations.supported_version();
        for (name, file) in files {
            let file = Migration { version, ..file };
            migrations.repeatables = BTreeMap::from([(name, file.clone())]);
            let checking =
                Checking { check: self, throwaway, migrations, file: &file, target: 0, findings: Vec::new() };
            let (repeatable, is_applied) = checking.repeatable(counts).await?;
            checked.push(repeatable);
            if !is_applied {
                break;
            }
        }
        Ok(checked)
    }

    pub(super) async fn own(&self, connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
        own_tables(connection, &self.migrations.migrator.table_name, &self.ignored).await
    }

    pub(super) async fn schema(
        &self,
        connection: &mut PgConnection,
        rights: Rights,
    ) -> Result<Schema, Error> {
        let own = self.own(connection).await?;
        Schema::read(connection, &own, rights).await
    }

    /// The migrations, with blanks for what makes an extension that is skipped. The checksums are those of the files.
    fn without_skipped(&self) -> Migrations {
        let without_skipped = |file: &Migration| {
            let sql = without(file.sql.as_str(), &self.skipped);
            Migration { sql: AssertSqlSafe(sql).into_sql_str(), ..file.clone() }
        };
        let files = self.migrations.migrator.iter().map(without_skipped);
        let mut migrator = Migrator::with_migrations(files.collect());
        migrator.dangerous_set_table_name(self.migrations.migrator.table_name.clone());
        migrator.create_schemas.clone_from(&self.migrations.migrator.create_schemas);
        let mut migrations = Migrations::new(&migrator).with_patience(Duration::ZERO);
        let repeatables = self.migrations.repeatables.iter();
        migrations.repeatables =
            repeatables.map(|(name, file)| (name.clone(), without_skipped(file))).collect();
        // The check goes on without those that the program does not have.
        migrations.steps.clone_from(&self.migrations.steps);
        for name in self.migrations.migrator.iter().filter_map(step_name) {
            migrations.steps.entry(name.to_owned()).or_insert(RustStep::Nothing);
        }
        match &self.migrations.role {
            Some(role) => migrations.with_role(role),
            None => migrations,
        }
    }
}

/// Applies the files up to a version, and the repeatable ones if it is the newest.
pub(super) async fn up(migrations: &Migrations, config: &Config, version: i64) -> Result<(), Error> {
    if version != 0 {
        return migrations.up_to(config, version).await.map(drop);
    }
    if migrations.supported_version() == 0 {
        return migrations.up(config).await.map(drop);
    }
    Ok(())
}

/// Applies what repeatable files say, as far as it can be applied: it may need a newer version.
async fn repeat<'f>(
    session: &mut PgConnection,
    role: Option<&str>,
    files: impl Iterator<Item = &'f Migration>,
) -> Result<(), CheckError> {
    for file in files {
        let sql = format!("begin; {} {}\n; commit", set_role(role), file.sql.as_str());
        if let Err(error) = session.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await {
            tracing::debug!(name = %file.description, %error, "a repeatable file needs a newer version");
        }
        for back in ["rollback", "discard all"] {
            session.execute(back).await.map_err(CheckError::database("put a session back"))?;
        }
    }
    Ok(())
}

async fn catalog_of(connection: &mut PgConnection, own: &[i64]) -> Result<Catalog, CheckError> {
    let read = catalog::read(connection, Of::All { own }).await;
    Ok(read.map_err(CheckError::database("read the catalog"))?.0)
}

async fn connection_major(connection: &mut PgConnection) -> Result<u32, Error> {
    let asked = sqlx::query_scalar::<_, i32>("select current_setting('server_version_num')::int4 / 10000");
    let major = answer(asked.persistent(false).fetch_one(connection)).await;
    Ok(major.map_err(Error::database("ask for the server's version"))?.unsigned_abs())
}

/// Stops the server. What the check has seen is not lost if that fails.
async fn end(throwaway: Throwaway) {
    if let Err(error) = throwaway.end().await {
        tracing::warn!(%error, "the server of the check has not ended as it should");
    }
}
