//! Routes for on-call people and their dashboards.

mod answers;
mod this_machine;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{Route, get, post};
use db_layer::Db;
use futures_util::FutureExt;
use tower_layer::Layer;
use tower_service::Service;

use crate::Error;

/// What a service's connections and statements do, as JSON. None of the routes but `slow-queries` asks the database or waits for a pool.
///
/// They show lines of the program, statements without their literals, and addresses of processes, so they can be mounted only together with
/// who may see them: [`guarded_by`](Monitoring::guarded_by) a layer, or [`for_this_machine`](Monitoring::for_this_machine).
///
/// ```
/// # db_testkit::run(async |test| {
/// # let config = db_layer::Config::from_url(&test.url())?;
/// use std::net::SocketAddr;
///
/// use axum::Router;
///
/// let db = db_layer::open(db_layer::Options::new(config)).await?;
/// let router: Router = Router::new()
///     .merge(db_axum::health::routes(db.clone()))
///     .nest("/monitoring", db_axum::monitoring(db).for_this_machine());
///
/// let service = router.into_make_service_with_connect_info::<SocketAddr>();
/// # drop(service);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
///
/// Without either, it is no router:
///
/// ```compile_fail,E0308
/// # fn mount(db: db_layer::Db) -> axum::Router {
/// axum::Router::new().nest("/monitoring", db_axum::monitoring(db))
/// # }
/// ```
///
/// | route | answers |
/// |---|---|
/// | `/connections/health` | `{healthy, timestamp, database: {healthy, responseTime, connectionPool: {active, idle, total, max, utilizationPercent, isPgBouncer, isShuttingDown}}, redis}`; 503 if requests cannot be served |
/// | `/connections/pool` | `{database: {utilizationPercent, activeConnections, maxConnections, isHealthy}, redis, pools}`: `pools` has each pool with its limits and totals |
/// | `/connections/alerts` | `{alerts, count, timestamp}`: the alerts that are raised, each as a line |
/// | `/alerts` | the same with name, severity, number, what to do, and since when |
/// | `/database/slow-queries` | the statements that took longest, by `pg_stat_statements` if it can be read, else as this process has counted them; `?limit=`, 20 unless it says |
/// | `/holders` | who holds connections: line, time, whether in a transaction, statement |
/// | `/statements` | what ran: calls, times, rows, errors, and the lines that asked |
/// | `/statements/reset` | `POST`: count anew |
/// | `/bus` | the bus |
/// | `/streams` | the event streams |
///
/// In the first three, names in camel case are those of other pools' dashboards: `connectionPool` and `database` are all pools together;
/// `utilizationPercent` is the share of the connections that are open, as text in the first and as a number in the second. An alert's
/// utilization is the share that is in use.
pub fn monitoring(db: Db) -> Monitoring {
    Monitoring { db }
}

/// The routes of [`monitoring`], until it is said who may see them.
#[derive(Debug, Clone)]
#[must_use = "it becomes a router by `guarded_by` or `for_this_machine`"]
pub struct Monitoring {
    db: Db,
}

impl Monitoring {
    /// The routes behind a layer, which refuses those who may not see them. One that panics answers 500.
    pub fn guarded_by<L>(self, guard: L) -> Router
    where
        L: Layer<Route> + Clone + Send + Sync + 'static,
        L::Service: Service<Request, Error: Into<Infallible> + 'static, Response: IntoResponse + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
        <L::Service as Service<Request>>::Future: Send + 'static,
    {
        // The layer that is added last is asked first.
        self.routes().route_layer(guard).route_layer(from_fn(answer_panics))
    }

    /// The routes for those who are logged in on this machine. 403 to everybody else: to a peer whose address is not loopback, or is not known
    /// because the router is served without [`ConnectInfo`](axum::extract::ConnectInfo); to a request that a proxy has forwarded, by its
    /// headers; to one whose `Host` is no loopback name, which a browser sends whom another site has led here; and to one from a page of
    /// another origin.
    ///
    /// **A proxy on this machine that adds no header cannot be seen: its clients are let in.** Behind such a proxy, use
    /// [`guarded_by`](Self::guarded_by).
    pub fn for_this_machine(self) -> Router {
        self.guarded_by(from_fn(this_machine::check))
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/connections/health", get(answers::health))
            .route("/connections/pool", get(answers::pool))
            .route("/connections/alerts", get(answers::alert_lines))
            .route("/alerts", get(answers::alerts))
            .route("/database/slow-queries", get(answers::slow_queries))
            .route("/holders", get(answers::holders))
            .route("/statements", get(answers::statements))
            .route("/statements/reset", post(answers::reset_statements))
            .route("/bus", get(answers::bus))
            .route("/streams", get(answers::streams))
            .with_state(self.db)
    }
}

/// Answers 500 if what comes after it panics.
async fn answer_panics(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let answer = AssertUnwindSafe(async move { next.run(request).await }).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        // The hook of panics has written the message.
        tracing::error!(path, "a guard or a route of monitoring has panicked");
        Error::internal().into_response()
    })
}
