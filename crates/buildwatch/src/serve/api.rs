//! The API.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::http::header::{ALLOW, LOCATION, RETRY_AFTER};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use db_axum::sse::{self, Selection};
use db_axum::{Admission, Api, Error, Json, Path, Result};
use db_layer::{Handle, LogId};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::builds::{self, Build};
use crate::list;
use crate::serve::App;
use crate::serve::guard::{self, Target};
use crate::serve::holding::holding;

/// How long a client may take to send a request's body.
const BODY: Duration = Duration::from_secs(10);

pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/api/builds", get(list).post(start))
        .route("/api/builds/{id}", get(show))
        .route("/api/builds/{id}/events", get(events))
        .route_layer(Admission::new(app.db.api()))
        .route_layer(from_fn_with_state(app.clone(), guard::check_read))
}

async fn list(State(app): State<App>, Api(api): Api) -> Result<impl IntoResponse> {
    // The page reads this header to decide whether to offer a start.
    let methods = if app.guard.rights().may_start { "GET, HEAD, POST" } else { "GET, HEAD" };
    Ok(([(ALLOW, methods)], Json(builds::newest(&api, &app.plans, list::LIMIT).await?)))
}

#[derive(Deserialize)]
struct Start {
    command: Vec<String>,
}

async fn start(
    State(app): State<App>,
    Extension(target): Extension<Target>,
    request: Request,
) -> Result<(StatusCode, [(axum::http::HeaderName, String); 1], Json<Value>)> {
    app.guard.check_start(request.headers(), &target)?;
    let Start { command } = body(&app, request).await?;
    if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
        let detail =
            "`command` must be a list of words without NUL characters, the first of which is not empty";
        return Err(Error::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let command = command.into_iter().map(OsString::from).collect();
    let id = app.builds.start(&app.db, &app.plans, command).await.map_err(internal)?;
    Ok((StatusCode::CREATED, [(LOCATION, format!("/api/builds/{id}"))], Json(json!({ "id": id }))))
}

/// The command in a request, once the whole body has arrived.
async fn body(app: &App, request: Request) -> Result<Start> {
    let closing = app.db.closing();
    let read = tokio::select! {
        read = timeout(BODY, Json::<Start>::from_request(request, &())) => read,
        () = closing.cancelled() => {
            return Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, "the server is closing"));
        }
    };
    let Ok(read) = read else {
        let detail = format!("the request's body did not arrive within {} s", BODY.as_secs());
        return Err(Error::new(StatusCode::REQUEST_TIMEOUT, detail));
    };
    read.map(|Json(start)| start)
}

/// Errors of the database have their own answers; others become internal errors.
fn internal(error: anyhow::Error) -> Error {
    let error = match error.downcast::<db_layer::Error>() {
        Ok(error) => return error.into(),
        Err(error) => error,
    };
    match error.downcast::<db_layer::db_events::Error>() {
        Ok(error) => error.into(),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot start a build");
            Error::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server could not start the build; its log has the details",
            )
        }
    }
}

async fn show(State(app): State<App>, Api(api): Api, Path(id): Path<String>) -> Result<Json<Build>> {
    let build = match id.parse() {
        Ok(id) => builds::find(&api, &app.plans, id).await?,
        Err(_) => None,
    };
    build.map(Json).ok_or_else(missing)
}

async fn events(
    State(app): State<App>,
    Api(api): Api,
    Path(id): Path<String>,
    selection: Selection,
) -> Result<Response> {
    let log = log_of(&api, &id).await?;
    // The permit lasts as long as the answer.
    let Ok(permit) = Arc::clone(&app.streams).try_acquire_owned() else {
        let detail = "the server has no connection left for another live stream";
        let error = Error::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        return Ok(([(RETRY_AFTER, "5")], error).into_response());
    };
    let answer = sse::events(&app.db, log, selection).await?;
    Ok(answer.map(|body| holding(body, permit)))
}

/// The log of a build by the number in an address; not a number means no such build.
pub(super) async fn log_of(api: &Handle, id: &str) -> Result<LogId> {
    let log = match id.parse() {
        Ok(id) => builds::log_of(api, id).await?,
        Err(_) => None,
    };
    log.ok_or_else(missing)
}

pub(super) fn missing() -> Error {
    Error::not_found("there is no such build")
}
