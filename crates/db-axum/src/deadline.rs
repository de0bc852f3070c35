//! When the answer to a request must begin.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, MatchedPath, OptionalFromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::TryFutureExt;
use tokio::time::timeout_at;
use tower_layer::Layer;
use tower_service::Service;

use crate::Error;

/// Longer times are cut to this: the clock's range is smaller than that of `Duration`.
const NEVER: Duration = Duration::from_hours(100 * 365 * 24);

/// The longest number in a header. More digits say no more.
const LONGEST: usize = 20;

/// When the answer to a request must begin: among the request's extensions, and an extractor, behind the layer [`Deadline::within`].
///
/// Handles of [`Api`](crate::Api), [`Backend`](crate::Backend) and [`Tx`](crate::Tx) keep to it by themselves. It tells a handler how much time is
/// left for its other calls:
///
/// ```
/// use std::time::Duration;
///
/// use axum::Router;
/// use axum::http::HeaderName;
/// use axum::routing::get;
/// use db_axum::Deadline;
///
/// async fn price(deadline: Deadline) -> db_axum::Result<String> {
///     // The other service has the time that we have, less a little for our own work.
///     let rest = deadline.remaining().saturating_sub(Duration::from_millis(20));
///     Ok(format!("{} ms", rest.as_millis()))
/// }
///
/// let limit = Deadline::within(Duration::from_secs(10)).milliseconds_in(HeaderName::from_static("x-timeout-ms"));
/// let router: Router = Router::new().route("/price", get(price)).layer(limit);
/// # drop(router);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Instant);

impl Deadline {
    /// A layer that gives each request this time for its answer to begin; what follows, such as a live stream, has no limit. Then the
    /// handler's future is dropped, a statement that it runs is cancelled on the server, its transaction is rolled back, and the answer is
    /// 504. The commit of a [`Tx`](crate::Tx) is waited for; one that the handler itself sends is cut off with it, and is done as a whole or
    /// not at all. The client may have less patience: see [`DeadlineLayer::seconds_in`]. Of several layers, the shortest time counts.
    pub fn within(limit: Duration) -> DeadlineLayer {
        DeadlineLayer { limit, header: None }
    }

    /// The time.
    #[must_use]
    pub fn at(self) -> Instant {
        self.0
    }

    /// What is left until then.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Deadline {
    type Rejection = Error;

    /// Refuses with 500 if the route has no such layer.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parts.extensions.get().copied().ok_or_else(|| Error::no_layer(parts, "Deadline::within"))
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Deadline {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get().copied())
    }
}

/// Whether the end of the request's transaction has begun, which is waited for: among the request's extensions. The outcome of a commit that is
/// cut off is unknown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending(Arc<AtomicBool>);

