//! Which events of a log a client asks for.

use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode};
use db_layer::NewEvent;
use db_layer::db_events::Mark;
use serde::Deserialize;

use crate::Error;

/// The most kinds that one request selects.
const MAX_KINDS: usize = 32;

/// The event after which a client resumes, and the event's mark if the client has it: `Last-Event-ID`, else `?from=`, else 0 for
/// all.
///
/// As an extractor it answers 400 unless the text is an id, or an id and a mark, such as `10-k3f9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor(pub i64, pub Option<Mark>);

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (id, mark) = match text.split_once('-') {
            Some((id, mark)) => (id, Some(Mark::parse(mark)?)),
            None => (text, None),
        };
        Some(Self(number(id)?, mark))
    }

    /// The cursor of the header. A browser that connects again repeats the address, so the header is newer.
    fn of_header(parts: &Parts) -> Result<Option<Self>, Error> {
        let header = parts.headers.get(HeaderName::from_static("last-event-id"));
        let Some(id) = header.filter(|id| !id.is_empty()) else { return Ok(None) };
        let cursor = id.to_str().ok().and_then(|id| Self::parse(id.trim()));
        cursor.map(Some).ok_or_else(|| bad("Last-Event-ID must be the id of an event: 10 or 10-k3f9"))
    }
}

impl From<i64> for Cursor {
    fn from(id: i64) -> Self {
        Self(id, None)
    }
}

/// As clients send it.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(mark) => write!(f, "{}-{mark}", self.0),
            None => self.0.fmt(f),
        }
    }
}

/// Which events of a log a client asks for: `Last-Event-ID`, `?from=`, `?last=` and `?kinds=`, see [`sse`](crate::sse).
///
/// As an extractor it answers 400 to values that are not of their form, to both `from` and `last`, and to a parameter that comes
/// twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    pub(super) start: Start,
    /// None for all kinds.
    pub(super) kinds: Option<Arc<[String]>>,
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    After(Cursor),
    Last(u32),
}

impl Default for Start {
    fn default() -> Self {
        Self::After(Cursor::default())
    }
}

impl Selection {
    /// All events after a cursor.
    #[must_use]
    pub fn after(cursor: Cursor) -> Self {
        Self { start: Start::After(cursor), kinds: None }
    }

    /// The last `count` events, and all later ones.
    #[must_use]
    pub fn last(count: u32) -> Self {
        Self { start: Start::Last(count), kinds: None }
    }

    /// Only events of these kinds.
    #[must_use]
    pub fn kinds(self, kinds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { kinds: Some(kinds.into_iter().map(Into::into).collect()), ..self }
    }
}

impl From<Cursor> for Selection {
    fn from(cursor: Cursor) -> Self {
        Self::after(cursor)
    }
}

#[derive(Deserialize)]
struct Parameters {
    from: Option<String>,
    last: Option<String>,
    kinds: Option<String>,
}

impl Parameters {
    fn of(parts: &Parts) -> Result<Self, Error> {
        let Query(parameters) = Query::try_from_uri(&parts.uri)
            .map_err(|_| bad("from, last and kinds must be plain text, and come once each"))?;
        Ok(parameters)
    }

    fn from(&self) -> Result<Option<Cursor>, Error> {
        let parse = |from: &String| {
            Cursor::parse(from).ok_or_else(|| bad("from must be the id of an event: 10 or 10-k3f9"))
        };
        self.from.as_ref().map(parse).transpose()
    }

    fn last(&self) -> Result<Option<u32>, Error> {
        let parse = |last: &String| {
            number(last).ok_or_else(|| bad("last must be a number of events, 0 to 4294967295"))
        };
        self.last.as_ref().map(parse).transpose()
    }

    fn kinds(&self) -> Result<Option<Arc<[String]>>, Error> {
        let Some(text) = &self.kinds else { return Ok(None) };
        let kinds: Arc<[String]> = text.split(',').map(str::to_owned).collect();
        let is_kind = |kind: &String| {
            (1..=NewEvent::MAX_KIND_BYTES).contains(&kind.len()) && !kind.chars().any(char::is_control)
        };
        if kinds.len() > MAX_KINDS || !kinds.iter().all(is_kind) {
            return Err(bad(
                "kinds must be 1 to 32 kinds of events, each of 1 to 64 bytes, separated by commas: line,end",
            ));
        }
        Ok(Some(kinds))
    }
}

impl<S: Sync> FromRequestParts<S> for Cursor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        match Self::of_header(parts)? {
            Some(cursor) => Ok(cursor),
            None => Ok(Parameters::of(parts)?.from()?.unwrap_or_default()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Selection {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let parameters = Parameters::of(parts)?;
        let kinds = parameters.kinds()?;
        let start = match (Cursor::of_header(parts)?, parameters.from()?, parameters.last()?) {
            (_, Some(_), Some(_)) => return Err(bad("from and last exclude each other")),
            (Some(cursor), ..) => Start::After(cursor),
            (None, from, None) => Start::After(from.unwrap_or_default()),
            (None, None, Some(count)) => Start::Last(count),
        };
        Ok(Self { start, kinds })
    }
}

/// Digits and nothing else.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    if is_plain { text.parse().ok() } else { None }
}

fn bad(detail: &str) -> Error {
    Error::bad_request(StatusCode::BAD_REQUEST, detail)
}
