//! What a rule answers.

use std::marker::PhantomData;
use std::time::Duration;

use super::values::{Cell, Column, Values, oid};

/// The answer of a [`Rule`](super::Rule).
///
/// Made from [`Rows`], from a [`ServerError`], by [`tag`](Reply::tag), or by the functions for answers that do not come.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(super) before: Vec<Before>,
    pub(super) answer: Answer,
    pub(super) fate: Fate,
}

/// What happens ahead of the answer, in this order.
#[derive(Clone, Debug)]
pub(super) enum Before {
    Delay(Duration),
    Notice(ServerError),
    Notification { channel: String, payload: String },
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Rows(Table),
    Error(ServerError),
    /// What the session would answer without the rule.
    Usual,
    /// None, for as long as nobody cancels the statement.
    Silence,
    /// The connection is closed.
    Cut,
}

/// How much of the answer gets to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Whole,
    /// The first half of its bytes; then the connection is closed.
    Half,
    /// Nothing; the connection is closed.
    Lost,
}

/// Rows, or only a tag if there is no column.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Cell>>,
    pub(super) tag: String,
    /// Why no driver could read it.
    pub(super) wrong: Option<String>,
}

impl Table {
    pub(super) fn tag(tag: impl Into<String>) -> Table {
        Table { tag: tag.into(), ..Table::default() }
    }
}

impl Reply {
    /// A command tag without rows, such as `INSERT 0 1`: the driver reads the number of rows that are affected from it.
    #[must_use]
    pub fn tag(tag: impl Into<String>) -> Reply {
        Reply::of(Answer::Rows(Table::tag(tag)))
    }

    /// What the session would answer without the rule: for a `COMMIT` that is late, or whose answer is [lost](Reply::lost).
    ///
    /// A session answers by itself what [`Script`](super::Script) lists. For any other statement, this is the error that no
    /// rule answers.
    #[must_use]
    pub fn usual() -> Reply {
        Reply::of(Answer::Usual)
    }

    /// No answer, until the client cancels the statement (57014) or closes the connection.
    #[must_use]
    pub fn silence() -> Reply {
        Reply::of(Answer::Silence)
    }

    /// Nothing is done, and the connection is closed.
    #[must_use]
    pub fn cut() -> Reply {
        Reply::of(Answer::Cut)
    }

    /// Waits ahead of the answer, and of what is asked for by later calls. A cancel request ends the wait with 57014.
    #[must_use]
    pub fn delay(mut self, time: Duration) -> Reply {
        self.before.push(Before::Delay(time));
        self
    }

    /// Sends a notice ahead of the answer.
    #[must_use]
    pub fn notice(mut self, message: impl Into<String>) -> Reply {
        let notice = ServerError::new("00000", message).severity("NOTICE");
        self.before.push(Before::Notice(notice));
        self
    }

    /// Sends a notification to this session ahead of the answer, whether or not it listens.
    #[must_use]
    pub fn notification(mut self, channel: impl Into<String>, payload: impl Into<String>) -> Reply {
        self.before.push(Before::Notification { channel: channel.into(), payload: payload.into() });
        self
    }

    /// Sends the first half of the answer's bytes, and closes the connection.
    #[must_use]
    pub fn half(mut self) -> Reply {
        self.fate = Fate::Half;
        self
    }

    /// Does what the answer says was done, and closes the connection in place of the answer: a transaction is committed, and its
    /// client does not hear of it.
    #[must_use]
    pub fn lost(mut self) -> Reply {
        self.fate = Fate::Lost;
        self
    }

    pub(super) fn of(answer: Answer) -> Reply {
        Reply { before: Vec::new(), answer, fate: Fate::Whole }
    }

    /// The columns of its rows.
    pub(super) fn columns(&self) -> Option<&[Column]> {
        match &self.answer {
            Answer::Rows(table) if !table.columns.is_empty() => Some(&table.columns),
            _ => None,
        }
    }
}

/// Typed rows.
///
/// ```
/// use db_testkit::script::Rows;
///
/// let two = Rows::new(["id", "name"]).row((7_i64, "first")).row((8_i64, "second"));
/// let none = Rows::<(i64, String)>::new(["id", "name"]);
/// ```
#[derive(Clone, Debug)]
pub struct Rows<T> {
    table: Table,
    types: PhantomData<fn(T)>,
}

impl<T: Values> Rows<T> {
    /// No row yet, of columns with these names. Their types are those of the values.
    #[must_use]
    pub fn new(names: T::Names) -> Rows<T> {
        let mut table = Table::default();
        for (name, info) in names.into_iter().zip(T::types()) {
            match oid(&info) {
                Ok(oid) => table.columns.push(Column::new(name, oid)),
                Err(why) => table.wrong = Some(format!("column {name}: {why}")),
            }
        }
        Rows { table, types: PhantomData }
    }

