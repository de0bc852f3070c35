//! Rules from a real run, in a file.

mod file;
mod hear;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{Script, ScriptBuilder};
use crate::address;
use crate::db::TestDb;
use crate::error::Error;
use crate::proxy::Proxy;
use file::Recording;
use hear::{Ear, Heard};

/// Writes down what a database is asked and what it answers, for [`Script::replay`].
///
/// It is a proxy in front of a test's database. Code under test connects by its [`url`](Recorder::url); what its statements were
/// given, and what came back, goes to the file that [`finish`](Recorder::finish) names. If that file exists, the run is compared
/// with it, and another answer fails the test. So one test records, and keeps the file true to the server; others replay it, and
/// need no server.
///
/// ```
/// use db_testkit::TestDb;
/// use db_testkit::script::Script;
/// use sqlx::{Connection, PgConnection};
///
/// async fn last_name(url: &str) -> Result<String, sqlx::Error> {
///     let mut connection = PgConnection::connect(url).await?;
///     sqlx::query_scalar("select max(name) from word where id < $1").bind(9_i64).fetch_one(&mut connection).await
/// }
///
/// #[db_testkit::test]
/// async fn the_recording_is_what_the_server_answers(db: TestDb) -> Result<(), Box<dyn std::error::Error>> {
///     sqlx::raw_sql("create table word (id bigint, name text); insert into word values (1, 'a'), (2, 'b')")
///         .execute(&db.pool())
///         .await?;
/// #   let folder = tempfile::tempdir()?;
/// #   let file = folder.path().join("last_name.json");
/// #   let file = file.as_path();
///     let recorder = Script::record(&db)?;
///     assert_eq!(last_name(&recorder.url()).await?, "b");
///     recorder.finish(file); // Such as "tests/recordings/last_name.json".
///
///     let script = Script::replay(file)?;
///     assert_eq!(last_name(&script.url()).await?, "b");
///     script.finish();
///     Ok(())
/// }
/// ```
///
/// **The file holds all bound values and all rows in plain text.** Record no secrets, and read a recording before it is committed.
///
/// # What is kept
///
/// - For each statement with its values, the answers in their order: columns with their types, rows, tag, notices, errors with all
///   fields but the place in the server's source. Statements that a session of a script answers by itself, such as `BEGIN`, are
///   kept only if the server refused one.
/// - Values as PostgreSQL writes them, and in hexadecimal digits if a script does not know the text form of their type.
/// - Not the order of statements that differ in their text or in their values: two runs of concurrent code are the same run.
///
/// The file is JSON, because TOML has no word for NULL, with a line for each row, because it is read as a difference.
///
/// A `COPY`, and a type that the database has made (an enum, a domain in a row), cannot be kept, since its number is another in each
/// database; nor can a value of a type without a known text form that was asked for by the simple query protocol. `finish` fails
/// with the statement then.
///
/// # Values that change
///
/// A time or a random value differs in each run. Name its column by [`varying_column`](Recorder::varying_column), and a bound
/// value by [`varying_value`](Recorder::varying_value): then neither fails the comparison. A script answers with the recorded
/// value.
#[must_use = "`finish` writes or compares the recording"]
pub struct Recorder {
    proxy: Proxy,
    heard: Arc<Mutex<Heard>>,
    varying: Varying,
}

/// What differs in each run.
#[derive(Debug, Default)]
struct Varying {
    columns: Vec<String>,
    /// A part of a statement, and the number of a value.
    values: Vec<(String, usize)>,
}

impl Script {
    /// Starts to record what clients ask this database by way of the recorder.
    ///
    /// # Errors
    ///
    /// As [`Proxy::start`] has them.
    pub fn record(db: &TestDb) -> Result<Recorder, Error> {
        let proxy = Proxy::start(db)?;
        let heard = Arc::<Mutex<Heard>>::default();
        let theirs = Arc::clone(&heard);
        proxy.tap(move || {
            let mut ear = Ear::new(Arc::clone(&theirs));
            Box::new(move |direction, bytes| ear.hear(direction, bytes))
        });
        Ok(Recorder { proxy, heard, varying: Varying::default() })
    }

    /// Starts a script that answers from the file of a [`Recorder`].
    ///
    /// A statement with the same values is answered in the recorded order, each answer once. As with rules, a statement that is not
    /// in the file fails the test, and so does an answer that is not used.
    ///
    /// # Errors
    ///
    /// [`Error::Recording`] when the file cannot be read or is no recording; else as [`ScriptBuilder::start`] has them.
    pub fn replay(file: impl AsRef<Path>) -> Result<Script, Error> {
        Script::builder().replay(file)?.start()
    }
}

impl ScriptBuilder {
    /// Adds the rules of a recording, as [`Script::replay`] does.
    ///
    /// # Errors
    ///
    /// [`Error::Recording`] when the file cannot be read or is no recording.
    pub fn replay(self, file: impl AsRef<Path>) -> Result<ScriptBuilder, Error> {
        let file = file.as_ref();
        let lists = Recording::read(file).and_then(|recording| recording.rules());
        let lists = lists.map_err(|why| Error::Recording { file: file.to_owned(), why })?;
        Ok(lists.into_iter().fold(self, ScriptBuilder::in_order))
    }
}

impl Recorder {
    /// The address of the database by way of the recorder, without TLS, which a recorder could not read. As the database's own
    /// address, it may contain a password.
    #[must_use]
    pub fn url(&self) -> String {
        address::without_tls(self.proxy.address()).into()
    }

    /// The same for sqlx.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.proxy.options().ssl_mode(PgSslMode::Disable)
    }

    /// The values in columns of this name are not compared.
    pub fn varying_column(mut self, name: impl Into<String>) -> Recorder {
        self.varying.columns.push(name.into());
        self
    }

    /// Value `$number` of the statements that contain this text, in the sense of [`Rule::containing`](super::Rule::containing), is
    /// not compared. A script takes any value for it.
    pub fn varying_value(mut self, statement: &str, number: usize) -> Recorder {
        self.varying.values.push((super::words::squeezed(statement), number));
        self
    }

    /// Writes the file if it does not exist, and else compares the run with it. Remove the file to keep another run.
    ///
    /// # Panics
    ///
    /// If the run differs from the file, with the statements, what was recorded and what came now; if something was asked that
    /// cannot be kept; if the file cannot be read or written.
    #[track_caller]
    pub fn finish(self, file: impl AsRef<Path>) {
        let file = file.as_ref();
        let heard = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(heard.unkept.is_empty(), "this run cannot be kept:\n{}", heard.unkept.join("\n"));
        let now = Recording::of(heard.exchanges, &self.varying);
        let recorded = match file.try_exists() {
            Ok(false) => now.write(file).map(|()| None),
            _ => Recording::read(file).map(Some),
        };
        match recorded {
            Ok(None) => {}
            Ok(Some(recorded)) => {
                if let Some(difference) = recorded.difference(&now, &self.varying) {
                    panic!(
                        "the run differs from {}:\n{difference}\nRemove the file to keep the new run.",
                        file.display()
                    );
                }
            }
            Err(why) => panic!("{}: {why}", file.display()),
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what it heard: that holds values.
        f.debug_struct("Recorder").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}
