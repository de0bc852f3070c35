//! The API.

use std::ffi::OsString;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use db_axum::sse::{self, Cursor};
use db_axum::{Error, Result};
use db_layer::LogId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::builds::{self, Build};
use crate::list;
use crate::serve::App;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/builds", get(list).post(start))
        .route("/api/builds/{id}", get(show))
        .route("/api/builds/{id}/events", get(events))
}

async fn list(State(app): State<App>) -> Result<Json<Vec<Build>>> {
    Ok(Json(builds::newest(&app.db, &app.unseal_log, list::LIMIT).await?))
}

#[derive(Deserialize)]
struct Start {
    command: Vec<String>,
}

async fn start(
    State(app): State<App>,
    headers: HeaderMap,
    body: std::result::Result<Json<Start>, JsonRejection>,
) -> Result<(StatusCode, [(axum::http::HeaderName, String); 1], Json<Value>)> {
    app.guard.check_start(&headers)?;
    let Json(Start { command }) =
        body.map_err(|rejection| Error::new(rejection.status(), rejection.body_text()))?;
    if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
        let detail =
            "`command` must be a list of words without NUL characters, the first of which is not empty";
        return Err(Error::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let command = command.into_iter().map(OsString::from).collect();
    let id = app.builds.start(&app.db, command).await.map_err(internal)?;
    Ok((StatusCode::CREATED, [(LOCATION, format!("/api/builds/{id}"))], Json(json!({ "id": id }))))
}

/// The database's errors know their answers; others are ours.
fn internal(error: anyhow::Error) -> Error {
    let error = match error.downcast::<db_layer::Error>() {
        Ok(error) => return error.into(),
        Err(error) => error,
    };
    match error.downcast::<db_layer::db_events::Error>() {
        Ok(error) => error.into(),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "a build could not be started");
            Error::new(StatusCode::INTERNAL_SERVER_ERROR, "the build could not be started")
        }
    }
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Build>> {
    let build = match id.parse() {
        Ok(id) => builds::find(&app.db, &app.unseal_log, id).await?,
        Err(_) => None,
    };
    build.map(Json).ok_or_else(missing)
}

async fn events(State(app): State<App>, Path(id): Path<String>, cursor: Cursor) -> Result<Response> {
    let log = log_of(&app, &id).await?;
    sse::events(&app.db, log, cursor).await
}

/// The log of a build by the number in an address; what is not a number is no build's.
pub(super) async fn log_of(app: &App, id: &str) -> Result<LogId> {
    let log = match id.parse() {
        Ok(id) => builds::log_of(&app.db, id).await?,
        Err(_) => None,
    };
    log.ok_or_else(missing)
}

fn missing() -> Error {
    Error::not_found("there is no such build")
}
