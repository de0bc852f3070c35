//! What a connection between a client and a server says, as exchanges.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use pgwire::messages::extendedquery::{Bind, TARGET_TYPE_BYTE_STATEMENT};
use pgwire::messages::response::{GssEncResponse, SslResponse};
use pgwire::messages::{
    DecodeContext, PgWireBackendMessage as Out, PgWireFrontendMessage as In,
    SslNegotiationMetaMessage as Negotiation,
};

use super::file::{Answer, Exchange, Fields, Line, Value};
use crate::proxy::Direction;
use crate::script::text::{TEXT, type_name};
use crate::script::values::Column;
use crate::script::words::{squeezed, statements};

/// Types from this number on were made in their database.
const FIRST_OWN_TYPE: u32 = 16_384;

/// What all connections of a recorder said.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) exchanges: Vec<Exchange>,
    /// What cannot be kept, and why.
    pub(super) unkept: Vec<String>,
}

/// One connection.
pub(super) struct Ear {
    heard: Arc<Mutex<Heard>>,
    client: (BytesMut, DecodeContext),
    server: (BytesMut, DecodeContext),
    /// After something that cannot be kept.
    is_deaf: bool,
    statements: HashMap<String, Rc<Prepared>>,
    portals: HashMap<String, Rc<Portal>>,
    /// What the server has not answered yet.
    asked: VecDeque<Asked>,
    /// What has come of the answer.
    columns: Vec<(Column, i16)>,
    rows: Vec<Vec<Option<Vec<u8>>>>,
    notices: Vec<Fields>,
}

#[derive(Debug, Default)]
struct Prepared {
    text: String,
    types: RefCell<Vec<u32>>,
    columns: RefCell<Vec<Column>>,
}

#[derive(Debug)]
struct Portal {
    statement: Rc<Prepared>,
    bind: Bind,
}

/// A message of the client, up to its answer.
enum Asked {
    Parse(Rc<Prepared>),
    Bind(Rc<Portal>),
    Describe(Rc<Prepared>),
    Execute(Rc<Portal>),
    Close,
    Sync,
    /// The statements of a simple query that are not answered yet.
    Query(VecDeque<String>),
}

impl Ear {
    pub(super) fn new(heard: Arc<Mutex<Heard>>) -> Ear {
        Ear {
            heard,
            client: <_>::default(),
            server: <_>::default(),
            is_deaf: false,
            statements: HashMap::new(),
            portals: HashMap::new(),
            asked: VecDeque::new(),
            columns: Vec::new(),
            rows: Vec::new(),
            notices: Vec::new(),
        }
    }

