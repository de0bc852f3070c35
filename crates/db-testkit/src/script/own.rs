//! What a session answers by itself: statements about the session and not about any table.
//!
//! The second half is what the pools and the bus of this workspace ask of a session. Their tests run on a script, so a question
//! that changes there fails here.

use super::reply::{ServerError, Table};
use super::rule::Bound;
use super::text::{BOOL, FLOAT8, INT4, INT8, TEXT, VOID, elements};
use super::transaction::{AtCommit, Control};
use super::values::{Cell, Column};
use super::words::{literals, name};

/// A statement that a session answers by itself.
#[derive(Debug)]
pub(super) enum Own {
    Control(Control),
    /// Settings, prepared statements and what else only changes the session.
    Session(&'static str),
    AtCommit(&'static str, AtCommit),
    SetConfig(Vec<String>),
    /// Literals, or bound values.
    PgNotify {
        literals: Vec<String>,
        is_each: bool,
    },
    Pid,
    Identity {
        with_role: bool,
    },
    Role,
    Standing(String),
    QueueUsage,
    TransactionId,
    TransactionStatus,
    Signal,
}

/// What a session knows of itself.
pub(super) struct About {
    pub(super) pid: i32,
    pub(super) in_transaction: bool,
    pub(super) transaction_id: u64,
}

/// What else is to be done.
#[derive(Debug)]
pub(super) enum Effect {
    AtCommit(AtCommit),
    /// Cancel the statement of a session, or end the session.
    Signal {
        pid: i32,
        ends: bool,
    },
}

impl Own {
    pub(super) fn of(text: &str) -> Option<Own> {
        if let Some(control) = Control::of(text) {
            return Some(Own::Control(control));
        }
        let lower = text.to_lowercase();
        let rest = |word: &str| text.get(word.len()..).unwrap_or_default();
        let first = lower.split_whitespace().next()?;
        Some(match first {
            "set" => Own::Session("SET"),
            "reset" => Own::Session("RESET"),
            "deallocate" => Own::Session("DEALLOCATE"),
            "discard" => Own::Session("DISCARD ALL"),
            "listen" => Own::AtCommit("LISTEN", AtCommit::Listen(name(rest(first))?)),
            "unlisten" if rest(first).trim() == "*" => Own::AtCommit("UNLISTEN", AtCommit::UnlistenAll),
            "unlisten" => Own::AtCommit("UNLISTEN", AtCommit::Unlisten(name(rest(first))?)),
            "notify" => {
                let payload = literals(text).into_iter().next().unwrap_or_default();
                Own::AtCommit("NOTIFY", AtCommit::Notify { channel: name(rest(first))?, payload })
            }
            "select" => return Own::select(text, &lower),
            _ => return None,
        })
    }

    fn select(text: &str, lower: &str) -> Option<Own> {
        if lower.starts_with("select set_config(") {
            return Some(Own::SetConfig(literals(text)));
        }
        if lower.starts_with("select pg_notify(") {
            let is_each = lower.contains("unnest($2::text[])");
            return Some(Own::PgNotify { literals: literals(text), is_each });
        }
        if lower.contains("pg_stat_get_activity(pg_backend_pid())") {
            return Some(Own::Identity { with_role: lower.contains("pg_is_in_recovery()") });
        }
        if lower.starts_with("select case when pg_is_in_recovery()") {
            return Some(Own::Role);
        }
        if lower.ends_with(", now() <> statement_timestamp()") {
            return Some(Own::Standing(literals(text).into_iter().next()?));
        }
        if lower.contains("pg_catalog.pg_cancel_backend(") {
            return Some(Own::Signal);
        }
        Some(match lower {
            "select pg_backend_pid()" => Own::Pid,
            "select pg_notification_queue_usage()" => Own::QueueUsage,
            "select pg_current_xact_id()::text" => Own::TransactionId,
            "select pg_xact_status($1::xid8)" => Own::TransactionStatus,
            _ => return None,
        })
    }

    /// The columns of its answer.
    pub(super) fn columns(&self) -> Vec<Column> {
        match self {
            Own::Control(_) | Own::Session(_) | Own::AtCommit(..) => Vec::new(),
            Own::SetConfig(literals) => {
                (0..literals.len() / 2).map(|_| Column::new("set_config", TEXT)).collect()
            }
            Own::PgNotify { .. } => vec![Column::new("pg_notify", VOID)],
            Own::Pid => vec![Column::new("pg_backend_pid", INT4)],
            Own::Identity { with_role } => {
                let mut columns = vec![Column::new("pid", INT4), Column::new("backend_start", TEXT)];
                columns.extend(with_role.then(|| Column::new("case", TEXT)));
                columns
            }
            Own::Role => vec![Column::new("case", TEXT)],
            Own::Standing(_) => vec![Column::new("?column?", TEXT), Column::new("?column?", BOOL)],
            Own::QueueUsage => vec![Column::new("pg_notification_queue_usage", FLOAT8)],
            Own::TransactionId => vec![Column::new("pg_current_xact_id", TEXT)],
            Own::TransactionStatus => vec![Column::new("pg_xact_status", TEXT)],
            Own::Signal => vec![Column::new("n", INT8), Column::new("case", BOOL)],
        }
    }

    /// Its rows, and what else it does. Of a control statement, the transaction itself tells.
    pub(super) fn answer(
        &self,
        bound: &[Bound],
        about: &About,
        status_of: impl Fn(u64) -> Option<&'static str>,
    ) -> Result<(Table, Vec<Effect>), ServerError> {
        let mut effects = Vec::new();
        let rows: Vec<Vec<Cell>> = match self {
            Own::Control(_) => Vec::new(),
            Own::Session(tag) => return Ok((Table::tag(*tag), effects)),
            Own::AtCommit(tag, what) => {
                effects.push(Effect::AtCommit(what.clone()));
                return Ok((Table::tag(*tag), effects));
            }
            Own::SetConfig(literals) => {
                vec![literals.chunks_exact(2).map(|pair| Some(bytes(&pair[1]))).collect()]
            }
            Own::PgNotify { literals, is_each } => {
                let (channel, payloads) = notified(literals, *is_each, bound)?;
                if let Some(error) = payloads.iter().find_map(|payload| refused(&channel, payload)) {
                    return Err(error);
                }
                let notify = |payload| AtCommit::Notify { channel: channel.clone(), payload };
                let rows = payloads.iter().map(|_| vec![Some(Vec::new())]).collect();
                effects.extend(payloads.into_iter().map(|payload| Effect::AtCommit(notify(payload))));
                rows
            }
            Own::Pid => vec![vec![Some(int4(about.pid))]],
            Own::Identity { with_role } => {
                let mut row = vec![Some(int4(about.pid)), Some(bytes(&began(about.pid)))];
                row.extend(with_role.then(|| Some(bytes("writes"))));
                vec![row]
            }
            Own::Role => vec![vec![Some(bytes("writes"))]],
            Own::Standing(number) => {
                vec![vec![Some(bytes(number)), Some(vec![u8::from(about.in_transaction)])]]
            }
            Own::QueueUsage => vec![vec![Some(0_f64.to_be_bytes().to_vec())]],
            Own::TransactionId => vec![vec![Some(bytes(&about.transaction_id.to_string()))]],
            Own::TransactionStatus => {
                let number = text_of(bound.first()).and_then(|it| it.parse().ok());
                vec![vec![number.and_then(status_of).map(Into::into)]]
            }
            Own::Signal => {
                let asked = asked_to_signal(bound).ok_or_else(|| unreadable("the sessions to signal"))?;
                let row = |at: usize| {
                    vec![i64::try_from(at + 1).ok().map(|n| n.to_be_bytes().to_vec()), Some(vec![1])]
                };
                let rows = (0..asked.len()).map(row).collect();
                effects.extend(asked.into_iter().map(|(pid, ends)| Effect::Signal { pid, ends }));
                rows
            }
        };
        let tag = format!("SELECT {}", rows.len());
        Ok((Table { columns: self.columns(), rows, tag, wrong: None }, effects))
    }
}

/// The most bytes of a payload and of a channel's name, as PostgreSQL has them.
const LONGEST_PAYLOAD: usize = 7999;
const LONGEST_NAME: usize = 63;

/// Why `pg_notify` refuses this.
fn refused(channel: &str, payload: &str) -> Option<ServerError> {
    let invalid = |text| Some(ServerError::new("22023", text));
    if channel.is_empty() {
        return invalid("channel name cannot be empty");
    }
    if channel.len() > LONGEST_NAME {
        return invalid("channel name too long");
    }
    if payload.len() > LONGEST_PAYLOAD {
        return invalid("payload string too long");
    }
    if channel.contains('\0') || payload.contains('\0') {
        return Some(ServerError::new("22021", "invalid byte sequence for encoding \"UTF8\": 0x00"));
    }
    None
}

/// When the session of this process began, as text: a number that no other session has.
fn began(pid: i32) -> String {
    format!("2000-01-01 00:00:00.{pid:06}+00")
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn int4(number: i32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn text_of(bound: Option<&Bound>) -> Option<&str> {
    std::str::from_utf8(bound?.value.as_deref()?).ok()
}

fn unreadable(what: &str) -> ServerError {
    ServerError::new("22P03", format!("the script cannot read {what}"))
}

/// The channel, and the payloads: two literals, two bound values, or a channel and an array.
fn notified(
    literals: &[String],
    is_each: bool,
    bound: &[Bound],
) -> Result<(String, Vec<String>), ServerError> {
    if let [channel, payload] = literals {
        return Ok((channel.clone(), vec![payload.clone()]));
    }
    let read = || {
        let channel = text_of(bound.first())?.to_owned();
        if !is_each {
            return Some((channel, vec![text_of(bound.get(1))?.to_owned()]));
        }
        let (_, payloads) = elements(bound.get(1)?.value.as_deref()?)?;
        let payloads = payloads.into_iter().map(|it| String::from_utf8(it?.to_vec()).ok());
        Some((channel, payloads.collect::<Option<Vec<_>>>()?))
    };
    read().ok_or_else(|| unreadable("what is to be notified"))
}

/// Process ids, when their sessions began, and whether to end them.
fn asked_to_signal(bound: &[Bound]) -> Option<Vec<(i32, bool)>> {
    let [pids, began_at, ends] = bound else { return None };
    let array = |bound: &Bound| -> Option<Vec<Vec<u8>>> {
        let (_, elements) = elements(bound.value.as_deref()?)?;
        elements.into_iter().map(|it| it.map(<[u8]>::to_vec)).collect()
    };
    let asked = array(pids)?.into_iter().zip(array(began_at)?).zip(array(ends)?);
    let asked: Option<Vec<_>> = asked
        .map(|((pid, at), ends)| {
            let pid = i32::from_be_bytes(pid.try_into().ok()?);
            // A session of that start, or none.
            Some((at == began(pid).as_bytes()).then_some((pid, ends == [1])))
        })
        .collect();
    Some(asked?.into_iter().flatten().collect())
}
