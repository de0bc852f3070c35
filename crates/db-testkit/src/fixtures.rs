//! SQL files that fill a test's database.

use std::path::Path;

use sqlx::postgres::{PgDatabaseError, PgErrorPosition};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::db::TestDb;
use crate::error::Error;
use crate::server::APPLICATION_NAME;

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
    /// statement; [`Error::Connect`].
    pub async fn load_fixture(&self, file: impl AsRef<Path>) -> Result<(), Error> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file)
            .map_err(|source| Error::FixtureFile { file: file.to_owned(), source })?;
        let sql = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let options = self.options().application_name(APPLICATION_NAME).disable_statement_logging();
        let mut connection = options.connect().await.map_err(|source| Error::Connect {
            database: self.name().to_owned(),
            server: self.server_name(),
            source,
        })?;
        let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
        let closed = connection.close().await;
        // The error of a statement tells more than that of the closing after it.
        done.map(drop).and(closed).map_err(|source| Error::Fixture {
            file: file.to_owned(),
            line: line_of(&source, sql),
            source,
        })
    }
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
