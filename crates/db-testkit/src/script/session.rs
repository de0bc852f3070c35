//! One session of a script: the protocol's messages, in their order.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use pgwire::messages::data::{DataRow, FieldDescription, NoData, ParameterDescription, RowDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, CloseComplete, Execute, Parse, ParseComplete, PortalSuspended,
    TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{
    CommandComplete, EmptyQueryResponse, ErrorResponse, NoticeResponse, NotificationResponse, ReadyForQuery,
    TransactionStatus,
};
use pgwire::messages::{PgWireBackendMessage as Out, PgWireFrontendMessage as In};
use tokio::sync::mpsc::UnboundedReceiver;

use super::login::{Guest, Login};
use super::own::{About, Effect, Own};
use super::reply::{Answer, Before, Fate, Reply, ServerError, Table};
use super::rule::Bound;
use super::state::{Event, State};
use super::text::{TEXT, text};
use super::transaction::{Control, Status, Transaction};
use super::values::{Cell, Column};
use super::wire::{Stream, Wire};
use super::words::{squeezed, statements};

/// The SQLSTATE of the script's own errors. No server has it.
const OF_SCRIPT: &str = "TK000";

/// The SQLSTATE of a statement in a transaction that has failed.
pub(super) const ABORTED: &str = "25P02";

pub(super) type Shared = Arc<Mutex<State>>;

pub(super) fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves a client until it or the script closes the connection.
pub(super) async fn serve(stream: Box<dyn Stream>, login: Arc<Login>, shared: Shared) {
    let mut wire = Wire::new(stream);
    let ended = async {
        match login.admit(&mut wire).await? {
            Guest::Client => {}
            Guest::Gone => return Ok(()),
            Guest::Cancels { pid, secret } => {
                lock(&shared).cancel_by_secret(pid, secret);
                return Ok(());
            }
        }
        let (pid, secret, events) = lock(&shared).begin_session();
        let mut session = Session {
            wire,
            shared: Arc::clone(&shared),
            pid,
            events,
            transaction: Transaction::default(),
            transaction_id: None,
            statements: HashMap::new(),
            portals: HashMap::new(),
            heard: Vec::new(),
        };
        let ended = session.run(secret).await;
        session.end();
        ended
    };
    // A client that goes in the middle of an answer is no fault of the test's.
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a client of a script is gone");
    }
}

struct Session {
    wire: Wire,
    shared: Shared,
    pid: i32,
    events: UnboundedReceiver<Event>,
    transaction: Transaction,
    transaction_id: Option<u64>,
    statements: HashMap<String, Prepared>,
    portals: HashMap<String, Portal>,
    /// Notifications, until the session is outside of a transaction.
    heard: Vec<Out>,
}

#[derive(Clone)]
struct Prepared {
    text: String,
    types: Vec<u32>,
    columns: Vec<Column>,
}

struct Portal {
    statement: Prepared,
    bound: Vec<Bound>,
    /// 1 is binary, for each column; one or none for all of them.
    formats: Vec<i16>,
    /// What an earlier `Execute` has left of the rows.
    rest: Option<Table>,
}

/// How a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    On,
    /// After an error: the rest of the client's messages is skipped, up to its `Sync`.
    Failed,
    End,
}

/// What the answer to a statement is.
enum Found {
    Table(Table),
    Error(ServerError),
    End,
}

impl Session {
    async fn run(&mut self, secret: i32) -> io::Result<()> {
        self.wire.put(&super::login::key(self.pid, secret))?;
        self.ready()?;
        self.wire.flush().await?;
        let mut skips = false;
        loop {
            let message = tokio::select! {
                biased;
                event = self.events.recv() => {
                    if self.hear(event)? == Flow::End {
                        return self.wire.flush().await;
                    }
                    if self.transaction.status == Status::Idle {
                        self.put_heard()?;
                        self.wire.flush().await?;
                    }
                    continue;
                }
                message = self.wire.read() => message?,
            };
            let flow = match message {
                None | Some(In::Terminate(_)) => return Ok(()),
                Some(In::Sync(_)) => {
                    skips = false;
                    self.ready()?;
                    self.wire.flush().await?;
                    Flow::On
                }
                Some(_) if skips => Flow::On,
                Some(In::Query(query)) => self.simple(&query.query).await?,
                Some(message) => self.extended(message).await?,
            };
            match flow {
                Flow::On => {}
                Flow::Failed => skips = true,
                Flow::End => return self.wire.flush().await,
            }
        }
    }