    pub(super) fn hear(&mut self, direction: Direction, bytes: &[u8]) {
        if self.is_deaf {
            return;
        }
        let heard = match direction {
            Direction::ToServer => self.hear_client(bytes),
            Direction::ToClient => self.hear_server(bytes),
        };
        if let Err(why) = heard {
            self.is_deaf = true;
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).unkept.push(why);
        }
    }

    fn hear_client(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.client.0.extend_from_slice(bytes);
        while let Some(message) = In::decode(&mut self.client.0, &self.client.1).map_err(unread)? {
            self.client_says(message);
        }
        Ok(())
    }

    fn hear_server(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.server.0.extend_from_slice(bytes);
        while let Some(message) = Out::decode(&mut self.server.0, &self.server.1).map_err(unread)? {
            self.server_says(message)?;
        }
        Ok(())
    }

    fn client_says(&mut self, message: In) {
        match message {
            In::SslNegotiation(Negotiation::None) => self.client.1.awaiting_frontend_ssl = false,
            In::SslNegotiation(Negotiation::PostgresSsl(_)) => {
                self.server.1.awaiting_backend_ssl_response = true;
            }
            In::SslNegotiation(Negotiation::PostgresGss(_)) => {
                self.server.1.awaiting_backend_gss_response = true;
            }
            In::Startup(_) => self.client.1.awaiting_frontend_startup = false,
            In::CancelRequest(_) => self.is_deaf = true,
            In::Parse(parse) => {
                let (text, types) = (squeezed(&parse.query), RefCell::new(parse.type_oids));
                let statement = Rc::new(Prepared { text, types, columns: RefCell::default() });
                self.statements.insert(parse.name.unwrap_or_default(), Rc::clone(&statement));
                self.asked.push_back(Asked::Parse(statement));
            }
            In::Bind(bind) => {
                let statement = self.statement(bind.statement_name.as_deref());
                let name = bind.portal_name.clone().unwrap_or_default();
                let portal = Rc::new(Portal { statement, bind });
                self.portals.insert(name, Rc::clone(&portal));
                self.asked.push_back(Asked::Bind(portal));
            }
            In::Describe(describe) if describe.target_type == TARGET_TYPE_BYTE_STATEMENT => {
                let statement = self.statement(describe.name.as_deref());
                self.asked.push_back(Asked::Describe(statement));
            }
            In::Describe(describe) => {
                let portal = self.portals.get(describe.name.as_deref().unwrap_or_default());
                let statement = portal.map(|it| Rc::clone(&it.statement)).unwrap_or_default();
                self.asked.push_back(Asked::Describe(statement));
            }
            In::Execute(execute) => {
                // A portal that is not there is an error of the server's.
                if let Some(portal) = self.portals.get(execute.name.as_deref().unwrap_or_default()) {
                    self.asked.push_back(Asked::Execute(Rc::clone(portal)));
                }
            }
            In::Close(_) => self.asked.push_back(Asked::Close),
            In::Sync(_) => self.asked.push_back(Asked::Sync),
            In::Query(query) => {
                let parts = statements(&query.query).into_iter().map(squeezed);
                self.asked.push_back(Asked::Query(parts.collect()));
            }
            _ => {}
        }
    }

    fn statement(&self, name: Option<&str>) -> Rc<Prepared> {
        self.statements.get(name.unwrap_or_default()).cloned().unwrap_or_default()
    }

    fn server_says(&mut self, message: Out) -> Result<(), String> {
        match message {
            Out::SslResponse(SslResponse::Accept) | Out::GssEncResponse(GssEncResponse::Accept) => {
                return Err("what is encrypted".to_owned());
            }
            Out::SslResponse(_) | Out::GssEncResponse(_) => {
                self.server.1.awaiting_backend_ssl_response = false;
                self.server.1.awaiting_backend_gss_response = false;
            }
            Out::ParseComplete(_) | Out::BindComplete(_) | Out::CloseComplete(_) | Out::NoData(_) => {
                self.asked.pop_front();
            }
            Out::ParameterDescription(them) => {
                if let Some(Asked::Describe(statement)) = self.asked.front() {
                    statement.types.replace(them.types);
                }
            }
            Out::RowDescription(them) => {
                let columns = them.fields.iter().map(|it| Column::new(&it.name, it.type_id));
                if let Some(Asked::Describe(statement)) = self.asked.front() {
                    statement.columns.replace(columns.collect());
                    self.asked.pop_front();
                } else {
                    self.columns = columns.zip(them.fields.iter().map(|it| it.format_code)).collect();
                }
            }
            Out::DataRow(row) => self.rows.push(cells(&row.data)),
            Out::CommandComplete(done) => {
                self.answered(Answer { tag: Some(done.tag), ..Answer::default() })?;
            }
            Out::PortalSuspended(_) => {
                let tag = Some(format!("SELECT {}", self.rows.len()));
                self.answered(Answer { tag, ..Answer::default() })?;
            }
            Out::EmptyQueryResponse(_) => {
                self.asked.pop_front_if(|it| matches!(it, Asked::Execute(_)));
            }
            Out::NoticeResponse(notice) => self.notices.push(Fields::of(&notice.fields)),
            Out::ErrorResponse(error) => {
                self.answered(Answer { error: Some(Fields::of(&error.fields)), ..Answer::default() })?;
                // The server skips all up to here.
                while self.asked.pop_front_if(|it| !matches!(it, Asked::Sync | Asked::Query(_))).is_some() {}
            }
            Out::ReadyForQuery(_) => {
                self.asked.pop_front();
                self.notices.clear();
            }
            Out::CopyInResponse(_) | Out::CopyOutResponse(_) | Out::CopyBothResponse(_) => {
                return Err("a COPY".to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// The answer to the first that was asked is complete.
    fn answered(&mut self, mut answer: Answer) -> Result<(), String> {
        let (rows, notices) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.notices));
        let mut columns = std::mem::take(&mut self.columns);
        let (text, values) = match self.asked.front_mut() {
            Some(Asked::Parse(statement) | Asked::Describe(statement)) => (statement.text.clone(), None),
            Some(Asked::Bind(portal) | Asked::Execute(portal)) => {
                let formats = &portal.bind.result_column_format_codes;
                let described = portal.statement.columns.borrow();
                columns =
                    described.iter().enumerate().map(|(at, it)| (it.clone(), format(formats, at))).collect();
                (portal.statement.text.clone(), Some(values(portal)?))
            }
            Some(Asked::Query(parts)) => (parts.pop_front().unwrap_or_default(), Some(Vec::new())),
            // The server ends a session that asked nothing.
            Some(Asked::Close | Asked::Sync) | None => return Ok(()),
        };
        self.asked.pop_front_if(|it| matches!(it, Asked::Execute(_)));
        if answer.error.is_none() && !columns.is_empty() {
            for (column, _) in &columns {
                if column.oid >= FIRST_OWN_TYPE {
                    return Err(own_type(&text, &format!("column {}", column.name)));
                }
            }
            answer.rows = rows.iter().map(|row| line(row, &columns, &text)).collect::<Result<_, _>>()?;
            let columns = columns.into_iter().map(|(it, _)| (it.name, type_name(it.oid)));
            answer.columns = Some(Line(columns.collect()));
        } else if answer.error.is_none() && !rows.is_empty() {
            return Err(format!("the rows of `{text}`, which were not described"));
        }
        answer.notices = notices;
        let exchange = Exchange { text, values, answer };
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).exchanges.push(exchange);
        Ok(())
    }
}

