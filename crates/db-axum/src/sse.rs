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
//!
//! Of an answer that its client does not read, 64 KiB are held at most, and no page of the log after one second: the answer goes
//! back to the log when there is room again. When the service shuts down, an answer that cannot be written within one second
//! more ends with an error, which closes the connection.

mod room;
mod text;

use std::io;
use std::mem::take;
use std::pin::pin;
use std::time::Duration;

use async_stream::stream;
use axum::body::Body;
use axum::extract::{FromRequestParts, Query};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use db_layer::db_events::{self, Mark};
use db_layer::{Db, EventStream, LogId};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::Error;
use room::{PIECE, Room};
use text::{Part, Text};

/// After this long without an event, a comment is sent, so that nobody on the way takes the line for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How soon a browser connects again when the line was lost.
const RETRY: Duration = Duration::from_secs(1);

/// How soon it does when the service has said goodbye.
const SOON: Duration = Duration::from_millis(200);

/// A client that takes nothing for this long holds no page.
const STALLED: Duration = Duration::from_secs(1);

/// How often a client may stall before only small pages are read for it, and how large those are, in bytes of text.
const STALLS: u32 = 3;
const SMALL: u32 = 64 << 10;

/// How long a client has to read the last of its answer when the service shuts down.
const GOODBYE: Duration = Duration::from_secs(1);

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

    let (db, closing) = (db.clone(), db.closing());
    let body = stream! {
        let room = Room::new();
        let late = async || {
            closing.cancelled().await;
            sleep(GOODBYE).await;
        };
        yield Ok(room.take().await.fill(format!("retry: {}\n\n", RETRY.as_millis())));
        // Where the log is read from, and what was written of the event after that.
        let (mut cursor, mut part, mut stalls) = (from, Part::default(), 0);
        let last = 'answer: loop {
            let has_room = tokio::select! {
                // Somebody else may be there sooner than this one again.
                () = closing.cancelled() => break end("closing", None, Some(SOON)),
                place = room.take() => place,
            };
            drop(has_room);
            let mut events = stream_of(&db, log, cursor);
            if stalls >= STALLS {
                events = events.page_bytes(SMALL);
            }
            loop {
                let batch = {
                    // It goes on while heartbeats are sent: a query that is slower than those would never end otherwise.
                    let mut next = pin!(events.next_batch());
                    loop {
                        tokio::select! {
                            () = closing.cancelled() => break 'answer end("closing", None, Some(SOON)),
                            batch = &mut next => break batch,
                            () = sleep(HEARTBEAT) => {}
                        }
                        // Whoever does not read hears nothing of it.
                        if let Some(place) = room.try_take() {
                            yield Ok(place.fill(":\n\n"));
                        }
                    }
                };
                let mut text = match batch {
                    Ok(Some(batch)) => Text::new(batch, cursor, take(&mut part)),
                    Ok(None) => break 'answer end("finished", None, None),
                    Err(error) => break 'answer end_by(log, &error),
                };
                while !text.is_done() {
                    let place = tokio::select! {
                        () = closing.cancelled() => break 'answer end("closing", None, Some(SOON)),
                        place = timeout(STALLED, room.take()) => place,
                    };
                    let Ok(place) = place else {
                        (cursor, part) = text.place();
                        stalls += 1;
                        continue 'answer;
                    };
                    yield Ok(place.fill(text.next(PIECE)));
                }
                (cursor, part) = text.place();
            }
        };
        let place = tokio::select! {
            place = room.take() => Some(place),
            () = late() => None,
        };
        let is_said = place.is_some();
        if let Some(place) = place {
            yield Ok(place.fill(last));
        }
        // Not the end of the answer before it is written: hyper would wait for that without a limit.
        let is_written = is_said && tokio::select! {
            () = room.empty() => true,
            () = late() => false,
        };
        if !is_written {
            yield Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not read its answer before the service closed"));
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

fn stream_of(db: &Db, log: LogId, Cursor(after, mark): Cursor) -> EventStream {
    match mark {
        Some(mark) => db.events().resume(log, after, mark),
        None => db.events().stream(log, after),
    }
}

/// The last message of an answer. Without an id, a client that resumes does so after the last event that it was sent.
fn end(reason: &str, id: Option<i64>, retry: Option<Duration>) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let retry = retry.map(|retry| format!("retry: {}\n", retry.as_millis())).unwrap_or_default();
    format!("{id}{retry}event: stream-end\ndata: {reason}\n\n")
}

/// The last message of an answer that an error ends.
fn end_by(log: LogId, error: &db_events::Error) -> String {
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