    /// A transaction that was open is rolled back.
    fn end(&mut self) {
        let mut state = lock(&self.shared);
        if let Some(number) = self.transaction_id.take() {
            state.end_transaction(number, false);
        }
        state.end_session(self.pid);
    }

    fn hear(&mut self, event: Option<Event>) -> io::Result<Flow> {
        match event {
            Some(Event::Notification { from, channel, payload }) => {
                self.heard.push(Out::NotificationResponse(NotificationResponse::new(from, channel, payload)));
            }
            // Nothing runs.
            Some(Event::Cancel) => {}
            Some(Event::End(words)) => {
                if let Some(words) = words {
                    self.put_error(&words)?;
                }
                return Ok(Flow::End);
            }
            None => return Ok(Flow::End),
        }
        Ok(Flow::On)
    }

    fn put_heard(&mut self) -> io::Result<()> {
        for notification in std::mem::take(&mut self.heard) {
            self.wire.put(&notification)?;
        }
        Ok(())
    }

    fn ready(&mut self) -> io::Result<()> {
        while let Ok(event) = self.events.try_recv() {
            if let Event::Notification { from, channel, payload } = event {
                self.heard.push(Out::NotificationResponse(NotificationResponse::new(from, channel, payload)));
            }
        }
        let status = match self.transaction.status {
            Status::Idle => {
                self.put_heard()?;
                TransactionStatus::Idle
            }
            Status::Open => TransactionStatus::Transaction,
            Status::Failed => TransactionStatus::Error,
        };
        self.wire.put(&Out::ReadyForQuery(ReadyForQuery::new(status)))
    }

    async fn simple(&mut self, query: &str) -> io::Result<Flow> {
        let whole = squeezed(query);
        let is_one_rule = lock(&self.shared).book.knows(&whole);
        let parts = if is_one_rule && !whole.is_empty() { vec![query] } else { statements(query) };
        if parts.is_empty() {
            self.wire.put(&Out::EmptyQueryResponse(EmptyQueryResponse::new()))?;
        }
        for part in parts {
            match self.statement(&squeezed(part), &[], None, 0).await? {
                (Flow::On, _) => {}
                (Flow::Failed, _) => break,
                (Flow::End, _) => return Ok(Flow::End),
            }
        }
        self.ready()?;
        self.wire.flush().await?;
        Ok(Flow::On)
    }

    async fn extended(&mut self, message: In) -> io::Result<Flow> {
        match message {
            In::Parse(parse) => return self.parse(parse),
            In::Describe(describe) => {
                let name = describe.name.unwrap_or_default();
                let found = if describe.target_type == TARGET_TYPE_BYTE_STATEMENT {
                    let found = self.statements.get(&name).cloned();
                    if let Some(statement) = &found {
                        let types = ParameterDescription::new(statement.types.clone());
                        self.wire.put(&Out::ParameterDescription(types))?;
                    }
                    found.map(|statement| (statement.columns, vec![0]))
                } else {
                    self.portals.get(&name).map(|it| (it.statement.columns.clone(), it.formats.clone()))
                };
                let Some((columns, formats)) = found else { return self.unknown(&name) };
                self.put_columns(&columns, &formats)?;
            }
            In::Bind(bind) => return self.bind(bind),
            In::Execute(execute) => return self.execute(execute).await,
            In::Close(close) => {
                let name = close.name.unwrap_or_default();
                if close.target_type == TARGET_TYPE_BYTE_STATEMENT {
                    self.statements.remove(&name);
                } else {
                    self.portals.remove(&name);
                }
                self.wire.put(&Out::CloseComplete(CloseComplete::new()))?;
            }
            In::Flush(_) => self.wire.flush().await?,
            _ => {
                let text = "the script has no answer to this message of the protocol";
                self.put_error(&ServerError::new("08P01", text).severity("FATAL"))?;
                return Ok(Flow::End);
            }
        }
        Ok(Flow::On)
    }

