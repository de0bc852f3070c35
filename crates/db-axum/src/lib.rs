//! Database errors, event streams, health and monitoring, for axum handlers.
//!
//! ```
//! use axum::extract::State;
//! use db_axum::{Json, Path};
//! use db_layer::Db;
//!
//! async fn rename(State(db): State<Db>, Path(id): Path<i64>, Json(name): Json<String>) -> db_axum::Result<()> {
//!     db.api()
//!         .tx(async |tx| {
//!             sqlx::query("update shops set name = $2 where id = $1").bind(id).bind(&name).execute(&mut *tx).await?;
//!             sqlx::query("insert into renames (shop) values ($1)").bind(id).execute(&mut *tx).await?;
//!             Ok(())
//!         })
//!         .await
//! }
//! # let _: axum::Router<Db> = axum::Router::new().route("/shops/{id}", axum::routing::put(rename));
//! # db_testkit::run(async |test| {
//! #     let tables = "create table shops (id bigint, name text); create table renames (shop bigint)";
//! #     sqlx::raw_sql(tables).execute(&test.pool()).await.unwrap();
//! #     let config = db_layer::Config::from_url(&test.url()).unwrap();
//! #     let db = db_layer::open(db_layer::Options::new(config)).await.unwrap();
//! #     rename(State(db), Path(1), Json("Tea".to_owned())).await.unwrap();
//! #     let renames: i64 = sqlx::query_scalar("select count(*) from renames").fetch_one(&test.pool()).await.unwrap();
//! #     assert_eq!(renames, 1);
//! # });
//! ```
//!
//! * [`Error`] becomes an answer: 404 for a row that is not there, 409 for a unique constraint, 503 with `Retry-After` if the
//!   database is away, and so on. The answer has a `type`
//!   for programs and the status's title, and the log has the details.
//! * [`Json`], [`Path`] and [`Query`] do what axum's do, and their refusals are [`Error`]s; [`no_such_address`] and [`no_such_method`] are for the
//!   fallbacks of a router. [`request_ids`] puts an id into each request's log, answer and error.
//! * [`Api`] and [`Backend`] are handles with the request's route as their name and its [`Deadline`] as their limit; [`Tx`] is one transaction for
//!   a request, committed before the answer. [`Admission`] refuses requests while the pool is overloaded, before their bodies are read.
//! * [`sse`] answers with an event log as server-sent events, live, resumed by `Last-Event-ID`.
//! * [`health`] has the routes for probes, people and dashboards; [`Starting`] answers the probes before there is a database.
//! * [`monitoring`] has the routes for on-call people: alerts, who holds connections, what ran. They cannot be mounted without a guard.
//!
//! # Features
//!
//! | feature | on by default | what it adds |
//! |---|---|---|
//! | `rate-limit` | no | `RateLimit`: limits of requests for each client |
//! | `redis` | no | `RateLimit::shared_by`: the limits of all processes together; with `rate-limit` |
//! | `sea-orm` | no | `SeaORM`'s errors become [`Error`]s; `db.api().orm()` and `tx.orm()` of `db-layer` |

mod admission;
mod deadline;
mod error;
mod extract;
mod handles;
pub mod health;
mod kind;
mod monitoring;
mod names;
#[cfg(feature = "rate-limit")]
mod rate_limit;
mod request_id;
pub mod sse;
mod starting;
mod tx;

pub use admission::{Admission, Admitting};
pub use deadline::{Deadline, DeadlineLayer, WithDeadline};
pub use error::Error;
pub use extract::{Json, Path, Query, no_such_address, no_such_method};
pub use handles::{Api, Backend};
pub use monitoring::{Monitoring, monitoring};
#[cfg(feature = "rate-limit")]
pub use rate_limit::{Limit, RateLimit, RateLimitError, RateLimited};
pub use request_id::{RequestId, request_ids};
pub use starting::Starting;
pub use tx::{Tx, transactions};

/// The result of a handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The examples of the README and the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/guide.md")]
struct Documents;
