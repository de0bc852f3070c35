//! When the answer to a request must begin.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, MatchedPath, OptionalFromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use futures_util::TryFutureExt;
use tokio::time::timeout_at;
use tower_layer::Layer;
use tower_service::Service;

use crate::Error;

mod header;

use header::{Header, Unit};

/// Longer times are cut to this: the clock's range is smaller than that of `Duration`.
const NEVER: Duration = Duration::from_hours(100 * 365 * 24);

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
        Self { header: Some(Header::new(header, Unit::Seconds)), ..self }
    }

    /// As [`seconds_in`](Self::seconds_in), in milliseconds, as in Envoy's `x-envoy-expected-rq-timeout-ms`.
    pub fn milliseconds_in(self, header: HeaderName) -> Self {
        Self { header: Some(Header::new(header, Unit::Milliseconds)), ..self }
    }

    /// The time for a request with these headers.
    fn limit_for(&self, headers: &HeaderMap) -> Result<Duration, Error> {
        let given = self.header.as_ref().map(|header| header.read(headers)).transpose()?.flatten();
        Ok(given.map_or(self.limit, |given| given.min(self.limit)))
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