fn unread(error: impl std::fmt::Display) -> String {
    format!("a message that is not of the protocol: {error}")
}

fn own_type(text: &str, what: &str) -> String {
    format!("`{text}`: the type of {what} was made in the database, and has another number in the next one")
}

/// Text, unless the client asked for binary form.
fn format(formats: &[i16], at: usize) -> i16 {
    match formats {
        [all] => *all,
        each => each.get(at).copied().unwrap_or(0),
    }
}

fn values(portal: &Portal) -> Result<Vec<(String, Value)>, String> {
    let types = portal.statement.types.borrow();
    let formats = &portal.bind.parameter_format_codes;
    let value = |(at, value): (usize, &Option<bytes::Bytes>)| {
        let oid = types.get(at).copied().filter(|oid| *oid != 0).unwrap_or(TEXT);
        if oid >= FIRST_OWN_TYPE {
            return Err(own_type(&portal.statement.text, &format!("value ${}", at + 1)));
        }
        // A rule compares the bytes of a value, in whichever form.
        let value = match value {
            Some(text) if format(formats, at) == 0 && oid != TEXT => {
                Value::Hex { hex: const_hex::encode(text) }
            }
            value => Value::of(oid, value.as_deref()),
        };
        Ok((type_name(oid), value))
    };
    portal.bind.parameters.iter().enumerate().map(value).collect()
}

