//! SQL files that fill a test's database.

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgDatabaseError, PgErrorPosition};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

use crate::db::TestDb;
use crate::error::Error;
use crate::leftovers::within;
use crate::server::APPLICATION_NAME;

/// Limit for one file.
const LIMIT: Duration = Duration::from_mins(2);

impl TestDb {
    /// Runs the statements of a file in the database, as `fixtures = "…"` of the [attribute](macro@crate::test) does.
    ///
    /// The path is relative to the working folder, which `cargo test` sets to that of the package. The server gets the file as
    /// it is, without a byte order mark, in one message: it runs the file as one transaction, unless the file has `begin` and
    /// `commit` of its own. Statements that refuse a transaction, such as `vacuum`, need a file each.
    ///
    /// Cancel safe: then the file has run whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::FixtureFile`] if the file cannot be read; [`Error::Fixture`] with file and line if the server refuses a
    /// statement; [`Error::FixtureOpen`] if the file begins a transaction and does not end it; [`Error::FixtureSlow`] after
    /// 2 min; [`Error::Connect`].
    pub async fn load_fixture(&self, file: impl AsRef<Path>) -> Result<(), Error> {
        self.load_within(LIMIT, file.as_ref()).await
    }

    async fn load_within(&self, limit: Duration, file: &Path) -> Result<(), Error> {
        let loaded = within(limit, self.load(file)).await;
        loaded.unwrap_or_else(|| Err(Error::FixtureSlow { file: file.to_owned(), waited: limit }))
    }

    async fn load(&self, file: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| Error::FixtureFile { file: file.to_owned(), source })?;
        let sql = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let options = self.options().application_name(APPLICATION_NAME).disable_statement_logging();
        let mut connection = options.connect().await.map_err(|source| Error::Connect {
            database: self.name().to_owned(),
            server: self.server_name(),
            source,
        })?;
        let done = run(&mut connection, sql).await;
        let closed = connection.close().await;
        // The error of a statement tells more than that of the closing after it.
        let is_open = done.and_then(|is_open| closed.map(|()| is_open)).map_err(|source| Error::Fixture {
            file: file.to_owned(),
            line: line_of(&source, sql),
            source,
        })?;
        if is_open { Err(Error::FixtureOpen { file: file.to_owned() }) } else { Ok(()) }
    }
}

/// Runs the statements. Returns whether they leave a transaction open.
async fn run(connection: &mut PgConnection, sql: &str) -> Result<bool, sqlx::Error> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    // Outside a transaction, a statement of the simple protocol begins one of its own, at its own time.
    let asked = sqlx::raw_sql("select now() <> statement_timestamp()");
    connection.fetch_one(asked).await?.try_get(0)
}

/// The line of the error's position, which the server counts in characters.
fn line_of(error: &sqlx::Error, sql: &str) -> Option<usize> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    match error.position()? {
        PgErrorPosition::Original(position) => {
            Some(1 + sql.chars().take(position.saturating_sub(1)).filter(|it| *it == '\n').count())
        }
        // Inside a function.
        PgErrorPosition::Internal { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use crate::{Error, TestDb};

    #[test]
    fn a_file_that_takes_too_long_is_an_error_with_its_name() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"select pg_sleep(60)").expect("written");

        let slow =
            crate::run(async |db: TestDb| db.load_within(Duration::from_millis(100), file.path()).await);

        let error = slow.expect_err("too slow");
        assert!(matches!(error, Error::FixtureSlow { .. }), "{error:?}");
        let told = format!("the fixture {} did not end within 0.1 s", file.path().display());
        assert_eq!(error.to_string(), told);
    }
}