    fn parse(&mut self, parse: Parse) -> io::Result<Flow> {
        let text = squeezed(&parse.query);
        let own = Own::of(&text);
        if self.is_refusing(own.as_ref()) {
            return self.failed(&aborted());
        }
        let (columns, types) = lock(&self.shared).book.describe(&text);
        let is_known = own.is_some() || text.is_empty() || lock(&self.shared).book.knows(&text);
        if !is_known {
            let said = lock(&self.shared).book.refuse(&text, None);
            return self.failed(&ServerError::new(OF_SCRIPT, said));
        }
        let columns = columns.or_else(|| own.map(|own| own.columns())).unwrap_or_default();
        let mut types = if parse.type_oids.is_empty() { types.unwrap_or_default() } else { parse.type_oids };
        types.resize(types.len().max(placeholders(&text)), TEXT);
        for oid in &mut types {
            // Zero leaves the type to the server.
            if *oid == 0 {
                *oid = TEXT;
            }
        }
        self.statements.insert(parse.name.unwrap_or_default(), Prepared { text, types, columns });
        self.wire.put(&Out::ParseComplete(ParseComplete::new()))?;
        Ok(Flow::On)
    }

    fn bind(&mut self, bind: Bind) -> io::Result<Flow> {
        let name = bind.statement_name.unwrap_or_default();
        let Some(statement) = self.statements.get(&name).cloned() else { return self.unknown(&name) };
        let bound = bind
            .parameters
            .into_iter()
            .enumerate()
            .map(|(at, value)| Bound {
                oid: statement.types.get(at).copied().unwrap_or(TEXT),
                value: value.map(|value| value.to_vec()),
            })
            .collect();
        let formats = bind.result_column_format_codes;
        let portal = Portal { statement, bound, formats, rest: None };
        self.portals.insert(bind.portal_name.unwrap_or_default(), portal);
        self.wire.put(&Out::BindComplete(BindComplete::new()))?;
        Ok(Flow::On)
    }

    async fn execute(&mut self, execute: Execute) -> io::Result<Flow> {
        let name = execute.name.unwrap_or_default();
        let Some(mut portal) = self.portals.remove(&name) else { return self.unknown(&name) };
        let most = usize::try_from(execute.max_rows).unwrap_or(0);
        if portal.statement.text.is_empty() {
            self.wire.put(&Out::EmptyQueryResponse(EmptyQueryResponse::new()))?;
            return Ok(Flow::On);
        }
        let flow = if let Some(rest) = portal.rest.take() {
            portal.rest = self.put_rows(rest, Some(&portal.formats), most)?;
            Flow::On
        } else {
            let described = (&portal.statement.columns[..], &portal.formats[..]);
            let text = portal.statement.text.clone();
            let (flow, rest) = self.statement(&text, &portal.bound, Some(described), most).await?;
            portal.rest = rest;
            flow
        };
        self.portals.insert(name, portal);
        Ok(flow)
    }

    fn unknown(&mut self, name: &str) -> io::Result<Flow> {
        let text = format!("prepared statement \"{name}\" does not exist");
        self.failed(&ServerError::new("26000", text))
    }

    /// Answers a statement. The columns and formats are those of the extended protocol.
    async fn statement(
        &mut self,
        text: &str,
        bound: &[Bound],
        described: Option<(&[Column], &[i16])>,
        most: usize,
    ) -> io::Result<(Flow, Option<Table>)> {
        let own = Own::of(text);
        if self.is_refusing(own.as_ref()) {
            return Ok((self.failed(&aborted())?, None));
        }
        let found = lock(&self.shared).book.reply(text, bound);
        if found.is_some() || own.as_ref().is_none_or(|own| matches!(own, Own::Control(_))) {
            lock(&self.shared).asked.push(text.to_owned());
        }
        let (rule, reply) = match found {
            Some((rule, reply)) => (Some(rule), reply),
            None => (None, Reply::usual()),
        };
        let fate = reply.fate;
        for before in reply.before {
            match before {
                Before::Delay(time) => match self.wait(Some(time)).await? {
                    None => {}
                    Some(Found::Error(error)) => return Ok((self.failed(&error)?, None)),
                    Some(_) => return Ok((Flow::End, None)),
                },
                Before::Notice(notice) => self.put_notice(&notice)?,
                Before::Notification { channel, payload } => {
                    let heard = NotificationResponse::new(self.pid, channel, payload);
                    self.wire.put(&Out::NotificationResponse(heard))?;
                }
            }
        }
        let mark = self.wire.mark();
        let found = match reply.answer {
            Answer::Silence => self.wait(None).await?.unwrap_or(Found::End),
            Answer::Cut => Found::End,
            Answer::Error(error) => {
                self.refused(own.as_ref());
                Found::Error(error)
            }
            Answer::Rows(table) => self.told(own.as_ref(), bound, table)?,
            Answer::Usual => {
                if let Some(own) = &own {
                    self.by_itself(own, bound)?
                } else {
                    let said = lock(&self.shared).book.refuse(text, Some(bound));
                    Found::Error(ServerError::new(OF_SCRIPT, said))
                }
            }
        };
        let mut rest = None;
        let flow = match found {
            Found::End => return Ok((Flow::End, None)),
            Found::Error(error) => self.failed(&error)?,
            Found::Table(table) => {
                if let Some(why) = unreadable(&table, described, rule) {
                    let said = lock(&self.shared).book.fail(why);
                    self.failed(&ServerError::new(OF_SCRIPT, said))?
                } else {
                    if described.is_none() && !table.columns.is_empty() {
                        self.put_columns(&table.columns, &[0])?;
                    }
                    rest = self.put_rows(table, described.map(|(_, formats)| formats), most)?;
                    Flow::On
                }
            }
        };
        if fate == Fate::Whole {
            return Ok((flow, rest));
        }
        self.wire.take_back(mark, fate == Fate::Half);
        Ok((Flow::End, None))
    }

