//! An event log as server-sent events.
//!
//! The form is that of the HTML standard, "Server-sent events": each event of the log is one message, whose `event` is the event's
//! kind and whose `data` is its data. The message's `id` is the event's id and mark ([`db_events::Mark`]), such as `10-k3f9`. A
//! browser's `EventSource` resumes by itself with the header `Last-Event-ID`.
//!
//! | the client sends | it gets |
//! |---|---|
//! | nothing | all events |
//! | `Last-Event-ID: 10-k3f9` | the events after that one |
//! | `?from=10-k3f9` | the same, unless there is a `Last-Event-ID`, which is newer |
//! | `?last=100` | the last 100 events and all later ones, unless there is a `Last-Event-ID` |
//! | `?kinds=line,end` | only events of these kinds; with `last`, of the last 100 events |
//!
//! An id without a mark, such as `10`, works, too. With the mark, a client that comes back after the server has lost the end of the
//! log gets `rewound`; without it, the client gets the events that have the next ids now.
//!
//! A client that selects kinds gets the id of the last event that was read, without data, after 15 s without a selected event.
//! So when it resumes, it does not read the other events again. A kind with a comma in its name cannot be selected.
//!
//! The answer ends with a message of the type `stream-end`, whose data is the reason:
//!
//! | reason | meaning | the client should |
//! |---|---|---|
//! | `finished` | the log is finished | stop. An `EventSource` that connects again is answered 204, and stops |
//! | `closing` | the service shuts down | connect again, and resume |
//! | `failed` | the log cannot be read at the moment | connect again, and resume or be answered with a status |
//! | `removed` | the log, or the next events in it, were removed | stop if the message has no `id`: the log is gone, and a new request is answered 410. Else resume after that `id`: the next event is the first that is left |
//! | `rewound` | events that the client has seen are not there any more, or other events have their ids | forget the events after the `id` of this message, and resume there |
//!
//! A browser resumes with these ids by itself. No event of a log is of the kind `stream-end`
//! ([`db_events::NewEvent::RESERVED_KINDS`]); if one is stored all the same, it is sent without its kind.
//!
//! For a client that does not read, the answer holds 64 KiB at most, and after 1 s no page of the log: the log is read again
//! when there is room. When the service shuts down, an answer that cannot be written within 1 s ends with an error, which
//! closes the connection. So does an answer that would have to end in the middle of an event.

mod room;
mod selection;
mod text;

use std::io;
use std::mem::take;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use db_layer::db_events;
use db_layer::{Db, EventStream, LogId};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Error;
use room::{PIECE, Room};
use selection::Start;
pub use selection::{Cursor, Selection};
use text::{Part, Text};

/// After this long without output, a comment is sent, so that no proxy on the way closes the connection as idle.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How soon a browser connects again after the connection was lost.
const RETRY: Duration = Duration::from_secs(1);

/// How soon a browser connects again after the service has ended the answer.
const SOON: Duration = Duration::from_millis(200);

/// A client that takes no output for this long holds no page.
const STALLED: Duration = Duration::from_secs(1);

/// After this many stalls, only small pages are read for a client; below, their size in bytes of text.
const STALLS: u32 = 3;
const SMALL: u32 = 64 << 10;

/// How long a client has to read the end of its answer when the service shuts down.
const FINAL_WRITE_LIMIT: Duration = Duration::from_secs(1);

/// Answers with the selected events of a log, live, until the log is finished or the service shuts down. `selection` is a
/// [`Selection`], or a [`Cursor`] for all events after it.
///
/// A client that has seen the last event of a finished log is answered 204, which makes an `EventSource` stop. If the client's
/// cursor is beyond the end of the log, or its event is not there any more, the end of the answer says so.
///
/// # Errors
///
/// 404 for an unknown log and 410 for one that was removed; 503 if the database is away at the start. If the database is away
/// later, the answer waits.
pub async fn events(db: &Db, log: LogId, selection: impl Into<Selection>) -> Result<Response, Error> {
    let Selection { start, kinds } = selection.into();
    let head = db.events().head(log).await?;
    let (from, known) = match start {
        Start::After(cursor) => (cursor, Some(cursor.0)),
        Start::Last(count) => (db.events().stream_last(log, count).await?.cursor().into(), None),
    };
    let Cursor(after, mark) = from;
    if head.is_finished && after == head.last && mark.is_none_or(|mark| head.mark == Some(mark)) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }

    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Makes nginx pass events on at once.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, body(db.clone(), log, kinds, from, known)).into_response())
}