    /// One more row.
    #[must_use]
    pub fn row(mut self, values: T) -> Rows<T> {
        match values.cells() {
            Ok(cells) => self.table.rows.push(cells),
            Err(why) => self.table.wrong = Some(why),
        }
        self
    }

    /// Another command tag, such as `INSERT 0 1` for an `insert … returning` (default `SELECT` and the number of rows).
    #[must_use]
    pub fn tagged(mut self, tag: impl Into<String>) -> Rows<T> {
        self.table.tag = tag.into();
        self
    }
}

impl<T: Values> From<Rows<T>> for Reply {
    fn from(rows: Rows<T>) -> Reply {
        let mut table = rows.table;
        if table.tag.is_empty() {
            table.tag = format!("SELECT {}", table.rows.len());
        }
        Reply::of(Answer::Rows(table))
    }
}

/// An error of the server, with the fields that PostgreSQL's manual lists in chapter 55.8, "Error and Notice Message Fields".
///
/// ```
/// use db_testkit::script::ServerError;
///
/// let taken = ServerError::new("23505", "duplicate key value violates unique constraint \"shop_name\"")
///     .detail("Key (name)=(a) already exists.")
///     .table("shop")
///     .constraint("shop_name");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    fields: Vec<(u8, String)>,
}

impl ServerError {
    /// An error with this SQLSTATE and message.
    #[must_use]
    pub fn new(sqlstate: impl Into<String>, message: impl Into<String>) -> ServerError {
        let fields = vec![
            (b'S', "ERROR".to_owned()),
            (b'V', "ERROR".to_owned()),
            (b'C', sqlstate.into()),
            (b'M', message.into()),
        ];
        ServerError { fields }
    }

    /// `FATAL` and `PANIC` end the session after the error (default `ERROR`).
    #[must_use]
    pub fn severity(self, severity: &str) -> ServerError {
        self.set(b'S', severity).set(b'V', severity)
    }

    /// More about the error.
    #[must_use]
    pub fn detail(self, text: &str) -> ServerError {
        self.set(b'D', text)
    }

    /// What to do about the error.
    #[must_use]
    pub fn hint(self, text: &str) -> ServerError {
        self.set(b'H', text)
    }

    /// Where in the statement, counted in characters from 1.
    #[must_use]
    pub fn position(self, position: u32) -> ServerError {
        self.set(b'P', &position.to_string())
    }

    /// In which function the error came up.
    #[must_use]
    pub fn context(self, text: &str) -> ServerError {
        self.set(b'W', text)
    }

    /// The schema of the table.
    #[must_use]
    pub fn schema(self, name: &str) -> ServerError {
        self.set(b's', name)
    }

    /// The table that the error is about.
    #[must_use]
    pub fn table(self, name: &str) -> ServerError {
        self.set(b't', name)
    }

    /// The column that the error is about.
    #[must_use]
    pub fn column(self, name: &str) -> ServerError {
        self.set(b'c', name)
    }

    /// The type that the error is about.
    #[must_use]
    pub fn data_type(self, name: &str) -> ServerError {
        self.set(b'd', name)
    }

    /// The constraint that was violated.
    #[must_use]
    pub fn constraint(self, name: &str) -> ServerError {
        self.set(b'n', name)
    }

    /// The file, the line and the routine of the server's source.
    #[must_use]
    pub fn source(self, file: &str, line: u32, routine: &str) -> ServerError {
        self.set(b'F', file).set(b'L', &line.to_string()).set(b'R', routine)
    }

    pub(super) fn set(mut self, field: u8, value: &str) -> ServerError {
        self.fields.retain(|(there, _)| *there != field);
        self.fields.push((field, value.to_owned()));
        self
    }

    fn get(&self, field: u8) -> &str {
        self.fields.iter().find(|(there, _)| *there == field).map_or("", |(_, value)| value)
    }

    pub(super) fn fields(&self) -> Vec<(u8, String)> {
        self.fields.clone()
    }

    pub(super) fn sqlstate(&self) -> &str {
        self.get(b'C')
    }

    pub(super) fn ends_session(&self) -> bool {
        matches!(self.get(b'V'), "FATAL" | "PANIC")
    }

    /// Why PostgreSQL would not send it.
    pub(super) fn wrong(&self) -> Option<String> {
        let state = self.sqlstate();
        let is_one =
            state.len() == 5 && state.bytes().all(|it| it.is_ascii_digit() || it.is_ascii_uppercase());
        if !is_one {
            return Some(format!("{state:?} is no SQLSTATE: five digits or capitals"));
        }
        self.fields
            .iter()
            .any(|(_, value)| value.contains('\0'))
            .then(|| "a field has a zero byte".to_owned())
    }
}

impl From<ServerError> for Reply {
    fn from(error: ServerError) -> Reply {
        Reply::of(Answer::Error(error))
    }
}
