//! A service whose database is still being opened.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use db_layer::Startup;
use tower_service::Service;

use crate::{Error, health};

/// A service whose database is still being opened: its port is open, it answers the probes, and refuses everything else with 503 and
/// `Retry-After`. From [`started`](Self::started) on, it is the service itself.
///
/// While it is starting, `/health/live` says 200, and `/health`, `/health/ready`, `/health/db` and `/health/startup` say 503, the last with the
/// step that opening is at.
///
/// ```
/// # db_testkit::run(async |test| {
/// # let config = db_layer::Config::from_url(&test.url())?;
/// use axum::Router;
/// use db_axum::{Starting, health};
///
/// let options = db_layer::Options::new(config);
/// let starting = Starting::new(options.startup());
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let serving = tokio::spawn(axum::serve(listener, starting.router()).into_future());
///
/// let db = db_layer::open(options).await?;
/// starting.started(Router::new().merge(health::routes(db)));
/// # serving.abort();
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Starting {
    startup: Startup,
    service: Arc<OnceLock<Router>>,
}

impl Starting {
    /// A service that is starting.
    #[must_use]
    pub fn new(startup: Startup) -> Self {
        Self { startup, service: Arc::default() }
    }

    /// What to serve from the beginning.
    pub fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }

    /// Makes it the service itself. Later calls change nothing.
    pub fn started(&self, service: Router) {
        // Which is there already.
        let _: Result<_, _> = self.service.set(service);
    }
}

async fn answer(State(starting): State<Starting>, request: Request) -> Response {
    if let Some(service) = starting.service.get() {
        let answer: Result<Response, Infallible> = service.clone().call(request).await;
        return answer.unwrap_or_else(|never| match never {});
    }
    match request.uri().path() {
        "/health/live" => health::live(request.headers()),
        "/health" | "/health/ready" | "/health/startup" => {
            health::startup(&starting.startup, request.headers())
        }
        "/health/db" => health::no_database(),
        _ => Error::starting().into_response(),
    }
}
