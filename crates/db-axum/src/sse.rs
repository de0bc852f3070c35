//! An event log as server-sent events.
//!
//! The form is that of the HTML standard, "Server-sent events": each event of the log is one message whose `event` is its type and
//! whose `data` is its data. Its `id` is the event's number and the mark of its batch ([`db_events::Mark`]), such as `10-k3f9`. A
//! browser's `EventSource` resumes by itself with `Last-Event-ID`; anybody else may say `?from=ID`. Both mean "after this event". A
//! number alone, such as `10`, is heard, too; with the mark, a client that comes back after the server has lost the end
//! of the log is told so, instead of being sent what follows others' events.
//!
//! The answer ends with a message of the type `stream-end`, and the reason as data:
//!
//! | reason | | what the client does |
//! |---|---|---|
//! | `finished` | the log is | nothing; an `EventSource` that asks again is answered 204, and stays away |
//! | `closing` | the service shuts down | connects again, and resumes |
//! | `failed` | the log cannot be read now | connects again, and resumes or is answered with a status |
//! | `removed` | the log was, or what comes next in it | nothing; one that asks again is answered 410 or told the same |
//! | `rewound` | events that the client names are not there any more, or others are in their place | forgets what comes after the `id` of this message, and resumes there |
//!
//! Only `rewound` has an `id`: that of the last event that is known to be the one that was seen, or `0`. A browser resumes with it by
//! itself. No event of a log has the type `stream-end` ([`db_events::NewEvent::RESERVED_KINDS`]); one that is stored all the
//! same is sent without a type.

use std::fmt::Write;
use std::time::Duration;

use async_stream::stream;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Query};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use db_layer::db_events::{self, Mark};
use db_layer::{Db, Event, LogId, NewEvent};
use serde::Deserialize;
use tokio::time::timeout;

use crate::Error;

/// After this long without an event, a comment is sent, so that nobody on the way takes the line for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How soon a browser connects again when the line was lost.
const RETRY: Duration = Duration::from_secs(1);

/// How soon it does when the service has said goodbye.
const SOON: Duration = Duration::from_millis(200);

/// The event after which a client wants to go on, and the mark of its batch if the client has it: `Last-Event-ID`, else `?from=`,
/// else 0 for all.
///
/// As an extractor it answers 400 to anything that is not a number, or a number and a mark as in `10-k3f9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor(pub i64, pub Option<Mark>);

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (id, mark) = match text.split_once('-') {
            Some((id, mark)) => (id, Some(Mark::parse(mark)?)),
            None => (text, None),
        };
        let is_plain = id.bytes().all(|byte| byte.is_ascii_digit());
        if is_plain { id.parse().ok().map(|id| Self(id, mark)) } else { None }
    }
}

impl From<i64> for Cursor {
    fn from(id: i64) -> Self {
        Self(id, None)
    }
}

#[derive(Deserialize)]
struct CursorQuery {
    from: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for Cursor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let bad = |what| {
            Error::new(StatusCode::BAD_REQUEST, format!("{what} must be the id of an event: 10 or 10-k3f9"))
        };
        let header = parts.headers.get(HeaderName::from_static("last-event-id"));
        // The header is newer than the address: a browser that connects again repeats the address.
        if let Some(id) = header.filter(|id| !id.is_empty()) {
            let cursor = id.to_str().ok().and_then(|id| Self::parse(id.trim()));
            return cursor.ok_or_else(|| bad("Last-Event-ID"));
        }
        let Query(query) = Query::<CursorQuery>::try_from_uri(&parts.uri).map_err(|_| bad("from"))?;
        query.from.map_or(Ok(Self::default()), |from| Self::parse(&from).ok_or_else(|| bad("from")))
    }
}

/// Answers with the events of a log after `from`, live, until the log is finished or the service shuts down.
///
/// A client that has seen the end of a finished log is answered 204, which tells an `EventSource` to stay away. One that names an
/// event that is not there, or not the one that it has seen, is told so by the answer's end.
///
/// # Errors
///
/// 404 for an unknown log and 410 for one that was removed; 503 when the database is away at the start. One that goes away later is waited for.
pub async fn events(db: &Db, log: LogId, from: Cursor) -> Result<Response, Error> {
    let Cursor(after, mark) = from;
    let head = db.events().head(log).await?;
    if head.is_finished && after == head.last && mark.is_none_or(|mark| head.mark == Some(mark)) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }

    let mut events = match mark {
        Some(mark) => db.events().resume(log, after, mark),
        None => db.events().stream(log, after),
    };
    let closing = db.closing();
    let body = stream! {
        yield Ok::<_, std::convert::Infallible>(Bytes::from(format!("retry: {}\n\n", RETRY.as_millis())));
        loop {
            let batch = tokio::select! {
                () = closing.cancelled() => {
                    // Somebody else may be there sooner than this one again.
                    yield Ok(end("closing", None, Some(SOON)));
                    break;
                }
                batch = timeout(HEARTBEAT, events.next_batch()) => batch,
            };
            match batch {
                Ok(Ok(Some(batch))) => yield Ok(encode(&batch)),
                Ok(Ok(None)) => {
                    yield Ok(end("finished", None, None));
                    break;
                }
                Ok(Err(error)) => {
                    yield Ok(end_by(log, &error));
                    break;
                }
                Err(_) => yield Ok(Bytes::from_static(b":\n\n")),
            }
        }
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Tells nginx not to hold events back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The last message of an answer. Without an id, a client that resumes does so after the last event that it was sent.
fn end(reason: &str, id: Option<i64>, retry: Option<Duration>) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let retry = retry.map(|retry| format!("retry: {}\n", retry.as_millis())).unwrap_or_default();
    Bytes::from(format!("{id}{retry}event: stream-end\ndata: {reason}\n\n"))
}

/// The last message of an answer that an error ends.
fn end_by(log: LogId, error: &db_events::Error) -> Bytes {
    match error {
        db_events::Error::Removed(_) | db_events::Error::UnknownLog(_) => {
            tracing::info!(%log, %error, "event stream ended");
            end("removed", None, None)
        }
        db_events::Error::Rewound { last, .. } => {
            tracing::warn!(%log, %error, "event stream ended");
            end("rewound", Some(*last), None)
        }
        error => {
            // The client connects again and is answered with a status.
            tracing::error!(%log, %error, "event stream ended");
            end("failed", None, None)
        }
    }
}

/// A whole batch in one piece: one write to the socket instead of one for each event.
fn encode(batch: &[Event]) -> Bytes {
    let bytes = batch.iter().map(|event| event.data.len() + event.kind.len() + 48).sum();
    let mut text = String::with_capacity(bytes);
    for event in batch {
        writeln!(text, "id: {}-{}", event.id, event.mark).expect("writing to a string");
        // One that was stored before such types were refused must not pass for the end.
        if !NewEvent::RESERVED_KINDS.contains(&&*event.kind) {
            writeln!(text, "event: {}", event.kind).expect("writing to a string");
        }
        // The standard ends a line with any of CR, LF and CRLF. JSON has none of them.
        for line in event.data.split("\r\n").flat_map(|part| part.split(['\r', '\n'])) {
            text.push_str("data: ");
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
    }
    text.into()
}