/// The messages of an answer. `known` is the last event whose id the client has.
fn body(db: Db, log: LogId, kinds: Option<Arc<[String]>>, from: Cursor, mut known: Option<i64>) -> Body {
    Body::from_stream(stream! {
        let closing = db.closing();
        let room = Room::new();
        let late = async || {
            closing.cancelled().await;
            sleep(FINAL_WRITE_LIMIT).await;
        };
        yield Ok(room.take().await.fill(format!("retry: {}\n\n", RETRY.as_millis())));
        let mut heartbeat = Instant::now() + HEARTBEAT;
        // The last event that was written or skipped, and how much of the next event was written.
        let (mut cursor, mut part, mut stalls) = (from, Part::default(), 0);
        let end = 'answer: loop {
            // A page is read only once there is room for a piece of it.
            let has_room = tokio::select! {
                () = closing.cancelled() => break End::CLOSING,
                place = room.take() => place,
            };
            drop(has_room);
            let mut events = stream_of(&db, log, cursor);
            if stalls >= STALLS {
                events = events.page_bytes(SMALL);
            }
            loop {
                let batch = {
                    // The heartbeat must not drop the query: a query slower than a heartbeat would never finish.
                    let mut next = pin!(events.next_batch());
                    loop {
                        tokio::select! {
                            () = closing.cancelled() => break 'answer End::CLOSING,
                            batch = &mut next => break batch,
                            () = sleep_until(heartbeat) => {}
                        }
                        heartbeat = Instant::now() + HEARTBEAT;
                        // Not in the middle of an event, since the heartbeat's empty line would end the event. A client that
                        // does not read gets no heartbeat.
                        if !part.is_begun() && let Some(place) = room.try_take() {
                            yield Ok(place.fill(match unknown(cursor, known) {
                                Some(cursor) => format!("id: {cursor}\n\n"),
                                None => ":\n\n".to_owned(),
                            }));
                            known = Some(cursor.0);
                        }
                    }
                };
                let mut text = match batch {
                    Ok(Some(batch)) => Text::new(batch, kinds.clone(), cursor, take(&mut part)),
                    Ok(None) => break 'answer End::FINISHED,
                    Err(error) => break 'answer End::of(log, &error),
                };
                while !text.is_done() {
                    let place = tokio::select! {
                        () = closing.cancelled() => None,
                        place = timeout(STALLED, room.take()) => Some(place),
                    };
                    let Some(Ok(place)) = place else {
                        known = text.written().or(known);
                        (cursor, part) = text.place();
                        if place.is_none() {
                            break 'answer End::CLOSING;
                        }
                        stalls += 1;
                        continue 'answer;
                    };
                    yield Ok(place.fill(text.next(PIECE)));
                    heartbeat = Instant::now() + HEARTBEAT;
                }
                known = text.written().or(known);
                (cursor, part) = text.place();
            }
        };
        // No last message in the middle of an event: its empty line would end the event.
        let place = if part.is_begun() {
            None
        } else {
            tokio::select! {
                place = room.take() => Some(place),
                () = late() => None,
            }
        };
        let is_sent = place.is_some();
        if let Some(place) = place {
            yield Ok(place.fill(end.message(unknown(cursor, known))));
        }
        // The answer ends only when its last message is written, with a limit of its own: hyper would wait for the socket
        // without a limit.
        let is_written = is_sent && tokio::select! {
            () = room.empty() => true,
            () = late() => false,
        };
        if !is_written {
            yield Err(io::Error::new(io::ErrorKind::TimedOut, "the end of the answer was not written"));
        }
    })
}

fn stream_of(db: &Db, log: LogId, Cursor(after, mark): Cursor) -> EventStream {
    match mark {
        Some(mark) => db.events().resume(log, after, mark),
        None => db.events().stream(log, after),
    }
}

/// The cursor, unless the client has been sent its id. With the id, the client does not read the events before the cursor
/// again.
fn unknown(cursor: Cursor, known: Option<i64>) -> Option<Cursor> {
    (known != Some(cursor.0)).then_some(cursor)
}

/// Why an answer ends.
struct End {
    reason: &'static str,
    /// The event after which the client should resume; `None` for the last event that it was sent.
    resume: Option<i64>,
    retry: Option<Duration>,
}

impl End {
    const FINISHED: Self = Self { reason: "finished", resume: None, retry: None };
    const CLOSING: Self = Self { reason: "closing", resume: None, retry: Some(SOON) };

    fn of(log: LogId, error: &db_events::Error) -> Self {
        let (reason, resume) = match error {
            db_events::Error::Removed { first, .. } => ("removed", first.map(|first| first - 1)),
            db_events::Error::UnknownLog(_) => ("removed", None),
            db_events::Error::Rewound { last, .. } => ("rewound", Some(*last)),
            // The client connects again and is answered with a status.
            _ => ("failed", None),
        };
        match reason {
            "removed" => tracing::info!(%log, %error, "event stream ended"),
            "rewound" => tracing::warn!(%log, %error, "event stream ended"),
            _ => tracing::error!(%log, %error, "event stream ended"),
        }
        Self { reason, resume, retry: None }
    }

    /// The last message of the answer. `cursor` is the last event that was read, if the client was not sent its id.
    fn message(&self, cursor: Option<Cursor>) -> String {
        let id = match (self.resume, cursor) {
            (Some(id), _) => format!("id: {id}\n"),
            (None, Some(cursor)) if self.reason != "removed" => format!("id: {cursor}\n"),
            (None, _) => String::new(),
        };
        let retry = self.retry.map(|retry| format!("retry: {}\n", retry.as_millis())).unwrap_or_default();
        format!("{id}{retry}event: stream-end\ndata: {}\n\n", self.reason)
    }
}