fn line(row: &[Option<Vec<u8>>], columns: &[(Column, i16)], text: &str) -> Result<Line<Vec<Value>>, String> {
    let value = |(value, (column, format)): (&Option<Vec<u8>>, &(Column, i16))| match value {
        Some(value) if *format == 0 => Value::of_text(column.oid, value).ok_or_else(|| {
            format!(
                "`{text}`: column {} of type {} in text form: ask by a prepared statement",
                column.name,
                type_name(column.oid)
            )
        }),
        value => Ok(Value::of(column.oid, value.as_deref())),
    };
    Ok(Line(row.iter().zip(columns).map(value).collect::<Result<_, _>>()?))
}

/// The values of a row: a length, negative for NULL, and as many bytes.
fn cells(mut data: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut cells = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk() {
        let length = usize::try_from(i32::from_be_bytes(*length));
        let (value, rest) = rest.split_at(length.unwrap_or(0).min(rest.len()));
        cells.push(length.is_ok().then(|| value.to_vec()));
        data = rest;
    }
    cells
}

#[cfg(test)]
mod tests {
    use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};
    use pgwire::messages::extendedquery::{
        BindComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended, Sync,
    };
    use pgwire::messages::response::{CommandComplete, ReadyForQuery, TransactionStatus};
    use pgwire::messages::startup::Startup;

    use super::*;

    fn row(text: &[u8]) -> Out {
        let data = [&u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat();
        Out::DataRow(DataRow::new(BytesMut::from(&data[..]), 1))
    }

    #[test]
    fn messages_ahead_of_their_answers_and_rows_in_pieces_are_kept() {
        let heard = Arc::<Mutex<Heard>>::default();
        let mut ear = Ear::new(Arc::clone(&heard));
        let mut said = BytesMut::new();
        for message in [
            In::Startup(Startup::new()),
            In::Parse(Parse::new(None, "select  name".to_owned(), vec![])),
            In::Bind(Bind::new(None, None, vec![], vec![], vec![])),
            In::Describe(Describe::new(b'P', None)),
            In::Execute(Execute::new(None, 1)),
            In::Execute(Execute::new(None, 1)),
            In::Sync(Sync::new()),
        ] {
            message.encode(&mut said).unwrap();
        }
        let mut answered = BytesMut::new();
        let column = FieldDescription::new("name".to_owned(), 0, 0, TEXT, -1, -1, 0);
        for message in [
            Out::ParseComplete(ParseComplete::new()),
            Out::BindComplete(BindComplete::new()),
            Out::RowDescription(RowDescription::new(vec![column])),
            row(b"a"),
            Out::PortalSuspended(PortalSuspended::new()),
            row(b"b"),
            Out::CommandComplete(CommandComplete::new("SELECT 2".to_owned())),
            Out::ReadyForQuery(ReadyForQuery::new(TransactionStatus::Idle)),
        ] {
            message.encode(&mut answered).unwrap();
        }

        // However the bytes are cut.
        said.chunks(3).for_each(|bytes| ear.hear(Direction::ToServer, bytes));
        answered.chunks(3).for_each(|bytes| ear.hear(Direction::ToClient, bytes));

        let heard = heard.lock().unwrap();
        assert!(heard.unkept.is_empty(), "{:?}", heard.unkept);
        let kept: Vec<_> =
            heard.exchanges.iter().map(|it| (&*it.text, it.answer.rows[0].0.clone())).collect();
        let text = |text: &str| vec![Value::Text(text.to_owned())];
        assert_eq!(kept, [("select name", text("a")), ("select name", text("b"))]);
    }

    #[test]
    fn what_is_encrypted_is_named() {
        let heard = Arc::<Mutex<Heard>>::default();
        let mut ear = Ear::new(Arc::clone(&heard));

        ear.hear(Direction::ToServer, &[0, 0, 0, 8, 4, 210, 22, 47]);
        ear.hear(Direction::ToClient, b"S");
        ear.hear(Direction::ToServer, b"\x16\x03\x01\x02\0\x01\0\x01\xfc");

        let unkept = heard.lock().unwrap().unkept.join("");
        assert!(unkept.contains("encrypted"), "{unkept}");
    }
}
