//! The pages, built into the program.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::serve::{App, api};

const INDEX: &str = include_str!("../../assets/index.html");
const BUILD: &str = include_str!("../../assets/build.html");
const MISSING: &str = include_str!("../../assets/missing.html");
const STYLE: &str = include_str!("../../assets/style.css");
const INDEX_SCRIPT: &str = include_str!("../../assets/index.js");
const BUILD_SCRIPT: &str = include_str!("../../assets/build.js");
const ICON: &str = include_str!("../../assets/icon.svg");

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(async || html(INDEX)))
        .route("/builds/{id}", get(build))
        .route("/assets/style.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/assets/index.js", get(async || asset("text/javascript; charset=utf-8", INDEX_SCRIPT)))
        .route("/assets/build.js", get(async || asset("text/javascript; charset=utf-8", BUILD_SCRIPT)))
        .route("/assets/icon.svg", get(async || asset("image/svg+xml", ICON)))
        .fallback(async || (StatusCode::NOT_FOUND, html(MISSING)))
}

async fn build(State(app): State<App>, Path(id): Path<String>) -> Response {
    match api::log_of(&app, &id).await {
        Ok(_) => html(BUILD).into_response(),
        Err(error) if error.status() == StatusCode::NOT_FOUND => {
            (StatusCode::NOT_FOUND, html(MISSING)).into_response()
        }
        Err(error) => error.into_response(),
    }
}

fn html(text: &'static str) -> impl IntoResponse {
    asset("text/html; charset=utf-8", text)
}

fn asset(kind: &'static str, text: &'static str) -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, kind)], text)
}