    /// Whether the transaction has failed, and the statement does not lead out of it.
    fn is_refusing(&self, own: Option<&Own>) -> bool {
        let leads_out =
            matches!(own, Some(Own::Control(Control::Commit | Control::Rollback | Control::RollbackTo(_))));
        self.transaction.status == Status::Failed && !leads_out
    }

    /// Waits for the time, or for ever, or until something else ends the statement.
    async fn wait(&mut self, time: Option<Duration>) -> io::Result<Option<Found>> {
        self.wire.flush().await?;
        let passed = async {
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(passed);
        loop {
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = &mut passed => return Ok(None),
                () = self.wire.closed() => return Ok(Some(Found::End)),
            };
            if matches!(event, Some(Event::Cancel)) {
                let text = "canceling statement due to user request";
                return Ok(Some(Found::Error(ServerError::new("57014", text))));
            }
            if self.hear(event)? == Flow::End {
                return Ok(Some(Found::End));
            }
        }
    }

    /// Answers with a rule in place of the session's own answer. The session's own effects happen all the same.
    fn told(&mut self, own: Option<&Own>, bound: &[Bound], table: Table) -> io::Result<Found> {
        Ok(match own.map(|own| self.by_itself(own, bound)).transpose()? {
            None | Some(Found::Table(_)) => Found::Table(table),
            Some(other) => other,
        })
    }

    fn by_itself(&mut self, own: &Own, bound: &[Bound]) -> io::Result<Found> {
        if let Own::Control(control) = own {
            return self.control(control);
        }
        let mut state = lock(&self.shared);
        if matches!(own, Own::TransactionId) && self.transaction_id.is_none() {
            self.transaction_id = Some(state.begin_transaction());
        }
        let about = About {
            pid: self.pid,
            in_transaction: self.transaction.status != Status::Idle,
            transaction_id: self.transaction_id.unwrap_or_default(),
        };
        let (table, effects) = match own.answer(bound, &about, |number| state.status_of(number)) {
            Ok(done) => done,
            Err(error) => return Ok(Found::Error(error)),
        };
        let mut now = Vec::new();
        for effect in effects {
            match effect {
                Effect::AtCommit(what) => now.extend(self.transaction.at_commit(what)),
                Effect::Signal { pid, ends } => state.signal(pid, ends),
            }
        }
        state.commit(self.pid, now);
        Ok(Found::Table(table))
    }

    fn control(&mut self, control: &Control) -> io::Result<Found> {
        let done = match self.transaction.apply(control) {
            Ok(done) => done,
            Err(error) => return Ok(Found::Error(error)),
        };
        if let Some(warning) = &done.warning {
            self.put_notice(warning)?;
        }
        if let Some(committed) = done.committed {
            self.ended(committed);
        }
        lock(&self.shared).commit(self.pid, done.at_commit);
        Ok(Found::Table(Table::tag(done.tag)))
    }

    /// A rule has an error for the statement. A commit that is refused is a rollback.
    fn refused(&mut self, own: Option<&Own>) {
        if matches!(own, Some(Own::Control(Control::Commit | Control::Rollback))) {
            self.transaction.roll_back();
            self.ended(false);
        }
    }

