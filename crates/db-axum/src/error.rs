//! Errors as HTTP answers.

use std::time::Duration;

use axum::extract::MatchedPath;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use db_layer::db_core::{self, AcquireError, AcquirePhase, Class, Repeat};
use db_layer::{db_events, encryption::EncryptionError};
use serde_json::{Value, json};

use crate::kind::Kind;

/// The media type of Problem Details.
pub(crate) const PROBLEM: &str = "application/problem+json";

/// The most characters of what a refused body, path or query is told: it may quote what the client has sent.
const LONGEST: usize = 200;

/// The detail of an answer to a request that may have been carried out. Its status is not 503 or 504: clients and proxies repeat a
/// request after those, and it would be done twice.
const MAY_BE_DONE: &str =
    "It is not known whether the request was carried out. Check before you send it again.";

/// An error in a handler, as an HTTP answer.
///
/// The body is Problem Details (RFC 9457): the kind as `type`, the status, its title, and a detail only if it was written for the client. Behind
/// [`request_ids`](crate::request_ids), the request is its `instance`. The database's error goes to the log, at `error` for 500, `warn` for 503 and
/// 504, and `debug` for the others and for `overloaded`, of which there are many at a time.
///
/// | error | status | `type` `urn:db-axum:`… |
/// |---|---|---|
/// | a row was expected, and none was found | 404 | `not-found` |
/// | a unique or exclusion constraint was violated | 409 | `taken` |
/// | another constraint was violated | 422 | `not-allowed` |
/// | a bound value does not fit ([`Class::Value`]) | 400 | `bad-value` |
/// | another error of class 22, such as a division by zero, or a literal in the statement's text that does not fit | 500 | `internal` |
/// | no connection came free in time, or too many callers wait | 503 | `overloaded` |
/// | the server was not reached, a lost connection, a conflict, a server that is out of disk space, memory or sessions (53…, but for 53400), or takes no writes any more, a closed pool | 503 | `unavailable` |
/// | a time limit or the request's [`Deadline`](crate::Deadline) has passed, also of an append, which may be stored | 504 | `timed-out` |
/// | a commit whose answer was lost ([`CommitUnknown`](db_core::Error::CommitUnknown)) | 500, with the detail that it may be done | `may-be-done` |
/// | an event log is unknown; was removed | 404; 410 | `no-such-log`; `log-removed` |
/// | an event log is finished, has another writer, or was rewound; a sequence number is used | 409 | `log-conflict` |
/// | events are too many or too large; have a kind or data that cannot be stored | 413; 400 | `event-too-large`; `bad-event` |
/// | a body, a path, a query or the header of a deadline cannot be read ([`Json`](crate::Json), [`Path`](crate::Path), [`Query`](crate::Query)) | 400, 413, 415, 422 | `bad-request` |
/// | a client has sent too many requests (`RateLimit`) | 429 | `too-many-requests` |
/// | an address or a method is not there ([`no_such_address`](crate::no_such_address), [`no_such_method`](crate::no_such_method)) | 404; 405 | `no-such-address`; `no-such-method` |
/// | any other error, which is the handler's | 500 | `internal` |
/// | [`Error::new`], [`Error::not_found`] | as given | none |
///
/// 503 has `Retry-After` if nothing was done, and none if a statement may have been executed. A value that does not fit is taken for
/// the client's by its SQLSTATE, if the server found it while the statement ran: a handler that casts values of its own should check
/// them first.
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    kind: Option<Kind>,
    detail: Option<String>,
    retry_after: Option<u32>,
}

