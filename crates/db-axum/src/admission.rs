//! Refusing requests that a pool would refuse later.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use db_layer::Handle;
use futures_util::TryFutureExt;
use futures_util::future::{Either, MapOk};
use tower_layer::Layer;
use tower_service::Service;

use crate::Error;

/// A layer that refuses requests while a pool is overloaded, before their bodies are read: 503 with `Retry-After`. It asks
/// [`Handle::admit`](db_layer::Handle::admit), so it needs [`max_waiting`](db_layer::PoolOptions::max_waiting) or
/// [`queue_target`](db_layer::PoolOptions::queue_target); without both, it refuses only while the pool is closed.
///
/// [`Api`](crate::Api), [`Backend`](crate::Backend) and [`Tx`](crate::Tx) of these routes then have the handle's lane and limits. Give it to the routes
/// that use the pool, and not to those of health:
///
/// ```
/// # db_testkit::run(async |test| {
/// # let config = db_layer::Config::from_url(&test.url())?;
/// use std::time::Duration;
///
/// use axum::Router;
/// use axum::routing::{get, post};
/// use db_axum::{Admission, health};
/// use db_layer::{Options, PoolOptions};
///
/// # async fn order() {}
/// # async fn report() {}
/// let api = PoolOptions::api().queue_target(Some(Duration::from_millis(100)));
/// let db = db_layer::open(Options::new(config).api(api)).await?;
/// let router: Router = Router::new()
///     .route("/orders", post(order).layer(Admission::new(db.api())))
///     .route("/report", get(report).layer(Admission::new(db.api().patient())))
///     .merge(health::routes(db));
/// # drop(router);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
#[must_use = "it is given to `layer`"]
pub struct Admission {
    handle: Handle,
}

impl Admission {
    /// Refuses what the pool of this handle would refuse in the handle's [lane](Handle::patient).
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { inner, handle: self.handle.clone() }
    }
}

/// The handle that was asked, among the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct Admitted(pub(crate) Handle);

/// The service of [`Admission`].
#[derive(Debug, Clone)]
pub struct Admitting<S> {
    inner: S,
    handle: Handle,
}

impl<S: Service<Request, Response: IntoResponse>> Service<Request> for Admitting<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response, S::Error>>, MapOk<S::Future, fn(S::Response) -> Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        match self.handle.admit() {
            Ok(()) => {
                request.extensions_mut().insert(Admitted(self.handle.clone()));
                Either::Right(self.inner.call(request).map_ok(IntoResponse::into_response))
            }
            Err(error) => Either::Left(ready(Ok(Error::from(error).into_response()))),
        }
    }
}
