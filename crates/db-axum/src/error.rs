//! Errors as HTTP answers.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use db_layer::db_core::{self, Class, Repeat};
use db_layer::{db_events, encryption::EncryptionError};
use serde_json::json;

/// The detail of an answer to a request that may have been carried out. Its status is not 503 or 504: clients and proxies repeat a
/// request after those, and it would be done twice.
const MAY_BE_DONE: &str =
    "It is not known whether the request was carried out. Check before you send it again.";

/// An error in a handler, as an HTTP answer.
///
/// The body is Problem Details (RFC 9457): the status, its title, and a detail only if it was written for the client. The
/// database's error goes to the log, at `error` for 500, `warn` for 503 and 504, and `debug` for the others.
///
/// | error | status |
/// |---|---|
/// | a row was expected, and none was found | 404 |
/// | a unique or exclusion constraint was violated; another constraint was | 409; 422 |
/// | a bound value does not fit ([`Class::Value`]) | 400 |
/// | another error of class 22, such as a division by zero, or a literal in the statement's text that does not fit | 500 |
/// | no connection, a lost connection, a conflict, a server that is out of disk space or memory, or takes no writes any more | 503 |
/// | a time limit has passed | 504 |
/// | a commit whose answer was lost ([`CommitUnknown`](db_core::Error::CommitUnknown)) | 500, with the detail that it may be done |
/// | an event log is unknown; was removed | 404; 410 |
/// | an event log is finished, has another writer, or was rewound; a sequence number is used | 409 |
/// | events are too many or too large; have a kind or data that cannot be stored | 413; 400 |
/// | any other error, which is the handler's | 500 |
///
/// 503 has `Retry-After` if nothing was done, and none if a statement may have been executed. A value that does not fit is taken for
/// the client's by its SQLSTATE, if the server found it while the statement ran: a handler that casts values of its own should check
/// them first.
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    detail: Option<String>,
    retry_after: Option<u32>,
}

impl Error {
    /// An answer with a status, and with a sentence for the client.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: Some(detail.into()), retry_after: None }
    }

    pub(crate) fn with_retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
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

    fn of(status: StatusCode, error: &dyn std::error::Error) -> Self {
        match status {
            StatusCode::INTERNAL_SERVER_ERROR => tracing::error!(%error, "request failed"),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                tracing::warn!(%error, "request failed");
            }
            _ => tracing::debug!(%error, %status, "request refused"),
        }
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { status, detail: None, retry_after }
    }
}

impl From<db_core::Error> for Error {
    fn from(error: db_core::Error) -> Self {
        let status = match error.class() {
            _ if error.is_not_found() => StatusCode::NOT_FOUND,
            _ if matches!(error, db_core::Error::CommitUnknown(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Class::NotReached | Class::Lost | Class::Conflict | Class::Resources => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // The server takes no writes any more, and another one will. Otherwise it is read-only by choice: the handler's error.
            Class::ReadOnly if error.repeat() == Repeat::Later => StatusCode::SERVICE_UNAVAILABLE,
            Class::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Class::Constraint => match error.sqlstate().as_deref() {
                // Unique and exclusion constraints: a request with other data may succeed.
                Some("23505" | "23P01") => StatusCode::CONFLICT,
                _ => StatusCode::UNPROCESSABLE_ENTITY,
            },
            Class::Value => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut answer = Self::of(status, &error);
        if matches!(error, db_core::Error::CommitUnknown(_)) {
            answer.detail = Some(MAY_BE_DONE.to_owned());
        }
        // The header takes whole seconds only (RFC 9110, section 10.2.3).
        let seconds = |after: Duration| u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
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

impl From<db_core::AcquireError> for Error {
    fn from(error: db_core::AcquireError) -> Self {
        db_core::Error::from(error).into()
    }
}

impl From<db_events::Error> for Error {
    fn from(error: db_events::Error) -> Self {
        match error {
            db_events::Error::UnknownLog(_) => Self::of(StatusCode::NOT_FOUND, &error),
            db_events::Error::Removed { .. } => Self::of(StatusCode::GONE, &error),
            db_events::Error::Finished { .. }
            | db_events::Error::Conflict { .. }
            | db_events::Error::SequenceReused { .. }
            | db_events::Error::Rewound { .. } => Self::of(StatusCode::CONFLICT, &error),
            db_events::Error::Size { .. } => Self::of(StatusCode::PAYLOAD_TOO_LARGE, &error),
            db_events::Error::BadKind | db_events::Error::ReservedKind(_) | db_events::Error::Nul => {
                Self::of(StatusCode::BAD_REQUEST, &error)
            }
            db_events::Error::TimedOut { .. } => Self::of(StatusCode::SERVICE_UNAVAILABLE, &error),
            db_events::Error::Database { cause, .. } => cause.into(),
            _ => Self::of(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }
}

impl From<EncryptionError> for Error {
    fn from(error: EncryptionError) -> Self {
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, &error)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut problem = json!({
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
        });
        if let Some(detail) = self.detail {
            problem["detail"] = detail.into();
        }
        let mut response = (self.status, problem.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
