//! Errors as HTTP answers.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use db_layer::db_core::{self, Class};
use db_layer::{db_events, encryption::EncryptionError};
use serde_json::json;

/// What went wrong in a handler, as the answer it deserves.
///
/// The body is Problem Details (RFC 9457): the status, its title, and a detail only where it was written for the
/// client. What the database said goes to the log, at `error` for 500 and `warn` for 503 and 504.
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    detail: Option<String>,
    retry_after: Option<u32>,
}

impl Error {
    /// An answer of the handler's own, with a sentence for the client.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: Some(detail.into()), retry_after: None }
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
            Class::NotReached | Class::Lost | Class::Conflict => StatusCode::SERVICE_UNAVAILABLE,
            Class::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Class::Constraint => match error.sqlstate().as_deref() {
                // Unique and exclusion constraints: the same request may do with other data.
                Some("23505" | "23P01") => StatusCode::CONFLICT,
                _ => StatusCode::UNPROCESSABLE_ENTITY,
            },
            _ => match error.sqlstate() {
                // Data that does not fit its type.
                Some(code) if code.starts_with("22") => StatusCode::BAD_REQUEST,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        };
        let mut answer = Self::of(status, &error);
        if let (Some(seconds), Some(after)) = (&mut answer.retry_after, error.retry_after()) {
            // The header knows whole seconds only (RFC 9110, section 10.2.3).
            *seconds = u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        }
        answer
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        db_core::Error::from(error).into()
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
            db_events::Error::Removed(_) => Self::of(StatusCode::GONE, &error),
            db_events::Error::Finished { .. } | db_events::Error::Conflict { .. } => {
                Self::of(StatusCode::CONFLICT, &error)
            }
            db_events::Error::Size { .. } => Self::of(StatusCode::PAYLOAD_TOO_LARGE, &error),
            db_events::Error::BadKind | db_events::Error::Nul => Self::of(StatusCode::BAD_REQUEST, &error),
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