    fn ended(&mut self, committed: bool) {
        if let Some(number) = self.transaction_id.take() {
            lock(&self.shared).end_transaction(number, committed);
        }
    }

    fn failed(&mut self, error: &ServerError) -> io::Result<Flow> {
        self.transaction.fail();
        self.put_error(error)?;
        Ok(if error.ends_session() { Flow::End } else { Flow::Failed })
    }

    fn put_columns(&mut self, columns: &[Column], formats: &[i16]) -> io::Result<()> {
        if columns.is_empty() {
            return self.wire.put(&Out::NoData(NoData::new()));
        }
        let fields = columns.iter().enumerate().map(|(at, column)| {
            FieldDescription::new(
                column.name.clone(),
                0,
                0,
                column.oid,
                -1,
                -1,
                i16::from(is_binary(formats, at)),
            )
        });
        self.wire.put(&Out::RowDescription(RowDescription::new(fields.collect())))
    }

    /// At most `most` rows; zero is no limit. Returns the rows that are left.
    fn put_rows(
        &mut self,
        mut table: Table,
        formats: Option<&[i16]>,
        most: usize,
    ) -> io::Result<Option<Table>> {
        let rest = (most > 0 && table.rows.len() > most).then(|| table.rows.split_off(most));
        for row in &table.rows {
            let mut data = BytesMut::new();
            for (at, (cell, column)) in row.iter().zip(&table.columns).enumerate() {
                put_cell(&mut data, cell, column.oid, is_binary(formats.unwrap_or(&[]), at))?;
            }
            let count = i16::try_from(row.len()).map_err(io::Error::other)?;
            self.wire.put(&Out::DataRow(DataRow::new(data, count)))?;
        }
        if let Some(rows) = rest {
            self.wire.put(&Out::PortalSuspended(PortalSuspended::new()))?;
            return Ok(Some(Table { rows, ..table }));
        }
        self.wire.put(&Out::CommandComplete(CommandComplete::new(table.tag)))?;
        Ok(None)
    }

    fn put_error(&mut self, error: &ServerError) -> io::Result<()> {
        self.wire.put(&Out::ErrorResponse(ErrorResponse::new(error.fields())))
    }

    fn put_notice(&mut self, notice: &ServerError) -> io::Result<()> {
        self.wire.put(&Out::NoticeResponse(NoticeResponse::new(notice.fields())))
    }
}

fn aborted() -> ServerError {
    let text = "current transaction is aborted, commands ignored until end of transaction block";
    ServerError::new(ABORTED, text)
}

/// Why the client could not read these rows.
fn unreadable(table: &Table, described: Option<(&[Column], &[i16])>, rule: Option<usize>) -> Option<String> {
    let rule = rule.map_or_else(|| "the session".to_owned(), |rule| format!("rule {rule}"));
    if let Some((columns, _)) = described
        && columns != table.columns
    {
        return Some(format!(
            "{rule} answers with the columns {:?}, and the statement was described with {columns:?}",
            table.columns
        ));
    }
    let formats = described.map_or(&[][..], |(_, formats)| formats);
    table.columns.iter().enumerate().find_map(|(at, column)| {
        let values = table.rows.iter().filter_map(|row| row[at].as_deref());
        let mut texts = values.filter(|_| !is_binary(formats, at)).map(|value| text(column.oid, value));
        texts.any(|text| text.is_none()).then(|| {
            format!(
                "{rule} answers column {} with type {}, whose text form the script does not know: bind a value, or ask \
                 by a prepared statement",
                column.name, column.oid
            )
        })
    })
}

fn put_cell(data: &mut BytesMut, cell: &Cell, oid: u32, is_binary: bool) -> io::Result<()> {
    let Some(value) = cell else {
        data.put_i32(-1);
        return Ok(());
    };
    let shown = if is_binary { None } else { text(oid, value) };
    let value = shown.as_deref().map_or(&value[..], str::as_bytes);
    data.put_i32(i32::try_from(value.len()).map_err(io::Error::other)?);
    data.put_slice(value);
    Ok(())
}

fn is_binary(formats: &[i16], at: usize) -> bool {
    match formats {
        [all] => *all == 1,
        each => each.get(at) == Some(&1),
    }
}

/// The highest `$n` in a statement.
fn placeholders(text: &str) -> usize {
    let digits = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next().and_then(|it| it.parse().ok());
    text.split('$').skip(1).filter_map(digits).max().unwrap_or(0)
}
