//! One transaction for a request.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::{FromRef, FromRequestParts, MatchedPath, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use db_layer::{Db, Handle, TxOptions};
use tokio::time::timeout;

use crate::deadline::Ending;
use crate::{Api, Error};

/// How long an answer that is an error waits for the rollback.
const ROLLBACK: Duration = Duration::from_millis(500);

/// The transaction of a request: an extractor, behind the middleware [`transactions`], which ends it. It is begun at its first use, so that no
/// connection is held while a body is read.
///
/// The middleware commits before the answer is sent, if the answer's status is below 400, and rolls back otherwise. A commit that fails becomes
/// the answer. All extractors of one request, also those of middleware, share one transaction, one after the other.
///
/// ```
/// use axum::Router;
/// use axum::middleware::from_fn;
/// use axum::routing::post;
/// use db_axum::{Json, Tx, transactions};
/// use db_layer::Db;
///
/// async fn order(mut tx: Tx, Json(item): Json<String>) -> db_axum::Result<Json<i64>> {
///     let tx = tx.begin().await?;
///     let id = sqlx::query_scalar("insert into orders (item) values ($1) returning id").bind(&item).fetch_one(&mut *tx).await?;
///     sqlx::query("update stock set left = left - 1 where item = $1").bind(&item).execute(&mut *tx).await?;
///     Ok(Json(id))
/// }
///
/// let router: Router<Db> = Router::new().route("/orders", post(order)).layer(from_fn(transactions));
/// # drop(router);
/// ```
///
/// [`Handle::tx`](db_layer::Handle::tx) in the handler does the same without a middleware, for a part of the request, and with retries.
#[must_use]
pub struct Tx {
    handle: Handle,
    seat: Arc<Seat>,
    begun: Option<db_layer::Tx>,
}

impl Tx {
    /// The transaction, begun if it is not. It has the handle of [`Api`]: its deadline, its name, its lane.
    ///
    /// Cancel safe: a transaction that is being begun is rolled back.
    ///
    /// # Errors
    ///
    /// Those of [`Handle::begin`](db_layer::Handle::begin).
    #[track_caller]
    pub fn begin(&mut self) -> impl Future<Output = Result<&mut db_layer::Tx, Error>> + Send {
        self.begin_with(TxOptions::default())
    }

    /// The same with options, which only count if it is not begun.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin).
    #[track_caller]
    pub fn begin_with(
        &mut self,
        options: TxOptions,
    ) -> impl Future<Output = Result<&mut db_layer::Tx, Error>> + Send {
        let handle = self.handle.here();
        async move {
            let begun = match self.begun.take() {
                Some(begun) => begun,
                None => handle.begin_with(options).await?,
            };
            Ok(self.begun.insert(begun))
        }
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        self.seat.give_back(self.begun.take());
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Tx
where
    Db: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Ok(Api(handle)) = Api::from_request_parts(parts, state).await;
        let seat = parts.extensions.get::<Arc<Seat>>().cloned();
        let seat = seat.ok_or_else(|| Error::no_layer(parts, "transactions"))?;
        let Some(begun) = seat.take() else {
            let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
            tracing::error!(route, "a request has two `Tx` at the same time");
            return Err(Error::internal());
        };
        Ok(Self { handle, seat, begun })
    }
}

/// Where a request's transaction is while no extractor has it.
#[derive(Default)]
struct Seat(Mutex<Place>);

#[derive(Default)]
enum Place {
    /// No extractor has asked for it.
    #[default]
    Unasked,
    Taken,
    /// Given back, and begun or not.
    Back(Option<db_layer::Tx>),
    /// The answer is made.
    Ended,
}

impl Seat {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The transaction for an extractor, begun or not; `None` if another has it.
    #[expect(clippy::option_option, reason = "whether it may be taken, and whether it is begun")]
    fn take(&self) -> Option<Option<db_layer::Tx>> {
        let mut place = self.place();
        let begun = match &mut *place {
            Place::Unasked => None,
            Place::Back(begun) => begun.take(),
            Place::Taken | Place::Ended => return None,
        };
        *place = Place::Taken;
        Some(begun)
    }

    /// After the end, the transaction is dropped, which rolls back.
    fn give_back(&self, begun: Option<db_layer::Tx>) {
        let mut place = self.place();
        if matches!(*place, Place::Taken) {
            *place = Place::Back(begun);
        }
    }

    fn end(&self) -> Place {
        std::mem::replace(&mut *self.place(), Place::Ended)
    }
}

/// The middleware that ends the transaction of each request whose handler has a [`Tx`]; other requests pass.
///
/// An answer to a request with a `Tx` has a known length: one that is streamed is 500, and the log names the route, since the transaction would
/// have to end before the body, and nobody would know what a later error of the body means. Layers that stream, such as compression, are added after this one. A `Tx` that
/// outlives the answer, in a task that was spawned, is 500 as well, and is rolled back.
///
/// If the client hangs up, or a [`Deadline`](crate::Deadline) passes, the transaction is rolled back, unless the commit was sent already: it is
/// committed or not, as a whole. A deadline of a layer around this one then waits for the commit.
pub async fn transactions(mut request: Request, next: Next) -> Response {
    let seat = Arc::<Seat>::default();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    request.extensions_mut().insert(Arc::clone(&seat));
    let ending = request.extensions().get::<Ending>().cloned();
    let answer = next.run(request).await;
    let begun = match seat.end() {
        Place::Unasked => return answer,
        Place::Back(begun) => begun,
        Place::Taken | Place::Ended => {
            tracing::error!(route, "a `Tx` has outlived the answer of its request");
            return Error::internal().into_response();
        }
    };
    if answer.body().size_hint().exact().is_none() {
        tracing::error!(route, "an answer of unknown length cannot have a `Tx`");
        return Error::internal().into_response();
    }
    let Some(tx) = begun else { return answer };
    if answer.status() >= StatusCode::BAD_REQUEST {
        // If it takes longer, or the link is lost, the pool sees to it: the answer need not wait.
        if let Ok(Err(error)) = timeout(ROLLBACK, tx.rollback()).await {
            tracing::debug!(%error, "rolling back after an error failed");
        }
        return answer;
    }
    if let Some(ending) = ending {
        ending.begins();
    }
    match tx.commit().await {
        Ok(()) => answer,
        Err(error) => Error::from(error).into_response(),
    }
}
