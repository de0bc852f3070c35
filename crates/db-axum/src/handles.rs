//! Handles of a request.

use std::convert::Infallible;
use std::ops::Deref;

use axum::extract::{FromRef, FromRequestParts, MatchedPath};
use axum::http::request::Parts;
use db_layer::{Db, Handle};

use crate::admission::Admitted;
use crate::{Deadline, names};

/// The pool for web requests, for one request: an extractor of a handle that has the route as its name, such as `/orders/{id}`, in the log, in
/// holders and in the counts of statements, and that keeps to the request's [`Deadline`].
///
/// ```
/// use axum::Router;
/// use axum::routing::get;
/// use db_axum::{Api, Path};
/// use db_layer::Db;
///
/// async fn total(Api(api): Api, Path(id): Path<i64>) -> db_axum::Result<String> {
///     let total: i64 = sqlx::query_scalar("select total from orders where id = $1").bind(id).fetch_one(&api).await?;
///     Ok(total.to_string())
/// }
///
/// let router: Router<Db> = Router::new().route("/orders/{id}", get(total));
/// # drop(router);
/// ```
///
/// The state of the router is a [`Db`], or has one ([`FromRef`]). Behind [`Admission`](crate::Admission) of the same pool, the handle is that of
/// the layer, with its lane and its limits. Its line is in this crate; [`Handle::here`] gives it the handler's.
///
/// What outlives the answer's beginning, such as a body that streams rows or a task, has no deadline, and takes [`Db::api`].
#[derive(Debug, Clone)]
pub struct Api(pub Handle);

/// The pool for background work, for one request. As [`Api`].
#[derive(Debug, Clone)]
pub struct Backend(pub Handle);

macro_rules! extractor {
    ($name:ident, $pool:ident) => {
        impl<S: Send + Sync> FromRequestParts<S> for $name
        where
            Db: FromRef<S>,
        {
            type Rejection = Infallible;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
                let db = Db::from_ref(state);
                Ok(Self(for_request(&db, db.$pool(), parts)))
            }
        }

        impl Deref for $name {
            type Target = Handle;

            fn deref(&self) -> &Handle {
                &self.0
            }
        }
    };
}

extractor!(Api, api);
extractor!(Backend, backend);

/// The handle that [`Admission`](crate::Admission) has asked, if it is of the same pool: with its lane and its limits.
fn admitted(parts: &Parts, handle: Handle) -> Handle {
    let asked =
        parts.extensions.get::<Admitted>().filter(|asked| asked.0.pool().name() == handle.pool().name());
    asked.map_or(handle, |asked| asked.0.clone())
}

/// The handle with the request's lane and deadline, and the route's name.
fn for_request(db: &Db, handle: Handle, parts: &Parts) -> Handle {
    let mut handle = admitted(parts, handle);
    let route = parts.extensions.get::<MatchedPath>();
    if let Some(name) = route.and_then(|route| names::of(db).get(route.as_str())) {
        handle = handle.named(name);
    }
    match parts.extensions.get::<Deadline>() {
        Some(deadline) => handle.deadline(deadline.at()),
        None => handle,
    }
}