impl Ending {
    pub(crate) fn begins(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A header in which clients say how long they wait.
#[derive(Debug, Clone)]
struct Header {
    name: HeaderName,
    unit: Unit,
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    Seconds,
    Milliseconds,
}

/// Gives each request a [`Deadline`]: made by [`Deadline::within`].
#[derive(Debug, Clone)]
#[must_use = "it is given to `Router::layer`"]
pub struct DeadlineLayer {
    limit: Duration,
    header: Option<Header>,
}

impl DeadlineLayer {
    /// The client says in this header for how many seconds it waits, such as `2` or `0.5`. The shorter of both times counts.
    ///
    /// Each request that is cut off while a statement runs costs the pool a cancel, so let a proxy in front remove or set the header if you
    /// do not trust the clients.
    ///
    /// A client without any time left, `0`, is answered 504 at once. A value that is no such number (`-1`, `∞`, `1e3`, `soon`), and a second
    /// one, is answered 400.
    pub fn seconds_in(self, header: HeaderName) -> Self {
        Self { header: Some(Header { name: header, unit: Unit::Seconds }), ..self }
    }

    /// As [`seconds_in`](Self::seconds_in), in milliseconds, as in Envoy's `x-envoy-expected-rq-timeout-ms`.
    pub fn milliseconds_in(self, header: HeaderName) -> Self {
        Self { header: Some(Header { name: header, unit: Unit::Milliseconds }), ..self }
    }

    /// The time for a request with these headers.
    fn limit_for(&self, headers: &HeaderMap) -> Result<Duration, Error> {
        let Some(header) = &self.header else { return Ok(self.limit) };
        let mut values = headers.get_all(&header.name).into_iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(self.limit),
            (Some(value), None) => {
                header.read(value).map(|limit| limit.min(self.limit)).ok_or_else(|| header.unreadable())
            }
            (Some(_), Some(_)) => Err(header.unreadable()),
        }
    }
}

impl Header {
    fn read(&self, value: &HeaderValue) -> Option<Duration> {
        let text = value.to_str().ok()?.trim();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if !is_plain || text.len() > LONGEST {
            return None;
        }
        let number: f64 = text.parse().ok()?;
        let seconds = match self.unit {
            Unit::Seconds => number,
            Unit::Milliseconds => number / 1000.0,
        };
        // What is longer than a `Duration` is longer than the layer's own time.
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    fn unreadable(&self) -> Error {
        let (unit, example) = match self.unit {
            Unit::Seconds => ("seconds", "0.5"),
            Unit::Milliseconds => ("milliseconds", "500"),
        };
        Error::unreadable(format!("the header {} must be one number of {unit}, such as {example}", self.name))
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = WithDeadline<S>;

    fn layer(&self, inner: S) -> WithDeadline<S> {
        WithDeadline { inner, layer: self.clone() }
    }
}

/// The service of [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct WithDeadline<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S> Service<Request> for WithDeadline<S>
where
    S: Service<Request, Response: IntoResponse> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let (limit, whole) = (self.layer.limit_for(request.headers()), self.layer.limit);
        // The one that was polled until it was ready.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let now = Instant::now();
            let limit = match limit {
                Ok(limit) if limit.is_zero() => return Ok(Error::no_time_left().into_response()),
                Ok(limit) => limit,
                Err(error) => return Ok(error.into_response()),
            };
            let around = request.extensions().get::<Deadline>().map(|around| around.0);
            let by_client = limit < whole;
            let own = now + limit.min(NEVER);
            let at = around.map_or(own, |around| around.min(own));
            // One for all layers around a transaction.
            let ending = request.extensions().get::<Ending>().cloned().unwrap_or_default();
            request.extensions_mut().insert(Deadline(at));
            request.extensions_mut().insert(ending.clone());
            let method = request.method().clone();
            let route = request.extensions().get::<MatchedPath>().cloned();
            let mut answering = pin!(inner.call(request).map_ok(IntoResponse::into_response));
            if let Ok(answer) = timeout_at(at.into(), &mut answering).await {
                return answer;
            }
            if ending.has_begun() {
                return answering.await;
            }
            Ok(Error::cut_off(&method, route.as_ref(), now.elapsed(), by_client).into_response())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(unit: Unit, values: &[&[u8]]) -> Option<Duration> {
        let name = HeaderName::from_static("x-timeout");
        let layer = Deadline::within(Duration::from_secs(10));
        let layer = match unit {
            Unit::Seconds => layer.seconds_in(name.clone()),
            Unit::Milliseconds => layer.milliseconds_in(name.clone()),
        };
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(value).expect("a header's value"));
        }
        layer.limit_for(&headers).ok()
    }

    #[test]
    fn the_shorter_of_both_times_counts() {
        for (values, seconds) in [
            (&[][..], 10.0),
            (&[&b"2"[..]], 2.0),
            (&[b" 0.25 "], 0.25),
            (&[b".5"], 0.5),
            (&[b"11"], 10.0),
            (&[b"0"], 0.0),
            (&[b"0.000"], 0.0),
            (&[b"99999999999999999999"], 10.0),
        ] {
            assert_eq!(limit(Unit::Seconds, values), Some(Duration::from_secs_f64(seconds)), "{values:?}");
        }
        assert_eq!(limit(Unit::Milliseconds, &[b"250"]), Some(Duration::from_millis(250)));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let values: [&[u8]; 16] = [
            b"",
            b" ",
            b"-1",
            b"+1",
            b"\xe2\x88\x9e",
            b"inf",
            b"infinity",
            b"NaN",
            b"1e3",
            b"soon",
            b"1s",
            b"1,5",
            b".",
            b"1.2.3",
            b"0x10",
            b"999999999999999999999",
        ];
        for value in values {
            assert_eq!(limit(Unit::Seconds, &[value]), None, "{:?}", String::from_utf8_lossy(value));
        }
        assert_eq!(limit(Unit::Seconds, &[b"1", b"2"]), None, "two values");
    }
}