impl Error {
    /// An answer with a status, and with a sentence for the client.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, kind: None, detail: Some(detail.into()), retry_after: None }
    }

    /// The refusal of a body, a path, a query or a header.
    pub(crate) fn bad_request(status: StatusCode, detail: &str) -> Self {
        // A wrong use of an extractor, such as a path without parameters, is the program's mistake.
        if status.is_server_error() {
            tracing::error!(detail, "request failed");
            return Self { status, ..Self::internal() };
        }
        let mut short: String = detail.chars().take(LONGEST).collect();
        if short.len() < detail.len() {
            short.push('…');
        }
        Self { kind: Some(Kind::BadRequest), ..Self::new(status, short) }
    }

    /// The answer to a request of a client that has sent too many.
    #[cfg(feature = "rate-limit")]
    pub(crate) fn too_many_requests(wait: Duration) -> Self {
        let answer = Self::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests. Nothing was done.");
        Self { kind: Some(Kind::TooManyRequests), retry_after: Some(seconds(wait).max(1)), ..answer }
    }

    /// The answer to a request whose time was over when it came.
    pub(crate) fn no_time_left() -> Self {
        let detail = "The time for this request was over when it came. Nothing was done.";
        Self { kind: Some(Kind::TimedOut), ..Self::new(StatusCode::GATEWAY_TIMEOUT, detail) }
    }

    /// The answer to a request whose time was over before it was answered.
    pub(crate) fn cut_off(
        method: &Method,
        route: Option<&MatchedPath>,
        after: Duration,
        by_client: bool,
    ) -> Self {
        let route = route.map(MatchedPath::as_str);
        if by_client {
            tracing::debug!(%method, route, ?after, "a request was cut off by its client's deadline");
        } else {
            tracing::warn!(%method, route, ?after, "a request was cut off by its deadline");
        }
        // A safe method (RFC 9110, section 9.2.1) does nothing that could be done twice.
        let detail = (!method.is_safe()).then(|| MAY_BE_DONE.to_owned());
        Self { status: StatusCode::GATEWAY_TIMEOUT, kind: Some(Kind::TimedOut), detail, retry_after: None }
    }

    /// The answer of an extractor whose layer the route does not have.
    pub(crate) fn no_layer(parts: &Parts, layer: &str) -> Self {
        let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        tracing::error!(route, layer, "the route lacks the layer that its handler needs");
        Self::internal()
    }

    /// The answer while there is no database yet.
    pub(crate) fn starting() -> Self {
        let answer = Self::new(StatusCode::SERVICE_UNAVAILABLE, "The service is starting.");
        Self { kind: Some(Kind::Unavailable), retry_after: Some(1), ..answer }
    }

    /// The answer where something of ours has failed, and is in the log.
    pub(crate) fn internal() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self { status, kind: Some(Kind::Internal), detail: None, retry_after: None }
    }

    /// The error of an answer that cannot be written.
    pub(crate) fn unwritable(error: &serde_json::Error) -> Self {
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, Kind::Internal, error)
    }

    pub(crate) fn no_such_address() -> Self {
        let detail = "there is nothing at this address";
        Self { kind: Some(Kind::NoSuchAddress), ..Self::not_found(detail) }
    }

    pub(crate) fn no_such_method() -> Self {
        let detail = "this address does not have this method";
        Self { kind: Some(Kind::NoSuchMethod), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    /// 404, with a sentence for the client.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    fn of(status: StatusCode, kind: Kind, error: &dyn std::error::Error) -> Self {
        match status {
            StatusCode::INTERNAL_SERVER_ERROR => tracing::error!(%error, "request failed"),
            // Many at a time, which alerts and totals tell as well.
            StatusCode::SERVICE_UNAVAILABLE if kind == Kind::Overloaded => {
                tracing::debug!(%error, "request refused");
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                tracing::warn!(%error, "request failed");
            }
            _ => tracing::debug!(%error, %status, "request refused"),
        }
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { status, kind: Some(kind), detail: None, retry_after }
    }
}

/// The header takes whole seconds only (RFC 9110, section 10.2.3).
fn seconds(after: Duration) -> u32 {
    u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

impl From<db_core::Error> for Error {
    fn from(error: db_core::Error) -> Self {
        let is_crowded = |error: &AcquireError| {
            let phase = error.phase();
            matches!(phase, AcquirePhase::Queue | AcquirePhase::Shed | AcquirePhase::Overloaded)
                && !error.is_past_deadline()
        };
        let (status, kind) = match error.class() {
            _ if error.is_not_found() => (StatusCode::NOT_FOUND, Kind::NotFound),
            _ if matches!(error, db_core::Error::CommitUnknown(_)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, Kind::MayBeDone)
            }
            _ if matches!(&error, db_core::Error::Acquire(error) if is_crowded(error)) => {
                (StatusCode::SERVICE_UNAVAILABLE, Kind::Overloaded)
            }
            // The service shuts down.
            _ if matches!(&error, db_core::Error::Acquire(error) if error.phase() == AcquirePhase::Closed) => {
                (StatusCode::SERVICE_UNAVAILABLE, Kind::Unavailable)
            }
            Class::NotReached | Class::Lost | Class::Conflict | Class::Resources => {
                (StatusCode::SERVICE_UNAVAILABLE, Kind::Unavailable)
            }
            // The server takes no writes any more, and another one will. Otherwise it is read-only by choice: the handler's error.
            Class::ReadOnly if error.repeat() == Repeat::Later => {
                (StatusCode::SERVICE_UNAVAILABLE, Kind::Unavailable)
            }
            Class::TimedOut => (StatusCode::GATEWAY_TIMEOUT, Kind::TimedOut),
            Class::Constraint => match error.sqlstate().as_deref() {
                // Unique and exclusion constraints: a request with other data may succeed.
                Some("23505" | "23P01") => (StatusCode::CONFLICT, Kind::Taken),
                _ => (StatusCode::UNPROCESSABLE_ENTITY, Kind::NotAllowed),
            },
            Class::Value => (StatusCode::BAD_REQUEST, Kind::BadValue),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, Kind::Internal),
        };
        let mut answer = Self::of(status, kind, &error);
        if matches!(error, db_core::Error::CommitUnknown(_)) {
            answer.detail = Some(MAY_BE_DONE.to_owned());
        }
        answer.retry_after = answer.retry_after.and(error.retry_after()).map(seconds);
        answer
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        db_core::Error::from(error).into()
    }
}

