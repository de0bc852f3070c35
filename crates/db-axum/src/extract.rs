//! axum's extractors, whose refusals are problems, too.

use std::ops::{Deref, DerefMut};

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// The body of a request as JSON, and a JSON answer, as [`axum::Json`]. A body that cannot be read is refused with an [`Error`], and a value that
/// cannot be written is 500.
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct Json<T>(pub T);

/// The parameters of the path, as [`axum::extract::Path`]. Those that cannot be read are refused with an [`Error`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Path<T>(pub T);

/// The query, as [`axum::extract::Query`]. One that cannot be read is refused with an [`Error`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let taken = axum::Json::from_request(request, state).await;
        taken
            .map(|axum::Json(value)| Self(value))
            .map_err(|why: JsonRejection| Error::bad_request(why.status(), &why.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let taken = axum::extract::Path::from_request_parts(parts, state).await;
        taken
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|why: PathRejection| Error::bad_request(why.status(), &why.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let taken = axum::extract::Query::from_request_parts(parts, state).await;
        taken
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|why: QueryRejection| Error::bad_request(why.status(), &why.body_text()))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => Error::unwritable(&error).into_response(),
        }
    }
}

macro_rules! deref {
    ($($name:ident),+) => {
        $(
            impl<T> Deref for $name<T> {
                type Target = T;

                fn deref(&self) -> &T {
                    &self.0
                }
            }

            impl<T> DerefMut for $name<T> {
                fn deref_mut(&mut self) -> &mut T {
                    &mut self.0
                }
            }
        )+
    };
}

deref!(Json, Path, Query);

/// The answer to an address that is not there, for [`Router::fallback`](axum::Router::fallback): 404.
pub async fn no_such_address() -> Error {
    Error::no_such_address()
}

/// The answer to a method that an address does not have, for
/// [`Router::method_not_allowed_fallback`](axum::Router::method_not_allowed_fallback): 405. axum adds `Allow`, and gives it to
/// the routes that are there when it is called.
pub async fn no_such_method() -> Error {
    Error::no_such_method()
}
