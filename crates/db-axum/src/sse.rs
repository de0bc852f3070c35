//! An event log as server-sent events.
//!
//! The form is that of the HTML standard, "Server-sent events": each event of the log is one message whose `id` is the
//! event's id, whose `event` is its type and whose `data` is its data. A browser's `EventSource` resumes by itself with
//! `Last-Event-ID`; anybody else may say `?from=ID`. Both mean "after this event".
//!
//! The answer ends with a message of the type `stream-end` that has no `id`, and the reason as data: `finished` when the log is, so
//! that nobody needs to ask again; `closing` when the service shuts down, and `failed` when the log cannot be read any more, after which
//! the client connects again and resumes.

use std::fmt::Write;
use std::time::Duration;

use async_stream::stream;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Query};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use db_layer::{Db, Event, LogId};
use serde::Deserialize;
use tokio::time::timeout;

use crate::Error;

/// After this long without an event, a comment is sent, so that nobody on the way takes the line for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How soon a browser connects again when the line was lost.
const RETRY: Duration = Duration::from_secs(1);

/// How soon it does when the service has said goodbye.
const SOON: Duration = Duration::from_millis(200);

/// The event after which a client wants to go on: `Last-Event-ID`, else `?from=`, else 0 for all.
///
/// As an extractor it answers 400 to anything that is not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor(pub i64);

#[derive(Deserialize)]
struct CursorQuery {
    from: Option<i64>,
}

impl<S: Sync> FromRequestParts<S> for Cursor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let bad =
            |what| Error::new(StatusCode::BAD_REQUEST, format!("{what} must be the number of an event"));
        let header = parts.headers.get(HeaderName::from_static("last-event-id"));
        // The header is newer than the address: a browser that connects again repeats the address.
        if let Some(id) = header.filter(|id| !id.is_empty()) {
            let id = id.to_str().ok().and_then(|id| id.trim().parse().ok());
            return id.filter(|id| *id >= 0).map(Self).ok_or_else(|| bad("Last-Event-ID"));
        }
        let Query(query) = Query::<CursorQuery>::try_from_uri(&parts.uri).map_err(|_| bad("from"))?;
        match query.from {
            Some(from) if from < 0 => Err(bad("from")),
            from => Ok(Self(from.unwrap_or(0))),
        }
    }
}

/// Answers with the events of a log after `from`, live, until the log is finished or the service shuts down.
///
/// A client that has seen the end of a finished log is answered 204, which tells an `EventSource` to stay away.
///
/// # Errors
///
/// 404 for an unknown log and 410 for one that was removed; 503 when the database is away at the start. One that goes away later is waited for.
pub async fn events(db: &Db, log: LogId, from: Cursor) -> Result<Response, Error> {
    let head = db.events().head(log).await?;
    if head.is_finished && from.0 >= head.last {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }

    let mut events = db.events().stream(log, from.0);
    let closing = db.closing();
    let body = stream! {
        yield Ok::<_, std::convert::Infallible>(Bytes::from(format!("retry: {}\n\n", RETRY.as_millis())));
        loop {
            let batch = tokio::select! {
                () = closing.cancelled() => {
                    // Somebody else may be there sooner than this one again.
                    yield Ok(end("closing", Some(SOON)));
                    break;
                }
                batch = timeout(HEARTBEAT, events.next_batch()) => batch,
            };
            match batch {
                Ok(Ok(Some(batch))) => yield Ok(encode(&batch)),
                Ok(Ok(None)) => {
                    yield Ok(end("finished", None));
                    break;
                }
                Ok(Err(error)) => {
                    // The client connects again and is answered with a status.
                    tracing::error!(%log, %error, "event stream ended");
                    yield Ok(end("failed", None));
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

/// The last message of an answer. It has no id: a client that resumes does so after the last event that is stored.
fn end(reason: &str, retry: Option<Duration>) -> Bytes {
    let retry = retry.map(|retry| format!("retry: {}\n", retry.as_millis())).unwrap_or_default();
    Bytes::from(format!("{retry}event: stream-end\ndata: {reason}\n\n"))
}

/// A whole batch in one piece: one write to the socket instead of one for each event.
fn encode(batch: &[Event]) -> Bytes {
    let bytes = batch.iter().map(|event| event.data.len() + event.kind.len() + 40).sum();
    let mut text = String::with_capacity(bytes);
    for event in batch {
        write!(text, "id: {}\nevent: {}\n", event.id, event.kind).expect("writing to a string");
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