#[cfg(feature = "sea-orm")]
impl From<sea_orm::DbErr> for Error {
    fn from(error: sea_orm::DbErr) -> Self {
        db_core::Error::from(error).into()
    }
}

#[cfg(feature = "sea-orm")]
impl<E: std::error::Error> From<sea_orm::TransactionError<E>> for Error
where
    Self: From<E>,
{
    fn from(error: sea_orm::TransactionError<E>) -> Self {
        match error {
            sea_orm::TransactionError::Connection(error) => error.into(),
            sea_orm::TransactionError::Transaction(error) => error.into(),
        }
    }
}

impl From<AcquireError> for Error {
    fn from(error: AcquireError) -> Self {
        db_core::Error::from(error).into()
    }
}

impl From<db_events::Error> for Error {
    fn from(error: db_events::Error) -> Self {
        match error {
            db_events::Error::UnknownLog(_) => Self::of(StatusCode::NOT_FOUND, Kind::NoSuchLog, &error),
            db_events::Error::Removed { .. } => Self::of(StatusCode::GONE, Kind::LogRemoved, &error),
            db_events::Error::Finished { .. }
            | db_events::Error::Conflict { .. }
            | db_events::Error::SequenceReused { .. }
            | db_events::Error::Rewound { .. } => Self::of(StatusCode::CONFLICT, Kind::LogConflict, &error),
            db_events::Error::Size { .. } => {
                Self::of(StatusCode::PAYLOAD_TOO_LARGE, Kind::EventTooLarge, &error)
            }
            db_events::Error::BadKind | db_events::Error::ReservedKind(_) | db_events::Error::Nul => {
                Self::of(StatusCode::BAD_REQUEST, Kind::BadEvent, &error)
            }
            // What was appended may be stored.
            db_events::Error::TimedOut { .. } => {
                Self::of(StatusCode::GATEWAY_TIMEOUT, Kind::TimedOut, &error)
            }
            db_events::Error::Database { cause, .. } => cause.into(),
            _ => Self::of(StatusCode::INTERNAL_SERVER_ERROR, Kind::Internal, &error),
        }
    }
}

impl From<EncryptionError> for Error {
    fn from(error: EncryptionError) -> Self {
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, Kind::Internal, &error)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut problem = json!({
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
        });
        if let Some(kind) = self.kind {
            problem["type"] = kind.uri().into();
        }
        if let Some(detail) = self.detail {
            problem["detail"] = detail.into();
        }
        let mut response = (self.status, problem.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(Problem(problem));
        response
    }
}

/// The body of an answer that is an error, for a layer that knows more of it.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Value);

impl Problem {
    /// The body of the answer to this request.
    pub(crate) fn with_instance(mut self, request: &str) -> String {
        self.0["instance"] = format!("urn:db-axum:request:{request}").into();
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use db_layer::LogId;

    use super::*;

    fn told(error: impl Into<Error>) -> (u16, Option<&'static str>, bool) {
        let error: Error = error.into();
        (error.status.as_u16(), error.kind.map(Kind::uri), error.retry_after.is_some())
    }

    #[test]
    fn errors_of_event_logs_have_the_answers_of_the_table() {
        let log = LogId(7);
        for (error, status, kind) in [
            (db_events::Error::UnknownLog(log), 404, "urn:db-axum:no-such-log"),
            (db_events::Error::Removed { log, first: None }, 410, "urn:db-axum:log-removed"),
            (db_events::Error::BadKind, 400, "urn:db-axum:bad-event"),
            (db_events::Error::Nul, 400, "urn:db-axum:bad-event"),
            (db_events::Error::TimedOut { what: "append", seconds: 5 }, 504, "urn:db-axum:timed-out"),
        ] {
            let name = format!("{error:?}");
            assert_eq!(told(error), (status, Some(kind), false), "{name}");
        }
    }

    #[test]
    fn a_long_refusal_is_cut() {
        let long = Error::bad_request(StatusCode::BAD_REQUEST, &"é".repeat(1000));
        assert_eq!(long.detail.map(|detail| detail.chars().count()), Some(LONGEST + 1));
    }
}
