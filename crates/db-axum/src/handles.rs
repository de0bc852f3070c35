//! Handles of a request.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ops::Deref;
use std::sync::{PoisonError, RwLock};

use axum::extract::{FromRef, FromRequestParts, MatchedPath};
use axum::http::request::Parts;
use db_layer::{Db, Handle};

use crate::Deadline;
use crate::admission::Admitted;

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

impl<S: Send + Sync> FromRequestParts<S> for Api
where
    Db: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let db = Db::from_ref(state);
        Ok(Self(for_request(&db, admitted(parts, db.api()), parts)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Backend
where
    Db: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let db = Db::from_ref(state);
        Ok(Self(for_request(&db, admitted(parts, db.backend()), parts)))
    }
}

impl Deref for Api {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.0
    }
}

impl Deref for Backend {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.0
    }
}

/// The handle that [`Admission`](crate::Admission) has asked, if it is of the same pool: with its lane and its limits.
fn admitted(parts: &Parts, handle: Handle) -> Handle {
    let asked =
        parts.extensions.get::<Admitted>().filter(|asked| asked.0.pool().name() == handle.pool().name());
    asked.map_or(handle, |asked| asked.0.clone())
}

/// The handle with the request's deadline and the route's name.
fn for_request(db: &Db, mut handle: Handle, parts: &Parts) -> Handle {
    if let Some(name) = parts.extensions.get::<MatchedPath>().and_then(|route| name(db, route.as_str())) {
        handle = handle.named(name);
    }
    match parts.extensions.get::<Deadline>() {
        Some(deadline) => handle.deadline(deadline.at()),
        None => handle,
    }
}

/// The most routes that have a name: more than a program has.
const MOST: usize = 1000;

/// The routes that were asked for, as names of work. A name lives as long as the program, as a text in its source does, where the route is written.
#[derive(Debug, Default)]
struct Names(RwLock<HashSet<&'static str>>);

fn name(db: &Db, route: &str) -> Option<&'static str> {
    let names = db.api().pool().attached_or_default::<Names>();
    if let Some(name) = names.0.read().unwrap_or_else(PoisonError::into_inner).get(route) {
        return Some(name);
    }
    let mut names = names.0.write().unwrap_or_else(PoisonError::into_inner);
    match names.get(route) {
        Some(name) => Some(name),
        None if names.len() >= MOST => None,
        None => {
            let name: &'static str = Box::leak(route.into());
            names.insert(name);
            Some(name)
        }
    }
}
